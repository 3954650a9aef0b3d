//! The pull protocol: programs in any language fetch jobs, keep them alive and report how they ended.
//!
//! Every fetched job carries a `token`. Whoever echoes it is sure to speak of the attempt it was given: a stale token
//! is 409 and changes nothing. Without a token the `worker_id` must match, where both sides give one.

use std::{collections::HashSet, time::Duration};

use actix_web::{http::StatusCode, web};
use common::{
    id::JobId,
    job::{Advice, Event, Failure, request::LONGEST_LIMIT_MS},
    json::{Object, ObjectWriter},
    name::{QueueName, WorkerId},
    redis::{
        events::Happened,
        jobs::{Claim, Claimed, Ended, Fence, Located, PULL, Recorded, Settled, local_now},
        workers::{RunningJob, WorkerState},
    },
    time,
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{Answer, jobs::unknown, ojs};
use crate::{
    body::JsonBody,
    error::{ApiError, Code},
    pull_workers,
    startup::Services,
};

const MOST_QUEUES: usize = 100;
const MOST_FETCHED: usize = 100;
const MOST_BEATS: usize = 1000;
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

pub(super) async fn fetch(services: web::Data<Services>, body: JsonBody) -> Answer {
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

fn worker(given: Option<String>) -> Result<Option<WorkerId>, ApiError> {
    given.map(|text| WorkerId::try_from(text).map_err(ApiError::from)).transpose()
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

#[derive(Deserialize)]
struct Ack<'a> {
    job_id: String,
    worker_id: Option<String>,
    token: Option<String>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
}

pub(super) async fn ack(services: web::Data<Services>, body: JsonBody) -> Answer {
    let request: Ack = body.parse()?;
    let fence = fence(request.token, request.worker_id)?;
    let id = id(&request.job_id)?;
    let result = result(&services, request.result)?;
    let claimed = active(&services, id, Event::Succeed).await?;
    let now = local_now();
    let ended = Ended::completed(&claimed.job, result, Some(claimed.started_at), now);
    match services.jobs.finish(&claimed.job, claimed.entry, &fence, &ended, false).await? {
        Settled::Done => {}
        Settled::DoneBefore | Settled::Stale => return Err(stale(id)),
    }
    services.jobs.record(Happened::completed(&claimed.job, claimed.started_at, now));
    let answer = json!({
        "acknowledged": true, "id": id, "job_id": id, "state": "completed", "completed_at": time::format(now),
    });
    Ok(ojs(StatusCode::OK, answer.to_string()))
}

fn result<'a>(services: &Services, given: Option<&'a RawValue>) -> Result<Option<&'a str>, ApiError> {
    let limit = services.settings.jobs.result_limit_bytes;
    match given.map(RawValue::get).filter(|text| *text != "null") {
        Some(text) if text.len() > limit => {
            Err(ApiError::new(Code::PayloadTooLarge, format!("result must have at most {limit} bytes")))
        }
        result => Ok(result),
    }
}

#[derive(Deserialize)]
struct Nack<'a> {
    job_id: String,
    worker_id: Option<String>,
    token: Option<String>,
    #[serde(default)]
    requeue: bool,
    #[serde(borrow)]
    error: Option<Reported<'a>>,
}

#[derive(Deserialize)]
struct Reported<'a> {
    code: Option<String>,
    #[serde(rename = "type")]
    error_type: Option<String>,
    message: Option<String>,
    retryable: Option<bool>,
    #[serde(alias = "stack_trace", alias = "backtrace")]
    stack: Option<String>,
    /// The limit of the job's key allows nothing before this time.
    rate_limit_until: Option<String>,
    #[serde(borrow)]
    details: Option<&'a RawValue>,
}

impl Reported<'_> {
    fn advice(&self) -> Advice {
        if self.retryable == Some(false) { Advice::Never } else { Advice::ByPolicy }
    }

    fn failure(&self, attempt: u32) -> Failure {
        let code = self.code.as_deref().unwrap_or("handler_error");
        let in_details = self.details.and_then(|raw| {
            let details: Object = serde_json::from_str(raw.get()).ok()?;
            serde_json::from_str::<String>(details.get("error_class")?.get()).ok()
        });
        let error_type = self.error_type.clone().or(in_details).unwrap_or_else(|| code.to_owned());
        let message = self.message.as_deref().unwrap_or_default();
        Failure::new(code, &error_type, message, attempt, local_now())
            .with_details(self.details)
            .with_stack(self.stack.as_deref())
    }
}

pub(super) async fn nack(services: web::Data<Services>, body: JsonBody) -> Answer {
    let request: Nack = body.parse()?;
    let fence = fence(request.token, request.worker_id)?;
    let id = id(&request.job_id)?;
    if request.error.is_none() && !request.requeue {
        return Err(ApiError::invalid("error is required: an object with code and message, unless requeue is true"));
    }
    let event = if request.requeue { Event::Release } else { Event::Retry };
    let claimed = active(&services, id, event).await?;
    let max_attempts = claimed.job.summary.max_attempts;
    let mut answer = ObjectWriter::default();
    let (id_text, attempt) = (id.to_string(), claimed.job.history.current_attempt());
    answer
        .text("id", &id_text)
        .text("job_id", &id_text)
        .number("attempt", attempt)
        .number("max_attempts", max_attempts);
    match request.error {
        Some(error) if !request.requeue => {
            if let Some(text) = &error.rate_limit_until {
                let until = time::parse_time(text, services.jobs.now().await?)
                    .map_err(|problem| ApiError::invalid(format!("error.rate_limit_until {problem}")))?;
                services.jobs.hold_back(&claimed.job, claimed.entry, &fence, until.at).await?;
            }
            let recorded = services.jobs.fail(&claimed, &fence, error.failure(attempt), error.advice()).await?;
            write_failure(&mut answer, id, &recorded)?;
        }
        _ => match services.jobs.requeue(&claimed.job, claimed.entry, &fence).await? {
            Settled::Done => drop(answer.text("state", "available")),
            Settled::DoneBefore | Settled::Stale => return Err(stale(id)),
        },
    }
    Ok(ojs(StatusCode::OK, answer.finish()))
}

fn write_failure(answer: &mut ObjectWriter, id: JobId, recorded: &Recorded) -> Result<(), ApiError> {
    match recorded {
        Recorded::Retry { due, delay } => {
            let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            answer
                .text("state", "retryable")
                .text("next_attempt_at", &time::format(*due))
                .number("retry_delay_ms", millis);
        }
        Recorded::Discarded(_) => {
            let now = time::format(local_now());
            answer.text("state", "discarded").text("discarded_at", &now).text("completed_at", &now);
        }
        Recorded::Stale => return Err(stale(id)),
    }
    Ok(())
}

#[derive(Deserialize)]
struct Beat {
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

pub(super) async fn heartbeat(services: web::Data<Services>, body: JsonBody) -> Answer {
    let beat: Beat = body.parse()?;
    if beat.active_jobs.len() > MOST_BEATS {
        return Err(ApiError::invalid(format!("active_jobs must have at most {MOST_BEATS} ids")));
    }
    let worker_id = beat.worker_id.ok_or_else(|| ApiError::invalid("worker_id is required"))?;
    let ids: Vec<JobId> = beat.active_jobs.iter().map(|text| id(text)).collect::<Result<_, _>>()?;
    let (mut planted, mut stale) = (None, Vec::new());
    for id in ids {
        let token = beat.tokens.get(&id.to_string()).cloned();
        match renew(&services, id, &fence(token, Some(worker_id.clone()))?).await? {
            Some(Some(directive)) => planted = Some(directive),
            Some(None) => {}
            None => stale.push(id),
        }
    }
    if !stale.is_empty() && stale.len() == beat.active_jobs.len() {
        return Err(ApiError::new(Code::Conflict, "none of active_jobs is this worker's any more"));
    }
    let worker = WorkerId::try_from(worker_id)?;
    let lost: HashSet<String> = stale.iter().map(ToString::to_string).collect();
    let held = beat.active_jobs.into_iter().filter(|id| !lost.contains(id));
    let jobs: Vec<RunningJob> = held.map(|id| RunningJob { id, more: None }).collect();
    let noted = pull_workers::Beat {
        state: beat.state.as_deref().and_then(reported_state),
        hostname: beat.hostname.map(|name| name.chars().take(255).collect()),
        pid: beat.pid,
        concurrency: beat.concurrency,
        active_jobs: jobs.len(),
        jobs,
    };
    let most = services.settings.jobs.max_pull_workers;
    let order = services.pull_workers.beat(&services.redis, most, &worker, noted).await?;
    let asked = order.map_or("running", |order| order.directive.as_str());
    let state = planted.as_deref().unwrap_or(asked);
    let answer = json!({ "state": state, "stale_jobs": stale, "server_time": time::format(local_now()) });
    Ok(ojs(StatusCode::OK, answer.to_string()))
}

fn reported_state(word: &str) -> Option<WorkerState> {
    match word {
        "running" => Some(WorkerState::Running),
        "quiet" => Some(WorkerState::Quiet),
        "terminate" => Some(WorkerState::Terminating),
        _ => None,
    }
}

/// Renews one lease: none when the attempt is stale, else the directive that the suites planted, if that is allowed.
async fn renew(services: &Services, id: JobId, fence: &Fence) -> Result<Option<Option<String>>, ApiError> {
    let Some(Located::Queued { job, entry, holder: Some(holder) }) = services.jobs.locate(id).await? else {
        return Ok(None);
    };
    if holder.consumer != PULL || !services.jobs.heartbeat(&job, entry, fence, None).await? {
        return Ok(None);
    }
    if !services.settings.gateway.test_directives {
        return Ok(Some(None));
    }
    Ok(Some(job.envelope.parts().ok().and_then(|parts| parts.test_directive())))
}

/// The attempt of an active job, or why there is none.
async fn active(services: &Services, id: JobId, event: Event) -> Result<Claimed, ApiError> {
    let located = services.jobs.locate(id).await?.ok_or_else(|| unknown(&id.to_string()))?;
    located.state().after(event)?;
    let Located::Queued { job, entry, holder: Some(holder) } = located else { return Err(stale(id)) };
    if holder.consumer != PULL {
        return Err(ApiError::new(
            Code::Conflict,
            format!("job {id} is run by a queue-worker, which reports for itself"),
        ));
    }
    Ok(Claimed { started_at: holder.started_at(), job, entry, token: None })
}

pub(super) fn fence(token: Option<String>, worker_id: Option<String>) -> Result<Fence, ApiError> {
    let is_token = |token: &String| token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit());
    if token.as_ref().is_some_and(|token| !is_token(token)) {
        return Err(ApiError::invalid("token must be the one that came with the fetched job"));
    }
    Ok(Fence::Pull { token, worker: worker(worker_id)? })
}

fn id(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|_| {
        ApiError::invalid(format!("job ids must be lower-case UUIDv7, got {}", common::name::quoted(text)))
    })
}

pub(super) fn stale(id: JobId) -> ApiError {
    ApiError::new(Code::Conflict, format!("this attempt of job {id} is not the current one"))
}
