//! Sends what `/metrics` shows to a receiver over OTLP, at intervals. What cannot be sent is not kept: the next message has
//! the newer numbers.

use std::{
    io::Write as _,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use opentelemetry_http::HttpClient as _;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient},
    metrics::v1::{Metric, ResourceMetrics, ScopeMetrics},
};
use opentelemetry_sdk::Resource;
use percent_encoding::percent_decode_str;
use prost::Message as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{
    Extensions,
    codec::CompressionEncoding,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::{
    losses::{Losses, Signal},
    metric_points::{MAX_POINTS, MetricPoints, count_points},
    otlp::{grpc_tls, is_http, resource, timeout, variable_of},
    otlp_client::OtlpClient,
};
use crate::{prometheus, settings::TelemetrySettings};

/// Time between two messages, unless the settings say otherwise.
const SEND_INTERVAL: Duration = Duration::from_mins(1);
const SIGNAL: &str = "METRICS";

/// Sends while it lives.
pub(super) struct MetricPush {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl MetricPush {
    /// Begins to send the metrics of a service.
    ///
    /// # Errors
    /// The endpoint, the file of authorities or a variable cannot be used.
    pub(super) fn start(
        service: &'static str,
        endpoint: &str,
        settings: &TelemetrySettings,
        flush_timeout: Duration,
    ) -> anyhow::Result<Self> {
        let sender = MetricSender::new(endpoint, settings)
            .context("telemetry.otlp_metrics_endpoint: metrics cannot be sent there")?;
        let interval = settings.otlp_metrics_interval.unwrap_or(SEND_INTERVAL);
        let stop = CancellationToken::new();
        let task = tokio::spawn(push(sender, resource(service), interval, flush_timeout, stop.clone()));
        Ok(Self { stop, task })
    }

    /// Sends the last numbers, for a limited time.
    pub(super) async fn finish(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

async fn push(
    sender: MetricSender,
    resource: Resource,
    interval: Duration,
    flush_timeout: Duration,
    stop: CancellationToken,
) {
    let losses = Losses::of(Signal::MetricPoints);
    let mut points = MetricPoints::new(SystemTime::now());
    while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
        let messages = messages(&mut points, &resource);
        // Stopping does not wait for a receiver that hangs
        stop.run_until_cancelled(send_all(&sender, messages, &losses)).await;
    }
    let last = messages(&mut points, &resource);
    let count = last.iter().map(|(count, _)| count).sum();
    if tokio::time::timeout(flush_timeout, send_all(&sender, last, &losses)).await.is_err() {
        losses.note_at_the_end(count, &"the receiver did not take them in time");
    }
}

async fn send_all(sender: &MetricSender, messages: Vec<(usize, ExportMetricsServiceRequest)>, losses: &Losses) {
    for (count, message) in messages {
        match sender.send(message).await {
            Ok(()) => losses.count_sent(count),
            Err(error) => losses.note(count, "not_sent", &format_args!("{error:#}")),
        }
    }
}

/// What `/metrics` shows now, in messages with a bounded number of points each.
fn messages(points: &mut MetricPoints, resource: &Resource) -> Vec<(usize, ExportMetricsServiceRequest)> {
    let Some(page) = prometheus::render() else { return Vec::new() };
    let mut messages: Vec<(usize, Vec<Metric>)> = Vec::new();
    for metric in points.read(prometheus::families(&page), SystemTime::now()) {
        let count = count_points(&metric);
        match messages.last_mut().filter(|(size, _)| size + count <= MAX_POINTS) {
            Some((size, metrics)) => {
                *size += count;
                metrics.push(metric);
            }
            None => messages.push((count, vec![metric])),
        }
    }
    let message = |metrics| {
        let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
        let of_process =
            ResourceMetrics { resource: Some(resource.into()), scope_metrics, ..ResourceMetrics::default() };
        ExportMetricsServiceRequest { resource_metrics: vec![of_process] }
    };
    messages.into_iter().map(|(count, metrics)| (count, message(metrics))).collect()
}

/// One of the two ways to a receiver. The exporter of the SDK cannot be used: its messages are made of what the SDK measured.
struct MetricSender {
    way: Way,
    headers: HeaderMap,
    is_gzip: bool,
}

enum Way {
    Http { client: Box<OtlpClient>, url: String },
    Grpc { client: MetricsServiceClient<Channel> },
}

impl MetricSender {
    fn new(endpoint: &str, settings: &TelemetrySettings) -> anyhow::Result<Self> {
        let is_gzip = match variable_of(SIGNAL, "COMPRESSION") {
            None => false,
            Some((_, text)) if text == "gzip" => true,
            Some((_, text)) if text == "none" => false,
            Some((name, text)) => bail!("{name} is {text:?}: allowed are gzip and none"),
        };
        let limit = timeout(SIGNAL);
        let way = if is_http(endpoint) {
            Way::Http { client: Box::new(OtlpClient::new(endpoint, settings, limit)?), url: endpoint.to_owned() }
        } else {
            let mut channel = Endpoint::from_shared(endpoint.to_owned())?.timeout(limit);
            if endpoint.starts_with("https://") {
                channel = channel.tls_config(grpc_tls(settings)?)?;
            }
            let client = MetricsServiceClient::new(channel.connect_lazy());
            let client = if is_gzip { client.send_compressed(CompressionEncoding::Gzip) } else { client };
            Way::Grpc { client }
        };
        Ok(Self { way, headers: headers()?, is_gzip })
    }

    async fn send(&self, message: ExportMetricsServiceRequest) -> anyhow::Result<()> {
        match &self.way {
            Way::Grpc { client } => {
                let metadata = MetadataMap::from_headers(self.headers.clone());
                client.clone().export(tonic::Request::from_parts(metadata, Extensions::default(), message)).await?;
            }
            Way::Http { client, url } => {
                let mut body = message.encode_to_vec();
                if self.is_gzip {
                    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
                    encoder.write_all(&body)?;
                    body = encoder.finish()?;
                }
                let mut request = Request::post(url).body(Bytes::from(body))?;
                request.headers_mut().extend(self.headers.clone());
                let protobuf = HeaderValue::from_static("application/x-protobuf");
                request.headers_mut().insert(header::CONTENT_TYPE, protobuf);
                if self.is_gzip {
                    request.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                }
                let answer = client.send_bytes(request).await.map_err(|error| anyhow::anyhow!(error))?;
                ensure!(answer.status().is_success(), "the receiver answered {}", answer.status());
            }
        }
        Ok(())
    }
}

/// The headers of the variables, such as `api-key=secret`. Errors do not show values.
fn headers() -> anyhow::Result<HeaderMap> {
    let Some((variable, text)) = variable_of(SIGNAL, "HEADERS") else { return Ok(HeaderMap::new()) };
    let mut headers = HeaderMap::new();
    for (index, header) in text.split(',').enumerate().filter(|(_, header)| !header.trim().is_empty()) {
        let parsed = header.split_once('=').and_then(|(name, value)| {
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            let mut value = HeaderValue::from_str(&value).ok()?;
            value.set_sensitive(true);
            Some((name.trim().parse::<HeaderName>().ok()?, value))
        });
        let Some((name, value)) = parsed else { bail!("{variable}: header {} is not name=value", index + 1) };
        headers.insert(name, value);
    }
    Ok(headers)
}
