//! The queue of spans on their way to the receiver. It is bounded: a receiver that is away or hangs costs no request and no
//! memory. What is lost is counted, and logged once a minute.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use opentelemetry::Context;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};

/// Spans in one request.
const MAX_BATCH_SPANS: usize = 512;
/// How long spans wait for others.
const SEND_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two lines about lost spans.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// How the queue does, for both of its ends.
#[derive(Debug)]
struct SpanQueueState {
    waiting: AtomicUsize,
    max: usize,
    trouble: Mutex<Trouble>,
}

/// Spans that were lost, and nobody has read of yet.
#[derive(Debug, Default)]
struct Trouble {
    lost: usize,
    logged: Option<Instant>,
}

impl SpanQueueState {
    fn note_lost(&self, count: usize, reason: &'static str, error: &dyn std::fmt::Display) {
        metrics::counter!("galley_spans_lost_total", "reason" => reason).increment(count as u64);
        let lost = {
            let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            trouble.lost += count;
            if trouble.logged.is_some_and(|logged| logged.elapsed() < LOG_INTERVAL) {
                return;
            }
            trouble.logged = Some(Instant::now());
            std::mem::take(&mut trouble.lost)
        };
        tracing::warn!(event = "spans.lost", lost, reason, %error, "spans were not sent");
    }
}

/// The end where spans come in.
#[derive(Debug)]
pub(super) struct SpanQueue {
    batches: BatchSpanProcessor,
    state: Arc<SpanQueueState>,
}

impl SpanQueue {
    /// A queue of at most `max` spans in front of an exporter.
    pub(super) fn new(exporter: impl SpanExporter + 'static, max: usize) -> Self {
        let state = Arc::new(SpanQueueState { waiting: AtomicUsize::new(0), max, trouble: Mutex::default() });
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(max)
            .with_max_export_batch_size(MAX_BATCH_SPANS)
            .with_scheduled_delay(SEND_INTERVAL)
            .build();
        let exporter = CountedExporter { exporter, state: state.clone() };
        Self { batches: BatchSpanProcessor::builder(exporter).with_batch_config(config).build(), state }
    }
}

impl SpanProcessor for SpanQueue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.state.waiting.fetch_add(1, Relaxed) >= self.state.max {
            self.state.waiting.fetch_sub(1, Relaxed);
            return self.state.note_lost(1, "queue_full", &"the receiver is away or too slow");
        }
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let ended = self.batches.shutdown_with_timeout(timeout);
        let left = self.state.waiting.load(Relaxed);
        if left > 0 {
            // Logged in any case: nothing follows
            self.state.trouble.lock().unwrap_or_else(PoisonError::into_inner).logged = None;
            self.state.note_lost(left, "shutdown", &"the receiver did not take them in time");
        }
        ended
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// The end where spans go out.
#[derive(Debug)]
struct CountedExporter<E> {
    exporter: E,
    state: Arc<SpanQueueState>,
}

impl<E: SpanExporter> SpanExporter for CountedExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let sent = self.exporter.export(batch).await;
        self.state.waiting.fetch_sub(count, Relaxed);
        match sent {
            Ok(()) => metrics::counter!("galley_spans_sent_total").increment(count as u64),
            Err(error) => self.state.note_lost(count, "not_sent", &error),
        }
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
