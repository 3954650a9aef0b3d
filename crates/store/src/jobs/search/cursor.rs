//! Where a search continues: behind one candidate of one source.

use std::{fmt, str::FromStr};

use super::source::{After, SearchCandidate, Source, SourceGroup, SourceKind};
use crate::jobs::partitions::{parse_partition, write_partition};
use common::{name::QueueName, time::Millis};

/// Where a search continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchCursor {
    pub(super) group: SourceGroup,
    pub(super) at: Millis,
    pub(super) queue: QueueName,
    pub(super) kind: SourceKind,
    /// Which candidate of the source and the time.
    pub(super) tie: String,
}

impl SearchCursor {
    /// Behind that candidate.
    pub(super) fn behind(group: SourceGroup, source: &Source, candidate: &SearchCandidate) -> Self {
        Self { group, at: candidate.at, queue: source.queue.clone(), kind: source.kind, tie: candidate.tie.clone() }
    }

    /// Lets a source of the group continue here.
    pub(super) fn place(&self, source: &mut Source) {
        source.after = match source.order().cmp(&(&self.queue, self.kind)) {
            std::cmp::Ordering::Equal => After::Candidate { at: self.at, tie: self.tie.clone() },
            std::cmp::Ordering::Greater => After::Until(self.at),
            std::cmp::Ordering::Less => After::Until(self.at.saturating_sub(1)),
        };
    }
}

impl fmt::Display for SearchCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.kind, self.at, self.queue, self.tie)?;
        write_partition(f, &self.queue)
    }
}

impl FromStr for SearchCursor {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('/');
        let (kind, at, queue, tie) = (parts.next(), parts.next(), parts.next(), parts.next());
        let partition = parts.next();
        let kind: SourceKind = kind.and_then(|kind| kind.parse().ok()).ok_or(())?;
        let is_tie = |tie: &&str| {
            tie.len() <= 64 && tie.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b':'))
        };
        Ok(Self {
            group: kind.group(),
            at: at.and_then(|at| at.parse().ok()).ok_or(())?,
            queue: parse_partition(queue, partition)?,
            kind,
            tie: tie.filter(|_| parts.next().is_none()).filter(is_tie).ok_or(())?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_other_text_is_refused() {
        for text in ["due/5/q/019539a4-b68c-7def-8000-1a2b3c4d5e6f", "active:-3/5/a.b/5-1", "dead/0/q/", "dead/0/q//7"]
        {
            assert_eq!(text.parse::<SearchCursor>().map(|cursor| cursor.to_string()), Ok(text.to_owned()));
        }
        for bad in [
            "",
            "due/5/q",
            "due/x/q/1",
            "due/5/Q/1",
            "nothing/5/q/1",
            "due/5/q/1/0",
            "due/5/q/1/2/3",
            "due/5/q/*",
            "waiting:200/5/q/1",
        ] {
            assert!(bad.parse::<SearchCursor>().is_err(), "{bad}");
        }
    }
}
