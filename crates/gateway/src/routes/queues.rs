//! Queues: how they are doing, and what holds them back.

use actix_web::{http::StatusCode, web};
use common::{
    json::Object,
    name::{QueueName, quoted},
};
use model::job::{State, limit};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use store::jobs::{Control, Purge, Stats};

use super::{Answer, bounded, ojs};
use crate::{
    body::JsonBody,
    error::{ApiError, Code},
    startup::Services,
};

/// Queues in one answer, when it is not said how many.
const LISTED: usize = 100;
/// Jobs that one purge cancels, when it is not said how many.
const PURGED: usize = 1000;
const MOST_PURGED: usize = 10_000;

#[derive(Deserialize)]
pub(super) struct Page {
    after: Option<String>,
    limit: Option<String>,
}

/// The queues in the order of their names.
pub(super) async fn list(services: web::Data<Services>, page: web::Query<Page>) -> Answer {
    let limit = bounded("limit", page.limit.as_deref(), LISTED, 1000)?;
    let mut names = services.jobs.queues().await?;
    names.sort_unstable();
    names.retain(|name| page.after.as_deref().is_none_or(|after| name.as_str() > after));
    let more = names.len() > limit;
    let mut queues = Vec::new();
    for name in names.into_iter().take(limit) {
        let (stats, control) = (services.jobs.stats(&name).await?, services.jobs.control(&name).await?);
        queues.push(shown(&name, &stats, &control));
    }
    Ok(ojs(StatusCode::OK, json!({ "queues": queues, "more": more }).to_string()))
}

/// A queue that does not exist yet is an empty one: it comes to be with its first job.
pub(super) async fn stats(services: web::Data<Services>, queue: web::Path<String>) -> Answer {
    let queue: QueueName = queue.parse()?;
    answer(&services, &queue).await
}

async fn answer(services: &Services, queue: &QueueName) -> Answer {
    let (stats, control) = (services.jobs.stats(queue).await?, services.jobs.control(queue).await?);
    Ok(ojs(StatusCode::OK, json!({ "queue": shown(queue, &stats, &control) }).to_string()))
}

fn shown(queue: &QueueName, stats: &Stats, control: &Control) -> Value {
    let rate = control.rate.map(|rate| json!({ "limit": rate.limit, "period_ms": rate.period_ms }));
    json!({
        "name": queue, "paused": control.is_paused, "closed": control.is_closed,
        "available": stats.available, "active": stats.active, "waiting": stats.waiting, "pending": stats.pending,
        "dead": stats.dead, "completed": stats.completed, "discarded": stats.discarded, "cancelled": stats.cancelled,
        "retried": stats.retried,
        "limits": { "max_depth": control.max_depth, "concurrency": control.concurrency, "rate": rate },
    })
}

pub(super) async fn pause(services: web::Data<Services>, queue: web::Path<String>) -> Answer {
    let queue: QueueName = queue.parse()?;
    services.jobs.pause(&queue, true).await??;
    answer(&services, &queue).await
}

pub(super) async fn resume(services: web::Data<Services>, queue: web::Path<String>) -> Answer {
    let queue: QueueName = queue.parse()?;
    services.jobs.pause(&queue, false).await??;
    services.jobs.close(&queue, false).await??;
    answer(&services, &queue).await
}

/// No new jobs; those that are there are worked off. `resume` ends it.
pub(super) async fn drain(services: web::Data<Services>, queue: web::Path<String>) -> Answer {
    let queue: QueueName = queue.parse()?;
    services.jobs.close(&queue, true).await??;
    answer(&services, &queue).await
}

/// Sets the limits of a queue; those left out are as the settings have them.
pub(super) async fn set_limits(services: web::Data<Services>, queue: web::Path<String>, body: JsonBody) -> Answer {
    let queue: QueueName = queue.parse()?;
    let limits: Object = body.parse()?;
    if let Some((name, _)) = limits.iter().find(|(name, _)| !["concurrency", "rate"].contains(name)) {
        return Err(ApiError::invalid(format!("limits are concurrency and rate, got {}", quoted(name))));
    }
    let concurrency = limits.get("concurrency").map(|raw| limit::concurrency(raw, "concurrency")).transpose();
    let rate = limits.get("rate").map(|raw: &RawValue| limit::parse_rate(raw, "rate")).transpose();
    let (concurrency, rate) = (concurrency.map_err(ApiError::invalid)?, rate.map_err(ApiError::invalid)?);
    services.jobs.set_limits(&queue, concurrency, rate).await??;
    answer(&services, &queue).await
}

#[derive(Deserialize)]
struct Confirmed {
    confirm: Option<String>,
    states: Option<Vec<String>>,
    limit: Option<usize>,
}

impl Confirmed {
    /// The queue in the path, if the body names it too.
    fn queue(&self, path: &str) -> Result<QueueName, ApiError> {
        let queue: QueueName = path.parse()?;
        if self.confirm.as_deref() != Some(queue.as_str()) {
            let message = format!("this cannot be undone: confirm must be {:?}", queue.as_str());
            return Err(ApiError::new(Code::Unconfirmed, message));
        }
        Ok(queue)
    }
}

/// Cancels what waits in a queue.
pub(super) async fn purge(services: web::Data<Services>, queue: web::Path<String>, body: JsonBody) -> Answer {
    let request: Confirmed = body.parse()?;
    let queue = request.queue(&queue)?;
    let allowed = [State::Available, State::Scheduled, State::Retryable, State::Pending];
    let names = request.states.unwrap_or_else(|| allowed.iter().map(ToString::to_string).collect());
    let states: Option<Vec<State>> =
        names.iter().map(|name| State::from_name(name).filter(|state| allowed.contains(state))).collect();
    let states = states.filter(|states| !states.is_empty()).ok_or_else(|| {
        ApiError::invalid("states must be a non-empty array of available, scheduled, retryable and pending")
    })?;
    let limit = request.limit.unwrap_or(PURGED);
    if !(1..=MOST_PURGED).contains(&limit) {
        return Err(ApiError::invalid(format!("limit must be an integer from 1 to {MOST_PURGED}")));
    }
    let purged = services.jobs.purge(&queue, &Purge { states, limit }).await?;
    Ok(ojs(StatusCode::OK, json!({ "queue": queue, "purged": purged.count, "more": purged.more }).to_string()))
}

/// Deletes a queue that holds no jobs.
pub(super) async fn delete(services: web::Data<Services>, queue: web::Path<String>, body: JsonBody) -> Answer {
    let request: Confirmed = body.parse()?;
    let queue = request.queue(&queue)?;
    if !services.jobs.delete_queue(&queue).await? {
        let message = format!("queue {queue} holds jobs or dead letters");
        return Err(ApiError::new(Code::QueueNotEmpty, message));
    }
    Ok(ojs(StatusCode::OK, json!({ "deleted": true, "queue": queue }).to_string()))
}
