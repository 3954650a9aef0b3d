//! The client that sends over HTTP. With hyper and not reqwest: with TLS in it every reqwest client of the workspace panics in
//! a process without a default crypto provider.

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use tokio::runtime::Handle;

use crate::{settings::TelemetrySettings, tls};

/// Names the authorities that receivers are checked against.
pub(super) const CA_SETTING: &str = "telemetry.otlp_ca_file";
/// Longest answer of a receiver.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// Sends also from an exporter's own thread, which has no runtime. It sets its own limit: that of the exporter cannot stop
/// what runs elsewhere.
#[derive(Debug)]
pub(super) struct OtlpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
    limit: Duration,
}

impl OtlpClient {
    pub(super) fn new(endpoint: &str, settings: &TelemetrySettings, limit: Duration) -> anyhow::Result<Self> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        let config = if endpoint.starts_with("https://") {
            tls::client_config(CA_SETTING, settings.otlp_ca_file.as_deref())?
        } else {
            tls::trust_nobody()?
        };
        let https = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1();
        let client = Client::builder(TokioExecutor::new()).build(https.wrap_connector(http));
        Ok(Self { client, runtime: Handle::current(), limit })
    }
}

impl HttpClient for OtlpClient {
    fn send_bytes<'life0, 'async_trait>(
        &'life0 self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        let (client, limit) = (self.client.clone(), self.limit);
        let sending = self.runtime.spawn(async move {
            let send = async {
                let response = client.request(request.map(Full::new)).await?;
                let (head, body) = response.into_parts();
                let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?.to_bytes();
                Ok::<_, HttpError>(Response::from_parts(head, body))
            };
            tokio::time::timeout(limit, send).await?
        });
        Box::pin(async move { sending.await? })
    }
}
