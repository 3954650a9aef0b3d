//! Jobs: enqueue, look up, cancel.

use std::time::{Duration, Instant};

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    http::{
        StatusCode,
        header::{self, HeaderMap},
    },
    web,
};
use common::{id::JobId, json::Object, name::quoted, time::Millis};
use model::job::NewJob;
use serde::Deserialize;
use store::jobs::{EnqueueRefusal, EnqueuedJob, JobTransitionError, RequestClock};

use super::{ApiResult, job_json, ojs_response, ojs_response_builder};
use crate::{
    body::JsonBody,
    context::RequestTrace,
    error::{ApiError, ErrorCode},
    idempotency::{IdempotencySeed, run_idempotent},
    startup::Services,
};

/// Pause between two tries to get into a full queue: it doubles from the first to the longest.
const MIN_FULL_QUEUE_RETRY_DELAY: Duration = Duration::from_millis(50);
const MAX_FULL_QUEUE_RETRY_DELAY: Duration = Duration::from_millis(800);

pub(super) async fn enqueue(request: HttpRequest, services: web::Data<Services>, body: JsonBody) -> ApiResult {
    let wait = preferred_wait(request.headers(), services.settings.gateway.max_wait);
    run_idempotent(&request, &services, &[body.bytes()], async |seed| {
        let members: Object = body.parse()?;
        let read = parse_job(&mut RequestClock::new(&services.jobs), &members, seed.map(|seed| (seed, 0))).await?;
        let deadline = Instant::now() + wait.unwrap_or_default();
        let accepted = enqueue_until_deadline(&services, read, RequestTrace::from_request(&request), deadline).await?;
        let mut response = accepted.response_builder();
        let mut json = accepted.json;
        if let Some(wait) = wait {
            let left = deadline.saturating_duration_since(Instant::now());
            // It is stored: whatever becomes of the waiting, the answer is about a job that is there
            match services.job_waiters.wait(&services.jobs, accepted.id, left).await {
                Ok(located) => {
                    response.insert_header(preference_applied(wait));
                    json = located.map_or(json, |located| located.to_json());
                }
                Err(error) => tracing::debug!(%error, "the end of a job cannot be waited for"),
            }
        }
        Ok(response.body(job_json(&json)))
    })
    .await
}

/// A job that was stored, or the one that stands for it.
pub(super) struct AcceptedJob {
    pub(super) id: JobId,
    pub(super) json: String,
    is_new: bool,
}

impl AcceptedJob {
    /// 201 and where to find the job; 200 if it stands for another.
    fn response_builder(&self) -> HttpResponseBuilder {
        let mut response = ojs_response_builder(if self.is_new { StatusCode::CREATED } else { StatusCode::OK });
        response.insert_header((header::LOCATION, format!("/ojs/v1/jobs/{}", self.id)));
        response
    }

    pub(super) fn into_response(self) -> HttpResponse {
        self.response_builder().body(job_json(&self.json))
    }
}

/// A request for a job that was checked.
#[derive(Clone)]
pub(super) struct ParsedJob {
    pub(super) new_job: NewJob,
    /// The time that its times were reckoned from.
    pub(super) now: Millis,
    /// Its id follows from a seed: a job that is there already was made by the same request before.
    has_derived_id: bool,
}

impl ParsedJob {
    /// A job whose id follows from the seed, unless it has one already.
    pub(super) fn with_seed(mut new_job: NewJob, now: Millis, seed: Option<(IdempotencySeed, usize)>) -> Self {
        let seed = seed.filter(|_| new_job.id.is_none());
        if let Some((seed, n)) = seed {
            new_job.id = Some(JobId::derived(seed.first_request_ms(), &new_job.queue, seed.derive(n)));
        }
        Self { new_job, now, has_derived_id: seed.is_some() }
    }

    /// The id, if it follows from a seed.
    pub(super) fn derived_id(&self) -> Option<JobId> {
        self.new_job.id.filter(|_| self.has_derived_id)
    }
}

/// Checks a request for a job. With a seed the job's id follows from it, so that it is made only once.
pub(super) async fn parse_job(
    reckoning: &mut RequestClock<'_>,
    members: &Object<'_>,
    seed: Option<(IdempotencySeed, usize)>,
) -> Result<ParsedJob, ApiError> {
    let now = reckoning.now_for(members).await?;
    Ok(ParsedJob::with_seed(NewJob::parse(members, now)?, now, seed))
}

/// Stores a job. One that was stored by the same request before is as good as new.
pub(super) async fn enqueue_parsed(
    services: &Services,
    read: ParsedJob,
    trace: Option<String>,
) -> Result<AcceptedJob, ApiError> {
    let own_id = read.derived_id();
    let outcome = services.jobs.enqueue(read.new_job, trace, read.now).await?;
    enqueue_outcome(services, outcome, own_id).await
}

/// What became of a job, given the id that it was to have if that follows from a seed.
pub(super) async fn enqueue_outcome(
    services: &Services,
    outcome: Result<EnqueuedJob, EnqueueRefusal>,
    own_id: Option<JobId>,
) -> Result<AcceptedJob, ApiError> {
    match outcome {
        Ok(enqueued) => {
            let json = enqueued.job.view(enqueued.state).to_json();
            Ok(AcceptedJob { id: enqueued.job.id, json, is_new: true })
        }
        Err(EnqueueRefusal::Ignored { id, json }) => Ok(AcceptedJob { id, json, is_new: false }),
        Err(refused) => {
            // Whatever is in the way now: the same request may have made it before
            if let Some(id) = own_id
                && let Some(located) = services.jobs.locate(id).await?
            {
                return Ok(AcceptedJob { id, json: located.to_json(), is_new: true });
            }
            Err(refused.into())
        }
    }
}

async fn enqueue_until_deadline(
    services: &Services,
    read: ParsedJob,
    trace: Option<String>,
    deadline: Instant,
) -> Result<AcceptedJob, ApiError> {
    let (mut place, mut pause) = (None, MIN_FULL_QUEUE_RETRY_DELAY);
    loop {
        match enqueue_parsed(services, read.clone(), trace.clone()).await {
            Err(error)
                if error.code() == ErrorCode::QueueFull
                    && Instant::now() < deadline
                    && !services.stopping.is_cancelled() =>
            {
                if place.is_none() {
                    place = Some(services.job_waiters.try_acquire()?);
                }
                // Nobody tells when a job is taken: that would cost every claim. Those who wait ask again
                tokio::select! {
                    () = services.stopping.cancelled() => return Err(error),
                    () = tokio::time::sleep(pause.min(deadline.saturating_duration_since(Instant::now()))) => {}
                }
                pause = (pause * 2).min(MAX_FULL_QUEUE_RETRY_DELAY);
            }
            outcome => return outcome,
        }
    }
}

/// How long a client would like to wait: `Prefer: wait=N`, in seconds. It is a wish: what cannot be read is no wish, and what
/// is too long is cut. Of several the first one counts.
fn preferred_wait(headers: &HeaderMap, most: Duration) -> Option<Duration> {
    let preferences = headers.get_all("prefer").filter_map(|value| value.to_str().ok());
    let mut named = preferences.flat_map(|value| value.split(',')).filter_map(|preference| {
        // Behind a semicolon are parameters of the preference
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| value.trim().trim_matches('"').trim())
    });
    let digits = named.next().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))?;
    // So many that they are no number any more are too long
    Some(Duration::from_secs(digits.parse().unwrap_or(u64::MAX)).min(Duration::from_secs(most.as_secs())))
}

/// Says that it was waited as the client likes.
fn preference_applied(wait: Duration) -> (&'static str, String) {
    ("preference-applied", format!("wait={}", wait.as_secs()))
}

#[derive(Deserialize)]
pub(super) struct ShowJobQuery {
    wait_ms: Option<String>,
}

/// Shows a job; with `wait_ms` or `Prefer: wait` not before it has ended or the time is over.
pub(super) async fn show(
    request: HttpRequest,
    services: web::Data<Services>,
    id: web::Path<String>,
    query: web::Query<ShowJobQuery>,
) -> ApiResult {
    let most = u64::try_from(services.settings.gateway.max_wait.as_millis()).unwrap_or(u64::MAX);
    let demanded = query.wait_ms.as_deref().map(|text| {
        text.parse().ok().filter(|ms| *ms <= most).map(Duration::from_millis).ok_or_else(|| {
            ApiError::invalid(format!(
                "wait_ms must be an integer of milliseconds from 0 to {most}, got {}",
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
        Some(limit) => services.job_waiters.wait(&services.jobs, parsed, limit).await?,
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

/// What became of a job that was to get into another state.
fn state_change_response(id: &str, outcome: Result<String, JobTransitionError>) -> ApiResult {
    match outcome {
        Ok(job) => Ok(ojs_response(StatusCode::OK, job_json(&job))),
        Err(JobTransitionError::NotFound) => Err(job_not_found(id)),
        Err(JobTransitionError::Conflict(conflict)) => Err(conflict.into()),
    }
}

/// An id in a path. What is no id cannot be the id of a job either.
pub(super) fn parse_job_id(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|_| job_not_found(text))
}

pub(super) fn job_not_found(id: &str) -> ApiError {
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
