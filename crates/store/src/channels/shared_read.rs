//! Many callers that want the same read at the same moment share one. A caller gets data that was read after its call: a read
//! that is under way may have missed what happened since, so callers that come meanwhile share the next one. That one begins
//! when the read before it ends, and no sooner than the pace of reads allows: a few at once, then fifty a second, however many
//! callers there are.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use redis::{ErrorKind, RedisError};
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::task::AbortOnDropHandle;

use crate::{StoreError, StoreResult, connection::hint_pace::LookPace};

/// How many reads may follow each other at once, after a quiet time.
const BURST: u32 = 64;
/// The mean time from one to the next.
const INTERVAL: Duration = Duration::from_millis(20);

/// What a read will have found.
pub(super) type SharedReadResult<T> = Shared<BoxFuture<'static, StoreResult<T>>>;

/// The reads of one thing. Clones share them.
#[derive(Clone)]
pub(super) struct SharedRead<T: Clone>(Arc<SharedReadInner<T>>);

struct SharedReadInner<T: Clone> {
    /// The read that has not begun.
    next: Mutex<Option<SharedReadResult<T>>>,
    /// One reads at a time.
    turn: Semaphore,
    pace: Mutex<LookPace>,
}

impl<T: Clone> Default for SharedRead<T> {
    fn default() -> Self {
        Self(Arc::new(SharedReadInner {
            next: Mutex::default(),
            turn: Semaphore::new(1),
            pace: Mutex::new(LookPace::new(BURST, INTERVAL)),
        }))
    }
}

impl<T: Clone> SharedReadInner<T> {
    fn next(&self) -> MutexGuard<'_, Option<SharedReadResult<T>>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone + Send + Sync + 'static> SharedRead<T> {
    /// What is read from now on, by `read` unless another caller's has not begun yet. A task of its own reads: a caller that
    /// is not polled holds up nobody. It ends when nobody waits for it any more.
    pub(super) fn read<F>(&self, runtime: &Handle, read: impl FnOnce() -> F + Send + 'static) -> SharedReadResult<T>
    where
        F: Future<Output = StoreResult<T>> + Send + 'static,
    {
        let mut next = self.0.next();
        if let Some(next) = &*next {
            return next.clone();
        }
        let inner = self.0.clone();
        let reading = AbortOnDropHandle::new(runtime.spawn(async move {
            let _turn = inner.turn.acquire().await;
            let begin = inner.pace.lock().unwrap_or_else(PoisonError::into_inner).plan();
            tokio::time::sleep_until(begin).await;
            // A caller that comes from now on needs a later one
            let begun = inner.next().take();
            drop(begun);
            read().await
        }));
        let ended = |_| Err(StoreError::Unavailable(RedisError::from((ErrorKind::Io, "the process ends"))));
        let result = reading.map(move |read| read.unwrap_or_else(ended)).boxed().shared();
        *next = Some(result.clone());
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use tokio::sync::watch;

    use super::*;

    /// Counts its reads, each of which waits for a permission.
    #[derive(Clone)]
    struct Source {
        begun: Arc<AtomicU64>,
        may_end: watch::Sender<u64>,
    }

    impl Source {
        fn new() -> Self {
            Self { begun: Arc::default(), may_end: watch::Sender::default() }
        }

        fn read(&self, shared: &SharedRead<u64>) -> SharedReadResult<u64> {
            let source = self.clone();
            shared.read(&Handle::current(), move || async move {
                let number = source.begun.fetch_add(1, SeqCst) + 1;
                let mut may_end = source.may_end.subscribe();
                may_end.wait_for(|allowed| *allowed >= number).await.expect("the test goes on");
                Ok(number)
            })
        }

        async fn wait_until_begun(&self, number: u64) {
            while self.begun.load(SeqCst) < number {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn who_asks_while_one_reads_gets_the_next_read_with_all_others() {
        let (shared, source) = (SharedRead::default(), Source::new());
        let first = source.read(&shared);
        source.wait_until_begun(1).await;
        let others: Vec<_> = (0..1000).map(|_| source.read(&shared)).collect();
        source.may_end.send_replace(1);
        assert_eq!(first.await.expect("a read"), 1);
        source.may_end.send_replace(2);
        for other in others {
            assert_eq!(other.await.expect("a read"), 2);
        }
        source.may_end.send_replace(3);
        assert_eq!(source.read(&shared).await.expect("a read"), 3, "nothing is kept");
    }

    #[tokio::test(start_paused = true)]
    async fn reads_that_follow_each_other_have_a_pace() {
        let (shared, source, begin) = (SharedRead::default(), Source::new(), tokio::time::Instant::now());
        source.may_end.send_replace(u64::MAX);
        let mut last = 0;
        while begin.elapsed() < Duration::from_secs(10) {
            last = source.read(&shared).await.expect("a read");
            if last <= u64::from(BURST) {
                assert!(begin.elapsed() < INTERVAL, "a few are made at once");
            }
        }
        assert!(last.abs_diff(500 + u64::from(BURST)) < 3, "{last}");
    }

    #[tokio::test]
    async fn a_read_that_nobody_waits_for_holds_up_nobody() {
        let (shared, source) = (SharedRead::default(), Source::new());
        let given_up = source.read(&shared);
        source.wait_until_begun(1).await;
        let next = source.read(&shared);
        drop(given_up);
        source.may_end.send_replace(2);
        assert_eq!(next.await.expect("a read"), 2);
        // Also one that has not begun
        drop(source.read(&shared));
        source.may_end.send_replace(9);
        assert!(source.read(&shared).await.expect("a read") > 2);
    }
}
