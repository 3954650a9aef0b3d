//! The queue of spans on their way to the receiver. It is bounded: a receiver that is away or hangs costs no request and no
//! memory. What is lost is counted, and logged once a minute.

use std::{sync::Arc, time::Duration};

use opentelemetry::Context;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};

use super::{losses::Signal, queue_room::QueueRoom};

/// Spans in one request.
const MAX_BATCH_SPANS: usize = 512;
/// How long spans wait for others.
const SEND_INTERVAL: Duration = Duration::from_secs(1);

/// The end where spans come in.
#[derive(Debug)]
pub(super) struct SpanQueue {
    batches: BatchSpanProcessor,
    room: Arc<QueueRoom>,
}

impl SpanQueue {
    /// A queue of at most `max` spans in front of an exporter.
    pub(super) fn new(exporter: impl SpanExporter + 'static, max: usize) -> Self {
        let room = Arc::new(QueueRoom::new(max, Signal::Spans));
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(max)
            .with_max_export_batch_size(MAX_BATCH_SPANS)
            .with_scheduled_delay(SEND_INTERVAL)
            .build();
        let exporter = CountedExporter { exporter, room: room.clone() };
        Self { batches: BatchSpanProcessor::builder(exporter).with_batch_config(config).build(), room }
    }
}

impl SpanProcessor for SpanQueue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !self.room.enter() {
            return self.room.losses.note(1, "queue_full", &"the receiver is away or too slow");
        }
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let ended = self.batches.shutdown_with_timeout(timeout);
        self.room.close();
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
    room: Arc<QueueRoom>,
}

impl<E: SpanExporter> SpanExporter for CountedExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let sent = self.exporter.export(batch).await;
        self.room.leave(count);
        match sent {
            Ok(()) => self.room.losses.count_sent(count),
            Err(error) => self.room.losses.note(count, "not_sent", &error),
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
