//! HTTP push: one POST to an endpoint of somebody else's, who may be broken, slow or hostile.
//!
//! An [`Endpoint`] is made once from checked settings. Each [`Endpoint::post`] is one attempt; retries are the caller's, with
//! what [`PushError::retry`] says. Everything is bounded: requests at a time, time in all, bytes of the answer. Dropping the
//! future closes the connection. `docs/push.md` describes what receivers see.
//!
//! Deliberately absent: redirects, proxies, cookies, compressed answers, HTTP/2.

pub mod address;
mod answer;
pub mod breaker;
mod endpoint_settings;
mod error;
mod network;
mod request;
pub mod signature;
mod subscription_target;

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
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
    answer::{Answer, LONGEST_RETRY_AFTER},
    breaker::{BreakerSettings, Room},
    endpoint_settings::{
        EndpointError, EndpointSettings, FixedHeaders, LARGEST_ANSWER_BYTES, LONGEST_TIMEOUT, MOST_CONCURRENT,
        MOST_HEADERS,
    },
    error::{PushError, Retry},
    network::{Names, Network, Script},
    request::{LONGEST_ID_BYTES, MOST_HEADER_BYTES, Request},
    signature::Secret,
};
use self::{
    breaker::{Breaker, Outcome, Pass},
    error::{Failure, Health, Kind},
    network::{ConnectError, Connector, causes},
};
pub use model::url_template::{UrlError, UrlTemplate};

/// An idle connection is kept this long: less than most servers and balancers keep it.
const IDLE: Duration = Duration::from_secs(20);

/// Idle connections that are kept.
const MOST_IDLE: usize = 16;

/// Head of an answer, and what is read of a body at a time.
const BUFFER_BYTES: usize = 64 * 1024;

/// Shorter words of secret headers are not looked for in answers: they may be anything.
const LEAST_HIDDEN_CHARACTERS: usize = 4;

/// Somewhere to push to, made once for a rule or a target and shared by all who push there.
pub struct Endpoint {
    settings: EndpointSettings,
    client: Client<Connector, Full<Bytes>>,
    places: Semaphore,
    breaker: Mutex<Breaker>,
    /// What messages must not show, whoever repeats it.
    hidden: Vec<SecretString>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// An endpoint with connections, places and a breaker of its own.
    ///
    /// # Errors
    /// Settings that are not allowed, an address that will never be connected to among them.
    pub fn new(settings: EndpointSettings, network: &Network) -> Result<Self, EndpointError> {
        settings.check(network)?;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(settings.concurrency.min(MOST_IDLE))
            .http1_max_buf_size(BUFFER_BYTES)
            .build(network.connector(settings.allow_private, settings.connect_timeout));
        let headers = settings.headers.map().values().filter_map(|value| value.to_str().ok());
        let words = headers.flat_map(str::split_whitespace).filter(|word| word.len() >= LEAST_HIDDEN_CHARACTERS);
        let hidden = words.map(SecretString::from).chain(settings.secrets.iter().map(Secret::in_base64)).collect();
        Ok(Self {
            client,
            places: Semaphore::new(settings.concurrency),
            breaker: Mutex::new(Breaker::new(settings.breaker)),
            hidden,
            settings,
        })
    }

    /// Scheme, host and port: what may be shown of where it pushes to.
    #[must_use]
    pub fn origin(&self) -> &str {
        self.settings.url.origin()
    }

    /// How many requests the receiver would be sent now: none while it is left alone.
    #[must_use]
    pub fn room(&self) -> Room {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).room(now())
    }

    /// Sends a request once, within the endpoint's timeout. Dropping the future closes the connection, and what the receiver
    /// makes of that is its own affair.
    ///
    /// # Errors
    /// Whatever is no answer of 2xx. See [`PushError::retry`] for what may follow.
    pub async fn post(&self, request: Request<'_>) -> Result<Answer, PushError> {
        let deadline = Instant::now() + self.settings.timeout;
        Ok(self.attempt(&request, deadline).await.map_err(|failure| Failure {
            message: format!("push to {}: {}", self.origin(), failure.message),
            ..failure
        })?)
    }

    async fn attempt(&self, request: &Request<'_>, deadline: Instant) -> Result<Answer, Failure> {
        let Ok(Ok(_place)) = timeout_at(deadline, self.places.acquire()).await else {
            let message = format!("{} requests are under way already", self.settings.concurrency);
            return Err(Failure::new(Kind::NoPlace, message));
        };
        let built = request::build(request, &self.settings, SystemTime::now())?;
        let admitted = self.admit()?;
        let answered = self.exchange(built, deadline).await;
        admitted.record(&answered);
        answered
    }

    async fn exchange(&self, built: http::Request<Full<Bytes>>, deadline: Instant) -> Result<Answer, Failure> {
        let path = built.uri().path_and_query().map(|path| path.as_str().to_owned()).unwrap_or_default();
        let query = built.uri().query().map(str::to_owned).unwrap_or_default();
        let response = match timeout_at(deadline, self.client.request(built)).await {
            Ok(response) => response.map_err(|error| from_client(&error))?,
            Err(_) => return Err(self.timed_out()),
        };
        let status = response.status();
        if !status.is_success() {
            return Err(self.refusal(response, deadline, [path, query]).await);
        }
        let result = answer::read_result(response.into_body(), self.settings.answer_limit_bytes);
        let read = timeout_at(deadline, result).await.unwrap_or_else(|_| Err(self.timed_out()));
        let body = read.map_err(|failure| Failure { status: Some(status.as_u16()), ..failure })?;
        Ok(Answer { status: status.as_u16(), body })
    }

    /// What a status other than 2xx means. Its body is for people only, so there is no harm if it does not come.
    async fn refusal(&self, response: Response<Incoming>, deadline: Instant, sent: [String; 2]) -> Failure {
        let status = response.status().as_u16();
        let wait = answer::retry_after(response.headers(), SystemTime::now());
        let mut bytes = Vec::new();
        // What was read until then is kept
        let _ = timeout_at(deadline, answer::read_excerpt(response.into_body(), &mut bytes)).await;
        let sent = sent.map(|text| if text.len() < LEAST_HIDDEN_CHARACTERS { None } else { Some(text.into()) });
        let excerpt = answer::excerpt(&bytes, self.hidden.iter().chain(sent.iter().flatten()));
        let separator = if excerpt.is_empty() { "" } else { ": " };
        let message = format!("answered with status {status}{separator}{excerpt}");
        Failure { status: Some(status), wait, ..Failure::new(Kind::of_status(status), message) }
    }

    fn timed_out(&self) -> Failure {
        Failure::new(Kind::Timeout, format!("no whole answer within {} ms", self.settings.timeout.as_millis()))
    }

    fn admit(&self) -> Result<Admitted<'_>, Failure> {
        let admitted = self.breaker.lock().unwrap_or_else(PoisonError::into_inner).admit(now());
        let pass = admitted.map_err(|wait| {
            let message = format!("it failed again and again and is left alone for {} ms", wait.as_millis());
            Failure { wait: Some(wait), ..Failure::new(Kind::BreakerOpen, message) }
        })?;
        Ok(Admitted { breaker: &self.breaker, pass: Some(pass) })
    }
}

/// The breaker's clock: tokio's, so that tests can move it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// A request that the breaker let pass. If it is dropped, the breaker learns that too.
struct Admitted<'a> {
    breaker: &'a Mutex<Breaker>,
    pass: Option<Pass>,
}

impl Admitted<'_> {
    fn record(mut self, answered: &Result<Answer, Failure>) {
        let outcome = match answered {
            Ok(_) => Outcome::Good,
            Err(Failure { kind: Kind::RateLimited, wait: Some(wait), .. }) => Outcome::BadFor(*wait),
            Err(failure) => match failure.kind.health() {
                Health::Good => Outcome::Good,
                Health::Bad => Outcome::Bad,
                Health::Unknown => Outcome::Unknown,
            },
        };
        self.tell(outcome);
    }

    fn tell(&mut self, outcome: Outcome) {
        if let Some(pass) = self.pass.take() {
            self.breaker.lock().unwrap_or_else(PoisonError::into_inner).record(pass, outcome, now());
        }
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.tell(Outcome::Unknown);
    }
}

/// Either there was no connection, or it broke.
fn from_client(error: &legacy::Error) -> Failure {
    if let Some(error) = ConnectError::within(error) {
        return error.into();
    }
    let cause = causes(error).last().map(ToString::to_string).unwrap_or_default();
    Failure::new(Kind::Broken, format!("the connection broke: {cause}"))
}
