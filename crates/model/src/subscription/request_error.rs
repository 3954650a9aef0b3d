//! Why a request is refused, and the checks that its parts share.

/// Bounds of `max_in_flight` and of an endpoint's `concurrency`.
pub(super) const CONCURRENCY_RANGE: std::ops::RangeInclusive<u64> = 1..=1_000;

/// A refused request; nothing is stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscriptionRequestError {
    /// A member is missing or wrong; the text names it and says what is allowed.
    #[error("{0}")]
    Invalid(String),
    /// It would change what cannot be changed.
    #[error("{0} cannot be changed: delete the subscription and make another")]
    Immutable(&'static str),
}

pub(super) fn invalid(message: impl Into<String>) -> SubscriptionRequestError {
    SubscriptionRequestError::Invalid(message.into())
}

pub(super) fn check_range(
    name: &str,
    given: u64,
    allowed: &std::ops::RangeInclusive<u64>,
) -> Result<usize, SubscriptionRequestError> {
    let refused = || {
        let (least, most) = (allowed.start(), allowed.end());
        invalid(format!("{name} must be an integer from {least} to {most}, got {given}"))
    };
    if allowed.contains(&given) { usize::try_from(given).map_err(|_| refused()) } else { Err(refused()) }
}
