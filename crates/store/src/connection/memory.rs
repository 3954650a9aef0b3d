//! How full Redis is. Each process reads it regularly and counts what it stores in between, so that results stop being
//! stored before the limit: they are written even when Redis is out of memory, because jobs must be able to end.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::sync::Notify;

/// Memory is read again after this share of the maximum was stored, in percent.
const REREAD_PERCENT: u64 = 1;
/// From this fill level on results are kept for an hour at most, in percent.
const SHORT_RESULTS_PERCENT: u64 = 60;
/// From this fill level on results are kept for a minute at most.
const BRIEF_RESULTS_PERCENT: u64 = 75;
/// From this fill level on no results are stored, and histories of channels are trimmed by force.
const PRESSURE_PERCENT: u64 = 85;

/// What is known of Redis's memory.
#[derive(Debug, Default)]
pub struct MemoryState {
    used: AtomicU64,
    /// 0 if there is no maximum.
    max: AtomicU64,
    /// Bytes stored by this process since the last reading.
    stored: AtomicU64,
    read_now: Notify,
    pressure: Notify,
}

/// What becomes of results at the current fill level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultRetention {
    /// They are stored as the settings say.
    Full,
    /// They are stored for this long at most.
    AtMost(Duration),
    /// They are not stored.
    None,
}

impl ResultRetention {
    /// The name in `/ojs/v1/health`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "stored",
            Self::AtMost(_) => "shortened",
            Self::None => "dropped",
        }
    }

    /// The TTL of a result, zero if it is not stored.
    #[must_use]
    pub fn limit(self, ttl: Duration) -> Duration {
        match self {
            Self::Full => ttl,
            Self::AtMost(max) => ttl.min(max),
            Self::None => Duration::ZERO,
        }
    }
}

impl MemoryState {
    /// Bytes used and the maximum, 0 if there is none or Redis does not say.
    #[must_use]
    pub fn used_and_max(&self) -> (u64, u64) {
        (self.used.load(Relaxed) + self.stored.load(Relaxed), self.max.load(Relaxed))
    }

    fn percent(&self) -> u64 {
        let (used, max) = self.used_and_max();
        used.saturating_mul(100).checked_div(max).unwrap_or(0)
    }

    /// What becomes of results now.
    #[must_use]
    pub fn result_retention(&self) -> ResultRetention {
        match self.percent() {
            PRESSURE_PERCENT.. => ResultRetention::None,
            BRIEF_RESULTS_PERCENT.. => ResultRetention::AtMost(Duration::from_mins(1)),
            SHORT_RESULTS_PERCENT.. => ResultRetention::AtMost(Duration::from_hours(1)),
            _ => ResultRetention::Full,
        }
    }

    /// Whether histories must be trimmed by force.
    #[must_use]
    pub fn is_under_pressure(&self) -> bool {
        self.percent() >= PRESSURE_PERCENT
    }

    /// Waits until memory is read and Redis is under pressure.
    pub async fn wait_for_pressure(&self) {
        self.pressure.notified().await;
    }

    /// Waits until much was stored since the last reading.
    pub(crate) async fn wait_for_much_stored(&self) {
        self.read_now.notified().await;
    }

    /// Counts bytes that this process stores.
    pub(crate) fn note_stored(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let stored = self.stored.fetch_add(bytes, Relaxed).saturating_add(bytes);
        let max = self.max.load(Relaxed);
        if max > 0 && stored > max / 100 * REREAD_PERCENT {
            self.read_now.notify_one();
        }
    }

    pub(crate) fn set(&self, used: u64, max: u64) {
        self.stored.store(0, Relaxed);
        self.used.store(used, Relaxed);
        self.max.store(max, Relaxed);
        if self.is_under_pressure() {
            self.pressure.notify_one();
        }
    }
}

/// The share of the server's memory that the backlog of a channel may take, as a divisor.
pub(crate) const BACKLOG_SHARE: u64 = 4;

/// The bytes that the backlog of a channel may take on a server with that maximum.
pub(crate) fn backlog_budget(configured: u64, max_memory: u64) -> u64 {
    if max_memory == 0 { configured } else { configured.min(max_memory / BACKLOG_SHARE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_kept_shorter_the_fuller_redis_is_and_own_writes_count_at_once() {
        let state = MemoryState::default();
        state.set(1 << 40, 0);
        assert_eq!(state.result_retention(), ResultRetention::Full, "there is no maximum");
        state.set(500, 1000);
        assert_eq!(state.result_retention(), ResultRetention::Full);
        state.note_stored(110);
        assert_eq!(state.result_retention(), ResultRetention::AtMost(Duration::from_hours(1)));
        state.note_stored(150);
        assert_eq!(state.result_retention().limit(Duration::from_hours(24)), Duration::from_mins(1));
        assert!(!state.is_under_pressure());
        state.note_stored(100);
        assert_eq!(state.result_retention().limit(Duration::from_hours(24)), Duration::ZERO);
        assert!(state.is_under_pressure());
        state.set(100, 1000);
        assert_eq!(state.result_retention(), ResultRetention::Full);
    }

    #[test]
    fn a_backlog_takes_a_quarter_of_the_memory_at_most() {
        assert_eq!(backlog_budget(1 << 30, 600 << 20), 150 << 20);
        assert_eq!(backlog_budget(1 << 20, 600 << 20), 1 << 20);
        assert_eq!(backlog_budget(1 << 30, 0), 1 << 30);
    }
}
