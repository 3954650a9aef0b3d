//! Many jobs in one request: all or none, or each on its own. `lines` has those that come as a stream without end.

use std::collections::HashSet;

use actix_web::{HttpRequest, http::StatusCode, web};
use common::{json::Object, name::quoted};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use store::jobs::{BatchRefused, Reckoning};

use super::{
    Answer,
    jobs::{Accepted, Parsed, accepted, parsed},
    ojs,
};
use crate::{
    body::BatchBody,
    context::Trace,
    error::{ApiError, Code},
    idempotency::{NotFinal, Seed, once},
    startup::Services,
};

/// Jobs that are stored, and answered, in one go.
pub(super) const AT_ONCE: usize = 64;

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    jobs: Vec<&'a RawValue>,
    mode: Option<String>,
}

/// `{"jobs": [...], "mode": "atomic"}`: all are stored or none. With `"per_item"` each has an answer of its own.
pub(super) async fn enqueue(request: HttpRequest, services: web::Data<Services>, body: BatchBody) -> Answer {
    once(&request, &services, &[body.bytes()], async |seed| {
        let batch: Batch = body.parse()?;
        let most = services.settings.gateway.batch_max_jobs;
        if !(1..=most).contains(&batch.jobs.len()) {
            return Err(ApiError::invalid(format!(
                "jobs must be an array of 1 to {most} jobs, got {}",
                batch.jobs.len()
            )));
        }
        match batch.mode.as_deref() {
            None | Some("atomic") => all_or_none(&services, &batch.jobs, Trace::of(&request), seed).await,
            Some("per_item") => one_by_one(&services, &batch.jobs, Trace::of(&request), seed).await,
            Some(other) => {
                Err(ApiError::invalid(format!("mode must be \"atomic\" or \"per_item\", got {}", quoted(other))))
            }
        }
    })
    .await
}

async fn all_or_none(services: &Services, jobs: &[&RawValue], trace: Option<String>, seed: Option<Seed>) -> Answer {
    let (mut new, mut own_ids, mut now) = (Vec::with_capacity(jobs.len()), HashSet::new(), 0);
    let mut reckoning = Reckoning::new(&services.jobs);
    for (n, raw) in jobs.iter().enumerate() {
        let read = read(services, &mut reckoning, raw, seed.map(|seed| (seed, n))).await;
        let read = read.map_err(|error| error.about(&format!("jobs[{n}]")))?;
        now = read.now;
        own_ids.extend(read.own_id());
        new.push(read.new);
    }
    let stored = services.jobs.enqueue_all(new, trace, now, &own_ids).await?;
    let stored =
        stored.map_err(|BatchRefused { index, refused }| ApiError::from(refused).about(&format!("jobs[{index}]")))?;
    let shown: Vec<String> = stored.iter().map(|enqueued| enqueued.job.view(enqueued.state).to_json()).collect();
    Ok(ojs(StatusCode::CREATED, format!("{{\"jobs\":[{}]}}", shown.join(","))))
}

async fn one_by_one(services: &Services, jobs: &[&RawValue], trace: Option<String>, seed: Option<Seed>) -> Answer {
    let wanted: Vec<Wanted> = jobs.iter().enumerate().map(|(n, raw)| (Ok(*raw), seed.map(|seed| (seed, n)))).collect();
    let mut results = Lines::default();
    for some in wanted.chunks(AT_ONCE) {
        let stored = store(services, some, trace.clone()).await;
        results.texts.extend(stored.texts);
        results.are_final &= stored.are_final;
    }
    let mut response = ojs(StatusCode::OK, format!("{{\"results\":[{}]}}", results.texts.join(",")));
    if !results.are_final {
        response.extensions_mut().insert(NotFinal);
    }
    Ok(response)
}

/// A job that somebody wants, or why it cannot be read.
pub(super) type Wanted<'a> = (Result<&'a RawValue, ApiError>, Option<(Seed, usize)>);

/// Lines of an answer, one for each job.
pub(super) struct Lines {
    pub(super) texts: Vec<String>,
    /// None of the jobs may be stored if it is sent again.
    pub(super) are_final: bool,
}

impl Default for Lines {
    fn default() -> Self {
        Self { texts: Vec::new(), are_final: true }
    }
}

/// Stores some of many, in their order; a line of the answer for each.
pub(super) async fn store(services: &Services, wanted: &[Wanted<'_>], trace: Option<String>) -> Lines {
    let mut reckoning = Reckoning::new(&services.jobs);
    let mut own_ids = Vec::with_capacity(wanted.len());
    let mut new = Vec::with_capacity(wanted.len());
    for (raw, seed) in wanted {
        let read = match raw {
            Ok(raw) => read(services, &mut reckoning, raw, *seed).await,
            Err(error) => Err(error.clone()),
        };
        own_ids.push(read.map(|read| {
            let own_id = read.own_id();
            new.push((read.new, read.now));
            own_id
        }));
    }
    let mut outcomes = services.jobs.enqueue_each(new, trace).await.into_iter();
    let mut lines = Lines::default();
    for own_id in own_ids {
        let outcome = match own_id {
            Err(error) => Err(error),
            Ok(own_id) => match outcomes.next() {
                Some(Ok(outcome)) => accepted(services, outcome, own_id).await,
                Some(Err(error)) => Err(error.into()),
                None => Err(ApiError::new(Code::Internal, "the job was not stored")),
            },
        };
        lines.are_final &= !outcome.as_ref().is_err_and(ApiError::is_retryable);
        lines.texts.push(line(outcome));
    }
    lines
}

/// The line of an answer.
fn line(outcome: Result<Accepted, ApiError>) -> String {
    match outcome {
        Ok(accepted) => ["{\"job\":", &accepted.json, "}"].concat(),
        Err(error) => {
            if let Some(cause) = error.cause() {
                tracing::error!(cause, "a job of many failed inside");
            }
            json!({ "error": error.to_json() }).to_string()
        }
    }
}

async fn read(
    services: &Services,
    reckoning: &mut Reckoning<'_>,
    raw: &RawValue,
    seed: Option<(Seed, usize)>,
) -> Result<Parsed, ApiError> {
    let limit = services.settings.gateway.body_limit_bytes;
    if raw.get().len() > limit {
        return Err(ApiError::new(Code::PayloadTooLarge, format!("a job must have at most {limit} bytes")));
    }
    let members: Object = serde_json::from_str(raw.get())
        .map_err(|error| ApiError::invalid(format!("a job must be a JSON object: {error}")))?;
    parsed(reckoning, &members, seed).await
}
