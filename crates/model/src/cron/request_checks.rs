//! Checks that the parts of a request share.

use serde_json::value::RawValue;

use crate::job::RequestError;
use common::name::quoted;

pub(super) fn require_object(raw: &RawValue, name: &str) -> Result<(), RequestError> {
    if raw.get().starts_with('{') {
        Ok(())
    } else {
        Err(invalid(format!("{name} must be a JSON object, got {}", quoted(raw.get()))))
    }
}

pub(super) fn invalid(message: impl Into<String>) -> RequestError {
    RequestError::Invalid(message.into())
}
