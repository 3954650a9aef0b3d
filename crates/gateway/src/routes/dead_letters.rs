//! Dead letters: list, look up, retry, delete; one, or all that pass a filter. Lists other discarded jobs too.

use std::collections::BTreeMap;

use actix_web::{http::StatusCode, web};
use common::{
    id::JobId,
    json_members::Members,
    name::quoted,
    time::{self, Millis},
};
use model::{access::Scope, job::JobState};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::jobs::{DiscardedCursor, DiscardedFilter, DiscardedList};

use super::{
    ApiResult, job_json,
    jobs::{job_not_found, parse_job_id, state_change_response},
    ojs_response, parse_bounded, parse_offset,
    queues::known_queue,
};
use crate::{
    auth::Caller,
    body::JsonBody,
    error::{ApiError, ErrorCode},
    services::Services,
};

/// The most dead letters that one request retries or deletes.
const MAX_DEAD_LETTERS: usize = 1000;

/// Which dead letters a request is about.
#[derive(Deserialize, Default)]
struct DeadLetterFilterRequest {
    queue: Option<String>,
    #[serde(rename = "type")]
    job_type: Option<String>,
    error_type: Option<String>,
    since: Option<String>,
    until: Option<String>,
}

impl DeadLetterFilterRequest {
    async fn validate(self, caller: &Caller, services: &Services, scope: Scope) -> Result<DiscardedFilter, ApiError> {
        let now = if self.since.is_some() || self.until.is_some() { services.jobs.now().await? } else { 0 };
        let moment = |name: &str, given: Option<String>| -> Result<Option<Millis>, ApiError> {
            let time = given.map(|text| time::parse_time(&text, now)).transpose();
            Ok(time.map_err(|error| ApiError::invalid(format!("{name} {error}")))?.map(|time| time.at))
        };
        let pattern = |name: &str, given: Option<String>| match given {
            Some(text) if text.is_empty() || text.len() > 255 => {
                Err(ApiError::invalid(format!("{name} must have 1 to 255 characters")))
            }
            given => Ok(given),
        };
        let queue = match self.queue {
            Some(name) => {
                caller.check_queue(scope, &name.parse()?)?;
                Some(known_queue(caller, services, &name).await?)
            }
            None => None,
        };
        Ok(DiscardedFilter {
            queue,
            access: (!caller.has_every_queue()).then(|| caller.to_access()),
            job_type: pattern("type", self.job_type)?,
            error_type: pattern("error_type", self.error_type)?,
            since: moment("since", self.since)?,
            until: moment("until", self.until)?,
        })
    }
}

#[derive(Deserialize)]
pub(super) struct ListDiscardedQuery {
    queue: Option<String>,
    #[serde(rename = "type")]
    job_type: Option<String>,
    error_type: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<String>,
    after: Option<String>,
    offset: Option<String>,
}

pub(super) async fn list(
    caller: Caller,
    services: web::Data<Services>,
    query: web::Query<ListDiscardedQuery>,
) -> ApiResult {
    list_page(&caller, &services, (DiscardedList::DeadLetters, Scope::JobsRead), query.into_inner()).await
}

async fn list_page(
    caller: &Caller,
    services: &Services,
    (list, scope): (DiscardedList, Scope),
    query: ListDiscardedQuery,
) -> ApiResult {
    let ListDiscardedQuery { queue, job_type, error_type, since, until, limit, after, offset } = query;
    let limit = parse_bounded("limit", limit.as_deref(), 100, MAX_DEAD_LETTERS)?;
    let passed_over = parse_offset(offset.as_deref())?;
    let after = parse_cursor(after)?;
    let filter = DeadLetterFilterRequest { queue, job_type, error_type, since, until };
    let filter = filter.validate(caller, services, scope).await?;
    let page = services.jobs.list_discarded_from(list, &filter, after.as_ref(), passed_over, limit).await?;
    // An empty page would look like the end of the list
    if passed_over > 0 && page.ended_early() {
        return Err(ApiError::invalid(format!(
            "offset {passed_over} passes over more jobs than one request reads; further on use after, which is the next of \
             an answer"
        )));
    }
    let jobs: Vec<String> = page.jobs.into_iter().map(|(_, json)| json).collect();
    let next = json!(page.next.map(|next| next.to_string()));
    Ok(ojs_response(StatusCode::OK, format!("{{\"jobs\":[{}],\"next\":{next}}}", jobs.join(","))))
}

/// The cursor of the next page.
fn parse_cursor(after: Option<String>) -> Result<Option<DiscardedCursor>, ApiError> {
    let read = |text: String| {
        let refused = |()| ApiError::invalid(format!("after must be the next of an answer, got {}", quoted(&text)));
        text.parse().map_err(refused)
    };
    after.map(read).transpose()
}

pub(super) async fn stats(caller: Caller, services: web::Data<Services>) -> ApiResult {
    let stats = services.jobs.dead_letter_stats(|queue| caller.has_queue(queue)).await?;
    let errors = services.jobs.dead_letter_errors(&stats).await?;
    let by_error_type: Map<String, Value> =
        errors.by_type.into_iter().map(|(error_type, count)| (error_type, count.into())).collect();
    let settings = &services.settings.jobs;
    let by_queue: BTreeMap<String, u64> =
        stats.by_queue.into_iter().map(|(queue, count)| (queue.to_string(), count)).collect();
    let answer = json!({
        "total": by_queue.values().sum::<u64>(),
        "by_queue": by_queue,
        "by_error_type": by_error_type,
        "examined": errors.examined,
        "complete": errors.complete,
        "oldest_at": stats.oldest_at.map(time::format),
        "newest_at": stats.newest_at.map(time::format),
        "retention": {
            "max_age_ms": u64::try_from(settings.dead_letter_ttl.as_millis()).unwrap_or(u64::MAX),
            "max_count_per_queue": settings.dead_letter_max,
        },
    });
    Ok(ojs_response(StatusCode::OK, answer.to_string()))
}

pub(super) async fn show(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    let parsed = parse_job_id(&id)?;
    match services.jobs.find_dead_letter(parsed).await? {
        Some((_, job)) => Ok(ojs_response(StatusCode::OK, job_json(&job))),
        None => Err(no_dead_letter(&services, parsed).await?),
    }
}

/// Why a job is not among the dead letters, for people who look for it there.
pub(super) async fn no_dead_letter(services: &Services, id: JobId) -> Result<ApiError, ApiError> {
    let Some(located) = services.jobs.locate(id).await? else { return Ok(job_not_found(&id.to_string())) };
    let why = match located.state() {
        JobState::Discarded | JobState::Cancelled => {
            "its on_exhaustion did not ask for that (jobs.on_exhaustion sets the default); GET /ojs/v1/admin/jobs?state=discarded \
             lists those that failed, POST .../retry runs it again"
        }
        _ => "only jobs that failed for good are",
    };
    let message = format!("job {id} is {}, and not among the dead letters: {why}", located.state());
    Ok(ApiError::new(ErrorCode::NotFound, message))
}

pub(super) async fn retry(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    state_change_response(&id, services.jobs.redrive(parse_job_id(&id)?).await?)
}

pub(super) async fn delete(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    let parsed = parse_job_id(&id)?;
    if !services.jobs.delete_dead_letter(parsed).await? {
        return Err(no_dead_letter(&services, parsed).await?);
    }
    Ok(ojs_response(StatusCode::OK, json!({ "deleted": true, "id": parsed, "job_id": parsed }).to_string()))
}

/// A request about all dead letters that pass a filter.
#[derive(Deserialize)]
struct BulkDeadLetterRequest {
    #[serde(default)]
    filter: Members<DeadLetterFilterRequest>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    confirm: bool,
    limit: Option<usize>,
    after: Option<String>,
}

/// The dead letters that a request is about, the next cursor if more may follow, and whether to change nothing.
struct MatchedDeadLetters {
    ids: Vec<JobId>,
    next: Option<DiscardedCursor>,
    dry_run: bool,
}

async fn match_dead_letters(
    caller: &Caller,
    services: &Services,
    body: &JsonBody,
) -> Result<MatchedDeadLetters, ApiError> {
    let BulkDeadLetterRequest { filter: Members(filter), dry_run, confirm, limit, after } = body.parse()?;
    if !confirm && !dry_run {
        let message = "this is about all dead letters that pass the filter: confirm must be true, or dry_run";
        return Err(ApiError::new(ErrorCode::ConfirmationRequired, message));
    }
    let limit = limit.unwrap_or(MAX_DEAD_LETTERS);
    if !(1..=MAX_DEAD_LETTERS).contains(&limit) {
        return Err(ApiError::invalid(format!("limit must be an integer from 1 to {MAX_DEAD_LETTERS}")));
    }
    let after = parse_cursor(after)?;
    let filter = filter.validate(caller, services, Scope::AdminWrite).await?;
    let letters = services.jobs.list_discarded(DiscardedList::DeadLetters, &filter, after.as_ref(), limit).await?;
    let ids = letters.jobs.into_iter().map(|(id, _)| id).collect();
    Ok(MatchedDeadLetters { ids, next: letters.next, dry_run })
}

pub(super) async fn retry_many(caller: Caller, services: web::Data<Services>, body: JsonBody) -> ApiResult {
    let meant = match_dead_letters(&caller, &services, &body).await?;
    let retried = if meant.dry_run { 0 } else { services.jobs.redrive_all(&meant.ids).await? };
    Ok(ojs_response(StatusCode::OK, bulk_result_json(&meant, "retried", retried)))
}

pub(super) async fn delete_many(caller: Caller, services: web::Data<Services>, body: JsonBody) -> ApiResult {
    let meant = match_dead_letters(&caller, &services, &body).await?;
    let deleted = if meant.dry_run { 0 } else { services.jobs.delete_dead_letters(&meant.ids).await? };
    Ok(ojs_response(StatusCode::OK, bulk_result_json(&meant, "deleted", deleted)))
}

fn bulk_result_json(meant: &MatchedDeadLetters, what: &str, count: usize) -> String {
    json!({
        "matched": meant.ids.len(), what: count, "dry_run": meant.dry_run, "job_ids": meant.ids,
        "more": meant.next.is_some(), "next": meant.next.as_ref().map(ToString::to_string),
    })
    .to_string()
}
