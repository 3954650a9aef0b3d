//! Why settings are refused.

use std::fmt::Display;

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// A value that is not allowed.
    #[error("setting {key} must be {allowed}, got {got}")]
    Value {
        /// The key, as `section.key`.
        key: String,
        /// What is allowed.
        allowed: String,
        /// The value that is set.
        got: String,
    },
    /// A key that does not exist.
    #[error("setting {key} does not exist, expected one of {known}")]
    Unknown {
        /// The key, as `section.key`.
        key: String,
        /// The keys that exist beside it.
        known: String,
    },
    /// A file that cannot be read or is not TOML.
    #[error("settings cannot be read: {0}")]
    Source(#[from] config::ConfigError),
}

pub(super) fn invalid_value(key: &str, allowed: impl Display, got: impl Display) -> SettingError {
    SettingError::Value { key: key.to_owned(), allowed: allowed.to_string(), got: got.to_string() }
}
