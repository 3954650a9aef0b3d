//! How many readers a process may have at a time: a maximum, a permit for each reader, and a gauge of the permits that
//! are held. Events and channels have a limiter each, because a setting limits each of them.

use std::sync::Arc;

use tokio::sync::watch;

/// Limits readers. Clones share the maximum and the count.
#[derive(Clone)]
pub(crate) struct ReaderLimiter(Arc<ReaderLimits>);

struct ReaderLimits {
    max_readers: usize,
    gauge: &'static str,
    count: watch::Sender<usize>,
}

/// A reader's permission to read. Dropping it makes room for another reader.
pub(crate) struct ReaderPermit(ReaderLimiter);

/// There are already as many readers as this process may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyReaders {
    /// The maximum, from the settings.
    pub max: usize,
}

impl ReaderLimiter {
    /// Admits at most `max_readers` at a time and shows their number in `gauge`.
    pub(crate) fn new(max_readers: usize, gauge: &'static str) -> Self {
        Self(Arc::new(ReaderLimits { max_readers, gauge, count: watch::Sender::default() }))
    }

    pub(crate) fn try_acquire(&self) -> Result<ReaderPermit, TooManyReaders> {
        let max = self.0.max_readers;
        let is_admitted = self.0.count.send_if_modified(|count| {
            let is_admitted = *count < max;
            *count += usize::from(is_admitted);
            self.set_gauge(*count);
            is_admitted
        });
        if is_admitted { Ok(ReaderPermit(self.clone())) } else { Err(TooManyReaders { max }) }
    }

    /// Waits until somebody reads.
    pub(crate) async fn wait_until_used(&self) {
        // The result holds the lock of the count: drop it at once
        let _ = self.0.count.subscribe().wait_for(|count| *count > 0).await;
    }

    /// Waits until nobody reads.
    pub(crate) async fn wait_until_unused(&self) {
        let _ = self.0.count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Runs `action` unless somebody reads. Nobody gets a permit before it has run, so keep it short.
    pub(crate) fn run_if_unused(&self, action: impl FnOnce()) {
        let count = self.0.count.borrow();
        if *count == 0 {
            action();
        }
    }

    fn set_gauge(&self, count: usize) {
        metrics::gauge!(self.0.gauge).set(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

impl Drop for ReaderPermit {
    fn drop(&mut self) {
        let limiter = &self.0;
        limiter.0.count.send_modify(|count| {
            *count -= 1;
            limiter.set_gauge(*count);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_permit_makes_room_when_it_is_dropped() {
        let limiter = ReaderLimiter::new(2, "test_readers");
        limiter.wait_until_unused().await;
        let permits = [limiter.try_acquire(), limiter.clone().try_acquire()];
        assert_eq!(limiter.try_acquire().err(), Some(TooManyReaders { max: 2 }));
        limiter.wait_until_used().await;
        limiter.run_if_unused(|| panic!("two readers read"));
        drop(permits);
        limiter.wait_until_unused().await;
        assert!(limiter.try_acquire().is_ok());
        let mut has_run = false;
        limiter.run_if_unused(|| has_run = true);
        assert!(has_run);
    }
}
