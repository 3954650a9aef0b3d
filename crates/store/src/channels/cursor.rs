//! Where one reader is in one channel: at a number in the ring while it keeps up, else at a position in the history, page
//! by page, until it has caught up. It waits for nobody and nobody waits for it.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Sleep;
use tokio_util::task::AbortOnDropHandle;

use super::{
    history::Page,
    hub::{Followed, Hold, Inner, shown},
    ring::{Shown, Taken},
};
use crate::{next_delay, note_interruption, reconnect_delays};
use common::name::ChannelName;
use model::message::{Position, continuity::Gap};

/// Messages that one reader who is behind holds at a time.
const OWN_PAGE: usize = 32;
/// Their bytes; one message may be longer.
const OWN_PAGE_BYTES: usize = 128 * 1024;
/// If the ring cannot be joined though the history is read: look again after that long.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a reader is told.
#[derive(Debug, Clone)]
pub enum Told {
    /// A message.
    Message(Arc<Shown>),
    /// Messages are missing: not kept any more, or lost.
    Gap {
        /// Where.
        channel: ChannelName,
        /// Which.
        gap: Gap,
    },
    /// A pattern fits one more channel than can be read at a time: it is not read.
    LeftOut(ChannelName),
    /// The process stops.
    Stopped,
}

pub(super) struct Cursor {
    inner: Arc<Inner>,
    hold: Hold,
    /// Where it waits for changes of the ring.
    place: usize,
    /// Everything up to here was told.
    after: Position,
    pending: VecDeque<Told>,
    source: Source,
}

/// Where the next message comes from.
enum Source {
    /// The ring, at this number.
    Ring(u64),
    /// The history.
    History,
    /// A page of it is read by a task of its own: a reader whose client takes nothing is not polled, and would keep its turn
    /// from others.
    Reading(AbortOnDropHandle<Read>),
    /// The history, when the ring has changed since, or after a while.
    Resting(u64, Pin<Box<Sleep>>),
}

/// What was read, and what the ring was like before.
struct Read {
    page: Page,
    era: u64,
    changes: u64,
}

impl Cursor {
    /// Begins behind a position.
    pub(super) fn new(inner: &Arc<Inner>, hold: Hold, after: Position) -> Self {
        let place = hold.0.ring().enter();
        Self { inner: inner.clone(), hold, place, after, pending: VecDeque::new(), source: Source::History }
    }

    /// Whether it has a page of the history, or is about to.
    pub(super) fn has_page(&self) -> bool {
        !self.pending.is_empty() || matches!(self.source, Source::Reading(_))
    }

    /// Keeps nothing ready of what was read and not told: it is read again when somebody asks.
    pub(super) fn rest(&mut self) {
        // Behind a gap without a message it has moved on: nobody would find that gap again
        let is_gap_alone = matches!(self.pending.make_contiguous(), [Told::Gap { .. }]);
        if self.has_page() && !is_gap_alone {
            self.pending = VecDeque::new();
            self.source = Source::History;
        }
    }

    /// What comes next. Whoever polled last is woken when there may be something, and when the hub stops; but not when it would
    /// have to read a page and may not.
    pub(super) fn poll_next(&mut self, may_read: bool, cx: &mut Context<'_>) -> Poll<Told> {
        loop {
            if let Some(told) = self.pending.pop_front() {
                if let Told::Message(message) = &told {
                    self.after = message.position.unwrap_or(self.after);
                }
                return Poll::Ready(told);
            }
            match &mut self.source {
                Source::Ring(number) => {
                    let mut ring = self.hold.0.ring();
                    match ring.take(*number) {
                        Taken::Item(item) => {
                            *number += 1;
                            match item.position {
                                Some(position) if position <= self.after => continue,
                                Some(position) => self.after = position,
                                None => {}
                            }
                            return Poll::Ready(Told::Message(item));
                        }
                        Taken::Nothing => {
                            ring.wait(self.place, cx.waker());
                            return Poll::Pending;
                        }
                        Taken::Gone => {}
                    }
                    drop(ring);
                    self.source = Source::History;
                }
                Source::History if !may_read => return Poll::Pending,
                Source::History => {
                    let read = read(self.inner.clone(), self.hold.0.clone(), self.after);
                    self.source = Source::Reading(AbortOnDropHandle::new(self.inner.runtime.spawn(read)));
                }
                Source::Reading(reading) => {
                    // The hub may stop meanwhile
                    self.hold.0.ring().wait(self.place, cx.waker());
                    let Poll::Ready(read) = Pin::new(reading).poll(cx) else { return Poll::Pending };
                    self.source = match read {
                        Ok(read) => self.go_on(read),
                        // It failed, or the process ends
                        Err(_) => rest(0),
                    };
                }
                Source::Resting(changes, until) => {
                    let mut ring = self.hold.0.ring();
                    ring.wait(self.place, cx.waker());
                    let is_changed = ring.changes != *changes;
                    drop(ring);
                    if !is_changed && until.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.source = Source::History;
                }
            }
        }
    }

    /// Takes a page in; where what is behind it comes from.
    fn go_on(&mut self, Read { page, era, changes }: Read) -> Source {
        let name = &self.hold.0.name;
        if let Some(gap) = page.gap(self.after) {
            self.pending.push_back(Told::Gap { channel: name.clone(), gap });
        }
        self.pending.extend(page.messages.iter().map(|message| Told::Message(shown(name, message))));
        if page.messages.is_empty() {
            self.after = page.after;
        }
        if page.is_more {
            return Source::History;
        }
        let (number, is_followed) = {
            let ring = self.hold.0.ring();
            (ring.join(page.after, era), ring.is_followed())
        };
        match number {
            Some(number) => return Source::Ring(number),
            None if !self.pending.is_empty() => return Source::History,
            // The ring has gone on meanwhile, or goes by a history that is gone
            None if is_followed => self.inner.repair(&self.hold.0, None),
            None => {}
        }
        rest(changes)
    }
}

fn rest(changes: u64) -> Source {
    Source::Resting(changes, Box::pin(tokio::time::sleep(LOOK_AGAIN)))
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.hold.0.ring().leave(self.place);
    }
}

async fn read(inner: Arc<Inner>, followed: Arc<Followed>, after: Position) -> Read {
    let mut delays = reconnect_delays();
    loop {
        let (era, changes) = {
            let ring = followed.ring();
            (ring.era, ring.changes)
        };
        let page = {
            let _permit = inner.pages.acquire().await;
            inner.redis.channel_page_within(&followed.name, after, OWN_PAGE, OWN_PAGE_BYTES).await
        };
        match page {
            Ok(page) => return Read { page, era, changes },
            Err(error) => {
                note_interruption("reading a channel", &error);
                tokio::time::sleep(next_delay(&mut delays)).await;
            }
        }
    }
}
