//! Starts the jobs of a claim beside the claim loop: while they are decoded and started, Redis already works on the next
//! claim.
//!
//! While jobs are short, the next claim does not wait for permits either: its jobs get those that become free. Otherwise a
//! worker's slots would be empty while a claim is on its way. A job that gets none soon goes back to the queue.

use std::{collections::VecDeque, panic::resume_unwind, sync::Arc, time::Duration};

use common::name::QueueName;
use futures_util::future::join_all;
use store::{
    StoreResult,
    jobs::{EncodedJobs, JobSizes, record_claim},
};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    attempt::{AttemptRunner, RegisteredJob},
    shared::WorkerShared,
    slots::Permit,
};

/// How long a job waits for a permit until it goes back to the queue.
const MAX_PERMIT_WAIT: Duration = Duration::from_millis(500);

/// Starts jobs of claims, one claim after the other.
pub(crate) struct StartingJobs {
    shared: Arc<WorkerShared>,
    runner: AttemptRunner,
    /// Cancelled when the worker stops: jobs without a permit go back to the queue.
    stop: CancellationToken,
    running: Option<(QueueName, JoinHandle<StoreResult<JobSizes>>)>,
}

impl StartingJobs {
    pub(crate) fn new(shared: Arc<WorkerShared>, runner: AttemptRunner, stop: CancellationToken) -> Self {
        Self { shared, runner, stop, running: None }
    }

    /// Starts jobs with these permits, and the others when permits are free. Those before must be started:
    /// [`StartingJobs::finish`].
    pub(crate) fn start(&mut self, queue: QueueName, jobs: EncodedJobs, sizes: JobSizes, permits: Vec<Permit>) {
        debug_assert!(self.running.is_none(), "jobs are being started");
        let (shared, runner, stop) = (self.shared.clone(), self.runner.clone(), self.stop.clone());
        let task = start_all(shared, runner, stop, (queue.clone(), jobs, sizes), permits);
        self.running = Some((queue, tokio::spawn(task)));
    }

    /// Waits until all are started. Returns their queue, and the size of its jobs; none if there were none.
    pub(crate) async fn finish(&mut self) -> Option<(QueueName, StoreResult<JobSizes>)> {
        let (queue, task) = self.running.as_mut()?;
        // It is never aborted
        let started = task.await.unwrap_or_else(|error| resume_unwind(error.into_panic()));
        let queue = queue.clone();
        self.running = None;
        Some((queue, started))
    }
}

async fn start_all(
    shared: Arc<WorkerShared>,
    runner: AttemptRunner,
    stop: CancellationToken,
    (queue, encoded, mut sizes): (QueueName, EncodedJobs, JobSizes),
    mut permits: Vec<Permit>,
) -> StoreResult<JobSizes> {
    let deadline = Instant::now() + MAX_PERMIT_WAIT;
    let decoded = shared.jobs.decode_claimed(encoded).await?;
    sizes.observe(&decoded);
    record_claim(&queue, &decoded, Some(&shared.settings.queue_worker.name), shared.jobs.estimated_now());
    let ready = permits.len();
    let registered = decoded.into_iter().enumerate().filter_map(|(number, job)| runner.register(job, number < ready));
    let mut waiting: VecDeque<RegisteredJob> = registered.collect();
    while let Some(job) = waiting.pop_front() {
        let permit = if let Some(permit) = permits.pop() {
            permit
        } else {
            let acquired = tokio::select! {
                permit = shared.slots.acquire(&queue) => permit,
                () = stop.cancelled() => None,
                () = tokio::time::sleep_until(deadline) => None,
            };
            let Some(permit) = acquired else {
                waiting.push_front(job);
                break;
            };
            shared.in_flight.mark_running(&job.claimed);
            permit
        };
        runner.start_registered(job, Some(permit));
    }
    if !waiting.is_empty() {
        shared.attempt_times.forget();
        tracing::debug!(%queue, jobs = waiting.len(), "jobs that got no slot go back to the queue");
        join_all(waiting.into_iter().map(|job| runner.release(job))).await;
    }
    Ok(sizes)
}
