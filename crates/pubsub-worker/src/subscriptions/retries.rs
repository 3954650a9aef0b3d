//! Messages that were not delivered at once, on their way through the job engine: this takes the jobs of a subscription's
//! queue when their time has come, and tries again.

use std::{sync::Arc, time::Duration};

use common::name::Priority;
use model::{
    job::{AttemptError as Recorded, RetryAdvice},
    subscription::Redelivery,
};
use store::jobs::Attempt;
use store::local_now;
use store::{
    StoreError, StoreResult,
    events::JobEvent,
    jobs::{Claimant, ClaimedJob, Fence, FinishedJob, Settled},
    log_interruption,
    long_poll::{LongPollWaiter, Remaining},
    next_reconnect_delay, reconnect_delays,
};
use tokio_util::task::TaskTracker;

use super::runner::{SubscriptionRunner, attempt_error};
use crate::targets::DeliveryError;

/// Jobs that are taken in one go.
const CLAIM_BATCH_SIZE: usize = 16;
/// After trouble it is looked again this soon.
const ERROR_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Tries again until the runner is stopped, then finishes what it has.
pub(super) async fn run(runner: Arc<SubscriptionRunner>) {
    let tasks = TaskTracker::new();
    let mut delays = reconnect_delays();
    while !runner.stop.is_cancelled() {
        let result = run_until_error(&runner, &tasks).await;
        if let Err(error) = result {
            log_interruption("taking failed deliveries", &error);
            runner.pause(next_reconnect_delay(&mut delays)).await;
        } else {
            delays = reconnect_delays();
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// Takes jobs for as long as there is no trouble.
async fn run_until_error(runner: &Arc<SubscriptionRunner>, tasks: &TaskTracker) -> StoreResult<()> {
    let queue = runner.subscription.queue();
    let queues = std::slice::from_ref(&queue);
    let Ok(seat) = runner.process.long_poll.register(queues) else {
        return Err(StoreError::Damaged("more queues are waited for than can be watched".to_owned()));
    };
    let mut priorities = Vec::new();
    loop {
        if runner.stop.run_until_cancelled(seat.wait_for_wakeup()).await.is_none() {
            return Ok(());
        }
        let left = match claim_all(runner, tasks, &mut priorities).await {
            Ok(Some(left)) => left,
            Ok(None) => return Ok(()),
            Err(error) => {
                report_remaining(&seat, runner, Remaining::Unavailable(ERROR_RETRY_DELAY));
                return Err(error);
            }
        };
        report_remaining(&seat, runner, left);
    }
}

fn report_remaining(seat: &LongPollWaiter, runner: &SubscriptionRunner, left: Remaining) {
    seat.report_remaining(&[(runner.subscription.queue(), left)], false);
}

/// Takes jobs until there are no more; what the queue says to more then. None when the runner stops.
async fn claim_all(
    runner: &Arc<SubscriptionRunner>,
    tasks: &TaskTracker,
    priorities: &mut Vec<Priority>,
) -> StoreResult<Option<Remaining>> {
    let queue = runner.subscription.queue();
    loop {
        let Some(mut places) = runner.acquire_slots(CLAIM_BATCH_SIZE).await else { return Ok(None) };
        let lease = Some(runner.lease());
        let by = Claimant::Pull { worker: Some(runner.worker()), lease };
        let batch = runner.process.jobs.claim(&queue, priorities, places.len(), by).await?;
        if batch.jobs.is_empty() {
            return Ok(Some(Remaining::Empty(batch.availability)));
        }
        for claimed in batch.jobs {
            let (runner, place) = (runner.clone(), places.pop());
            tasks.spawn(async move {
                run_attempt(&runner, claimed).await;
                drop(place);
            });
        }
    }
}

/// What is to be recorded of an attempt.
enum RetryOutcome {
    Complete,
    Fail(Recorded, RetryAdvice),
    Snooze(Duration),
    Discard,
    Release,
}

async fn run_attempt(runner: &SubscriptionRunner, claimed: ClaimedJob) {
    let history = &claimed.job.history;
    let attempt = history.current_attempt();
    let redelivery = claimed.job.envelope.fields().ok().and_then(|parts| Redelivery::from_args(parts.args));
    let step = match redelivery {
        None => {
            let (code, message) = ("invalid_message", "the arguments of this job are not a message of a subscription");
            RetryOutcome::Fail(Recorded::new(code, code, message, attempt, local_now()), RetryAdvice::Never)
        }
        // Not when somebody wanted it to be tried again since: then attempts were begun here
        Some(redelivery) if redelivery.is_permanent_failure && history.failures > 0 && history.started_at.is_none() => {
            RetryOutcome::Discard
        }
        Some(redelivery) => match runner.deliver(&redelivery.channel, &redelivery.message, attempt).await {
            Ok(()) => RetryOutcome::Complete,
            Err(DeliveryError::Deferred { delay, .. }) => RetryOutcome::Snooze(delay),
            Err(DeliveryError::Failed(failure)) => RetryOutcome::Fail(attempt_error(&failure, attempt), failure.advice),
            Err(DeliveryError::Abandoned) => RetryOutcome::Release,
        },
    };
    let mut delays = reconnect_delays();
    // It is this worker's until its lease is over, and then somebody else's
    while let Err(error) = record_outcome(runner, &claimed, &step).await {
        log_interruption("recording a delivery", &error);
        let pause = tokio::time::sleep(next_reconnect_delay(&mut delays));
        if runner.process.hard_shutdown.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

async fn record_outcome(runner: &SubscriptionRunner, claimed: &ClaimedJob, step: &RetryOutcome) -> StoreResult<()> {
    let jobs = &runner.process.jobs;
    let fence = Fence::Pull { token: claimed.token.clone(), worker: None };
    match step {
        RetryOutcome::Complete => {
            let now = local_now();
            let ended = FinishedJob::completed(&claimed.job, None, Some(claimed.started_at), now);
            if jobs.finish(Attempt::of(&claimed, &fence), &ended, false).await? == Settled::Stale {
                // It is somebody else's, who says how it ended
                return Ok(());
            }
            jobs.record_event(JobEvent::completed(&claimed.job, claimed.started_at, now));
            runner.store().record_recovery(&runner.subscription.name).await?;
        }
        RetryOutcome::Fail(failure, advice) => drop(jobs.fail(claimed, &fence, failure.clone(), *advice).await?),
        RetryOutcome::Discard => drop(jobs.discard(claimed, &fence).await?),
        RetryOutcome::Snooze(delay) => drop(jobs.snooze(claimed, &fence, *delay).await?),
        RetryOutcome::Release => drop(jobs.release(Attempt::of(&claimed, &fence)).await?),
    }
    Ok(())
}
