//! What can go wrong.

use std::time::Duration;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The gateway refused the request. The codes are in the gateway's document of errors.
    #[error("{message} ({code}, {status})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The code, such as `duplicate`.
        code: String,
        /// What is wrong, for people.
        message: String,
    },
    /// The gateway could not be reached, or could not serve the request, until patience was over. The request may have had
    /// its effect.
    #[error("{message}")]
    Unavailable {
        /// What happened last.
        message: String,
        /// When to come back, if the gateway said so.
        retry_after: Option<Duration>,
    },
    /// A value is not JSON, or an answer is not what was expected.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The URL, the key or another argument cannot be used.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// The code of a refusal, such as `duplicate`.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    pub(crate) fn unavailable(cause: &dyn std::error::Error) -> Self {
        let mut message = format!("the gateway cannot be reached: {cause}");
        let mut source = cause.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self::Unavailable { message, retry_after: None }
    }
}
