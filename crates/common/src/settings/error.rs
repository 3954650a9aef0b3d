//! Why settings are refused.

use std::fmt::Display;

use crate::config_file::ConfigFileError;

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
    /// Two settings for the same.
    #[error("set either {first} or {second}, not both")]
    Conflict {
        /// One key, as `section.key`.
        first: String,
        /// The other.
        second: String,
    },
    /// The file that a setting names cannot be used.
    #[error("setting {key}: {path} cannot be used: {problem}")]
    File {
        /// The key, as `section.key`.
        key: String,
        /// The path that is set.
        path: String,
        /// What is wrong with the file.
        problem: String,
    },
    /// A file of settings that cannot be read or is not TOML. Nothing of its text is shown, which may hold secrets.
    #[error("settings cannot be read: {0}")]
    Text(ConfigFileError),
    /// Sources that cannot be put together.
    #[error("settings cannot be read: {0}")]
    Source(#[from] config::ConfigError),
}

pub(super) fn invalid_value(key: &str, allowed: impl Display, got: impl Display) -> SettingError {
    SettingError::Value { key: key.to_owned(), allowed: allowed.to_string(), got: got.to_string() }
}
