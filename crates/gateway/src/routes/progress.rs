//! Progress of running jobs.

use actix_web::{http::StatusCode, web};
use common::json::{Object, ObjectWriter};
use model::job::JobProgress;
use serde::Deserialize;
use serde_json::value::RawValue;
use store::jobs::Attempt;
use store::{events::JobEvent, jobs::LocatedJob};

use super::{
    ApiResult,
    jobs::{job_not_found, parse_job_id},
    ojs_response,
    workers::{is_reportable, parse_fence, stale_attempt},
};
use crate::{body::ReportBody, error::ApiError, services::Services};

#[derive(Deserialize)]
struct ReportProgressRequest<'a> {
    progress: Option<f64>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    /// Stands for `data` with this member alone, as the Open Job Spec's extension has it.
    message: Option<String>,
    worker_id: Option<String>,
    token: Option<String>,
}

/// Records the progress of an attempt. A report also renews the lease.
pub(super) async fn report(services: web::Data<Services>, path: web::Path<String>, body: ReportBody) -> ApiResult {
    let id = parse_job_id(&path)?;
    let request: ReportProgressRequest = body.parse()?;
    let message = request.message.as_deref().map(message_data).transpose()?;
    if message.is_some() && request.data.is_some() {
        return Err(ApiError::invalid("message stands for data with a member message; give one of them"));
    }
    let progress = JobProgress::new(request.progress, request.data.or(message.as_deref()))
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    let fence = parse_fence(request.token, request.worker_id)?;
    let located = services.jobs.locate(id).await?.ok_or_else(|| job_not_found(&path))?;
    let LocatedJob::InStream { job, entry, holder: Some(holder) } = located else { return Err(stale_attempt(id)) };
    let merged = progress.merge(holder.progress.as_deref(), services.jobs.estimated_now());
    if !is_reportable(&holder, &fence)
        || !services.jobs.heartbeat(Attempt { job: &job, entry, fence: &fence }, Some(&merged)).await?
    {
        return Err(stale_attempt(id));
    }
    services.jobs.record_event(JobEvent::progress(&job, &merged));
    let mut answer = ObjectWriter::default();
    answer.text("id", &id.to_string()).text("state", "active").splice(&merged);
    Ok(ojs_response(StatusCode::OK, answer.finish()))
}

/// The message in the data of a report.
#[derive(Deserialize)]
struct ReportedMessage<'a> {
    #[serde(borrow)]
    message: Option<&'a RawValue>,
}

fn message_data(message: &str) -> Result<Box<RawValue>, ApiError> {
    let mut data = ObjectWriter::default();
    data.text("message", message);
    RawValue::from_string(data.finish()).map_err(|error| ApiError::internal(error.to_string()))
}

/// What a job shows of its progress, alone, and the message in its data beside it.
pub(super) async fn show(services: web::Data<Services>, path: web::Path<String>) -> ApiResult {
    let located = services.jobs.locate(parse_job_id(&path)?).await?.ok_or_else(|| job_not_found(&path))?;
    let job = located.to_json();
    let damaged = |error: serde_json::Error| ApiError::internal(error.to_string());
    let members = Object::of_stored(&job).map_err(damaged)?;
    let mut answer = ObjectWriter::default();
    for name in ["id", "state", "progress", "progress_data", "progress_at"] {
        if let Some(value) = members.get(name) {
            answer.raw(name, value.get());
        }
    }
    // Data may be anything that was stored: more members than a request may have, or two of one name
    let data = members.get("progress_data").and_then(|data| serde_json::from_str::<ReportedMessage>(data.get()).ok());
    if let Some(message) = data.and_then(|data| data.message) {
        answer.raw("message", message.get());
    }
    Ok(ojs_response(StatusCode::OK, answer.finish()))
}
