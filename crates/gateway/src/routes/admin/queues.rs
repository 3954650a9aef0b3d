//! Queues in the admin API: list, look up, pause, resume, purge.

use actix_web::{http::StatusCode, web};
use common::{
    name::QueueName,
    time::{self, Millis},
};
use model::{
    access::Scope,
    job::{JobFilter, JobState},
    statistics::Tally,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{
    jobs::{PurgeRequest, QueueControl, QueueStats},
    statistics::Statistics,
};

use super::{
    ApiResult,
    bulk::{BulkAction, act, find},
    filter::parse_states,
    ojs_response,
    page::ListPage,
};
use crate::{
    auth::Caller,
    body::JsonBody,
    error::{ApiError, ErrorCode},
    routes::{
        queues::known_queue,
        statistics::{rates_since, throughput_json},
    },
    services::Services,
};

/// Jobs that one request removes. More are left to the next one.
const MAX_PURGED: usize = 10_000;

#[derive(Deserialize)]
pub(in crate::routes) struct QueuePageQuery {
    page: Option<String>,
    per_page: Option<String>,
}

/// The queues in the order of their names.
pub(in crate::routes) async fn list(
    caller: Caller,
    services: web::Data<Services>,
    query: web::Query<QueuePageQuery>,
) -> ApiResult {
    let page = ListPage::parse(query.page.as_deref(), query.per_page.as_deref())?;
    let mut names = services.jobs.list_queues().await?;
    names.retain(|name| caller.has_queue(name));
    names.sort_unstable();
    let total = names.len() as u64;
    let names = page.of(names);
    let overviews = services.jobs.queue_overviews(&names).await?;
    let recent = recent_json(&services, &names).await?;
    let items: Vec<Value> = names
        .iter()
        .zip(overviews)
        .zip(recent)
        .map(|((name, (stats, control)), recent)| summary_json(name, &stats, &control, recent))
        .collect();
    let answer = json!({ "items": items, "pagination": page.to_json(total) });
    Ok(ojs_response(StatusCode::OK, answer.to_string()))
}

/// How many jobs of each state a queue has; of ended ones, in total.
pub(super) fn counts_json(stats: &QueueStats) -> Map<String, Value> {
    let counts = json!({
        "available": stats.available, "active": stats.active, "scheduled": stats.delayed - stats.retryable,
        "retryable": stats.retryable, "pending": stats.pending, "completed": stats.completed,
        "discarded": stats.discarded, "cancelled": stats.cancelled,
    });
    match counts {
        Value::Object(counts) => counts,
        _ => Map::new(),
    }
}

/// What happened lately in each queue: how many jobs in a minute, and how long their attempts took.
pub(super) async fn recent_json(services: &Services, queues: &[QueueName]) -> Result<Vec<(Value, Value)>, ApiError> {
    let now = services.redis.estimated_now();
    let recent = Statistics::new(&services.jobs).of_each(queues, rates_since(now)).await?;
    let shown = |tally: &Tally| {
        let percentile = |percent| tally.run.percentile(percent);
        let latency = json!({ "p50": percentile(50), "p95": percentile(95), "p99": percentile(99) });
        (throughput_json(tally, now), latency)
    };
    Ok(recent.iter().map(shown).collect())
}

pub(super) fn summary_json(
    name: &QueueName,
    stats: &QueueStats,
    control: &QueueControl,
    (throughput, latency): (Value, Value),
) -> Value {
    let state = match (control.is_paused, control.is_closed) {
        (true, _) => "paused",
        (false, true) => "draining",
        (false, false) => "active",
    };
    json!({
        "name": name, "state": state, "counts": counts_json(stats), "paused": control.is_paused,
        "closed": control.is_closed, "dead_letters": stats.dead, "retried": stats.retried,
        "throughput": throughput, "latency_ms": latency,
    })
}

/// The queue in the path, which is created if the conformance suites run: they pause queues before they use them.
async fn queue_of(caller: &Caller, services: &Services, path: &str) -> Result<QueueName, ApiError> {
    if !services.settings.gateway.test_directives {
        return known_queue(caller, services, path).await;
    }
    let queue: QueueName = path.parse()?;
    services.jobs.register_queue(&queue).await??;
    Ok(queue)
}

pub(in crate::routes) async fn pause(
    caller: Caller,
    services: web::Data<Services>,
    queue: web::Path<String>,
) -> ApiResult {
    let queue = queue_of(&caller, &services, &queue).await?;
    services.jobs.set_queue_paused(&queue, true).await??;
    let paused_at = time::format(services.jobs.now().await?);
    let answer = json!({ "name": queue, "paused": true, "paused_at": paused_at });
    Ok(ojs_response(StatusCode::OK, answer.to_string()))
}

/// Resumes a queue, and lets it take new jobs again.
pub(in crate::routes) async fn resume(
    caller: Caller,
    services: web::Data<Services>,
    queue: web::Path<String>,
) -> ApiResult {
    let queue = queue_of(&caller, &services, &queue).await?;
    services.jobs.set_queue_paused(&queue, false).await??;
    services.jobs.set_queue_closed(&queue, false).await??;
    let control = services.jobs.queue_control(&queue).await?;
    Ok(ojs_response(StatusCode::OK, json!({ "name": queue, "paused": control.is_paused }).to_string()))
}

#[derive(Deserialize)]
struct PurgeRequestBody {
    states: Vec<String>,
    older_than: Option<String>,
    #[serde(default)]
    confirm: bool,
    #[serde(default)]
    dry_run: bool,
}

/// Removes jobs: ended ones are deleted, waiting ones cancelled.
pub(in crate::routes) async fn purge(
    caller: Caller,
    services: web::Data<Services>,
    queue: web::Path<String>,
    body: JsonBody,
) -> ApiResult {
    let PurgeRequestBody { states: names, older_than, confirm, dry_run } = body.parse()?;
    if !confirm && !dry_run {
        return Err(ApiError::new(ErrorCode::ConfirmationRequired, "this cannot be undone: confirm must be true"));
    }
    if names.is_empty() {
        return Err(ApiError::invalid("states must name at least one state"));
    }
    let states = parse_states(&names.join(","))?;
    if states.contains(&JobState::Active) {
        return Err(ApiError::invalid(
            "states must not have active: cancel running jobs by POST /ojs/v1/admin/jobs/bulk/cancel",
        ));
    }
    let queue = known_queue(&caller, &services, &queue).await?;
    caller.check_queue(Scope::AdminWrite, &queue)?;
    let older_than = match older_than {
        Some(text) => {
            let now = services.jobs.now().await?;
            Some(time::parse_time(&text, now).map_err(|error| ApiError::invalid(format!("older_than {error}")))?.at)
        }
        None => None,
    };
    let (count, has_more) = remove(&services, queue, &states, older_than, dry_run).await?;
    let answer = json!({ "purged_count": if dry_run { 0 } else { count }, "matched": count, "states": names,
        "more": has_more, "dry_run": dry_run });
    Ok(ojs_response(StatusCode::OK, answer.to_string()))
}

/// Removes jobs of a queue; how many, and whether there may be more.
async fn remove(
    services: &Services,
    queue: QueueName,
    states: &[JobState],
    older_than: Option<Millis>,
    dry_run: bool,
) -> Result<(usize, bool), ApiError> {
    let (over, waiting): (Vec<JobState>, Vec<JobState>) = states.iter().partition(|state| state.is_terminal());
    let (mut count, mut has_more) = (0, false);
    if !over.is_empty() {
        let filter =
            JobFilter { queue: Some(queue.clone()), states: over, ended_until: older_than, ..JobFilter::default() };
        let matched = find(services, &filter, None, MAX_PURGED).await?;
        count +=
            if dry_run { matched.ids.len() } else { act(services, BulkAction::Delete, &matched.ids).await?.succeeded };
        has_more |= matched.has_more();
    }
    if waiting.is_empty() {
        return Ok((count, has_more));
    }
    if older_than.is_none() && !dry_run {
        let request = PurgeRequest { states: waiting, limit: MAX_PURGED, after: None };
        let purged = services.jobs.purge(&queue, &request).await?;
        return Ok((count + purged.count, has_more || purged.has_more));
    }
    let filter = JobFilter { queue: Some(queue), states: waiting, created_until: older_than, ..JobFilter::default() };
    let matched = find(services, &filter, None, MAX_PURGED).await?;
    count += if dry_run { matched.ids.len() } else { act(services, BulkAction::Cancel, &matched.ids).await?.succeeded };
    Ok((count, has_more || matched.has_more()))
}
