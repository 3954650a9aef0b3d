//! What each kind of data may take of Redis's memory: one table, and what a process knows of their use.
//!
//! A kind that has used up its share cannot starve the others: new data of it is refused, kept shorter, or the oldest
//! goes. The shares are more than the whole together, because the kinds rarely grow at the same time; the fill levels of
//! [`super::memory`] apply when they do.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A kind of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataKind {
    /// Jobs that wait for a worker, and those that run.
    WaitingJobs,
    /// Jobs with a record: scheduled, pending, retryable, limited, or tried before.
    JobRecords,
    /// Dead letters.
    DeadLetters,
    /// Jobs that ended, with their results.
    Results,
    /// Events.
    Events,
    /// Requests with an `Idempotency-Key` and their answers.
    IdempotencyKeys,
    /// Histories of channels, with the backlog of subscriptions.
    Histories,
    /// Workflows with the results of their jobs.
    Workflows,
    /// Cron entries and subscriptions.
    Definitions,
}

/// What happens when a kind has used up its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenUsedUp {
    /// New data is refused with 503.
    Refuse,
    /// New data is kept for a shorter time, and in the end not at all.
    KeepShorter,
    /// The oldest data is dropped.
    DropOldest,
    /// Nothing: counts and sizes bound it.
    Nothing,
}

impl WhenUsedUp {
    /// The name in `/ojs/v1/health`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse_new",
            Self::KeepShorter => "keep_shorter",
            Self::DropOldest => "drop_oldest",
            Self::Nothing => "nothing",
        }
    }
}

/// The share of a kind.
#[derive(Debug, Clone, Copy)]
pub struct MemoryBudget {
    /// The kind.
    pub kind: DataKind,
    /// Its name in health, metrics and logs.
    pub name: &'static str,
    /// Its share of `maxmemory`, in percent.
    pub percent: u64,
    /// What happens when it is used up.
    pub when_used_up: WhenUsedUp,
}

impl MemoryBudget {
    const fn new(kind: DataKind, name: &'static str, percent: u64, when_used_up: WhenUsedUp) -> Self {
        Self { kind, name, percent, when_used_up }
    }

    /// The bytes of the share, 0 when Redis has no maximum.
    #[must_use]
    pub fn bytes(&self, max_memory: u64) -> u64 {
        max_memory / 100 * self.percent
    }
}

/// The budget of every kind, in the order of [`DataKind`].
pub const BUDGETS: [MemoryBudget; 9] = [
    MemoryBudget::new(DataKind::WaitingJobs, "waiting_jobs", 45, WhenUsedUp::Refuse),
    MemoryBudget::new(DataKind::JobRecords, "job_records", 25, WhenUsedUp::Refuse),
    MemoryBudget::new(DataKind::DeadLetters, "dead_letters", 10, WhenUsedUp::DropOldest),
    MemoryBudget::new(DataKind::Results, "results", 30, WhenUsedUp::KeepShorter),
    MemoryBudget::new(DataKind::Events, "events", 5, WhenUsedUp::DropOldest),
    MemoryBudget::new(DataKind::IdempotencyKeys, "idempotency_keys", 10, WhenUsedUp::KeepShorter),
    MemoryBudget::new(DataKind::Histories, "histories", 40, WhenUsedUp::DropOldest),
    MemoryBudget::new(DataKind::Workflows, "workflows", 20, WhenUsedUp::Refuse),
    MemoryBudget::new(DataKind::Definitions, "definitions", 5, WhenUsedUp::Nothing),
];

impl DataKind {
    /// Its budget.
    #[must_use]
    pub fn budget(self) -> &'static MemoryBudget {
        &BUDGETS[self as usize]
    }
}

/// What a process knows of the memory that one kind uses.
#[derive(Debug, Default)]
struct KindUsage {
    measured: AtomicU64,
    /// Bytes that this process stored since.
    added: AtomicU64,
}

/// What a process knows of the memory that each kind uses: what was measured last, and its own writes since.
#[derive(Debug, Default)]
pub(crate) struct MemoryUsage([KindUsage; BUDGETS.len()]);

impl MemoryUsage {
    /// Bytes that a kind uses.
    pub(crate) fn of(&self, kind: DataKind) -> u64 {
        let usage = &self.0[kind as usize];
        usage.measured.load(Relaxed).saturating_add(usage.added.load(Relaxed))
    }

    pub(crate) fn add(&self, kind: DataKind, bytes: u64) {
        self.0[kind as usize].added.fetch_add(bytes, Relaxed);
    }

    /// Bytes that this process added, to be subtracted when a measurement that begins now is done.
    pub(crate) fn added(&self) -> [u64; BUDGETS.len()] {
        std::array::from_fn(|index| self.0[index].added.load(Relaxed))
    }

    /// Stores a measurement, which includes what had been added before it began.
    pub(crate) fn set(&self, measured: &[u64; BUDGETS.len()], added_before: &[u64; BUDGETS.len()]) {
        for ((usage, measured), before) in self.0.iter().zip(measured).zip(added_before) {
            usage.measured.store(*measured, Relaxed);
            usage.added.fetch_sub(*before, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_row_and_own_writes_count_until_they_are_measured() {
        for (index, budget) in BUDGETS.iter().enumerate() {
            assert_eq!(budget.kind as usize, index, "{}", budget.name);
            assert_eq!(budget.kind.budget().name, budget.name);
        }
        let usage = MemoryUsage::default();
        usage.add(DataKind::Events, 70);
        let before = usage.added();
        usage.add(DataKind::Events, 5);
        let mut measured = [0; BUDGETS.len()];
        measured[DataKind::Events as usize] = 60;
        usage.set(&measured, &before);
        assert_eq!((usage.of(DataKind::Events), usage.of(DataKind::Results)), (65, 0));
        assert_eq!(DataKind::Events.budget().bytes(1000), 50);
    }
}
