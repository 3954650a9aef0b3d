//! The queue of log lines on their way to a receiver: bounded as that of spans is. A line there has the level, the text, the
//! fields and the ids that it has on standard output.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
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

use super::{
    WorkScope,
    losses::{Losses, Signal},
};

/// Modules that send the lines: what they log at `debug` about a request would be the next request.
const SENDERS: [&str; 6] = ["h2", "hyper", "opentelemetry", "rustls", "tonic", "tower"];

/// How the queue does, for both of its ends.
#[derive(Debug)]
struct LogQueueState {
    waiting: AtomicUsize,
    max: usize,
    losses: Losses,
}

/// The end where lines come in.
#[derive(Debug)]
pub(super) struct LogQueue {
    batches: BatchLogProcessor,
    state: Arc<LogQueueState>,
}

impl LogQueue {
    /// A queue of at most `max` lines in front of an exporter.
    pub(super) fn new(exporter: impl LogExporter + 'static, max: usize) -> Self {
        let state =
            Arc::new(LogQueueState { waiting: AtomicUsize::new(0), max, losses: Losses::of(Signal::LogRecords) });
        let config = BatchConfigBuilder::default().with_max_queue_size(max).build();
        let exporter = CountedLogExporter { exporter, state: state.clone() };
        Self { batches: BatchLogProcessor::builder(exporter).with_batch_config(config).build(), state }
    }
}

impl LogProcessor for LogQueue {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if self.state.waiting.fetch_add(1, Relaxed) >= self.state.max {
            self.state.waiting.fetch_sub(1, Relaxed);
            // Not logged here: this is inside of logging
            return self.state.losses.count(1, "queue_full");
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
    state: Arc<LogQueueState>,
}

impl<E: LogExporter> LogExporter for CountedLogExporter<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let count = batch.iter().count();
        let sent = self.exporter.export(batch).await;
        let LogQueueState { waiting, losses, .. } = &*self.state;
        waiting.fetch_sub(count, Relaxed);
        match sent {
            Ok(()) => {
                losses.count_sent(count);
                losses.log_if_due(&"the receiver is too slow");
            }
            Err(error) => losses.note(count, "not_sent", &error),
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
