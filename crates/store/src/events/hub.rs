//! Serves many readers of events over one connection: while anybody reads, a task tails the stream and broadcasts each
//! entry to all readers. On a cluster there are several streams, each with a connection and a task: while a node is away its
//! streams wait, and the events of the others arrive.
//!
//! The broadcast buffer is bounded. A reader that falls behind delays nobody: it reads from the stream, from its
//! position. Entries that the stream no longer keeps are a gap, which the reader gets as an item. Nothing is lost
//! silently.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use redis::Value;
use tokio::{
    sync::{broadcast, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    cursor::{EventCursor, StreamPosition},
    read::{EventBatch, EventPosition, EventRetention, read_tail, stream_count},
    reader::{EventReader, EventTail, NEVER, ReadStream},
};
use crate::{
    ReconnectDelays, Redis, StoreError, StoreResult, TooManyReaders, keys, local_now, log_interruption,
    next_reconnect_delay, reader_limiter::ReaderLimiter, reconnect_delays,
};
use common::{id::EntryId, time::Millis};

/// The longest blocking read. It ends without entries so that the task notices a connection that died silently.
const BLOCK: Duration = Duration::from_secs(5);
/// Entries that the task reads in one call.
const TAIL_PAGE: usize = 64;
/// Entries of each stream in the broadcast buffer, which all readers share.
const BUFFER: usize = 64;
/// How old events may be that a new reader gets of a node that was away when it began.
const MAX_REPEATED_MS: Millis = 60_000;

/// Tails the events for many readers. Clones share the tasks.
#[derive(Clone)]
pub struct EventHub(Arc<EventHubInner>);

struct EventHubInner {
    redis: Redis,
    limiter: ReaderLimiter,
    stop: CancellationToken,
    tail: broadcast::Sender<(usize, EventTail)>,
    streams: Vec<TailedStream>,
}

#[derive(Default)]
struct TailedStream {
    /// Readers get every entry written from now on. Turns false only while nobody reads.
    is_tailing: watch::Sender<bool>,
    /// The newest entry that was broadcast.
    last: Mutex<Option<EntryId>>,
}

/// Where a reader begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventStart {
    /// With the next event.
    Now,
    /// After the events that the client saw. If they are no longer kept the first item is a gap.
    After(EventCursor),
    /// With the events kept from that millisecond on.
    Since(u64),
}

impl EventHub {
    /// Starts a hub that serves readers until `stop` is cancelled.
    #[must_use]
    pub fn start(redis: &Redis, max_readers: usize, stop: CancellationToken) -> (Self, JoinHandle<()>) {
        let count = stream_count(redis);
        let inner = EventHubInner {
            redis: redis.clone(),
            limiter: ReaderLimiter::new(max_readers, "galley_event_streams"),
            stop,
            tail: broadcast::Sender::new(BUFFER * count),
            streams: (0..count).map(|_| TailedStream::default()).collect(),
        };
        let hub = Self(Arc::new(inner));
        let tailed = hub.clone();
        let task = tokio::spawn(async move {
            join_all((0..count).map(|stream| tailed.0.run(stream))).await;
        });
        (hub, task)
    }

    /// A new reader. It misses no event written after this returns. On a cluster it opens while a node is away of which nobody
    /// knows the newest event yet: those of that node come when it is back, from a minute before on.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn read(&self, start: EventStart) -> StoreResult<Result<EventReader, TooManyReaders>> {
        let permit = match self.0.limiter.try_acquire() {
            Ok(permit) => permit,
            Err(error) => return Ok(Err(error)),
        };
        let count = self.0.streams.len();
        let positions: Vec<Option<StreamPosition>> = (0..count)
            .map(|stream| match &start {
                EventStart::Now => None,
                EventStart::After(cursor) => Some(cursor.position_in(stream)),
                EventStart::Since(milliseconds) => {
                    let before = EntryId { milliseconds: milliseconds.saturating_sub(1), sequence: u64::MAX };
                    Some(StreamPosition::Time(EventPosition::end_of(before)))
                }
            })
            .collect();
        let retentions = self.retentions(&positions).await?;
        let tail = self.0.tail.subscribe();
        let is_served = async {
            tokio::select! {
                () = self.0.stop.cancelled() => {}
                () = self.0.wait_until_tailing() => {}
            }
        };
        let is_late = tokio::time::timeout(self.0.redis.response_timeout(), is_served).await.is_err();
        if is_late && !self.0.streams.iter().any(TailedStream::is_tailing) {
            let error = redis::RedisError::from((redis::ErrorKind::Io, "events cannot be followed yet"));
            return Err(StoreError::Unavailable(error));
        }
        let a_minute_ago = self.0.redis.time_at_nodes().unwrap_or_else(local_now).saturating_sub(MAX_REPEATED_MS);
        let streams = self.0.streams.iter().zip(positions.into_iter().zip(retentions));
        let streams = streams.map(|(stream, (position, retention))| {
            if stream.is_tailing() {
                return ReadStream::new(stream.last(), position, retention);
            }
            let from = position.unwrap_or_else(|| {
                let milliseconds = u64::try_from(a_minute_ago).unwrap_or_default();
                StreamPosition::Time(EventPosition::end_of(EntryId { milliseconds, sequence: u64::MAX }))
            });
            ReadStream::new(NEVER, Some(from), retention).read_until_tailed(stream.is_tailing.subscribe())
        });
        Ok(Ok(EventReader {
            redis: self.0.redis.clone(),
            stop: self.0.stop.clone(),
            _permit: permit,
            tail,
            is_resumed: matches!(start, EventStart::After(_)),
            streams: streams.collect(),
        }))
    }
}

impl EventHub {
    /// Whether the positions that name events are kept. What a node of several does not say now is checked with the first
    /// page that it hands out.
    async fn retentions(&self, positions: &[Option<StreamPosition>]) -> StoreResult<Vec<Option<EventRetention>>> {
        let answers = join_all(positions.iter().enumerate().map(|(stream, position)| async move {
            let Some(StreamPosition::After(position)) = position else { return None };
            Some(self.0.redis.event_retention(stream, position.entry).await)
        }))
        .await;
        if !answers.iter().flatten().any(Result::is_ok) && self.0.redis.ping().await.is_err() {
            // That may have been asked of the one node that is away
            self.0.redis.ask_each(|server| async move { server.ping().await }).await?;
        }
        let unknown = EventRetention { is_retained: true, retained_range: None };
        let answers = answers.into_iter().map(|answer| match answer.transpose() {
            Err(StoreError::Unavailable(_)) if positions.len() > 1 => Ok(Some(unknown)),
            answer => answer,
        });
        answers.collect()
    }
}

impl TailedStream {
    fn is_tailing(&self) -> bool {
        *self.is_tailing.borrow()
    }

    fn last(&self) -> EntryId {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(NEVER)
    }

    fn set_last(&self, entry: EntryId) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(entry);
    }
}

impl EventHubInner {
    async fn wait_until_tailing(&self) {
        for stream in &self.streams {
            // The result holds the lock of the value: drop it at once
            let _ = stream.is_tailing.subscribe().wait_for(|is_tailing| *is_tailing).await;
        }
    }

    async fn run(&self, stream: usize) {
        let mut delays = reconnect_delays();
        loop {
            self.stop_tailing(stream);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.limiter.wait_until_used() => {}
            }
            let result = tokio::select! {
                () = self.stop.cancelled() => return,
                result = self.tail_stream(stream, &mut delays) => result,
            };
            if let Err(error) = result {
                log_interruption("tailing events", &error);
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = tokio::time::sleep(next_reconnect_delay(&mut delays)) => {}
                }
            }
        }
    }

    /// Tails a stream over one connection. Ends when nobody reads any more.
    async fn tail_stream(&self, stream: usize, delays: &mut ReconnectDelays) -> StoreResult<()> {
        let mut connection = self.redis.open_dedicated(BLOCK).await?;
        let tailed = &self.streams[stream];
        if !tailed.is_tailing() {
            let retention = self.redis.event_retention(stream, NEVER).await?;
            tailed.set_last(retention.retained_range.map_or(NEVER, |(_, newest)| newest));
            tailed.is_tailing.send_replace(true);
        }
        loop {
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(TAIL_PAGE).arg("BLOCK").arg(BLOCK.as_millis().to_string());
            command.arg("STREAMS").arg(keys::events(stream)).arg(tailed.last().to_string());
            // Dropping the read loses nothing: it removes nothing from the stream
            let reply: Value = tokio::select! {
                reply = connection.query(&command) => reply?,
                () = self.limiter.wait_until_unused() => return Ok(()),
            };
            *delays = reconnect_delays();
            self.broadcast_batches(stream, read_tail(&self.redis, stream, reply)?).await?;
        }
    }

    /// After the last reader has gone the next one waits until the task tails again. A reader that came after a
    /// connection ended does not wait: the task continues from the last entry.
    fn stop_tailing(&self, stream: usize) {
        self.limiter.run_if_unused(|| {
            self.streams[stream].is_tailing.send_replace(false);
        });
    }

    async fn broadcast_batches(&self, stream: usize, batches: Vec<EventBatch>) -> StoreResult<()> {
        let tailed = &self.streams[stream];
        let last = tailed.last();
        // Checked after the read: if the last entry is kept now, the read missed nothing after it
        if last != NEVER {
            let retention = self.redis.event_retention(stream, last).await?;
            if !retention.is_retained
                && let Some((first, _)) = retention.retained_range
            {
                let _ = self.tail.send((stream, EventTail::Gap { last, next: first }));
                if batches.is_empty() {
                    // Another stream took its place, with a clock that is behind: all of its entries are new
                    tailed.set_last(NEVER);
                }
            }
        }
        for batch in batches {
            tailed.set_last(batch.entry);
            // An error means that nobody reads
            let _ = self.tail.send((stream, EventTail::Batch(Arc::new(batch))));
        }
        Ok(())
    }
}
