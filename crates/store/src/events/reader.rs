//! Reads events for one client: what the hub broadcasts, and from the streams what that no longer has.

use std::{collections::VecDeque, sync::Arc};

use futures_util::future::join_all;
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    cursor::{EventCursor, StreamPosition, suffix},
    read::{EventBatch, EventPosition, EventRetention, ReadEvent},
};
use crate::{
    ReconnectDelays, Redis, StoreResult, log_interruption, next_reconnect_delay, reader_limiter::ReaderPermit,
    reconnect_delays,
};
use common::id::EntryId;

/// Entries that a slow reader reads in one call: that of its position and the next, which may hold more than a hundred
/// events. Many readers may be slow at a time, and each holds its page.
const READER_PAGE: usize = 2;
/// No entry.
pub(super) const NEVER: EntryId = EntryId { milliseconds: 0, sequence: 0 };

/// What the task that tails a stream says.
#[derive(Clone)]
pub(super) enum EventTail {
    /// The next entry.
    Batch(Arc<EventBatch>),
    /// Entries between these two were missed.
    Gap {
        /// The newest that was read.
        last: EntryId,
        /// The oldest that is kept.
        next: EntryId,
    },
}

/// What a reader returns.
#[derive(Debug)]
pub enum EventReaderItem {
    /// Events.
    Events(NewEvents),
    /// Events after this position are missing: they are no longer kept.
    Gap(EventPosition),
    /// The process stops.
    Stopped,
}

/// A batch, of which some events may be old.
#[derive(Debug)]
pub struct NewEvents {
    batch: Arc<EventBatch>,
    after: EventPosition,
    /// The rest of a cursor, on a cluster: where the reader is in the other streams.
    suffix: String,
}

impl NewEvents {
    /// The new events.
    pub fn iter(&self) -> impl Iterator<Item = &ReadEvent> {
        self.batch.events.iter().filter(|event| event.position > self.after)
    }

    /// After which a client continues that has seen this event: the text of an [`EventCursor`].
    #[must_use]
    pub fn cursor(&self, event: &ReadEvent) -> String {
        format!("{}{}", event.position, self.suffix)
    }
}

impl EventReaderItem {
    /// The new events, if there are any.
    pub fn events(&self) -> impl Iterator<Item = &ReadEvent> {
        let events = if let Self::Events(events) = self { Some(events) } else { None };
        events.into_iter().flat_map(NewEvents::iter)
    }
}

/// A reader of all events. Those of one stream come in their order.
pub struct EventReader {
    pub(super) redis: Redis,
    pub(super) stop: CancellationToken,
    pub(super) _permit: ReaderPermit,
    pub(super) tail: broadcast::Receiver<(usize, EventTail)>,
    /// The client named the event after which it continues.
    pub(super) is_resumed: bool,
    pub(super) streams: Vec<ReadStream>,
}

/// How far a reader is in one stream.
pub(super) struct ReadStream {
    /// The reader has returned every event up to here.
    after: EventPosition,
    /// `after` was in the stream at the last check.
    is_retained: bool,
    /// The broadcast buffer no longer has the next entry, so it must be read from the stream.
    is_behind: bool,
    gap: Option<EventPosition>,
    page: VecDeque<Arc<EventBatch>>,
    delays: ReconnectDelays,
    /// When the stream is read again that could not be read.
    retry_at: Option<Instant>,
    /// Turns true when the hub broadcasts what is written to the stream, if it did not when the reader began. Until then the
    /// reader has to look.
    tailed: Option<watch::Receiver<bool>>,
}

impl EventReader {
    /// After which event it begins, so that a client that reconnects before it has received one misses nothing. The
    /// start stands for a beginning that is no event: before it nothing can be missing.
    #[must_use]
    pub fn cursor(&self) -> EventCursor {
        let has_several = self.streams.len() > 1;
        let positions = self.streams.iter().map(|stream| match stream.position() {
            StreamPosition::Time(position) if !has_several && self.is_resumed => StreamPosition::of(position),
            StreamPosition::Time(_) if !has_several => StreamPosition::Start,
            position => position,
        });
        EventCursor::of_streams(&positions.collect::<Vec<_>>())
    }

    /// Waits for the next item. A call that is dropped loses nothing.
    pub async fn next(&mut self) -> EventReaderItem {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => EventReaderItem::Stopped,
            item = self.next_item() => item,
        }
    }

    async fn next_item(&mut self) -> EventReaderItem {
        loop {
            if let Some(gap) = self.streams.iter_mut().find_map(|stream| stream.gap.take()) {
                return EventReaderItem::Gap(gap);
            }
            let now = Instant::now();
            if self.streams.iter().any(|stream| stream.can_be_read(now)) {
                self.read_pages(now).await;
                continue;
            }
            // The oldest entry first, so that those of several streams come about in their order
            let entry_of = |stream: &ReadStream| stream.page.front().map(|batch| batch.entry);
            let oldest = (0..self.streams.len()).filter_map(|number| Some((entry_of(&self.streams[number])?, number)));
            if let Some(batch) = oldest.min().and_then(|(_, number)| self.streams[number].page.pop_front()) {
                return self.deliver(batch);
            }
            let retry_at = self.streams.iter().filter_map(|stream| stream.retry_at).min();
            let heard = tokio::select! {
                heard = self.tail.recv() => heard,
                () = sleep_until(retry_at.unwrap_or(now)), if retry_at.is_some() => continue,
            };
            match heard {
                Ok((number, said)) => {
                    let stream = &mut self.streams[number];
                    match said {
                        // What is behind reads it later
                        EventTail::Batch(batch) if batch.entry > stream.after.entry && !stream.is_behind => {
                            return self.deliver(batch);
                        }
                        EventTail::Batch(_) => {}
                        EventTail::Gap { last, next } => stream.record_gap(last, next),
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    self.streams.iter_mut().for_each(|stream| stream.is_behind = true);
                }
                Err(broadcast::error::RecvError::Closed) => return EventReaderItem::Stopped,
            }
        }
    }

    fn deliver(&mut self, batch: Arc<EventBatch>) -> EventReaderItem {
        let stream = &mut self.streams[batch.stream.unwrap_or(0)];
        let after = std::mem::replace(&mut stream.after, EventPosition::end_of(batch.entry));
        stream.is_retained = true;
        let of_others = |number| suffix(number, batch.entry, self.streams.iter().map(ReadStream::position));
        let suffix = batch.stream.map(of_others).unwrap_or_default();
        EventReaderItem::Events(NewEvents { batch, after, suffix })
    }

    /// Reads the next page of each stream that is behind.
    async fn read_pages(&mut self, now: Instant) {
        let redis = &self.redis;
        let reads = self.streams.iter_mut().enumerate().filter(|(_, stream)| stream.can_be_read(now));
        join_all(reads.map(|(number, stream)| async move {
            let is_tailed = stream.is_tailed();
            let read = redis.event_page(number, stream.after.entry, READER_PAGE).await;
            stream.take_page(read, is_tailed);
        }))
        .await;
    }
}

impl ReadStream {
    pub(super) fn new(last: EntryId, position: Option<StreamPosition>, retention: Option<EventRetention>) -> Self {
        let mut stream = Self {
            after: EventPosition::end_of(last),
            is_retained: last != NEVER,
            is_behind: false,
            gap: None,
            page: VecDeque::new(),
            delays: reconnect_delays(),
            retry_at: None,
            tailed: None,
        };
        match (position, retention) {
            (None, _) => {}
            (Some(StreamPosition::After(position)), Some(retention)) if !retention.is_retained => {
                // A position that never existed is valid between the oldest and the newest entry
                let is_between = retention
                    .retained_range
                    .is_some_and(|(first, last)| first < position.entry && position.entry < last);
                stream.rewind_to(if is_between { position } else { EventPosition::START });
                stream.gap = Some(position).filter(|_| !is_between);
            }
            (Some(position), retention) => {
                stream.rewind_to(position.position());
                stream.is_retained = retention.is_some();
            }
        }
        stream
    }

    /// Nothing is broadcast of the stream until that turns true.
    pub(super) fn read_until_tailed(self, tailed: watch::Receiver<bool>) -> Self {
        Self { tailed: Some(tailed), ..self }
    }

    /// Whether everything that is written from now on is broadcast.
    fn is_tailed(&self) -> bool {
        self.tailed.as_ref().is_none_or(|tailed| *tailed.borrow())
    }

    fn rewind_to(&mut self, position: EventPosition) {
        (self.after, self.is_retained, self.is_behind) = (position, false, true);
    }

    /// Where a client continues.
    fn position(&self) -> StreamPosition {
        match StreamPosition::of(self.after) {
            StreamPosition::After(position) if position.entry == NEVER => StreamPosition::Start,
            StreamPosition::After(position) if !self.is_retained => StreamPosition::Time(position),
            position => position,
        }
    }

    fn can_be_read(&self, now: Instant) -> bool {
        self.is_behind && self.page.is_empty() && self.retry_at.is_none_or(|at| at <= now)
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

    /// The next page, including the entry of the current position: if that is still kept, nothing after it is missing.
    /// `is_tailed` says whether what was written since the read is broadcast.
    fn take_page(&mut self, read: StoreResult<Vec<EventBatch>>, is_tailed: bool) {
        match read {
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
                if is_tailed {
                    self.tailed = None;
                }
                if is_tailed || self.is_behind {
                    (self.delays, self.retry_at) = (reconnect_delays(), None);
                } else {
                    self.is_behind = true;
                    self.retry_at = Some(Instant::now() + next_reconnect_delay(&mut self.delays));
                }
            }
            Err(error) => {
                log_interruption("reading events", &error);
                self.retry_at = Some(Instant::now() + next_reconnect_delay(&mut self.delays));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_that_nobody_follows_yet_is_read_until_somebody_does() {
        let follows = watch::Sender::new(false);
        let from = StreamPosition::Time(EventPosition::START);
        let mut stream = ReadStream::new(NEVER, Some(from), None).read_until_tailed(follows.subscribe());
        assert!(stream.can_be_read(Instant::now()) && !stream.is_tailed());
        stream.take_page(Ok(Vec::new()), false);
        let retry_at = stream.retry_at.expect("what is written next is not broadcast");
        assert!(!stream.can_be_read(Instant::now()) && stream.can_be_read(retry_at));
        // It began to be followed after the last look
        follows.send_replace(true);
        assert!(stream.is_tailed());
        stream.take_page(Ok(Vec::new()), true);
        assert!(!stream.is_behind && stream.tailed.is_none(), "everything else is broadcast");
    }
}
