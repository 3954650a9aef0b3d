//! Records that jobs succeeded.

use actix_web::{http::StatusCode, web};
use common::time;
use model::job::JobTransition;
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use store::jobs::{Attempt, AttemptMetrics, JobResult, Settled};

use super::{find_active_attempt, parse_body_job_id, parse_fence, settle, stale_attempt};
use crate::{
    auth::Caller,
    body::ReportBody,
    error::{ApiError, ErrorCode},
    routes::{ApiResult, ojs_response},
    services::Services,
};

#[derive(Deserialize)]
struct AckBatchRequest<'a> {
    #[serde(borrow)]
    acks: Vec<&'a RawValue>,
    worker_id: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct AckRequest<'a> {
    job_id: String,
    worker_id: Option<String>,
    token: Option<String>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
}

/// One job, or several as `{"acks": [...]}`.
pub(in crate::routes) async fn ack(caller: Caller, services: web::Data<Services>, body: ReportBody) -> ApiResult {
    if !settle::is_batch(&body, "acks")? {
        return Ok(ojs_response(StatusCode::OK, ack_job(&caller, &services, body.parse()?).await?));
    }
    let AckBatchRequest { acks: items, worker_id } = body.parse()?;
    settle::check_item_count("acks", &items)?;
    let worker = worker_id.as_deref();
    super::parse_worker_id(worker_id.clone())?;
    let results =
        settle::settle_each(&items, async |raw| ack_job(&caller, &services, parse_ack(raw, worker)?).await).await;
    Ok(ojs_response(StatusCode::OK, format!("{{\"results\":{results}}}")))
}

/// One of several. Its worker is that of the request, unless it names another.
pub(super) fn parse_ack<'a>(raw: &'a RawValue, worker: Option<&str>) -> Result<AckRequest<'a>, ApiError> {
    let mut ack: AckRequest = settle::parse_item(raw)?;
    ack.worker_id = ack.worker_id.or_else(|| worker.map(ToOwned::to_owned));
    Ok(ack)
}

/// Records that a job succeeded. Returns the JSON of the answer.
pub(super) async fn ack_job(caller: &Caller, services: &Services, request: AckRequest<'_>) -> Result<String, ApiError> {
    let fence = parse_fence(request.token, request.worker_id)?;
    let id = parse_body_job_id(&request.job_id)?;
    let result = check_result(services, request.result)?;
    let claimed = find_active_attempt(caller, services, id, JobTransition::Succeed, &fence).await?;
    let mut span = settle::settle_span(&claimed);
    let now = services.jobs.estimated_now();
    let ended = services.jobs.succeeded(&claimed, result.map_or(JobResult::None, JobResult::Json), now);
    match services.jobs.finish(Attempt::of(&claimed, &fence), &ended, false).await? {
        Settled::Done => {}
        Settled::AlreadyDone | Settled::Stale => return Err(stale_attempt(id)),
    }
    span.set("galley.outcome", "completed");
    services.jobs.report_completed(&claimed, now);
    let mut metrics = AttemptMetrics::new(&claimed.job.queue, "completed");
    metrics.count(&claimed, now);
    metrics.add_result_bytes(ended.size());
    let answer = json!({
        "acknowledged": true, "id": id, "job_id": id, "state": "completed", "completed_at": time::format(now),
    });
    Ok(answer.to_string())
}

fn check_result<'a>(services: &Services, given: Option<&'a RawValue>) -> Result<Option<&'a str>, ApiError> {
    let limit = services.settings.jobs.result_limit_bytes;
    match given.map(RawValue::get).filter(|text| *text != "null") {
        Some(text) if text.len() > limit => {
            Err(ApiError::new(ErrorCode::PayloadTooLarge, format!("result must have at most {limit} bytes")))
        }
        result => Ok(result),
    }
}
