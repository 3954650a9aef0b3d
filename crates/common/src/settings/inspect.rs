//! The settings in force, and where each came from. Secrets are not shown.

use std::collections::{BTreeMap, HashMap};

use config::{Map, Source as _, Value, ValueKind};

use super::{RedisUrl, SettingError, Settings, declare::SettingText, kinds::shown, render::sections, sources};

/// Where the value of a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingSource {
    /// Nobody set it.
    Default,
    /// The settings file.
    File,
    /// An environment variable.
    Variable(String),
}

/// A setting with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingValue {
    /// The key, as `section.key`.
    pub key: String,
    /// The value as TOML writes it; none if it is not set and has no default. A secret is masked.
    pub value: Option<String>,
    /// Where it came from.
    pub source: SettingSource,
}

/// Every setting that exists, in the order of the reference, and those of single queues and channels that are set.
///
/// # Errors
/// As [`Settings::load`]: settings that no service would run with are not shown.
#[expect(clippy::implicit_hasher, reason = "as everywhere where settings are read")]
pub fn values_with_sources(
    file: Option<&str>,
    variables: HashMap<String, String>,
) -> Result<Vec<SettingValue>, SettingError> {
    Settings::from_sources(file, variables.clone())?;
    let by_key: BTreeMap<String, String> = variables
        .keys()
        .filter_map(|name| Some((name.strip_prefix("GALLEY__")?.replace("__", ".").to_lowercase(), name.clone())))
        .collect();
    let set = sources(file, variables)?.build()?.collect()?;
    let mut values = Vec::new();
    for section in sections() {
        let parts: Vec<&str> = section.name.split('.').collect();
        for (name, table) in tables(String::new(), Some(&set), &parts) {
            for setting in &section.settings {
                let found = show(setting, &name, table, &by_key);
                // Of a queue or channel only what is set
                let is_of_any = section.name.contains('<');
                values.extend(found.into_iter().filter(|value| !is_of_any || value.source != SettingSource::Default));
            }
        }
    }
    Ok(values)
}

type Table = Map<String, Value>;

/// The tables at a path with their names: one for each name that is set where the path has `<name>`.
fn tables<'a>(name: String, table: Option<&'a Table>, path: &[&str]) -> Vec<(String, Option<&'a Table>)> {
    let Some((part, rest)) = path.split_first() else { return vec![(name, table)] };
    let inner = |part: &str| match table.and_then(|table| table.get(part)).map(|value| &value.kind) {
        Some(ValueKind::Table(inner)) => Some(inner),
        _ => None,
    };
    let join = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") };
    if part.starts_with('<') {
        let mut names: Vec<&String> = table.into_iter().flat_map(Map::keys).collect();
        names.sort_unstable();
        return names.into_iter().flat_map(|part| tables(join(part), inner(part), rest)).collect();
    }
    tables(join(part), inner(part), rest)
}

/// A setting in its table; several if it stands for one of each queue.
fn show(
    setting: &SettingText,
    table_name: &str,
    table: Option<&Table>,
    variables: &BTreeMap<String, String>,
) -> Vec<SettingValue> {
    let (key, placeholder) = super::declare::split_placeholder(setting.key);
    let get = |key: &str| table.and_then(|table| table.get(key));
    let source = |key: &str| match variables.get(key) {
        Some(variable) => SettingSource::Variable(variable.clone()),
        None => SettingSource::File,
    };
    let full = format!("{table_name}.{key}");
    if placeholder.is_some() {
        let Some(ValueKind::Table(entries)) = get(key).map(|value| &value.kind) else { return Vec::new() };
        let mut entries: Vec<_> = entries.iter().map(|(name, value)| (format!("{full}.{name}"), value)).collect();
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let entries = entries.into_iter().map(|(key, value)| {
            let source = source(&key);
            SettingValue { key, value: Some(masked(setting, &value.kind)), source }
        });
        return entries.collect();
    }
    if let Some(value) = get(key) {
        return vec![SettingValue { value: Some(masked(setting, &value.kind)), source: source(&full), key: full }];
    }
    let file_key = format!("{key}_file");
    if let Some(path) = get(&file_key).filter(|_| setting.is_secret) {
        let key = format!("{table_name}.{file_key}");
        return vec![SettingValue { value: Some(shown(&path.kind)), source: source(&key), key }];
    }
    let value = (setting.default != ValueKind::Nil).then(|| shown(&setting.default));
    vec![SettingValue { key: full, value, source: SettingSource::Default }]
}

/// A value without secrets.
fn masked(setting: &SettingText, value: &ValueKind) -> String {
    match value {
        ValueKind::String(text) if setting.is_secret && !text.is_empty() && *value != setting.default => {
            // Where Redis is can be shown, who Galley is there cannot
            let is_url = setting.unit == "Text" && text.contains("://");
            format!("{:?}", if is_url { RedisUrl::unchecked(text).redacted() } else { "…".to_owned() })
        }
        // A variable is text, whatever it means
        ValueKind::String(text) if setting.range.is_some() || setting.unit == "Boolean" => text.clone(),
        other => shown(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_has_its_source_and_no_secret_is_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, secret) = (folder.path().join("galley.toml"), folder.path().join("secret"));
        std::fs::write(&secret, "s3cret").expect("a file");
        let toml = format!(
            "[redis]\nurl = \"redis://me:hidden@host:1/5\"\n[queues.mail]\nconcurrency = 2\n[jobs]\ncrash_budget = 5\n\
             [queue_worker]\nweights = {{ mail = 3 }}\n[auth.tokens]\nsecret_file = {:?}\n",
            secret.display().to_string()
        );
        std::fs::write(&file, toml).expect("a file");
        std::fs::write(&secret, "s3cret".repeat(10)).expect("a file");
        let variables = [("GALLEY__JOBS__CRASH_BUDGET", "7"), ("GALLEY__LOG__LEVEL", "warn")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let values = values_with_sources(file.to_str(), variables).expect("valid settings");
        let of = |key: &str| values.iter().find(|value| value.key == key).unwrap_or_else(|| panic!("{key}"));
        let budget = of("jobs.crash_budget");
        assert_eq!(budget.value.as_deref(), Some("7"), "the environment wins");
        assert_eq!(budget.source, SettingSource::Variable("GALLEY__JOBS__CRASH_BUDGET".to_owned()));
        assert_eq!(
            (of("queues.mail.concurrency").value.as_deref(), &of("redis.url").source),
            (Some("2"), &SettingSource::File)
        );
        assert_eq!(of("queue_worker.weights.mail").value.as_deref(), Some("3"));
        assert_eq!(
            (of("jobs.lease_ms").value.as_deref(), &of("jobs.lease_ms").source),
            (Some("30000"), &SettingSource::Default)
        );
        assert_eq!(of("auth.tokens.secret_file").source, SettingSource::File);
        let shown = format!("{values:?}");
        assert!(!shown.contains("hidden") && !shown.contains("s3cret"), "{shown}");
        assert!(of("redis.url").value.as_deref().is_some_and(|url| url.contains("host:1/5")));
    }
}
