//! HTTP with a gateway. One connection pool; answers are kept as the bytes that came, for `--json`.
//!
//! With hyper and not reqwest: with TLS in it every reqwest client of the workspace panics in a process without a default
//! crypto provider.

use std::{error::Error as _, path::Path, time::Duration};

use bytes::Bytes;
use common::tls;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Collected, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, Error, connect::HttpConnector},
    rt::TokioExecutor,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::failure::{CliError, CliResult, Refusal};

/// How long a gateway may take for an answer that waits for nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What need not be escaped in a part of a path or a query.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The address of the gateway, and the key of the client.
pub(crate) struct GatewayClient {
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    authorization: Option<SecretString>,
}

/// One request.
pub(crate) struct GatewayCall {
    method: Method,
    path: String,
    body: Option<(Bytes, String)>,
    headers: Vec<(String, String)>,
    wait: Duration,
}

impl GatewayCall {
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: None, headers: Vec::new(), wait: Duration::ZERO }
    }

    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path)
    }

    pub(crate) fn put(path: impl Into<String>) -> Self {
        Self::new(Method::PUT, path)
    }

    pub(crate) fn patch(path: impl Into<String>) -> Self {
        Self::new(Method::PATCH, path)
    }

    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// With a JSON body.
    pub(crate) fn json(self, body: &Value) -> Self {
        self.bytes("application/json", body.to_string())
    }

    pub(crate) fn bytes(mut self, content_type: &str, body: impl Into<Bytes>) -> Self {
        self.body = Some((body.into(), content_type.to_owned()));
        self
    }

    pub(crate) fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The answer may come this much later on purpose.
    pub(crate) fn waiting(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

/// An answer that says yes.
pub(crate) struct GatewayAnswer {
    /// As it came.
    pub(crate) body: Bytes,
}

impl GatewayAnswer {
    pub(crate) fn value(&self) -> CliResult<Value> {
        serde_json::from_slice(&self.body).map_err(|error| {
            CliError::failed(format!("the answer is not JSON ({error}): is a gateway of Galley at this URL?"))
        })
    }
}

impl GatewayClient {
    pub(crate) fn new(url: &str, key: Option<String>, ca_file: Option<&Path>) -> CliResult<Self> {
        let base = url.trim_end_matches('/').to_owned();
        let is_tls = base.starts_with("https://");
        let has_host = url::Url::parse(&base).is_ok_and(|url| url.has_host());
        if !has_host || !(is_tls || base.starts_with("http://")) {
            return Err(CliError::usage(format!("--url must be like http://127.0.0.1:8080, got {url:?}")));
        }
        let config =
            if is_tls { tls::client_config("--ca-file or GALLEY_CA_FILE", ca_file)? } else { tls::trust_nobody()? };
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let https = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1();
        let http = Client::builder(TokioExecutor::new()).build(https.wrap_connector(http));
        let authorization = key.map(|key| SecretString::from(format!("Bearer {key}")));
        Ok(Self { http, base, authorization })
    }

    /// The URL without user and password.
    pub(crate) fn shown_url(&self) -> String {
        let Ok(mut url) = url::Url::parse(&self.base) else { return self.base.clone() };
        let _ = (url.set_username(""), url.set_password(None));
        url.to_string().trim_end_matches('/').to_owned()
    }

    pub(crate) async fn send(&self, call: GatewayCall) -> CliResult<GatewayAnswer> {
        let limit = ANSWER_TIMEOUT + call.wait;
        let answer = async {
            let response = self.open(call).await?;
            let body = response.into_body().collect().await.map_err(|error| self.unreachable(&error))?;
            Ok(GatewayAnswer { body: body.to_bytes() })
        };
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unreachable_because(format!("no answer within {} s", limit.as_secs()))),
        }
    }

    /// Sends a request and gives the answer as soon as it begins.
    pub(crate) async fn open(&self, call: GatewayCall) -> CliResult<Response<Incoming>> {
        let response = self.http.request(self.request(call)?).await.map_err(|error| self.not_sent(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
        Err(CliError::Refused(Refusal::read(status.as_u16(), &body)))
    }

    fn request(&self, call: GatewayCall) -> CliResult<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(call.method).uri(format!("{}{}", self.base, call.path));
        if let Some(authorization) = &self.authorization {
            let value = HeaderValue::from_str(authorization.expose_secret());
            let mut value = value.map_err(|_| CliError::usage("the key has characters that no key has"))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        for (name, value) in call.headers {
            request = request.header(name, value);
        }
        let (body, content_type) = call.body.unwrap_or_default();
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        request.body(Full::new(body)).map_err(|error| CliError::usage(format!("this cannot be sent: {error}")))
    }

    fn not_sent(&self, error: &Error) -> CliError {
        let mut cause = error.source();
        let mut problem = error.to_string();
        // The last cause is the one that people know: connection refused
        while let Some(inner) = cause {
            problem = inner.to_string();
            cause = inner.source();
        }
        self.unreachable_because(problem)
    }

    pub(crate) fn unreachable(&self, error: &hyper::Error) -> CliError {
        self.unreachable_because(error.to_string())
    }

    /// A stream has been silent for too long.
    pub(crate) fn silent(&self) -> CliError {
        self.unreachable_because("it is silent".to_owned())
    }

    /// A stream ended.
    pub(crate) fn ended(&self) -> CliError {
        self.unreachable_because("the stream ended".to_owned())
    }

    fn unreachable_because(&self, problem: String) -> CliError {
        CliError::Unreachable { url: self.shown_url(), problem }
    }
}

/// A part of a path, or a value in a query.
pub(crate) fn escaped(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// A path with the parameters that are set.
pub(crate) struct PathWithQuery(String);

impl PathWithQuery {
    pub(crate) fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    pub(crate) fn with(mut self, name: &str, value: Option<impl ToString>) -> Self {
        if let Some(value) = value {
            let separator = if self.0.contains('?') { '&' } else { '?' };
            self.0 = format!("{}{separator}{name}={}", self.0, escaped(&value.to_string()));
        }
        self
    }

    pub(crate) fn into_call(self) -> GatewayCall {
        GatewayCall::get(self.0)
    }

    pub(crate) fn text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_leave_their_place_in_a_url() {
        let path =
            PathWithQuery::new("/a").with("q", Some("x&y=1 #é")).with("none", None::<u32>).with("limit", Some(2));
        assert_eq!(path.text(), "/a?q=x%26y%3D1%20%23%C3%A9&limit=2");
        assert_eq!(escaped("../x/y"), "..%2Fx%2Fy");
    }

    #[test]
    fn a_password_in_the_url_is_not_shown() {
        let client = GatewayClient::new("http://user:secret@host:1/base/", None, None).expect("a URL");
        assert_eq!(client.shown_url(), "http://host:1/base");
        for wrong in ["host:8080", "ftp://host", "http://"] {
            assert!(matches!(GatewayClient::new(wrong, None, None), Err(CliError::Usage(_))), "{wrong}");
        }
    }
}
