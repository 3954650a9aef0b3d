//! Conversions of numbers for reports.

/// A count as a floating-point number.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
pub(crate) fn count_as_f64(count: u64) -> f64 {
    count as f64
}
