//! The queue of spans on their way to the receiver. It is bounded: a receiver that is away or hangs costs no request and no
//! memory. What is lost is counted, and logged once a minute.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry::Context;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};

use super::losses::{Losses, Signal};

/// Spans in one request.
const MAX_BATCH_SPANS: usize = 512;
/// How long spans wait for others.
const SEND_INTERVAL: Duration = Duration::from_secs(1);

/// How the queue does, for both of its ends.
#[derive(Debug)]
struct SpanQueueState {
    waiting: AtomicUsize,
    max: usize,
    losses: Losses,
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
        let state = Arc::new(SpanQueueState { waiting: AtomicUsize::new(0), max, losses: Losses::of(Signal::Spans) });
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
            return self.state.losses.note(1, "queue_full", &"the receiver is away or too slow");
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
            self.state.losses.note_at_the_end(left, &"the receiver did not take them in time");
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
            Ok(()) => self.state.losses.count_sent(count),
            Err(error) => self.state.losses.note(count, "not_sent", &error),
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
