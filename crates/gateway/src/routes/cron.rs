//! Cron entries: register, look up, enable and disable, remove, trigger by hand.
//!
//! Answers have the entry as `cron`, which the suites of the Open Job Spec read; its text says `cron_job`.

use std::cell::Cell;

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use common::{
    json::{Object, ObjectWriter},
    name::{CronName, quoted},
};
use model::{
    access::Scope,
    cron::{CronDefinition, CronEntry, definition},
};
use serde::Deserialize;
use serde_json::json;
use store::cron::RegisterCronError;

use super::{
    ApiResult,
    jobs::{ParsedJob, enqueue_parsed},
    ojs_response, parse_bounded, parse_flag, parse_offset, with_warnings,
};
use crate::{
    auth::Caller,
    body::JsonBody,
    context::RequestTrace,
    error::{ApiError, ErrorCode},
    idempotency::run_idempotent,
    services::Services,
};

/// The most entries on a page, and the default.
const MAX_PAGE_SIZE: usize = 1000;

/// Repeating the request is safe: it changes the entry of that name to what it is already.
pub(super) async fn register(
    caller: Caller,
    request: HttpRequest,
    services: web::Data<Services>,
    body: JsonBody,
) -> ApiResult {
    run_idempotent(&request, &services, &[body.bytes()], async |_| {
        let members: Object = body.parse()?;
        let now = services.jobs.now().await?;
        let definition = CronDefinition::parse(&members, now)?;
        caller.check_name("cron entry", definition.name.as_str())?;
        caller.check_queue(Scope::JobsWrite, &definition.template.new_job(&definition.name, now, now)?.queue)?;
        // Another entry of that name may be for a queue that the key is not for
        if !caller.has_every_queue()
            && let Some(before) = services.jobs.cron().get(&definition.name).await?
            && !caller.has_cron_entry(&before)
        {
            return Err(ApiError::name_not_allowed(format_args!("cron entry {}", definition.name)));
        }
        let registered = services.jobs.cron().register(&definition, now).await?.map_err(register_error)?;
        let status = if registered.is_new { StatusCode::CREATED } else { StatusCode::OK };
        Ok(ojs_response(status, with_warnings(entry_json(&registered.entry), &definition.warnings)))
    })
    .await
}

fn register_error(refused: RegisterCronError) -> ApiError {
    match refused {
        RegisterCronError::TooMany { max_entries } => ApiError::new(
            ErrorCode::TooManyCronEntries,
            format!("there are {max_entries} cron entries, which is cron.max_entries"),
        ),
        RegisterCronError::TooLarge { max_bytes: most } => {
            ApiError::new(ErrorCode::PayloadTooLarge, format!("a cron entry must have at most {most} bytes"))
        }
    }
}

#[derive(Deserialize)]
pub(super) struct ListCronQuery {
    enabled: Option<String>,
    after: Option<String>,
    limit: Option<String>,
    offset: Option<String>,
}

pub(super) async fn list(caller: Caller, services: web::Data<Services>, query: web::Query<ListCronQuery>) -> ApiResult {
    let limit = parse_bounded("limit", query.limit.as_deref(), MAX_PAGE_SIZE, MAX_PAGE_SIZE)?;
    let enabled = parse_flag("enabled", query.enabled.as_deref())?;
    let passed_over = Cell::new(parse_offset(query.offset.as_deref())?);
    let cron = services.jobs.cron();
    let page = cron.page(query.after.as_deref(), limit, |entry| {
        let is_wanted = enabled.is_none_or(|enabled| enabled == entry.enabled) && caller.has_cron_entry(entry);
        is_wanted && passed_over.replace(passed_over.get().saturating_sub(1)) == 0
    });
    let page = page.await?;
    // How many there are in all is for keys that see all
    let total = if caller.is_unlimited() { page.total } else { page.entries.len() };
    let entries: Vec<String> = page.entries.iter().map(CronEntry::to_json).collect();
    let entries = format!("[{}]", entries.join(","));
    let mut out = ObjectWriter::with_capacity(entries.len() + 64);
    out.raw("crons", &entries).number("count", page.entries.len() as u64);
    out.number("total", total as u64);
    if let Some(next) = &page.next {
        out.text("next", next);
    }
    Ok(ojs_response(StatusCode::OK, out.finish()))
}

pub(super) async fn show(services: web::Data<Services>, name: web::Path<String>) -> ApiResult {
    let entry = services.jobs.cron().get(&parse_cron_name(&name)?).await?.ok_or_else(|| cron_not_found(&name))?;
    Ok(entry_response(StatusCode::OK, &entry))
}

pub(super) async fn delete(services: web::Data<Services>, name: web::Path<String>) -> ApiResult {
    let parsed = parse_cron_name(&name)?;
    if !services.jobs.cron().remove(&parsed).await? {
        return Err(cron_not_found(&name));
    }
    let answer = json!({ "deleted": true, "name": parsed, "cron": { "name": parsed } });
    Ok(ojs_response(StatusCode::OK, answer.to_string()))
}

pub(super) async fn update(services: web::Data<Services>, name: web::Path<String>, body: JsonBody) -> ApiResult {
    let members: Object = body.parse()?;
    set_enabled(&services, &name, definition::parse_enabled(&members)?).await
}

pub(super) async fn enable(services: web::Data<Services>, name: web::Path<String>) -> ApiResult {
    set_enabled(&services, &name, true).await
}

pub(super) async fn disable(services: web::Data<Services>, name: web::Path<String>) -> ApiResult {
    set_enabled(&services, &name, false).await
}

async fn set_enabled(services: &Services, name: &str, enabled: bool) -> ApiResult {
    let entry = services
        .jobs
        .cron()
        .set_enabled(&parse_cron_name(name)?, enabled)
        .await?
        .ok_or_else(|| cron_not_found(name))?;
    Ok(entry_response(StatusCode::OK, &entry))
}

pub(super) async fn trigger(request: HttpRequest, services: web::Data<Services>, name: web::Path<String>) -> ApiResult {
    run_idempotent(&request, &services, &[], async |seed| {
        let by_hand = services.jobs.cron().new_manual_job(&parse_cron_name(&name)?).await?;
        let (new, now) = by_hand.ok_or_else(|| cron_not_found(&name))?;
        let read = ParsedJob::with_seed(new, now, seed.map(|seed| (seed, 0)));
        Ok(enqueue_parsed(&services, read, RequestTrace::from_request(&request)).await?.into_response())
    })
    .await
}

#[derive(Deserialize)]
pub(super) struct NextCronRunsQuery {
    count: Option<String>,
}

/// The next runs of the schedule, also of a disabled entry.
pub(super) async fn next_runs(
    services: web::Data<Services>,
    name: web::Path<String>,
    query: web::Query<NextCronRunsQuery>,
) -> ApiResult {
    let count = parse_bounded("count", query.count.as_deref(), 10, 100)?;
    let entry = services.jobs.cron().get(&parse_cron_name(&name)?).await?.ok_or_else(|| cron_not_found(&name))?;
    let runs = entry
        .next_runs(services.jobs.now().await?, count)
        .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
    let answer =
        json!({ "name": entry.name, "timezone": entry.timezone(), "enabled": entry.enabled, "next_runs": runs });
    Ok(ojs_response(StatusCode::OK, answer.to_string()))
}

/// A name in a path. An invalid name is not found: no entry can have it.
pub(crate) fn parse_cron_name(text: &str) -> Result<CronName, ApiError> {
    text.parse().map_err(|_| cron_not_found(text))
}

pub(crate) fn cron_not_found(name: &str) -> ApiError {
    ApiError::not_found(format_args!("cron entry {}", quoted(name)))
}

fn entry_response(status: StatusCode, entry: &CronEntry) -> HttpResponse {
    ojs_response(status, entry_json(entry))
}

/// `{"cron": ...}`.
fn entry_json(entry: &CronEntry) -> String {
    ["{\"cron\":", &entry.to_json(), "}"].concat()
}
