//! Bugs that can be planted into the model, to see that the check finds each.

/// One bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlantedBug {
    /// Calls that end attempts do not ask whether the attempt is the current one.
    NoFence,
    /// A reclaim hands the entry to another worker instead of making a new one.
    ReclaimKeepsEntry,
    /// A reclaim does not ask again whether the worker is still silent.
    ReclaimWithoutIdleCheck,
    /// A reclaim does not count the crash.
    CrashNotCounted,
    /// Completing takes two commands: the result, then the entry.
    SettleNotAtomic,
    /// A repeated completion does not recognize what the first one recorded.
    RepeatForgotten,
    /// A retry removes its entry and never gets due.
    RetryNotDue,
    /// A promoted job stays in the set of due jobs.
    PromoteKeepsDue,
    /// A cancel trusts where it saw the job.
    CancelUnchecked,
    /// The uniqueness is free as soon as the job is claimed.
    UniquenessFreedAtClaim,
    /// The uniqueness is free when an attempt failed.
    UniquenessFreedAtRetry,
    /// Nothing releases the uniqueness of a job that was discarded or cancelled.
    UniquenessNeverFreed,
    /// A create does not compare the holder of the uniqueness with the one that it read.
    CreateUnchecked,
    /// A create or redrive does not see that the holder of the uniqueness, which had ended, was redriven meanwhile.
    RedrivenHolderUnseen,
    /// A replaced job goes on running.
    ReplacedJobStays,
    /// The follow-up of a job releases its uniqueness although the job was redriven.
    RedrivenJobUnprotected,
    /// A completion does not see that its attempt was handed to the holder of a token.
    CompletionIgnoresToken,
    /// A renewal takes an entry back that is another's by now.
    RenewWithoutFence,
    /// The lease of a pulled attempt does not count: it is never reclaimed.
    PulledLeaseIgnored,
}

impl PlantedBug {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::NoFence,
        Self::ReclaimKeepsEntry,
        Self::ReclaimWithoutIdleCheck,
        Self::CrashNotCounted,
        Self::SettleNotAtomic,
        Self::RepeatForgotten,
        Self::RetryNotDue,
        Self::PromoteKeepsDue,
        Self::CancelUnchecked,
        Self::UniquenessFreedAtClaim,
        Self::UniquenessFreedAtRetry,
        Self::UniquenessNeverFreed,
        Self::CreateUnchecked,
        Self::RedrivenHolderUnseen,
        Self::ReplacedJobStays,
        Self::RedrivenJobUnprotected,
        Self::CompletionIgnoresToken,
        Self::RenewWithoutFence,
        Self::PulledLeaseIgnored,
    ];
}
