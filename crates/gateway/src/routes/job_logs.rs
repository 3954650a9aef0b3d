//! The lines that a job's handlers logged: writing by programs that fetched it, and reading.

use actix_web::{http::StatusCode, web};
use common::json::ObjectWriter;
use model::job::JobLogLine;
use serde::Deserialize;
use serde_json::value::RawValue;
use store::jobs::{Attempt, LocatedJob, LogPosition};

use super::{
    ApiResult,
    jobs::{job_not_found, parse_job_id},
    list_answer::list_answer,
    ojs_response, parse_bounded,
    workers::{has_job, is_reportable, parse_body_job_id, parse_fence, stale_attempt},
};
use crate::{auth::Caller, body::ReportBody, error::ApiError, services::Services};

/// Lines in one request.
const MAX_LINES: usize = 1000;
/// The default number of lines on a page, and the most.
const DEFAULT_PAGE_SIZE: usize = 100;
const MAX_PAGE_SIZE: usize = 1000;

#[derive(Deserialize)]
struct WriteLogRequest<'a> {
    job_id: String,
    worker_id: Option<String>,
    token: Option<String>,
    #[serde(borrow)]
    lines: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct ReadLogQuery {
    after: Option<String>,
    limit: Option<String>,
}

/// Adds lines to the log of a job. They also renew the lease.
pub(super) async fn write(caller: Caller, services: web::Data<Services>, body: ReportBody) -> ApiResult {
    let request: WriteLogRequest = body.parse()?;
    if request.lines.is_empty() || request.lines.len() > MAX_LINES {
        return Err(ApiError::invalid(format!("lines must have 1 to {MAX_LINES} items, got {}", request.lines.len())));
    }
    let now = services.jobs.estimated_now();
    let lines: Vec<JobLogLine> = request
        .lines
        .iter()
        .map(|raw| JobLogLine::parse(raw, now).map_err(|error| ApiError::invalid(error.to_string())))
        .collect::<Result<_, _>>()?;
    let fence = parse_fence(request.token, request.worker_id)?;
    let id = parse_body_job_id(&request.job_id)?;
    let located = services.jobs.locate(id).await?.filter(|located| has_job(&caller, located));
    let located = located.ok_or_else(|| job_not_found(&request.job_id))?;
    let LocatedJob::InStream { job, entry, holder: Some(holder) } = located else { return Err(stale_attempt(id)) };
    let attempt = Attempt { job: &job, entry, fence: &fence };
    let number = job.history.current_attempt();
    if !is_reportable(&holder, &fence) || !services.jobs.write_log(attempt, number, &lines).await? {
        return Err(stale_attempt(id));
    }
    let mut answer = ObjectWriter::default();
    answer.text("id", &id.to_string()).text("state", "active").number("lines", lines.len() as u64);
    Ok(ojs_response(StatusCode::OK, answer.finish()))
}

/// The lines of a job, the oldest first. With `after` those that followed.
pub(super) async fn read(
    services: web::Data<Services>,
    path: web::Path<String>,
    query: web::Query<ReadLogQuery>,
) -> ApiResult {
    let id = parse_job_id(&path)?;
    let limit = parse_bounded("limit", query.limit.as_deref(), DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)?;
    let after: Option<LogPosition> = query.after.as_deref().map(str::parse).transpose()?;
    let (_, queue) = services.jobs.locate_with_queue(id).await?.ok_or_else(|| job_not_found(&path))?;
    let page = services.jobs.read_log(&queue, id, after, limit).await?;
    let items: Vec<String> = page
        .lines
        .iter()
        .map(|(place, line)| format!("{{\"id\":\"{place}\",{}", line.strip_prefix('{').unwrap_or("}")))
        .collect();
    let next = page.lines.last().filter(|_| page.lines.len() == limit).map(|(place, _)| place.as_str());
    let mut answer = list_answer(&items, next);
    answer.number("dropped", page.dropped);
    Ok(ojs_response(StatusCode::OK, answer.finish()))
}
