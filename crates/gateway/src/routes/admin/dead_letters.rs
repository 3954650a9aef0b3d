//! Dead letters in the admin API. They are listed, looked up and retried as other jobs are.

use actix_web::{http::StatusCode, web};
use common::{json_members::Members, time};
use model::access::Scope;
use serde::Deserialize;
use serde_json::json;

use super::{
    ApiResult,
    bulk::{BulkAction, act, check_confirmed, find},
    filter::FilterRequest,
    job_detail::detail_json,
    jobs::parse_cursor,
    ojs_response,
};
use crate::{
    auth::Caller,
    body::JsonBody,
    error::ApiError,
    routes::{dead_letters::no_dead_letter, jobs::parse_job_id},
    services::Services,
};

/// Dead letters that one request deletes.
const MAX_PURGED: usize = 10_000;

pub(in crate::routes) async fn show(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    let parsed = parse_job_id(&id)?;
    match services.jobs.find_dead_letter(parsed).await? {
        Some((_, job)) => Ok(ojs_response(StatusCode::OK, detail_json(&job)?)),
        None => Err(no_dead_letter(&services, parsed).await?),
    }
}

#[derive(Deserialize)]
struct PurgeDeadLettersRequest {
    filter: Option<Members<FilterRequest>>,
    older_than: Option<String>,
    #[serde(default)]
    confirm: bool,
    #[serde(default)]
    dry_run: bool,
    after: Option<String>,
}

/// Deletes the dead letters that match, or all.
pub(in crate::routes) async fn purge(caller: Caller, services: web::Data<Services>, body: JsonBody) -> ApiResult {
    let PurgeDeadLettersRequest { filter, older_than, confirm, dry_run, after } = body.parse()?;
    check_confirmed(confirm, dry_run)?;
    let filter = filter.map(|Members(filter)| filter).unwrap_or_default();
    let mut filter = filter.validate(&caller, &services, Scope::AdminWrite).await?;
    filter.is_dead_letter = true;
    if let Some(text) = older_than {
        let now = services.jobs.now().await?;
        let parsed = time::parse_time(&text, now).map_err(|error| ApiError::invalid(format!("older_than {error}")))?;
        filter.ended_until = Some(filter.ended_until.map_or(parsed.at, |until| until.min(parsed.at)));
    }
    let matched = find(&services, &filter, parse_cursor(after.as_deref())?, MAX_PURGED).await?;
    let purged = if dry_run { 0 } else { act(&services, BulkAction::Delete, &matched.ids).await?.succeeded };
    let answer = json!({
        "purged_count": purged, "matched": matched.ids.len(), "dry_run": dry_run, "more": matched.has_more(),
        "next": matched.next(),
    });
    Ok(ojs_response(StatusCode::OK, answer.to_string()))
}
