//! `config/default.toml` and `docs/reference/settings.md`, as the declarations say. A test compares them with the
//! files.

use config::ValueKind;

use super::{
    auth::AuthSettings,
    channels::{ChannelSettings, HistoryLimits, RetentionRule, SubscriptionSettings},
    declare::{SectionText, SettingText, split_placeholder},
    jobs::{BridgeSettings, CronSettings, JobSettings, QueueSection, WorkflowSettings},
    kinds::shown,
    process::{
        EncryptionSettings, LogSettings, MaintenanceSettings, MetricsSettings, ReloadSettings, StatisticsSettings,
        TelemetrySettings,
    },
    redis::{DurabilitySettings, RedisSettings},
    services::{DashboardSettings, GatewaySettings, PubsubWorkerSettings, QueueWorkerSettings},
    tokens::{JwtSettings, KeyLimitSettings, TokenSettings},
};

/// Every section, in the order of the files. Neighbours with the same name share a header.
pub(super) fn sections() -> Vec<SectionText> {
    vec![
        RedisSettings::describe(),
        DurabilitySettings::describe(),
        EncryptionSettings::describe(),
        ReloadSettings::describe(),
        GatewaySettings::describe(),
        DashboardSettings::describe(),
        AuthSettings::describe(),
        JwtSettings::describe(),
        TokenSettings::describe(),
        KeyLimitSettings::describe(),
        QueueWorkerSettings::describe(),
        PubsubWorkerSettings::describe(),
        JobSettings::describe(),
        WorkflowSettings::describe(),
        QueueSection::describe(),
        CronSettings::describe(),
        BridgeSettings::describe(),
        ChannelSettings::describe(),
        HistoryLimits::describe(),
        RetentionRule::describe(),
        SubscriptionSettings::describe(),
        MaintenanceSettings::describe(),
        StatisticsSettings::describe(),
        MetricsSettings::describe(),
        TelemetrySettings::describe(),
        LogSettings::describe(),
    ]
}

const TOML_HEAD: &str = "\
# Every setting of Galley with its default. Generated from crates/common/src/settings: do not edit.
# To write it again: UPDATE_DOCS=1 cargo test -p galley-common settings
#
# To change a setting, name a TOML file of the same shape in GALLEY_CONFIG, or set GALLEY__SECTION__KEY in the
# environment, which wins: GALLEY__GATEWAY__LISTEN=0.0.0.0:8080. A list is comma-separated in the environment.
# A secret can be in a file of its own: GALLEY__REDIS__PASSWORD_FILE=/run/secrets/password.
# A key that does not exist or a value that is not allowed stops the process with a message that names it.";

/// `config/default.toml`: every setting with its default and its documentation.
#[must_use]
pub fn default_toml() -> String {
    let mut lines = vec![TOML_HEAD.to_owned()];
    let mut previous = "";
    for section in sections() {
        if section.name != previous {
            lines.push(String::new());
            lines.extend(section.about.iter().map(|line| format!("# {line}")));
            lines.push(format!("[{}]", split_placeholder(section.name).0));
        }
        previous = section.name;
        for setting in section.settings {
            lines.push(String::new());
            lines.extend(setting.doc.iter().map(|line| format!("# {line}")));
            lines.push(format!("# {}", setting.bounds()));
            lines.push(match setting.example {
                Some(example) => format!("# {example}"),
                None => format!("{} = {}", setting.key, shown(&setting.default)),
            });
            if setting.is_secret {
                lines.push(format!("# Or in a file of its own: {}_file = \"/run/secrets/{0}\"", setting.key));
            }
        }
    }
    lines.join("\n") + "\n"
}

const REFERENCE_HEAD: &str = "\
# Settings

<!-- Generated from crates/common/src/settings. To write it again: UPDATE_DOCS=1 cargo test -p galley-common settings -->

Galley reads its settings from three sources. A later source wins:

1. the defaults on this page, which [config/default.toml](../../config/default.toml) shows as one file;
2. the TOML file that `GALLEY_CONFIG` names, with the settings to change;
3. environment variables, `GALLEY__SECTION__KEY`.

A list is an array in a file and comma-separated in the environment. `<queue>` and `<channel>` stand for a name.
A setting that is or can hold a secret can be in a file of its own, as Docker and Kubernetes mount secrets: `<key>_file`
names the file. Line ends at the end of the file do not count. Setting both is an error. No error and no log shows a secret.
A key that does not exist or a value that is not allowed stops the process with a message that names it.";

/// `docs/reference/settings.md`: every setting with its variable, unit, bounds, default and documentation.
#[must_use]
pub fn reference() -> String {
    let mut lines = vec![REFERENCE_HEAD.to_owned()];
    let mut previous = "";
    for section in sections() {
        if section.name != previous {
            lines.push(format!("\n## `{}`\n\n{}", section.name, section.about.join("\n")));
        }
        previous = section.name;
        for setting in section.settings {
            let key = format!("{}.{}", section.name, setting.key);
            lines.push(format!("\n### `{key}`\n\n{}\n", setting.doc.join("\n")));
            let variable = format!("GALLEY__{}", key.replace('.', "__").to_uppercase());
            lines.push(format!("- Environment variable: `{variable}`"));
            if setting.is_secret {
                lines.push(format!("- In a file of its own: `{variable}_FILE`"));
            }
            lines.push(format!("- {}", setting.bounds().replace('*', "\\*")));
            lines.push(format!("- Default: {}", setting.default_text()));
        }
    }
    lines.join("\n") + "\n"
}

impl SettingText {
    /// The type or the unit, and what is allowed.
    fn bounds(&self) -> String {
        format!("{}: {}", self.unit, self.allowed)
    }

    /// The default, with a number also in a larger unit.
    fn default_text(&self) -> String {
        let default = match &self.default {
            ValueKind::Nil => return "not set".to_owned(),
            default => format!("`{}`", shown(default)),
        };
        let units: &[(u64, &str)] = match self.unit {
            "Milliseconds" => &[(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")],
            "Bytes" => &[(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")],
            _ => &[],
        };
        let ValueKind::U64(number @ 1..) = self.default else { return default };
        match units.iter().find(|(size, _)| number % size == 0) {
            Some((size, unit)) => format!("{default} ({} {unit})", number / size),
            None => default,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use config::{Config, File, FileFormat};

    use super::*;
    use crate::settings::Settings;

    /// Compares a file of the repository with what the declarations say, or writes it if `UPDATE_DOCS` is set.
    fn check_file(path: &str, text: &str) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
        if env::var_os("UPDATE_DOCS").is_some() {
            fs::write(&file, text).expect("the file can be written");
        }
        let present = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            present == text,
            "{path} is out of date; to write it again: UPDATE_DOCS=1 cargo test -p galley-common settings"
        );
    }

    #[test]
    fn the_files_are_what_the_declarations_say() {
        check_file("config/default.toml", &default_toml());
        check_file("docs/reference/settings.md", &reference());
    }

    fn read(toml: &str) -> String {
        let sources = Config::builder().add_source(File::from_str(toml, FileFormat::Toml));
        let settings = Settings::from_config(sources).unwrap_or_else(|error| panic!("{toml}: {error}"));
        format!("{settings:?}")
    }

    #[test]
    fn the_file_of_defaults_changes_nothing_and_each_example_in_it_is_allowed() {
        assert_eq!(read(&default_toml()), read(""));
        for section in sections() {
            let table = split_placeholder(section.name).0;
            for example in section.settings.iter().filter_map(|setting| setting.example) {
                assert_ne!(read(&format!("[{table}]\n{example}")), read(""), "{example}");
            }
        }
    }
}
