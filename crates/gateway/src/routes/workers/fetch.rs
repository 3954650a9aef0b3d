//! Handing jobs out to programs that ask for them.

use std::time::Duration;

use actix_web::{http::StatusCode, web};
use common::{
    job::request::LONGEST_LIMIT_MS,
    name::{QueueName, WorkerId},
    redis::jobs::{Claim, Claimed, Fence},
};
use serde::Deserialize;

use super::worker;
use crate::{
    body::JsonBody,
    error::ApiError,
    routes::{Answer, ojs},
    startup::Services,
};

const MOST_QUEUES: usize = 100;
const MOST_FETCHED: usize = 100;
/// Jobs claimed in one go: each may be as large as a request body.
const CLAIMED_AT_ONCE: usize = 10;
/// A fetch asks for no more once it has this much.
const ENOUGH_BYTES: usize = 4 << 20;
/// Expired jobs that one fetch clears away.
const MOST_EXPIRED: usize = 100;

#[derive(Deserialize)]
struct Fetch {
    queues: Vec<String>,
    worker_id: Option<String>,
    count: Option<u64>,
    visibility_timeout_ms: Option<u64>,
}

pub(in crate::routes) async fn fetch(services: web::Data<Services>, body: JsonBody) -> Answer {
    let request: Fetch = body.parse()?;
    let queues = queues(&request.queues)?;
    let count = count(request.count)?;
    let worker = worker(request.worker_id)?;
    let lease = request.visibility_timeout_ms.map(lease).transpose()?;
    if let Some(worker) = &worker {
        let most = services.settings.jobs.max_pull_workers;
        services.pull_workers.fetched(&services.redis, most, worker, &request.queues).await;
    }
    let mut fetched = Vec::new();
    for queue in &queues {
        let by = Claim::Pull { worker: worker.as_ref(), lease };
        match fetch_from(&services, queue, by, count, &mut fetched).await {
            Ok(()) => {}
            // What was handed out before must reach the client: it is leased to it
            Err(error) if !fetched.is_empty() => {
                tracing::warn!(%queue, %error, fetched = fetched.len(), "fetch cut short");
                break;
            }
            Err(error) => return Err(error),
        }
    }
    for claimed in &fetched {
        services.jobs.record_start(claimed, worker.as_ref());
    }
    let jobs: Vec<String> = fetched.iter().map(|claimed| shown(claimed, worker.as_ref())).collect();
    Ok(ojs(StatusCode::OK, format!("{{\"jobs\":[{}]}}", jobs.join(","))))
}

/// Takes jobs of one queue until `count` are fetched, or enough bytes. Jobs that expired while they waited are discarded
/// on the way, a bounded number of them.
async fn fetch_from(
    services: &Services,
    queue: &QueueName,
    by: Claim<'_>,
    count: usize,
    fetched: &mut Vec<Claimed>,
) -> Result<(), ApiError> {
    let (mut priorities, mut expired) = (Vec::new(), 0);
    let bytes = |claimed: &Claimed| {
        claimed.job.envelope.as_str().len() + claimed.job.parent_results.as_ref().map_or(0, String::len)
    };
    let size = |fetched: &[Claimed]| fetched.iter().map(bytes).sum::<usize>();
    while fetched.len() < count && expired < MOST_EXPIRED && size(fetched) < ENOUGH_BYTES {
        let claimed =
            services.jobs.claim(queue, &mut priorities, (count - fetched.len()).min(CLAIMED_AT_ONCE), by).await?.jobs;
        if claimed.is_empty() {
            break;
        }
        let (late, fresh): (Vec<_>, Vec<_>) =
            claimed.into_iter().partition(|claimed| claimed.job.is_expired(claimed.started_at));
        fetched.extend(fresh);
        for claimed in &late {
            let fence = Fence::Pull { token: claimed.token.clone(), worker: None };
            services.jobs.expire(claimed, &fence).await?;
            expired += 1;
        }
    }
    Ok(())
}

fn shown(claimed: &Claimed, worker: Option<&WorkerId>) -> String {
    let mut view = claimed.job.view(common::job::State::Active);
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
