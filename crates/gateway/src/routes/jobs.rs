//! Jobs: enqueue, look up, cancel.

use std::time::{Duration, Instant};

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    http::{StatusCode, header},
    web,
};
use common::{
    id::JobId,
    job::NewJob,
    json::Object,
    name::quoted,
    redis::jobs::{Enqueued, NotCancelled, Refused, local_now},
    time::Millis,
};
use serde::Deserialize;

use super::{Answer, job_json, ojs, ojs_builder};
use crate::{
    body::JsonBody,
    context::Trace,
    error::{ApiError, Code},
    idempotency::{Repeatable, Seed, once},
    startup::Services,
};

/// Pause between two tries to get into a full queue.
const ASK_AGAIN: Duration = Duration::from_millis(50);

pub(super) async fn enqueue(request: HttpRequest, services: web::Data<Services>, body: JsonBody) -> Answer {
    let wait = preferred_wait(&request, &services)?;
    once(&request, &services, body.bytes(), Repeatable::Yes, async |seed| {
        let members: Object = body.parse()?;
        let read = parsed(&services, &members, seed.map(|seed| (seed, 0))).await?;
        let deadline = Instant::now() + wait.unwrap_or_default();
        let accepted = accept_when_there_is_room(&services, read, Trace::of(&request), deadline).await?;
        let mut response = accepted.head();
        let mut json = accepted.json;
        if let Some(wait) = wait {
            response.insert_header(("preference-applied", format!("wait={}", wait.as_secs())));
            let left = deadline.saturating_duration_since(Instant::now());
            // It is stored: whatever becomes of the waiting, the answer is about a job that is there
            match services.waiting.wait(&services.jobs, accepted.id, left).await {
                Ok(located) => json = located.map_or(json, |located| located.to_json()),
                Err(error) => tracing::debug!(%error, "the end of a job cannot be waited for"),
            }
        }
        Ok(response.body(job_json(&json)))
    })
    .await
}

/// A job that was stored, or the one that stands for it.
pub(super) struct Accepted {
    pub(super) id: JobId,
    pub(super) json: String,
    is_new: bool,
}

impl Accepted {
    /// 201 and where to find the job; 200 if it stands for another.
    fn head(&self) -> HttpResponseBuilder {
        let mut response = ojs_builder(if self.is_new { StatusCode::CREATED } else { StatusCode::OK });
        response.insert_header((header::LOCATION, format!("/ojs/v1/jobs/{}", self.id)));
        response
    }

    pub(super) fn into_response(self) -> HttpResponse {
        self.head().body(job_json(&self.json))
    }
}

/// A request for a job that was checked.
#[derive(Clone)]
pub(super) struct Parsed {
    pub(super) new: NewJob,
    /// The time that its times were reckoned from.
    pub(super) now: Millis,
    /// Its id follows from a seed: a job that is there already was made by the same request before.
    is_seeded: bool,
}

impl Parsed {
    /// A job whose id follows from the seed, unless it has one already.
    pub(super) fn seeded(mut new: NewJob, now: Millis, seed: Option<(Seed, usize)>) -> Self {
        let seed = seed.filter(|_| new.id.is_none());
        if let Some((seed, n)) = seed {
            new.id = Some(JobId::derived(seed.milliseconds(), &new.queue, seed.nth(n)));
        }
        Self { new, now, is_seeded: seed.is_some() }
    }

    /// The id, if it follows from a seed.
    pub(super) fn own_id(&self) -> Option<JobId> {
        self.new.id.filter(|_| self.is_seeded)
    }
}

/// Checks a request for a job. With a seed the job's id follows from it, so that it is made only once.
pub(super) async fn parsed(
    services: &Services,
    members: &Object<'_>,
    seed: Option<(Seed, usize)>,
) -> Result<Parsed, ApiError> {
    // Start times are reckoned on Redis's clock, which decides when they have come
    let now = if NewJob::mentions_time(members) { services.jobs.now().await? } else { local_now() };
    Ok(Parsed::seeded(NewJob::parse(members, now)?, now, seed))
}

/// Stores a job. One that was stored by the same request before is as good as new.
pub(super) async fn accept(services: &Services, read: Parsed, trace: Option<String>) -> Result<Accepted, ApiError> {
    let own_id = read.own_id();
    let outcome = services.jobs.enqueue(read.new, trace, read.now).await?;
    accepted(services, outcome, own_id).await
}

/// What became of a job, given the id that it was to have if that follows from a seed.
pub(super) async fn accepted(
    services: &Services,
    outcome: Result<Enqueued, Refused>,
    own_id: Option<JobId>,
) -> Result<Accepted, ApiError> {
    match outcome {
        Ok(enqueued) => {
            let json = enqueued.job.view(enqueued.state).to_json();
            Ok(Accepted { id: enqueued.job.id, json, is_new: true })
        }
        Err(Refused::Ignored { id, json }) => Ok(Accepted { id, json, is_new: false }),
        Err(refused) => {
            // Whatever is in the way now: the same request may have made it before
            if let Some(id) = own_id
                && let Some(located) = services.jobs.locate(id).await?
            {
                return Ok(Accepted { id, json: located.to_json(), is_new: true });
            }
            Err(refused.into())
        }
    }
}

async fn accept_when_there_is_room(
    services: &Services,
    read: Parsed,
    trace: Option<String>,
    deadline: Instant,
) -> Result<Accepted, ApiError> {
    loop {
        match accept(services, read.clone(), trace.clone()).await {
            Err(error) if error.code() == Code::QueueFull && Instant::now() < deadline => {
                // Nobody tells when a job is taken: that would cost every claim. Those who wait ask again
                tokio::time::sleep(ASK_AGAIN.min(deadline.saturating_duration_since(Instant::now()))).await;
            }
            outcome => return outcome,
        }
    }
}

/// How long a client would like to wait: `Prefer: wait=N`, in seconds.
fn preferred_wait(request: &HttpRequest, services: &Services) -> Result<Option<Duration>, ApiError> {
    let preferences = request.headers().get_all("prefer").filter_map(|value| value.to_str().ok());
    let wait = preferences.flat_map(|value| value.split([',', ';'])).find_map(|part| part.trim().strip_prefix("wait="));
    let Some(text) = wait else { return Ok(None) };
    let most = services.settings.gateway.max_wait.as_secs();
    let seconds = text.trim_matches('"').parse().ok().filter(|seconds| *seconds <= most);
    seconds.map(|seconds| Some(Duration::from_secs(seconds))).ok_or_else(|| {
        ApiError::invalid(format!("Prefer: wait must be an integer of seconds from 0 to {most}, got {}", quoted(text)))
    })
}

#[derive(Deserialize)]
pub(super) struct Look {
    wait_ms: Option<String>,
}

/// Shows a job; with `wait_ms` or `Prefer: wait` not before it has ended or the time is over.
pub(super) async fn show(
    request: HttpRequest,
    services: web::Data<Services>,
    id: web::Path<String>,
    query: web::Query<Look>,
) -> Answer {
    let most = u64::try_from(services.settings.gateway.max_wait.as_millis()).unwrap_or(u64::MAX);
    let wait = match query.wait_ms.as_deref() {
        None => preferred_wait(&request, &services)?,
        Some(text) => Some(text.parse().ok().filter(|ms| *ms <= most).map(Duration::from_millis).ok_or_else(|| {
            ApiError::invalid(format!(
                "wait_ms must be an integer of milliseconds from 0 to {most}, got {}",
                quoted(text)
            ))
        })?),
    };
    let parsed = job_id(&id)?;
    let located = match wait {
        Some(limit) => services.waiting.wait(&services.jobs, parsed, limit).await?,
        None => services.jobs.locate(parsed).await?,
    };
    let located = located.ok_or_else(|| unknown(&id))?;
    Ok(ojs(StatusCode::OK, job_json(&located.to_json())))
}

pub(super) async fn cancel(services: web::Data<Services>, id: web::Path<String>) -> Answer {
    match services.jobs.cancel(job_id(&id)?).await? {
        Ok(cancelled) => Ok(ojs(StatusCode::OK, job_json(&cancelled.0))),
        Err(NotCancelled::Unknown) => Err(unknown(&id)),
        Err(NotCancelled::Conflict(conflict)) => Err(conflict.into()),
    }
}

/// An id in a path. What is no id cannot be the id of a job either.
pub(super) fn job_id(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|_| unknown(text))
}

pub(super) fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format_args!("job {}", common::name::quoted(id)))
}

pub(super) async fn activate(services: web::Data<Services>, id: web::Path<String>) -> Answer {
    match services.jobs.activate(job_id(&id)?).await? {
        Ok(job) => Ok(ojs(StatusCode::OK, job_json(&job))),
        Err(NotCancelled::Unknown) => Err(unknown(&id)),
        Err(NotCancelled::Conflict(conflict)) => Err(conflict.into()),
    }
}
