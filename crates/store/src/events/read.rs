//! Reads events. Every event has a position in its stream: its entry and its index in the entry. Positions grow, so a
//! client can resume after the last position it saw, at any gateway.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    fmt,
    str::FromStr,
    sync::Arc,
};

use model::access::Access;
use redis::{FromRedisValue, Value};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{Redis, StoreResult, jobs::parse_streams_reply, keys, script, sealing::Sealer};
use common::{
    id::{EntryId, JobId},
    json::ObjectWriter,
    name::{NameError, QueueName},
};

/// The most entries searched for one list.
const MAX_SCANNED_ENTRIES: usize = 2_000;
/// Entries read in one call: each may hold a hundred events.
const SCAN_PAGE: usize = 100;

/// The position of an event: `<milliseconds>-<sequence>-<index>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventPosition {
    /// The entry of the stream.
    pub entry: EntryId,
    /// The index in the entry.
    pub index: usize,
}

impl EventPosition {
    /// Before every event.
    pub const START: Self = Self { entry: EntryId { milliseconds: 0, sequence: 0 }, index: 0 };

    /// After every event: the position of a stream that has ended.
    pub const END: Self = Self { entry: EntryId { milliseconds: u64::MAX, sequence: 0 }, index: 0 };

    /// After every event of an entry.
    #[must_use]
    pub fn end_of(entry: EntryId) -> Self {
        Self { entry, index: usize::MAX }
    }
}

impl fmt::Display for EventPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.entry, self.index)
    }
}

impl FromStr for EventPosition {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        // Digits only: what parses as a number may also begin with a plus sign
        let number = |part: &str| part.parse().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit()));
        let numbers: Option<Vec<u64>> = text.split('-').map(number).collect();
        match numbers.as_deref() {
            Some([milliseconds, sequence, index]) => {
                let entry = EntryId { milliseconds: *milliseconds, sequence: *sequence };
                Ok(Self { entry, index: usize::try_from(*index).unwrap_or(usize::MAX) })
            }
            _ => Err(NameError::new("position", "be the id of an event, such as 1764000000000-0-0", text)),
        }
    }
}

/// An event from the stream.
#[derive(Debug, Clone)]
pub struct ReadEvent {
    /// Its position in its stream. On one server that is its id.
    pub position: EventPosition,
    /// The number of its stream, on a cluster.
    pub stream: Option<usize>,
    /// `job.enqueued`, `job.started`, `job.completed`, `job.failed`, `job.discarded` or `job.cancelled`.
    pub kind: String,
    /// The job that it is about, if it is about one.
    pub job: Option<JobId>,
    /// The queue of that job.
    pub queue: String,
    /// The whole event as clients see it: JSON on one line.
    pub json: String,
}

impl ReadEvent {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> String {
        id_of(self.position, self.stream)
    }
}

fn id_of(position: EventPosition, stream: Option<usize>) -> String {
    stream.map_or_else(|| position.to_string(), |stream| format!("{position}-{stream}"))
}

/// The events in one entry of a stream.
#[derive(Debug)]
pub struct EventBatch {
    /// The entry.
    pub entry: EntryId,
    /// The number of its stream, on a cluster.
    pub stream: Option<usize>,
    /// Its events, oldest first.
    pub events: Vec<ReadEvent>,
}

/// Which events to read.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Only these types; empty for all.
    pub types: Vec<String>,
    /// Only these queues; empty for all.
    pub queues: Vec<QueueName>,
    /// Only this job.
    pub job: Option<JobId>,
    /// Only the queues that somebody has; none for all.
    pub access: Option<Arc<Access>>,
}

impl EventFilter {
    /// Whether an event is wanted.
    #[must_use]
    pub fn matches(&self, event: &ReadEvent) -> bool {
        let may_see = |access: &Access| event.queue.parse().is_ok_and(|queue| access.has_queue(&queue));
        self.job.is_none_or(|job| event.job == Some(job))
            && self.access.as_deref().is_none_or(may_see)
            && (self.types.is_empty() || self.types.contains(&event.kind))
            && (self.queues.is_empty() || self.queues.iter().any(|queue| queue.as_str() == event.queue))
    }
}

/// Which entries the stream keeps now, and whether a given entry is one of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct EventRetention {
    /// The entry is still kept.
    pub(super) is_retained: bool,
    /// The oldest and the newest entry that are kept.
    pub(super) retained_range: Option<(EntryId, EntryId)>,
}

impl Redis {
    /// The newest events that pass the filter, oldest first, and none older than `since`.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn events(&self, filter: &EventFilter, since: EntryId, limit: usize) -> StoreResult<Vec<ReadEvent>> {
        let mut connection = self.pooled_connection().await?;
        let mut scans: Vec<Scan> = (0..stream_count(self)).map(Scan::new).collect();
        let (mut scanned, mut found) = (0, Vec::new());
        while found.len() < limit {
            let empty: Vec<&mut Scan> = scans.iter_mut().filter(|scan| scan.needs_page()).collect();
            if !empty.is_empty() {
                if scanned >= MAX_SCANNED_ENTRIES {
                    break;
                }
                let count = SCAN_PAGE.div_ceil(empty.len());
                let mut pipeline = redis::pipe();
                for scan in &empty {
                    let command = pipeline.cmd("XREVRANGE").arg(keys::events(scan.stream)).arg(&scan.before);
                    command.arg(since.to_string()).arg("COUNT").arg(count);
                }
                let pages: Vec<Vec<(String, Value)>> = pipeline.query_async(&mut connection).await?;
                for (scan, page) in empty.into_iter().zip(pages) {
                    scanned += page.len();
                    scan.take(self, page);
                }
            }
            let newest = scans.iter_mut().max_by_key(|scan| scan.page.front().map(|batch| batch.entry));
            let Some(batch) = newest.and_then(|scan| scan.page.pop_front()) else { break };
            for event in batch.events.into_iter().rev().filter(|event| filter.matches(event)) {
                if found.len() < limit {
                    found.push(event);
                }
            }
        }
        found.reverse();
        Ok(found)
    }

    /// Entries from that one on, including it.
    pub(super) async fn event_page(&self, stream: usize, from: EntryId, most: usize) -> StoreResult<Vec<EventBatch>> {
        let mut command = redis::cmd("XRANGE");
        command.arg(keys::events(stream)).arg(from.to_string()).arg("+").arg("COUNT").arg(most);
        let entries: Vec<(String, Value)> = command.query_async(&mut self.pooled_connection().await?).await?;
        Ok(read_batches(self.sealer(), stream_of(self, stream), entries))
    }

    /// Whether an entry is kept, and which are.
    pub(super) async fn event_retention(&self, stream: usize, entry: EntryId) -> StoreResult<EventRetention> {
        let (is_kept, first, last): (bool, String, String) = script::EVENT_POSITION
            .key(keys::events(stream))
            .arg(entry.to_string())
            .invoke_async(&mut self.clone())
            .await?;
        Ok(EventRetention { is_retained: is_kept, retained_range: first.parse().ok().zip(last.parse().ok()) })
    }
}

/// Reads a stream backwards.
struct Scan {
    stream: usize,
    before: String,
    /// The newest first.
    page: VecDeque<EventBatch>,
    is_done: bool,
}

impl Scan {
    fn new(stream: usize) -> Self {
        Self { stream, before: "+".to_owned(), page: VecDeque::new(), is_done: false }
    }

    fn needs_page(&self) -> bool {
        self.page.is_empty() && !self.is_done
    }

    fn take(&mut self, redis: &Redis, page: Vec<(String, Value)>) {
        match page.last() {
            Some((last, _)) => self.before = format!("({last}"),
            None => self.is_done = true,
        }
        self.page = read_batches(redis.sealer(), stream_of(redis, self.stream), page).into();
    }
}

/// In how many streams the events are.
pub(crate) fn stream_count(redis: &Redis) -> usize {
    if redis.has_several_servers() { keys::EVENT_STREAMS } else { 1 }
}

/// The number of a stream as an event shows it.
pub(super) fn stream_of(redis: &Redis, stream: usize) -> Option<usize> {
    redis.has_several_servers().then_some(stream)
}

/// Parses entries of Redis. An entry that cannot be parsed was written by another program and has no events.
pub(super) fn read_batches(sealer: &Sealer, stream: Option<usize>, entries: Vec<(String, Value)>) -> Vec<EventBatch> {
    let read = entries.into_iter().filter_map(|(entry, fields)| {
        let entry: EntryId = entry.parse().ok()?;
        let mut fields = HashMap::<String, String>::from_redis_value(fields).unwrap_or_default();
        let text = fields.remove("d").and_then(|text| sealer.open(&["events"], text).ok());
        let texts: Vec<&RawValue> =
            text.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let events = texts.into_iter().enumerate();
        let events = events.filter_map(|(index, raw)| read_event(EventPosition { entry, index }, stream, raw));
        Some(EventBatch { entry, stream, events: events.collect() })
    });
    read.collect()
}

fn read_event(position: EventPosition, stream: Option<usize>, raw: &RawValue) -> Option<ReadEvent> {
    #[derive(Deserialize)]
    struct StoredEvent<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
        #[serde(borrow)]
        data: StoredEventData<'a>,
    }
    #[derive(Deserialize)]
    struct StoredEventData<'a> {
        #[serde(default, borrow)]
        job_id: Cow<'a, str>,
        #[serde(default, borrow)]
        queue: Cow<'a, str>,
    }
    let written: StoredEvent = serde_json::from_str(raw.get()).ok()?;
    if !written.kind.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    let mut json = ObjectWriter::with_capacity(raw.get().len() + 128);
    json.text("specversion", "1.0").text("id", &id_of(position, stream)).text("source", "ojs://galley");
    if !written.data.job_id.is_empty() {
        json.text("subject", &written.data.job_id);
    }
    json.splice(raw.get());
    let mut json = json.finish();
    if json.contains(['\n', '\r']) {
        // Galley writes no line breaks. JSON treats them as space, but in an event stream they end a line
        json = json.replace(['\n', '\r'], " ");
    }
    let job = written.data.job_id.parse().ok();
    let (kind, queue) = (written.kind.into_owned(), written.data.queue.into_owned());
    Some(ReadEvent { position, stream, kind, job, queue, json })
}

/// The answer of XREAD of one stream.
pub(super) fn read_tail(redis: &Redis, stream: usize, reply: Value) -> StoreResult<Vec<EventBatch>> {
    let entries = parse_streams_reply(reply)?.remove(&*keys::events(stream)).unwrap_or_default();
    Ok(read_batches(redis.sealer(), stream_of(redis, stream), entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_back_and_anything_else_is_refused() {
        let position: EventPosition = "1764000000000-3-17".parse().expect("a position");
        assert_eq!(position.to_string(), "1764000000000-3-17");
        assert!(EventPosition::START < position && position < EventPosition::end_of(position.entry));
        for bad in
            ["", "1", "1-2", "1-2-3-4", "a-1-1", "-1-1-1", "+1-1-1", "1-1-", "1 -1-1", "99999999999999999999-0-0"]
        {
            assert!(bad.parse::<EventPosition>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_somebody_else_wrote_into_the_stream_breaks_nothing() {
        let entry = |text: &str| {
            let fields = Value::Array(vec![Value::BulkString(b"d".to_vec()), Value::BulkString(text.into())]);
            ("5-0".to_owned(), fields)
        };
        for noise in ["", "no", "{}", "[1]", r#"[{"type":"a\nb","data":{}}]"#, r#"[{"type":5,"data":{}}]"#] {
            let batches = read_batches(&Sealer::default(), None, vec![entry(noise)]);
            assert!(batches.iter().all(|batch| batch.events.is_empty()), "{noise}");
        }
        let batches = read_batches(
            &Sealer::default(),
            Some(3),
            vec![entry("[{\"type\":\"a\",\n\"data\":{\"queue\":\"q\"}}, {\"type\":\"b\",\"data\":{}}]")],
        );
        let events = &batches[0].events;
        assert_eq!(
            events[0].json,
            r#"{"specversion":"1.0","id":"5-0-0-3","source":"ojs://galley","type":"a", "data":{"queue":"q"}}"#
        );
        assert_eq!((events[0].queue.as_str(), events[1].position.index), ("q", 1));
    }
}
