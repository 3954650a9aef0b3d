//! Sends spans to a receiver over OTLP: gRPC or HTTP, with or without TLS.
//!
//! Over HTTP with hyper and not reqwest: with TLS in it every reqwest client of the workspace panics in a process without
//! a default crypto provider.

use std::{fs, future::Future, pin::Pin, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
    tonic_types::transport::{Certificate, ClientTlsConfig},
};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tokio::runtime::Handle;

use super::{
    span_queue::SpanQueue,
    spans::{ChosenIds, DecidedBefore},
};
use crate::{settings::TelemetrySettings, tls};

/// Longest time for one request, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer of a receiver.
const MAX_ANSWER_BYTES: usize = 4 << 20;
const CA_SETTING: &str = "telemetry.otlp_ca_file";

/// What sends the spans of a service.
///
/// # Errors
/// The endpoint or the file of authorities cannot be used.
pub(super) fn tracer_provider(
    service: &'static str,
    endpoint: &str,
    settings: &TelemetrySettings,
) -> anyhow::Result<SdkTracerProvider> {
    // A path means OTLP over HTTP, none means gRPC
    let has_path = endpoint.splitn(4, '/').nth(3).is_some_and(|path| !path.is_empty());
    let exporter = if has_path {
        let builder = SpanExporter::builder().with_http().with_http_client(SpanClient::new(settings)?);
        builder.with_endpoint(endpoint).build()
    } else {
        let builder = SpanExporter::builder().with_tonic().with_endpoint(endpoint);
        let is_tls = endpoint.starts_with("https://");
        if is_tls { builder.with_tls_config(grpc_tls(settings)?).build() } else { builder.build() }
    };
    let exporter = exporter.context("telemetry.otlp_endpoint: spans cannot be sent there")?;
    // It reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES; the exporter reads its headers, compression and timeout
    let resource = Resource::builder();
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let is_named =
        !variable("OTEL_SERVICE_NAME").is_empty() || variable("OTEL_RESOURCE_ATTRIBUTES").contains("service.name=");
    let resource = if is_named { resource.build() } else { resource.with_service_name(service).build() };
    Ok(SdkTracerProvider::builder()
        .with_span_processor(SpanQueue::new(exporter, settings.max_queued_spans))
        .with_sampler(DecidedBefore)
        .with_id_generator(ChosenIds::default())
        .with_resource(resource)
        .build())
}

/// The exporter's own limit: it cannot stop what runs elsewhere.
fn send_timeout() -> Duration {
    let names = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
    let millis = names.iter().find_map(|name| std::env::var(name).ok()?.parse().ok());
    millis.map_or(SEND_TIMEOUT, Duration::from_millis)
}

fn grpc_tls(settings: &TelemetrySettings) -> anyhow::Result<ClientTlsConfig> {
    // It refuses what the other way refuses
    tls::client_config(CA_SETTING, settings.otlp_ca_file.as_deref())?;
    match &settings.otlp_ca_file {
        Some(path) => Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(fs::read(path)?))),
        None => Ok(ClientTlsConfig::new().with_native_roots()),
    }
}

/// Sends from the exporter's own thread, which has no runtime.
#[derive(Debug)]
struct SpanClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
    limit: Duration,
}

impl SpanClient {
    fn new(settings: &TelemetrySettings) -> anyhow::Result<Self> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        let is_tls = settings.otlp_endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("https://"));
        let config = if is_tls {
            tls::client_config(CA_SETTING, settings.otlp_ca_file.as_deref())?
        } else {
            tls::trust_nobody()?
        };
        let https = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1();
        let client = Client::builder(TokioExecutor::new()).build(https.wrap_connector(http));
        Ok(Self { client, runtime: Handle::current(), limit: send_timeout() })
    }
}

impl HttpClient for SpanClient {
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
