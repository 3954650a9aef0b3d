//! Pages of a history that are being read. Readers at the same position share a read: when a long message leaves the ring
//! before thousands of readers have taken it, the history is read once for them, not once for each.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::{BoxFuture, Shared, WeakShared};

use super::encoded_message::EncodedMessage;
use model::message::{Position, continuity::Gap};

/// How many entries come between two removals of those that nobody waits for any more.
const PRUNE_INTERVAL: usize = 64;

/// A page that is being read; none if the process ends. It is not read on when nobody waits for it any more.
pub(super) type SharedPageRead = Shared<PageRead>;

type PageRead = BoxFuture<'static, Option<Arc<SharedPage>>>;

/// A page that was read, and the state of the ring before.
pub(super) struct SharedPage {
    pub(super) gap: Option<Gap>,
    pub(super) messages: Vec<Arc<EncodedMessage>>,
    pub(super) read_up_to: Position,
    pub(super) has_more: bool,
    pub(super) generation: u64,
    pub(super) change_count: u64,
}

/// The reads of one channel, by the position behind which they read.
#[derive(Default)]
pub(super) struct SharedPages {
    reads: Mutex<BTreeMap<Position, WeakShared<PageRead>>>,
}

impl SharedPages {
    /// The read of the page behind a position that is under way, or a new one.
    pub(super) fn read(&self, after: Position, start: impl FnOnce() -> SharedPageRead) -> SharedPageRead {
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        // What a page had when it was read says nothing of now
        let running = reads.get(&after).and_then(WeakShared::upgrade).filter(|read| read.peek().is_none());
        running.unwrap_or_else(|| {
            if reads.len() % PRUNE_INTERVAL == PRUNE_INTERVAL - 1 {
                reads.retain(|_, read| read.upgrade().is_some());
            }
            let read = start();
            if let Some(weak) = read.downgrade() {
                reads.insert(after, weak);
            }
            read
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn at(sequence: u64) -> Position {
        Position { epoch: 1, sequence }
    }

    fn page(read_up_to: Position) -> SharedPage {
        SharedPage { gap: None, messages: Vec::new(), read_up_to, has_more: false, generation: 0, change_count: 0 }
    }

    #[tokio::test]
    async fn readers_at_a_position_share_a_read_that_is_under_way_and_no_other() {
        let pages = SharedPages::default();
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let first = pages.read(at(1), || {
            async move {
                let _ = finished.await;
                Some(Arc::new(page(at(5))))
            }
            .boxed()
            .shared()
        });
        let second = pages.read(at(1), || unreachable!("one is under way"));
        let other = pages.read(at(2), || async { Some(Arc::new(page(at(6)))) }.boxed().shared());
        finish.send(()).expect("it waits");
        let (first, second) = (first.await.expect("a page"), second.await.expect("a page"));
        assert!(Arc::ptr_eq(&first, &second) && other.await.expect("a page").read_up_to == at(6));
        let again = pages.read(at(1), || async { Some(Arc::new(page(at(7)))) }.boxed().shared());
        assert_eq!(again.await.expect("a page").read_up_to, at(7), "that read is over");
    }
}
