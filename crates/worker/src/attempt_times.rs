//! How long attempts took lately: whether it is worth claiming jobs before there are slots for them.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use common::time::Millis;

/// Mean duration up to which attempts are short.
const MAX_SHORT_MS: i64 = 5;
/// In a hundredth of a millisecond, so that the mean of short ones does not round to nothing.
const SCALE: i64 = 100;
const UNKNOWN: i64 = i64::MAX;

/// The mean of the last attempts, from their claim to their end.
pub(crate) struct AttemptTimes {
    mean: AtomicI64,
}

impl AttemptTimes {
    pub(crate) fn new() -> Self {
        Self { mean: AtomicI64::new(UNKNOWN) }
    }

    /// Adds the attempts of a batch.
    pub(crate) fn observe(&self, durations: impl ExactSizeIterator<Item = Millis>) {
        let Some(count) = i64::try_from(durations.len()).ok().filter(|count| *count > 0) else { return };
        let batch = durations.map(|millis| millis.clamp(0, i64::MAX / SCALE / count)).sum::<i64>() * SCALE / count;
        let before = self.mean.load(Relaxed);
        let mean = if before == UNKNOWN { batch } else { before - before / 4 + batch / 4 };
        self.mean.store(mean, Relaxed);
    }

    /// Starts again: jobs waited for slots that did not become free.
    pub(crate) fn forget(&self) {
        self.mean.store(UNKNOWN, Relaxed);
    }

    /// Whether they are short: false when nobody knows.
    pub(crate) fn are_short(&self) -> bool {
        self.mean.load(Relaxed) <= MAX_SHORT_MS * SCALE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_and_short_attempts_are_short() {
        let times = AttemptTimes::new();
        assert!(!times.are_short(), "nobody knows");
        times.observe([1, 2, 0].into_iter());
        assert!(times.are_short());
        times.observe([1_000].into_iter());
        assert!(!times.are_short(), "a long one counts at once");
        for _ in 0..30 {
            times.observe([1; 8].into_iter());
        }
        assert!(times.are_short(), "it is forgotten");
        times.forget();
        assert!(!times.are_short());
        times.observe([i64::MAX, i64::MIN].into_iter());
        assert!(!times.are_short());
    }
}
