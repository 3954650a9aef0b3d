//! How spans, log lines and metrics are sent to a receiver over OTLP: gRPC or HTTP, with or without TLS.

use std::time::Duration;

use anyhow::Context as _;
use opentelemetry_otlp::{
    LogExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
    tonic_types::transport::{Certificate, ClientTlsConfig},
};
use opentelemetry_sdk::{Resource, logs::SdkLoggerProvider, trace::SdkTracerProvider};

use super::{
    log_queue::LogQueue,
    otlp_client::{CA_SETTING, OtlpClient},
    span_queue::SpanQueue,
    spans::{ChosenIds, DecidedBefore},
};
use crate::{settings::TelemetrySettings, tls};

/// Longest time for one request, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// What sends the spans of a service.
///
/// # Errors
/// The endpoint or the file of authorities cannot be used.
pub(super) fn tracer_provider(
    service: &'static str,
    endpoint: &str,
    settings: &TelemetrySettings,
) -> anyhow::Result<SdkTracerProvider> {
    let exporter = if is_http(endpoint) {
        over_http(SpanExporter::builder().with_http(), "TRACES", endpoint, settings)?.build()
    } else {
        over_grpc(SpanExporter::builder().with_tonic(), endpoint, settings)?.build()
    };
    let exporter = exporter.context("telemetry.otlp_endpoint: spans cannot be sent there")?;
    Ok(SdkTracerProvider::builder()
        .with_span_processor(SpanQueue::new(exporter, settings.max_queued_spans))
        .with_sampler(DecidedBefore)
        .with_id_generator(ChosenIds::default())
        .with_resource(resource(service))
        .build())
}

/// What sends the log lines of a service.
///
/// # Errors
/// As [`tracer_provider`].
pub(super) fn logger_provider(
    service: &'static str,
    endpoint: &str,
    settings: &TelemetrySettings,
) -> anyhow::Result<SdkLoggerProvider> {
    let exporter = if is_http(endpoint) {
        over_http(LogExporter::builder().with_http(), "LOGS", endpoint, settings)?.build()
    } else {
        over_grpc(LogExporter::builder().with_tonic(), endpoint, settings)?.build()
    };
    let exporter = exporter.context("telemetry.otlp_logs_endpoint: log lines cannot be sent there")?;
    let queue = LogQueue::new(exporter, settings.max_queued_log_records);
    Ok(SdkLoggerProvider::builder().with_log_processor(queue).with_resource(resource(service)).build())
}

/// What is known of this process. It reads `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`.
pub(super) fn resource(service: &'static str) -> Resource {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let is_named =
        !variable("OTEL_SERVICE_NAME").is_empty() || variable("OTEL_RESOURCE_ATTRIBUTES").contains("service.name=");
    let resource = Resource::builder();
    if is_named { resource.build() } else { resource.with_service_name(service).build() }
}

/// A path means OTLP over HTTP, none means gRPC.
pub(super) fn is_http(endpoint: &str) -> bool {
    endpoint.splitn(4, '/').nth(3).is_some_and(|path| !path.is_empty())
}

/// The exporter reads its headers and its compression from the variables.
fn over_http<B: WithExportConfig + WithHttpConfig>(
    builder: B,
    signal: &str,
    endpoint: &str,
    settings: &TelemetrySettings,
) -> anyhow::Result<B> {
    let client = OtlpClient::new(endpoint, settings, timeout(signal))?;
    Ok(builder.with_http_client(client).with_protocol(Protocol::HttpBinary).with_endpoint(endpoint))
}

fn over_grpc<B: WithExportConfig + WithTonicConfig>(
    builder: B,
    endpoint: &str,
    settings: &TelemetrySettings,
) -> anyhow::Result<B> {
    let builder = builder.with_endpoint(endpoint);
    Ok(if endpoint.starts_with("https://") { builder.with_tls_config(grpc_tls(settings)?) } else { builder })
}

/// What OpenTelemetry's variables say about sending a signal, such as `HEADERS`: that for the signal, else that for all.
pub(super) fn variable_of(signal: &str, what: &str) -> Option<(String, String)> {
    let names = [format!("OTEL_EXPORTER_OTLP_{signal}_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")];
    names.into_iter().find_map(|name| {
        let value = std::env::var(&name).ok().filter(|value| !value.is_empty())?;
        Some((name, value))
    })
}

/// Longest time for one request.
pub(super) fn timeout(signal: &str) -> Duration {
    let millis = variable_of(signal, "TIMEOUT").and_then(|(_, millis)| millis.parse().ok());
    millis.map_or(SEND_TIMEOUT, Duration::from_millis)
}

pub(super) fn grpc_tls(settings: &TelemetrySettings) -> anyhow::Result<ClientTlsConfig> {
    // It refuses what the other way refuses
    tls::client_config(CA_SETTING, settings.otlp_ca_file.as_deref())?;
    match &settings.otlp_ca_file {
        Some(path) => Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(path)?))),
        None => Ok(ClientTlsConfig::new().with_native_roots()),
    }
}
