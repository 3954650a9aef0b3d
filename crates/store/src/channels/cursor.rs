//! One reader's position in one channel: a number in the ring while it keeps up, else a position in the history, page
//! by page, until it has caught up. Readers never wait for each other.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Sleep;
use tokio_util::task::AbortOnDropHandle;

use super::{
    encoded_message::EncodedMessage,
    hub::{ChannelHubInner, ChannelState, ReaderGuard},
    message_ring::RingRead,
    page_budget::{HeldPage, PageItem},
};
use crate::{log_interruption, next_reconnect_delay, reconnect_delays};
use common::name::ChannelName;
use model::message::{Position, StoredMessage, continuity::Gap};

/// Maximum number of messages in one page of a reader that is behind.
const CURSOR_PAGE_SIZE: usize = 32;
/// Maximum bytes of such a page; a single message may be larger.
const MAX_CURSOR_PAGE_BYTES: usize = 128 * 1024;
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
    /// A gap that comes before the page.
    gap: Option<Gap>,
    page: Option<Arc<HeldPage>>,
    source: CursorSource,
}

/// Where the next message comes from.
enum CursorSource {
    /// The ring, at this number.
    Ring(u64),
    /// The history.
    History,
    /// A page of the history, read by a separate task: a reader whose client accepts nothing is not polled, and would
    /// keep a read permit from others.
    ReadingPage(AbortOnDropHandle<CursorPageRead>),
    /// The history, once the ring has changed or the delay is over.
    Waiting(u64, Pin<Box<Sleep>>),
}

/// A page that was read, and the state of the ring before.
struct CursorPageRead {
    gap: Option<Gap>,
    /// Its messages, unless there are none.
    messages: Option<Arc<HeldPage>>,
    read_up_to: Position,
    has_more: bool,
    generation: u64,
    change_count: u64,
}

impl ChannelCursor {
    /// Starts after a position.
    pub(super) fn new(inner: &Arc<ChannelHubInner>, guard: ReaderGuard, after: Position) -> Self {
        let waiter_id = guard.0.ring().register_waiter();
        Self { hub: inner.clone(), guard, waiter_id, after, gap: None, page: None, source: CursorSource::History }
    }

    /// Whether it has a page of the history or reads one.
    pub(super) fn has_page(&self) -> bool {
        self.page.is_some() || matches!(self.source, CursorSource::ReadingPage(_))
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
            return Some(ReaderEvent::Gap { channel: self.guard.0.name.clone(), gap });
        }
        match self.page.as_ref()?.next() {
            PageItem::Message(message) => {
                self.after = message.position.unwrap_or(self.after);
                return Some(ReaderEvent::Message(message));
            }
            PageItem::End => self.page = None,
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
                    let read = read_page(self.hub.clone(), self.guard.0.clone(), self.after);
                    self.source = CursorSource::ReadingPage(AbortOnDropHandle::new(self.hub.runtime.spawn(read)));
                }
                CursorSource::ReadingPage(reading) => {
                    // The hub may have stopped meanwhile
                    self.guard.0.ring().set_waker(self.waiter_id, cx.waker());
                    let Poll::Ready(read) = Pin::new(reading).poll(cx) else { return Poll::Pending };
                    self.source = match read {
                        Ok(read) => self.accept_page(read),
                        // The read failed, or the process ends
                        Err(_) => wait_for_change(0),
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
    fn accept_page(&mut self, read: CursorPageRead) -> CursorSource {
        if read.messages.is_none() {
            self.after = read.read_up_to;
        }
        (self.gap, self.page) = (read.gap, read.messages);
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

async fn read_page(inner: Arc<ChannelHubInner>, followed: Arc<ChannelState>, after: Position) -> CursorPageRead {
    let mut delays = reconnect_delays();
    loop {
        let (generation, changes) = {
            let ring = followed.ring();
            (ring.generation, ring.change_count)
        };
        let lease = inner.page_budget.reserve(MAX_CURSOR_PAGE_BYTES).await;
        let page = {
            let _permit = inner.page_permits.acquire().await;
            inner
                .channels
                .read_channel_page_bounded(&followed.name, after, CURSOR_PAGE_SIZE, MAX_CURSOR_PAGE_BYTES)
                .await
        };
        match page {
            Ok(page) => {
                let encode = |message: &StoredMessage| {
                    let json = || message.to_json(&followed.name);
                    Arc::new(followed.shared_events.encode(&followed.name, message.position, &lease, json))
                };
                let encoded = page.messages.iter().map(encode).collect();
                let messages = (!page.messages.is_empty()).then(|| lease.hold(encoded));
                return CursorPageRead {
                    gap: page.gap(after),
                    messages,
                    read_up_to: page.read_up_to,
                    has_more: page.has_more,
                    generation,
                    change_count: changes,
                };
            }
            Err(error) => {
                drop(lease);
                log_interruption("reading a channel", &error);
                tokio::time::sleep(next_reconnect_delay(&mut delays)).await;
            }
        }
    }
}
