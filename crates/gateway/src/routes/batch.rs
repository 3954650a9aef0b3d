//! Batches of jobs: all or none, or each on its own. `ndjson` handles streams of jobs.

use std::collections::HashSet;

use actix_web::{HttpRequest, http::StatusCode, web};
use common::{json::Object, name::quoted, trace_context::TraceContext};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use store::jobs::{Jobs, RequestClock};

use super::{
    ApiResult,
    jobs::{AcceptedJob, ParsedJob, enqueue_outcome, parse_job},
    ojs_response, with_warnings,
};
use crate::{
    auth::Caller,
    body::JsonBody,
    context::RequestTrace,
    error::{ApiError, ErrorCode},
    idempotency::{IdempotencySeed, NotReplayable, run_idempotent},
    services::Services,
};

/// The most jobs that are stored in one step.
pub(super) const CHUNK_SIZE: usize = 64;
/// The most warnings in the answer to a batch.
const MAX_WARNINGS: usize = 100;

#[derive(Deserialize)]
struct BatchEnqueueRequest<'a> {
    #[serde(borrow)]
    jobs: Vec<&'a RawValue>,
    mode: Option<String>,
}

/// `{"jobs": [...], "mode": "atomic"}`: stores all or none. With `"per_item"` each job has an outcome.
pub(super) async fn enqueue(
    caller: Caller,
    request: HttpRequest,
    services: web::Data<Services>,
    body: JsonBody,
) -> ApiResult {
    run_idempotent(&request, &services, &[body.bytes()], async |seed| {
        let batch: BatchEnqueueRequest = body.parse()?;
        let max_jobs = services.settings.gateway.batch_max_jobs;
        if !(1..=max_jobs).contains(&batch.jobs.len()) {
            return Err(ApiError::invalid(format!(
                "jobs must be an array of 1 to {max_jobs} jobs, got {}",
                batch.jobs.len()
            )));
        }
        match batch.mode.as_deref() {
            None | Some("atomic") => {
                enqueue_atomic(&caller, &services, &batch.jobs, RequestTrace::from_request(&request), seed).await
            }
            Some("per_item") => {
                enqueue_per_item(&caller, &services, &batch.jobs, RequestTrace::from_request(&request), seed).await
            }
            Some(other) => {
                Err(ApiError::invalid(format!("mode must be \"atomic\" or \"per_item\", got {}", quoted(other))))
            }
        }
    })
    .await
}

async fn enqueue_atomic(
    caller: &Caller,
    services: &Services,
    jobs: &[&RawValue],
    trace: TraceContext,
    seed: Option<IdempotencySeed>,
) -> ApiResult {
    let (mut new, mut own_ids, mut now) = (Vec::with_capacity(jobs.len()), HashSet::new(), 0);
    let mut warnings = Vec::new();
    let mut clock = RequestClock::new(&services.jobs);
    for (n, raw) in jobs.iter().enumerate() {
        let read = parse_item(caller, services, &mut clock, raw, seed.map(|seed| (seed, n))).await;
        let read = read.map_err(|error| error.with_subject(&format!("jobs[{n}]")))?;
        if read.new_job.is_debounced() {
            return Err(ApiError::invalid(format!(
                "jobs[{n}]: unique: debounce needs \"mode\": \"per_item\": what was put off cannot be taken back"
            )));
        }
        now = read.now;
        own_ids.extend(read.derived_id());
        let free = MAX_WARNINGS.saturating_sub(warnings.len());
        warnings.extend(read.new_job.warnings.iter().take(free).map(|warning| format!("jobs[{n}]: {warning}")));
        new.push(read.new_job);
    }
    let all = services.jobs.clone();
    let stored = if Jobs::is_one_step(&new) {
        all.enqueue_all(new, trace, now, &own_ids).await?
    } else {
        run_to_end(services, async move { all.enqueue_all(new, trace, now, &own_ids).await }).await??
    };
    let stored = stored.map_err(ApiError::from)?;
    let mut answer = String::with_capacity(jobs.iter().map(|job| job.get().len() + 320).sum());
    answer.push_str("{\"jobs\":[");
    for (n, enqueued) in stored.iter().enumerate() {
        if n > 0 {
            answer.push(',');
        }
        answer.push_str(&enqueued.job.view(enqueued.state).to_json());
    }
    answer.push_str("]}");
    Ok(ojs_response(StatusCode::CREATED, with_warnings(answer, &warnings)))
}

/// Runs a change of several steps to its end, though the client may hang up meanwhile.
async fn run_to_end<T: Send + 'static>(
    services: &Services,
    change: impl Future<Output = T> + Send + 'static,
) -> Result<T, ApiError> {
    let done = services.long_poll.runtime().spawn(change).await;
    done.map_err(|_| ApiError::new(ErrorCode::Internal, "the change was cut off"))
}

async fn enqueue_per_item(
    caller: &Caller,
    services: &Services,
    jobs: &[&RawValue],
    trace: TraceContext,
    seed: Option<IdempotencySeed>,
) -> ApiResult {
    let wanted: Vec<BatchItem> =
        jobs.iter().enumerate().map(|(n, raw)| (Ok(*raw), seed.map(|seed| (seed, n)))).collect();
    let mut results = BatchResults::default();
    for some in wanted.chunks(CHUNK_SIZE) {
        let stored = enqueue_items(caller, services, some, trace.clone()).await;
        results.lines.extend(stored.lines);
        results.is_replayable &= stored.is_replayable;
    }
    let mut response = ojs_response(StatusCode::OK, format!("{{\"results\":[{}]}}", results.lines.join(",")));
    if !results.is_replayable {
        response.extensions_mut().insert(NotReplayable);
    }
    Ok(response)
}

/// A requested job, or why it cannot be read.
pub(super) type BatchItem<'a> = (Result<&'a RawValue, ApiError>, Option<(IdempotencySeed, usize)>);

/// The lines of an answer, one for each job.
pub(super) struct BatchResults {
    pub(super) lines: Vec<String>,
    /// Whether sending the request again can store none of the jobs that failed.
    pub(super) is_replayable: bool,
}

impl Default for BatchResults {
    fn default() -> Self {
        Self { lines: Vec::new(), is_replayable: true }
    }
}

/// Stores jobs in their order and returns a line of the answer for each.
pub(super) async fn enqueue_items(
    caller: &Caller,
    services: &Services,
    wanted: &[BatchItem<'_>],
    trace: TraceContext,
) -> BatchResults {
    let mut clock = RequestClock::new(&services.jobs);
    let mut origins = Vec::with_capacity(wanted.len());
    let mut new = Vec::with_capacity(wanted.len());
    for (raw, seed) in wanted {
        let read = match raw {
            Ok(raw) => parse_item(caller, services, &mut clock, raw, *seed).await,
            Err(error) => Err(error.clone()),
        };
        origins.push(read.map(|read| {
            let now = read.now;
            let (job, origin) = read.split();
            new.push((job, now));
            origin
        }));
    }
    let mut outcomes = services.jobs.enqueue_each(new, trace).await.into_iter();
    let mut lines = BatchResults::default();
    for origin in origins {
        let outcome = match origin {
            Err(error) => Err(error),
            Ok(origin) => match outcomes.next() {
                Some(Ok(outcome)) => enqueue_outcome(services, outcome, origin).await,
                Some(Err(error)) => Err(error.into()),
                None => Err(ApiError::new(ErrorCode::Internal, "the job was not stored")),
            },
        };
        lines.is_replayable &= !outcome.as_ref().is_err_and(ApiError::is_retryable);
        lines.lines.push(result_json(outcome));
    }
    lines
}

/// The line of an answer.
fn result_json(outcome: Result<AcceptedJob, ApiError>) -> String {
    match outcome {
        Ok(accepted) => accepted.answer(&accepted.json),
        Err(error) => {
            if let Some(cause) = error.cause() {
                tracing::error!(cause, "a job of a batch failed with an internal error");
            }
            json!({ "error": error.to_json() }).to_string()
        }
    }
}

async fn parse_item(
    caller: &Caller,
    services: &Services,
    clock: &mut RequestClock<'_>,
    raw: &RawValue,
    seed: Option<(IdempotencySeed, usize)>,
) -> Result<ParsedJob, ApiError> {
    let limit = services.settings.gateway.body_limit_bytes;
    if raw.get().len() > limit {
        return Err(ApiError::new(ErrorCode::PayloadTooLarge, format!("a job must have at most {limit} bytes")));
    }
    let members: Object = serde_json::from_str(raw.get())
        .map_err(|error| ApiError::invalid(format!("a job must be a JSON object: {error}")))?;
    parse_job(caller, clock, &members, seed).await
}
