//! Readers that want the difference from the message before instead of each message.

use crate::error::ApiError;

/// The one format of differences.
const FORMAT: &str = "fossil";

/// Whether a client asks for differences.
pub(crate) fn parse_delta(given: Option<&str>) -> Result<bool, ApiError> {
    match given {
        None => Ok(false),
        Some(FORMAT) => Ok(true),
        Some(other) => {
            let got = common::name::quoted(other);
            Err(ApiError::invalid(format!("delta must be {FORMAT}, the one format of differences, got {got}")))
        }
    }
}
