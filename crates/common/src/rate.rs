//! Rates: a number of starts in a period of time.

/// A number of starts in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Starts allowed in each period.
    pub limit: u32,
    /// The period in milliseconds.
    pub period_ms: u64,
    /// Starts allowed at once after a pause, at most `limit`.
    pub burst: u32,
    /// Whether no period, wherever it begins, has more than `limit` starts.
    pub is_strict: bool,
}

impl Rate {
    /// Largest limit of a strict rate: each start of the last period is stored.
    pub const MAX_STRICT_LIMIT: u32 = 1000;

    /// A rate that allows all starts of a period at once.
    #[must_use]
    pub const fn new(limit: u32, period_ms: u64) -> Self {
        Self { limit, period_ms, burst: limit, is_strict: false }
    }
}
