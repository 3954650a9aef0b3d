//! Many jobs in one request: all or none, each on its own, or a stream of lines without end.

use std::collections::HashSet;

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web::{self, Bytes, BytesMut},
};
use common::{
    json::{self, Object},
    name::quoted,
    redis::jobs::BatchRefused,
};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::sync::mpsc;

use super::{
    Answer,
    jobs::{Accepted, Parsed, accepted, parsed},
    ojs,
};
use crate::{
    body::BatchBody,
    context::Trace,
    error::{ApiError, Code},
    idempotency::{Repeatable, Seed, once},
    startup::Services,
};

/// Jobs that are stored, and answered, in one go.
const AT_ONCE: usize = 64;
const NDJSON: &str = "application/x-ndjson";

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    jobs: Vec<&'a RawValue>,
    mode: Option<String>,
}

/// `{"jobs": [...], "mode": "atomic"}`: all are stored or none. With `"per_item"` each has an answer of its own.
pub(super) async fn enqueue(request: HttpRequest, services: web::Data<Services>, body: BatchBody) -> Answer {
    once(&request, &services, body.bytes(), Repeatable::Yes, async |seed| {
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
    for (n, raw) in jobs.iter().enumerate() {
        let read = read(services, raw, seed.map(|seed| (seed, n))).await;
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
    let mut results = Vec::with_capacity(jobs.len());
    for some in wanted.chunks(AT_ONCE) {
        results.extend(store(services, some, trace.clone()).await);
    }
    Ok(ojs(StatusCode::OK, format!("{{\"results\":[{}]}}", results.join(","))))
}

/// A job that somebody wants, or why it cannot be read.
type Wanted<'a> = (Result<&'a RawValue, ApiError>, Option<(Seed, usize)>);

/// Stores some of many, in their order; a line of the answer for each.
async fn store(services: &Services, wanted: &[Wanted<'_>], trace: Option<String>) -> Vec<String> {
    let mut own_ids = Vec::with_capacity(wanted.len());
    let mut new = Vec::with_capacity(wanted.len());
    for (raw, seed) in wanted {
        let read = match raw {
            Ok(raw) => read(services, raw, *seed).await,
            Err(error) => Err(error.clone()),
        };
        own_ids.push(read.map(|read| {
            let own_id = read.own_id();
            new.push((read.new, read.now));
            own_id
        }));
    }
    let mut outcomes = services.jobs.enqueue_each(new, trace).await.into_iter();
    let mut lines = Vec::with_capacity(wanted.len());
    for own_id in own_ids {
        let outcome = match own_id {
            Err(error) => Err(error),
            Ok(own_id) => match outcomes.next() {
                Some(Ok(outcome)) => accepted(services, outcome, own_id).await,
                Some(Err(error)) => Err(error.into()),
                None => Err(ApiError::new(Code::Internal, "the job was not stored")),
            },
        };
        lines.push(line(outcome));
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

async fn read(services: &Services, raw: &RawValue, seed: Option<(Seed, usize)>) -> Result<Parsed, ApiError> {
    let limit = services.settings.gateway.body_limit_bytes;
    if raw.get().len() > limit {
        return Err(ApiError::new(Code::PayloadTooLarge, format!("a job must have at most {limit} bytes")));
    }
    let members: Object = serde_json::from_str(raw.get())
        .map_err(|error| ApiError::invalid(format!("a job must be a JSON object: {error}")))?;
    parsed(services, &members, seed).await
}

/// A body of lines, a job each, as long as it comes; a line of the answer for each, in their order.
pub(super) async fn enqueue_lines(
    request: HttpRequest,
    services: web::Data<Services>,
    mut payload: web::Payload,
) -> Answer {
    let given = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !given.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(NDJSON) {
        return Err(ApiError::new(Code::UnsupportedMediaType, format!("Content-Type must be {NDJSON}")));
    }
    let trace = Trace::of(&request);
    let (answers, lines) = mpsc::channel::<Bytes>(4);
    // Lines are answered while others still come, so this outlives the handler
    actix_web::rt::spawn(async move {
        let mut rest = BytesMut::new();
        let limit = services.settings.gateway.body_limit_bytes;
        loop {
            let next = tokio::time::timeout(services.settings.gateway.body_timeout, payload.next()).await;
            let problem = match next {
                Ok(Some(Ok(chunk))) => {
                    rest.extend_from_slice(&chunk);
                    let complete = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                    let whole = rest.split_to(complete);
                    if !answer_lines(&services, &whole, trace.as_ref(), &answers).await {
                        return;
                    }
                    (rest.len() > limit).then(|| format!("a line must have at most {limit} bytes"))
                }
                Ok(None) => {
                    answer_lines(&services, &rest, trace.as_ref(), &answers).await;
                    return;
                }
                Ok(Some(Err(_))) => Some("the body broke off; an incomplete last line was not read".to_owned()),
                Err(_) => Some("the body paused for too long; an incomplete last line was not read".to_owned()),
            };
            if let Some(problem) = problem {
                let error = ApiError::new(Code::InvalidPayload, problem).to_json();
                let _ = answers.send(format!("{}\n", json!({ "error": error })).into()).await;
                return;
            }
        }
    });
    let body = stream::unfold(lines, |mut lines| async {
        let line = lines.recv().await?;
        Some((Ok::<Bytes, actix_web::Error>(line), lines))
    });
    Ok(HttpResponse::Ok().content_type(NDJSON).streaming(body))
}

/// Stores the job of each line; false when nobody wants to know any more.
async fn answer_lines(
    services: &Services,
    lines: &[u8],
    trace: Option<&String>,
    answers: &mpsc::Sender<Bytes>,
) -> bool {
    let depth = services.settings.gateway.json_depth_limit;
    let lines = lines.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let wanted: Vec<Wanted> =
        lines.map(|line| (json::parse::<&RawValue>(line, depth).map_err(ApiError::from), None)).collect();
    for some in wanted.chunks(AT_ONCE) {
        let mut text = store(services, some, trace.cloned()).await.join("\n");
        text.push('\n');
        if answers.send(text.into()).await.is_err() {
            return false;
        }
    }
    true
}
