//! Memory for pages of the history that readers have read and not sent. All readers of the process share it.
//!
//! When none is left, a page is taken from the reader that has delivered nothing for the longest time: it reads the page
//! again later. So clients that take nothing cannot keep others from the history.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::encoded_message::EncodedMessage;
use model::message::Position;

/// How long a reader keeps a page that it does not deliver while others wait for memory.
pub(super) const RECLAIM_AFTER: Duration = Duration::from_secs(2);
/// How often a reader that waits for memory looks for such a page.
const RECLAIM_INTERVAL: Duration = Duration::from_millis(500);

pub(super) struct PageBudget {
    max_bytes: usize,
    used_bytes: AtomicUsize,
    freed: Notify,
    held: Mutex<Vec<Weak<HeldPage>>>,
}

/// Memory for a page that is being read.
pub(super) struct PageLease {
    budget: Arc<PageBudget>,
    bytes: usize,
}

/// The messages of a page that were not delivered yet. Each has its own memory, until the last reader has sent it.
pub(super) struct HeldPage {
    messages: Mutex<HeldMessages>,
}

struct HeldMessages {
    messages: VecDeque<Arc<EncodedMessage>>,
    /// The last one that the reader got, if it wants the difference of the next from it.
    base: Option<Arc<EncodedMessage>>,
    delivered_at: Instant,
    is_reclaimed: bool,
}

/// The next message of a page.
pub(super) enum PageItem {
    Message(Arc<EncodedMessage>),
    /// All were delivered.
    End,
    /// The memory was needed elsewhere: the rest must be read again.
    Reclaimed,
}

impl PageBudget {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, used_bytes: AtomicUsize::new(0), freed: Notify::new(), held: Mutex::default() }
    }

    #[cfg(test)]
    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes.load(SeqCst)
    }

    /// Waits for the memory of a page.
    pub(super) async fn reserve(self: &Arc<Self>, bytes: usize) -> PageLease {
        loop {
            let freed = self.freed.notified();
            // A page may be larger than what is left, so that the largest message can be read at all
            let reserve = |used: usize| (used < self.max_bytes).then_some(used + bytes);
            if self.used_bytes.fetch_update(SeqCst, SeqCst, reserve).is_ok() {
                return PageLease { budget: self.clone(), bytes };
            }
            if !self.reclaim() {
                // Whichever comes first
                let _ = tokio::time::timeout(RECLAIM_INTERVAL, freed).await;
            }
        }
    }

    /// Keeps messages for a reader. Each has memory of its own.
    pub(super) fn hold(&self, messages: impl Iterator<Item = Arc<EncodedMessage>>) -> Arc<HeldPage> {
        let messages = HeldMessages {
            messages: messages.collect(),
            base: None,
            delivered_at: Instant::now(),
            is_reclaimed: false,
        };
        let page = Arc::new(HeldPage { messages: Mutex::new(messages) });
        self.held().push(Arc::downgrade(&page));
        page
    }

    /// Takes a page from a reader that delivers nothing; false if all deliver.
    fn reclaim(&self) -> bool {
        let pages: Vec<Arc<HeldPage>> = {
            let mut held = self.held();
            held.retain(|page| page.strong_count() > 0);
            held.iter().filter_map(Weak::upgrade).collect()
        };
        let idle = pages.iter().filter_map(|page| Some((page.idle_since()?, page)));
        let Some((since, page)) = idle.min_by_key(|(since, _)| *since) else { return false };
        since.elapsed() >= RECLAIM_AFTER && page.reclaim()
    }

    fn held(&self) -> MutexGuard<'_, Vec<Weak<HeldPage>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free(&self, bytes: usize) {
        self.used_bytes.fetch_sub(bytes, SeqCst);
        self.freed.notify_one();
    }
}

impl PageLease {
    /// Memory for something of the page: its size is known now.
    pub(super) fn lease_part(&self, bytes: usize) -> Self {
        self.budget.used_bytes.fetch_add(bytes, SeqCst);
        Self { budget: self.budget.clone(), bytes }
    }
}

impl HeldMessages {
    fn has_some(&self) -> bool {
        !self.messages.is_empty() || self.base.is_some()
    }
}

impl Drop for PageLease {
    fn drop(&mut self) {
        self.budget.free(self.bytes);
    }
}

impl HeldPage {
    pub(super) fn next(&self) -> PageItem {
        let mut held = self.messages();
        if held.is_reclaimed {
            return PageItem::Reclaimed;
        }
        held.delivered_at = Instant::now();
        held.messages.pop_front().map_or(PageItem::End, PageItem::Message)
    }

    /// Keeps a message that was delivered, in place of the one before.
    pub(super) fn keep_base(&self, message: &Arc<EncodedMessage>) {
        let mut held = self.messages();
        if !held.is_reclaimed {
            held.base = Some(message.clone());
        }
    }

    /// The message that was kept, if it is the one at a position.
    pub(super) fn base(&self, position: Position) -> Option<Arc<EncodedMessage>> {
        self.messages().base.clone().filter(|base| base.position == Some(position))
    }

    /// The message that was kept.
    pub(super) fn take_base(&self) -> Option<Arc<EncodedMessage>> {
        self.messages().base.take()
    }

    /// When a message was delivered last, unless nothing is left.
    fn idle_since(&self) -> Option<Instant> {
        let held = self.messages();
        held.has_some().then_some(held.delivered_at)
    }

    fn reclaim(&self) -> bool {
        let mut held = self.messages();
        if !held.has_some() {
            return false;
        }
        held.messages = VecDeque::new();
        held.base = None;
        held.is_reclaimed = true;
        true
    }

    fn messages(&self) -> MutexGuard<'_, HeldMessages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
