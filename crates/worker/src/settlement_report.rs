//! What logs and metrics say about how an attempt ended.

use store::jobs::ClaimedJob;

use crate::settlement::{Settlement, SettlementOutcome};

/// Logs every outcome except a success.
pub(crate) fn log_settlement(
    claimed: &ClaimedJob,
    settlement: &Settlement,
    outcome: SettlementOutcome,
    shows_texts: bool,
) {
    let (id, queue, attempt) = (claimed.job.id, &claimed.job.queue, claimed.job.history.current_attempt());
    match (settlement, outcome) {
        (Settlement::Fail { error, .. }, outcome) => {
            let next = if let SettlementOutcome::Recorded(next) = outcome { next } else { "stale" };
            let event = "attempt.failed";
            // The text may quote what the job or its endpoint sent
            let (code, error) = (&error.code, shows_texts.then_some(error.message.as_str()));
            tracing::warn!(event, %id, %queue, attempt, code, error, next, "attempt failed");
        }
        (_, SettlementOutcome::Stale) => {
            tracing::info!(event = "result.stale", %id, %queue, attempt, "the attempt is not the current one");
        }
        (Settlement::Snooze(delay), _) => tracing::info!(event = "job.snoozed", %id, %queue, ?delay, "job snoozed"),
        (Settlement::Wait(request), _) => {
            let (step, signal) = (&request.step, request.signal.as_ref().map(ToString::to_string));
            tracing::info!(event = "job.waiting", %id, %queue, step, signal, "job waits for a signal or a time");
        }
        (Settlement::Release, _) => tracing::info!(event = "job.released", %id, %queue, "job released"),
        (Settlement::Expire, _) => {
            tracing::info!(event = "job.expired", %id, %queue, "job expired before it was started");
        }
        (Settlement::CompleteAsync { .. }, _) => {
            tracing::info!(event = "job.waiting_for_callback", %id, %queue, "job waits for its endpoint to complete it");
        }
        (Settlement::Complete | Settlement::Discard, _) => {}
    }
}
