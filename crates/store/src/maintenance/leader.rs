//! What the leader does when.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    OutageGrace, clock_steps,
    clock_steps::HealedSteps,
    cron::CronTimer,
    due_times::{DueTimes, QueueTask},
    failures::{MAINTENANCE_MODE_PAUSE, pause_on_error},
    leadership::UnhealedSteps,
    lease_reaper,
    maintenance_store::MaintenanceStore,
    sweep::PeriodicSweep,
};
use crate::{
    StoreError, StoreResult,
    connection::{hint_pace::PacedHints, notification::Notification, notifier::SubscriberEvent},
    jobs::duration_millis,
    log_interruption,
};
use common::{name::QueueName, settings::MaintenanceSettings, time::Millis};

/// Runs maintenance whenever the leader lease is free, until `stop` is cancelled.
pub(super) async fn lead(store: &impl MaintenanceStore, settings: &MaintenanceSettings, stop: &CancellationToken) {
    let leader_id = uuid::Uuid::new_v4().simple().to_string();
    let grace = store.lease() / 2;
    // One for the timers, one for the sweep that runs beside them
    let (mut outage_grace, mut sweep_grace) = (OutageGrace::new(grace), OutageGrace::new(grace));
    let mut unhealed = UnhealedSteps::default();
    metrics::gauge!("galley_leader").set(0);
    while !stop.is_cancelled() {
        let asked = async {
            // First: a step is seen before the answer says up to when a leader has healed
            store.now().await?;
            let steps = store.clock_steps();
            store.acquire_leadership(&leader_id, settings.leader_lease, None).await.map(|answer| (answer, steps))
        };
        let result = match outage_grace.observe(asked).await {
            Ok((leadership, steps)) if leadership.is_held => {
                let sweep = PeriodicSweep::new(store, &mut sweep_grace);
                let mut healed = HealedSteps::new(unhealed.look(leadership.healed_until, steps));
                let leader = Leader::new(store, settings, &leader_id, &mut outage_grace, &mut healed);
                metrics::gauge!("galley_leader").set(1);
                store.tell_leader(&leader_id).await;
                let worked = Box::pin(leader.work(sweep, leadership.since_last_leader, stop)).await;
                metrics::gauge!("galley_leader").set(0);
                unhealed = UnhealedSteps::after_leading(healed.steps);
                worked
            }
            Ok((leadership, steps)) => {
                unhealed.look(leadership.healed_until, steps);
                Ok(())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            log_interruption("maintenance", &error);
            let is_away = matches!(error, StoreError::Unavailable(_));
            (outage_grace.is_redis_away, sweep_grace.is_redis_away) =
                (outage_grace.is_redis_away | is_away, sweep_grace.is_redis_away | is_away);
        }
        tokio::select! {
            () = stop.cancelled() => {}
            // Often enough to take over soon; each process that waits asks
            () = tokio::time::sleep(settings.leader_lease / 2) => {}
        }
    }
    store.resign_leadership(&leader_id).await;
}

/// How often notifications may cause a look at queues, and at how many of them.
const HINT_INTERVAL: Duration = Duration::from_millis(20);
const HINT_BURST: u32 = 100;
const MAX_HINTED_QUEUES: usize = 256;
/// How often they may cause a look at the cron entries, which is one at all of them.
const CRON_HINT_INTERVAL: Duration = Duration::from_millis(500);
const CRON_HINT_BURST: u32 = 10;

/// What may be due earlier, as far as it was not looked at.
struct LeaderHints {
    /// Each with when something is due there, if that was said.
    queues: PacedHints<(QueueName, Option<Millis>)>,
    cron: PacedHints<()>,
}

/// One period as leader.
struct Leader<'a, S> {
    store: &'a S,
    settings: &'a MaintenanceSettings,
    holder: &'a str,
    grace: &'a mut OutageGrace,
    due_times: DueTimes,
    cron: CronTimer,
    healed: &'a mut HealedSteps,
}

impl<'a, S: MaintenanceStore> Leader<'a, S> {
    fn new(
        store: &'a S,
        settings: &'a MaintenanceSettings,
        holder: &'a str,
        grace: &'a mut OutageGrace,
        healed: &'a mut HealedSteps,
    ) -> Self {
        let (due_times, cron) = (DueTimes::default(), CronTimer::default());
        Self { store, settings, holder, grace, due_times, cron, healed }
    }

    /// Works until the leader lease is lost (`Ok`), Redis is unavailable (`Err`), or `stop` is cancelled. The sweep,
    /// which can take long, runs beside the timers, so that no due time waits for it.
    async fn work(
        mut self,
        mut sweep: PeriodicSweep<'_, S>,
        since_last_leader: Millis,
        stop: &CancellationToken,
    ) -> StoreResult<()> {
        let store = self.store;
        let mut events = store.subscribe();
        let mut hints = LeaderHints {
            queues: PacedHints::new(HINT_BURST, HINT_INTERVAL),
            cron: PacedHints::new(CRON_HINT_BURST, CRON_HINT_INTERVAL),
        };
        let mut renewal = tokio::time::interval(self.settings.leader_lease / 3);
        let mut refresh = tokio::time::interval(self.settings.sweep_interval);
        renewal.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // A server that does not say may have started at any time before now
        let uptime = store.uptime().await?.unwrap_or_default();
        self.grace.redis_started = Instant::now().checked_sub(uptime);
        sweep.grace.redis_started = self.grace.redis_started;
        if since_last_leader > 2 * duration_millis(self.settings.leader_lease).cast_signed() {
            // Nobody led for long, or the clock was set forward meanwhile
            self.grace.start_over();
            sweep.grace.start_over();
        }
        // Steps that this process saw while nobody led
        if !self.heal_clock_steps().await? {
            return Ok(());
        }
        self.heal_clock_set_back(since_last_leader).await?;
        let sweeping = sweep.run(self.settings.sweep_interval);
        let beside = store.run_beside(self.settings.trim_interval);
        let timers = async {
            self.refresh_all().await?;
            loop {
                let pause = self.time_until_next();
                let goes_on = tokio::select! {
                    () = stop.cancelled() => false,
                    _ = renewal.tick() => self.renew_leadership().await?,
                    heard = store.next_event(&mut events) => self.on_event(heard, &mut hints).await.map(|()| true)?,
                    heard = hints.queues.ready(MAX_HINTED_QUEUES) => self.look_into(heard).await.map(|()| true)?,
                    _ = hints.cron.ready(1) => {
                        self.cron.is_stale = true;
                        self.refresh(&[]).await.map(|()| true)?
                    }
                    () = tokio::time::sleep(pause) => self.run_due().await.map(|()| true)?,
                    // Notifications may be missed
                    _ = refresh.tick() => {
                        let has_missed = hints.queues.has_overflowed();
                        if has_missed { self.refresh_all().await } else { self.refresh_some().await }.map(|()| true)?
                    }
                };
                if !goes_on || !self.heal_clock_steps().await? {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            ended = timers => ended,
            ended = sweeping => ended,
            never = beside => match never {},
        }
    }

    async fn renew_leadership(&mut self) -> StoreResult<bool> {
        let has_healed_all = self.store.clock_steps().count == self.healed.steps.count;
        let expected_now = has_healed_all.then(|| self.now());
        let asked = self.store.acquire_leadership(self.holder, self.settings.leader_lease, expected_now);
        Ok(self.grace.observe(asked).await?.is_held)
    }

    /// Heals what steps of Redis's clock left behind since the last call; false if the leader lease is lost.
    async fn heal_clock_steps(&mut self) -> StoreResult<bool> {
        let steps = self.store.clock_steps();
        if steps.count == self.healed.steps.count {
            return self.healed.heal_again(self.store).await.map(|()| true);
        }
        // A process that was stopped together with its clocks sees a step, too, but then it is not the leader any more
        if !self.renew_leadership().await? {
            return Ok(false);
        }
        let by_ms = steps.total_ms - self.healed.steps.total_ms;
        // After an error a step ahead is healed again and one back is not: a time limit may end late then, but none ends early
        if by_ms < 0 {
            self.healed.note(steps);
        }
        clock_steps::heal_leases(self.store, by_ms).await?;
        if by_ms < 0 {
            self.heal_clock_set_back(by_ms).await?;
        }
        self.healed.note(steps);
        self.refresh_all().await?;
        Ok(true)
    }

    /// Heals what a clock that was set back left behind, also when that happened before this process was the leader.
    async fn heal_clock_set_back(&mut self, since_last_leader: Millis) -> StoreResult<()> {
        if since_last_leader < 0 {
            self.store.heal_clock_set_back().await?;
        }
        Ok(())
    }

    fn now(&self) -> Millis {
        self.store.estimated_now()
    }

    fn time_until_next(&self) -> Duration {
        let (far, now) = (Duration::from_hours(1), self.now());
        let waits = self.due_times.wait(now).into_iter().chain(self.cron.wait(now));
        waits.min().unwrap_or(far).min(far)
    }

    async fn on_event(&mut self, heard: Option<SubscriberEvent>, hints: &mut LeaderHints) -> StoreResult<()> {
        match heard {
            Some(SubscriberEvent::Message { payload, .. }) => match Notification::decode(&payload) {
                Some(Notification::DueChanged(queue)) => hints.queues.add((queue, None)),
                Some(Notification::DueAt(queue, at)) => hints.queues.add((queue, Some(at))),
                Some(Notification::CronChanged) => hints.cron.add(()),
                _ => {}
            },
            // Notifications may have been missed
            Some(SubscriberEvent::Subscribed(_)) => return self.refresh_all().await,
            Some(SubscriberEvent::ConnectionLost) | None => {}
        }
        Ok(())
    }

    /// Looks at queues where something may be due earlier.
    async fn look_into(&mut self, hints: Vec<(QueueName, Option<Millis>)>) -> StoreResult<()> {
        let mut queues = Vec::new();
        for (queue, due) in hints {
            match due {
                Some(at) => self.due_times.note_due(&queue, at),
                None => queues.push(queue),
            }
        }
        if queues.is_empty() {
            return Ok(());
        }
        self.refresh(&queues).await?;
        for queue in &queues {
            self.due_times.note_activity(queue, Instant::now());
        }
        Ok(())
    }

    async fn refresh_all(&mut self) -> StoreResult<()> {
        let queues = self.store.list_queues().await?;
        self.due_times.keep(&queues);
        self.cron.is_stale = true;
        self.refresh(&queues).await
    }

    /// Reads queues where something happens, and a few others in turn: a notification may have been lost.
    async fn refresh_some(&mut self) -> StoreResult<()> {
        let queues = self.store.list_queues().await?;
        self.due_times.keep(&queues);
        self.cron.is_stale = true;
        let some = self.due_times.queues_to_read(&queues, (self.now(), Instant::now()));
        self.refresh(&some).await
    }

    /// Reads the next due times of these queues.
    async fn refresh(&mut self, queues: &[QueueName]) -> StoreResult<()> {
        let store = self.store;
        // Concurrently with the rest: every round trip between two due times delays jobs
        tokio::try_join!(self.due_times.read(store, queues), store.now())?;
        self.cron.refresh(store).await
    }

    /// Handles what is due now, a bounded number per queue and turn, so that no queue starves another.
    async fn run_due(&mut self) -> StoreResult<()> {
        let now = self.now();
        let queues = self.due_times.due_queues(now);
        let mut mode = None;
        // What notifications told of
        self.due_times.read(self.store, &self.due_times.queues_to_look_at(now)).await?;
        for queue in &queues {
            for task in QueueTask::ALL {
                if self.due_times.wait_for(queue, task, now).is_none_or(|wait| !wait.is_zero()) {
                    continue;
                }
                let pause = match task {
                    QueueTask::Due if self.is_in_maintenance_mode(&mut mode).await? => Ok(MAINTENANCE_MODE_PAUSE),
                    QueueTask::Due => self.store.promote(queue).await.map(|()| Duration::ZERO),
                    QueueTask::ExpiredLease => lease_reaper::reap_expired(self.store, queue, self.grace).await,
                    QueueTask::Timer => self.store.run_timers(queue).await.map(|()| Duration::ZERO),
                };
                let pause = pause_on_error(queue, pause)?;
                self.due_times.pause(queue, task, Instant::now() + pause);
            }
        }
        if self.cron.is_due(now) && self.is_in_maintenance_mode(&mut mode).await? {
            self.cron.pause(MAINTENANCE_MODE_PAUSE);
        }
        self.cron.fire_if_due(self.store, now).await?;
        self.refresh(&queues).await
    }

    /// Whether jobs and cron runs that are due must wait; read once for all that is due now.
    async fn is_in_maintenance_mode(&self, known: &mut Option<bool>) -> StoreResult<bool> {
        if let Some(known) = known {
            return Ok(*known);
        }
        Ok(*known.insert(self.store.is_in_maintenance_mode().await?))
    }
}
