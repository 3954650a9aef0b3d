//! Events of messages that readers read out of a history. Readers of the same message share one copy, and it counts against
//! the memory for pages until the last of them has sent it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use bytes::Bytes;
use common::name::ChannelName;
use model::message::Position;

use super::{encoded_message::EncodedMessage, page_budget::PageLease};

/// How many entries come between two removals of those whose message nobody has any more.
const PRUNE_INTERVAL: usize = 64;

/// The events of one channel that readers have.
#[derive(Default)]
pub(super) struct SharedEvents {
    events: Mutex<BTreeMap<Position, Weak<LeasedEvent>>>,
}

/// An encoded message and its memory.
struct LeasedEvent {
    message: EncodedMessage,
    _lease: PageLease,
}

/// What keeps an event.
struct EventOwner(Arc<LeasedEvent>);

impl AsRef<[u8]> for EventOwner {
    fn as_ref(&self) -> &[u8] {
        self.0.message.event_bytes()
    }
}

impl SharedEvents {
    /// The message at a position: the copy that another reader has, or a new one of `json`.
    pub(super) fn encode(
        &self,
        channel: &ChannelName,
        position: Position,
        lease: &PageLease,
        json: impl FnOnce() -> String,
    ) -> EncodedMessage {
        let known = self.lock().get(&position).and_then(Weak::upgrade);
        let leased = known.unwrap_or_else(|| {
            let message = EncodedMessage::new(channel.clone(), Some(position), &json());
            let lease = lease.lease_part(message.size());
            let leased = Arc::new(LeasedEvent { message, _lease: lease });
            let mut events = self.lock();
            if events.len() % PRUNE_INTERVAL == PRUNE_INTERVAL - 1 {
                events.retain(|_, event| event.strong_count() > 0);
            }
            events.insert(position, Arc::downgrade(&leased));
            leased
        });
        let event = Bytes::from_owner(EventOwner(leased.clone()));
        leased.message.with_event(event)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Position, Weak<LeasedEvent>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::time::Instant;

    use super::*;
    use crate::channels::page_budget::{HeldPage, PageBudget, PageItem, RECLAIM_AFTER};

    fn messages(lease: &PageLease, count: usize) -> VecDeque<Arc<EncodedMessage>> {
        let shared = SharedEvents::default();
        let name = "a".parse().expect("a name");
        let at = |number| Position { epoch: 1, sequence: number };
        (0..count as u64).map(|number| Arc::new(shared.encode(&name, at(number), lease, || "{}".to_owned()))).collect()
    }

    /// A page of one message, and that message.
    async fn page_of_one(budget: &Arc<PageBudget>) -> (Arc<HeldPage>, Arc<EncodedMessage>) {
        let lease = budget.reserve(100).await;
        let held = messages(&lease, 1);
        drop(lease);
        let page = budget.hold(held.into_iter());
        let PageItem::Message(message) = page.next() else { panic!("it has a message") };
        (page, message)
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_waits_for_memory_and_takes_it_from_a_reader_that_delivers_nothing() {
        let budget = Arc::new(PageBudget::new(1000));
        let lease = budget.reserve(100).await;
        let held = messages(&lease, 100);
        drop(lease);
        let stalled = budget.hold(held.into_iter());
        assert!(budget.used_bytes() > 1000, "what it really uses: {}", budget.used_bytes());
        drop(stalled.next());
        let before = Instant::now();
        let lease = budget.reserve(5000).await;
        assert!(before.elapsed() >= RECLAIM_AFTER, "a reader that delivers keeps its page");
        assert!(matches!(stalled.next(), PageItem::Reclaimed));
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.reserve(100).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "nothing is reclaimed from a read");
        drop(lease);
        drop(waiting.await.expect("it got the memory"));
        drop(stalled);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_being_sent_uses_its_memory_until_it_is_sent() {
        let budget = Arc::new(PageBudget::new(1));
        let (page, message) = page_of_one(&budget).await;
        drop(page);
        let event = message.event_without_id();
        drop(message);
        let mut waiting = std::pin::pin!(budget.reserve(100));
        assert!(tokio::time::timeout(2 * RECLAIM_AFTER, &mut waiting).await.is_err());
        drop(event);
        drop(waiting.await);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_stalled_reader_keeps_for_the_next_difference_is_taken_from_it_too() {
        let budget = Arc::new(PageBudget::new(1));
        let (page, message) = page_of_one(&budget).await;
        page.keep_base(&message);
        let (kept, other) = (Position { epoch: 1, sequence: 0 }, Position { epoch: 1, sequence: 1 });
        drop(message);
        assert!(page.base(kept).is_some() && page.base(other).is_none());
        drop(budget.reserve(100).await);
        assert!(page.base(kept).is_none() && matches!(page.next(), PageItem::Reclaimed));
        assert_eq!(budget.used_bytes(), 0);
    }

    #[tokio::test]
    async fn readers_of_a_message_share_one_copy_as_long_as_one_has_it() {
        let (budget, shared) = (Arc::new(PageBudget::new(1)), SharedEvents::default());
        let lease = budget.reserve(0).await;
        let name: ChannelName = "a".parse().expect("a name");
        let encode = |json: &str| shared.encode(&name, Position { epoch: 1, sequence: 7 }, &lease, || json.to_owned());
        let first = encode("1");
        let used = budget.used_bytes();
        let second = encode("not asked for");
        assert_eq!((first.json(), second.json(), budget.used_bytes()), ("1", "1", used));
        let event = second.event_without_id();
        drop((first, second));
        assert_eq!(encode("not asked for").event_without_id(), event);
        assert_eq!(budget.used_bytes(), used);
        drop(event);
        let again = encode("2");
        assert_eq!(again.json(), "2");
        drop(again);
        assert_eq!(budget.used_bytes(), 0);
    }
}
