//! Queues: statistics, limits, pause and drain, purge, delete.

use std::time::Duration;

use actix_web::{http::StatusCode, web};
use common::{json::Object, known_names::nearest, name::QueueName, time};
use model::{
    job::{DEFAULT_QUEUE, JobState, limit},
    subscription::subscription_of_queue,
};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use store::jobs::{PurgeRequest, QueueControl, QueueStats, RunTimeLimits};

use super::{ApiResult, MAX_COMPARED_NAMES, ojs_response, parse_bounded, parse_flag};
use crate::{
    auth::Caller,
    body::JsonBody,
    error::{ApiError, ErrorCode},
    services::Services,
};

/// The default number of queues in one answer.
const DEFAULT_PAGE_SIZE: usize = 100;
/// The default number of jobs that one purge cancels.
const DEFAULT_PURGE_JOBS: usize = 1000;
const MAX_PURGE_JOBS: usize = 10_000;

#[derive(Deserialize)]
pub(super) struct ListQueuesQuery {
    after: Option<String>,
    limit: Option<String>,
}

/// The queues in the order of their names.
pub(super) async fn list(
    caller: Caller,
    services: web::Data<Services>,
    page: web::Query<ListQueuesQuery>,
) -> ApiResult {
    let limit = parse_bounded("limit", page.limit.as_deref(), DEFAULT_PAGE_SIZE, 1000)?;
    let mut names = services.jobs.list_queues().await?;
    names.sort_unstable();
    names.retain(|name| caller.has_queue(name) && page.after.as_deref().is_none_or(|after| name.as_str() > after));
    let more = names.len() > limit;
    let mut queues = Vec::new();
    for name in names.into_iter().take(limit) {
        let (stats, control) = (services.jobs.queue_stats(&name).await?, services.jobs.queue_control(&name).await?);
        queues.push(queue_json(&name, &stats, &control));
    }
    Ok(ojs_response(StatusCode::OK, json!({ "queues": queues, "more": more }).to_string()))
}

#[derive(Deserialize)]
pub(super) struct QueueQuery {
    create: Option<String>,
}

impl QueueQuery {
    /// The queue in a path. One that does not exist is created if the client asks for it: a misspelt name must not look
    /// like an empty queue. The conformance suites pause queues before they use them.
    async fn queue(&self, caller: &Caller, services: &Services, path: &str) -> Result<QueueName, ApiError> {
        let create = parse_flag("create", self.create.as_deref())?;
        if !create.unwrap_or(services.settings.gateway.test_directives) {
            return known_queue(caller, services, path).await;
        }
        let queue: QueueName = path.parse()?;
        services.jobs.register_queue(&queue).await??;
        Ok(queue)
    }
}

/// A queue that exists.
pub(crate) async fn known_queue(caller: &Caller, services: &Services, name: &str) -> Result<QueueName, ApiError> {
    let queue: QueueName = name.parse()?;
    if services.jobs.has_queue(&queue).await? || is_of_subscription(services, &queue).await? {
        return Ok(queue);
    }
    let names = services.jobs.list_queues().await?;
    let names = names.iter().filter(|name| caller.has_queue(name));
    let known: Vec<&str> = names.map(QueueName::as_str).take(MAX_COMPARED_NAMES).collect();
    let hint = "its first job creates it, and so does create=true where that is a parameter";
    Err(ApiError::unknown_name("queue", queue.as_str(), &known, hint))
}

/// What to say about those of these queues that do not exist. They are no error where a program may come before the first
/// job; a misspelt name should be noticed all the same.
pub(super) async fn unknown_queue_warnings(caller: &Caller, services: &Services, queues: &[QueueName]) -> Vec<String> {
    // Without Redis there is nothing to say
    let Ok(mut unknown) = services.jobs.unknown_queues(queues).await else { return Vec::new() };
    unknown.retain(|queue| queue.as_str() != DEFAULT_QUEUE && subscription_of_queue(queue).is_none());
    if unknown.is_empty() {
        return Vec::new();
    }
    let names = services.jobs.list_some_queues(MAX_COMPARED_NAMES).await.unwrap_or_default();
    let known: Vec<&str> = names.iter().filter(|name| caller.has_queue(name)).map(QueueName::as_str).collect();
    let warning = |queue: &QueueName| {
        let meant = nearest(queue.as_str(), &known).map(|meant| format!(", did you mean {meant:?}?"));
        format!("queue {:?} does not exist before its first job{}", queue.as_str(), meant.unwrap_or_default())
    };
    unknown.into_iter().map(warning).collect()
}

/// Whether a queue is that of a subscription, which has no job before the first message that fails.
async fn is_of_subscription(services: &Services, queue: &QueueName) -> Result<bool, ApiError> {
    let Some(name) = subscription_of_queue(queue) else { return Ok(false) };
    Ok(services.subscriptions.get(&name).await?.is_some())
}

/// A queue, its counters, its controls and its limits.
pub(super) async fn stats(
    caller: Caller,
    services: web::Data<Services>,
    queue: web::Path<String>,
    query: web::Query<QueueQuery>,
) -> ApiResult {
    let queue = query.queue(&caller, &services, &queue).await?;
    queue_response(&services, &queue).await
}

async fn queue_response(services: &Services, queue: &QueueName) -> ApiResult {
    let (stats, control) = (services.jobs.queue_stats(queue).await?, services.jobs.queue_control(queue).await?);
    Ok(ojs_response(StatusCode::OK, json!({ "queue": queue_json(queue, &stats, &control) }).to_string()))
}

fn queue_json(queue: &QueueName, stats: &QueueStats, control: &QueueControl) -> Value {
    json!({
        "name": queue, "paused": control.is_paused, "closed": control.is_closed,
        "available": stats.available, "active": stats.active, "waiting": stats.delayed, "pending": stats.pending,
        "dead": stats.dead, "completed": stats.completed, "discarded": stats.discarded, "cancelled": stats.cancelled,
        "retried": stats.retried,
        "limits": limits_json(control), "partitions": control.partitions.count,
    })
}

/// The limits of a queue. What is shown can be sent back.
fn limits_json(control: &QueueControl) -> Value {
    let rate = control.rate.map(|rate| {
        let period = time::format_duration(Duration::from_millis(rate.period_ms));
        json!({
            "limit": rate.limit, "period": period, "period_ms": rate.period_ms,
            "burst": rate.burst, "strict": rate.is_strict,
        })
    });
    let aging = control.priority_aging.map(time::format_duration);
    json!({
        "max_depth": control.max_depth, "concurrency": control.concurrency, "rate": rate, "priority_aging": aging,
    })
}

pub(super) async fn pause(
    caller: Caller,
    services: web::Data<Services>,
    queue: web::Path<String>,
    query: web::Query<QueueQuery>,
) -> ApiResult {
    let queue = query.queue(&caller, &services, &queue).await?;
    services.jobs.set_queue_paused(&queue, true).await??;
    queue_response(&services, &queue).await
}

pub(super) async fn resume(
    caller: Caller,
    services: web::Data<Services>,
    queue: web::Path<String>,
    query: web::Query<QueueQuery>,
) -> ApiResult {
    let queue = query.queue(&caller, &services, &queue).await?;
    services.jobs.set_queue_paused(&queue, false).await??;
    services.jobs.set_queue_closed(&queue, false).await??;
    queue_response(&services, &queue).await
}

/// Closes the queue to new jobs; workers finish the others. `resume` ends it.
pub(super) async fn drain(
    caller: Caller,
    services: web::Data<Services>,
    queue: web::Path<String>,
    query: web::Query<QueueQuery>,
) -> ApiResult {
    let queue = query.queue(&caller, &services, &queue).await?;
    services.jobs.set_queue_closed(&queue, true).await??;
    queue_response(&services, &queue).await
}

/// Sets the limits of a queue. Limits that are left out get the values of the settings.
pub(super) async fn set_limits(
    caller: Caller,
    services: web::Data<Services>,
    queue: web::Path<String>,
    query: web::Query<QueueQuery>,
    body: JsonBody,
) -> ApiResult {
    let limits: Object = body.parse()?;
    limits.check_names(&["concurrency", "rate", "priority_aging", "max_depth"]).map_err(ApiError::invalid)?;
    let concurrency = limits.get("concurrency").map(|raw| limit::parse_concurrency(raw, "concurrency")).transpose();
    let rate = limits.get("rate").map(|raw: &RawValue| limit::parse_rate(raw, "rate")).transpose();
    let aging = limits.get("priority_aging").map(limit::parse_priority_aging).transpose();
    let run_time = RunTimeLimits {
        concurrency: concurrency.map_err(ApiError::invalid)?,
        rate: rate.map_err(ApiError::invalid)?,
        priority_aging: aging.map_err(ApiError::invalid)?,
    };
    let queue = query.queue(&caller, &services, &queue).await?;
    if let Some(wanted) = limits.get("max_depth") {
        let set = services.jobs.queue_control(&queue).await?.max_depth;
        if wanted.get().parse().ok() != set || set.is_none() {
            let set = set.map_or("not set".to_owned(), |depth| depth.to_string());
            return Err(ApiError::invalid(format!(
                "max_depth comes from the settings of the queue and is {set}: leave it out or send it as it is shown"
            )));
        }
    }
    services.jobs.set_queue_limits(&queue, run_time).await??;
    queue_response(&services, &queue).await
}

#[derive(Deserialize)]
struct PurgeQueueRequest {
    confirm: Option<String>,
    states: Option<Vec<String>>,
    limit: Option<usize>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
struct DeleteQueueRequest {
    confirm: Option<String>,
}

/// The queue in the path, if the body names it too.
fn confirmed_queue(path: &str, confirm: Option<&str>) -> Result<QueueName, ApiError> {
    let queue: QueueName = path.parse()?;
    if confirm != Some(queue.as_str()) {
        let message = format!("this cannot be undone: confirm must be {:?}", queue.as_str());
        return Err(ApiError::new(ErrorCode::ConfirmationRequired, message));
    }
    Ok(queue)
}

/// Cancels the jobs that wait in a queue.
pub(super) async fn purge(
    caller: Caller,
    services: web::Data<Services>,
    queue: web::Path<String>,
    body: JsonBody,
) -> ApiResult {
    let request: PurgeQueueRequest = body.parse()?;
    let queue = known_queue(&caller, &services, confirmed_queue(&queue, request.confirm.as_deref())?.as_str()).await?;
    let allowed = [JobState::Available, JobState::Scheduled, JobState::Retryable, JobState::Pending];
    let names = request.states.unwrap_or_else(|| allowed.iter().map(ToString::to_string).collect());
    let states: Option<Vec<JobState>> =
        names.iter().map(|name| JobState::from_name(name).filter(|state| allowed.contains(state))).collect();
    let states = states.filter(|states| !states.is_empty()).ok_or_else(|| {
        ApiError::invalid("states must be a non-empty array of available, scheduled, retryable and pending")
    })?;
    let limit = request.limit.unwrap_or(DEFAULT_PURGE_JOBS);
    if !(1..=MAX_PURGE_JOBS).contains(&limit) {
        return Err(ApiError::invalid(format!("limit must be an integer from 1 to {MAX_PURGE_JOBS}")));
    }
    let after = request.cursor.as_deref().map(str::parse).transpose();
    let after = after.map_err(|()| ApiError::invalid("cursor must be the next of an earlier answer"))?;
    let purged = services.jobs.purge(&queue, &PurgeRequest { states, limit, after }).await?;
    let mut answer = json!({ "queue": queue, "purged": purged.count, "more": purged.has_more });
    if let Some(next) = purged.next {
        answer["next"] = next.to_string().into();
    }
    Ok(ojs_response(StatusCode::OK, answer.to_string()))
}

/// Deletes a queue that holds no jobs and has no partitions.
pub(crate) async fn delete_empty(services: &Services, queue: &QueueName) -> Result<(), ApiError> {
    if services.jobs.delete_queue(queue).await? {
        return Ok(());
    }
    if services.jobs.read_partition_counts(queue).await?.count > 1 {
        let message = format!("queue {queue} has partitions, whose number must stay known: purge it instead");
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    Err(ApiError::new(ErrorCode::QueueNotEmpty, format!("queue {queue} holds jobs or dead letters")))
}

/// Deletes a queue that holds no jobs.
pub(super) async fn delete(
    caller: Caller,
    services: web::Data<Services>,
    queue: web::Path<String>,
    body: JsonBody,
) -> ApiResult {
    let request: DeleteQueueRequest = body.parse()?;
    let queue = known_queue(&caller, &services, confirmed_queue(&queue, request.confirm.as_deref())?.as_str()).await?;
    delete_empty(&services, &queue).await?;
    Ok(ojs_response(StatusCode::OK, json!({ "deleted": true, "queue": queue }).to_string()))
}
