//! Many readers of the events, one connection: a task follows the end of the stream while anybody reads, and hands
//! each entry to all readers.
//!
//! What waits for readers is bounded: a reader that falls behind is not waited for but reads from the stream again,
//! from where it was. What it can no longer find there is a gap, and it is told so. Nothing is lost silently.

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

/// Longest blocking read. It ends by itself so that a connection that died silently is found out.
const BLOCK: Duration = Duration::from_secs(5);
/// Entries read in one go.
const TAIL_PAGE: usize = 64;
/// The same for a single reader that is behind: many may be so at the same time, and each keeps its own.
const READER_PAGE: usize = 8;
/// Entries kept for readers that have not taken them yet, all readers together.
const BUFFER: usize = 64;

const NEVER: EntryId = EntryId { milliseconds: 0, sequence: 0 };

/// Follows the events for many readers. Clone it freely.
#[derive(Clone)]
pub struct EventHub(Arc<EventHubInner>);

struct EventHubInner {
    redis: Redis,
    limiter: ReaderLimiter,
    stop: CancellationToken,
    /// Readers get every entry written from now on. Turns false only while nobody reads.
    is_tailing: watch::Sender<bool>,
    tail: broadcast::Sender<EventTail>,
    /// The newest entry that was handed to readers.
    last: Mutex<EntryId>,
}

#[derive(Clone)]
enum EventTail {
    Batch(Arc<EventBatch>),
    /// Something between these two entries was missed.
    Gap {
        last: EntryId,
        next: EntryId,
    },
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventStart {
    /// With what happens from now on.
    Now,
    /// After an event that was seen. If it is no longer kept the first thing told is a gap.
    After(EventPosition),
    /// With what is kept from that millisecond on.
    Since(u64),
}

/// What a reader is told.
#[derive(Debug)]
pub enum EventReaderItem {
    /// The next events.
    Events(Arc<EventBatch>, EventPosition),
    /// Events after this position are missing: they were not kept for so long.
    Gap(EventPosition),
    /// The process stops.
    Stopped,
}

impl EventReaderItem {
    /// The events told, if it was events.
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

    /// A new reader. From the moment this returns nothing escapes it.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn read(&self, start: EventStart) -> StoreResult<Result<EventReader, TooManyReaders>> {
        let permit = match self.0.limiter.try_acquire() {
            Ok(permit) => permit,
            Err(error) => return Ok(Err(error)),
        };
        let place = match start {
            EventStart::After(position) if position > EventPosition::START => {
                Some(self.0.redis.event_retention(position.entry).await?)
            }
            _ => {
                self.0.redis.ping().await?;
                None
            }
        };
        let tail = self.0.tail.subscribe();
        let served = async {
            tokio::select! {
                () = self.0.stop.cancelled() => {}
                () = self.0.wait_until_tailing() => {}
            }
        };
        if tokio::time::timeout(self.0.redis.response_timeout(), served).await.is_err() {
            let error = redis::RedisError::from((redis::ErrorKind::Io, "events cannot be followed yet"));
            return Err(StoreError::Unavailable(error));
        }
        let mut reader = EventReader {
            hub: self.0.clone(),
            _permit: permit,
            tail,
            after: EventPosition::end_of(self.0.last()),
            is_retained: self.0.last() != NEVER,
            is_behind: false,
            gap: None,
            page: VecDeque::new(),
            delays: reconnect_delays(),
        };
        match (start, place) {
            (EventStart::Now, _) => {}
            (EventStart::Since(milliseconds), _) => {
                let before = EntryId { milliseconds: milliseconds.saturating_sub(1), sequence: u64::MAX };
                reader.rewind_to(EventPosition::end_of(before));
            }
            (EventStart::After(position), Some(place)) if !place.is_retained => {
                // One that was never there, but between those that are, is as good as any
                let is_between =
                    place.retained_range.is_some_and(|(first, last)| first < position.entry && position.entry < last);
                reader.rewind_to(if is_between { position } else { EventPosition::START });
                reader.gap = Some(position).filter(|_| !is_between);
            }
            (EventStart::After(position), place) => {
                reader.rewind_to(position);
                reader.is_retained = place.is_some();
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
                log_interruption("following events", &error);
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = tokio::time::sleep(next_reconnect_delay(&mut delays)) => {}
                }
            }
        }
    }

    /// One connection's life. Ends when nobody reads any more.
    async fn tail_stream(&self, delays: &mut ReconnectDelays) -> StoreResult<()> {
        let mut connection = self.redis.dedicated(BLOCK).await?;
        if !*self.is_tailing.borrow() {
            let newest = self.redis.event_retention(NEVER).await?.retained_range.map_or(NEVER, |(_, newest)| newest);
            self.set_last(newest);
            self.is_tailing.send_replace(true);
        }
        loop {
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(TAIL_PAGE).arg("BLOCK").arg(BLOCK.as_millis().to_string());
            command.arg("STREAMS").arg(keys::EVENTS).arg(self.last().to_string());
            // A read that is dropped loses nothing: it does not take anything out of the stream
            let reply: Value = tokio::select! {
                reply = connection.query(&command) => reply?,
                () = self.limiter.wait_until_unused() => return Ok(()),
            };
            *delays = reconnect_delays();
            self.broadcast_batches(read_tail(reply)?).await?;
        }
    }

    /// When the last reader has gone, the next one has to wait until it is served again. One that came just now, after
    /// a connection ended, goes on to be served.
    fn stop_tailing(&self) {
        self.limiter.run_if_unused(|| {
            self.is_tailing.send_replace(false);
        });
    }

    async fn broadcast_batches(&self, batches: Vec<EventBatch>) -> StoreResult<()> {
        let last = self.last();
        // Looked at after reading: if the last one is there now, nothing behind it was gone when we read
        if last != NEVER {
            let place = self.redis.event_retention(last).await?;
            if !place.is_retained
                && let Some((first, _)) = place.retained_range
            {
                let _ = self.tail.send(EventTail::Gap { last, next: first });
                if batches.is_empty() {
                    // Another stream is in its place, with a clock that is behind: everything in it is new
                    self.set_last(NEVER);
                }
            }
        }
        for batch in batches {
            self.set_last(batch.entry);
            // Fails only when nobody reads
            let _ = self.tail.send(EventTail::Batch(Arc::new(batch)));
        }
        Ok(())
    }
}

/// One reader.
pub struct EventReader {
    hub: Arc<EventHubInner>,
    _permit: ReaderPermit,
    tail: broadcast::Receiver<EventTail>,
    /// Everything up to here was told.
    after: EventPosition,
    /// `after` was in the stream when it was last looked at.
    is_retained: bool,
    /// Has to read from the stream what the hub does not keep for it.
    is_behind: bool,
    gap: Option<EventPosition>,
    page: VecDeque<Arc<EventBatch>>,
    delays: ReconnectDelays,
}

impl EventReader {
    fn rewind_to(&mut self, position: EventPosition) {
        (self.after, self.is_retained, self.is_behind) = (position, false, true);
    }

    /// What comes next. A call that is given up loses nothing.
    pub async fn next(&mut self) -> EventReaderItem {
        let stop = self.hub.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => EventReaderItem::Stopped,
            told = self.next_item() => told,
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
        // Who has read further by itself has noticed by itself, and who begins has nothing to miss
        if self.after > EventPosition::START && (starts_over || self.after.entry < next) {
            self.gap = Some(self.after);
            self.is_retained = false;
        }
        if starts_over {
            self.after = EventPosition::START;
        }
    }

    /// Reads on from where it is. The entry it is at comes along, and so shows that nothing behind it is gone.
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
