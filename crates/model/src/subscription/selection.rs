//! The channels of a subscription, by name and by pattern.

use serde::{Deserialize, Serialize};

use common::{channel_pattern::ChannelPattern, name::ChannelName};

/// Most names and patterns of one subscription.
pub const MAX_SELECTED_CHANNELS: usize = 100;

/// Names and patterns, at least one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct ChannelSelection {
    names: Vec<ChannelName>,
    patterns: Vec<ChannelPattern>,
}

impl ChannelSelection {
    /// Whether it contains a channel.
    #[must_use]
    pub fn matches(&self, channel: &ChannelName) -> bool {
        self.names.contains(channel) || self.patterns.iter().any(|pattern| pattern.matches(channel))
    }

    /// Its only channel, if it can never contain another.
    #[must_use]
    pub fn single_channel(&self) -> Option<&ChannelName> {
        match (self.names.as_slice(), self.patterns.as_slice()) {
            ([name], []) => Some(name),
            _ => None,
        }
    }
}

impl TryFrom<Vec<String>> for ChannelSelection {
    type Error = String;

    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        if !(1..=MAX_SELECTED_CHANNELS).contains(&texts.len()) {
            return Err(format!("must have 1 to {MAX_SELECTED_CHANNELS} channels or patterns, got {}", texts.len()));
        }
        let mut selection = Self { names: Vec::new(), patterns: Vec::new() };
        for text in texts {
            if text.contains('*') {
                let pattern: ChannelPattern = text.parse().map_err(|error| format!("{error}"))?;
                if !selection.patterns.contains(&pattern) {
                    selection.patterns.push(pattern);
                }
            } else {
                let name: ChannelName = text.parse().map_err(|error| format!("{error}"))?;
                if !selection.names.contains(&name) {
                    selection.names.push(name);
                }
            }
        }
        Ok(selection)
    }
}

impl From<ChannelSelection> for Vec<String> {
    fn from(selection: ChannelSelection) -> Self {
        let names = selection.names.iter().map(ToString::to_string);
        names.chain(selection.patterns.iter().map(ToString::to_string)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(texts: &[&str]) -> Result<ChannelSelection, String> {
        texts.iter().map(ToString::to_string).collect::<Vec<_>>().try_into()
    }

    #[test]
    fn names_and_patterns_select_channels() {
        let some = selection(&["invoices", "orders.*", "invoices"]).expect("allowed");
        for (name, fits) in [("invoices", true), ("orders.new", true), ("orders", false), ("invoices.new", false)] {
            assert_eq!(some.matches(&name.parse().expect("a name")), fits, "{name}");
        }
        assert_eq!(Vec::from(some.clone()), ["invoices", "orders.*"], "once each");
        assert_eq!(some.single_channel(), None);
        assert_eq!(selection(&["a"]).expect("allowed").single_channel().map(ChannelName::as_str), Some("a"));
    }

    #[test]
    fn others_are_refused() {
        assert!(selection(&[]).expect_err("none").contains("1 to 100"));
        assert!(selection(&["a"; 101]).expect_err("too many").contains("1 to 100"));
        assert!(selection(&["galley:epoch"]).expect_err("ours").contains("galley:"));
        assert!(selection(&["a b*"]).expect_err("a blank").contains("channel pattern"));
    }
}
