//! How many bytes of jobs one answer of Redis may have: fewer after an answer that did not come in time, more again with
//! each that does. Jobs of an answer that is too large for the connection would be claimed again and again.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::{StoreError, StoreResult};

/// The largest budget.
const MAX_BYTES: usize = 4 << 20;
/// By how much a budget grows.
const STEP_BYTES: usize = MAX_BYTES / 32;
/// Jobs in one read of a claim. A read of small jobs may find large ones, so this bounds by how much an answer is too
/// large.
const MAX_READ: usize = 16;

/// The budget of all claims of a process.
#[derive(Debug)]
pub(super) struct ClaimBudget(AtomicUsize);

impl Default for ClaimBudget {
    fn default() -> Self {
        Self(AtomicUsize::new(MAX_BYTES))
    }
}

impl ClaimBudget {
    /// The bytes after which an answer gets no more jobs. It always has one.
    pub(super) fn bytes(&self) -> usize {
        self.0.load(Relaxed)
    }

    /// Whether every answer came in time lately.
    pub(super) fn is_full(&self) -> bool {
        self.bytes() == MAX_BYTES
    }

    /// Jobs in one read: a single one while the connection is known to be slow.
    pub(super) fn max_read(&self) -> usize {
        if self.is_full() { MAX_READ } else { 1 }
    }

    /// Notes whether an answer came.
    pub(super) fn observe<T>(&self, answer: StoreResult<T>) -> StoreResult<T> {
        let change = |bytes: usize| match &answer {
            Ok(_) => Some((bytes + STEP_BYTES).min(MAX_BYTES)),
            Err(StoreError::Unavailable(_)) => Some((bytes / 2).max(1)),
            Err(_) => None,
        };
        let _ = self.0.fetch_update(Relaxed, Relaxed, change);
        answer
    }
}

#[cfg(test)]
mod tests {
    use redis::{ErrorKind, RedisError};

    use super::*;

    #[test]
    fn a_budget_shrinks_with_each_answer_that_does_not_come_and_grows_again() {
        let budget = ClaimBudget::default();
        assert_eq!((budget.bytes(), budget.max_read()), (MAX_BYTES, MAX_READ));
        let lost = || StoreError::Unavailable(RedisError::from((ErrorKind::Io, "timed out")));
        for _ in 0..30 {
            assert!(budget.observe::<()>(Err(lost())).is_err());
        }
        assert_eq!((budget.bytes(), budget.max_read()), (1, 1), "one job at a time");
        assert!(budget.observe::<()>(Err(StoreError::OutOfMemory)).is_err());
        assert_eq!(budget.bytes(), 1, "that is not about the size");
        for _ in 0..33 {
            assert!(budget.observe(Ok(())).is_ok());
        }
        assert_eq!((budget.bytes(), budget.max_read()), (MAX_BYTES, MAX_READ));
    }
}
