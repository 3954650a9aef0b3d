//! The checkpoint of a job: saving by the program that runs it, reading and deleting.
//!
//! The Open Job Spec saves with POST, and only while the job runs. Its conformance suite saves with PUT, in every state but
//! the final ones. So PUT also sets the checkpoint of a job that waits, from which its next attempt goes on.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, StatusCode},
    web,
};
use common::{id::JobId, json::ObjectWriter, time};
use model::job::JobState;
use serde::Deserialize;
use serde_json::value::RawValue;
use store::jobs::{Attempt, CheckpointOutcome, CheckpointRefusal, JobCheckpoint, LocatedJob, MAX_CHECKPOINT_BYTES};

use super::{
    ApiResult,
    jobs::{job_not_found, parse_job_id},
    ojs_response,
    workers::{is_reportable, parse_fence, stale_attempt},
};
use crate::{
    body::ReportBody,
    error::{ApiError, ErrorCode},
    services::Services,
};

/// Beyond it numbers in JSON are not exact.
const MAX_SEQUENCE: u64 = (1 << 53) - 1;

#[derive(Deserialize)]
struct SaveCheckpointRequest<'a> {
    #[serde(borrow)]
    state: &'a RawValue,
    sequence: Option<u64>,
    worker_id: Option<String>,
    token: Option<String>,
}

/// Saves the checkpoint of a job. It also renews the lease.
pub(super) async fn save(
    http: HttpRequest,
    services: web::Data<Services>,
    path: web::Path<String>,
    body: ReportBody,
) -> ApiResult {
    let id = parse_job_id(&path)?;
    let request: SaveCheckpointRequest = body.parse()?;
    let state = request.state.get();
    if state.len() > MAX_CHECKPOINT_BYTES {
        let message = format!(
            "state must have at most {MAX_CHECKPOINT_BYTES} bytes, got {}: store large data elsewhere, and where it is here",
            state.len()
        );
        return Err(ApiError::new(ErrorCode::PayloadTooLarge, message));
    }
    if request.sequence.is_some_and(|sequence| !(1..=MAX_SEQUENCE).contains(&sequence)) {
        return Err(ApiError::invalid(format!("sequence must be an integer from 1 to {MAX_SEQUENCE}")));
    }
    let names_attempt = request.token.is_some() || request.worker_id.is_some();
    let fence = parse_fence(request.token, request.worker_id)?;
    let may_wait = http.method() == Method::PUT && !names_attempt;
    let saved = match services.jobs.locate(id).await?.ok_or_else(|| job_not_found(&path))? {
        LocatedJob::InStream { job, entry, holder: Some(holder) } => {
            if !is_reportable(&holder, &fence) {
                return Err(stale_attempt(id));
            }
            services.jobs.save_checkpoint(Attempt { job: &job, entry, fence: &fence }, request.sequence, state).await?
        }
        _ if may_wait => match services.jobs.set_checkpoint(id, request.sequence, state).await? {
            Ok(outcome) => outcome,
            Err(CheckpointRefusal::NotFound) => return Err(job_not_found(&path)),
            Err(CheckpointRefusal::State(state)) => return Err(wrong_state(id, state)),
        },
        _ if names_attempt => return Err(stale_attempt(id)),
        located => return Err(wrong_state(id, located.state())),
    };
    match saved {
        CheckpointOutcome::Saved { sequence, created_at } => {
            Ok(answer(&JobCheckpoint { sequence, created_at, state: String::new() }, id))
        }
        CheckpointOutcome::Stale => Err(stale_attempt(id)),
        CheckpointOutcome::Superseded(newer) => Err(ApiError::new(
            ErrorCode::Conflict,
            format!("checkpoint {newer} of job {id} is newer than this one, and stays"),
        )),
    }
}

/// The checkpoint of a job.
pub(super) async fn show(services: web::Data<Services>, path: web::Path<String>) -> ApiResult {
    let id = parse_job_id(&path)?;
    let (_, queue) = services.jobs.locate_with_queue(id).await?.ok_or_else(|| job_not_found(&path))?;
    match services.jobs.read_checkpoint(&queue, id).await? {
        Some(checkpoint) => Ok(answer(&checkpoint, id)),
        None => Err(ApiError::new(ErrorCode::NotFound, format!("job {id} has no checkpoint"))),
    }
}

/// Deletes the checkpoint of a job, if it has one: the next attempt starts from the beginning.
pub(super) async fn delete(services: web::Data<Services>, path: web::Path<String>) -> ApiResult {
    let id = parse_job_id(&path)?;
    let (_, queue) = services.jobs.locate_with_queue(id).await?.ok_or_else(|| job_not_found(&path))?;
    services.jobs.delete_checkpoint(&queue, id).await?;
    let mut answer = ObjectWriter::default();
    answer.raw("deleted", "true").text("job_id", &id.to_string());
    Ok(ojs_response(StatusCode::OK, answer.finish()))
}

/// The checkpoint as the conformance suite reads it, and in a member as the specification has it. A save is answered
/// without its state.
fn answer(checkpoint: &JobCheckpoint, id: JobId) -> HttpResponse {
    let mut members = ObjectWriter::with_capacity(checkpoint.state.len() + 120);
    members.text("job_id", &id.to_string());
    if !checkpoint.state.is_empty() {
        members.raw("state", &checkpoint.state);
    }
    members.number("sequence", checkpoint.sequence).text("created_at", &time::format(checkpoint.created_at));
    let members = members.finish();
    let mut answer = ObjectWriter::with_capacity(2 * members.len() + 20);
    answer.splice(&members).raw("checkpoint", &members);
    ojs_response(StatusCode::OK, answer.finish())
}

fn wrong_state(id: JobId, state: JobState) -> ApiError {
    let message = match state {
        JobState::Completed | JobState::Discarded | JobState::Cancelled => {
            format!("job {id} is {state}: only a job that has not ended has a checkpoint to save")
        }
        _ => format!("job {id} is {state}, and POST saves the checkpoint of a job that runs; PUT sets it before"),
    };
    ApiError::new(ErrorCode::Conflict, message)
}
