//! HTTP push: one POST to an endpoint of a third party, which may be broken, slow or hostile.
//!
//! An [`Endpoint`] is created once from validated settings. Each [`Endpoint::post`] is one attempt; the caller retries
//! as [`PushError::retry`] says. Everything is bounded: concurrent requests, total time, bytes of the answer. Dropping
//! the future closes the connection. `docs/push.md` describes what receivers see.
//!
//! | module | what it does |
//! |---|---|
//! | `endpoint_settings`, `subscription_target` | settings of an endpoint; an endpoint for a subscription |
//! | `fetch` | a small document of an operator, such as the keys of an issuer of tokens |
//! | `network`, `address` | connections and DNS; which addresses are allowed |
//! | `request`, `signature` | builds and signs a request |
//! | `answer`, `status_probe`, `error` | reads an answer; its status if it cannot be parsed; kinds of failure |
//! | `breaker` | the circuit breaker |
//!
//! Deliberately absent: redirects, proxies, cookies, compressed answers, HTTP/2.

pub mod address;
mod answer;
pub mod breaker;
mod endpoint_settings;
mod error;
pub mod fetch;
mod network;
mod request;
pub mod signature;
mod status_probe;
mod subscription_target;

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use common::{
    telemetry::{
        WorkScope,
        spans::{ActiveSpan, SpanDescription},
    },
    time::Millis,
};
use http::Response;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{self, Client},
    rt::{TokioExecutor, TokioTimer},
};
use secrecy::SecretString;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

pub use self::{
    answer::{MAX_RETRY_AFTER, PushAnswer, PushResult},
    breaker::{BreakerSettings, TargetAvailability},
    endpoint_settings::{
        EndpointError, EndpointSettings, FixedHeaders, MAX_ANSWER_BYTES, MAX_CONCURRENCY, MAX_HEADERS, MAX_TIMEOUT,
    },
    error::{PushError, PushRetry},
    network::{DnsResolver, Network, ScriptedDns},
    request::{MAX_HEADER_BYTES, MAX_ID_BYTES, PushRequest},
    signature::Secret,
    subscription_target::public_keys,
};
use self::{
    breaker::{Breaker, BreakerOutcome, BreakerPermit},
    error::{EndpointHealth, PushErrorKind, PushFailure},
    network::{ConnectError, PushConnector, error_chain},
    status_probe::StatusProbe,
};
pub use model::url_template::{UrlError, UrlTemplate};

/// How long an idle connection stays open: less than at most servers and load balancers.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Maximum number of idle connections.
const MAX_IDLE_CONNECTIONS: usize = 16;

/// Buffer for the head of an answer and for each read of a body, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// Minimum length of a secret header's word to be redacted: shorter ones may be anything.
const MIN_REDACTED_CHARS: usize = 4;

/// An endpoint, created once for a rule or a target and shared by all its requests.
pub struct Endpoint {
    settings: EndpointSettings,
    client: Client<PushConnector, Full<Bytes>>,
    slots: Semaphore,
    breaker: Mutex<Breaker>,
    /// What messages must not show, even if the receiver repeats it.
    redacted: Vec<SecretString>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// An endpoint with its own connections, slots and breaker.
    ///
    /// # Errors
    /// Invalid settings, or an address that may never be connected to.
    pub fn new(settings: EndpointSettings, network: &Network) -> Result<Self, EndpointError> {
        settings.check(network)?;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(settings.concurrency.min(MAX_IDLE_CONNECTIONS))
            .http1_max_buf_size(BUFFER_BYTES)
            // The status is what matters: a header that breaks a rule must not hide it
            .http1_ignore_invalid_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .build(network.connector(settings.allow_private, settings.connect_timeout));
        let headers = settings.headers.map().values().filter_map(|value| value.to_str().ok());
        let words = headers.flat_map(str::split_whitespace).filter(|word| word.len() >= MIN_REDACTED_CHARS);
        let hidden = words.map(SecretString::from).chain(settings.secrets.iter().map(Secret::to_base64)).collect();
        Ok(Self {
            client,
            slots: Semaphore::new(settings.concurrency),
            breaker: Mutex::new(Breaker::new(settings.breaker)),
            redacted: hidden,
            settings,
        })
    }

    /// Scheme, host and port: the part of the URL that may be shown.
    #[must_use]
    pub fn origin(&self) -> &str {
        self.settings.url.origin()
    }

    /// How many requests the receiver accepts now: none while the breaker is open.
    #[must_use]
    pub fn availability(&self) -> TargetAvailability {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).availability(now())
    }

    /// Sends a request once, within the endpoint's timeout. Dropping the future closes the connection; the receiver
    /// may have done the work nevertheless.
    ///
    /// # Errors
    /// Any answer that is not 2xx, or none. See [`PushError::retry`] for what may follow.
    pub async fn post(&self, request: PushRequest<'_>) -> Result<PushAnswer, PushError> {
        let deadline = Instant::now() + self.settings.timeout;
        Ok(self.attempt(&request, deadline).await.map_err(|failure| PushFailure {
            message: format!("push to {}: {}", self.origin(), failure.message),
            ..failure
        })?)
    }

    async fn attempt(&self, request: &PushRequest<'_>, deadline: Instant) -> Result<PushAnswer, PushFailure> {
        let Ok(Ok(_place)) = timeout_at(deadline, self.slots.acquire()).await else {
            let message = format!("{} requests are under way already", self.settings.concurrency);
            return Err(PushFailure::new(PushErrorKind::ConcurrencyLimit, message));
        };
        let mut built = request::build(request, &self.settings)?;
        let admitted = self.admit()?;
        let mut span = ActiveSpan::start(WorkScope::current().trace(), || describe(request, &built));
        request::add_trace(built.headers_mut(), span.context(), &self.settings);
        let answered = self.exchange(built, request.sent_at, deadline).await;
        admitted.record(&answered);
        match &answered {
            Ok(PushAnswer { status, .. }) => span.set_http_status(*status, 400),
            Err(PushFailure { status: Some(status), .. }) => span.set_http_status(*status, 400),
            Err(failure) => span.fail(failure.kind.code(), None),
        }
        answered
    }

    async fn exchange(
        &self,
        built: http::Request<Full<Bytes>>,
        sent_at: Millis,
        deadline: Instant,
    ) -> Result<PushAnswer, PushFailure> {
        let path = built.uri().path_and_query().map(|path| path.as_str().to_owned()).unwrap_or_default();
        let query = built.uri().query().map(str::to_owned).unwrap_or_default();
        let response = match timeout_at(deadline, self.client.request(built)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return unparsed_answer(&error),
            Err(_) => return Err(self.timeout_failure()),
        };
        let status = response.status();
        if !status.is_success() {
            return Err(self.read_refusal(response, sent_at, deadline, [path, query]).await);
        }
        let reading = answer::read_result(response.into_body(), self.settings.answer_limit_bytes);
        let result = timeout_at(deadline, reading).await;
        let result = result.unwrap_or_else(|_| PushResult::Dropped(self.timeout_failure().message));
        let shown = match &result {
            PushResult::Json(json) => json.get().as_bytes(),
            PushResult::Empty | PushResult::Dropped(_) => &[],
        };
        let excerpt = self.excerpt(&shown[..shown.len().min(answer::MAX_EXCERPT_BYTES)], [path, query]);
        Ok(PushAnswer { status: status.as_u16(), result, excerpt })
    }

    /// The failure of a status other than 2xx. The body is only shown to people, so a missing one is harmless.
    async fn read_refusal(
        &self,
        response: Response<Incoming>,
        sent_at: Millis,
        deadline: Instant,
        sent: [String; 2],
    ) -> PushFailure {
        let status = response.status().as_u16();
        let wait = answer::parse_retry_after(response.headers(), sent_at);
        let mut bytes = Vec::new();
        // On a timeout use what was read so far
        let _ = timeout_at(deadline, answer::read_excerpt(response.into_body(), &mut bytes)).await;
        let excerpt = self.excerpt(&bytes, sent);
        let separator = if excerpt.is_empty() { "" } else { ": " };
        let message = format!("answered with status {status}{separator}{excerpt}");
        PushFailure {
            status: Some(status),
            retry_after: wait,
            excerpt,
            ..PushFailure::new(PushErrorKind::of_status(status), message)
        }
    }

    /// The beginning of an answer, without the secrets, the path and the query that were sent.
    fn excerpt(&self, bytes: &[u8], sent: [String; 2]) -> String {
        let sent = sent.map(|text| if text.len() < MIN_REDACTED_CHARS { None } else { Some(text.into()) });
        answer::format_excerpt(bytes, self.redacted.iter().chain(sent.iter().flatten()))
    }

    fn timeout_failure(&self) -> PushFailure {
        PushFailure::new(
            PushErrorKind::Timeout,
            format!("no whole answer within {} ms", self.settings.timeout.as_millis()),
        )
    }

    fn admit(&self) -> Result<AdmittedRequest<'_>, PushFailure> {
        let admitted = self.breaker.lock().unwrap_or_else(PoisonError::into_inner).admit(now());
        let pass = admitted.map_err(|wait| {
            let message = format!("it failed again and again and is left alone for {} ms", wait.as_millis());
            PushFailure { retry_after: Some(wait), ..PushFailure::new(PushErrorKind::BreakerOpen, message) }
        })?;
        Ok(AdmittedRequest { breaker: &self.breaker, permit: Some(pass) })
    }
}

/// What the span of a request says. The rest of its URL may be secret.
fn describe(request: &PushRequest<'_>, built: &http::Request<Full<Bytes>>) -> SpanDescription {
    let uri = built.uri();
    let is_tls = uri.scheme_str() == Some("https");
    let (scheme, port) = if is_tls { ("https", 443) } else { ("http", 80) };
    SpanDescription::client("POST", scheme, uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(port))
        .with_message_id(&request.id)
}

/// The breaker's clock: tokio's, so that tests can advance it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// An admitted request. Its drop records an unknown outcome.
struct AdmittedRequest<'a> {
    breaker: &'a Mutex<Breaker>,
    permit: Option<BreakerPermit>,
}

impl AdmittedRequest<'_> {
    fn record(mut self, answered: &Result<PushAnswer, PushFailure>) {
        let outcome = match answered {
            Ok(_) => BreakerOutcome::Success,
            Err(PushFailure { kind: PushErrorKind::RateLimited, retry_after: Some(wait), .. }) => {
                BreakerOutcome::BackOff(*wait)
            }
            Err(failure) => match failure.kind.health() {
                EndpointHealth::Healthy => BreakerOutcome::Success,
                EndpointHealth::Unhealthy => BreakerOutcome::Failure,
                EndpointHealth::Unknown => BreakerOutcome::Unknown,
            },
        };
        self.record_outcome(outcome);
    }

    fn record_outcome(&mut self, outcome: BreakerOutcome) {
        if let Some(pass) = self.permit.take() {
            self.breaker.lock().unwrap_or_else(PoisonError::into_inner).record(pass, outcome, now());
        }
    }
}

impl Drop for AdmittedRequest<'_> {
    fn drop(&mut self) {
        self.record_outcome(BreakerOutcome::Unknown);
    }
}

/// The answer whose head cannot be parsed: a success if its status line says so.
fn unparsed_answer(error: &legacy::Error) -> Result<PushAnswer, PushFailure> {
    let failure = client_failure(error);
    match StatusProbe::status_of(error) {
        Some(status @ 200..=299) => {
            Ok(PushAnswer { status, result: PushResult::Dropped(failure.message), excerpt: String::new() })
        }
        _ => Err(failure),
    }
}

/// Either no connection was made, or it broke.
fn client_failure(error: &legacy::Error) -> PushFailure {
    if let Some(error) = ConnectError::find_in(error) {
        return error.into();
    }
    let cause = error_chain(error).last().map(ToString::to_string).unwrap_or_default();
    PushFailure::new(PushErrorKind::AnswerBroken, format!("the connection broke: {cause}"))
}
