//! Names by pattern: `orders.*`.

use std::{fmt, str::FromStr};

use wildmatch::WildMatch;

use crate::name::{ChannelName, NameError};

/// A channel name in which `*` stands for any characters, or none.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelPattern(WildMatch);

impl ChannelPattern {
    /// Whether the pattern matches a channel.
    #[must_use]
    pub fn matches(&self, channel: &ChannelName) -> bool {
        self.0.matches(channel.as_str())
    }
}

impl FromStr for ChannelPattern {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_fit = |b: u8| b.is_ascii_alphanumeric() || b"._:-*".contains(&b);
        // Each star costs a pass over the name
        let stars = text.bytes().filter(|b| *b == b'*').count();
        if (1..=128).contains(&text.len()) && (1..=4).contains(&stars) && text.bytes().all(is_fit) {
            return Ok(Self(WildMatch::new(text)));
        }
        Err(NameError::new("channel pattern", "be a channel name with 1 to 4 stars in it, such as orders.*", text))
    }
}

impl fmt::Display for ChannelPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A name of a queue or channel in which `*` may stand for any characters, or none: what a key may use.
#[derive(Debug, Clone, PartialEq)]
pub struct NamePattern(WildMatch);

impl NamePattern {
    /// Whether the pattern matches a name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }

    /// Whether every name that `text`, a name or a pattern, matches is matched by this pattern too. It may say no where
    /// the answer is yes, never the reverse: what matches a star as a character matches all that the star stands for.
    #[must_use]
    pub fn covers(&self, text: &str) -> bool {
        self.0.matches(text)
    }
}

impl FromStr for NamePattern {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_fit = |b: u8| b.is_ascii_alphanumeric() || b"._:-*".contains(&b);
        let stars = text.bytes().filter(|b| *b == b'*').count();
        if (1..=128).contains(&text.len()) && stars <= 4 && text.bytes().all(is_fit) {
            return Ok(Self(WildMatch::new(text)));
        }
        Err(NameError::new("pattern", "be a name with up to 4 stars in it, such as orders or orders.*", text))
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_of_names_covers_another_only_if_it_matches_all_that_the_other_does() {
        let pattern: NamePattern = "orders.*".parse().expect("a pattern");
        for (text, is_covered) in [
            ("orders.new", true),
            ("orders.*", true),
            ("orders.eu.*", true),
            ("orders.*.eu", true),
            ("orders*", false),
            ("*", false),
            ("*.orders.x", false),
        ] {
            assert_eq!(pattern.covers(text), is_covered, "{text}");
        }
        let exact: NamePattern = "orders".parse().expect("a name");
        assert!(exact.matches("orders") && !exact.matches("orders.x") && !exact.covers("order*"));
        assert!("*".parse::<NamePattern>().is_ok_and(|all| all.covers("*") && all.matches("a")));
        for bad in ["", "a b", "*****", "a?", "{a}"] {
            assert!(bad.parse::<NamePattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_star_stands_for_any_characters_and_nothing_else_is_special() {
        let pattern: ChannelPattern = "orders.*".parse().expect("a pattern");
        for (name, fits) in [("orders.new", true), ("orders.a.b", true), ("ordersxnew", false), ("orders", false)] {
            assert_eq!(pattern.matches(&name.parse().expect("a name")), fits, "{name}");
        }
        for bad in ["", "orders", "a?*", "*****", "a b*", "[a]*", "{*}"] {
            assert!(bad.parse::<ChannelPattern>().is_err(), "{bad}");
        }
    }
}
