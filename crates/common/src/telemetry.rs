//! Logs and traces of a process.
//!
//! Logs go to stdout through a separate thread, so a slow reader of stdout delays nothing. Spans go to an OTLP receiver
//! if one is set; log lines and metrics too, if one is set for them. Drop the guard that [`start`] returns last: it sends what
//! is left.

mod job_lines;
pub mod log_level;
mod log_queue;
mod losses;
mod metric_points;
mod metric_push;
mod otlp;
mod otlp_client;
mod queue_room;
mod recent_problems;
mod scope;
mod span_description;
mod span_queue;
pub mod spans;

use std::{fmt, io::IsTerminal, sync::OnceLock, time::Duration};

use anyhow::Context as _;
use futures_util::future::OptionFuture;
use opentelemetry::trace::TracerProvider;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::{logs::SdkLoggerProvider, trace::SdkTracerProvider};
use tokio::sync::oneshot;
use tracing::{
    Event, Metadata,
    field::{Field, Visit},
};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    fmt::format::JsonFields,
    layer::{self, Filter, SubscriberExt},
    util::SubscriberInitExt,
};

pub use recent_problems::{RecentProblem, recent_problems};
pub use scope::WorkScope;

use job_lines::WorkLines;
use metric_push::MetricPush;

use crate::{
    settings::{LogFormat, LogSettings, TelemetrySettings},
    text::{LineFormat, LineWriter},
};

/// Spans that handlers in Rust make with `tracing`, which become children of their attempt. Galley's own do not come this way.
const SPAN_FILTER: &str =
    "info,h2=off,hyper=off,hyper_util=off,tonic=off,tower=off,opentelemetry=off,opentelemetry_sdk=off";
/// Lines that wait to be written. More are lost, and counted.
const MAX_BUFFERED_LINES: usize = 16_384;
/// The number of lost lines.
static LOST_LINE_COUNTER: OnceLock<ErrorCounter> = OnceLock::new();
/// Longest wait for the last spans, log lines and metrics to be sent, which happens at once.
const SEND_FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for the last lines to be written.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Writes logs and sends spans and the like while it lives; drop it last.
#[must_use = "dropping it ends logging"]
pub struct Telemetry {
    spans: Option<SdkTracerProvider>,
    records: Option<SdkLoggerProvider>,
    metrics: Option<MetricPush>,
    logs: WorkerGuard,
}

/// Starts logging and tracing for the process.
///
/// # Errors
/// Logging is set up already, or an exporter cannot be built.
pub fn start(service: &'static str, log: &LogSettings, telemetry: &TelemetrySettings) -> anyhow::Result<Telemetry> {
    // A reader that stops reading must not stop the service
    let (writer, logs) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(MAX_BUFFERED_LINES).finish(std::io::stdout());
    let _ = LOST_LINE_COUNTER.set(writer.error_counter());
    let format = if is_for_people(log) { LineFormat::People } else { LineFormat::Json };
    let writer = move || LineWriter { inner: writer.clone(), format };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = if format == LineFormat::People {
        let is_terminal = std::io::stdout().is_terminal();
        let people = tracing_subscriber::fmt::format().with_target(false).with_ansi(is_terminal);
        lines.with_ansi(is_terminal).event_format(WorkLines::for_people(people)).boxed()
    } else {
        let json = tracing_subscriber::fmt::format().json().flatten_event(true);
        let json = json.with_current_span(false).with_span_list(false);
        lines.fmt_fields(JsonFields::new()).event_format(WorkLines::for_machines(json)).boxed()
    };
    // Events have the ids as fields; spans are for the receiver of traces
    let filter = log_level::reloadable_filter(&log.level)?;
    let events = filter.and(filter_fn(|metadata: &Metadata<'_>| metadata.is_event()));
    let events = events.and(WithoutMalformedRequests).and(filter_fn(|metadata| !is_of_exporter(metadata.target())));
    let records = telemetry.otlp_logs_endpoint.as_deref();
    let records = records.map(|endpoint| otlp::logger_provider(service, endpoint, telemetry)).transpose()?;
    // Behind the same filter: a receiver gets the lines that are written
    let lines = match &records {
        Some(provider) => lines.and_then(OpenTelemetryTracingBridge::new(provider)).boxed(),
        None => lines,
    };
    let provider = telemetry.otlp_endpoint.as_deref();
    let provider = provider.map(|endpoint| otlp::tracer_provider(service, endpoint, telemetry)).transpose()?;
    let spans = provider.as_ref().map(|provider| {
        let tracer = provider.tracer("galley");
        spans::start_recording(tracer.clone(), telemetry.sampler.unwrap_or_default());
        let only_spans = filter_fn(|metadata: &Metadata<'_>| metadata.is_span());
        tracing_opentelemetry::layer().with_tracer(tracer).with_filter(EnvFilter::new(SPAN_FILTER).and(only_spans))
    });
    let lines = tracing_subscriber::registry().with(lines.with_filter(events)).with(recent_problems::layer());
    // Not an optional layer: an absent one counts as interested, so each span and each event that is not logged, of which
    // a request has dozens, would ask the filters again
    let started = match spans {
        Some(spans) => lines.with(spans).try_init(),
        None => lines.try_init(),
    };
    started.context("logging was set up before")?;
    let metrics = telemetry.otlp_metrics_endpoint.as_deref();
    let metrics =
        metrics.map(|endpoint| MetricPush::start(service, endpoint, telemetry, SEND_FLUSH_TIMEOUT)).transpose()?;
    Ok(Telemetry { spans: provider, records, metrics, logs })
}

/// What the exporter says itself is counted, and logged once a minute.
fn is_of_exporter(target: &str) -> bool {
    target.starts_with("opentelemetry")
}

/// Drops the errors that actix-web logs about requests that are no HTTP: any client can send these, and nobody has to act.
/// They are counted.
struct WithoutMalformedRequests;

impl<S> Filter<S> for WithoutMalformedRequests {
    fn enabled(&self, _: &Metadata<'_>, _: &layer::Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &layer::Context<'_, S>) -> bool {
        if !event.metadata().target().starts_with("actix_http::h1") {
            return true;
        }
        let mut is_malformed = IsMalformed(false);
        event.record(&mut is_malformed);
        if is_malformed.0 {
            metrics::counter!("galley_http_malformed_requests_total").increment(1);
        }
        !is_malformed.0
    }
}

/// Whether the message of an event is about a request that cannot be parsed, or that is too large to be.
struct IsMalformed(bool);

impl Visit for IsMalformed {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let message = format!("{value:?}");
            self.0 = message.starts_with("stream error: request parse error") || message.starts_with("MAX_BUFFER_SIZE");
        }
    }
}

/// Whether log lines are for people, not for machines.
pub(crate) fn is_for_people(log: &LogSettings) -> bool {
    match log.format {
        LogFormat::Auto => std::io::stdout().is_terminal(),
        LogFormat::Pretty => true,
        LogFormat::Json => false,
    }
}

impl Telemetry {
    /// Sends the remaining spans, lines and metrics, writes the remaining lines and ends logging. It takes a few seconds at
    /// most.
    pub async fn finish(self) {
        let Self { spans, records, metrics, logs } = self;
        // Exporters block until everything is sent or the limit is reached
        let spans = spans.map(|spans| move || spans.shutdown_with_timeout(SEND_FLUSH_TIMEOUT));
        let records = records.map(|records| move || records.shutdown_with_timeout(SEND_FLUSH_TIMEOUT));
        let ending = async {
            tokio::join!(
                OptionFuture::from(spans.map(tokio::task::spawn_blocking)),
                OptionFuture::from(records.map(tokio::task::spawn_blocking)),
                OptionFuture::from(metrics.map(MetricPush::finish)),
            )
        };
        let _ = tokio::time::timeout(SEND_FLUSH_TIMEOUT + LOG_FLUSH_TIMEOUT, ending).await;
        // On a failure the guard prints to stdout, and waits until that is written
        let (tell, ended) = oneshot::channel();
        std::thread::spawn(move || {
            drop(logs);
            let _ = tell.send(());
        });
        let _ = tokio::time::timeout(LOG_FLUSH_TIMEOUT, ended).await;
    }
}

/// Brings the count of lost lines up to date.
pub(crate) fn count_lost_lines() {
    let lost = LOST_LINE_COUNTER.get().map_or(0, ErrorCounter::dropped_lines);
    metrics::counter!("galley_log_lines_lost_total").absolute(u64::try_from(lost).unwrap_or(u64::MAX));
}
