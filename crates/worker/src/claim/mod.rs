//! Claims jobs. A permit comes before a claim, so every claimed job can run; but while jobs are short, some are claimed
//! ahead (`starting.rs`).
//!
//! While there is work, the loop claims without blocking, as many jobs as it has permits. When there is none, one read
//! blocks on all streams at once: there is no polling, and a new job arrives after one round trip. If several jobs
//! arrive just before that read blocks, it may return one from each stream; jobs without a permit wait for one here,
//! and their leases are renewed meanwhile.
//!
//! Each queue fails and heals alone: one whose data cannot be used is left out until it can.

mod opening;
mod starting;
mod waiting;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use common::name::QueueName;
use store::{
    StoreError, StoreResult,
    connection::dedicated::DedicatedConnection,
    jobs::{Claimant, DirectClaim, record_claim},
    log_interruption, next_reconnect_delay, reconnect_delays,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::starting::StartingJobs;
use crate::{
    attempt::AttemptRunner,
    queue_selector::QueueSelector,
    queue_states::{QueueStates, WorkerQueueState},
    shared::{RunMode, WorkerShared},
    slots::{AnyQueuePermit, Permit},
    wakeup::Wakeup,
};

/// Longest blocking read. It ends regularly so that a dead connection is noticed, and within half a lease: a process
/// that froze during the read must not receive the same job that was reclaimed from it.
const MAX_BLOCK: Duration = Duration::from_secs(5);
/// Maximum number of jobs in one claim.
const MAX_BATCH_JOBS: usize = 128;

/// Claims jobs until `stop` is cancelled.
pub(crate) async fn run(
    shared: Arc<WorkerShared>,
    runner: AttemptRunner,
    wakeup: Arc<Wakeup>,
    stop: CancellationToken,
) {
    if shared.settings.queue_worker.queues.is_empty() {
        stop.cancelled().await;
        return;
    }
    let worker = &shared.settings.queue_worker;
    let mut claimer = Claimer {
        queue_selector: QueueSelector::new(&worker.queues, &worker.weights),
        queues: QueueStates::new(&worker.queues, Instant::now()),
        starting: StartingJobs::new(shared.clone(), runner.clone(), stop.clone()),
        shared,
        runner,
        wakeup,
        stop,
        blocking_connection: None,
        limited_watches: HashMap::new(),
        new_partitions: Vec::new(),
    };
    if claimer.shared.run_mode == RunMode::Drain {
        let (shared, wakeup, stop) = (claimer.shared.clone(), claimer.wakeup.clone(), claimer.stop.clone());
        tokio::spawn(async move { stop.run_until_cancelled(wake_when_empty(&shared, &wakeup)).await });
    }
    let mut delays = reconnect_delays();
    while !claimer.stop.is_cancelled() {
        // At the start and after any error: queues may be gone, and the answer to a claim may be lost
        if let Err(error) = claimer.recover().await {
            claimer.back_off(&error, next_reconnect_delay(&mut delays)).await;
            continue;
        }
        // A claim that failed was under way until here: its jobs may have been claimed
        claimer.shared.heartbeat_state.end_claim();
        delays = reconnect_delays();
        if let Err(error) = claimer.claim_until_stopped().await {
            claimer.back_off(&error, next_reconnect_delay(&mut delays)).await;
        }
    }
    if let Err(error) = claimer.finish_starting().await {
        tracing::debug!(%error, "claimed jobs could not be started, others will reclaim them");
    }
}

/// Wakes the loop when the last job ends. A blocked read cannot notice that there is nothing left to wait for.
async fn wake_when_empty(shared: &WorkerShared, wakeup: &Wakeup) {
    loop {
        shared.in_flight.emptied.notified().await;
        wakeup.interrupt();
    }
}

struct Claimer {
    shared: Arc<WorkerShared>,
    runner: AttemptRunner,
    wakeup: Arc<Wakeup>,
    stop: CancellationToken,
    queue_selector: QueueSelector,
    queues: QueueStates,
    blocking_connection: Option<DedicatedConnection>,
    /// The watched queues with limits, and the tasks that watch them.
    limited_watches: HashMap<QueueName, AbortOnDropHandle<()>>,
    /// The jobs of the last claim.
    starting: StartingJobs,
    /// Partitions that the last claim told of.
    new_partitions: Vec<QueueName>,
}

impl Claimer {
    async fn back_off(&mut self, error: &StoreError, delay: Duration) {
        self.blocking_connection = None;
        self.limited_watches.clear();
        log_interruption("claiming", error);
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(delay) => {}
        }
    }

    async fn claim_until_stopped(&mut self) -> StoreResult<()> {
        loop {
            let (mut permits, is_ahead) = (Vec::new(), self.may_claim_ahead() && !self.stop.is_cancelled());
            if !is_ahead {
                // Permits that are held here are not free for jobs that were claimed ahead
                self.finish_starting().await?;
                let Some(permit) = self.acquire_permit().await else { return Ok(()) };
                permits.push(permit);
                self.acquire_more(&mut permits);
            }
            self.queues.note_changed(&self.wakeup.take());
            self.queues.ask_due(Instant::now());
            if self.shared.run_mode != RunMode::Continuous {
                // It ends when no queue has any
                self.queues.ask_all();
            }
            if !self.shared.heartbeat_state.begin_claim() {
                drop(permits);
                self.shared.heartbeat_state.wait_until_resumed(&self.stop).await;
                continue;
            }
            // Checked before the claim: a job that runs now may create jobs until it ends
            let was_idle = self.shared.in_flight.is_empty();
            let found = self.claim(&mut permits, is_ahead).await?;
            self.shared.heartbeat_state.end_claim();
            if self.is_finished(found, was_idle).await? {
                self.stop.cancel();
            }
            if !found && !self.stop.is_cancelled() {
                self.finish_starting().await?;
                let last = match permits.pop() {
                    Some(permit) => Some(permit),
                    None => self.acquire_permit().await,
                };
                // Other claims can use these permits
                drop(permits);
                if self.shared.heartbeat_state.begin_claim() {
                    self.wait_for_jobs(last).await?;
                    self.shared.heartbeat_state.end_claim();
                }
            }
        }
    }

    /// Whether a worker in drain or once mode has finished.
    async fn is_finished(&self, found: bool, was_idle: bool) -> StoreResult<bool> {
        match (self.shared.run_mode, found) {
            (RunMode::Continuous, _) | (RunMode::Drain, true) => Ok(false),
            (RunMode::Once, true) => {
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    () = self.shared.in_flight.wait_until_empty() => {}
                }
                Ok(true)
            }
            (RunMode::Once, false) => Ok(true),
            (RunMode::Drain, false) => {
                Ok(was_idle && !self.queues.has_unasked() && !self.has_rate_limited_jobs().await?)
            }
        }
    }

    /// Whether jobs wait for a rate limit: they cannot be claimed now, but soon.
    async fn has_rate_limited_jobs(&self) -> StoreResult<bool> {
        for queue in self.queues.paused_by_limit() {
            if self.shared.jobs.queue_stats(queue).await?.available > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether to claim jobs before there are permits for them: attempts end sooner than a claim takes. Only while one
    /// queue has jobs, or those of the others would get no permits. Its partitions take turns.
    fn may_claim_ahead(&self) -> bool {
        let shared = &self.shared;
        if shared.run_mode != RunMode::Continuous || !shared.attempt_times.are_short() {
            return false;
        }
        let busy = self.queues.only_busy();
        let allows = |(queue, state): &(&QueueName, &WorkerQueueState)| {
            state.allows_direct_claims() && shared.jobs.direct_claim_size(self.max_ahead(queue), state.sizes).is_some()
        };
        !busy.is_empty() && busy.iter().all(allows)
    }

    /// As many jobs as the queue has slots: they can be renewed, and go back soon if no slot becomes free.
    fn max_ahead(&self, queue: &QueueName) -> usize {
        self.shared.slots.total(queue).min(MAX_BATCH_JOBS)
    }

    /// Waits for a permit; none when the worker stops.
    async fn acquire_permit(&self) -> Option<AnyQueuePermit> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            permit = self.shared.slots.acquire_any() => permit,
        }
    }

    /// Acquires more permits without waiting, up to the size of a batch.
    fn acquire_more(&self, permits: &mut Vec<AnyQueuePermit>) {
        let max = if self.shared.run_mode == RunMode::Once { 1 } else { MAX_BATCH_JOBS };
        while permits.len() < max
            && let Some(permit) = self.shared.slots.try_acquire()
        {
            permits.push(permit);
        }
    }

    /// Claims without waiting from each queue that may have jobs, and starts them; false if no queue had any.
    async fn claim(&mut self, permits: &mut Vec<AnyQueuePermit>, is_ahead: bool) -> StoreResult<bool> {
        let shared = self.shared.clone();
        let by = Claimant::Worker { consumer: &shared.consumer, worker: &shared.settings.queue_worker.name };
        let mut found = false;
        let mut order = VecDeque::from(self.queue_selector.next_order());
        while let Some(queue) = order.pop_front() {
            // As many are ahead as there are slots: the next partition comes in the next claim
            let is_enough = if is_ahead { found } else { permits.is_empty() };
            if is_enough {
                break;
            }
            if !self.queues.get_mut(&queue).may_have_jobs() {
                continue;
            }
            let mut bound = shared.slots.bind_to_queue(&queue, permits, MAX_BATCH_JOBS);
            if bound.is_empty() && !is_ahead {
                continue;
            }
            found |= self.claim_from(&queue, &mut bound, by, is_ahead).await?;
            permits.extend(bound.into_iter().map(Permit::into_any_queue));
            order.extend(self.new_partitions.drain(..));
        }
        Ok(found)
    }

    /// Claims from one queue and starts the jobs; false if it had none. An error of its own leaves it out for a while.
    async fn claim_from(
        &mut self,
        queue: &QueueName,
        permits: &mut Vec<Permit>,
        by: Claimant<'_>,
        is_ahead: bool,
    ) -> StoreResult<bool> {
        if self.queues.get_mut(queue).is_failing() {
            self.open(queue).await?;
            if self.queues.get_mut(queue).is_failing() {
                return Ok(false);
            }
        }
        let max = permits.len();
        let max_direct = if is_ahead { self.max_ahead(queue) } else { max };
        let (jobs, state) = (&self.shared.jobs, self.queues.get_mut(queue));
        let direct = jobs.direct_claim_size(max_direct, state.sizes).filter(|_| state.allows_direct_claims());
        if let Some(count) = direct {
            match jobs.claim_directly(queue, &mut state.priorities, count, &self.shared.consumer).await {
                Ok(claim) => return self.start_encoded(queue, claim, permits).await,
                // The next claim waits for a permit
                Err(error) if error.is_missing_stream() && max == 0 => {
                    state.priorities.clear();
                    return Ok(true);
                }
                // The script opens a stream that is gone
                Err(error) if error.is_missing_stream() => {}
                Err(error) => return self.leave_out(queue, error).map(|()| false),
            }
        }
        match jobs.claim(queue, &mut state.priorities, max, by).await {
            Ok(batch) if !state.priorities.is_empty() || !batch.jobs.is_empty() => {
                state.sizes.observe(&batch.jobs);
                state.asked(batch.availability, batch.is_cut || batch.jobs.len() == max, Instant::now());
                let (found, partitions) = (!batch.jobs.is_empty(), batch.partitions);
                let worker = &self.shared.settings.queue_worker.name;
                record_claim(queue, &batch.jobs, Some(worker), jobs.estimated_now());
                for claimed in batch.jobs {
                    self.runner.start(claimed, permits.pop());
                }
                self.open_partitions(queue, partitions).await?;
                Ok(found)
            }
            // Its index is gone: the streams may still be there
            Ok(_) => self.open(queue).await.map(|()| false),
            Err(error) => self.leave_out(queue, error).map(|()| false),
        }
    }

    /// Starts jobs that were claimed without a script, beside the next claim.
    async fn start_encoded(
        &mut self,
        queue: &QueueName,
        claim: DirectClaim,
        permits: &mut Vec<Permit>,
    ) -> StoreResult<bool> {
        let DirectClaim { jobs, availability, is_cut, partitions } = claim;
        let state = self.queues.get_mut(queue);
        if state.priorities.is_empty() && jobs.is_empty() {
            return self.open(queue).await.map(|()| false);
        }
        state.asked(availability, is_cut, Instant::now());
        if jobs.is_empty() {
            return self.open_partitions(queue, partitions).await.map(|()| false);
        }
        self.finish_starting().await?;
        let sizes = self.queues.get_mut(queue).sizes;
        let permits = permits.split_off(permits.len().saturating_sub(jobs.len()));
        self.starting.start(queue.clone(), jobs, sizes, permits);
        self.open_partitions(queue, partitions).await?;
        if self.shared.run_mode != RunMode::Continuous {
            // Whether the worker has finished depends on the jobs that run
            self.finish_starting().await?;
        }
        Ok(true)
    }

    /// Waits until the jobs of the last claim are started.
    async fn finish_starting(&mut self) -> StoreResult<()> {
        match self.starting.finish().await {
            None => Ok(()),
            Some((queue, Ok(sizes))) => {
                self.queues.get_mut(&queue).sizes = sizes;
                Ok(())
            }
            Some((queue, Err(error))) => self.leave_out(&queue, error),
        }
    }
}
