//! Channels and durable subscriptions: how much of a channel is kept, and what a gateway spends on its readers.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use super::{
    SettingError, YEAR_MS,
    declare::{Section, section},
    error::invalid_value,
    kinds::{bytes, list, millis, number, optional, switch, zero_or},
    services::CHANNEL_NAMES,
};
use crate::{channel_pattern::ChannelPattern, name::ChannelName};

/// Queues that one process can watch for waiting requests, and the largest `subscriptions.max`: each subscription has a
/// queue of retries.
pub const MAX_WATCHED_QUEUES: usize = 4096;

const MAX_MESSAGES: u64 = 100_000_000;
/// A smaller limit would be below the memory of an empty history.
const MIN_BYTES: u64 = 65_536;
const MAX_BYTES: u64 = 1 << 40;
/// Maintenance, which trims every few seconds, could not keep up with a shorter one.
const MIN_AGE_MS: u64 = 1000;

section! {
    /// Channels.
    pub struct ChannelSettings = "channels" {
        /// How long the history of a channel is kept after its last message. Redis may keep it a quarter longer.
        "history_ttl_ms" => history_ttl: Duration = millis(1000..=YEAR_MS, 604_800_000);
        /// Channels that may have a history at a time. A message for one more is refused.
        "max_channels" => max_channels: u64 = number(1..=1_000_000, 10_000);
        /// Channels on which readers also get what other programs publish with plain Redis: at most once, without a
        /// position, and not kept.
        "plain" => plain_channels: Vec<ChannelName> = list(CHANNEL_NAMES, &["task:pubsub:channel"]);
        /// Streams of messages and requests that wait for messages which a gateway serves at a time. More are answered
        /// with 503.
        "max_readers" => max_readers: usize = number(1..=1_000_000, 10_000);
        /// Recent messages of one channel that a gateway keeps in memory. Readers that are further behind read from
        /// Redis.
        "ring_bytes" => ring_bytes: usize = bytes(0..=64 << 20, 256 << 10);
        /// Memory for the recent messages of all channels together.
        "rings_bytes" => rings_bytes: usize = bytes(1 << 20..=16 << 30, 64 << 20);
        /// Memory for messages that readers which are behind have read from Redis and not delivered, for all readers
        /// together.
        "reader_pages_bytes" => reader_pages_bytes: usize = bytes(1 << 20..=16 << 30, 64 << 20);
        /// Longest time that a client may accept no data while messages wait for it. Then its connection is closed.
        "stall_ms" => stall_timeout: Duration = millis(1000..=600_000, 30_000);
        /// How often a gateway checks that it received the last message of each channel that has readers.
        "sweep_ms" => sweep_interval: Duration = millis(100..=3_600_000, 15_000);
        /// How often a gateway sends itself a message. If one does not arrive, the gateway is not ready and subscribes
        /// again.
        "probe_ms" => probe_interval: Duration = millis(100..=600_000, 5000);
        /// Lease of a gateway on the members of a channel that are connected to it: how long they are still present after
        /// the gateway died. It is renewed three times in this time.
        "presence_ttl_ms" => presence_ttl: Duration = millis(3000..=600_000, 30_000);
        /// How long a member stays present after its last connection closed, so that it can come back unnoticed.
        "presence_grace_ms" => presence_grace: Duration = millis(0..=600_000, 5000);
        /// Members of one channel. One more is refused.
        "presence_max_members" => presence_max_members: u64 = number(1..=10_000, 1000);
        ../// How much of each channel is kept.
        retention: RetentionRules;
    }
}

section! {
    /// How much of a channel is kept.
    pub(super) struct HistoryLimits = "channels" {
        /// Messages of a channel that are kept, about.
        "history_max" => messages: u64 = number(1..=MAX_MESSAGES, 10_000);
        /// Age of the oldest message that is kept.
        "history_max_age_ms" => age: Option<Duration> = zero_or(millis(MIN_AGE_MS..=YEAR_MS, 0));
        /// Memory of a history in Redis, about. The newest message always stays.
        "history_max_bytes" => bytes: Option<u64> = zero_or(bytes(MIN_BYTES..=MAX_BYTES, 0));
        /// Messages of a channel, about, that are kept beyond these limits for a subscription that is behind. The
        /// subscription loses older ones; the loss is counted and logged.
        "backlog_max_messages" => backlog_messages: u64 = number(1..=MAX_MESSAGES, 1_000_000);
        /// Memory of those messages, about.
        "backlog_max_bytes" => backlog_bytes: u64 = bytes(MIN_BYTES..=MAX_BYTES, 1 << 30);
    }
}

section! {
    /// Retention of single channels, by name or by a pattern of 1 to 4 stars that each stand for any characters. A
    /// limit that is absent is the one above. One rule applies: the channel's own name, else the longest pattern, else
    /// of two patterns of the same length the first in the alphabet. In the environment names are lower case.
    pub(super) struct RetentionRule = "channels.retention.<channel>" {
        /// Messages that are kept, about.
        "messages" => messages: Option<u64> = optional(number(1..=MAX_MESSAGES, 1), r#""orders.*".messages = 1000"#);
        /// Age of the oldest message that is kept.
        "age_ms" => age: Option<Option<Duration>> =
            optional(zero_or(millis(MIN_AGE_MS..=YEAR_MS, 0)), r#""orders.*".age_ms = 3600000"#);
        /// Memory in Redis, about.
        "bytes" => bytes: Option<Option<u64>> =
            optional(zero_or(bytes(MIN_BYTES..=MAX_BYTES, 0)), r#""orders.*".bytes = 10485760"#);
    }
}

section! {
    /// Durable subscriptions, which deliver the messages of channels to endpoints, programs, queues and logs.
    pub struct SubscriptionSettings = "subscriptions" {
        /// Subscriptions that may exist. A worker waits for the failed deliveries of each.
        "max" => max: u64 = number(1..=MAX_WATCHED_QUEUES as u64, 1000);
        /// A subscription is disabled when all its deliveries fail for this long.
        "disable_after_ms" => disable_after: Duration = millis(60_000..=YEAR_MS, 432_000_000);
        /// Messages that must have failed in that time, without a success between them. Refusals of single messages
        /// (4xx, except 401, 403, 404 and 410) do not count.
        "disable_min_failures" => disable_min_failures: u64 = number(1..=1_000_000, 5);
        /// How long a broadcast subscription remembers the position of a worker that is away.
        "checkpoint_ttl_ms" => checkpoint_ttl: Duration = millis(60_000..=YEAR_MS, 604_800_000);
        /// Attempts of a subscription that its log keeps, of those that succeeded and of those that failed. The same holds for a
        /// rule that sends jobs to an endpoint. 0 keeps none.
        "attempts_max" => attempts_max: usize = number(0..=10_000, 100);
        /// Whether endpoints may be on private networks and on this machine.
        "allow_private" => allow_private: bool = switch(false);
    }
}

/// How much of a channel is kept, about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Messages.
    pub messages: u64,
    /// Age of the oldest message.
    pub age: Option<Duration>,
    /// Memory in Redis.
    pub bytes: Option<u64>,
}

/// How much is kept of which channel.
#[derive(Debug, Clone)]
pub struct RetentionRules {
    default: Retention,
    exact: BTreeMap<ChannelName, Retention>,
    /// The first that matches applies.
    patterns: Vec<(ChannelPattern, Retention)>,
    backlog_cap: BacklogCap,
}

/// How much of a channel is kept, about, for subscriptions that are behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BacklogCap {
    /// Messages.
    pub messages: u64,
    /// Memory in Redis.
    pub bytes: u64,
}

impl RetentionRules {
    /// What applies to a channel: the rule of its name, else of the longest pattern that matches, else the default.
    #[must_use]
    pub fn for_channel(&self, channel: &ChannelName) -> Retention {
        let by_pattern = || self.patterns.iter().find(|(pattern, _)| pattern.matches(channel)).map(|(_, rule)| *rule);
        self.exact.get(channel).copied().or_else(by_pattern).unwrap_or(self.default)
    }

    /// The most that any rule keeps of a channel, by bytes or else by messages.
    #[must_use]
    pub fn largest(&self) -> Retention {
        let rules = self.exact.values().chain(self.patterns.iter().map(|(_, rule)| rule));
        let weight = |rule: &Retention| (rule.bytes.unwrap_or(u64::MAX), rule.messages);
        rules.fold(self.default, |largest, rule| if weight(rule) > weight(&largest) { *rule } else { largest })
    }

    /// What is kept for subscriptions, of any channel.
    #[must_use]
    pub fn backlog_cap(&self) -> BacklogCap {
        self.backlog_cap
    }

    /// Reads the limits of every channel and the rules of single ones from the section `channels`.
    fn read(section: &mut Section) -> Result<Self, SettingError> {
        let limits = HistoryLimits::read(section)?;
        let default = Retention { messages: limits.messages, age: limits.age, bytes: limits.bytes };
        let backlog_cap = BacklogCap { messages: limits.backlog_messages, bytes: limits.backlog_bytes };
        let mut rules = Self { default, exact: BTreeMap::new(), patterns: Vec::new(), backlog_cap };
        for (name, rule) in section.entries("retention", RetentionRule::read)? {
            let retention = Retention {
                messages: rule.messages.unwrap_or(default.messages),
                age: rule.age.unwrap_or(default.age),
                bytes: rule.bytes.unwrap_or(default.bytes),
            };
            if let Ok(channel) = name.parse::<ChannelName>() {
                rules.exact.insert(channel, retention);
            } else if let Ok(pattern) = name.parse::<ChannelPattern>() {
                rules.patterns.push((pattern, retention));
            } else {
                let allowed = "a table of channels (orders.new) and patterns with 1 to 4 stars (orders.*)";
                return Err(invalid_value("channels.retention", allowed, format_args!("{name:?}")));
            }
        }
        // Stable: of two that are as long the first in the alphabet applies
        rules.patterns.sort_by_key(|(pattern, _)| Reverse(pattern.to_string().len()));
        Ok(rules)
    }
}

#[cfg(test)]
mod tests {
    use config::{File, FileFormat};

    use super::*;
    use crate::settings::Settings;

    fn read(toml: &str) -> Result<ChannelSettings, SettingError> {
        Ok(Settings::from_config(config::Config::builder().add_source(File::from_str(toml, FileFormat::Toml)))?
            .channels)
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
