//! A process of the simulation that takes part in maintenance: its calls of the scripted Redis.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use super::{LEASE, MaintenanceFlaw, MaintenanceWorld, consumer, queues};
use crate::{
    StoreError, StoreResult,
    connection::{
        notifier::SubscriberEvent,
        redis_clock::{ClockSteps, RedisClock},
    },
    jobs::{Consumer, duration_millis},
    maintenance::{
        due_times::QueueTask,
        leadership::Leadership,
        maintenance_store::{FirstDueTimes, HoldingWorker, MaintenanceStore},
    },
};
use common::{
    id::EntryId,
    name::{Priority, QueueName},
    time::Millis,
};

/// What a process knows.
pub(super) struct ScriptedProcess {
    pub(super) world: Arc<MaintenanceWorld>,
    pub(super) number: usize,
    clock: RedisClock,
    /// Whether it was told so after it led last.
    knows_of_other_leader: AtomicBool,
}

impl ScriptedProcess {
    pub(super) fn new(world: Arc<MaintenanceWorld>, number: usize) -> Self {
        Self { world, number, clock: RedisClock::default(), knows_of_other_leader: AtomicBool::new(false) }
    }

    /// Something that only a leader does.
    async fn act<T>(&self, effect: impl FnOnce(&mut super::ScriptedRedis) -> T) -> StoreResult<T> {
        if self.knows_of_other_leader.load(Relaxed) {
            let problem = format!("process {} acts though another leads", self.number);
            self.world.redis().findings.problems.push(problem);
        }
        self.world.call_of(self.number, effect).await
    }

    /// The same for one queue. Now and then that one is damaged.
    async fn act_on_queue<T>(&self, effect: impl FnOnce(&mut super::ScriptedRedis) -> T) -> StoreResult<T> {
        if self.world.is_queue_damaged() {
            return Err(StoreError::Damaged("scripted".into()));
        }
        self.act(effect).await
    }
}

impl MaintenanceStore for ScriptedProcess {
    type Events = mpsc::UnboundedReceiver<SubscriberEvent>;
    type LeasedAttempt = u64;
    type DataChecks = ();

    fn lease(&self) -> Duration {
        if self.world.flaw == MaintenanceFlaw::NoGrace { Duration::ZERO } else { LEASE }
    }

    fn clock_steps(&self) -> ClockSteps {
        self.clock.steps()
    }

    fn estimated_now(&self) -> Millis {
        self.clock.estimate().unwrap_or(0)
    }

    async fn now(&self) -> StoreResult<Millis> {
        let asked = Instant::now();
        let times = self.world.call_of(self.number, |redis| (redis.now(), redis.unset_now())).await?;
        let now = if self.world.flaw == MaintenanceFlaw::OwnClock { times.1 } else { times.0 };
        self.clock.note_answer(now, asked);
        Ok(now)
    }

    async fn uptime(&self) -> StoreResult<Option<Duration>> {
        let uptime = self.world.call_of(self.number, |redis| redis.now() - redis.started_at).await?;
        Ok(Some(Duration::from_millis((uptime / 1000 * 1000 + 1000).unsigned_abs())))
    }

    async fn acquire_leadership(
        &self,
        leader_id: &str,
        lease: Duration,
        expected_now: Option<Millis>,
    ) -> StoreResult<Leadership> {
        let lease_ms = duration_millis(lease).cast_signed();
        let acquire = |redis: &mut super::ScriptedRedis| redis.acquire_leadership(leader_id, lease_ms, expected_now);
        let (is_held, since_last_leader, healed_until) = self.world.call_of(self.number, acquire).await?;
        self.knows_of_other_leader.store(!is_held, Relaxed);
        let is_held = is_held || self.world.flaw == MaintenanceFlaw::KeepsLeading;
        Ok(Leadership { is_held, since_last_leader, healed_until })
    }

    async fn resign_leadership(&self, leader_id: &str) {
        let _ = self.world.call_of(self.number, |redis| redis.resign_leadership(leader_id)).await;
    }

    async fn tell_leader(&self, _: &str) {}

    async fn run_beside(&self, _: Duration) -> Infallible {
        std::future::pending().await
    }

    fn subscribe(&self) -> Self::Events {
        let (sender, receiver) = mpsc::unbounded_channel();
        let _ = sender.send(SubscriberEvent::Subscribed(Vec::new()));
        self.world.redis().subscribe(sender);
        receiver
    }

    async fn next_event(&self, events: &mut Self::Events) -> Option<SubscriberEvent> {
        events.recv().await
    }

    async fn list_queues(&self) -> StoreResult<Vec<QueueName>> {
        self.world.call_of(self.number, |_| queues().to_vec()).await
    }

    async fn first_due_times(&self, queues: &[QueueName]) -> StoreResult<Vec<FirstDueTimes>> {
        let read = |redis: &mut super::ScriptedRedis| {
            let times = queues.iter().map(|queue| {
                let (queue, mut times) = (&redis.queues[queue], FirstDueTimes::default());
                times[QueueTask::Due as usize] = queue.due.values().min().copied();
                times[QueueTask::Timer as usize] = queue.timers.values().min().copied();
                times[QueueTask::ExpiredLease as usize] = queue.attempts.values().map(|attempt| attempt.expiry).min();
                times
            });
            times.collect()
        };
        self.world.call_of(self.number, read).await
    }

    async fn is_in_maintenance_mode(&self) -> StoreResult<bool> {
        self.world.call_of(self.number, |_| false).await
    }

    async fn promote(&self, queue: &QueueName) -> StoreResult<()> {
        let now = self.estimated_now();
        self.act_on_queue(|redis| redis.promote(queue, now)).await
    }

    async fn run_timers(&self, queue: &QueueName) -> StoreResult<()> {
        self.act_on_queue(|redis| redis.run_timers(queue)).await
    }

    async fn first_cron_run(&self) -> StoreResult<Option<Millis>> {
        self.world.call_of(self.number, |redis| Some(redis.first_cron_run())).await
    }

    async fn fire_cron(&self) -> StoreResult<usize> {
        if self.world.is_queue_damaged() {
            return Ok(1);
        }
        self.act(super::ScriptedRedis::fire_cron).await.map(|()| 0)
    }

    async fn expired_leases(&self, queue: &QueueName, now: Millis) -> StoreResult<Vec<String>> {
        let read = |redis: &mut super::ScriptedRedis| {
            let attempts = redis.queues[queue].attempts.iter().filter(|(_, attempt)| attempt.expiry <= now);
            attempts.map(|(id, _)| id.to_string()).collect()
        };
        self.world.call_of(self.number, read).await
    }

    async fn leased_attempt(&self, queue: &QueueName, lease: &str, _: Millis) -> StoreResult<Option<(Millis, u64)>> {
        let id: u64 = lease.parse().expect("a number");
        let read = |redis: &mut super::ScriptedRedis| redis.queues[queue].attempts.get(&id).cloned();
        let attempt = self.world.call_of(self.number, read).await?;
        Ok(attempt.map(|attempt| (attempt.started, attempt.token)))
    }

    async fn settle_expired(&self, queue: &QueueName, lease: String, token: u64, now: Millis) -> StoreResult<()> {
        let id: u64 = lease.parse().expect("a number");
        self.act_on_queue(|redis| redis.settle_expired(queue, id, token, now)).await
    }

    async fn move_leases(&self, by_ms: Millis) -> StoreResult<()> {
        let by_ms = (self.world.flaw != MaintenanceFlaw::HealsNothing).then_some(by_ms);
        self.act(|redis| by_ms.into_iter().for_each(|by_ms| redis.move_leases(by_ms))).await
    }

    async fn heal_clock_set_back(&self) -> StoreResult<()> {
        self.act(super::ScriptedRedis::heal_clock_set_back).await
    }

    async fn listed_workers(&self) -> StoreResult<Vec<(String, f64)>> {
        let listed = self.world.call_of(self.number, |redis| redis.listed_workers()).await?;
        #[expect(clippy::cast_precision_loss, reason = "milliseconds are far below 2^52")]
        let with_score = |(worker, until)| (worker, until as f64);
        Ok(listed.into_iter().map(with_score).collect())
    }

    async fn worker_queues(&self, workers: &[&str]) -> StoreResult<Vec<(Consumer, Vec<QueueName>)>> {
        let workers = workers.iter().map(|worker| (consumer(worker), queues().to_vec())).collect();
        self.world.call_of(self.number, |_| workers).await
    }

    async fn priorities(&self, _: &QueueName) -> StoreResult<Vec<Priority>> {
        self.world.call_of(self.number, |_| vec![Priority::default()]).await
    }

    async fn job_holders(&self, queue: &QueueName, _: Priority) -> StoreResult<Vec<HoldingWorker>> {
        let read = |redis: &mut super::ScriptedRedis| {
            let pending: Vec<_> = redis.queues[queue].pending.values().cloned().collect();
            (redis.now(), pending)
        };
        let (now, pending) = self.world.call_of(self.number, read).await?;
        let mut holders: Vec<HoldingWorker> = Vec::new();
        for entry in pending {
            let idle = Duration::from_millis((now - entry.delivered_at).max(0).unsigned_abs());
            match holders.iter_mut().find(|holder| holder.consumer.name() == entry.worker) {
                Some(holder) => holder.idle = holder.idle.min(idle),
                None => holders.push(HoldingWorker { consumer: consumer(&entry.worker), idle }),
            }
        }
        Ok(holders)
    }

    async fn idle_entries(
        &self,
        (queue, _): (&QueueName, Priority),
        consumer: &Consumer,
        idle: Duration,
        after: Option<EntryId>,
    ) -> StoreResult<Vec<(EntryId, Millis)>> {
        let min_ms = duration_millis(idle).cast_signed();
        let read = |redis: &mut super::ScriptedRedis| {
            let now = redis.now();
            let entries =
                redis.queues[queue].pending.iter().filter(|(entry, _)| after.is_none_or(|after| **entry > after));
            let own = entries.filter(|(_, pending)| pending.worker == consumer.name());
            let idle = own.map(|(entry, pending)| (*entry, (now - pending.delivered_at).max(0)));
            idle.filter(|(_, idle)| *idle >= min_ms).collect()
        };
        self.world.call_of(self.number, read).await
    }

    fn has_room_for_records(&self) -> bool {
        true
    }

    async fn take_from_worker(
        &self,
        (queue, _): (&QueueName, Priority),
        consumer: &Consumer,
        entry: EntryId,
        _: Millis,
    ) -> StoreResult<()> {
        self.act_on_queue(|redis| redis.take_from_worker(queue, consumer.name(), entry, consumer.lease())).await
    }

    async fn check_data(&self, (): &mut (), _: &[QueueName], _: &[QueueName]) -> StoreResult<()> {
        self.world.call_of(self.number, |_| ()).await
    }
}
