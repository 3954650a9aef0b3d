//! Claims jobs. A permit comes before a claim, so every claimed job can run.
//!
//! While there is work, the loop claims without blocking, as many jobs as it has permits. When there is none, one read
//! blocks on all streams at once: there is no polling, and a new job arrives after one round trip. If several jobs
//! arrive just before that read blocks, it may return one from each stream; jobs without a permit wait for one here,
//! and their leases are renewed meanwhile.
//!
//! Each queue fails and heals alone: one whose data cannot be used is left out until it can.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use common::name::{Priority, QueueName};
use store::{
    StoreError, StoreResult,
    connection::dedicated::DedicatedConnection,
    jobs::{Claimant, ClaimedJob},
    log_interruption, next_reconnect_delay, reconnect_delays,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    attempt::AttemptRunner,
    queue_selector::QueueSelector,
    queue_states::{ChangedQueues, QueueStates},
    shared::{RunMode, WorkerShared},
    slots::{AnyQueuePermit, Permit},
    wakeup::Wakeup,
};

/// Longest blocking read. It ends regularly so that a dead connection is noticed, and within half a lease: a process
/// that froze during the read must not receive the same job that was reclaimed from it.
const MAX_BLOCK: Duration = Duration::from_secs(5);
/// Maximum number of jobs in one claim.
const MAX_BATCH_JOBS: usize = 128;
/// Maximum number of pages of jobs recovered from one stream: jobs whose outcome cannot be recorded come again.
const MAX_RECOVERY_PAGES: usize = 1000;

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
        shared,
        runner,
        wakeup,
        stop,
        blocking_connection: None,
        limited_watches: HashMap::new(),
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
        delays = reconnect_delays();
        if let Err(error) = claimer.claim_until_stopped().await {
            claimer.back_off(&error, next_reconnect_delay(&mut delays)).await;
        }
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

    /// Opens every queue and recovers jobs whose claim answer was lost.
    async fn recover(&mut self) -> StoreResult<()> {
        for queue in &self.shared.clone().settings.queue_worker.queues {
            self.open(queue).await?;
        }
        Ok(())
    }

    /// Opens the streams of a queue and recovers its jobs. A queue that cannot be opened, because Redis is full or a key
    /// has another type, must not stop the other queues: it is tried again later.
    async fn open(&mut self, queue: &QueueName) -> StoreResult<()> {
        match self.open_and_recover(queue).await {
            Ok(priorities) => {
                if self.queues.get_mut(queue).set_open(priorities) {
                    tracing::info!(event = "queue.available", %queue, "queue is served again");
                }
                Ok(())
            }
            Err(error) => self.leave_out(queue, error),
        }
    }

    async fn open_and_recover(&self, queue: &QueueName) -> StoreResult<Vec<Priority>> {
        let shared = &self.shared;
        let priorities = shared.jobs.open_queue(queue).await?;
        for priority in &priorities {
            let is_new = |entry| !shared.in_flight.contains(queue, *priority, entry);
            for _ in 0..MAX_RECOVERY_PAGES {
                let lost = shared.jobs.recover_claims(queue, *priority, &shared.consumer, is_new).await?;
                if lost.is_empty() {
                    break;
                }
                for claimed in lost {
                    let id = claimed.job.id;
                    self.runner.start(claimed, None);
                    tracing::info!(event = "claim.recovered", %queue, %id, "recovered a claim whose answer was lost");
                }
            }
        }
        Ok(priorities)
    }

    /// Leaves a queue out for a while, unless the error concerns all queues.
    fn leave_out(&mut self, queue: &QueueName, error: StoreError) -> StoreResult<()> {
        if matches!(error, StoreError::Unavailable(_)) {
            return Err(error);
        }
        if self.queues.get_mut(queue).set_failing(Instant::now()) {
            tracing::warn!(event = "queue.unavailable", %queue, %error, "queue cannot be served for now");
        }
        Ok(())
    }

    async fn claim_until_stopped(&mut self) -> StoreResult<()> {
        loop {
            let permit = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                permit = self.shared.slots.acquire_any() => permit,
            };
            let Some(permit) = permit else { return Ok(()) };
            let mut permits = self.acquire_more(permit);
            self.queues.note_changed(&self.wakeup.take());
            self.queues.ask_due(Instant::now());
            if self.shared.run_mode != RunMode::Continuous {
                // It ends when no queue has any
                self.queues.ask_all();
            }
            if self.shared.heartbeat_state.is_quiet() {
                drop(permits);
                self.shared.heartbeat_state.wait_until_resumed(&self.stop).await;
                continue;
            }
            // Checked before the claim: a job that runs now may create jobs until it ends
            let was_idle = self.shared.in_flight.is_empty();
            let found = self.claim(&mut permits).await?;
            if self.is_finished(found, was_idle).await? {
                self.stop.cancel();
            }
            if !found && !self.stop.is_cancelled() {
                let last = permits.pop();
                // Other claims can use these permits
                drop(permits);
                self.wait_for_jobs(last).await?;
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

    /// Acquires more permits without waiting, up to the size of a batch.
    fn acquire_more(&self, first: AnyQueuePermit) -> Vec<AnyQueuePermit> {
        let max = if self.shared.run_mode == RunMode::Once { 1 } else { MAX_BATCH_JOBS };
        let mut permits = vec![first];
        while permits.len() < max
            && let Some(permit) = self.shared.slots.try_acquire()
        {
            permits.push(permit);
        }
        permits
    }

    /// Claims without waiting from each queue that may have jobs, and starts them; false if no queue had any.
    async fn claim(&mut self, permits: &mut Vec<AnyQueuePermit>) -> StoreResult<bool> {
        let shared = self.shared.clone();
        let by = Claimant::Worker { consumer: &shared.consumer, worker: &shared.settings.queue_worker.name };
        let mut found = false;
        for queue in self.queue_selector.next_order() {
            if permits.is_empty() {
                break;
            }
            if !self.queues.get_mut(&queue).may_have_jobs() {
                continue;
            }
            let mut bound = shared.slots.bind_to_queue(&queue, permits, MAX_BATCH_JOBS);
            if bound.is_empty() {
                continue;
            }
            let jobs = self.claim_from(&queue, bound.len(), by).await?;
            for claimed in jobs {
                found = true;
                self.runner.start(claimed, bound.pop());
            }
            permits.extend(bound.into_iter().map(Permit::into_any_queue));
        }
        Ok(found)
    }

    /// Claims from one queue. An error of its own leaves it out for a while.
    async fn claim_from(&mut self, queue: &QueueName, max: usize, by: Claimant<'_>) -> StoreResult<Vec<ClaimedJob>> {
        if self.queues.get_mut(queue).is_failing() {
            self.open(queue).await?;
            if self.queues.get_mut(queue).is_failing() {
                return Ok(Vec::new());
            }
        }
        let (jobs, state) = (&self.shared.jobs, self.queues.get_mut(queue));
        let direct = jobs.direct_claim_size(max, state.sizes).filter(|_| state.allows_direct_claims());
        let claimed = match direct {
            Some(count) => {
                let read = jobs.claim_directly(queue, &mut state.priorities, count, &self.shared.consumer).await;
                match read {
                    // The script opens a stream that is gone
                    Err(error) if error.is_missing_stream() => jobs.claim(queue, &mut state.priorities, max, by).await,
                    read => read,
                }
            }
            None => jobs.claim(queue, &mut state.priorities, max, by).await,
        };
        match claimed {
            Ok(batch) if !state.priorities.is_empty() || !batch.jobs.is_empty() => {
                state.sizes.observe(&batch.jobs);
                state.asked(batch.availability, batch.is_cut || batch.jobs.len() == max, Instant::now());
                Ok(batch.jobs)
            }
            // Its index is gone: the streams may still be there
            Ok(_) => self.open(queue).await.map(|()| Vec::new()),
            Err(error) => self.leave_out(queue, error).map(|()| Vec::new()),
        }
    }

    /// Wakes the loop when one of these queues has a job. A blocking read would bypass their limits. Each has a waiter of
    /// its own, so that the loop asks only the queue that has a job. `queues` are in order.
    fn watch_limited_queues(&mut self, queues: &[QueueName]) {
        self.limited_watches.retain(|queue, task| !task.is_finished() && queues.binary_search(queue).is_ok());
        for queue in
            queues.iter().filter(|queue| !self.limited_watches.contains_key(queue)).cloned().collect::<Vec<_>>()
        {
            // The settings can name fewer queues than can be watched
            let Ok(waiter) = self.shared.long_poll.register(std::slice::from_ref(&queue)) else { continue };
            let (wakeup, watched) = (self.wakeup.clone(), queue.clone());
            let watch = async move {
                waiter.wait_for_wakeup().await;
                wakeup.wake_for(&watched);
            };
            self.limited_watches.insert(queue, AbortOnDropHandle::new(tokio::spawn(watch)));
        }
    }

    /// Waits for a job on any stream, for a limit to allow more, or for a wakeup.
    async fn wait_for_jobs(&mut self, permit: Option<AnyQueuePermit>) -> StoreResult<()> {
        let plan = self.queues.wait_plan(|queue| self.shared.slots.has_capacity(queue), Instant::now());
        let longest = MAX_BLOCK.min(self.shared.consumer.lease() / 2);
        let max_block = plan.max_wait.map_or(longest, |wait| wait.min(longest));
        self.watch_limited_queues(&plan.limited);
        if plan.streams.is_empty() {
            drop(permit);
            let _ = tokio::time::timeout(max_block, self.wakeup.woken()).await;
            return Ok(());
        }
        let mut connection = match self.blocking_connection.take() {
            Some(connection) => connection,
            None => self.shared.jobs.redis().open_dedicated(MAX_BLOCK).await?,
        };
        let (jobs, client_id) = (&self.shared.jobs, connection.client_id());
        let block = max_block.max(Duration::from_millis(1));
        let read = jobs.claim_blocking(&mut connection, &plan.streams, &self.shared.consumer, block);
        let (arrived, _) = jobs.redis().interruptible(client_id, read, self.wakeup.woken()).await;
        let (shared, mut permits) = (self.shared.clone(), Vec::from_iter(permit));
        // Drop the connection after an error: its next answer could belong to this read
        let arrived = match arrived {
            Err(error) if error.is_missing_stream() => {
                // Maintenance removes the stream of a priority that nobody uses: the next claim reads the list again
                tracing::debug!(%error, "a stream is gone");
                self.queues.note_changed(&ChangedQueues::All);
                return Ok(());
            }
            arrived => arrived?,
        };
        for claimed in arrived {
            self.queues.get_mut(&claimed.job.queue).job_arrived();
            let permit = shared.slots.bind_to_queue(&claimed.job.queue, &mut permits, 1).pop();
            self.runner.start(claimed, permit);
        }
        self.blocking_connection = Some(connection);
        Ok(())
    }
}
