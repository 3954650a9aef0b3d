//! The position where a slice of the consistency check ended.

use std::{fmt, str::FromStr};

use crate::keys;

/// The phases of a queue's check, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CheckPhase {
    Streams,
    Due,
    Pending,
    Leases,
    Active,
    Timers,
    /// Records, key queues, and admitted jobs.
    Keys,
}

impl CheckPhase {
    const ALL: [Self; 7] =
        [Self::Streams, Self::Due, Self::Pending, Self::Leases, Self::Active, Self::Timers, Self::Keys];
    const NAMES: [&str; 7] = ["streams", "due", "pending", "leases", "active", "timers", "keys"];

    pub(super) fn next(self) -> Option<Self> {
        Self::ALL.get(self as usize + 1).copied()
    }
}

/// The position where a slice ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckCursor {
    pub(super) phase: CheckPhase,
    /// The position within the phase; empty at its start.
    pub(super) position: String,
    /// The number of the partition.
    partition: u16,
}

impl CheckCursor {
    /// The start of a check.
    #[must_use]
    pub fn start() -> Self {
        Self { phase: CheckPhase::Streams, position: String::new(), partition: 0 }
    }

    /// The number of the partition that it is in.
    #[must_use]
    pub fn partition(&self) -> u16 {
        self.partition
    }

    /// The same position in another partition.
    #[must_use]
    pub fn in_partition(self, partition: u16) -> Self {
        Self { partition, ..self }
    }

    /// The position after a page of this phase: `at` in it, or the start of the next.
    pub(super) fn after(phase: CheckPhase, at: Option<String>) -> Option<Self> {
        match at {
            Some(at) => Some(Self { phase, position: at, partition: 0 }),
            None => phase.next().map(|phase| Self { phase, ..Self::start() }),
        }
    }
}

impl fmt::Display for CheckCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", CheckPhase::NAMES[self.phase as usize], self.position)?;
        if self.partition > 0 { write!(f, "/{}", self.partition) } else { Ok(()) }
    }
}

/// A cursor that no report returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cursor must be one that an earlier answer gave")]
pub struct CheckCursorError;

impl FromStr for CheckCursor {
    type Err = CheckCursorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, at) = text.split_once('/').ok_or(CheckCursorError)?;
        let (at, partition) = at.split_once('/').unwrap_or((at, "0"));
        let partition = partition.parse().map_err(|_| CheckCursorError)?;
        let phase = CheckPhase::NAMES.iter().position(|known| *known == name).ok_or(CheckCursorError)?;
        let is_place = at.is_empty()
            || match CheckPhase::ALL[phase] {
                CheckPhase::Streams => keys::parse_attempt_name(at).is_some(),
                _ => at.parse::<u64>().is_ok(),
            };
        if is_place {
            Ok(Self { phase: CheckPhase::ALL[phase], position: at.to_owned(), partition })
        } else {
            Err(CheckCursorError)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_nothing_else_does() {
        for text in ["streams/", "streams/-5:12-0", "due/17", "keys/0", "keys/0/7"] {
            assert_eq!(text.parse::<CheckCursor>().map(|cursor| cursor.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "due", "due/x", "streams/5", "other/1", "streams/0:1-0 \r\n", "keys/0/x"] {
            assert_eq!(text.parse::<CheckCursor>(), Err(CheckCursorError), "{text}");
        }
    }
}
