//! The log level, which may change while the process runs.
//!
//! What is logged is decided by one filter behind a lock, which each event that may be logged reads. Spans and metrics do
//! not depend on it. Whatever the level: payloads and secrets are never logged.

use std::{
    fmt,
    str::FromStr,
    sync::{Mutex, OnceLock, PoisonError},
};

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, Registry, reload};

/// The longest filter, in bytes.
const MAX_FILTER_BYTES: usize = 500;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// What may be set while the process runs.
const ALLOWED: &str =
    "error, warn, info, debug, trace or off, or a list of them with modules, such as info,store=debug";

static CONTROL: OnceLock<Control> = OnceLock::new();

struct Control {
    configured: String,
    handle: reload::Handle<EnvFilter, Registry>,
    current: Mutex<Option<LogFilter>>,
}

/// A filter that can be set at run time: `debug`, or `info,store=debug`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogFilter(String);

/// The text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("level must be {ALLOWED}")]
pub struct InvalidLogFilter;

impl FromStr for LogFilter {
    type Err = InvalidLogFilter;

    /// Stricter than the setting: `louder` would be a module there, of which everything is logged.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let is_level = |level: &str| LEVELS.contains(&level);
        let is_module = |module: &str| {
            !module.is_empty()
                && module.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte))
                && !is_level(module)
        };
        let is_valid = text.len() <= MAX_FILTER_BYTES
            && text.split(',').all(|part| match part.split_once('=') {
                Some((module, level)) => is_module(module) && is_level(level),
                None => is_level(part),
            });
        if is_valid && EnvFilter::try_new(text).is_ok() { Ok(Self(text.to_owned())) } else { Err(InvalidLogFilter) }
    }
}

impl TryFrom<String> for LogFilter {
    type Error = InvalidLogFilter;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<LogFilter> for String {
    fn from(filter: LogFilter) -> Self {
        filter.0
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The filter of a process that starts. Call it once.
pub(super) fn reloadable_filter(configured: &str) -> anyhow::Result<reload::Layer<EnvFilter, Registry>> {
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(configured)?);
    let _ = CONTROL.set(Control { configured: configured.to_owned(), handle, current: Mutex::default() });
    Ok(filter)
}

/// The filter in effect, and that of the settings.
#[must_use]
pub fn in_effect() -> (String, String) {
    let Some(control) = CONTROL.get() else { return (String::new(), String::new()) };
    let current = control.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (current.map_or_else(|| control.configured.clone(), |filter| filter.0), control.configured.clone())
}

/// Logs by this filter from now on, or by that of the settings again. True if that changed something.
pub fn set(filter: Option<LogFilter>) -> bool {
    let Some(control) = CONTROL.get() else { return false };
    {
        let mut current = control.current.lock().unwrap_or_else(PoisonError::into_inner);
        if *current == filter {
            return false;
        }
        current.clone_from(&filter);
    }
    let text = filter.map_or_else(|| control.configured.clone(), |filter| filter.0);
    // Readers of the log learn of it, before it becomes quieter or after it became louder
    let is_logged = tracing::event_enabled!(tracing::Level::INFO);
    let say = || tracing::info!(event = "logging.level_changed", filter = text, "the log level changed");
    if is_logged {
        say();
    }
    if let Ok(parsed) = EnvFilter::try_new(&text) {
        // Fails only when logging has ended
        let _ = control.handle.reload(parsed);
    }
    if !is_logged {
        say();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_levels_of_modules_are_allowed_and_typos_are_not() {
        for text in ["debug", "off", " trace ", "info,store=debug", "warn,store::jobs=trace,gateway=off"] {
            assert!(text.parse::<LogFilter>().is_ok(), "{text:?}");
        }
        let long = "store=info,".repeat(60) + "info";
        for text in [
            "",
            "louder",
            "info,",
            "store",
            "store=",
            "=info",
            "info,debug=trace",
            "[span{id=1}]=trace",
            "DEBUG",
            &long,
        ] {
            let error = text.parse::<LogFilter>().expect_err(text);
            assert!(error.to_string().contains("debug, trace or off"), "{error}");
        }
    }
}
