//! Periodic checks, beside the timers: what no due time tells of.
//!
//! A sweep looks at the queues of silent workers, and at a few others in turn: a queue with nothing to do costs next to
//! nothing, however many there are. The first sweep of a leader looks at all.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    OutageGrace,
    maintenance_store::{HoldingWorker, MaintenanceStore},
    pause_on_error,
    silence_watch::SilenceWatch,
    silent_workers::SilentWorkers,
    worker_reaper,
};
use crate::StoreResult;
use common::{name::QueueName, rotation::Rotation};

/// How many queues have their turn in one sweep.
const QUEUES_PER_SWEEP: usize = 2;
/// How long a queue is looked at with every sweep after the lease of a silent worker.
const WATCH_AFTER_LEASE: Duration = Duration::from_secs(10);

/// The state of the sweeps.
pub(super) struct PeriodicSweep<'a, S: MaintenanceStore> {
    store: &'a S,
    pub(super) grace: &'a mut OutageGrace,
    data_checks: S::DataChecks,
    silent_workers: SilentWorkers,
    silence_watch: SilenceWatch,
    rotation: Rotation,
    /// Queues to look at with every sweep, and until when.
    watched: HashMap<QueueName, Instant>,
    is_first: bool,
}

impl<'a, S: MaintenanceStore> PeriodicSweep<'a, S> {
    pub(super) fn new(store: &'a S, grace: &'a mut OutageGrace) -> Self {
        Self {
            store,
            grace,
            data_checks: S::DataChecks::default(),
            silent_workers: SilentWorkers::default(),
            silence_watch: SilenceWatch::default(),
            rotation: Rotation::default(),
            watched: HashMap::new(),
            is_first: true,
        }
    }

    /// Sweeps regularly; ends when Redis is unavailable, or when it is dropped with the leader lease.
    pub(super) async fn run(&mut self, every: Duration) -> StoreResult<()> {
        let mut turn = tokio::time::interval(every);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turn.tick().await;
            self.sweep_once().await?;
        }
    }

    async fn sweep_once(&mut self) -> StoreResult<()> {
        let queues = self.store.list_queues().await?;
        for queue in self.queues_to_reap(&queues).await? {
            let holders = worker_reaper::reap_queue(self.store, &queue, self.grace, &mut self.silence_watch).await;
            let watch = holders.as_ref().ok().and_then(|holders| self.time_to_watch(holders));
            pause_on_error(&queue, holders.map(|_| Duration::ZERO))?;
            if let Some(time) = watch {
                self.watch(queue, time);
            }
        }
        let worker_queues: Vec<QueueName> = self.silent_workers.queues().cloned().collect();
        self.store.check_data(&mut self.data_checks, &queues, &worker_queues).await
    }

    async fn queues_to_reap(&mut self, queues: &[QueueName]) -> StoreResult<Vec<QueueName>> {
        for (queue, lease) in self.silent_workers.find(self.store).await? {
            let is_partition = |other: &&QueueName| other.partition_number() > 0 && *other.base() == queue;
            for partition in queues.iter().filter(is_partition) {
                self.watch(partition.clone(), lease + WATCH_AFTER_LEASE);
            }
            self.watch(queue, lease + WATCH_AFTER_LEASE);
        }
        let now = Instant::now();
        self.watched.retain(|_, until| *until > now);
        let turn = if std::mem::take(&mut self.is_first) { queues.len() } else { QUEUES_PER_SWEEP };
        let mut chosen = self.rotation.next(queues, turn);
        chosen.extend(self.watched.keys().filter(|queue| !chosen.contains(queue)).cloned().collect::<Vec<_>>());
        Ok(chosen)
    }

    /// How long to look at a queue with every sweep because of those that hold its jobs: a worker that has been silent for
    /// half of its lease may be dead, and so may one that is not on the list, whose silence nobody would notice.
    fn time_to_watch(&self, holders: &[HoldingWorker]) -> Option<Duration> {
        let time = |holder: &HoldingWorker| {
            let lease = holder.consumer.lease();
            if !self.silent_workers.is_known(&holder.consumer) {
                return Some(lease + WATCH_AFTER_LEASE);
            }
            (holder.idle > lease / 2).then_some(WATCH_AFTER_LEASE)
        };
        holders.iter().filter_map(time).max()
    }

    fn watch(&mut self, queue: QueueName, time: Duration) {
        let until = Instant::now() + time;
        self.watched.entry(queue).and_modify(|known| *known = until.max(*known)).or_insert(until);
    }
}
