//! Handing jobs out to programs that ask for them.
//!
//! A fetch may bring along how earlier jobs ended (`acks`, `nacks`), so that a program under load needs one request for
//! each job, or for each batch: it is the fetch that has them and not the other way round, because the one who asks for the
//! next jobs has any number of outcomes to tell, of both kinds. They are recorded before anything is taken, and answered
//! whatever becomes of the rest.

use std::time::Duration;

use actix_web::{http::StatusCode, web};
use common::name::{QueueName, WorkerId};
use model::job::request::LONGEST_LIMIT_MS;
use serde::Deserialize;
use serde_json::value::RawValue;
use store::jobs::Claimed;

use super::{
    ack, nack,
    settle::{self, MOST_SETTLED},
    take::{self, Wanted},
    worker,
};
use crate::{
    body::BatchBody,
    error::ApiError,
    routes::{Answer, ojs},
    startup::Services,
};

const MOST_QUEUES: usize = 100;
const MOST_FETCHED: usize = 100;

#[derive(Deserialize)]
struct Fetch<'a> {
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

pub(in crate::routes) async fn fetch(services: web::Data<Services>, body: BatchBody) -> Answer {
    let request: Fetch = body.parse()?;
    let worker = worker(request.worker_id.clone())?;
    let wanted = Wanted {
        queues: queues(&request.queues)?,
        count: count(request.count)?,
        worker: worker.clone(),
        lease: request.visibility_timeout_ms.map(lease).transpose()?,
    };
    let wait = wait(request.wait_ms, services.settings.gateway.max_wait)?;
    let settled = settle(&services, &request).await?;
    if let Some(worker) = &worker {
        let most = services.settings.jobs.max_pull_workers;
        services.pull_workers.fetched(&services.redis, most, worker, &request.queues).await;
    }
    let taken = take::take(&services, wanted, wait).await;
    let mut members = Vec::with_capacity(4);
    let jobs = match taken {
        Ok(jobs) => jobs,
        // What was recorded before must be answered
        Err(error) if !settled.is_empty() => {
            members.push(settle::error(&error));
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    for claimed in &jobs {
        services.jobs.record_start(claimed, worker.as_ref());
    }
    let jobs: Vec<String> = jobs.iter().map(|claimed| shown(claimed, worker.as_ref())).collect();
    members.push(format!("\"jobs\":[{}]", jobs.join(",")));
    members.extend(settled);
    Ok(ojs(StatusCode::OK, format!("{{{}}}", members.join(","))))
}

/// Records what the request brought along; a member of the answer for each kind that it brought.
async fn settle(services: &Services, request: &Fetch<'_>) -> Result<Vec<String>, ApiError> {
    let count = |items: Option<&Vec<&RawValue>>| items.map_or(0, Vec::len);
    if count(request.acks.as_ref()) + count(request.nacks.as_ref()) > MOST_SETTLED {
        return Err(ApiError::invalid(format!("acks and nacks must together have at most {MOST_SETTLED} items")));
    }
    let worker = request.worker_id.as_deref();
    let mut members = Vec::new();
    if let Some(acks) = &request.acks {
        let results = settle::each(acks, async |raw| ack::one(services, ack::read(raw, worker)?).await).await;
        members.push(format!("\"acks\":{results}"));
    }
    if let Some(nacks) = &request.nacks {
        let results = settle::each(nacks, async |raw| nack::one(services, nack::read(raw, worker)?).await).await;
        members.push(format!("\"nacks\":{results}"));
    }
    Ok(members)
}

fn shown(claimed: &Claimed, worker: Option<&WorkerId>) -> String {
    let mut view = claimed.job.view(model::job::State::Active);
    view.attempt = claimed.job.history.current_attempt();
    view.started_at = Some(claimed.started_at);
    view.worker_id = worker.map(WorkerId::as_str);
    view.token = claimed.token.as_deref();
    view.to_json()
}

fn queues(names: &[String]) -> Result<Vec<QueueName>, ApiError> {
    if !(1..=MOST_QUEUES).contains(&names.len()) {
        return Err(ApiError::invalid(format!("queues must be an array of 1 to {MOST_QUEUES} queue names")));
    }
    names.iter().map(|name| name.parse().map_err(ApiError::from)).collect()
}

fn count(given: Option<u64>) -> Result<usize, ApiError> {
    let count = given.map_or(Some(1), |count| usize::try_from(count).ok());
    count
        .filter(|count| (1..=MOST_FETCHED).contains(count))
        .ok_or_else(|| ApiError::invalid(format!("count must be an integer from 1 to {MOST_FETCHED}")))
}

fn lease(ms: u64) -> Result<Duration, ApiError> {
    if (1..=LONGEST_LIMIT_MS).contains(&ms) {
        Ok(Duration::from_millis(ms))
    } else {
        Err(ApiError::invalid(format!(
            "visibility_timeout_ms must be an integer of milliseconds from 1 to {LONGEST_LIMIT_MS}"
        )))
    }
}

fn wait(ms: Option<u64>, most: Duration) -> Result<Duration, ApiError> {
    let wait = Duration::from_millis(ms.unwrap_or_default());
    if wait > most {
        let most = most.as_millis();
        return Err(ApiError::invalid(format!("wait_ms must be an integer of milliseconds from 0 to {most}")));
    }
    Ok(wait)
}
