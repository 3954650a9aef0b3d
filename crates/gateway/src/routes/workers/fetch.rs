//! Fetches jobs for programs.
//!
//! A fetch may report how earlier jobs ended (`acks`, `nacks`), so that a busy program needs one request for each job
//! or batch. The fetch has the reports and not the other way round, because a program that asks for jobs may have any
//! number of outcomes of both kinds. They are recorded before jobs are claimed, and answered even if the fetch fails.

use std::time::Duration;

use actix_web::{HttpRequest, web};
use common::name::{QueueName, WorkerId};
use common::settings::MIN_LEASE_MS;
use model::{access::Scope, job::MAX_TIMEOUT_MS};
use serde::Deserialize;
use serde_json::value::RawValue;
use store::jobs::ClaimedJob;

use super::{
    ack,
    claim::{self, FetchParams},
    claimed_jobs::ClaimedJobs,
    nack, parse_worker_id,
    settle::{self, MAX_SETTLED},
};
use crate::{
    auth::Caller,
    body::ReportBody,
    error::ApiError,
    routes::{ApiResult, queues::unknown_queue_warnings, with_warnings},
    services::Services,
};

const MAX_QUEUES: usize = 100;
const MAX_FETCHED_JOBS: usize = 100;

#[derive(Deserialize)]
struct FetchRequest<'a> {
    queues: Vec<String>,
    worker_id: Option<String>,
    count: Option<u64>,
    visibility_timeout_ms: Option<u64>,
    wait_ms: Option<u64>,
    #[serde(borrow)]
    acks: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    nacks: Option<Vec<&'a RawValue>>,
}

pub(in crate::routes) async fn fetch(
    caller: Caller,
    http: HttpRequest,
    services: web::Data<Services>,
    body: ReportBody,
) -> ApiResult {
    let request: FetchRequest = body.parse()?;
    let worker = parse_worker_id(request.worker_id.clone())?;
    let queues = parse_queues(&request.queues)?;
    queues.iter().try_for_each(|queue| caller.check_queue(Scope::Work, queue))?;
    let wanted = FetchParams {
        queues: queues.clone(),
        count: parse_count(request.count)?,
        worker: worker.clone(),
        lease: request.visibility_timeout_ms.map(parse_lease).transpose()?,
    };
    let wait = parse_wait(request.wait_ms, services.settings.gateway.max_wait)?;
    let settled = settle_outcomes(&caller, &services, &request).await?;
    if let Some(worker) = &worker {
        let most = services.settings.jobs.max_pull_workers;
        services.pull_workers.record_fetch(&services.workers, most, worker, &request.queues).await;
    }
    // It may wait for a minute, and the outcomes are recorded
    drop(request);
    drop(body);
    let taken = match services.answers.check_room() {
        Ok(()) => claim::fetch_jobs(&http, &services, wanted, wait).await,
        Err(error) => Err(error),
    };
    let mut members = Vec::with_capacity(4);
    let jobs = match taken {
        Ok(jobs) => jobs,
        // The outcomes are recorded, so the answer must have them
        Err(error) if !settled.is_empty() => {
            members.push(settle::error_member(&error));
            ClaimedJobs::new(&services, Vec::new())
        }
        Err(error) => return Err(error),
    };
    for claimed in jobs.iter() {
        services.jobs.record_started(claimed, worker.as_ref());
    }
    let views: Vec<String> = jobs.iter().map(|claimed| fetched_job_json(claimed, worker.as_ref())).collect();
    members.push(format!("\"jobs\":[{}]", views.join(",")));
    members.extend(settled);
    let warnings =
        if views.is_empty() { unknown_queue_warnings(&caller, &services, &queues).await } else { Vec::new() };
    Ok(jobs.into_response(with_warnings(format!("{{{}}}", members.join(",")), &warnings)))
}

/// Records the outcomes in the request. Returns a member of the answer for `acks` and for `nacks`, if it has them.
async fn settle_outcomes(
    caller: &Caller,
    services: &Services,
    request: &FetchRequest<'_>,
) -> Result<Vec<String>, ApiError> {
    let count = |items: Option<&Vec<&RawValue>>| items.map_or(0, Vec::len);
    if count(request.acks.as_ref()) + count(request.nacks.as_ref()) > MAX_SETTLED {
        return Err(ApiError::invalid(format!("acks and nacks must together have at most {MAX_SETTLED} items")));
    }
    let worker = request.worker_id.as_deref();
    let mut members = Vec::new();
    if let Some(acks) = &request.acks {
        let results =
            settle::settle_each(acks, async |raw| ack::ack_job(caller, services, ack::parse_ack(raw, worker)?).await)
                .await;
        members.push(format!("\"acks\":{results}"));
    }
    if let Some(nacks) = &request.nacks {
        let results = settle::settle_each(nacks, async |raw| {
            nack::nack_job(caller, services, nack::parse_nack(raw, worker)?).await
        })
        .await;
        members.push(format!("\"nacks\":{results}"));
    }
    Ok(members)
}

fn fetched_job_json(claimed: &ClaimedJob, worker: Option<&WorkerId>) -> String {
    let mut view = claimed.job.view(model::job::JobState::Active);
    view.attempt = claimed.job.history.current_attempt();
    view.started_at = Some(claimed.started_at);
    view.worker_id = worker.map(WorkerId::as_str);
    view.token = claimed.token.as_deref();
    let checkpoint = claimed.checkpoint.as_ref().map(|checkpoint| checkpoint.to_json());
    view.checkpoint = checkpoint.as_deref();
    let (waiting, signals) = (claimed.waiting_json(), claimed.signals_json());
    (view.waiting, view.signals) = (waiting.as_deref(), signals.as_deref());
    view.to_json()
}

fn parse_queues(names: &[String]) -> Result<Vec<QueueName>, ApiError> {
    if !(1..=MAX_QUEUES).contains(&names.len()) {
        return Err(ApiError::invalid(format!("queues must be an array of 1 to {MAX_QUEUES} queue names")));
    }
    names.iter().map(|name| name.parse().map_err(ApiError::from)).collect()
}

fn parse_count(given: Option<u64>) -> Result<usize, ApiError> {
    let count = given.map_or(Some(1), |count| usize::try_from(count).ok());
    count
        .filter(|count| (1..=MAX_FETCHED_JOBS).contains(count))
        .ok_or_else(|| ApiError::invalid(format!("count must be an integer from 1 to {MAX_FETCHED_JOBS}")))
}

fn parse_lease(ms: u64) -> Result<Duration, ApiError> {
    if (MIN_LEASE_MS..=MAX_TIMEOUT_MS).contains(&ms) {
        Ok(Duration::from_millis(ms))
    } else {
        Err(ApiError::invalid(format!(
            "visibility_timeout_ms must be an integer of milliseconds from {MIN_LEASE_MS} to {MAX_TIMEOUT_MS}"
        )))
    }
}

fn parse_wait(ms: Option<u64>, most: Duration) -> Result<Duration, ApiError> {
    let wait = Duration::from_millis(ms.unwrap_or_default());
    if wait > most {
        let most = most.as_millis();
        return Err(ApiError::invalid(format!("wait_ms must be an integer of milliseconds from 0 to {most}")));
    }
    Ok(wait)
}
