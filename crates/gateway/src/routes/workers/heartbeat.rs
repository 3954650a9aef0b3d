//! Heartbeats: renew leases and return directives.

use std::collections::HashSet;

use actix_web::{http::StatusCode, web};
use common::{
    id::JobId,
    name::{WorkerId, quoted},
    time,
};
use serde::Deserialize;
use serde_json::json;
use store::jobs::Attempt;
use store::{
    jobs::{Fence, LocatedJob, PULL_CONSUMER},
    workers::{RunningJob, WorkerState},
};

use super::{has_job, parse_body_job_id, parse_fence};
use crate::{
    auth::Caller,
    body::ReportBody,
    error::{ApiError, ErrorCode},
    pull_workers,
    routes::{ApiResult, ojs_response},
    services::Services,
};

const MAX_ACTIVE_JOBS: usize = 1000;

#[derive(Deserialize)]
struct HeartbeatRequest {
    worker_id: Option<String>,
    state: Option<String>,
    hostname: Option<String>,
    pid: Option<u32>,
    concurrency: Option<usize>,
    #[serde(default, alias = "active_job_ids")]
    active_jobs: Vec<String>,
    #[serde(default)]
    tokens: std::collections::HashMap<String, String>,
}

pub(in crate::routes) async fn heartbeat(caller: Caller, services: web::Data<Services>, body: ReportBody) -> ApiResult {
    let beat: HeartbeatRequest = body.parse()?;
    if beat.active_jobs.len() > MAX_ACTIVE_JOBS {
        return Err(ApiError::invalid(format!("active_jobs must have at most {MAX_ACTIVE_JOBS} ids")));
    }
    let worker_id = beat.worker_id.ok_or_else(|| ApiError::invalid("worker_id is required"))?;
    let state = beat.state.as_deref().map(parse_worker_state).transpose()?;
    if let Some(id) = beat.tokens.keys().find(|id| !beat.active_jobs.contains(id)) {
        return Err(ApiError::invalid(format!("tokens must have ids of active_jobs, got {}", quoted(id))));
    }
    let ids: Vec<JobId> = beat.active_jobs.iter().map(|text| parse_body_job_id(text)).collect::<Result<_, _>>()?;
    let (mut planted, mut stale) = (None, Vec::new());
    for id in ids {
        let token = beat.tokens.get(&id.to_string()).cloned();
        match renew_lease(&caller, &services, id, &parse_fence(token, Some(worker_id.clone()))?).await? {
            Some(Some(directive)) => planted = Some(directive),
            Some(None) => {}
            None => stale.push(id),
        }
    }
    if !stale.is_empty() && stale.len() == beat.active_jobs.len() {
        return Err(ApiError::new(ErrorCode::Conflict, "none of active_jobs is this worker's any more"));
    }
    let worker = WorkerId::try_from(worker_id)?;
    let lost: HashSet<String> = stale.iter().map(ToString::to_string).collect();
    let held = beat.active_jobs.into_iter().filter(|id| !lost.contains(id));
    let jobs: Vec<RunningJob> = held.map(|id| RunningJob { id, details: None }).collect();
    let noted = pull_workers::PullHeartbeat {
        state,
        hostname: beat.hostname.map(|name| name.chars().take(255).collect()),
        pid: beat.pid,
        concurrency: beat.concurrency,
        active_jobs: jobs.len(),
        jobs,
    };
    let most = services.settings.jobs.max_pull_workers;
    let order = services.pull_workers.record_heartbeat(&services.workers, most, &worker, noted).await?;
    let asked = order.map_or("running", |order| order.directive.as_str());
    let state = planted.as_deref().unwrap_or(asked);
    let answer =
        json!({ "state": state, "stale_jobs": stale, "server_time": time::format(services.jobs.estimated_now()) });
    Ok(ojs_response(StatusCode::OK, answer.to_string()))
}

fn parse_worker_state(word: &str) -> Result<WorkerState, ApiError> {
    match word {
        "running" => Ok(WorkerState::Running),
        "quiet" => Ok(WorkerState::Quiet),
        "terminate" => Ok(WorkerState::Terminating),
        _ => Err(ApiError::invalid(format!("state must be running, quiet or terminate, got {}", quoted(word)))),
    }
}

/// Renews one lease. Returns none if the attempt is stale, else the test directive of the job, if the settings allow
/// those.
async fn renew_lease(
    caller: &Caller,
    services: &Services,
    id: JobId,
    fence: &Fence,
) -> Result<Option<Option<String>>, ApiError> {
    let located = services.jobs.locate(id).await?.filter(|located| has_job(caller, located));
    let Some(LocatedJob::InStream { job, entry, holder: Some(holder) }) = located else {
        return Ok(None);
    };
    if holder.consumer != PULL_CONSUMER || !services.jobs.heartbeat(Attempt { job: &job, entry, fence }, None).await? {
        return Ok(None);
    }
    if !services.settings.gateway.test_directives {
        return Ok(Some(None));
    }
    Ok(Some(job.envelope.fields().ok().and_then(|parts| parts.test_directive())))
}
