//! Channels by pattern: `orders.*`.

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

#[cfg(test)]
mod tests {
    use super::*;

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
