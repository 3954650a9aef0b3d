//! An error of one queue or one job does not hold up the others: it is logged, and tried again later.

use std::time::Duration;

use common::{
    name::{QueueName, quoted},
    time::Millis,
};

use crate::{StoreError, StoreResult, connection::clock::MoveDue, jobs::Jobs};

/// Pause before a queue is handled again after an error of its own.
pub(super) const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// How often what is due in maintenance mode is looked at: it waits for the end of the mode.
pub(super) const MAINTENANCE_MODE_PAUSE: Duration = Duration::from_secs(1);
/// Delay before a single job is handled again after an error.
const FAILED_JOB_DELAY_MS: Millis = 60_000;

/// Logs an error of one queue, which must not block the others, and returns a pause for it.
pub(super) fn pause_on_error(queue: &QueueName, result: StoreResult<Duration>) -> StoreResult<Duration> {
    match result {
        Err(error @ StoreError::Unavailable(_)) => Err(error),
        Err(error) => {
            tracing::error!(%queue, %error, "maintenance of a queue failed");
            Ok(FAILURE_PAUSE)
        }
        ok => ok,
    }
}

/// Logs an error of one job, which must not block the others of its queue, and reschedules the job.
pub(super) async fn reschedule_on_error(
    jobs: &Jobs,
    queue: &QueueName,
    (set, member): (&str, String),
    outcome: StoreResult<()>,
) -> StoreResult<()> {
    let error = match outcome {
        Err(
            error @ (StoreError::Damaged(_) | StoreError::Refused(_) | StoreError::OutOfMemory | StoreError::NoRoom(_)),
        ) => error,
        other => return other,
    };
    tracing::error!(set, member = quoted(&member), %error, "maintenance of a job failed");
    let at = jobs.now().await? + FAILED_JOB_DELAY_MS;
    jobs.move_due(queue, set, &[member], (at, MoveDue::Always)).await
}
