//! The position of a message in the history of its channel: `<epoch>-<sequence>`.
//!
//! The messages of an epoch have consecutive numbers from 0, so a reader sees whether a message is missing after a
//! position. An epoch is a time in milliseconds. A new epoch starts with a new history, or when Redis may have lost
//! messages.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use common::name::NameError;

/// A position in the history of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Position {
    /// When the epoch started, in milliseconds since 1970.
    pub epoch: u64,
    /// The number in its epoch, from 0.
    pub sequence: u64,
}

impl Position {
    /// Before every message: `0-0`.
    pub const START: Self = Self { epoch: 0, sequence: 0 };

    /// After every message.
    pub const MAX: Self = Self { epoch: u64::MAX, sequence: u64::MAX };

    /// The position of the next message in the same epoch.
    #[must_use]
    pub fn next(self) -> Self {
        Self { sequence: self.sequence.saturating_add(1), ..self }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.sequence)
    }
}

impl From<Position> for String {
    fn from(position: Position) -> Self {
        position.to_string()
    }
}

impl TryFrom<String> for Position {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl FromStr for Position {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        // Digits only: what parses as a number may also begin with a plus sign
        let number = |part: &str| part.parse().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit()));
        let parts = text.split_once('-');
        parts
            .and_then(|(epoch, sequence)| Some(Self { epoch: number(epoch)?, sequence: number(sequence)? }))
            .ok_or_else(|| NameError::new("position", "be the id of a message, such as 1764000000000-0", text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_back_and_anything_else_is_refused() {
        let position: Position = "1764000000000-17".parse().expect("a position");
        assert_eq!(position.to_string(), "1764000000000-17");
        assert!(Position::START < position && position < position.next());
        assert!(position.next() < Position { epoch: 1_764_000_000_001, sequence: 0 });
        for bad in ["", "1", "-", "1-", "-1", "1-2-3", "a-1", "+1-1", "1-+1", " 1-1", "99999999999999999999-0"] {
            assert!(bad.parse::<Position>().is_err(), "{bad:?}");
        }
    }
}
