//! Channels: how much of each is kept, and what a gateway spends on their readers.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use super::{
    SettingError,
    check::{YEAR_MS, check_millis, check_number, invalid_value, parse_names},
    raw,
};
use crate::{channel_pattern::ChannelPattern, name::ChannelName};

/// Channels and their history.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is described beside its default in config/default.toml")]
pub struct ChannelSettings {
    pub history_ttl: Duration,
    pub max_channels: u64,
    pub plain_channels: Vec<ChannelName>,
    pub max_readers: usize,
    pub ring_bytes: usize,
    pub rings_bytes: usize,
    pub stall_timeout: Duration,
    pub sweep_interval: Duration,
    pub probe_interval: Duration,
    pub retention: RetentionRules,
}

/// How much of a channel is kept, about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Messages.
    pub messages: u64,
    /// How old they may be.
    pub age: Option<Duration>,
    /// Memory that they may take in Redis.
    pub bytes: Option<u64>,
}

/// How much is kept of which channel.
#[derive(Debug, Clone)]
pub struct RetentionRules {
    default: Retention,
    exact: BTreeMap<ChannelName, Retention>,
    /// The first that fits applies.
    patterns: Vec<(ChannelPattern, Retention)>,
    /// What subscriptions may hold back.
    backlog_cap: BacklogCap,
}

/// What subscriptions that are behind may hold back of a channel, about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BacklogCap {
    /// Messages.
    pub messages: u64,
    /// Memory that they may take in Redis.
    pub bytes: u64,
}

impl RetentionRules {
    /// What applies to a channel: the rule of its name, else that of the longest pattern which fits, else the usual.
    #[must_use]
    pub fn for_channel(&self, channel: &ChannelName) -> Retention {
        let by_pattern = || self.patterns.iter().find(|(pattern, _)| pattern.matches(channel)).map(|(_, rule)| *rule);
        self.exact.get(channel).copied().or_else(by_pattern).unwrap_or(self.default)
    }

    /// What subscriptions may hold back, of any channel.
    #[must_use]
    pub fn backlog_cap(&self) -> BacklogCap {
        self.backlog_cap
    }
}

const MAX_MESSAGES: u64 = 100_000_000;
/// Below that the memory of an empty history would count.
const MIN_BYTES: u64 = 65_536;
const MAX_BYTES: u64 = 1 << 40;
/// Below that the upkeep, which comes by every few seconds, could not keep up.
const MIN_AGE_MS: u64 = 1000;

pub(super) fn check_channels(raw: raw::RawChannels) -> Result<ChannelSettings, SettingError> {
    Ok(ChannelSettings {
        history_ttl: check_millis("channels.history_ttl_ms", raw.history_ttl_ms, 1000, YEAR_MS)?,
        max_channels: check_number("channels.max_channels", raw.max_channels, 1, 1_000_000)?,
        plain_channels: parse_names("channels.plain", &raw.plain)?,
        max_readers: check_number("channels.max_readers", raw.max_readers, 1, 1_000_000)?,
        ring_bytes: check_number("channels.ring_bytes", raw.ring_bytes, 0, 64 << 20)?,
        rings_bytes: check_number("channels.rings_bytes", raw.rings_bytes, 1 << 20, 16 << 30)?,
        stall_timeout: check_millis("channels.stall_ms", raw.stall_ms, 1000, 600_000)?,
        sweep_interval: check_millis("channels.sweep_ms", raw.sweep_ms, 100, 3_600_000)?,
        probe_interval: check_millis("channels.probe_ms", raw.probe_ms, 100, 600_000)?,
        retention: RetentionRules {
            default: Retention {
                messages: check_number("channels.history_max", raw.history_max, 1, MAX_MESSAGES)?,
                age: check_age("channels.history_max_age_ms", raw.history_max_age_ms)?,
                bytes: check_bytes("channels.history_max_bytes", raw.history_max_bytes)?,
            },
            exact: BTreeMap::new(),
            patterns: Vec::new(),
            backlog_cap: BacklogCap {
                messages: check_number("channels.cap_messages", raw.cap_messages, 1, MAX_MESSAGES)?,
                bytes: check_number("channels.cap_bytes", raw.cap_bytes, MIN_BYTES, MAX_BYTES)?,
            },
        }
        .with_rules(raw.retention)?,
    })
}

impl RetentionRules {
    fn with_rules(mut self, written: BTreeMap<String, raw::RawRetention>) -> Result<Self, SettingError> {
        for (name, written) in written {
            let key = |limit: &str| format!("channels.retention.{name}.{limit}");
            let mut rule = self.default;
            if let Some(messages) = written.messages {
                rule.messages = check_number(&key("messages"), messages, 1, MAX_MESSAGES)?;
            }
            if let Some(written) = written.age_ms {
                rule.age = check_age(&key("age_ms"), written)?;
            }
            if let Some(written) = written.bytes {
                rule.bytes = check_bytes(&key("bytes"), written)?;
            }
            if let Ok(channel) = name.parse::<ChannelName>() {
                self.exact.insert(channel, rule);
            } else if let Ok(pattern) = name.parse::<ChannelPattern>() {
                self.patterns.push((pattern, rule));
            } else {
                let allowed = "a table of channels (orders.new) and patterns with 1 to 4 stars (orders.*)";
                return Err(invalid_value("channels.retention", allowed, format_args!("{name:?}")));
            }
        }
        // Stable: of two that are as long the first in the alphabet applies
        self.patterns.sort_by_key(|(pattern, _)| Reverse(pattern.to_string().len()));
        Ok(self)
    }
}

/// 0 is no limit.
fn check_optional_limit(
    key: &str,
    written: raw::WholeNumber,
    least: u64,
    most: u64,
) -> Result<Option<u64>, SettingError> {
    match written.0 {
        0 => Ok(None),
        value if (least..=most).contains(&value) => Ok(Some(value)),
        value => Err(invalid_value(key, format_args!("0 (no limit) or {least} to {most}"), value)),
    }
}

fn check_age(key: &str, written: raw::WholeNumber) -> Result<Option<Duration>, SettingError> {
    Ok(check_optional_limit(key, written, MIN_AGE_MS, YEAR_MS)?.map(Duration::from_millis))
}

fn check_bytes(key: &str, written: raw::WholeNumber) -> Result<Option<u64>, SettingError> {
    check_optional_limit(key, written, MIN_BYTES, MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use config::{Config, File, FileFormat};

    use super::*;
    use crate::settings::{DEFAULTS, Settings};

    fn read(toml: &str) -> Result<ChannelSettings, SettingError> {
        let sources = Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
        let sources = sources.add_source(File::from_str(toml, FileFormat::Toml));
        let raw: raw::RawSettings = sources.build()?.try_deserialize()?;
        Ok(Settings::try_from(raw)?.channels)
    }

    #[test]
    fn the_name_wins_over_a_pattern_and_the_longer_pattern_over_the_shorter() {
        let settings = read(
            r#"[channels]
            history_max = 5
            history_max_age_ms = 9000
            [channels.retention]
            "orders.*" = { messages = 10 }
            "orders.eu.*" = { messages = 20, bytes = 100000 }
            "orders.eu.de" = { age_ms = 0 }
            "*.log" = { messages = 30 }
            "a*.log" = { messages = 40 }
            "b*.log" = { messages = 50 }
            "ab*log" = { messages = 60 }
            Upper = { messages = 70, age_ms = 1000 }"#,
        );
        let rules = settings.expect("allowed").retention;
        let usual = Retention { messages: 5, age: Some(Duration::from_secs(9)), bytes: None };
        for (channel, expected) in [
            ("orders", usual),
            ("orders.new", Retention { messages: 10, ..usual }),
            ("orders.eu.fr", Retention { messages: 20, bytes: Some(100_000), ..usual }),
            ("orders.eu.de", Retention { age: None, ..usual }),
            ("x.log", Retention { messages: 30, ..usual }),
            ("a.log", Retention { messages: 40, ..usual }),
            ("b.log", Retention { messages: 50, ..usual }),
            ("ab.log", Retention { messages: 40, ..usual }),
            ("orders.log", Retention { messages: 10, ..usual }),
            ("Upper", Retention { messages: 70, age: Some(Duration::from_secs(1)), bytes: None }),
            ("upper", usual),
        ] {
            assert_eq!(rules.for_channel(&channel.parse().expect("a name")), expected, "{channel}");
        }
        assert_eq!(rules.backlog_cap(), BacklogCap { messages: 1_000_000, bytes: 1 << 30 });
    }

    #[test]
    fn a_rule_that_is_not_allowed_is_an_error_that_says_what_is() {
        for (rule, key, allowed) in [
            (r#""a b" = { messages = 1 }"#, "channels.retention", "1 to 4 stars"),
            (r#""*****" = { messages = 1 }"#, "channels.retention", "1 to 4 stars"),
            (r#""galley:x" = { messages = 1 }"#, "channels.retention", "a table of channels"),
            (r#""a.*" = { messages = 0 }"#, "channels.retention.a.*.messages", "1 to 100000000"),
            (r#""a.*" = { age_ms = 5 }"#, "channels.retention.a.*.age_ms", "0 (no limit) or 1000 to"),
            (r#""a.*" = { bytes = 5 }"#, "channels.retention.a.*.bytes", "0 (no limit) or 65536 to"),
            (r#""a.*" = { size = 5 }"#, "size", "messages"),
        ] {
            let error = read(&format!("[channels.retention]\n{rule}")).expect_err(rule).to_string();
            assert!(error.contains(key) && error.contains(allowed), "{rule}: {error}");
        }
    }
}
