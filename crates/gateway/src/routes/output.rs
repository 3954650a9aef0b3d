//! The output of a job: writing by the program that runs it, and following.

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use common::json::ObjectWriter;
use serde::Deserialize;
use serde_json::value::RawValue;
use store::jobs::{Attempt, LocatedJob, MAX_CHUNK_BYTES, OutputPosition};

use super::{
    ApiResult,
    jobs::{job_not_found, parse_job_id},
    ojs_response,
    workers::{is_reportable, parse_fence, stale_attempt},
};
use crate::{
    auth::StreamSession,
    body::ReportBody,
    error::{ApiError, ErrorCode},
    last_event_id::last_event_id,
    output_source::{END, OutputSource},
    services::Services,
    sse,
};

/// Chunks in one request.
const MAX_CHUNKS: usize = 1000;
/// Beyond it numbers in JSON are not exact.
const MAX_FIRST: u64 = (1 << 53) - 1;

#[derive(Deserialize)]
struct WriteOutputRequest<'a> {
    #[serde(borrow)]
    chunks: Vec<&'a RawValue>,
    first: Option<u64>,
    worker_id: Option<String>,
    token: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct FollowOutputQuery {
    after: Option<String>,
}

/// Adds chunks to the output of a job. They also renew the lease.
pub(super) async fn write(services: web::Data<Services>, path: web::Path<String>, body: ReportBody) -> ApiResult {
    let id = parse_job_id(&path)?;
    let request: WriteOutputRequest = body.parse()?;
    if request.chunks.is_empty() || request.chunks.len() > MAX_CHUNKS {
        let count = request.chunks.len();
        return Err(ApiError::invalid(format!("chunks must have 1 to {MAX_CHUNKS} items, got {count}")));
    }
    let chunks: Vec<&str> = request.chunks.iter().map(|chunk| chunk.get()).collect();
    if let Some(chunk) = chunks.iter().find(|chunk| chunk.len() > MAX_CHUNK_BYTES) {
        let message = format!("a chunk must have at most {MAX_CHUNK_BYTES} bytes, got {}", chunk.len());
        return Err(ApiError::new(ErrorCode::PayloadTooLarge, message));
    }
    if request.first.is_some_and(|first| !(1..=MAX_FIRST).contains(&first)) {
        return Err(ApiError::invalid(format!("first must be an integer from 1 to {MAX_FIRST}")));
    }
    let fence = parse_fence(request.token, request.worker_id)?;
    let located = services.jobs.locate(id).await?.ok_or_else(|| job_not_found(&path))?;
    let LocatedJob::InStream { job, entry, holder: Some(holder) } = located else { return Err(stale_attempt(id)) };
    if !is_reportable(&holder, &fence) {
        return Err(stale_attempt(id));
    }
    let attempt = Attempt { job: &job, entry, fence: &fence };
    let Some(count) = services.jobs.write_output(attempt, request.first, &chunks).await? else {
        return Err(stale_attempt(id));
    };
    let mut answer = ObjectWriter::default();
    answer.text("id", &id.to_string()).text("state", "active").number("chunks", count);
    Ok(ojs_response(StatusCode::OK, answer.finish()))
}

/// Follows the output of a job from its begin, or behind the last chunk that the client saw, until the job ends.
pub(super) async fn follow(
    http: HttpRequest,
    services: web::Data<Services>,
    path: web::Path<String>,
    query: web::Query<FollowOutputQuery>,
) -> ApiResult {
    let id = parse_job_id(&path)?;
    let given = last_event_id(&http).or_else(|| query.after.clone());
    if given.as_deref() == Some(END) {
        // It stops a browser from reconnecting
        return Ok(HttpResponse::NoContent().finish());
    }
    let after = given.as_deref().map_or(Ok(OutputPosition::START), str::parse)?;
    let (_, queue) = services.jobs.locate_with_queue(id).await?.ok_or_else(|| job_not_found(&path))?;
    let session = StreamSession::open(&http)?;
    let waiter = services.job_waiters.follow_output(id, queue)?;
    let settings = &services.settings.gateway;
    let stop = (services.stopping.clone(), settings.shutdown_grace);
    let source = OutputSource::new(services.jobs.clone(), waiter, after, stop);
    Ok(sse::stream_response(sse::AwaitedSource::new(source), session, settings.event_keep_alive))
}
