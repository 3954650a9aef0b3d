//! Rates: a number of starts in a period of time.

/// A number of starts in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many may start.
    pub limit: u32,
    /// In how many milliseconds.
    pub period_ms: u64,
}
