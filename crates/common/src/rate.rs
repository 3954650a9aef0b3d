//! Rates: a number of starts in a period of time.

/// A number of starts in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Starts allowed in each period.
    pub limit: u32,
    /// The period in milliseconds.
    pub period_ms: u64,
}
