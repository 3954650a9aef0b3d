//! Jobs failed, or are handed back.

use std::time::Duration;

use actix_web::{http::StatusCode, web};
use common::{
    id::JobId,
    json::{Object, ObjectWriter},
    time,
};
use model::job::{Advice, Event, Failure, request::LONGEST_LIMIT_MS};
use serde::Deserialize;
use serde_json::value::RawValue;
use store::jobs::{Recorded, Settled, local_now};

use super::{active, fence, id, settle, stale};
use crate::{
    body::BatchBody,
    error::ApiError,
    routes::{Answer, ojs},
    startup::Services,
};

#[derive(Deserialize)]
struct Nacks<'a> {
    #[serde(borrow)]
    nacks: Option<Vec<&'a RawValue>>,
    worker_id: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Nack<'a> {
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
    /// When the next attempt follows, in the place of the policy's delay.
    retry_after_ms: Option<u64>,
    #[serde(alias = "stack_trace", alias = "backtrace")]
    stack: Option<String>,
    /// The limit of the job's key allows nothing before this time.
    rate_limit_until: Option<String>,
    #[serde(borrow)]
    details: Option<&'a RawValue>,
}

impl Reported<'_> {
    fn advice(&self, pause: Option<Duration>) -> Advice {
        match (self.retryable, pause) {
            (Some(false), _) => Advice::Never,
            (_, Some(pause)) => Advice::After(pause),
            (_, None) => Advice::ByPolicy,
        }
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

/// One job, or several as `{"nacks": [...]}`.
pub(in crate::routes) async fn nack(services: web::Data<Services>, body: BatchBody) -> Answer {
    let Nacks { nacks: Some(items), worker_id } = body.parse()? else {
        return Ok(ojs(StatusCode::OK, one(&services, body.parse()?).await?));
    };
    settle::bounded("nacks", &items)?;
    let worker = worker_id.as_deref();
    super::worker(worker_id.clone())?;
    let results = settle::each(&items, async |raw| one(&services, read(raw, worker)?).await).await;
    Ok(ojs(StatusCode::OK, format!("{{\"results\":{results}}}")))
}

/// One of several; the worker is that of all of them unless it says another.
pub(super) fn read<'a>(raw: &'a RawValue, worker: Option<&str>) -> Result<Nack<'a>, ApiError> {
    let mut nack: Nack = settle::item(raw)?;
    nack.worker_id = nack.worker_id.or_else(|| worker.map(ToOwned::to_owned));
    Ok(nack)
}

/// Records that a job failed, or hands it back; the JSON of the answer.
pub(super) async fn one(services: &Services, request: Nack<'_>) -> Result<String, ApiError> {
    let fence = fence(request.token, request.worker_id)?;
    let id = id(&request.job_id)?;
    if request.error.is_none() && !request.requeue {
        return Err(ApiError::invalid("error is required: an object with code and message, unless requeue is true"));
    }
    let pause = request.error.as_ref().and_then(|error| error.retry_after_ms).map(pause).transpose()?;
    let event = if request.requeue { Event::Release } else { Event::Retry };
    let claimed = active(services, id, event, &fence).await?;
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
            let recorded = services.jobs.fail(&claimed, &fence, error.failure(attempt), error.advice(pause)).await?;
            write_failure(&mut answer, id, &recorded)?;
        }
        _ => match services.jobs.requeue(&claimed.job, claimed.entry, &fence).await? {
            Settled::Done => drop(answer.text("state", "available")),
            Settled::DoneBefore | Settled::Stale => return Err(stale(id)),
        },
    }
    Ok(answer.finish())
}

fn pause(ms: u64) -> Result<Duration, ApiError> {
    if ms <= LONGEST_LIMIT_MS {
        return Ok(Duration::from_millis(ms));
    }
    Err(ApiError::invalid(format!(
        "error.retry_after_ms must be an integer of milliseconds from 0 to {LONGEST_LIMIT_MS}"
    )))
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
