//! How an attempt ended, and how to record it: one mechanism for jobs of queue-workers and for redeliveries of
//! subscriptions.

use std::time::{Duration, Instant};

use common::name::WorkerId;
use model::job::{AttemptError, RetryAdvice};
use store::{
    StoreError, StoreResult,
    jobs::{
        Attempt, ClaimedJob, Consumer, FailureOutcome, Fence, JobResult, Jobs, Settled, WaitRequest, record_settlement,
    },
    next_reconnect_delay, reconnect_delays,
};
use tokio_util::sync::CancellationToken;

/// What to record about an attempt. `results` records a queue-worker's successes instead, many at once.
#[derive(Debug)]
pub enum Settlement {
    /// Success without a result.
    Complete,
    /// Failure: the retry policy and the advice decide what follows.
    Fail {
        /// What went wrong.
        error: AttemptError,
        /// The handler's advice about a retry.
        advice: RetryAdvice,
    },
    /// The job cannot run now: try it again after this delay. The attempt does not count.
    Snooze(Duration),
    /// The job waits for a signal or a time in the middle of its work. The attempt does not count.
    Wait(WaitRequest),
    /// The job did not run: make it available again now. The attempt does not count.
    Release,
    /// A permanent failure: no further attempt.
    Discard,
    /// The job was claimed after its `expires_at`.
    Expire,
    /// Another program completes the job with a token.
    CompleteAsync {
        /// The consumer that holds the attempt until then.
        consumer: Consumer,
        /// The worker's name.
        worker: WorkerId,
        /// The callback token.
        token: String,
        /// How long that program may stay silent.
        lease: Duration,
    },
}

/// Whether the settlement was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettlementOutcome {
    /// Recorded; the word is the job's next state after a failure.
    Recorded(&'static str),
    /// The attempt is no longer the current one: nothing was recorded.
    Stale,
}

/// Records how an attempt ended. Whatever refuses it may pass: it is sent until it is recorded, until the attempt is not
/// the current one any more, or until `stop` is cancelled. Then the answer is none, and the job runs again.
pub async fn settle(
    jobs: &Jobs,
    claimed: &ClaimedJob,
    fence: &Fence,
    settlement: &Settlement,
    stop: &CancellationToken,
) -> Option<SettlementOutcome> {
    let (mut delays, mut is_logged, began) = (reconnect_delays(), false, Instant::now());
    loop {
        match record(jobs, claimed, fence, settlement).await {
            Ok(outcome) => {
                let name = outcome_name(settlement, Some(outcome));
                record_settlement(&claimed.job.queue, &std::iter::once(claimed), name, began.elapsed());
                return Some(outcome);
            }
            Err(error @ StoreError::Unavailable(_)) => {
                tracing::debug!(id = %claimed.job.id, %error, "outcome not recorded yet");
            }
            Err(error) => {
                if !std::mem::replace(&mut is_logged, true) {
                    let (id, queue) = (claimed.job.id, &claimed.job.queue);
                    tracing::error!(event = "result.refused", %id, %queue, %error, "outcome refused, it is sent again");
                }
            }
        }
        stop.run_until_cancelled(tokio::time::sleep(next_reconnect_delay(&mut delays))).await?;
    }
}

/// The outcome for metrics. Stale: it could not be recorded.
pub(crate) fn outcome_name(settlement: &Settlement, outcome: Option<SettlementOutcome>) -> &'static str {
    match (settlement, outcome) {
        (_, None | Some(SettlementOutcome::Stale)) => "stale",
        (Settlement::Fail { .. }, Some(SettlementOutcome::Recorded(next))) => next,
        (Settlement::Snooze(_), _) => "snoozed",
        (Settlement::Wait(_), _) => "waiting",
        (Settlement::Release, _) => "released",
        (Settlement::Expire, _) => "expired",
        (Settlement::CompleteAsync { .. }, _) => "handed_over",
        (Settlement::Discard, _) => "discarded",
        (Settlement::Complete, _) => "completed",
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
            let now = jobs.estimated_now();
            let finished = jobs.succeeded(claimed, JobResult::None, now);
            let is_current = jobs.finish(attempt, &finished, false).await? != Settled::Stale;
            if is_current {
                jobs.report_completed(claimed, now);
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
        Settlement::Wait(request) => jobs.wait(claimed, fence, request).await?.is_some(),
        Settlement::Release => jobs.release(attempt).await? != Settled::Stale,
        Settlement::Discard => !matches!(jobs.discard(claimed, fence).await?, FailureOutcome::Stale),
        Settlement::Expire => jobs.discard_expired(claimed, fence).await? != Settled::Stale,
        Settlement::CompleteAsync { consumer, worker, token, lease } => {
            jobs.issue_callback_token(claimed, consumer, worker, token, Some(*lease)).await?
        }
    };
    Ok(if is_current { SettlementOutcome::Recorded("") } else { SettlementOutcome::Stale })
}
