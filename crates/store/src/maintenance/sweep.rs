//! Periodic checks, beside the timers: what no due time tells of.
//!
//! A sweep looks at the queues of silent workers, and at a few others in turn: a queue with nothing to do costs next to
//! nothing, however many there are. The first sweep of a leader looks at all.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    OutageGrace, consistency_checker::CheckRound, index_checker::IndexChecker, pause_on_error,
    silence_watch::SilenceWatch, silent_workers::SilentWorkers, worker_reaper,
};
use crate::{StoreError, StoreResult, jobs::Jobs, workflows::Workflows};
use common::{name::QueueName, rotation::Rotation};

/// Number of a queue's items whose consistency one sweep checks.
const CHECKED_PER_SLICE: usize = 200;
/// How many queues have their turn in one sweep.
const QUEUES_PER_SWEEP: usize = 2;
/// How long a queue is looked at with every sweep after the lease of a silent worker.
const WATCH_AFTER_LEASE: Duration = Duration::from_secs(10);

/// The state of the sweeps.
pub(super) struct PeriodicSweep<'a> {
    jobs: &'a Jobs,
    pub(super) grace: &'a mut OutageGrace,
    check_round: CheckRound,
    index_checker: IndexChecker,
    silent_workers: SilentWorkers,
    silence_watch: SilenceWatch,
    rotation: Rotation,
    prune_rotation: Rotation,
    /// Queues to look at with every sweep, and until when.
    watched: HashMap<QueueName, Instant>,
    is_first: bool,
}

impl<'a> PeriodicSweep<'a> {
    pub(super) fn new(jobs: &'a Jobs, grace: &'a mut OutageGrace) -> Self {
        Self {
            jobs,
            grace,
            check_round: CheckRound::default(),
            index_checker: IndexChecker::default(),
            silent_workers: SilentWorkers::default(),
            silence_watch: SilenceWatch::default(),
            rotation: Rotation::default(),
            prune_rotation: Rotation::default(),
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
        let queues = self.jobs.list_queues().await?;
        for queue in self.queues_to_reap(&queues).await? {
            let holders = worker_reaper::reap_queue(self.jobs, &queue, self.grace, &mut self.silence_watch).await;
            let watch = holders.as_ref().ok().and_then(|holders| self.time_to_watch(holders));
            pause_on_error(&queue, holders.map(|_| Duration::ZERO))?;
            if let Some(time) = watch {
                self.watch(queue, time);
            }
        }
        for queue in self.prune_rotation.next(&queues, 1) {
            let pruned = worker_reaper::prune_queue(self.jobs, &queue).await;
            pause_on_error(&queue, pruned.map(|()| Duration::ZERO))?;
        }
        let restored = self.index_checker.check_slice(self.jobs, &queues, self.silent_workers.queues()).await;
        match restored {
            Err(error @ StoreError::Unavailable(_)) => return Err(error),
            Err(error) => tracing::error!(%error, "the check of lists failed"),
            Ok(()) => {}
        }
        match self.check_round.check_slice(self.jobs, &queues, CHECKED_PER_SLICE).await {
            Err(error @ StoreError::Unavailable(_)) => return Err(error),
            Err(error) => tracing::error!(%error, "consistency check failed"),
            Ok(()) => {}
        }
        let mut looked_at = 0;
        let workflows = Workflows::new(self.jobs);
        for id in workflows.workflows_to_check().await? {
            if looked_at >= super::workflows::MAX_JOBS_PER_TICK {
                break;
            }
            looked_at += super::workflows::check_or_reschedule(&workflows, id).await?;
        }
        Ok(())
    }

    async fn queues_to_reap(&mut self, queues: &[QueueName]) -> StoreResult<Vec<QueueName>> {
        for (queue, lease) in self.silent_workers.find(self.jobs).await? {
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
    fn time_to_watch(&self, holders: &[worker_reaper::HoldingWorker]) -> Option<Duration> {
        let time = |holder: &worker_reaper::HoldingWorker| {
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
