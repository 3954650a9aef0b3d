//! Where one reader is in one channel: at a number in the ring while it keeps up, else at a position in the history, page
//! by page, until it has caught up. It waits for nobody and nobody waits for it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    hub::{Hold, Inner, shown},
    ring::{Shown, Taken},
};
use crate::{
    message::{Position, continuity::Gap},
    name::ChannelName,
    redis::{Delays, next_delay, note_interruption, reconnect_delays},
};

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
    changed: watch::Receiver<()>,
    /// Everything up to here was told.
    after: Position,
    /// The next item of the ring; none while it reads the history.
    number: Option<u64>,
    pending: VecDeque<Told>,
    delays: Delays,
}

impl Cursor {
    /// Begins behind a position.
    pub(super) fn new(inner: &Arc<Inner>, hold: Hold, after: Position) -> Self {
        let changed = hold.0.changed.subscribe();
        let (pending, delays) = (VecDeque::new(), reconnect_delays());
        Self { inner: inner.clone(), hold, changed, after, number: None, pending, delays }
    }

    /// What comes next.
    pub(super) async fn next(&mut self) -> Told {
        loop {
            if let Some(told) = self.pending.pop_front() {
                if let Told::Message(message) = &told {
                    self.after = message.position.unwrap_or(self.after);
                }
                return told;
            }
            // What changes from here on is noticed
            self.changed.borrow_and_update();
            let Some(number) = self.number else {
                self.read_page().await;
                continue;
            };
            let taken = self.hold.0.ring().take(number);
            match taken {
                Taken::Item(item) => {
                    self.number = Some(number + 1);
                    match item.position {
                        Some(position) if position <= self.after => continue,
                        Some(position) => self.after = position,
                        None => {}
                    }
                    return Told::Message(item);
                }
                // It ends with the hub only, and that is found out elsewhere
                Taken::Nothing => drop(self.changed.changed().await),
                Taken::Gone => self.number = None,
            }
        }
    }

    async fn read_page(&mut self) {
        let era = self.hold.0.ring().era;
        let name = &self.hold.0.name;
        let page = {
            let _permit = self.inner.pages.acquire().await;
            self.inner.redis.channel_page_within(name, self.after, OWN_PAGE, OWN_PAGE_BYTES).await
        };
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                note_interruption("reading a channel", &error);
                tokio::time::sleep(next_delay(&mut self.delays)).await;
                return;
            }
        };
        self.delays = reconnect_delays();
        if let Some(gap) = page.gap(self.after) {
            self.pending.push_back(Told::Gap { channel: name.clone(), gap });
        }
        self.pending.extend(page.messages.iter().map(|message| Told::Message(shown(name, message))));
        if page.messages.is_empty() {
            self.after = page.after;
        }
        if page.is_more {
            return;
        }
        let (number, is_followed) = {
            let ring = self.hold.0.ring();
            (ring.join(page.after, era), ring.is_followed())
        };
        self.number = number;
        if number.is_none() && self.pending.is_empty() {
            if is_followed {
                // The ring has gone on meanwhile, or goes by a history that is gone
                self.inner.repair(&self.hold.0, None);
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, self.changed.changed()).await;
        }
    }
}
