//! Claims and runs the jobs of one queue as they become available; each claim has its own token and lease. A long poll
//! waits for jobs, so an idle queue costs nothing.

use std::{future::Future, time::Duration};

use common::name::{Priority, QueueName, WorkerId};
use store::{
    StoreError, StoreResult,
    jobs::{Claimant, ClaimedJob, Jobs, record_claim},
    log_interruption,
    long_poll::{LongPoll, LongPollWaiter, Remaining},
    next_reconnect_delay, reconnect_delays,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Maximum number of jobs in one claim.
const CLAIM_BATCH_SIZE: usize = 16;
/// Pause after an error of this queue.
const ERROR_RETRY_DELAY: Duration = Duration::from_secs(1);

/// A queue and the worker that claims from it.
pub struct PulledQueue {
    /// Where the jobs are stored.
    pub jobs: Jobs,
    /// Waits for jobs.
    pub long_poll: LongPoll,
    /// The queue to claim from.
    pub queue: QueueName,
    /// The worker's name.
    pub worker: WorkerId,
    /// Lease of each attempt.
    pub lease: Duration,
}

impl PulledQueue {
    /// Claims and runs jobs until `stop` is cancelled, then waits for the running ones. `acquire` waits for one permit
    /// or more, up to its argument, or returns none when the queue should no longer be served. Each permit is dropped
    /// after its attempt. `run` runs and settles one attempt.
    pub async fn run<P, A, R>(
        &self,
        acquire: impl Fn(usize) -> A,
        run: impl Fn(ClaimedJob) -> R,
        stop: &CancellationToken,
    ) where
        P: Send + 'static,
        A: Future<Output = Option<Vec<P>>>,
        R: Future<Output = ()> + Send + 'static,
    {
        let tasks = TaskTracker::new();
        let mut delays = reconnect_delays();
        let start = |claimed, permit: Option<P>| {
            let attempt = run(claimed);
            tasks.spawn(async move {
                attempt.await;
                drop(permit);
            });
        };
        while !stop.is_cancelled() {
            match self.run_until_error(&acquire, &start, stop).await {
                Ok(()) => delays = reconnect_delays(),
                Err(error) => {
                    log_interruption("claiming from a queue", &error);
                    stop.run_until_cancelled(tokio::time::sleep(next_reconnect_delay(&mut delays))).await;
                }
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    async fn run_until_error<P, A: Future<Output = Option<Vec<P>>>>(
        &self,
        acquire: &impl Fn(usize) -> A,
        start: &impl Fn(ClaimedJob, Option<P>),
        stop: &CancellationToken,
    ) -> StoreResult<()> {
        let Ok(waiter) = self.long_poll.register(std::slice::from_ref(&self.queue)) else {
            return Err(StoreError::Damaged("more queues are waited for than can be watched".to_owned()));
        };
        let mut priorities = Vec::new();
        loop {
            if stop.run_until_cancelled(waiter.wait_for_wakeup()).await.is_none() {
                return Ok(());
            }
            match self.claim_all(acquire, start, &mut priorities).await {
                Ok(Some(remaining)) => self.report(&waiter, remaining),
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.report(&waiter, Remaining::Unavailable(ERROR_RETRY_DELAY));
                    return Err(error);
                }
            }
        }
    }

    fn report(&self, waiter: &LongPollWaiter, remaining: Remaining) {
        waiter.report_remaining(&[(self.queue.clone(), remaining)], false);
    }

    /// Claims until the queue has no more and returns what to expect of it next; none when there are no permits.
    async fn claim_all<P, A: Future<Output = Option<Vec<P>>>>(
        &self,
        acquire: &impl Fn(usize) -> A,
        start: &impl Fn(ClaimedJob, Option<P>),
        priorities: &mut Vec<Priority>,
    ) -> StoreResult<Option<Remaining>> {
        loop {
            let Some(mut permits) = acquire(CLAIM_BATCH_SIZE).await else { return Ok(None) };
            let claimant = Claimant::Pull { worker: Some(&self.worker), lease: Some(self.lease) };
            let batch = self.jobs.claim(&self.queue, priorities, permits.len(), claimant).await?;
            if batch.jobs.is_empty() {
                return Ok(Some(Remaining::Empty(batch.availability)));
            }
            record_claim(&self.queue, &batch.jobs, Some(&self.worker), self.jobs.estimated_now());
            for claimed in batch.jobs {
                start(claimed, permits.pop());
            }
        }
    }
}
