//! Job events: a capped stream for observers. Events are not the state of jobs: under pressure or after a crash some
//! are missing, and nothing in Galley acts on them.
//!
//! The writer collects events for a few milliseconds and writes many in one entry, so that they cost little. `read`
//! reads them, `hub` tails them for many readers, and `reader` is one of these.
//!
//! On a cluster there are several streams, and the queue of an event says which one has it: each partition of a queue has
//! one, so that its events stay in order. `cursor` says where a reader is in all of them.

mod cursor;
mod hub;
mod read;
mod reader;

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use cursor::EventCursor;
pub use hub::{EventHub, EventStart};
pub(crate) use read::stream_count;
pub use read::{EventBatch, EventFilter, EventPosition, ReadEvent};
pub use reader::{EventReader, EventReaderItem, NewEvents};

use crate::{Redis, deliveries::DeliveryRecorder, keys, statistics::StatisticsRecorder};
use common::{
    hash::mixed_fnv1a,
    name::QueueName,
    settings::Settings,
    time::{self, Millis},
};
use model::job::JobState;

/// The most events that wait to be written. More are dropped and counted.
const BUFFER: usize = 16_384;
/// The same for each stream of a cluster.
const STREAM_BUFFER: usize = 4_096;
/// The most events in one entry.
const BATCH: usize = 128;
/// The most bytes in one entry. A single event may be larger.
const ENTRY_BYTES: usize = 64 << 10;
/// The approximate size of an event without its data, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 96;
/// How long an event waits for others to share its entry.
const BATCH_LINGER: Duration = Duration::from_millis(20);

/// An event to record.
#[derive(Debug)]
pub struct JobEvent {
    kind: &'static str,
    /// When it happened; none: when it is recorded.
    at: Option<Millis>,
    /// The job and the numbers of the event, as JSON. Each job has several events, so the JSON is built once, directly.
    data: String,
    /// Decides on the stream: events with the same number stay in order.
    order: u64,
}

impl JobEvent {
    /// Something happened that is no change of one job: its data as a JSON object.
    #[must_use]
    pub fn new(kind: &'static str, at: Millis, data: String) -> Self {
        Self { kind, at: Some(at), data, order: 0 }
    }

    /// A change of a job in that queue: its data as a JSON object. Without a time it happened when it is recorded.
    pub(crate) fn of_job(kind: &'static str, queue: &QueueName, at: Option<Millis>, data: String) -> Self {
        // Partitions of a hot queue are shared out evenly
        let order = mixed_fnv1a(queue.as_str()).wrapping_add(queue.partition_number().into());
        Self { kind, at, data, order }
    }
}

/// An event that waits to be written.
#[derive(Debug)]
struct RecordedEvent {
    kind: &'static str,
    at: Millis,
    data: String,
}

/// The type of the event of a job that ended in that state.
#[must_use]
pub fn terminal_kind(state: JobState) -> &'static str {
    match state {
        JobState::Completed => "job.completed",
        JobState::Cancelled => "job.cancelled",
        _ => "job.discarded",
    }
}

/// Whether an event of that type is the last of a job.
#[must_use]
pub fn is_terminal_kind(kind: &str) -> bool {
    [JobState::Completed, JobState::Cancelled, JobState::Discarded]
        .into_iter()
        .any(|state| terminal_kind(state) == kind)
}

/// Where events go. Clone it freely; recording never waits.
#[derive(Clone)]
pub struct EventLog {
    /// One for each stream.
    senders: Arc<[mpsc::Sender<RecordedEvent>]>,
    redis: Redis,
    /// What records events of jobs counts them, too.
    statistics: StatisticsRecorder,
    deliveries: DeliveryRecorder,
}

impl EventLog {
    /// Starts writing events and sending statistics until `stop` is cancelled and the last ones are written.
    #[must_use]
    pub fn start(redis: &Redis, settings: &Settings, stop: CancellationToken) -> (Self, tokio::task::JoinHandle<()>) {
        let count = stream_count(redis);
        let buffer = if count == 1 { BUFFER } else { STREAM_BUFFER };
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel(buffer)).unzip();
        let statistics = StatisticsRecorder::default();
        let flushing = statistics.clone().flush_until(redis.clone(), settings.statistics.flush_interval, stop.clone());
        let events_max = settings.jobs.events_max;
        let writer = |(stream, receiver)| write(redis.clone(), stream, events_max, receiver, stop.clone());
        let writing = join_all(receivers.into_iter().enumerate().map(writer));
        let deliveries = DeliveryRecorder::new(settings.subscriptions.attempts_max);
        let logging = deliveries.clone().write_until(redis.clone(), stop);
        let task = tokio::spawn(async {
            tokio::join!(writing, flushing, logging);
        });
        (Self { senders: senders.into(), redis: redis.clone(), statistics, deliveries }, task)
    }

    /// The attempts to deliver of this process.
    #[must_use]
    pub fn deliveries(&self) -> &DeliveryRecorder {
        &self.deliveries
    }

    /// What this process counts.
    #[must_use]
    pub fn statistics(&self) -> &StatisticsRecorder {
        &self.statistics
    }

    /// Records an event.
    pub fn record(&self, event: JobEvent) {
        let at = event.at.unwrap_or_else(|| self.redis.estimated_now());
        let stream = usize::try_from(event.order % self.senders.len() as u64).unwrap_or_default();
        let sender = &self.senders[stream];
        if sender.try_send(RecordedEvent { kind: event.kind, at, data: event.data }).is_err() {
            metrics::counter!("galley_events_dropped_total").increment(1);
        }
    }
}

/// Writes the events of one stream.
async fn write(
    mut redis: Redis,
    stream: usize,
    events_max: u64,
    mut receiver: mpsc::Receiver<RecordedEvent>,
    stop: CancellationToken,
) {
    let key = keys::events(stream);
    let mut batch = Vec::with_capacity(BATCH);
    let mut per_entry = 1;
    loop {
        tokio::select! {
            biased;
            read = receiver.recv_many(&mut batch, BATCH) => if read == 0 { return },
            () = stop.cancelled() => return,
        }
        if batch.len() < BATCH && !stop.is_cancelled() {
            // The batch is small: others may follow within milliseconds
            tokio::time::sleep(BATCH_LINGER).await;
            while batch.len() < BATCH
                && let Ok(event) = receiver.try_recv()
            {
                batch.push(event);
            }
        }
        let mut left = &batch[..];
        while !left.is_empty() {
            let (entry, others) = left.split_at(fitting_count(left));
            left = others;
            // Redis counts entries and the setting counts events: under load an entry holds a hundred times as many
            per_entry = (per_entry * 7 + entry.len() as u64).div_ceil(8);
            let entries_max = events_max.div_ceil(per_entry);
            let mut command = redis::cmd("XADD");
            command
                .arg(&*key)
                .arg("MAXLEN")
                .arg("~")
                .arg(entries_max)
                .arg("*")
                .arg("d")
                .arg(redis.sealer().seal_owned(&["events"], render_batch(entry)));
            if command.exec_async(&mut redis).await.is_err() {
                metrics::counter!("galley_events_dropped_total").increment(entry.len() as u64);
            }
        }
        batch.clear();
    }
}

/// How many of these events share the next entry: as many as fit, but at least one.
fn fitting_count(events: &[RecordedEvent]) -> usize {
    let mut bytes = 0;
    let fit = events.iter().take_while(|event| {
        bytes += event.data.len() + ENTRY_OVERHEAD_BYTES;
        bytes <= ENTRY_BYTES
    });
    fit.count().max(1)
}

/// A JSON array of events.
fn render_batch(batch: &[RecordedEvent]) -> String {
    let mut text = String::with_capacity(batch.iter().map(|event| event.data.len() + ENTRY_OVERHEAD_BYTES).sum());
    text.push('[');
    // Under load many events share a millisecond
    let mut shown = (Millis::MIN, String::new());
    for event in batch {
        if text.len() > 1 {
            text.push(',');
        }
        if shown.0 != event.at {
            shown = (event.at, time::format(event.at));
        }
        // Neither a type nor a time needs escaping
        for part in ["{\"type\":\"", event.kind, "\",\"time\":\"", &shown.1, "\",\"data\":", &event.data, "}"] {
            text.push_str(part);
        }
    }
    text.push(']');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_a_batch_are_one_json_array() {
        let event = |kind, at, data: &str| RecordedEvent { kind, at, data: data.to_owned() };
        let batch = [event("job.enqueued", 5, r#"{"a":"\n"}"#), event("job.completed", 5, "{}"), event("x", 7, "{}")];
        let read: serde_json::Value = serde_json::from_str(&render_batch(&batch)).expect("JSON");
        assert_eq!(read[0]["data"]["a"], "\n");
        assert_eq!(read[1]["time"], "1970-01-01T00:00:00.005Z");
        assert_eq!((&read[2]["type"], &read[2]["time"]), (&"x".into(), &"1970-01-01T00:00:00.007Z".into()));
        assert_eq!(render_batch(&[]), "[]");
    }

    #[test]
    fn an_entry_is_closed_when_it_is_large_and_has_one_event_at_least() {
        let event = |bytes: usize| RecordedEvent { kind: "x", at: 0, data: format!("\"{}\"", "x".repeat(bytes)) };
        assert_eq!(fitting_count(&[event(10), event(10)]), 2);
        assert_eq!(fitting_count(&[event(ENTRY_BYTES), event(10)]), 1);
        let many: Vec<RecordedEvent> = (0..100).map(|_| event(4000)).collect();
        let first = fitting_count(&many);
        assert!(first > 10 && render_batch(&many[..first]).len() <= ENTRY_BYTES);
    }

    #[test]
    fn a_job_is_over_after_the_events_of_terminal_states_only() {
        for state in JobState::ALL {
            assert!(!state.is_terminal() || is_terminal_kind(terminal_kind(state)));
        }
        assert!(!is_terminal_kind("job.failed") && !is_terminal_kind("job.enqueued"));
    }
}
