//! Progress of running jobs.

use actix_web::{http::StatusCode, web};
use common::json::ObjectWriter;
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
    worker_id: Option<String>,
    token: Option<String>,
}

/// Records the progress of an attempt. A report also renews the lease.
pub(super) async fn report(services: web::Data<Services>, path: web::Path<String>, body: ReportBody) -> ApiResult {
    let id = parse_job_id(&path)?;
    let request: ReportProgressRequest = body.parse()?;
    let progress =
        JobProgress::new(request.progress, request.data).map_err(|error| ApiError::invalid(error.to_string()))?;
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
