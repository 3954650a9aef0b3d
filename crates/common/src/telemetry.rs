//! Logs and traces of a process.
//!
//! Logs go to stdout through a separate thread, so a slow reader of stdout delays nothing. Spans go to an OTLP receiver
//! if one is set. Drop the guard that [`start`] returns last: it sends the remaining spans and lines.

mod otlp;

use std::{fmt, io::IsTerminal, sync::OnceLock, time::Duration};

use anyhow::Context as _;
use opentelemetry::{
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TracerProvider,
};
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tokio::sync::oneshot;
use tracing::{
    Event, Metadata, Span,
    field::{Field, Visit},
};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    layer::{self, Filter, SubscriberExt},
    util::SubscriberInitExt,
};

use crate::{
    settings::{LogFormat, LogSettings, TelemetrySettings},
    text::{LineFormat, LineWriter},
};

/// Only Galley's own spans. Tracing the exporter's HTTP requests would produce more spans to export, without end.
const SPAN_FILTER: &str =
    "off,common=info,store=info,delivery=info,worker=info,gateway=info,queue_worker=info,pubsub_worker=info";
/// Lines that wait to be written. More are lost, and counted.
const MAX_BUFFERED_LINES: usize = 16_384;
/// The number of lost lines.
static LOST_LINE_COUNTER: OnceLock<ErrorCounter> = OnceLock::new();
/// Longest wait for the last spans to be sent.
const SPAN_FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for the last lines to be written.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Writes logs and sends spans while it lives; drop it last.
#[must_use = "dropping it ends logging"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
    logs: WorkerGuard,
}

/// Starts logging and tracing for the process.
///
/// # Errors
/// Logging is set up already, or the exporter cannot be built.
pub fn start(service: &'static str, log: &LogSettings, telemetry: &TelemetrySettings) -> anyhow::Result<Telemetry> {
    // A reader that stops reading must not stop the service
    let (writer, logs) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(MAX_BUFFERED_LINES).finish(std::io::stdout());
    let _ = LOST_LINE_COUNTER.set(writer.error_counter());
    let format = if is_for_people(log) { LineFormat::People } else { LineFormat::Json };
    let writer = move || LineWriter { inner: writer.clone(), format };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = if format == LineFormat::People {
        lines.with_ansi(std::io::stdout().is_terminal()).with_target(false).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    };
    // Events have the ids as fields; spans are for the receiver of traces
    let events = EnvFilter::try_new(&log.level)?.and(filter_fn(|metadata: &Metadata<'_>| metadata.is_event()));
    let events = events.and(WithoutMalformedRequests);
    let provider = telemetry
        .otlp_endpoint
        .as_deref()
        .map(|endpoint| otlp::tracer_provider(service, endpoint, telemetry))
        .transpose()?;
    let spans = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer().with_tracer(provider.tracer("galley")).with_filter(EnvFilter::new(SPAN_FILTER))
    });
    let lines = tracing_subscriber::registry().with(lines.with_filter(events));
    // Not an optional layer: an absent one counts as interested, so each span and each event that is not logged, of which
    // a request has dozens, would ask the filters again
    let started = match spans {
        Some(spans) => lines.with(spans).try_init(),
        None => lines.try_init(),
    };
    started.context("logging was set up before")?;
    Ok(Telemetry { provider, logs })
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
    /// Sends the remaining spans, writes the remaining lines and ends logging. It takes a few seconds at most.
    pub async fn finish(self) {
        if let Some(provider) = self.provider {
            // The exporter blocks until everything is sent or the limit is reached
            let ending = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(SPAN_FLUSH_TIMEOUT));
            let _ = tokio::time::timeout(SPAN_FLUSH_TIMEOUT + LOG_FLUSH_TIMEOUT, ending).await;
        }
        // On a failure the guard prints to stdout, and waits until that is written
        let (tell, ended) = oneshot::channel();
        std::thread::spawn(move || {
            drop(self.logs);
            let _ = tell.send(());
        });
        let _ = tokio::time::timeout(LOG_FLUSH_TIMEOUT, ended).await;
    }
}

/// Makes a span part of the trace that a `traceparent` names. Invalid text changes nothing.
pub fn continue_trace(span: &Span, traceparent: Option<&str>) {
    struct TraceparentExtractor<'a>(&'a str);
    impl Extractor for TraceparentExtractor<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            (key == "traceparent").then_some(self.0)
        }
        fn keys(&self) -> Vec<&str> {
            vec!["traceparent"]
        }
    }
    if let Some(text) = traceparent {
        let context = TraceContextPropagator::new().extract(&TraceparentExtractor(text));
        // Fails only where no exporter is set up, and then there is no trace to continue
        let _ = span.set_parent(context);
    }
}

/// The `traceparent` of a span, if spans are exported.
#[must_use]
pub fn traceparent_of(span: &Span) -> Option<String> {
    #[derive(Default)]
    struct One(Option<String>);
    impl Injector for One {
        fn set(&mut self, key: &str, value: String) {
            if key == "traceparent" {
                self.0 = Some(value);
            }
        }
    }
    if span.is_disabled() {
        return None;
    }
    let mut carrier = One::default();
    TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
    carrier.0
}

/// Brings the count of lost lines up to date.
pub(crate) fn count_lost_lines() {
    let lost = LOST_LINE_COUNTER.get().map_or(0, ErrorCounter::dropped_lines);
    metrics::counter!("galley_log_lines_lost_total").absolute(u64::try_from(lost).unwrap_or(u64::MAX));
}
