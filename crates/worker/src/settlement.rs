//! How an attempt ended, and recording it: one mechanism for the jobs of queue-workers and for redeliveries of subscriptions.

use std::time::Duration;

use common::name::WorkerId;
use model::job::{AttemptError, RetryAdvice};
use store::{
    StoreError, StoreResult,
    events::JobEvent,
    jobs::{Attempt, ClaimedJob, Consumer, FailureOutcome, Fence, FinishedJob, Jobs, Settled},
    local_now, next_reconnect_delay, reconnect_delays,
};
use tokio_util::sync::CancellationToken;

/// What to record of an attempt. Successes of queue-workers are recorded many at once by `results` instead.
#[derive(Debug)]
pub enum Settlement {
    /// It succeeded, without a result.
    Complete,
    /// It failed: the retry policy and the advice say what follows.
    Fail {
        /// What went wrong.
        error: AttemptError,
        /// What the handler advises.
        advice: RetryAdvice,
    },
    /// It cannot be tried now: later, and the attempt is not spent.
    Snooze(Duration),
    /// It was not tried: available again now, and the attempt is not spent.
    Release,
    /// Its last failure was for good: no further attempt.
    Discard,
    /// It was claimed after its `expires_at`.
    Expire,
    /// Another program completes it with a token.
    CompleteAsync {
        /// Who holds the attempt until then.
        consumer: Consumer,
        /// The worker's name.
        worker: WorkerId,
        /// The token.
        token: String,
        /// How long that program may be silent.
        lease: Duration,
    },
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettlementOutcome {
    /// It is recorded; the word says what follows a failure.
    Recorded(&'static str),
    /// The attempt is not the current one any more: nothing was recorded.
    Stale,
}

/// Records how an attempt ended, again and again while Redis is away, until `stop` is cancelled. None if it could not be
/// recorded: the job will run again.
pub async fn settle(
    jobs: &Jobs,
    claimed: &ClaimedJob,
    fence: &Fence,
    settlement: &Settlement,
    stop: &CancellationToken,
) -> Option<SettlementOutcome> {
    let mut delays = reconnect_delays();
    loop {
        match record(jobs, claimed, fence, settlement).await {
            Ok(outcome) => return Some(outcome),
            Err(StoreError::Unavailable(error)) => {
                tracing::debug!(id = %claimed.job.id, %error, "outcome not recorded yet");
                stop.run_until_cancelled(tokio::time::sleep(next_reconnect_delay(&mut delays))).await?;
            }
            Err(error) => {
                tracing::error!(id = %claimed.job.id, %error, "outcome cannot be recorded: the job will run again");
                return None;
            }
        }
    }
}

async fn record(
    jobs: &Jobs,
    claimed: &ClaimedJob,
    fence: &Fence,
    settlement: &Settlement,
) -> StoreResult<SettlementOutcome> {
    let attempt = Attempt::of(claimed, fence);
    let is_current = match settlement {
        Settlement::Complete => {
            let now = local_now();
            let finished = FinishedJob::completed(&claimed.job, None, Some(claimed.started_at), now);
            let is_current = jobs.finish(attempt, &finished, false).await? != Settled::Stale;
            if is_current {
                jobs.record_event(JobEvent::completed(&claimed.job, claimed.started_at, now));
            }
            is_current
        }
        Settlement::Fail { error, advice } => {
            return Ok(match jobs.fail(claimed, fence, error.clone(), *advice).await? {
                FailureOutcome::Stale => SettlementOutcome::Stale,
                recorded => SettlementOutcome::Recorded(recorded.as_str()),
            });
        }
        Settlement::Snooze(delay) => jobs.snooze(claimed, fence, *delay).await?.is_some(),
        Settlement::Release => jobs.release(attempt).await? != Settled::Stale,
        Settlement::Discard => !matches!(jobs.discard(claimed, fence).await?, FailureOutcome::Stale),
        Settlement::Expire => jobs.discard_expired(claimed, fence).await? != Settled::Stale,
        Settlement::CompleteAsync { consumer, worker, token, lease } => {
            jobs.issue_callback_token(claimed, consumer, worker, token, Some(*lease)).await?
        }
    };
    Ok(if is_current { SettlementOutcome::Recorded("") } else { SettlementOutcome::Stale })
}
