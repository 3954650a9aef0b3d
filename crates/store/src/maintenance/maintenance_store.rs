//! What the leader asks of Redis. Its loops and decisions use this trait, so that the simulation can give them a scripted store
//! on a clock of its own. `redis_store` is the real one.

use std::{convert::Infallible, time::Duration};

use super::leadership::Leadership;
use crate::{
    StoreResult,
    connection::{notifier::SubscriberEvent, redis_clock::ClockSteps},
    jobs::Consumer,
};
use common::{
    id::EntryId,
    name::{Priority, QueueName},
    time::Millis,
};

/// The first due time of each task of a queue.
pub(super) type FirstDueTimes = [Option<Millis>; 3];

/// A queue-worker that holds jobs of a queue.
pub(super) struct HoldingWorker {
    pub(super) consumer: Consumer,
    /// How long it has been silent.
    pub(super) idle: Duration,
}

/// Redis, as the leader needs it.
pub(super) trait MaintenanceStore {
    /// A subscription to notifications.
    type Events;
    /// An attempt whose lease is over.
    type LeasedAttempt;
    /// Where checks of all stored data are.
    type DataChecks: Default;

    /// The lease of workers.
    fn lease(&self) -> Duration;
    /// Steps of Redis's clock that this process has seen.
    fn clock_steps(&self) -> ClockSteps;
    /// The time by Redis's clock.
    async fn now(&self) -> StoreResult<Millis>;
    /// The same from the last reading and the time since.
    fn estimated_now(&self) -> Millis;
    /// How long Redis has run, if it says so.
    async fn uptime(&self) -> StoreResult<Option<Duration>>;

    /// Asks for the leader lease, or extends it. `expected_now` is for a leader without unhealed steps of the clock.
    async fn acquire_leadership(
        &self,
        leader_id: &str,
        lease: Duration,
        expected_now: Option<Millis>,
    ) -> StoreResult<Leadership>;
    async fn resign_leadership(&self, leader_id: &str);
    /// Tells others who leads. Nothing depends on it.
    async fn tell_leader(&self, leader_id: &str);
    /// What a leader does besides, until it is dropped: histories, statistics, metrics.
    async fn run_beside(&self, trim_interval: Duration) -> Infallible;

    fn subscribe(&self) -> Self::Events;
    async fn next_event(&self, events: &mut Self::Events) -> Option<SubscriberEvent>;

    async fn list_queues(&self) -> StoreResult<Vec<QueueName>>;
    async fn first_due_times(&self, queues: &[QueueName]) -> StoreResult<Vec<FirstDueTimes>>;
    async fn is_in_maintenance_mode(&self) -> StoreResult<bool>;
    /// Makes due jobs available, a batch at most.
    async fn promote(&self, queue: &QueueName) -> StoreResult<()>;
    /// Handles due timers, a batch at most.
    async fn run_timers(&self, queue: &QueueName) -> StoreResult<()>;
    async fn first_cron_run(&self) -> StoreResult<Option<Millis>>;
    /// Fires due cron entries, a bounded number; returns how many failed.
    async fn fire_cron(&self) -> StoreResult<usize>;

    /// Leases that are over, a batch at most.
    async fn expired_leases(&self, queue: &QueueName, now: Millis) -> StoreResult<Vec<String>>;
    /// The attempt of a lease that is over, with its start; none if there is nothing to settle.
    async fn leased_attempt(
        &self,
        queue: &QueueName,
        lease: &str,
        now: Millis,
    ) -> StoreResult<Option<(Millis, Self::LeasedAttempt)>>;
    async fn settle_expired(
        &self,
        queue: &QueueName,
        lease: String,
        attempt: Self::LeasedAttempt,
        now: Millis,
    ) -> StoreResult<()>;

    /// Moves leases along with Redis's clock, which was set by that.
    async fn move_leases(&self, by_ms: Millis) -> StoreResult<()>;
    /// Heals what a clock that was set back left behind.
    async fn heal_clock_set_back(&self) -> StoreResult<()>;

    /// Queue-workers on the list, with their last reports; none if the list cannot be read.
    async fn listed_workers(&self) -> StoreResult<Vec<(String, f64)>>;
    /// The queues of queue-workers.
    async fn worker_queues(&self, workers: &[&str]) -> StoreResult<Vec<(Consumer, Vec<QueueName>)>>;
    async fn priorities(&self, queue: &QueueName) -> StoreResult<Vec<Priority>>;
    /// Queue-workers that hold jobs of a stream.
    async fn job_holders(&self, queue: &QueueName, priority: Priority) -> StoreResult<Vec<HoldingWorker>>;
    /// Entries of a stream that a worker has had for `idle` without a word, behind `after`, each with how long that is in ms.
    async fn idle_entries(
        &self,
        stream: (&QueueName, Priority),
        consumer: &Consumer,
        idle: Duration,
        after: Option<EntryId>,
    ) -> StoreResult<Vec<(EntryId, Millis)>>;
    fn has_room_for_records(&self) -> bool;
    /// Takes an entry from a worker that was last seen then.
    async fn take_from_worker(
        &self,
        stream: (&QueueName, Priority),
        consumer: &Consumer,
        entry: EntryId,
        last_seen_at: Millis,
    ) -> StoreResult<()>;

    /// Checks a slice of all stored data.
    async fn check_data(
        &self,
        checks: &mut Self::DataChecks,
        queues: &[QueueName],
        worker_queues: &[QueueName],
    ) -> StoreResult<()>;
}
