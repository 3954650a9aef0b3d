//! What a process knows of itself when it starts, for people who look into it.

use std::sync::Arc;

use common::settings::{self, SettingSource};
use serde_json::{Value, json};

/// What a process knows of itself when it starts.
#[derive(Clone)]
pub(crate) struct ProcessFacts {
    /// The settings that are not the defaults.
    pub(crate) changed_settings: Arc<Value>,
}

impl ProcessFacts {
    pub(crate) fn new() -> Self {
        Self { changed_settings: Arc::new(changed_settings()) }
    }
}

/// The settings that somebody set, with where, as they are when the process starts. Secrets are masked.
fn changed_settings() -> Value {
    let file = std::env::var("GALLEY_CONFIG").ok();
    let Ok(values) = settings::values_with_sources(file.as_deref(), settings::environment()) else {
        return Value::Null;
    };
    let changed = values.into_iter().filter(|value| value.source != SettingSource::Default);
    changed
        .map(|setting| {
            let text = setting.value.as_deref().unwrap_or("null");
            // TOML writes these values as JSON does
            let value = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
            let source = match setting.source {
                SettingSource::Variable(name) => name,
                SettingSource::File | SettingSource::Default => file.clone().unwrap_or_default(),
            };
            json!({ "key": setting.key, "value": value, "source": source })
        })
        .collect()
}
