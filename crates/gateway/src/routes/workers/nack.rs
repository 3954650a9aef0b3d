//! Records that jobs failed, or releases them.

use std::time::Duration;

use actix_web::{http::StatusCode, web};
use common::{
    id::JobId,
    json::{Object, ObjectWriter},
    json_members::Members,
    name::SignalName,
    time::{self, Millis},
};
use model::job::{AttemptError, JobTransition, MAX_TIMEOUT_MS, RetryAdvice, wait};
use serde::Deserialize;
use serde_json::value::RawValue;
use store::jobs::{Attempt, AttemptMetrics, ClaimedJob, FailureOutcome, Fence, Settled, WaitRequest};

use super::{find_active_attempt, parse_body_job_id, parse_fence, settle, stale_attempt};
use crate::{
    auth::Caller,
    body::ReportBody,
    error::ApiError,
    routes::{ApiResult, ojs_response},
    services::Services,
};

#[derive(Deserialize)]
struct NackBatchRequest<'a> {
    #[serde(borrow)]
    nacks: Vec<&'a RawValue>,
    worker_id: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct NackRequest<'a> {
    job_id: String,
    worker_id: Option<String>,
    token: Option<String>,
    #[serde(default)]
    requeue: bool,
    wait: Option<Members<NackWaitBody>>,
    #[serde(borrow)]
    error: Option<Members<NackErrorBody<'a>>>,
}

/// What the job waits for: the attempt does not count.
#[derive(Deserialize)]
struct NackWaitBody {
    step: String,
    signal: Option<String>,
    timeout_ms: Option<u64>,
    #[serde(default)]
    received: Vec<u64>,
}

impl NackWaitBody {
    fn parse(self) -> Result<WaitRequest, ApiError> {
        let Self { step, signal, timeout_ms, received } = self;
        if !wait::is_step_name(&step) {
            let most = wait::MAX_STEP_BYTES;
            return Err(ApiError::invalid(format!("wait.step must have 1 to {most} bytes without control characters")));
        }
        if timeout_ms.is_some_and(|ms| ms > wait::MAX_WAIT_MS) {
            let most = wait::MAX_WAIT_MS;
            return Err(ApiError::invalid(format!(
                "wait.timeout_ms must be an integer of milliseconds from 0 to {most}"
            )));
        }
        if signal.is_none() && timeout_ms.is_none() {
            return Err(ApiError::invalid("wait must have signal, timeout_ms or both"));
        }
        if received.len() > wait::MAX_SIGNALS {
            return Err(ApiError::invalid(format!("wait.received must have at most {} numbers", wait::MAX_SIGNALS)));
        }
        let signal = signal.map(SignalName::try_from).transpose()?;
        Ok(WaitRequest { step, signal, timeout: timeout_ms.map(Duration::from_millis), received })
    }
}

#[derive(Deserialize)]
struct NackErrorBody<'a> {
    code: Option<String>,
    #[serde(rename = "type")]
    error_type: Option<String>,
    message: Option<String>,
    retryable: Option<bool>,
    /// When the next attempt follows, instead of the retry policy's delay.
    retry_after_ms: Option<u64>,
    #[serde(alias = "stack_trace", alias = "backtrace")]
    stack: Option<String>,
    /// Until when the rate limit of the job's key admits no job.
    rate_limit_until: Option<String>,
    #[serde(borrow)]
    details: Option<&'a RawValue>,
}

impl NackErrorBody<'_> {
    fn advice(&self, pause: Option<Duration>) -> RetryAdvice {
        match (self.retryable, pause) {
            (Some(false), _) => RetryAdvice::Never,
            (_, Some(pause)) => RetryAdvice::After(pause),
            (_, None) => RetryAdvice::ByPolicy,
        }
    }

    fn failure(&self, attempt: u32, now: Millis) -> AttemptError {
        let code = self.code.as_deref().unwrap_or("handler_error");
        let in_details = self.details.and_then(|raw| {
            let details: Object = serde_json::from_str(raw.get()).ok()?;
            serde_json::from_str::<String>(details.get("error_class")?.get()).ok()
        });
        let error_type = self.error_type.clone().or(in_details).unwrap_or_else(|| code.to_owned());
        let message = self.message.as_deref().unwrap_or_default();
        AttemptError::new(code, &error_type, message, attempt, now)
            .with_details(self.details)
            .with_stack(self.stack.as_deref())
    }
}

/// One job, or several as `{"nacks": [...]}`.
pub(in crate::routes) async fn nack(caller: Caller, services: web::Data<Services>, body: ReportBody) -> ApiResult {
    if !settle::is_batch(&body, "nacks")? {
        return Ok(ojs_response(StatusCode::OK, nack_job(&caller, &services, body.parse()?).await?));
    }
    let NackBatchRequest { nacks: items, worker_id } = body.parse()?;
    settle::check_item_count("nacks", &items)?;
    let worker = worker_id.as_deref();
    super::parse_worker_id(worker_id.clone())?;
    let results =
        settle::settle_each(&items, async |raw| nack_job(&caller, &services, parse_nack(raw, worker)?).await).await;
    Ok(ojs_response(StatusCode::OK, format!("{{\"results\":{results}}}")))
}

/// One of several. Its worker is that of the request, unless it names another.
pub(super) fn parse_nack<'a>(raw: &'a RawValue, worker: Option<&str>) -> Result<NackRequest<'a>, ApiError> {
    let mut nack: NackRequest = settle::parse_item(raw)?;
    nack.worker_id = nack.worker_id.or_else(|| worker.map(ToOwned::to_owned));
    Ok(nack)
}

/// Records that a job failed, or releases it. Returns the JSON of the answer.
pub(super) async fn nack_job(
    caller: &Caller,
    services: &Services,
    request: NackRequest<'_>,
) -> Result<String, ApiError> {
    let fence = parse_fence(request.token, request.worker_id)?;
    let id = parse_body_job_id(&request.job_id)?;
    if request.error.is_none() && request.wait.is_none() && !request.requeue {
        let message = "error is required: an object with code and message, unless requeue is true or there is wait";
        return Err(ApiError::invalid(message));
    }
    if request.wait.is_some() && (request.error.is_some() || request.requeue) {
        return Err(ApiError::invalid("wait stands alone: the attempt has no other outcome"));
    }
    let wait = request.wait.map(|Members(wait)| wait.parse()).transpose()?;
    let pause = request.error.as_ref().and_then(|error| error.0.retry_after_ms).map(parse_retry_after).transpose()?;
    let event = match (&wait, request.requeue) {
        (Some(_), _) => JobTransition::Wait,
        (None, true) => JobTransition::Release,
        (None, false) => JobTransition::Retry,
    };
    let claimed = find_active_attempt(caller, services, id, event, &fence).await?;
    let mut span = settle::settle_span(&claimed);
    let max_attempts = claimed.job.summary.max_attempts;
    let mut answer = ObjectWriter::default();
    let (id_text, attempt) = (id.to_string(), claimed.job.history.current_attempt());
    answer
        .text("id", &id_text)
        .text("job_id", &id_text)
        .number("attempt", attempt)
        .number("max_attempts", max_attempts);
    if let Some(wait) = wait {
        answer.text("state", begin_wait(services, &claimed, &fence, &wait).await?);
        span.set("galley.outcome", "waiting");
        return Ok(answer.finish());
    }
    match request.error {
        Some(Members(error)) if !request.requeue => {
            if let Some(text) = &error.rate_limit_until {
                let until = time::parse_time(text, services.jobs.now().await?)
                    .map_err(|problem| ApiError::invalid(format!("error.rate_limit_until {problem}")))?;
                services.jobs.pause_key(Attempt::of(&claimed, &fence), until.at).await?;
            }
            let now = services.jobs.estimated_now();
            let failure = error.failure(attempt, now);
            let message = services.settings.log.error_texts.then(|| failure.message.clone());
            span.record_failed(&failure.code, message.as_deref(), || settle::describe(&claimed));
            claimed.job.note_span(span.recorded());
            let recorded = services.jobs.fail(&claimed, &fence, failure, error.advice(pause)).await?;
            span.set("galley.outcome", recorded.as_str());
            write_outcome(&mut answer, id, &recorded, now)?;
            AttemptMetrics::new(&claimed.job.queue, recorded.as_str()).count(&claimed, now);
        }
        _ => match services.jobs.release(Attempt::of(&claimed, &fence)).await? {
            Settled::Done => {
                span.set("galley.outcome", "released");
                answer.text("state", "available");
                AttemptMetrics::new(&claimed.job.queue, "released").count(&claimed, services.jobs.estimated_now());
            }
            Settled::AlreadyDone | Settled::Stale => return Err(stale_attempt(id)),
        },
    }
    Ok(answer.finish())
}

/// Ends an attempt whose job waits; the state of the job.
async fn begin_wait(
    services: &Services,
    claimed: &ClaimedJob,
    fence: &Fence,
    wait: &WaitRequest,
) -> Result<&'static str, ApiError> {
    let begun = services.jobs.wait(claimed, fence, wait).await?.ok_or_else(|| stale_attempt(claimed.job.id))?;
    AttemptMetrics::new(&claimed.job.queue, "waiting").count(claimed, services.jobs.estimated_now());
    Ok(if begun.is_due { "available" } else { "scheduled" })
}

fn parse_retry_after(ms: u64) -> Result<Duration, ApiError> {
    if ms <= MAX_TIMEOUT_MS {
        return Ok(Duration::from_millis(ms));
    }
    Err(ApiError::invalid(format!(
        "error.retry_after_ms must be an integer of milliseconds from 0 to {MAX_TIMEOUT_MS}"
    )))
}

fn write_outcome(answer: &mut ObjectWriter, id: JobId, recorded: &FailureOutcome, now: Millis) -> Result<(), ApiError> {
    match recorded {
        FailureOutcome::Retry { due, delay } => {
            let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            answer
                .text("state", "retryable")
                .text("next_attempt_at", &time::format(*due))
                .number("retry_delay_ms", millis);
        }
        FailureOutcome::Discarded(_) => {
            let now = time::format(now);
            answer.text("state", "discarded").text("discarded_at", &now).text("completed_at", &now);
        }
        FailureOutcome::Stale => return Err(stale_attempt(id)),
    }
    Ok(())
}
