//! Jobs: enqueue, look up, cancel.

use std::time::{Duration, Instant};

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    http::{
        StatusCode,
        header::{self, HeaderMap, HeaderName},
    },
    web,
};
use common::{id::JobId, json::Object, name::quoted, time::Millis, trace_context::TraceContext};
use model::{access::Scope, job::NewJob};
use serde::Deserialize;
use store::jobs::{EnqueueRefusal, EnqueuedJob, JobTransitionError, RequestClock};

use super::{ApiResult, job_json, ojs_response, ojs_response_builder, with_warnings};
use crate::{
    auth::{Caller, while_admitted},
    body::JsonBody,
    context::RequestTrace,
    error::{ApiError, ErrorCode},
    idempotency::{IdempotencySeed, run_idempotent},
    services::Services,
};

/// The delay between two attempts to enter a full queue. It doubles from the minimum to the maximum.
const MIN_FULL_QUEUE_RETRY_DELAY: Duration = Duration::from_millis(50);
const MAX_FULL_QUEUE_RETRY_DELAY: Duration = Duration::from_millis(800);
const PREFER: HeaderName = HeaderName::from_static("prefer");

pub(super) async fn enqueue(
    caller: Caller,
    request: HttpRequest,
    services: web::Data<Services>,
    body: JsonBody,
) -> ApiResult {
    let wait = preferred_wait(request.headers(), services.settings.gateway.max_wait);
    run_idempotent(&request, &services, &[body.bytes()], async |seed| {
        let members: Object = body.parse()?;
        let mut clock = RequestClock::new(&services.jobs);
        let read = parse_job(&caller, &mut clock, &members, seed.map(|seed| (seed, 0))).await?;
        let trace = RequestTrace::from_request(&request);
        let deadline = wait.map(|wait| (wait, Instant::now() + wait));
        let accepted = match deadline {
            Some((_, deadline)) => Box::pin(enqueue_until_deadline(&request, &services, read, trace, deadline)).await?,
            None => enqueue_parsed(&services, read, trace).await?,
        };
        let mut response = accepted.response_builder();
        let mut json = None;
        if let Some((wait, deadline)) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            // The job is stored, so the answer has it even if waiting fails
            match Box::pin(while_admitted(&request, services.job_waiters.wait(&services.jobs, accepted.id, left))).await
            {
                Ok(located) => {
                    response.insert_header(preference_applied(wait));
                    json = located.map(|located| located.to_json());
                }
                Err(error) => tracing::debug!(%error, "cannot wait for the end of a job"),
            }
        }
        Ok(response.body(accepted.answer(json.as_ref().unwrap_or(&accepted.json))))
    })
    .await
}

/// A job that was stored, or the existing job that takes its place.
pub(crate) struct AcceptedJob {
    pub(crate) id: JobId,
    pub(super) json: String,
    /// What the request had and nothing acts on.
    warnings: Vec<String>,
    is_new: bool,
}

impl AcceptedJob {
    /// 201 with the location of the job; 200 if the job existed before.
    fn response_builder(&self) -> HttpResponseBuilder {
        let mut response = ojs_response_builder(if self.is_new { StatusCode::CREATED } else { StatusCode::OK });
        response.insert_header((header::LOCATION, format!("/ojs/v1/jobs/{}", self.id)));
        response
    }

    pub(super) fn into_response(self) -> HttpResponse {
        self.response_builder().body(self.answer(&self.json))
    }

    /// `{"job": ...}` and the warnings.
    pub(super) fn answer(&self, job: &str) -> String {
        with_warnings(job_json(job), &self.warnings)
    }
}

/// A valid request for a job.
#[derive(Clone)]
pub(crate) struct ParsedJob {
    pub(super) new_job: NewJob,
    /// The time to which its relative times were added.
    pub(super) now: Millis,
    /// Whether its id follows from a seed: then a job with this id was made by the same request before.
    has_derived_id: bool,
}

impl ParsedJob {
    /// Derives the job's id from a seed, unless the request names an id.
    pub(super) fn with_seed(mut new_job: NewJob, now: Millis, seed: Option<(IdempotencySeed, usize)>) -> Self {
        let seed = seed.filter(|_| new_job.id.is_none());
        if let Some((seed, n)) = seed {
            new_job.id = Some(JobId::derived(seed.first_request_ms(), &new_job.queue, seed.derive(n)));
        }
        Self { new_job, now, has_derived_id: seed.is_some() }
    }

    /// The job, and what [`enqueue_outcome`] needs to know after it was stored.
    pub(super) fn split(mut self) -> (NewJob, JobOrigin) {
        let warnings = std::mem::take(&mut self.new_job.warnings);
        let origin = JobOrigin { derived_id: self.derived_id(), warnings };
        (self.new_job, origin)
    }

    /// The id, if it follows from a seed.
    pub(super) fn derived_id(&self) -> Option<JobId> {
        self.new_job.id.filter(|_| self.has_derived_id)
    }
}

/// The id that follows from a seed, if any, and the warnings about a request for a job.
pub(super) struct JobOrigin {
    derived_id: Option<JobId>,
    warnings: Vec<String>,
}

/// Checks a request for a job. With a seed the job's id follows from it, so that a repeated request makes no second
/// job. The key must be for the queue.
pub(crate) async fn parse_job(
    caller: &Caller,
    clock: &mut RequestClock<'_>,
    members: &Object<'_>,
    seed: Option<(IdempotencySeed, usize)>,
) -> Result<ParsedJob, ApiError> {
    let now = clock.now_for(members).await?;
    let new_job = NewJob::parse(members, now)?;
    caller.check_queue(Scope::JobsWrite, &new_job.queue)?;
    Ok(ParsedJob::with_seed(new_job, now, seed))
}

/// Stores a job. Finding a job that the same request stored before counts as storing it.
pub(crate) async fn enqueue_parsed(
    services: &Services,
    read: ParsedJob,
    trace: TraceContext,
) -> Result<AcceptedJob, ApiError> {
    let now = read.now;
    let (new, origin) = read.split();
    let outcome = services.jobs.enqueue(new, trace, now).await?;
    enqueue_outcome(services, outcome, origin).await
}

/// The result of storing a job.
pub(super) async fn enqueue_outcome(
    services: &Services,
    outcome: Result<EnqueuedJob, EnqueueRefusal>,
    origin: JobOrigin,
) -> Result<AcceptedJob, ApiError> {
    let JobOrigin { derived_id, warnings } = origin;
    match outcome {
        Ok(enqueued) => {
            let json = enqueued.job.view(enqueued.state).to_json();
            Ok(AcceptedJob { id: enqueued.job.id, json, warnings, is_new: enqueued.is_new })
        }
        Err(EnqueueRefusal::Ignored { id, json }) => Ok(AcceptedJob { id, json, warnings, is_new: false }),
        Err(refused) => {
            // Whatever refuses the job now, the same request may have stored it before
            if let Some(id) = derived_id
                && let Some(located) = Box::pin(services.jobs.locate(id)).await?
            {
                return Ok(AcceptedJob { id, json: located.to_json(), warnings, is_new: true });
            }
            Err(refused.into())
        }
    }
}

async fn enqueue_until_deadline(
    request: &HttpRequest,
    services: &Services,
    read: ParsedJob,
    trace: TraceContext,
    deadline: Instant,
) -> Result<AcceptedJob, ApiError> {
    let (mut permit, mut pause) = (None, MIN_FULL_QUEUE_RETRY_DELAY);
    loop {
        match enqueue_parsed(services, read.clone(), trace.clone()).await {
            Err(error)
                if error.code() == ErrorCode::QueueFull
                    && Instant::now() < deadline
                    && !services.stopping.is_cancelled() =>
            {
                if permit.is_none() {
                    permit = Some(services.job_waiters.try_acquire()?);
                }
                // Claims send no notification, because each claim would pay for it. So waiters try again
                while_admitted(request, async {
                    tokio::select! {
                        () = services.stopping.cancelled() => Err(error),
                        () = tokio::time::sleep(pause.min(deadline.saturating_duration_since(Instant::now()))) => Ok(()),
                    }
                })
                .await?;
                pause = (pause * 2).min(MAX_FULL_QUEUE_RETRY_DELAY);
            }
            outcome => return outcome,
        }
    }
}

/// How long a client prefers to wait: `Prefer: wait=N`, in seconds. An invalid preference is ignored, a long one is
/// limited, and the first of several counts.
fn preferred_wait(headers: &HeaderMap, max_wait: Duration) -> Option<Duration> {
    let preferences = headers.get_all(PREFER).filter_map(|value| value.to_str().ok());
    let mut named = preferences.flat_map(|value| value.split(',')).filter_map(|preference| {
        // Parameters of the preference follow a semicolon
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| value.trim().trim_matches('"').trim())
    });
    let digits = named.next().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))?;
    // A number too large to parse is above the limit
    Some(Duration::from_secs(digits.parse().unwrap_or(u64::MAX)).min(Duration::from_secs(max_wait.as_secs())))
}

/// Confirms the client's preference.
fn preference_applied(wait: Duration) -> (&'static str, String) {
    ("preference-applied", format!("wait={}", wait.as_secs()))
}

#[derive(Deserialize)]
pub(super) struct ShowJobQuery {
    wait_ms: Option<String>,
}

/// Returns a job. With `wait_ms` or `Prefer: wait` it waits until the job has ended or the time is over.
pub(super) async fn show(
    request: HttpRequest,
    services: web::Data<Services>,
    id: web::Path<String>,
    query: web::Query<ShowJobQuery>,
) -> ApiResult {
    let max_ms = u64::try_from(services.settings.gateway.max_wait.as_millis()).unwrap_or(u64::MAX);
    let demanded = query.wait_ms.as_deref().map(|text| {
        text.parse().ok().filter(|ms| *ms <= max_ms).map(Duration::from_millis).ok_or_else(|| {
            ApiError::invalid(format!(
                "wait_ms must be an integer of milliseconds from 0 to {max_ms}, got {}",
                quoted(text)
            ))
        })
    });
    let preferred = match demanded {
        None => preferred_wait(request.headers(), services.settings.gateway.max_wait),
        Some(_) => None,
    };
    let parsed = parse_job_id(&id)?;
    let located = match demanded.transpose()?.or(preferred) {
        Some(limit) => while_admitted(&request, services.job_waiters.wait(&services.jobs, parsed, limit)).await?,
        None => services.jobs.locate(parsed).await?,
    };
    let located = located.ok_or_else(|| job_not_found(&id))?;
    let mut response = ojs_response_builder(StatusCode::OK);
    if let Some(wait) = preferred {
        response.insert_header(preference_applied(wait));
    }
    Ok(response.body(job_json(&located.to_json())))
}

pub(super) async fn cancel(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    state_change_response(&id, services.jobs.cancel(parse_job_id(&id)?).await?)
}

pub(super) async fn activate(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    state_change_response(&id, services.jobs.activate(parse_job_id(&id)?).await?)
}

pub(super) async fn retry(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    state_change_response(&id, services.jobs.retry_now(parse_job_id(&id)?).await?)
}

/// The answer to a request that changes the state of a job.
pub(crate) fn state_change_response(id: &str, outcome: Result<String, JobTransitionError>) -> ApiResult {
    match outcome {
        Ok(job) => Ok(ojs_response(StatusCode::OK, job_json(&job))),
        Err(JobTransitionError::NotFound) => Err(job_not_found(id)),
        Err(JobTransitionError::Conflict(conflict)) => Err(conflict.into()),
        Err(JobTransitionError::Duplicate(other)) => Err(EnqueueRefusal::Duplicate(other).into()),
    }
}

/// An id in a path. An invalid id is not found: no job can have it.
pub(crate) fn parse_job_id(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|_| job_not_found(text))
}

pub(crate) fn job_not_found(id: &str) -> ApiError {
    ApiError::not_found(format_args!("job {}", common::name::quoted(id)))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn a_preference_to_wait_is_read_as_its_standard_has_it() {
        let wait = |values: &[&'static str]| {
            let prefer = |value: &&'static str| (HeaderName::from_static("prefer"), HeaderValue::from_static(value));
            let headers: HeaderMap = values.iter().map(prefer).collect();
            preferred_wait(&headers, Duration::from_mins(1)).map(|wait| wait.as_secs())
        };
        for (values, seconds) in [
            (&["wait=20"][..], 20),
            (&["respond-async, Wait = 20"], 20),
            (&["respond-async", "wait=\"20\"; x=1"], 20),
            (&["wait=20, wait=30"], 20),
            (&["wait=0"], 0),
            (&["wait=61"], 60),
            (&["wait=99999999999999999999999"], 60),
        ] {
            assert_eq!(wait(values), Some(seconds), "{values:?}");
        }
        for values in [&[][..], &["wait"], &["wait="], &["wait=soon"], &["wait=-1"], &["x; wait=5"], &["waits=5"]] {
            assert_eq!(wait(values), None, "{values:?}");
        }
    }
}
