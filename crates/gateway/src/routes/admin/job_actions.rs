//! Actions on one job: retry, cancel, delete, reschedule, change.

use actix_web::{http::StatusCode, web};
use common::{
    id::JobId,
    name::Priority,
    time::{self, ParsedTime},
};
use model::job::JobState;
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use store::jobs::{EditRefusal, JobChanges};

use super::{ApiResult, job_detail::detail_json, ojs_response};
use crate::{
    body::JsonBody,
    error::{ApiError, ErrorCode},
    routes::{
        jobs::{job_not_found, parse_job_id, state_change_response},
        parse_flag,
    },
    services::Services,
};

pub(in crate::routes) async fn retry(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    state_change_response(&id, services.jobs.retry_now(parse_job_id(&id)?).await?)
}

pub(in crate::routes) async fn cancel(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    state_change_response(&id, services.jobs.cancel(parse_job_id(&id)?).await?)
}

#[derive(Deserialize)]
pub(in crate::routes) struct DeleteQuery {
    confirm: Option<String>,
}

/// Deletes an ended job.
pub(in crate::routes) async fn delete(
    services: web::Data<Services>,
    id: web::Path<String>,
    query: web::Query<DeleteQuery>,
) -> ApiResult {
    let parsed = parse_job_id(&id)?;
    if parse_flag("confirm", query.confirm.as_deref())? != Some(true) {
        return Err(ApiError::new(ErrorCode::ConfirmationRequired, "this cannot be undone: confirm must be true"));
    }
    services.jobs.delete_ended(parsed).await?.map_err(|refused| edit_refusal(parsed, refused, "deleted"))?;
    Ok(ojs_response(StatusCode::OK, json!({ "deleted": true, "id": parsed }).to_string()))
}

/// Why a job is not changed or deleted.
pub(crate) fn edit_refusal(id: JobId, refused: EditRefusal, what: &str) -> ApiError {
    match refused {
        EditRefusal::NotFound => job_not_found(&id.to_string()),
        EditRefusal::State(state) => {
            let hint = match state {
                JobState::Active => ": cancel it first",
                JobState::Pending => ": activate it first",
                _ => "",
            };
            let message = format!("job {id} is {state} and cannot be {what}{hint}");
            ApiError::new(ErrorCode::Conflict, message)
        }
        EditRefusal::Unique => {
            let message = "the job is unique by these arguments: cancel it and enqueue another";
            ApiError::new(ErrorCode::Conflict, message)
        }
    }
}

#[derive(Deserialize)]
struct ChangeJobRequest<'a> {
    #[serde(borrow)]
    args: Option<&'a RawValue>,
    priority: Option<i64>,
    scheduled_at: Option<String>,
}

#[derive(Deserialize)]
struct RescheduleRequest {
    scheduled_at: String,
}

/// Changes the arguments, the priority or the time of a job that waits; of a discarded or cancelled one the first two.
pub(in crate::routes) async fn change(
    services: web::Data<Services>,
    id: web::Path<String>,
    body: JsonBody,
) -> ApiResult {
    let request: ChangeJobRequest<'_> = body.parse()?;
    let args = request.args.map(|args| args.get().trim().to_owned());
    if args.as_ref().is_some_and(|args| !args.starts_with('[')) {
        return Err(ApiError::invalid("args must be an array"));
    }
    let priority = request.priority.map(Priority::try_from).transpose();
    let priority = priority.map_err(|error| ApiError::invalid(error.to_string()))?;
    let scheduled_at = match request.scheduled_at {
        Some(text) => Some(parse_start(&services, &text).await?),
        None => None,
    };
    if args.is_none() && priority.is_none() && scheduled_at.is_none() {
        return Err(ApiError::invalid("nothing to change: give args, priority or scheduled_at"));
    }
    change_response(&services, &id, &JobChanges { args, priority, scheduled_at }).await
}

/// Changes when a job is due.
pub(in crate::routes) async fn reschedule(
    services: web::Data<Services>,
    id: web::Path<String>,
    body: JsonBody,
) -> ApiResult {
    let request: RescheduleRequest = body.parse()?;
    let scheduled_at = Some(parse_start(&services, &request.scheduled_at).await?);
    change_response(&services, &id, &JobChanges { scheduled_at, ..JobChanges::default() }).await
}

async fn parse_start(services: &Services, text: &str) -> Result<ParsedTime, ApiError> {
    let now = services.jobs.now().await?;
    time::parse_time(text, now).map_err(|error| ApiError::invalid(format!("scheduled_at {error}")))
}

async fn change_response(services: &Services, id: &str, changes: &JobChanges) -> ApiResult {
    let parsed = parse_job_id(id)?;
    let job = services.jobs.edit(parsed, changes).await?;
    let job = job.map_err(|refused| edit_refusal(parsed, refused, "changed so"))?;
    Ok(ojs_response(StatusCode::OK, detail_json(&job)?))
}
