//! Claims jobs. A permit comes before a claim, so every claimed job can run.
//!
//! While there is work, the loop claims without blocking, as many jobs as it has permits. When there is none, one read
//! blocks on all streams at once: there is no polling, and a new job arrives after one round trip. If several jobs
//! arrive just before that read blocks, it may return one from each stream; jobs without a permit wait for one here,
//! and their leases are renewed meanwhile.

use std::{collections::HashMap, sync::Arc, time::Duration};

use common::name::{Priority, QueueName};
use store::{
    StoreError, StoreResult,
    connection::dedicated::DedicatedConnection,
    jobs::{ClaimAvailability, Claimant, ClaimedJob},
    log_interruption, next_reconnect_delay, reconnect_delays,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    attempt::AttemptRunner,
    queue_selector::QueueSelector,
    shared::{RunMode, WorkerShared},
    slots::{AnyQueuePermit, Permit},
    wakeup::Wakeup,
};

/// Longest blocking read. It ends regularly so that a dead connection is noticed, and within half a lease: a process
/// that froze during the read must not receive the same job that was reclaimed from it.
const MAX_BLOCK: Duration = Duration::from_secs(5);
/// Maximum number of jobs in one claim.
const MAX_BATCH_JOBS: usize = 128;
/// Target size of a claim's answer, in bytes.
const TARGET_BATCH_BYTES: usize = 4 << 20;

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
        shared,
        runner,
        wakeup,
        stop,
        priorities: HashMap::new(),
        limit_states: HashMap::new(),
        blocking_connection: None,
        limited_watch: None,
        batch_size: MAX_BATCH_JOBS,
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
        wakeup.wake();
    }
}

struct Claimer {
    shared: Arc<WorkerShared>,
    runner: AttemptRunner,
    wakeup: Arc<Wakeup>,
    stop: CancellationToken,
    queue_selector: QueueSelector,
    priorities: HashMap<QueueName, Vec<Priority>>,
    /// Each queue's availability after the last claim.
    limit_states: HashMap<QueueName, ClaimAvailability>,
    blocking_connection: Option<DedicatedConnection>,
    /// The watched queues with limits, and the task that watches them.
    limited_watch: Option<(Vec<QueueName>, AbortOnDropHandle<()>)>,
    /// Current maximum number of jobs in one claim.
    batch_size: usize,
}

/// The next claim's maximum number of jobs: fewer when jobs are large, so that an answer stays near
/// [`TARGET_BATCH_BYTES`].
fn next_batch_size(batch: usize, claimed: &[ClaimedJob]) -> usize {
    let bytes: usize = claimed.iter().map(|claimed| claimed.job.envelope.as_str().len()).sum();
    match claimed.len() {
        0 => batch,
        jobs => (TARGET_BATCH_BYTES / (bytes / jobs).max(1)).clamp(1, MAX_BATCH_JOBS),
    }
}

impl Claimer {
    async fn back_off(&mut self, error: &StoreError, delay: Duration) {
        self.blocking_connection = None;
        self.limited_watch = None;
        self.priorities.clear();
        log_interruption("claiming", error);
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(delay) => {}
        }
    }

    /// Opens the streams of every queue and recovers jobs whose claim answer was lost. A queue that cannot be opened,
    /// because Redis is full or its key has another type, must not stop the other queues.
    async fn recover(&mut self) -> StoreResult<()> {
        let shared = self.shared.clone();
        for queue in &shared.settings.queue_worker.queues {
            let priorities = match shared.jobs.open_queue(queue).await {
                Ok(priorities) => priorities,
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                Err(error) => {
                    tracing::warn!(event = "queue.unavailable", %queue, %error, "queue cannot be served for now");
                    continue;
                }
            };
            for priority in &priorities {
                let is_new = |entry| !shared.in_flight.contains(queue, *priority, entry);
                for claimed in shared.jobs.recover_claims(queue, *priority, &shared.consumer, is_new).await? {
                    let id = claimed.job.id;
                    if self.runner.start(claimed, None) {
                        tracing::info!(event = "claim.recovered", %queue, %id, "recovered a claim whose answer was lost");
                    }
                }
            }
            self.priorities.insert(queue.clone(), priorities);
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
            if self.wakeup.take() {
                self.priorities.clear();
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
            (RunMode::Drain, false) => Ok(was_idle && !self.has_rate_limited_jobs().await?),
        }
    }

    /// Whether jobs wait for a rate limit: they cannot be claimed now, but soon.
    async fn has_rate_limited_jobs(&self) -> StoreResult<bool> {
        for (queue, _) in self.limit_states.iter().filter(|(_, more)| matches!(more, ClaimAvailability::RetryAfter(_)))
        {
            if self.shared.jobs.queue_stats(queue).await?.available > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Acquires more permits without waiting, up to the size of a batch.
    fn acquire_more(&self, first: AnyQueuePermit) -> Vec<AnyQueuePermit> {
        let max = if self.shared.run_mode == RunMode::Once { 1 } else { self.batch_size };
        let mut permits = vec![first];
        while permits.len() < max
            && let Some(permit) = self.shared.slots.try_acquire()
        {
            permits.push(permit);
        }
        permits
    }

    /// Claims from each queue without waiting and starts the jobs; false if no queue had any.
    async fn claim(&mut self, permits: &mut Vec<AnyQueuePermit>) -> StoreResult<bool> {
        let shared = self.shared.clone();
        let by = Claimant::Worker { consumer: &shared.consumer, worker: &shared.settings.queue_worker.name };
        let mut found = false;
        for queue in self.queue_selector.next_order() {
            if permits.is_empty() {
                break;
            }
            let mut bound = shared.slots.bind_to_queue(&queue, permits, self.batch_size);
            if bound.is_empty() {
                continue;
            }
            let priorities = self.priorities.entry(queue.clone()).or_default();
            let batch = shared.jobs.claim(&queue, priorities, bound.len(), by).await?;
            self.limit_states.insert(queue, batch.availability);
            self.batch_size = next_batch_size(self.batch_size, &batch.jobs);
            for claimed in batch.jobs {
                found = true;
                self.runner.start(claimed, bound.pop());
            }
            permits.extend(bound.into_iter().map(Permit::into_any_queue));
        }
        Ok(found)
    }

    /// Wakes the loop when one of these queues has a job. A blocking read would bypass their limits.
    fn watch_limited_queues(&mut self, queues: Vec<QueueName>) {
        let is_watching =
            self.limited_watch.as_ref().is_some_and(|(watched, task)| *watched == queues && !task.is_finished());
        if is_watching {
            return;
        }
        // The settings can name fewer queues than one waiter can watch
        let waiter = if queues.is_empty() { None } else { self.shared.long_poll.register(&queues).ok() };
        self.limited_watch = waiter.map(|waiter| {
            let wakeup = self.wakeup.clone();
            let watch = async move {
                waiter.wait_for_wakeup().await;
                wakeup.wake();
            };
            (queues, AbortOnDropHandle::new(tokio::spawn(watch)))
        });
    }

    /// Waits for a job on any stream, for a limit to allow more, or for a wakeup.
    async fn wait_for_jobs(&mut self, permit: Option<AnyQueuePermit>) -> StoreResult<()> {
        let mut max_block = MAX_BLOCK.min(self.shared.consumer.lease() / 2);
        let (mut free, mut limited) = (Vec::new(), Vec::new());
        // A queue without a free slot is read again once a slot is free
        for (queue, priorities) in self.priorities.iter().filter(|(queue, _)| self.shared.slots.has_capacity(queue)) {
            let streams = priorities.iter().map(|priority| (queue.clone(), *priority));
            match self.limit_states.get(queue).copied().unwrap_or_default() {
                ClaimAvailability::Unlimited => free.extend(streams),
                ClaimAvailability::Limited => limited.push(queue.clone()),
                ClaimAvailability::RetryAfter(pause) => max_block = max_block.min(pause),
                ClaimAvailability::Paused => {}
            }
        }
        if self.priorities.values().all(Vec::is_empty) {
            return Err(StoreError::Damaged("the streams of all queues are gone".to_owned()));
        }
        limited.sort_unstable();
        self.watch_limited_queues(limited);
        if free.is_empty() {
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
        let read = jobs.claim_blocking(&mut connection, &free, &self.shared.consumer, block);
        let (arrived, _) = jobs.redis().interruptible(client_id, read, self.wakeup.woken()).await;
        let (shared, mut permits) = (self.shared.clone(), Vec::from_iter(permit));
        // Drop the connection after an error: its next answer could belong to this read
        for claimed in arrived? {
            let permit = shared.slots.bind_to_queue(&claimed.job.queue, &mut permits, 1).pop();
            self.runner.start(claimed, permit);
        }
        self.blocking_connection = Some(connection);
        Ok(())
    }
}
