//! Checks that the parts of a request share.

use serde_json::value::RawValue;

use crate::job::RequestError;
use common::name::quoted;

pub(super) fn invalid(message: impl Into<String>) -> RequestError {
    RequestError::Invalid(message.into())
}

pub(super) fn parse_text(raw: &RawValue, name: &str) -> Result<String, RequestError> {
    serde_json::from_str(raw.get()).map_err(|_| invalid(format!("{name} must be a string, got {}", quoted(raw.get()))))
}
