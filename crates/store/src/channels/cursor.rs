//! One reader's position in one channel: a number in the ring while it keeps up, else a position in the history, page
//! by page, until it has caught up. Readers never wait for each other.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Sleep;

use super::{
    encoded_message::EncodedMessage,
    hub::{ChannelHubInner, ReaderGuard},
    message_ring::RingRead,
    page_budget::{HeldPage, PageItem},
    shared_filter::SharedFilter,
    shared_pages::{SharedPage, SharedPageRead},
};
use common::name::ChannelName;
use model::message::{Position, continuity::Gap};

/// Delay before the history is read again if the reader cannot join the ring.
const HISTORY_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What a reader receives.
#[derive(Debug, Clone)]
pub enum ReaderEvent {
    /// A message.
    Message(Arc<EncodedMessage>),
    /// Messages are missing: trimmed or lost.
    Gap {
        /// The channel.
        channel: ChannelName,
        /// The range that is missing.
        gap: Gap,
    },
    /// Messages that the filter of the reader does not let pass.
    Skipped {
        /// The channel.
        channel: ChannelName,
        /// Everything up to here was read.
        position: Position,
        /// How many since the last event of the channel.
        count: u32,
    },
    /// A pattern matches more channels than one reader may have: this one is not read.
    ChannelSkipped(ChannelName),
    /// The process stops.
    Stopped,
}

pub(super) struct ChannelCursor {
    hub: Arc<ChannelHubInner>,
    guard: ReaderGuard,
    /// The reader's slot among the waiters of the ring.
    waiter_id: usize,
    /// Everything up to this position was delivered.
    after: Position,
    /// A gap that comes before the page. In a box, because it is rare and there may be many thousands of readers.
    gap: Option<Box<Gap>>,
    page: Option<Arc<HeldPage>>,
    source: CursorSource,
}

/// Where the next message comes from.
enum CursorSource {
    /// The ring, at this number.
    Ring(u64),
    /// The history.
    History,
    /// A page of the history, which all readers at this position read together.
    ReadingPage(SharedPageRead),
    /// The history, once the ring has changed or the delay is over.
    Waiting(u64, Pin<Box<Sleep>>),
}

impl ChannelCursor {
    /// Starts after a position.
    pub(super) fn new(inner: &Arc<ChannelHubInner>, guard: ReaderGuard, after: Position) -> Self {
        let mut ring = guard.0.ring();
        let waiter_id = ring.register_waiter();
        let source = ring.join_head(after).map_or(CursorSource::History, CursorSource::Ring);
        drop(ring);
        Self { hub: inner.clone(), guard, waiter_id, after, gap: None, page: None, source }
    }

    /// Whether it has a page of the history or reads one.
    pub(super) fn has_page(&self) -> bool {
        self.page.is_some() || matches!(self.source, CursorSource::ReadingPage(_))
    }

    /// Whether one of the filters lets a message pass.
    pub(super) fn passes(&self, filters: &[Arc<SharedFilter>], message: &EncodedMessage) -> bool {
        filters.iter().any(|filter| self.guard.0.verdicts.passes(filter, message))
    }

    /// The difference of a message that was just returned from the one at `base`, if it is shorter.
    pub(super) fn delta(
        &self,
        base: Position,
        message: &EncodedMessage,
        head: &'static str,
    ) -> Option<Arc<EncodedMessage>> {
        let in_ring = || {
            let number = if let CursorSource::Ring(number) = self.source { number } else { u64::MAX };
            self.guard.0.ring().find_before(number, base)
        };
        let in_page = || self.page.as_ref().and_then(|page| page.base(base));
        let find = || in_page().or_else(in_ring).or_else(|| self.guard.0.deltas.kept_base(base));
        self.guard.0.deltas.get(base, message, head, find)
    }

    /// Keeps a message of a page that was returned: the difference of the next one is from it.
    pub(super) fn keep_base(&self, message: &Arc<EncodedMessage>) {
        if let Some(page) = &self.page {
            page.keep_base(message);
        }
    }

    /// Discards messages that were read and not delivered: they are read again later.
    pub(super) fn discard_pending(&mut self) {
        if self.has_page() {
            self.page = None;
            self.source = CursorSource::History;
        }
    }

    /// The next event of the page that was read.
    fn next_read(&mut self) -> Option<ReaderEvent> {
        if let Some(gap) = self.gap.take() {
            return Some(ReaderEvent::Gap { channel: self.guard.0.name.clone(), gap: *gap });
        }
        match self.page.as_ref()?.next() {
            PageItem::Message(message) => {
                self.after = message.position.unwrap_or(self.after);
                return Some(ReaderEvent::Message(message));
            }
            PageItem::End => {
                if let Some(base) = self.page.take().and_then(|page| page.take_base()) {
                    self.guard.0.deltas.keep_base(&base);
                }
            }
            PageItem::Reclaimed => self.discard_pending(),
        }
        None
    }

    /// Polls for the next event. The last waker is woken when there may be one and when the hub stops, but not when
    /// that would need a page read and `may_read` is false.
    pub(super) fn poll_next(&mut self, may_read: bool, cx: &mut Context<'_>) -> Poll<ReaderEvent> {
        loop {
            if let Some(read) = self.next_read() {
                return Poll::Ready(read);
            }
            match &mut self.source {
                CursorSource::Ring(number) => {
                    let mut ring = self.guard.0.ring();
                    match ring.get(*number) {
                        RingRead::Message(item) => {
                            *number += 1;
                            match item.position {
                                Some(position) if position <= self.after => continue,
                                Some(position) => self.after = position,
                                None => {}
                            }
                            return Poll::Ready(ReaderEvent::Message(item));
                        }
                        RingRead::Empty => {
                            ring.set_waker(self.waiter_id, cx.waker());
                            return Poll::Pending;
                        }
                        RingRead::Evicted => {}
                    }
                    drop(ring);
                    self.source = CursorSource::History;
                }
                CursorSource::History if !may_read => return Poll::Pending,
                CursorSource::History => {
                    self.source = CursorSource::ReadingPage(self.guard.0.read_page(&self.hub, self.after));
                }
                CursorSource::ReadingPage(reading) => {
                    // The hub may have stopped meanwhile
                    self.guard.0.ring().set_waker(self.waiter_id, cx.waker());
                    let Poll::Ready(read) = Pin::new(reading).poll(cx) else { return Poll::Pending };
                    self.source = match read {
                        Some(page) => self.accept_page(&page),
                        // The process ends
                        None => wait_for_change(0),
                    };
                }
                CursorSource::Waiting(changes, until) => {
                    let mut ring = self.guard.0.ring();
                    ring.set_waker(self.waiter_id, cx.waker());
                    let is_changed = ring.change_count != *changes;
                    drop(ring);
                    if !is_changed && until.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.source = CursorSource::History;
                }
            }
        }
    }

    /// Takes over a page and returns where the next message comes from.
    fn accept_page(&mut self, read: &SharedPage) -> CursorSource {
        if read.messages.is_empty() {
            self.after = read.read_up_to;
        }
        self.gap = read.gap.map(Box::new);
        self.page = (!read.messages.is_empty()).then(|| self.hub.page_budget.hold(read.messages.iter().cloned()));
        if read.has_more {
            return CursorSource::History;
        }
        let (number, is_followed) = {
            let ring = self.guard.0.ring();
            (ring.join(read.read_up_to, read.generation), ring.is_initialized())
        };
        match number {
            Some(number) => return CursorSource::Ring(number),
            None if self.gap.is_some() || self.page.is_some() => return CursorSource::History,
            // The ring has advanced meanwhile, or follows a history that is gone
            None if is_followed => self.hub.catch_up(&self.guard.0),
            None => {}
        }
        wait_for_change(read.change_count)
    }
}

fn wait_for_change(changes: u64) -> CursorSource {
    CursorSource::Waiting(changes, Box::pin(tokio::time::sleep(HISTORY_RETRY_INTERVAL)))
}

impl Drop for ChannelCursor {
    fn drop(&mut self) {
        self.guard.0.ring().unregister_waiter(self.waiter_id);
    }
}
