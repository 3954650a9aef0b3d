//! Runs a job by sending it to an HTTP endpoint. `docs/push.md` describes the request and the answers.
//!
//! The endpoint may answer 202 and finish later: its request has a token with which it ends the attempt over HTTP.

use std::{
    collections::BTreeMap,
    sync::OnceLock,
    time::{Duration, Instant},
};

use common::time::{self, Millis};
use delivery::http::{
    BreakerSettings, Endpoint, EndpointSettings, FixedHeaders, Network, PushAnswer, PushError, PushRequest, PushResult,
    PushRetry, Secret,
};
use model::{job::RetryAdvice, url_template::UrlTemplate};
use store::deliveries::{DeliveredItem, DeliveryOutcome, DeliveryOwner, DeliveryRecord};

use super::{Context, ContextError, HandlerError, HandlerOutcome, HandlerResult};

/// HTTP 202, accepted: the endpoint finishes the job later.
const ACCEPTED: u16 = 202;

/// A rule's settings for an endpoint. They hold secrets, so there is no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct HttpSettings {
    pub(crate) url: String,
    pub(crate) secrets: Vec<String>,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) timeout_ms: u64,
    pub(crate) connect_timeout_ms: u64,
    /// How long an endpoint that answered 202 may stay silent before the job is sent again, in milliseconds.
    pub(crate) callback_timeout_ms: u64,
    pub(crate) allow_private: bool,
    pub(crate) concurrency: u64,
    pub(crate) breaker_failures: u64,
    pub(crate) breaker_open_ms: u64,
    pub(crate) answer_limit_bytes: u64,
}

/// An endpoint that jobs are sent to.
pub(crate) struct HttpRule {
    settings: HttpSettings,
    endpoint: Endpoint,
}

/// The network that all rules of this process share; certificates are read once.
fn shared_network() -> Result<&'static Network, String> {
    static NETWORK: OnceLock<Result<Network, String>> = OnceLock::new();
    NETWORK.get_or_init(|| Network::system().map_err(|error| error.to_string())).as_ref().map_err(Clone::clone)
}

impl HttpRule {
    /// Validates a rule's settings; the error is a message for people.
    pub(crate) fn new(settings: HttpSettings) -> Result<Self, String> {
        let url = UrlTemplate::parse(&settings.url, &["type", "queue"]).map_err(|error| error.to_string())?;
        let secrets = settings.secrets.iter().map(|secret| secret.parse::<Secret>());
        let headers = settings.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let endpoint = EndpointSettings {
            secrets: secrets.collect::<Result<_, _>>().map_err(|error| error.to_string())?,
            timeout: Duration::from_millis(settings.timeout_ms),
            connect_timeout: Duration::from_millis(settings.connect_timeout_ms),
            allow_private: settings.allow_private,
            concurrency: count(settings.concurrency),
            breaker: BreakerSettings {
                failures: u32::try_from(settings.breaker_failures).unwrap_or(u32::MAX),
                open_for: Duration::from_millis(settings.breaker_open_ms),
            },
            headers: FixedHeaders::parse(headers).map_err(|error| error.to_string())?,
            answer_limit_bytes: count(settings.answer_limit_bytes),
            ..EndpointSettings::new(url)
        };
        let endpoint = Endpoint::new(endpoint, shared_network()?).map_err(|error| error.to_string())?;
        Ok(Self { settings, endpoint })
    }

    pub(crate) fn settings(&self) -> &HttpSettings {
        &self.settings
    }

    pub(crate) async fn run(&self, context: &Context, pattern: &str) -> HandlerResult {
        let token = uuid::Uuid::new_v4().simple().to_string();
        // Issue the token before the request: the endpoint may use it before it answers
        context.issue_callback_token(&token).await.map_err(|error| match error {
            // A Redis failure is neither the endpoint's nor the job's fault
            ContextError::Unavailable(_) => HandlerError::retryable(error.to_string()).with_code("redis_unavailable"),
            error => HandlerError::retryable(error.to_string()),
        })?;
        let (id, attempt) = (context.id().to_string(), context.attempt().to_string());
        let (job_type, queue) = (context.job_type().as_str(), context.queue().as_str());
        let source = format!("/galley/queues/{queue}");
        let created_at = time::format(context.claimed().job.created_at());
        let deadline = context.deadline_ms().map(time::format);
        let mut headers = vec![
            ("ce-specversion", "1.0"),
            ("ce-id", id.as_str()),
            ("ce-source", &source),
            ("ce-type", job_type),
            ("ce-time", &created_at),
            ("galley-job-id", &id),
            ("galley-queue", queue),
            ("galley-attempt", &attempt),
            ("galley-token", &token),
        ];
        headers.extend(deadline.as_deref().map(|deadline| ("galley-deadline", deadline)));
        let request = PushRequest {
            id: &id,
            values: &[("type", job_type), ("queue", queue)],
            headers: &headers,
            body: context.job_json(Some(&token)).into(),
            sent_at: context.jobs().estimated_now(),
        };
        let (at, began) = (context.jobs().estimated_now(), Instant::now());
        let answered = self.endpoint.post(request).await;
        log_attempt(context, pattern, &answered, (at, began.elapsed()));
        let answer = match answered {
            Ok(answer) => answer,
            // Nothing was sent. Spread the retries so that they do not arrive at the same moment
            Err(PushError { retry: PushRetry::After(delay), message, was_sent: false, .. }) => {
                let delay = delay.mul_f64(rand::random_range(1.0..1.5));
                return Ok(HandlerOutcome::Snoozed { delay, why: message });
            }
            Err(error) => return Err(to_handler_error(error)),
        };
        if answer.status == ACCEPTED {
            return Ok(HandlerOutcome::AsyncCompletion {
                token,
                lease: Duration::from_millis(self.settings.callback_timeout_ms),
            });
        }
        Ok(match answer.result {
            PushResult::Json(result) if result.get() != "null" => {
                to_outcome(result.get(), context.result_limit_bytes())
            }
            PushResult::Json(_) | PushResult::Empty => HandlerOutcome::Completed(None),
            PushResult::Dropped(why) => HandlerOutcome::CompletedWithoutResult { why },
        })
    }

    pub(crate) fn describe(&self) -> String {
        let settings = &self.settings;
        let signed = match settings.secrets.len() {
            0 => "not signed".to_owned(),
            1 => "signed with a secret".to_owned(),
            secrets => format!("signed with {secrets} secrets"),
        };
        let private = if settings.allow_private { "private addresses allowed" } else { "public addresses only" };
        format!(
            "sends it by POST to {} ({signed}, {private}, {} at a time, answer within {} ms)",
            self.endpoint.origin(),
            settings.concurrency,
            settings.timeout_ms
        )
    }
}

/// Adds an attempt to the log of the rule. What was not sent is no attempt.
fn log_attempt(
    context: &Context,
    pattern: &str,
    answered: &Result<PushAnswer, PushError>,
    (at, duration): (Millis, Duration),
) {
    let (outcome, status, response, error) = match answered {
        Ok(answer) => (DeliveryOutcome::Delivered, Some(answer.status), &answer.excerpt, None),
        Err(error) if !error.was_sent => return,
        Err(error) => {
            let shown = (error.code.to_owned(), error.message.clone());
            (DeliveryOutcome::Failed, error.status, &error.excerpt, Some(shown))
        }
    };
    let record = DeliveryRecord {
        item: DeliveredItem::Job(context.id()),
        webhook_id: context.id().to_string(),
        attempt: context.attempt(),
        at,
        duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        outcome,
        status,
        response: response.clone(),
        error,
    };
    context.jobs().deliveries().record(DeliveryOwner::Rule(pattern.to_owned()), record);
}

/// The endpoint did the work: a result that is too large is dropped, because a failure would do the work again.
fn to_outcome(result: &str, limit: usize) -> HandlerOutcome {
    if result.len() > limit {
        return HandlerOutcome::CompletedWithoutResult { why: format!("the answer has more than {limit} bytes") };
    }
    HandlerOutcome::Completed(Some(result.to_owned()))
}

fn to_handler_error(error: PushError) -> HandlerError {
    let advice = match error.retry {
        PushRetry::ByPolicy => RetryAdvice::ByPolicy,
        PushRetry::Never => RetryAdvice::Never,
        PushRetry::After(delay) => RetryAdvice::After(delay),
    };
    HandlerError::new(error.code, error.message, advice)
}
