//! Stands in for the gateway's errors in the files of the gateway that are compiled here.

use std::fmt;

use common::json::JsonError;

/// Why something was refused.
#[derive(Debug)]
pub(crate) struct FrameRefused(String);

pub(crate) use FrameRefused as ApiError;

impl FrameRefused {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl From<JsonError> for FrameRefused {
    fn from(error: JsonError) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for FrameRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
