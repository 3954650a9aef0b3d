//! Requests to a gateway, sent again while it is away.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use crate::Error;

/// Time for an answer on top of what is waited for.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// The longest pause between two attempts is twice the one before, from and up to these. The pause is a random part of it.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What stays as it is in a path or a query.
const SAFE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How requests reach the gateway. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RequestSender {
    http: HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    authorization: Option<HeaderValue>,
}

/// One request.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Bytes,
    /// How long the answer may take on purpose.
    pub(crate) wait: Duration,
}

impl Call {
    pub(crate) fn new(method: Method, path: String) -> Self {
        Self { method, path, headers: Vec::new(), body: Bytes::new(), wait: Duration::ZERO }
    }

    pub(crate) fn content(mut self, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.headers.push((header::CONTENT_TYPE, HeaderValue::from_static(content_type)));
        self.body = body.into();
        self
    }
}

/// Growing pauses with jitter.
pub(crate) struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pauses {
    pub(crate) fn next(&mut self, error: &Error) -> Duration {
        let pause = self.0.mul_f64(rand::random());
        self.0 = (self.0 * 2).min(MAX_PAUSE);
        match error {
            Error::Unavailable { retry_after, .. } => pause + retry_after.unwrap_or_default(),
            _ => pause,
        }
    }
}

impl RequestSender {
    pub(crate) fn new(url: &str) -> Result<Self, Error> {
        let base = url.trim_end_matches('/').to_owned();
        let parsed: Uri = base.parse().map_err(|error| Error::Invalid(format!("{url} is no URL: {error}")))?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) {
            return Err(Error::Invalid(format!("{url} must begin with http:// or https://")));
        }
        let mut roots = RootCertStore::empty();
        if parsed.scheme_str() == Some("https") {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Invalid(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(ANSWER_TIME));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        Ok(Self { http: HttpClient::builder(TokioExecutor::new()).build(connector), base, authorization: None })
    }

    pub(crate) fn set_key(&mut self, key: &str) -> Result<(), Error> {
        let value = HeaderValue::from_str(&format!("Bearer {key}"));
        let mut value = value.map_err(|_| Error::Invalid("a key has only visible ASCII characters".to_owned()))?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(())
    }

    /// Sends a request until it is answered, or refused for good, or patience is over. Returns the body of the answer, and
    /// whether it was sent more than once.
    pub(crate) async fn send(&self, call: &Call, patience: Duration) -> (Result<Bytes, Error>, bool) {
        let (deadline, mut pauses, mut is_repeated) = (Instant::now() + patience, Pauses::default(), false);
        loop {
            let error = match self.send_once(call).await {
                Err(error @ Error::Unavailable { .. }) => error,
                answer => return (answer, is_repeated),
            };
            let pause = pauses.next(&error);
            if Instant::now() + pause > deadline {
                return (Err(error), is_repeated);
            }
            sleep(pause).await;
            is_repeated = true;
        }
    }

    async fn send_once(&self, call: &Call) -> Result<Bytes, Error> {
        let exchange = async {
            let answer = self.request(call).await?;
            let (head, body) = answer.into_parts();
            let body = body.collect().await.map_err(|error| Error::unavailable(&error))?.to_bytes();
            if head.status.is_success() { Ok(body) } else { Err(read_error(head.status, &head.headers, &body)) }
        };
        timeout(call.wait + ANSWER_TIME, exchange).await.unwrap_or_else(|_| Err(no_answer()))
    }

    /// Opens a stream of events.
    pub(crate) async fn open(&self, call: &Call) -> Result<Incoming, Error> {
        let opening = async {
            let answer = self.request(call).await?;
            let (head, body) = answer.into_parts();
            if head.status == StatusCode::OK {
                return Ok(body);
            }
            let body = body.collect().await.map_err(|error| Error::unavailable(&error))?.to_bytes();
            Err(read_error(head.status, &head.headers, &body))
        };
        timeout(ANSWER_TIME, opening).await.unwrap_or_else(|_| Err(no_answer()))
    }

    async fn request(&self, call: &Call) -> Result<http::Response<Incoming>, Error> {
        let mut request = Request::builder().method(call.method.clone()).uri(format!("{}{}", self.base, call.path));
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(call.body.clone())).map_err(|error| Error::Invalid(error.to_string()))?;
        self.http.request(request).await.map_err(|error| Error::unavailable(&error))
    }
}

/// A text as a part of a path or a query.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, SAFE).to_string()
}

fn no_answer() -> Error {
    Error::Unavailable { message: "the gateway did not answer in time".to_owned(), retry_after: None }
}

/// An error in the shape of the Open Job Spec, or in that of RFC 9457.
#[derive(Deserialize, Default)]
#[serde(default)]
struct RefusalBody {
    error: Option<Box<RefusalBody>>,
    code: Option<String>,
    message: Option<String>,
    detail: Option<String>,
}

fn read_error(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    let mut problem: RefusalBody = serde_json::from_slice(body).unwrap_or_default();
    if let Some(inner) = problem.error.take() {
        problem = *inner;
    }
    let message = problem.message.or(problem.detail).unwrap_or_else(|| format!("the gateway answered with {status}"));
    if status.is_server_error() || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status) {
        let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        return Error::Unavailable { message, retry_after: seconds.map(Duration::from_secs) };
    }
    Error::Refused { status: status.as_u16(), code: problem.code.unwrap_or_else(|| "unknown".to_owned()), message }
}
