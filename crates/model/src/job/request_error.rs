//! Why a request is refused.

use super::retry::RetryPolicyError;
use common::name::NameError;

/// A refused request; nothing is stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A member is missing or wrong; the message names it and says what is allowed.
    #[error("{0}")]
    Invalid(String),
    /// The retry policy is wrong.
    #[error(transparent)]
    RetryPolicy(#[from] RetryPolicyError),
    /// A job of several is wrong.
    #[error("{path}: {error}")]
    Nested {
        /// Which one, as `steps[1]`.
        path: String,
        /// What is wrong with it.
        error: Box<RequestError>,
    },
}

impl From<NameError> for RequestError {
    fn from(error: NameError) -> Self {
        Self::Invalid(error.to_string())
    }
}

pub(super) fn invalid(message: impl Into<String>) -> RequestError {
    RequestError::Invalid(message.into())
}
