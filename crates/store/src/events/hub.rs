//! Serves many readers of events over one connection: while anybody reads, a task tails the stream and broadcasts each
//! entry to all readers.
//!
//! The broadcast buffer is bounded. A reader that falls behind delays nobody: it reads from the stream, from its
//! position. Entries that the stream no longer keeps are a gap, which the reader gets as an item. Nothing is lost
//! silently.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use redis::Value;
use tokio::{
    sync::{broadcast, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::read::{EventBatch, EventPosition, ReadEvent, read_tail};
use crate::{
    ReconnectDelays, Redis, StoreError, StoreResult, TooManyReaders, keys, log_interruption, next_reconnect_delay,
    reader_limiter::{ReaderLimiter, ReaderPermit},
    reconnect_delays,
};
use common::id::EntryId;

/// The longest blocking read. It ends without entries so that the task notices a connection that died silently.
const BLOCK: Duration = Duration::from_secs(5);
/// Entries that the task reads in one call.
const TAIL_PAGE: usize = 64;
/// Entries that a slow reader reads in one call: that of its position and the next, which may hold more than a hundred
/// events. Many readers may be slow at a time, and each holds its page.
const READER_PAGE: usize = 2;
/// Entries in the broadcast buffer, which all readers share.
const BUFFER: usize = 64;

const NEVER: EntryId = EntryId { milliseconds: 0, sequence: 0 };

/// Tails the events for many readers. Clones share one task.
#[derive(Clone)]
pub struct EventHub(Arc<EventHubInner>);

struct EventHubInner {
    redis: Redis,
    limiter: ReaderLimiter,
    stop: CancellationToken,
    /// Readers get every entry written from now on. Turns false only while nobody reads.
    is_tailing: watch::Sender<bool>,
    tail: broadcast::Sender<EventTail>,
    /// The newest entry that was broadcast.
    last: Mutex<EntryId>,
}

#[derive(Clone)]
enum EventTail {
    Batch(Arc<EventBatch>),
    /// Entries between these two were missed.
    Gap {
        last: EntryId,
        next: EntryId,
    },
}

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventStart {
    /// With the next event.
    Now,
    /// After an event that the client saw. If it is no longer kept the first item is a gap.
    After(EventPosition),
    /// With the events kept from that millisecond on.
    Since(u64),
}

/// What a reader returns.
#[derive(Debug)]
pub enum EventReaderItem {
    /// A batch, and the position after which its events are new.
    Events(Arc<EventBatch>, EventPosition),
    /// Events after this position are missing: they are no longer kept.
    Gap(EventPosition),
    /// The process stops.
    Stopped,
}

impl EventReaderItem {
    /// The new events, if there are any.
    pub fn events(&self) -> impl Iterator<Item = &ReadEvent> {
        let (events, after): (&[ReadEvent], EventPosition) = match self {
            Self::Events(batch, after) => (&batch.events, *after),
            Self::Gap(after) => (&[], *after),
            Self::Stopped => (&[], EventPosition::START),
        };
        events.iter().filter(move |event| event.position > after)
    }
}

impl EventHub {
    /// Starts a hub that serves readers until `stop` is cancelled.
    #[must_use]
    pub fn start(redis: &Redis, max_readers: usize, stop: CancellationToken) -> (Self, JoinHandle<()>) {
        let inner = EventHubInner {
            redis: redis.clone(),
            limiter: ReaderLimiter::new(max_readers, "galley_event_streams"),
            stop,
            is_tailing: watch::Sender::default(),
            tail: broadcast::Sender::new(BUFFER),
            last: Mutex::new(NEVER),
        };
        let hub = Self(Arc::new(inner));
        (hub.clone(), tokio::spawn(async move { hub.0.run().await }))
    }

    /// A new reader. It misses no event written after this returns.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn read(&self, start: EventStart) -> StoreResult<Result<EventReader, TooManyReaders>> {
        let permit = match self.0.limiter.try_acquire() {
            Ok(permit) => permit,
            Err(error) => return Ok(Err(error)),
        };
        let retention = match start {
            EventStart::After(position) if position > EventPosition::START => {
                Some(self.0.redis.event_retention(position.entry).await?)
            }
            _ => {
                self.0.redis.ping().await?;
                None
            }
        };
        let tail = self.0.tail.subscribe();
        let is_served = async {
            tokio::select! {
                () = self.0.stop.cancelled() => {}
                () = self.0.wait_until_tailing() => {}
            }
        };
        if tokio::time::timeout(self.0.redis.response_timeout(), is_served).await.is_err() {
            let error = redis::RedisError::from((redis::ErrorKind::Io, "events cannot be followed yet"));
            return Err(StoreError::Unavailable(error));
        }
        let mut reader = EventReader {
            hub: self.0.clone(),
            _permit: permit,
            tail,
            after: EventPosition::end_of(self.0.last()),
            is_retained: self.0.last() != NEVER,
            is_resumed: matches!(start, EventStart::After(_)),
            is_behind: false,
            gap: None,
            page: VecDeque::new(),
            delays: reconnect_delays(),
        };
        match (start, retention) {
            (EventStart::Now, _) => {}
            (EventStart::Since(milliseconds), _) => {
                let before = EntryId { milliseconds: milliseconds.saturating_sub(1), sequence: u64::MAX };
                reader.rewind_to(EventPosition::end_of(before));
            }
            (EventStart::After(position), Some(retention)) if !retention.is_retained => {
                // A position that never existed is valid between the oldest and the newest entry
                let is_between = retention
                    .retained_range
                    .is_some_and(|(first, last)| first < position.entry && position.entry < last);
                reader.rewind_to(if is_between { position } else { EventPosition::START });
                reader.gap = Some(position).filter(|_| !is_between);
            }
            (EventStart::After(position), retention) => {
                reader.rewind_to(position);
                reader.is_retained = retention.is_some();
            }
        }
        Ok(Ok(reader))
    }
}

impl EventHubInner {
    fn last(&self) -> EntryId {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_last(&self, entry: EntryId) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = entry;
    }

    async fn wait_until_tailing(&self) {
        // The result holds the lock of the value: drop it at once
        let _ = self.is_tailing.subscribe().wait_for(|is_tailing| *is_tailing).await;
    }

    async fn run(&self) {
        let mut delays = reconnect_delays();
        loop {
            self.stop_tailing();
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.limiter.wait_until_used() => {}
            }
            let result = tokio::select! {
                () = self.stop.cancelled() => return,
                result = self.tail_stream(&mut delays) => result,
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

    /// Tails the stream over one connection. Ends when nobody reads any more.
    async fn tail_stream(&self, delays: &mut ReconnectDelays) -> StoreResult<()> {
        let mut connection = self.redis.open_dedicated(BLOCK).await?;
        if !*self.is_tailing.borrow() {
            let newest = self.redis.event_retention(NEVER).await?.retained_range.map_or(NEVER, |(_, newest)| newest);
            self.set_last(newest);
            self.is_tailing.send_replace(true);
        }
        loop {
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(TAIL_PAGE).arg("BLOCK").arg(BLOCK.as_millis().to_string());
            command.arg("STREAMS").arg(keys::EVENTS).arg(self.last().to_string());
            // Dropping the read loses nothing: it removes nothing from the stream
            let reply: Value = tokio::select! {
                reply = connection.query(&command) => reply?,
                () = self.limiter.wait_until_unused() => return Ok(()),
            };
            *delays = reconnect_delays();
            self.broadcast_batches(read_tail(self.redis.sealer(), reply)?).await?;
        }
    }

    /// After the last reader has gone the next one waits until the task tails again. A reader that came after a
    /// connection ended does not wait: the task continues from the last entry.
    fn stop_tailing(&self) {
        self.limiter.run_if_unused(|| {
            self.is_tailing.send_replace(false);
        });
    }

    async fn broadcast_batches(&self, batches: Vec<EventBatch>) -> StoreResult<()> {
        let last = self.last();
        // Checked after the read: if the last entry is kept now, the read missed nothing after it
        if last != NEVER {
            let retention = self.redis.event_retention(last).await?;
            if !retention.is_retained
                && let Some((first, _)) = retention.retained_range
            {
                let _ = self.tail.send(EventTail::Gap { last, next: first });
                if batches.is_empty() {
                    // Another stream took its place, with a clock that is behind: all of its entries are new
                    self.set_last(NEVER);
                }
            }
        }
        for batch in batches {
            self.set_last(batch.entry);
            // An error means that nobody reads
            let _ = self.tail.send(EventTail::Batch(Arc::new(batch)));
        }
        Ok(())
    }
}

/// A reader of all events.
pub struct EventReader {
    hub: Arc<EventHubInner>,
    _permit: ReaderPermit,
    tail: broadcast::Receiver<EventTail>,
    /// The reader has returned every event up to here.
    after: EventPosition,
    /// `after` was in the stream at the last check.
    is_retained: bool,
    /// The client named the event after which it continues.
    is_resumed: bool,
    /// The broadcast buffer no longer has the next entry, so it must be read from the stream.
    is_behind: bool,
    gap: Option<EventPosition>,
    page: VecDeque<Arc<EventBatch>>,
    delays: ReconnectDelays,
}

impl EventReader {
    /// After which event it begins, so that a client that reconnects before it has received one misses nothing. The
    /// start stands for a beginning that is no event: before it nothing can be missing.
    #[must_use]
    pub fn position(&self) -> EventPosition {
        if self.is_retained || self.is_resumed { self.after } else { EventPosition::START }
    }

    fn rewind_to(&mut self, position: EventPosition) {
        (self.after, self.is_retained, self.is_behind) = (position, false, true);
    }

    /// Waits for the next item. A call that is dropped loses nothing.
    pub async fn next(&mut self) -> EventReaderItem {
        let stop = self.hub.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => EventReaderItem::Stopped,
            item = self.next_item() => item,
        }
    }

    async fn next_item(&mut self) -> EventReaderItem {
        loop {
            if let Some(gap) = self.gap.take() {
                return EventReaderItem::Gap(gap);
            }
            if let Some(batch) = self.page.pop_front() {
                return self.deliver(batch);
            }
            if self.is_behind {
                self.read_page().await;
                continue;
            }
            match self.tail.recv().await {
                Ok(EventTail::Batch(batch)) if batch.entry > self.after.entry => return self.deliver(batch),
                Ok(EventTail::Batch(_)) => {}
                Ok(EventTail::Gap { last, next }) => self.record_gap(last, next),
                Err(broadcast::error::RecvError::Lagged(_)) => self.is_behind = true,
                Err(broadcast::error::RecvError::Closed) => return EventReaderItem::Stopped,
            }
        }
    }

    fn deliver(&mut self, batch: Arc<EventBatch>) -> EventReaderItem {
        let after = std::mem::replace(&mut self.after, EventPosition::end_of(batch.entry));
        self.is_retained = true;
        EventReaderItem::Events(batch, after)
    }

    fn record_gap(&mut self, last: EntryId, next: EntryId) {
        let starts_over = next <= last;
        // A reader that has read further from the stream found the gap there, and a reader at the start misses nothing
        if self.after > EventPosition::START && (starts_over || self.after.entry < next) {
            self.gap = Some(self.after);
            self.is_retained = false;
        }
        if starts_over {
            self.after = EventPosition::START;
        }
    }

    /// Reads the next page, including the entry of the current position: if that is still kept, nothing after it is
    /// missing.
    async fn read_page(&mut self) {
        match self.hub.redis.event_page(self.after.entry, READER_PAGE).await {
            Ok(page) => {
                let first = page.first().map(|batch| batch.entry);
                if self.is_retained && first != Some(self.after.entry) {
                    self.gap = Some(self.after);
                    self.is_retained = false;
                }
                let after = self.after;
                let is_new = |batch: &EventBatch| {
                    batch.entry > after.entry || batch.events.last().is_some_and(|event| event.position > after)
                };
                self.is_behind = page.last().is_some_and(|batch| batch.entry > after.entry);
                self.page = page.into_iter().filter(is_new).map(Arc::new).collect();
                self.delays = reconnect_delays();
            }
            Err(error) => {
                log_interruption("reading events", &error);
                tokio::time::sleep(next_reconnect_delay(&mut self.delays)).await;
            }
        }
    }
}
