//! How full Redis is. Each process reads it regularly and counts what it stores in between, so that results stop being
//! stored before the limit: they are written even when Redis is out of memory, because jobs must be able to end.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::sync::Notify;

use super::budgets::{BUDGETS, DataKind, MemoryUsage};
use crate::{StoreError, StoreResult};

/// Memory is read again after this share of the maximum was stored, in percent.
const REREAD_PERCENT: u64 = 1;
/// From this fill level on results are kept for an hour at most, in percent.
const SHORT_RESULTS_PERCENT: u64 = 60;
/// From this fill level on results are kept for a minute at most.
const BRIEF_RESULTS_PERCENT: u64 = 75;
/// From this fill level on no results are stored, and histories of channels are trimmed by force.
const PRESSURE_PERCENT: u64 = 85;

/// From this fill level on no new jobs are accepted: what ends the others needs some room.
const RESERVE_PERCENT: u64 = 95;
/// From this fill level on it is worth knowing what each kind of data uses.
const MEASURE_PERCENT: u64 = 10;
/// Shortest time that an answer to a request with an idempotency key is kept: clients repeat within seconds.
const MIN_IDEMPOTENCY_TTL: Duration = Duration::from_secs(20);

/// What is known of Redis's memory.
#[derive(Debug, Default)]
pub struct MemoryState {
    used: AtomicU64,
    /// 0 if there is no maximum.
    max: AtomicU64,
    /// Bytes stored by this process since the last reading.
    stored: AtomicU64,
    usage: MemoryUsage,
    read_now: Notify,
    pressure: Notify,
}

/// What becomes of results at the current fill level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ResultRetention {
    /// They are stored as the settings say.
    #[default]
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

    /// What becomes of results now: the fill level and their own budget decide.
    #[must_use]
    pub fn result_retention(&self) -> ResultRetention {
        match (self.percent(), self.used_percent(DataKind::Results)) {
            (PRESSURE_PERCENT.., _) | (_, 100..) => ResultRetention::None,
            (BRIEF_RESULTS_PERCENT.., _) | (_, 80..) => ResultRetention::AtMost(Duration::from_mins(1)),
            (SHORT_RESULTS_PERCENT.., _) | (_, 60..) => ResultRetention::AtMost(Duration::from_hours(1)),
            _ => ResultRetention::Full,
        }
    }

    /// How long the answer to a request with an idempotency key is kept.
    pub(crate) fn idempotency_ttl(&self, ttl: Duration) -> Duration {
        ttl.min(match (self.percent(), self.used_percent(DataKind::IdempotencyKeys)) {
            (PRESSURE_PERCENT.., _) | (_, 75..) => MIN_IDEMPOTENCY_TTL,
            (BRIEF_RESULTS_PERCENT.., _) | (_, 50..) => Duration::from_mins(10),
            _ => ttl,
        })
    }

    /// Whether Redis is so full that answers are kept small, and memory is read often.
    #[must_use]
    pub fn is_under_pressure(&self) -> bool {
        self.percent() >= PRESSURE_PERCENT
    }

    /// Whether histories must be trimmed by force.
    #[must_use]
    pub(crate) fn must_trim_histories(&self) -> bool {
        self.is_under_pressure() || self.used_percent(DataKind::Histories) > 100
    }

    /// Whether failures are stored with what machines need, without stack, output and details.
    #[must_use]
    pub(crate) fn shortens_failures(&self) -> bool {
        self.percent() >= BRIEF_RESULTS_PERCENT || self.used_percent(DataKind::JobRecords) >= 60
    }

    /// How much of its budget a kind uses, in percent; 0 when there is no maximum.
    pub(crate) fn used_percent(&self, kind: DataKind) -> u64 {
        let budget = kind.budget().bytes(self.max.load(Relaxed));
        self.usage.of(kind).saturating_mul(100).checked_div(budget).unwrap_or(0)
    }

    /// Whether new data of a kind may be stored that others can do without.
    ///
    /// # Errors
    /// Its share is used up, or Redis is so full that the rest is for what ends jobs.
    pub(crate) fn check_room(&self, kind: DataKind) -> StoreResult<()> {
        if self.percent() >= RESERVE_PERCENT {
            return Err(StoreError::OutOfMemory);
        }
        if self.used_percent(kind) >= 100 { Err(StoreError::NoRoom(kind)) } else { Ok(()) }
    }

    /// Whether another job may get a record that had none. Above the reserve none may.
    pub(crate) fn has_room_for_records(&self) -> bool {
        self.percent() < 100 && self.used_percent(DataKind::JobRecords) < 100
    }

    /// What each kind uses and its budget, in bytes, in the order of [`BUDGETS`]; nothing is measured while Redis is
    /// nearly empty.
    pub fn usage_of_kinds(&self) -> impl Iterator<Item = (&'static super::budgets::MemoryBudget, u64, u64)> {
        let max = self.max.load(Relaxed);
        BUDGETS.iter().map(move |budget| (budget, self.usage.of(budget.kind), budget.bytes(max)))
    }

    /// Whether Redis is full enough to measure what each kind uses.
    pub(crate) fn must_be_measured(&self) -> bool {
        self.percent() >= MEASURE_PERCENT
    }

    pub(crate) fn usage(&self) -> &MemoryUsage {
        &self.usage
    }

    /// Waits until memory is read and histories must be trimmed by force.
    pub(crate) async fn wait_for_pressure(&self) {
        self.pressure.notified().await;
    }

    /// Ends [`MemoryState::wait_for_pressure`] if histories must be trimmed by force.
    pub(crate) fn demand_trimming(&self) {
        if self.must_trim_histories() {
            self.pressure.notify_one();
        }
    }

    /// Waits until much was stored since the last reading.
    pub(crate) async fn wait_for_much_stored(&self) {
        self.read_now.notified().await;
    }

    /// Counts bytes of a kind that this process stores.
    pub(crate) fn note_stored(&self, kind: DataKind, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.usage.add(kind, bytes);
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
        state.note_stored(DataKind::WaitingJobs, 110);
        assert_eq!(state.result_retention(), ResultRetention::AtMost(Duration::from_hours(1)));
        state.note_stored(DataKind::WaitingJobs, 150);
        assert_eq!(state.result_retention().limit(Duration::from_hours(24)), Duration::from_mins(1));
        assert!(!state.is_under_pressure());
        state.note_stored(DataKind::WaitingJobs, 100);
        assert_eq!(state.result_retention().limit(Duration::from_hours(24)), Duration::ZERO);
        assert!(state.is_under_pressure());
        state.set(100, 1000);
        assert_eq!(state.result_retention(), ResultRetention::Full);
    }

    #[test]
    fn a_kind_that_has_used_up_its_share_gets_no_more_and_the_others_do() {
        let state = MemoryState::default();
        assert!(state.check_room(DataKind::WaitingJobs).is_ok(), "there is no maximum");
        state.set(100, 1000);
        state.note_stored(DataKind::WaitingJobs, 450);
        assert!(matches!(state.check_room(DataKind::WaitingJobs), Err(StoreError::NoRoom(DataKind::WaitingJobs))));
        assert!(state.check_room(DataKind::Workflows).is_ok());
        state.note_stored(DataKind::IdempotencyKeys, 80);
        let ttl = Duration::from_hours(24);
        assert_eq!(state.idempotency_ttl(ttl), MIN_IDEMPOTENCY_TTL);
        state.note_stored(DataKind::Results, 200);
        assert_eq!(state.result_retention().limit(ttl), Duration::from_mins(1).min(ttl));
        state.set(950, 1000);
        assert!(matches!(state.check_room(DataKind::Workflows), Err(StoreError::OutOfMemory)), "the rest is reserved");
    }

    #[test]
    fn a_backlog_takes_a_quarter_of_the_memory_at_most() {
        assert_eq!(backlog_budget(1 << 30, 600 << 20), 150 << 20);
        assert_eq!(backlog_budget(1 << 20, 600 << 20), 1 << 20);
        assert_eq!(backlog_budget(1 << 30, 0), 1 << 30);
    }
}
