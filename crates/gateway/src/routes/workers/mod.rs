//! The pull protocol: programs in any language fetch jobs, keep them alive and report how they ended.
//!
//! Every fetched job carries a `token`. A client that sends it back reports on exactly the attempt that it fetched: a
//! stale token gets 409 and changes nothing. Without a token the `worker_id` must match, if both sides have one.

mod ack;
mod claim;
mod claimed_jobs;
mod fetch;
mod heartbeat;
mod nack;
mod settle;

use common::{id::JobId, name::WorkerId};
use model::job::JobTransition;
use store::jobs::{ActiveAttempt, ClaimedJob, Fence, JobHolder, LocatedJob, PULL_CONSUMER};

use super::jobs::job_not_found;
use crate::{
    auth::Caller,
    error::{ApiError, ErrorCode},
    services::Services,
};

pub(super) use ack::ack;
pub(super) use fetch::fetch;
pub(super) use heartbeat::heartbeat;
pub(super) use nack::nack;

/// The attempt of an active job that the caller may end, or why there is none.
async fn find_active_attempt(
    caller: &Caller,
    services: &Services,
    id: JobId,
    event: JobTransition,
    fence: &Fence,
) -> Result<ClaimedJob, ApiError> {
    let located = services.jobs.locate(id).await?.filter(|located| has_job(caller, located));
    let located = located.ok_or_else(|| job_not_found(&id.to_string()))?;
    located.state().after(event)?;
    let LocatedJob::InStream { job, entry, holder: Some(holder) } = located else { return Err(stale_attempt(id)) };
    if !is_reportable(&holder, fence) {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("job {id} is run by a queue-worker, which reports for itself"),
        ));
    }
    Ok(ClaimedJob::new(job, entry, None, holder.started_at()))
}

/// Whether a job is of a queue that the key is for. One of another queue does not exist for the key.
pub(in crate::routes) fn has_job(caller: &Caller, located: &LocatedJob) -> bool {
    caller.has_every_queue() || located.queue().is_some_and(|queue| caller.has_queue(&queue))
}

/// Whether a program may report on an attempt: a program fetched it, or a queue-worker issued a callback token for it.
pub(in crate::routes) fn is_reportable(holder: &JobHolder, fence: &Fence) -> bool {
    let has_callback_token = || holder.attempt.as_ref().is_some_and(ActiveAttempt::has_callback_token);
    holder.consumer == PULL_CONSUMER || (matches!(fence, Fence::Pull { token: Some(_), .. }) && has_callback_token())
}

pub(in crate::routes) fn parse_fence(token: Option<String>, worker_id: Option<String>) -> Result<Fence, ApiError> {
    let is_token = |token: &String| token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit());
    if token.as_ref().is_some_and(|token| !is_token(token)) {
        return Err(ApiError::invalid("token must be the one that came with the fetched job"));
    }
    Ok(Fence::Pull { token, worker: parse_worker_id(worker_id)? })
}

pub(in crate::routes) fn parse_body_job_id(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|_| {
        ApiError::invalid(format!("job ids must be lower-case UUIDv7, got {}", common::name::quoted(text)))
    })
}

pub(in crate::routes) fn stale_attempt(id: JobId) -> ApiError {
    metrics::counter!("galley_stale_tokens_total").increment(1);
    ApiError::new(ErrorCode::Conflict, format!("this attempt of job {id} is not the current one"))
}

fn parse_worker_id(given: Option<String>) -> Result<Option<WorkerId>, ApiError> {
    given.map(|text| WorkerId::try_from(text).map_err(ApiError::from)).transpose()
}
