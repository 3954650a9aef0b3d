//! Reads events. Every event has a position: its entry in the stream and its index in the entry. Positions grow, so a
//! client can resume after the last position it saw, at any gateway.

use std::{borrow::Cow, collections::HashMap, fmt, str::FromStr, sync::Arc};

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
    /// Its position, which is also its id.
    pub position: EventPosition,
    /// `job.enqueued`, `job.started`, `job.completed`, `job.failed`, `job.discarded` or `job.cancelled`.
    pub kind: String,
    /// The job that it is about, if it is about one.
    pub job: Option<JobId>,
    /// The queue of that job.
    pub queue: String,
    /// The whole event as clients see it: JSON on one line.
    pub json: String,
}

/// The events in one entry of the stream.
#[derive(Debug)]
pub struct EventBatch {
    /// The entry.
    pub entry: EntryId,
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
        let (mut before, mut found) = (String::from("+"), Vec::new());
        for _ in 0..MAX_SCANNED_ENTRIES / SCAN_PAGE {
            let mut command = redis::cmd("XREVRANGE");
            command.arg(keys::EVENTS).arg(&before).arg(since.to_string()).arg("COUNT").arg(SCAN_PAGE);
            let entries: Vec<(String, Value)> = command.query_async(&mut connection).await?;
            let Some((last, _)) = entries.last() else { break };
            before = format!("({last}");
            for batch in read_batches(self.sealer(), entries) {
                for event in batch.events.into_iter().rev().filter(|event| filter.matches(event)) {
                    if found.len() < limit {
                        found.push(event);
                    }
                }
            }
            if found.len() == limit {
                break;
            }
        }
        found.reverse();
        Ok(found)
    }

    /// Entries from that one on, including it.
    pub(super) async fn event_page(&self, from: EntryId, most: usize) -> StoreResult<Vec<EventBatch>> {
        let mut command = redis::cmd("XRANGE");
        command.arg(keys::EVENTS).arg(from.to_string()).arg("+").arg("COUNT").arg(most);
        let entries: Vec<(String, Value)> = command.query_async(&mut self.pooled_connection().await?).await?;
        Ok(read_batches(self.sealer(), entries))
    }

    /// Whether an entry is kept, and which are.
    pub(super) async fn event_retention(&self, entry: EntryId) -> StoreResult<EventRetention> {
        let (is_kept, first, last): (bool, String, String) =
            script::EVENT_POSITION.key(keys::EVENTS).arg(entry.to_string()).invoke_async(&mut self.clone()).await?;
        Ok(EventRetention { is_retained: is_kept, retained_range: first.parse().ok().zip(last.parse().ok()) })
    }
}

/// Parses entries of Redis. An entry that cannot be parsed was written by another program and has no events.
pub(super) fn read_batches(sealer: &Sealer, entries: Vec<(String, Value)>) -> Vec<EventBatch> {
    let read = entries.into_iter().filter_map(|(entry, fields)| {
        let entry: EntryId = entry.parse().ok()?;
        let mut fields = HashMap::<String, String>::from_redis_value(fields).unwrap_or_default();
        let text = fields.remove("d").and_then(|text| sealer.open(&["events"], text).ok());
        let texts: Vec<&RawValue> =
            text.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let events = texts.into_iter().enumerate();
        Some(EventBatch { entry, events: events.filter_map(|(index, raw)| read_event(entry, index, raw)).collect() })
    });
    read.collect()
}

fn read_event(entry: EntryId, index: usize, raw: &RawValue) -> Option<ReadEvent> {
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
    let position = EventPosition { entry, index };
    let mut json = ObjectWriter::with_capacity(raw.get().len() + 128);
    json.text("specversion", "1.0").text("id", &position.to_string()).text("source", "ojs://galley");
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
    Some(ReadEvent { position, kind: written.kind.into_owned(), job, queue: written.data.queue.into_owned(), json })
}

/// The answer of XREAD.
pub(super) fn read_tail(sealer: &Sealer, reply: Value) -> StoreResult<Vec<EventBatch>> {
    Ok(read_batches(sealer, parse_streams_reply(reply)?.remove(keys::EVENTS).unwrap_or_default()))
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
            let batches = read_batches(&Sealer::default(), vec![entry(noise)]);
            assert!(batches.iter().all(|batch| batch.events.is_empty()), "{noise}");
        }
        let batches = read_batches(
            &Sealer::default(),
            vec![entry("[{\"type\":\"a\",\n\"data\":{\"queue\":\"q\"}}, {\"type\":\"b\",\"data\":{}}]")],
        );
        let events = &batches[0].events;
        assert_eq!(
            events[0].json,
            r#"{"specversion":"1.0","id":"5-0-0","source":"ojs://galley","type":"a", "data":{"queue":"q"}}"#
        );
        assert_eq!((events[0].queue.as_str(), events[1].position.index), ("q", 1));
    }
}
