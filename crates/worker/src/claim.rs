//! Taking jobs: the place first, then the claim, so that nothing is claimed that cannot run.
//!
//! While there is work, jobs are claimed without blocking, as many as there are places. When there is none, one read
//! blocks on all streams at once: no polling, and an arriving job is here after one round trip. That read may return a
//! job of each stream if several arrive in the moment before it blocks; those without a place wait for one here, with
//! their leases renewed.

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

/// Longest blocking read. It ends by itself so that a connection that died silently is found out, and within half the
/// lease: a process that froze while it was blocked must not be given the very job that is reclaimed from it.
const MAX_BLOCK: Duration = Duration::from_secs(5);
/// Most jobs claimed in one go.
const MAX_BATCH_JOBS: usize = 128;
/// About the largest answer to a claim.
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
        // At the start, and after any trouble: queues may be gone, and jobs may have been handed to us unheard
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

/// A read that is blocked does not notice by itself that there is nothing left to wait for.
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
    /// What the limits of a queue said last.
    limit_states: HashMap<QueueName, ClaimAvailability>,
    blocking_connection: Option<DedicatedConnection>,
    /// The queues with limits that are watched, and the task that does.
    limited_watch: Option<(Vec<QueueName>, AbortOnDropHandle<()>)>,
    /// Jobs claimed in one go at the moment.
    batch_size: usize,
}

/// How many jobs to claim next time: fewer when they are large, so that an answer stays within a few mebibytes.
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

    /// Sees to it that there are streams to wait on, and takes up what was handed to us unheard. A queue that cannot be
    /// opened, because Redis is full or something else is in its place, must not keep the others from being served.
    async fn recover(&mut self) -> StoreResult<()> {
        let shared = self.shared.clone();
        for queue in &shared.settings.queue_worker.queues {
            let priorities = match shared.jobs.open_queue(queue).await {
                Ok(priorities) => priorities,
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                Err(error) => {
                    tracing::warn!(%queue, %error, "queue cannot be served for now");
                    continue;
                }
            };
            for priority in &priorities {
                let is_new = |entry| !shared.in_flight.contains(queue, *priority, entry);
                for claimed in shared.jobs.recover_claims(queue, *priority, &shared.consumer, is_new).await? {
                    let id = claimed.job.id;
                    if self.runner.start(claimed, None) {
                        tracing::info!(%queue, %id, "took up a job whose hand-over was lost");
                    }
                }
            }
            self.priorities.insert(queue.clone(), priorities);
        }
        Ok(())
    }

    async fn claim_until_stopped(&mut self) -> StoreResult<()> {
        loop {
            let place = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                place = self.shared.slots.acquire_any() => place,
            };
            let Some(place) = place else { return Ok(()) };
            let mut places = self.acquire_more(place);
            if self.wakeup.take() {
                self.priorities.clear();
            }
            if self.shared.heartbeat_state.is_quiet() {
                drop(places);
                self.shared.heartbeat_state.wait_until_resumed(&self.stop).await;
                continue;
            }
            // Before the claim: what runs may have made jobs until it ended
            let was_idle = self.shared.in_flight.is_empty();
            let found = self.claim(&mut places).await?;
            if self.is_finished(found, was_idle).await? {
                self.stop.cancel();
            }
            if !found && !self.stop.is_cancelled() {
                let last = places.pop();
                // The others are free for what else waits for one
                drop(places);
                self.wait_for_jobs(last).await?;
            }
        }
    }

    /// Whether a worker that does not work until it is stopped has done what it was started for.
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

    /// Whether jobs wait for a limit of their queue, which are not handed out now but will be.
    async fn has_rate_limited_jobs(&self) -> StoreResult<bool> {
        for (queue, _) in self.limit_states.iter().filter(|(_, more)| matches!(more, ClaimAvailability::RetryAfter(_)))
        {
            if self.shared.jobs.queue_stats(queue).await?.available > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// As many places as are free, up to a batch.
    fn acquire_more(&self, first: AnyQueuePermit) -> Vec<AnyQueuePermit> {
        let most = if self.shared.run_mode == RunMode::Once { 1 } else { self.batch_size };
        let mut places = vec![first];
        while places.len() < most
            && let Some(place) = self.shared.slots.try_acquire()
        {
            places.push(place);
        }
        places
    }

    /// Claims without waiting, queue by queue, and starts what it got; false when there was nothing.
    async fn claim(&mut self, places: &mut Vec<AnyQueuePermit>) -> StoreResult<bool> {
        let shared = self.shared.clone();
        let by = Claimant::Worker { consumer: &shared.consumer, worker: &shared.settings.queue_worker.name };
        let mut found = false;
        for queue in self.queue_selector.next_order() {
            if places.is_empty() {
                break;
            }
            let mut taken = shared.slots.bind_to_queue(&queue, places, self.batch_size);
            if taken.is_empty() {
                continue;
            }
            let priorities = self.priorities.entry(queue.clone()).or_default();
            let batch = shared.jobs.claim(&queue, priorities, taken.len(), by).await?;
            self.limit_states.insert(queue, batch.availability);
            self.batch_size = next_batch_size(self.batch_size, &batch.jobs);
            for claimed in batch.jobs {
                found = true;
                self.runner.start(claimed, taken.pop());
            }
            places.extend(taken.into_iter().map(Permit::into_any_queue));
        }
        Ok(found)
    }

    /// Wakes the loop when there is a job in one of these queues. A blocking claim would not ask their limits.
    fn watch_limited_queues(&mut self, queues: Vec<QueueName>) {
        let is_watching =
            self.limited_watch.as_ref().is_some_and(|(watched, task)| *watched == queues && !task.is_finished());
        if is_watching {
            return;
        }
        // All that the settings can name are fewer than can be watched
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

    /// Waits for a job on any stream, for a limit to allow more, or to be woken.
    async fn wait_for_jobs(&mut self, place: Option<AnyQueuePermit>) -> StoreResult<()> {
        let mut longest = MAX_BLOCK.min(self.shared.consumer.lease() / 2);
        let (mut free, mut limited) = (Vec::new(), Vec::new());
        // A queue whose places are all taken is listened to again when one is given back
        for (queue, priorities) in self.priorities.iter().filter(|(queue, _)| self.shared.slots.has_capacity(queue)) {
            let streams = priorities.iter().map(|priority| (queue.clone(), *priority));
            match self.limit_states.get(queue).copied().unwrap_or_default() {
                ClaimAvailability::Unlimited => free.extend(streams),
                ClaimAvailability::Limited => limited.push(queue.clone()),
                ClaimAvailability::RetryAfter(pause) => longest = longest.min(pause),
                ClaimAvailability::Paused => {}
            }
        }
        if self.priorities.values().all(Vec::is_empty) {
            return Err(StoreError::Damaged("the streams of all queues are gone".to_owned()));
        }
        limited.sort_unstable();
        self.watch_limited_queues(limited);
        if free.is_empty() {
            drop(place);
            let _ = tokio::time::timeout(longest, self.wakeup.woken()).await;
            return Ok(());
        }
        let mut connection = match self.blocking_connection.take() {
            Some(connection) => connection,
            None => self.shared.jobs.redis().open_dedicated(MAX_BLOCK).await?,
        };
        let (jobs, client_id) = (&self.shared.jobs, connection.client_id());
        let block = longest.max(Duration::from_millis(1));
        let read = jobs.claim_blocking(&mut connection, &free, &self.shared.consumer, block);
        let (arrived, _) = jobs.redis().interruptible(client_id, read, self.wakeup.woken()).await;
        let (shared, mut places) = (self.shared.clone(), Vec::from_iter(place));
        // After an error the connection is not used again: its next answer could be this read's
        for claimed in arrived? {
            let place = shared.slots.bind_to_queue(&claimed.job.queue, &mut places, 1).pop();
            self.runner.start(claimed, place);
        }
        self.blocking_connection = Some(connection);
        Ok(())
    }
}
