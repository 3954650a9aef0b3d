//! Names that come from users, as types that can only hold valid ones.
//!
//! Invariant: a value of these types is safe inside a Redis key, a log line and an error message. Text that does not
//! parse is refused at the edge with a message that says what is allowed. Nothing is normalised or trimmed. A clone shares
//! the text.

mod queue_name;

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

pub use self::queue_name::{MAX_PARTITIONS, QueueName};

/// Why a name is refused: the kind of name, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must {allowed}, got {got}")]
pub struct NameError {
    what: &'static str,
    allowed: &'static str,
    got: String,
}

impl NameError {
    /// A refusal: the kind of name, what is allowed, and the text that was sent.
    #[must_use]
    pub fn new(what: &'static str, allowed: &'static str, got: &str) -> Self {
        Self { what, allowed, got: quoted(got) }
    }
}

/// The text for an error message: quoted, control characters escaped, cut after 64 characters.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(64).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $allowed:literal, $is_valid:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                if $is_valid(text) { Ok(Self(text.into())) } else { Err(NameError::new($what, $allowed, text)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                if $is_valid(&text) { Ok(Self(text.into())) } else { Err(NameError::new($what, $allowed, &text)) }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A job type such as `email.send`: segments of lower-case letters, digits, `_` and `-`, joined by dots.
    JobType,
    "type",
    "match ^[a-z][a-z0-9_-]*(\\.[a-z][a-z0-9_-]*)*$ and have 1 to 255 characters",
    is_job_type
);
name_type!(
    /// A channel: letters, digits and `. _ : -`, 1 to 128 characters, not starting with `galley:`.
    ///
    /// The bare name is also a Redis pub/sub channel, so Galley's own prefix is out of reach.
    ChannelName,
    "channel",
    "match ^[A-Za-z0-9][A-Za-z0-9._:-]*$, have 1 to 128 characters and not start with \"galley:\"",
    is_channel_name
);
name_type!(
    /// A signal for a job: letters, digits and `. _ : -`, 1 to 128 characters.
    SignalName,
    "name",
    "match ^[A-Za-z0-9][A-Za-z0-9._:-]*$ and have 1 to 128 characters",
    is_limit_key
);
name_type!(
    /// A worker: printable ASCII without spaces, 1 to 128 characters.
    WorkerId,
    "worker_id",
    "be 1 to 128 printable ASCII characters without spaces",
    is_worker_id
);
name_type!(
    /// A cron entry: `[a-z0-9][a-z0-9.-]*`, 1 to 255 characters (Open Job Spec cron).
    CronName,
    "name",
    "match ^[a-z0-9][a-z0-9.-]*$ and have 1 to 255 characters",
    is_lowercase_name
);

name_type!(
    /// A subscription: `[a-z0-9][a-z0-9.-]*`, 1 to 64 characters, so that its queue has a name too.
    SubscriptionName,
    "name",
    "match ^[a-z0-9][a-z0-9.-]*$ and have 1 to 64 characters",
    is_subscription_name
);

name_type!(
    /// A command that subscriptions name: `[a-z0-9][a-z0-9.-]*`, 1 to 128 characters.
    CommandName,
    "command",
    "match ^[a-z0-9][a-z0-9.-]*$ and have 1 to 128 characters",
    is_queue_name
);

name_type!(
    /// The origin of a page, as browsers send it: `https://app.example.com`, `http://127.0.0.1:3000`.
    Origin,
    "origin",
    "be scheme, host and port as browsers send them, such as https://app.example.com: http or https, lower case, no path, \
     no usual port (80, 443)",
    is_origin
);

name_type!(
    /// The name of a host, without a port: `galley.example.com`; `*.example.com` for every name below it, `*` for any.
    HostPattern,
    "host",
    "be the name of a host such as galley.example.com, *.example.com for every name below it, or * for any: lower case, \
     no scheme, no port",
    is_host_pattern
);

name_type!(
    /// The key of a limit: letters, digits and `. _ : -`, 1 to 128 characters.
    LimitKey,
    "key",
    "match ^[A-Za-z0-9][A-Za-z0-9._:-]*$ and have 1 to 128 characters",
    is_limit_key
);

fn is_queue_name(text: &str) -> bool {
    text.len() <= 128 && is_lowercase_name(text)
}

fn is_subscription_name(text: &str) -> bool {
    text.len() <= 64 && is_lowercase_name(text)
}

fn is_lowercase_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=255).contains(&bytes.len())
        && (bytes[0].is_ascii_lowercase() || bytes[0].is_ascii_digit())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-'))
}

fn is_job_type(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.split('.').all(|segment| {
            segment.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
                && segment.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
        })
}

fn is_channel_name(text: &str) -> bool {
    is_limit_key(text) && !text.starts_with("galley:")
}

fn is_limit_key(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=128).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'))
}

fn is_origin(text: &str) -> bool {
    let is_web = text.starts_with("http://") || text.starts_with("https://");
    // A URL with a star parses, but elsewhere it is a pattern
    is_web && !text.contains('*') && url::Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text)
}

fn is_host_pattern(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_label = |label: &str| {
        let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(is_allowed)
    };
    text == "*" || text.len() <= 253 && name.split('.').all(is_label)
}

impl HostPattern {
    /// Whether every name matches.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.as_str() == "*"
    }

    /// Whether a name in lower case matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self.as_str().strip_prefix('*') {
            // With its dot, so that notexample.com is not below example.com
            Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
            None => name == self.as_str(),
        }
    }
}

fn is_worker_id(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

impl LimitKey {
    /// The key, or a placeholder that no client can choose, for a script that needs the name of an unused key.
    #[must_use]
    pub fn or_placeholder(key: Option<&Self>) -> Self {
        key.cloned().unwrap_or_else(|| Self("-".into()))
    }
}

/// A priority, -100 to 100; 0 if not set. Within a queue a job of higher priority starts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct Priority(i8);

impl Priority {
    /// The lowest and the highest priority.
    pub const BOUNDS: (i64, i64) = (-100, 100);

    /// Every priority.
    pub fn all() -> impl Iterator<Item = Self> {
        let (lowest, highest) = Self::BOUNDS;
        (lowest..=highest).filter_map(|number| Self::try_from(number).ok())
    }

    /// The number itself.
    #[must_use]
    pub fn get(self) -> i8 {
        self.0
    }

    /// The priority in a key or a record; none if the text is not a priority.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::try_from(text.parse::<i64>().ok()?).ok()
    }
}

/// A priority out of bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("priority must be an integer from -100 to 100, got {0}")]
pub struct PriorityError(i64);

impl TryFrom<i64> for Priority {
    type Error = PriorityError;
    fn try_from(number: i64) -> Result<Self, PriorityError> {
        let (lowest, highest) = Self::BOUNDS;
        match i8::try_from(number) {
            Ok(small) if (lowest..=highest).contains(&number) => Ok(Self(small)),
            _ => Err(PriorityError(number)),
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_could_break_a_key_or_a_log_line_are_refused() {
        for bad in ["", "A", "a b", "a\r\nb", "{a}", "a}", "../x", "a*", "-a", ".a", "ü", &"a".repeat(129)] {
            assert!(bad.parse::<QueueName>().is_err(), "queue {bad:?}");
        }
        for bad in ["", "Email.Send", "email send", "1email.send", "email@send!", "a..b", ".a", "a.", "a.1"] {
            assert!(bad.parse::<JobType>().is_err(), "type {bad:?}");
        }
        for bad in ["", "galley:notifications", "a b", "a\nb", "{x}", "a*", "__keyspace@5__:x", ":a", &"c".repeat(129)]
        {
            assert!(bad.parse::<ChannelName>().is_err(), "channel {bad:?}");
        }
        assert!("w 1".parse::<WorkerId>().is_err());
        for bad in [
            "",
            "*",
            "null",
            "a.b",
            "https://",
            "https://a/",
            "https://a/b",
            "https://A",
            "https://a:443",
            "https://*.a",
            "ws://a",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "origin {bad:?}");
        }
    }

    #[test]
    fn a_host_pattern_matches_a_name_or_all_names_below_one() {
        let pattern = |text: &str| text.parse::<HostPattern>().expect("a pattern");
        assert!(pattern("a.example").matches("a.example") && !pattern("a.example").matches("b.a.example"));
        assert!(pattern("*.a.example").matches("b.a.example") && !pattern("*.a.example").matches("a.example"));
        assert!(!pattern("*.a.example").matches("ba.example") && pattern("*").matches("x"));
        for bad in ["", "a:80", "http://a", "A", "*.", "a..b", "a.*", "**"] {
            assert!(bad.parse::<HostPattern>().is_err(), "host {bad:?}");
        }
    }

    #[test]
    fn the_names_of_the_seed_and_of_the_specification_are_accepted() {
        assert!("default".parse::<QueueName>().is_ok());
        assert!("0-a.b".parse::<QueueName>().is_ok());
        assert!("retry.test.constant-backoff".parse::<JobType>().is_ok());
        assert!("task:pubsub:channel".parse::<ChannelName>().is_ok());
        for origin in ["https://app.example.com", "http://127.0.0.1:3000", "http://[::1]:8080", "https://a:80"] {
            assert!(origin.parse::<Origin>().is_ok(), "{origin}");
        }
    }

    #[test]
    fn an_error_says_what_is_allowed_and_shows_the_text_escaped() {
        let error = "a\r\nb".parse::<QueueName>().unwrap_err().to_string();
        assert_eq!(error, r#"queue must match ^[a-z0-9][a-z0-9.-]*$ and have 1 to 128 characters, got "a\r\nb""#);
    }

    proptest! {
        #[test]
        fn priorities_are_accepted_exactly_within_their_bounds(number in any::<i64>()) {
            prop_assert_eq!(Priority::try_from(number).is_ok(), (-100..=100).contains(&number));
            prop_assert_eq!(Priority::from_text(&number.to_string()), Priority::try_from(number).ok());
        }

        #[test]
        fn no_accepted_name_holds_a_brace_a_space_or_a_control_character(text in ".{0,40}") {
            let accepted = text.parse::<QueueName>().is_ok()
                || text.parse::<JobType>().is_ok()
                || text.parse::<ChannelName>().is_ok();
            if accepted {
                let breaks_out = text.contains(['{', '}', ' ', '*']) || text.chars().any(char::is_control);
                prop_assert!(!breaks_out, "{}", text);
            }
        }
    }
}
