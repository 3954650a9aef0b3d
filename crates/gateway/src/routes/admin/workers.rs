//! Workers in the admin API.

use actix_web::{http::StatusCode, web};
use serde::Deserialize;
use serde_json::{Value, json};
use store::workers::{Directive, ListedWorker, WorkerKey};

use super::{ApiResult, ojs_response, page::ListPage};
use crate::{
    error::{ApiError, ErrorCode},
    routes::worker_list::find_worker,
    services::Services,
};

#[derive(Deserialize)]
pub(in crate::routes) struct WorkerPageQuery {
    page: Option<String>,
    per_page: Option<String>,
}

/// Workers in the order of their ids, and how many there are in each state.
pub(in crate::routes) async fn list(services: web::Data<Services>, query: web::Query<WorkerPageQuery>) -> ApiResult {
    let page = ListPage::parse(query.page.as_deref(), query.per_page.as_deref())?;
    let keys = services.workers.worker_keys().await?;
    let mut workers = services.workers.workers(&keys).await?;
    let silent = services.workers.silent_workers().await?;
    workers.retain(|worker| !silent.iter().any(|silent| silent.key == worker.key));
    let mut all: Vec<(Value, &'static str)> = workers.iter().map(|worker| worker_json(worker, false)).collect();
    all.extend(silent.iter().map(|worker| worker_json(worker, true)));
    let count = |wanted: &str| all.iter().filter(|(_, state)| *state == wanted).count();
    let summary = json!({
        "total": all.len(), "running": count("running"), "quiet": count("quiet") + count("terminate"),
        "stale": count("stale"),
    });
    let total = all.len() as u64;
    let items: Vec<Value> = page.of(all).into_iter().map(|(worker, _)| worker).collect();
    let answer = json!({ "items": items, "summary": summary, "pagination": page.to_json(total) });
    Ok(ojs_response(StatusCode::OK, answer.to_string()))
}

/// A worker in the shape of the admin API, and its state.
fn worker_json(worker: &ListedWorker, is_stale: bool) -> (Value, &'static str) {
    let mut shown: Value = serde_json::from_str(&worker.to_json()).unwrap_or_default();
    let state = match (is_stale, shown["state"].as_str()) {
        (true, _) => "stale",
        (false, Some("quiet")) => "quiet",
        (false, Some("terminating")) => "terminate",
        (false, _) => "running",
    };
    shown["state"] = state.into();
    shown["last_heartbeat_at"] = shown["last_seen_at"].take();
    // A program that pulls over HTTP does not say when it started
    if shown["started_at"].is_null() {
        shown["started_at"] = shown["last_heartbeat_at"].clone();
    }
    if let Some(members) = shown.as_object_mut() {
        members.remove("last_seen_at");
    }
    (shown, state)
}

pub(in crate::routes) async fn show(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    if let Some(silent) = silent_worker(&services, &id).await? {
        return Ok(ojs_response(StatusCode::OK, worker_json(&silent, true).0.to_string()));
    }
    let (worker, _) = worker_json(&find_worker(&services, &id).await?, false);
    Ok(ojs_response(StatusCode::OK, worker.to_string()))
}

/// Tells a worker to claim no new jobs. It learns of that at once, or at its next report.
pub(in crate::routes) async fn quiet(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    let mut listed = find_worker(&services, &id).await?;
    listed.directive = Some(services.workers.set_directive(&listed.key, Directive::Quiet).await?);
    Ok(ojs_response(StatusCode::OK, worker_json(&listed, false).0.to_string()))
}

async fn silent_worker(services: &Services, id: &str) -> Result<Option<ListedWorker>, ApiError> {
    let silent = services.workers.silent_workers().await?;
    let key: Option<WorkerKey> = id.parse().ok();
    Ok(silent.into_iter().find(|worker| Some(&worker.key) == key.as_ref() || worker.record.name == id))
}

/// Forgets a worker that stopped reporting, and gives its jobs to others now.
pub(in crate::routes) async fn deregister(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    let Some(silent) = silent_worker(&services, &id).await? else {
        let found = find_worker(&services, &id).await?;
        let message = format!("worker {} still reports: only one that stopped can be removed", found.key.as_str());
        return Err(ApiError::new(ErrorCode::Conflict, message));
    };
    let rescheduled = services.jobs.release_jobs_of(&silent).await?;
    services.workers.remove_worker(&silent.key).await?;
    let answer = json!({ "deleted": true, "id": silent.key.as_str(), "rescheduled_jobs": rescheduled });
    Ok(ojs_response(StatusCode::OK, answer.to_string()))
}
