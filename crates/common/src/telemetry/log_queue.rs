//! The queue of log lines on their way to a receiver: bounded as that of spans is. A line there has the level, the text, the
//! fields and the ids that it has on standard output.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    InstrumentationScope, SpanId, TraceFlags, TraceId,
    logs::{LogRecord, Severity},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    logs::{BatchConfigBuilder, BatchLogProcessor, LogBatch, LogExporter, LogProcessor, SdkLogRecord},
};

use super::{WorkScope, losses::Signal, queue_room::QueueRoom};

/// Modules that send the lines: what they log at `debug` about a request would be the next request.
const SENDERS: [&str; 6] = ["h2", "hyper", "opentelemetry", "rustls", "tonic", "tower"];

/// The end where lines come in.
#[derive(Debug)]
pub(super) struct LogQueue {
    batches: BatchLogProcessor,
    room: Arc<QueueRoom>,
}

impl LogQueue {
    /// A queue of at most `max` lines in front of an exporter.
    pub(super) fn new(exporter: impl LogExporter + 'static, max: usize) -> Self {
        let room = Arc::new(QueueRoom::new(max, Signal::LogRecords));
        let config = BatchConfigBuilder::default().with_max_queue_size(max).build();
        let exporter = CountedLogExporter { exporter, room: room.clone() };
        Self { batches: BatchLogProcessor::builder(exporter).with_batch_config(config).build(), room }
    }
}

impl LogProcessor for LogQueue {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if !self.room.enter() {
            // Not logged here: this is inside of logging
            return self.room.losses.count(1, "queue_full");
        }
        add_work(record);
        self.batches.emit(record, scope);
    }

    fn event_enabled(&self, _: Severity, target: &str, _: Option<&str>) -> bool {
        !SENDERS.iter().any(|sender| target.starts_with(sender))
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

/// Adds what the task works on.
fn add_work(record: &mut SdkLogRecord) {
    // The bridge puts the place in the code there, which is no name of an event
    record.set_event_name("");
    record.set_timestamp(SystemTime::now());
    let work = WorkScope::current();
    if let Some(span) = work.trace().span() {
        let (trace_id, span_id) = (TraceId::from(span.trace_id), SpanId::from(span.span_id));
        record.set_trace_context(trace_id, span_id, Some(TraceFlags::new(span.flags)));
    }
    let mut add = |name: &'static str, id: String| {
        // The event may say it itself
        if !record.attributes_iter().any(|(known, _)| known.as_str() == name) {
            record.add_attribute(name, id);
        }
    };
    if let Some(job) = work.job() {
        add("job_id", job.to_string());
    }
    if let Some(request) = work.request() {
        add("request_id", request.to_owned());
    }
}

/// The end where lines go out.
#[derive(Debug)]
struct CountedLogExporter<E> {
    exporter: E,
    room: Arc<QueueRoom>,
}

impl<E: LogExporter> LogExporter for CountedLogExporter<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let count = batch.iter().count();
        let sent = self.exporter.export(batch).await;
        self.room.leave(count);
        match sent {
            Ok(()) => {
                self.room.losses.count_sent(count);
                self.room.losses.log_if_due(&"the receiver is too slow");
            }
            Err(error) => self.room.losses.note(count, "not_sent", &error),
        }
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
