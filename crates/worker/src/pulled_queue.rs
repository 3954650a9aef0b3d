//! Claims the jobs of one queue as they become available, each with a token and a lease of its own, and runs them. The
//! long poll waits for them, so a queue at rest costs nothing.

use std::{future::Future, time::Duration};

use common::name::{Priority, QueueName, WorkerId};
use store::{
    StoreError, StoreResult,
    jobs::{Claimant, ClaimedJob, Jobs},
    log_interruption,
    long_poll::{LongPoll, LongPollWaiter, Remaining},
    next_reconnect_delay, reconnect_delays,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Jobs claimed in one go.
const CLAIM_BATCH_SIZE: usize = 16;
/// Pause after an error of the queue's own.
const ERROR_RETRY_DELAY: Duration = Duration::from_secs(1);

/// A queue, and who claims from it.
pub struct PulledQueue {
    /// The jobs.
    pub jobs: Jobs,
    /// What waits for them.
    pub long_poll: LongPoll,
    /// Their queue.
    pub queue: QueueName,
    /// The worker's name.
    pub worker: WorkerId,
    /// The lease of each attempt.
    pub lease: Duration,
}

impl PulledQueue {
    /// Claims and runs jobs until `stop` is cancelled, then finishes those that it has. `acquire` waits for permits, one to as
    /// many as it is given, and answers none when the queue is not worked any more; a permit is dropped after its attempt.
    /// `run` runs and settles one attempt.
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

    /// Claims until the queue has no more, and answers with what it says to more then; none when there are no permits.
    async fn claim_all<P, A: Future<Output = Option<Vec<P>>>>(
        &self,
        acquire: &impl Fn(usize) -> A,
        start: &impl Fn(ClaimedJob, Option<P>),
        priorities: &mut Vec<Priority>,
    ) -> StoreResult<Option<Remaining>> {
        loop {
            let Some(mut permits) = acquire(CLAIM_BATCH_SIZE).await else { return Ok(None) };
            let by = Claimant::Pull { worker: Some(&self.worker), lease: Some(self.lease) };
            let batch = self.jobs.claim(&self.queue, priorities, permits.len(), by).await?;
            if batch.jobs.is_empty() {
                return Ok(Some(Remaining::Empty(batch.availability)));
            }
            for claimed in batch.jobs {
                start(claimed, permits.pop());
            }
        }
    }
}
