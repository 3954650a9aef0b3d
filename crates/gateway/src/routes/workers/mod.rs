//! The pull protocol: programs in any language fetch jobs, keep them alive and report how they ended.
//!
//! Every fetched job carries a `token`. Whoever echoes it is sure to speak of the attempt it was given: a stale token
//! is 409 and changes nothing. Without a token the `worker_id` must match, where both sides give one.

mod ack;
mod fetch;
mod heartbeat;
mod nack;
mod settle;
mod take;

use common::{id::JobId, name::WorkerId};
use model::job::Event;
use store::jobs::{Attempt, Claimed, Fence, Holder, Located, PULL};

use super::jobs::unknown;
use crate::{
    error::{ApiError, Code},
    startup::Services,
};

pub(super) use ack::ack;
pub(super) use fetch::fetch;
pub(super) use heartbeat::heartbeat;
pub(super) use nack::nack;

/// The attempt of an active job that the caller may end, or why there is none.
async fn active(services: &Services, id: JobId, event: Event, fence: &Fence) -> Result<Claimed, ApiError> {
    let located = services.jobs.locate(id).await?.ok_or_else(|| unknown(&id.to_string()))?;
    located.state().after(event)?;
    let Located::Queued { job, entry, holder: Some(holder) } = located else { return Err(stale(id)) };
    if !is_theirs(&holder, fence) {
        return Err(ApiError::new(
            Code::Conflict,
            format!("job {id} is run by a queue-worker, which reports for itself"),
        ));
    }
    Ok(Claimed { started_at: holder.started_at(), job, entry, token: None })
}

/// Whether an attempt is for programs to report on: one that was fetched, or one of a queue-worker that lent it to whoever
/// has the token.
pub(in crate::routes) fn is_theirs(holder: &Holder, fence: &Fence) -> bool {
    let is_lent = || holder.attempt.as_ref().is_some_and(Attempt::is_lent);
    holder.consumer == PULL || (matches!(fence, Fence::Pull { token: Some(_), .. }) && is_lent())
}

pub(in crate::routes) fn fence(token: Option<String>, worker_id: Option<String>) -> Result<Fence, ApiError> {
    let is_token = |token: &String| token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit());
    if token.as_ref().is_some_and(|token| !is_token(token)) {
        return Err(ApiError::invalid("token must be the one that came with the fetched job"));
    }
    Ok(Fence::Pull { token, worker: worker(worker_id)? })
}

fn id(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|_| {
        ApiError::invalid(format!("job ids must be lower-case UUIDv7, got {}", common::name::quoted(text)))
    })
}

pub(in crate::routes) fn stale(id: JobId) -> ApiError {
    ApiError::new(Code::Conflict, format!("this attempt of job {id} is not the current one"))
}

fn worker(given: Option<String>) -> Result<Option<WorkerId>, ApiError> {
    given.map(|text| WorkerId::try_from(text).map_err(ApiError::from)).transpose()
}
