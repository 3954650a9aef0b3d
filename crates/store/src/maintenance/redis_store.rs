//! What the leader asks of Redis, asked of Redis.

use std::{convert::Infallible, time::Duration};

use redis::{FromRedisValue, Value};

use super::{
    clock_steps,
    data_checks::DataChecks,
    due_times::QueueTask,
    history_trimmer,
    leadership::{self, Leadership},
    lease_reaper,
    maintenance_store::{FirstDueTimes, HoldingWorker, MaintenanceStore},
    metrics_collector::{self, LeaderFindings},
    scheduler, timers, worker_reaper,
};
use crate::{
    StoreError, StoreResult,
    channels::Channels,
    connection::{
        clock::first_due_at,
        notifier::{EventReceiver, SubscriberEvent, Topics},
        redis_clock::ClockSteps,
    },
    jobs::{Consumer, Jobs, malformed_reply},
    keys::{self, QueueKeys},
    statistics,
    workers::{WorkerKey, Workers},
};
use common::{
    id::EntryId,
    name::{Priority, QueueName},
    time::Millis,
};

/// Maximum number of unread notifications.
const NOTIFICATION_BUFFER: usize = 1024;

impl MaintenanceStore for Jobs {
    type Events = (Topics, EventReceiver);
    type LeasedAttempt = lease_reaper::ReadAttempt;
    type DataChecks = DataChecks;

    fn lease(&self) -> Duration {
        self.store.settings.jobs.lease
    }

    fn clock_steps(&self) -> ClockSteps {
        self.store.redis.clock_steps()
    }

    fn estimated_now(&self) -> Millis {
        self.store.redis.estimated_now()
    }

    async fn now(&self) -> StoreResult<Millis> {
        self.store.redis.now().await
    }

    async fn uptime(&self) -> StoreResult<Option<Duration>> {
        let uptime = self.store.redis.uptime_ms().await?;
        Ok(uptime.map(|ms| Duration::from_millis(ms.unsigned_abs())))
    }

    async fn acquire_leadership(
        &self,
        leader_id: &str,
        lease: Duration,
        expected_now: Option<Millis>,
    ) -> StoreResult<Leadership> {
        leadership::acquire_leadership(self, leader_id, lease, expected_now).await
    }

    async fn resign_leadership(&self, leader_id: &str) {
        leadership::resign_leadership(self, leader_id).await;
    }

    async fn tell_leader(&self, leader_id: &str) {
        leadership::tell_details(&self.store.redis, leader_id).await;
    }

    async fn run_beside(&self, trim_interval: Duration) -> Infallible {
        let channels = Channels::new(&self.store.redis, &self.store.settings.channels);
        let findings = LeaderFindings::default();
        tokio::select! {
            never = history_trimmer::run(&channels, &findings, trim_interval) => never,
            never = statistics::fold_flushes(self, &findings.busy) => never,
            never = metrics_collector::run(self, &findings, self.store.settings.metrics.interval) => never,
        }
    }

    fn subscribe(&self) -> Self::Events {
        let (topics, events) = self.store.notifier.subscribe(NOTIFICATION_BUFFER);
        topics.add(self.store.redis.topics().notifications());
        (topics, events)
    }

    async fn next_event(&self, (_, events): &mut Self::Events) -> Option<SubscriberEvent> {
        events.recv().await
    }

    async fn list_queues(&self) -> StoreResult<Vec<QueueName>> {
        self.list_partitions().await
    }

    async fn first_due_times(&self, queues: &[QueueName]) -> StoreResult<Vec<FirstDueTimes>> {
        let mut pipeline = redis::pipe();
        // A key of another type in one queue must not stop the others
        pipeline.ignore_errors();
        for keys in queues.iter().map(QueueKeys::new) {
            for task in QueueTask::ALL {
                pipeline.cmd("ZRANGE").arg(task.key(&keys)).arg(0).arg(0).arg("WITHSCORES");
            }
        }
        let heads: Vec<redis::RedisResult<Vec<(Value, f64)>>> =
            pipeline.query_async(&mut self.store.redis.clone()).await?;
        let mut found = Vec::with_capacity(queues.len());
        for heads in heads.chunks(QueueTask::ALL.len()) {
            let mut times = FirstDueTimes::default();
            for (task, head) in QueueTask::ALL.into_iter().zip(heads) {
                times[task as usize] = match head.as_deref().map_err(|error| StoreError::from(error.clone())) {
                    Err(error @ StoreError::Unavailable(_)) => return Err(error),
                    // The sweep reports it
                    Err(_) => None,
                    Ok(head) => first_due_at(head),
                };
            }
            found.push(times);
        }
        Ok(found)
    }

    async fn is_in_maintenance_mode(&self) -> StoreResult<bool> {
        Ok(self.maintenance_mode().await?.is_some())
    }

    async fn promote(&self, queue: &QueueName) -> StoreResult<()> {
        scheduler::promote(self, queue, self.estimated_now()).await
    }

    async fn run_timers(&self, queue: &QueueName) -> StoreResult<()> {
        timers::run(self, queue).await
    }

    async fn first_cron_run(&self) -> StoreResult<Option<Millis>> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(keys::CRON_NEXT).arg(0).arg(0).arg("WITHSCORES");
        let head: Vec<(Value, f64)> = command.query_async(&mut self.store.redis.clone()).await?;
        Ok(first_due_at(&head))
    }

    async fn fire_cron(&self) -> StoreResult<usize> {
        self.cron().fire_due().await
    }

    async fn expired_leases(&self, queue: &QueueName, now: Millis) -> StoreResult<Vec<String>> {
        self.store.redis.due_members(&QueueKeys::new(queue).leases(), now, lease_reaper::BATCH).await
    }

    async fn leased_attempt(
        &self,
        queue: &QueueName,
        lease: &str,
        now: Millis,
    ) -> StoreResult<Option<(Millis, Self::LeasedAttempt)>> {
        lease_reaper::read_attempt(self, queue, lease, now).await
    }

    async fn settle_expired(
        &self,
        queue: &QueueName,
        lease: String,
        attempt: Self::LeasedAttempt,
        now: Millis,
    ) -> StoreResult<()> {
        lease_reaper::settle(self, queue, lease, attempt, now).await
    }

    async fn move_leases(&self, by_ms: Millis) -> StoreResult<()> {
        clock_steps::move_leases(self, by_ms).await
    }

    async fn heal_clock_set_back(&self) -> StoreResult<()> {
        clock_steps::heal_clock_set_back(self).await
    }

    async fn listed_workers(&self) -> StoreResult<Vec<(String, f64)>> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(keys::WORKERS).arg(0).arg(-1).arg("WITHSCORES");
        match command.query_async(&mut self.store.redis.clone()).await.map_err(StoreError::from) {
            Err(error @ StoreError::Unavailable(_)) => Err(error),
            // Every queue has its turn without the list
            Err(error) => {
                tracing::warn!(%error, "the list of workers cannot be read");
                Ok(Vec::new())
            }
            listed => listed,
        }
    }

    async fn worker_queues(&self, workers: &[&str]) -> StoreResult<Vec<(Consumer, Vec<QueueName>)>> {
        let keys: Vec<WorkerKey> = workers.iter().filter_map(|id| id.parse().ok()).collect();
        let workers = Workers::new(&self.store.redis).workers(&keys).await?;
        let queues = workers.into_iter().filter_map(|worker| {
            let queues = worker.record.queues.iter().filter_map(|queue| queue.parse().ok()).collect();
            Some((Consumer::parse(worker.key.as_str())?, queues))
        });
        Ok(queues.collect())
    }

    async fn priorities(&self, queue: &QueueName) -> StoreResult<Vec<Priority>> {
        Self::priorities(self, queue).await
    }

    async fn job_holders(&self, queue: &QueueName, priority: Priority) -> StoreResult<Vec<HoldingWorker>> {
        let mut command = redis::cmd("XINFO");
        command.arg("CONSUMERS").arg(QueueKeys::new(queue).stream(priority)).arg("workers");
        let reply: Value = match command.query_async(&mut self.store.redis.clone()).await.map_err(StoreError::from) {
            Ok(reply) => reply,
            // No such stream or group: nobody can hold anything
            Err(StoreError::Refused(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let consumers =
            Vec::<std::collections::HashMap<String, Value>>::from_redis_value(reply).map_err(malformed_reply)?;
        let holding = consumers.into_iter().filter_map(|mut fields| {
            let pending = i64::from_redis_value(fields.remove("pending")?).ok()?;
            let idle = Duration::from_millis(u64::from_redis_value(fields.remove("idle")?).ok()?);
            let name = String::from_redis_value(fields.remove("name")?).ok()?;
            Consumer::parse(&name).filter(|_| pending > 0).map(|consumer| HoldingWorker { consumer, idle })
        });
        Ok(holding.collect())
    }

    async fn idle_entries(
        &self,
        (queue, priority): (&QueueName, Priority),
        consumer: &Consumer,
        idle: Duration,
        after: Option<EntryId>,
    ) -> StoreResult<Vec<(EntryId, Millis)>> {
        let start = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        let mut command = redis::cmd("XPENDING");
        command
            .arg(QueueKeys::new(queue).stream(priority))
            .arg("workers")
            .arg("IDLE")
            .arg(idle.as_millis().to_string());
        command.arg(start).arg("+").arg(worker_reaper::BATCH).arg(consumer.name());
        let entries: Vec<(String, String, i64, i64)> = command.query_async(&mut self.store.redis.clone()).await?;
        Ok(entries.into_iter().filter_map(|(entry, _, idle, _)| Some((entry.parse().ok()?, idle))).collect())
    }

    fn has_room_for_records(&self) -> bool {
        Self::has_room_for_records(self)
    }

    async fn take_from_worker(
        &self,
        stream: (&QueueName, Priority),
        consumer: &Consumer,
        entry: EntryId,
        last_seen_at: Millis,
    ) -> StoreResult<()> {
        worker_reaper::take_from_worker(self, stream, consumer, entry, last_seen_at).await
    }

    async fn check_data(
        &self,
        checks: &mut DataChecks,
        queues: &[QueueName],
        worker_queues: &[QueueName],
    ) -> StoreResult<()> {
        checks.check_slice(self, queues, worker_queues).await
    }
}
