//! The HTTP client of the tests. It checks every answer against `openapi.json`.

use reqwest::{Client, Method, RequestBuilder, Response, ResponseBuilderExt};

use crate::openapi::Answer;

/// A client of Galley's processes.
#[derive(Clone)]
pub(crate) struct CheckedClient(Client);

/// A request of theirs.
pub(crate) struct CheckedRequest(RequestBuilder);

impl CheckedClient {
    pub(crate) fn new() -> Self {
        Self::from(Client::builder())
    }

    pub(crate) fn from(builder: reqwest::ClientBuilder) -> Self {
        // A connection each: a broken keep-alive connection must not fail a test that kills the gateway
        Self(builder.pool_max_idle_per_host(0).build().expect("a client"))
    }

    pub(crate) fn request(&self, method: Method, url: impl AsRef<str>) -> CheckedRequest {
        CheckedRequest(self.0.request(method, url.as_ref()))
    }

    pub(crate) fn get(&self, url: impl AsRef<str>) -> CheckedRequest {
        self.request(Method::GET, url)
    }

    pub(crate) fn post(&self, url: impl AsRef<str>) -> CheckedRequest {
        self.request(Method::POST, url)
    }

    pub(crate) fn put(&self, url: impl AsRef<str>) -> CheckedRequest {
        self.request(Method::PUT, url)
    }

    pub(crate) fn patch(&self, url: impl AsRef<str>) -> CheckedRequest {
        self.request(Method::PATCH, url)
    }

    pub(crate) fn delete(&self, url: impl AsRef<str>) -> CheckedRequest {
        self.request(Method::DELETE, url)
    }
}

impl CheckedRequest {
    pub(crate) fn header(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        Self(self.0.header(name, value.as_ref()))
    }

    pub(crate) fn body(self, body: impl Into<reqwest::Body>) -> Self {
        Self(self.0.body(body))
    }

    pub(crate) fn try_clone(&self) -> Option<Self> {
        self.0.try_clone().map(Self)
    }

    /// Sends the request and reads the answer. Of a stream of events it reads the head only.
    ///
    /// # Panics
    /// `openapi.json` does not describe the answer.
    pub(crate) async fn send(self) -> reqwest::Result<Response> {
        let (client, request) = self.0.build_split();
        let request = request?;
        let (method, asked) = (request.method().clone(), request.url().clone());
        let response = client.execute(request).await?;
        // A redirect was followed with GET
        let method = if *response.url() == asked { method } else { Method::GET };
        let content_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_owned();
        let (status, url, headers) = (response.status(), response.url().clone(), response.headers().clone());
        let is_stream = content_type == "text/event-stream";
        let check = |body: Option<&[u8]>| {
            let (path, content_type) = (url.path(), content_type.as_str());
            let answer = Answer { method: &method, path, status: status.as_u16(), content_type, body };
            if let Err(error) = answer.check() {
                panic!("{method} {path} answers {status}, which openapi.json does not describe: {error}");
            }
        };
        if is_stream {
            check(None);
            return Ok(response);
        }
        let body = response.bytes().await?;
        check(Some(&body));
        let mut answer = http::Response::builder().status(status).url(url.clone()).body(body).expect("an answer");
        *answer.headers_mut() = headers;
        Ok(answer.into())
    }
}

/// Asks one of Galley's processes once.
pub(crate) async fn get(url: impl AsRef<str>) -> reqwest::Result<Response> {
    CheckedClient::new().get(url).send().await
}
