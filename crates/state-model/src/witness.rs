//! Which rare things happened in a check, to show that it came upon them.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A rare thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// A call about an attempt that was over was refused.
    StaleCall,
    /// A repeated call recognized what the first one did.
    RepeatRecognized,
    /// A renewal learned that the lease was lost.
    LeaseLost,
    /// A worker recovered a claim whose answer was lost.
    ClaimRecovered,
    /// A reclaim found that the attempt had gone on or was over.
    ReclaimSawOld,
    /// A job ended because too many workers died with it.
    CrashBudgetSpent,
    /// Of a batch one result was recorded and another refused.
    BatchSplit,
    /// An attempt was handed to the holder of a token.
    HandedOver,
    /// A running job was cancelled.
    RunningJobCancelled,
    /// A cancel found the job elsewhere.
    CancelSawOld,
    /// A create found another holder of the uniqueness than it had read.
    UniquenessChanged,
    /// A job was replaced.
    Replaced,
    /// A job was redriven.
    Redriven,
}

/// All that happened.
#[derive(Debug, Default)]
pub(crate) struct Witnesses(AtomicU32);

impl Witnesses {
    pub(crate) fn note(&self, witness: Witness) {
        self.0.fetch_or(1 << witness as u32, Relaxed);
    }

    pub(crate) fn has(&self, witness: Witness) -> bool {
        self.0.load(Relaxed) & 1 << witness as u32 != 0
    }
}
