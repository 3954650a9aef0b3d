//! Fetches a small document from a URL that an operator has set, such as the keys of an issuer of tokens. Bounded in time
//! and bytes, without redirects, proxies and cookies. The operator's own network may be asked, private addresses too.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};

use super::network::{ConnectError, Network, PushConnector, error_chain};

/// Fetches documents, each over a connection of its own: they are rare.
#[derive(Clone)]
pub struct Fetcher {
    client: Client<PushConnector, Empty<Bytes>>,
}

impl Fetcher {
    /// A fetcher that takes no longer for a connection than that.
    #[must_use]
    pub fn new(network: &Network, connect_timeout: Duration) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(0)
            .build(network.connector(true, connect_timeout));
        Self { client }
    }

    /// The body of an answer with status 200.
    ///
    /// # Errors
    /// No whole answer in time, a larger one, or another status. The text shows nothing of the URL but its host.
    pub async fn get(&self, url: &str, max_bytes: usize, timeout: Duration) -> Result<Vec<u8>, String> {
        let request = Request::get(url).header(header::ACCEPT, "application/json").body(Empty::new());
        let request = request.map_err(|_| "the URL cannot be asked".to_owned())?;
        let fetched = tokio::time::timeout(timeout, self.exchange(request, max_bytes)).await;
        fetched.unwrap_or_else(|_| Err(format!("no whole answer within {} ms", timeout.as_millis())))
    }

    async fn exchange(&self, request: Request<Empty<Bytes>>, max_bytes: usize) -> Result<Vec<u8>, String> {
        let response = self.client.request(request).await.map_err(|error| match ConnectError::find_in(&error) {
            Some(error) => error.to_string(),
            None => error_chain(&error).last().map(ToString::to_string).unwrap_or_default(),
        })?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(format!("it answered with status {status}"));
        }
        let body = Limited::new(response.into_body(), max_bytes).collect().await;
        let body = body.map_err(|_| format!("the answer broke off or has more than {max_bytes} bytes"))?;
        Ok(body.to_bytes().to_vec())
    }
}
