//! A place of one queue that has candidates of a search.

use std::{collections::VecDeque, fmt, str::FromStr};

use redis::Value;

use crate::keys::QueueKeys;
use common::{
    id::{EntryId, JobId},
    name::{Priority, QueueName},
    time::Millis,
};
use model::job::{JobFilter, JobState};

/// Which group of states a source belongs to: a search looks at one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SourceGroup {
    Active,
    Delayed,
    Available,
    Over,
}

/// What kind of place a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SourceKind {
    /// The jobs of a stream that workers have.
    Active(Priority),
    /// Those that are due at a time: scheduled and retryable ones.
    Due,
    /// Those that wait for activation.
    Pending,
    /// The jobs of a stream that nobody has claimed.
    Waiting(Priority),
    /// Those that wait for the limit of their key.
    KeyWaiting,
    /// Completed ones.
    Completed,
    /// Cancelled ones.
    Cancelled,
    /// Discarded ones.
    Discarded,
    /// Dead letters.
    DeadLetters,
}

/// A place of one queue.
pub(super) struct Source {
    pub(super) queue: QueueName,
    pub(super) keys: QueueKeys,
    pub(super) kind: SourceKind,
    /// The next candidates, newest first.
    pub(super) buffer: VecDeque<SearchCandidate>,
    /// Behind which candidate it continues.
    pub(super) after: After,
    /// Whether there are no more behind the buffer.
    pub(super) is_exhausted: bool,
}

/// Where a source continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum After {
    /// At its newest candidate.
    Start,
    /// At the first that is not newer than this time.
    Until(Millis),
    /// Behind this candidate.
    Candidate { at: Millis, tie: String },
}

impl SourceGroup {
    pub(super) const ALL: [Self; 4] = [Self::Active, Self::Delayed, Self::Available, Self::Over];

    /// Whether the group has a state that the filter wants.
    pub(super) fn has_state_of(self, filter: &JobFilter) -> bool {
        JobState::ALL.into_iter().any(|state| group_of(state) == self && filter.has_state(state))
    }
}

fn group_of(state: JobState) -> SourceGroup {
    match state {
        JobState::Active => SourceGroup::Active,
        JobState::Pending | JobState::Scheduled | JobState::Retryable => SourceGroup::Delayed,
        JobState::Available => SourceGroup::Available,
        JobState::Completed | JobState::Cancelled | JobState::Discarded => SourceGroup::Over,
    }
}

impl SourceKind {
    pub(super) fn group(self) -> SourceGroup {
        match self {
            Self::Active(_) => SourceGroup::Active,
            Self::Due | Self::Pending => SourceGroup::Delayed,
            Self::Waiting(_) | Self::KeyWaiting => SourceGroup::Available,
            Self::Completed | Self::Cancelled | Self::Discarded | Self::DeadLetters => SourceGroup::Over,
        }
    }

    /// The places that a group may have in every queue; streams differ by queue.
    pub(super) const OF_QUEUES: [Self; 7] = [
        Self::Due,
        Self::Pending,
        Self::KeyWaiting,
        Self::Completed,
        Self::Cancelled,
        Self::Discarded,
        Self::DeadLetters,
    ];

    /// Whether a job here has ended: then its result tells of it.
    pub(super) fn is_over(self) -> bool {
        self.group() == SourceGroup::Over
    }

    /// Whether jobs in that state are here. A job that left is found elsewhere.
    pub(super) fn has(self, state: JobState) -> bool {
        match self {
            Self::Active(_) => state == JobState::Active,
            Self::Due => matches!(state, JobState::Scheduled | JobState::Retryable),
            Self::Pending => state == JobState::Pending,
            Self::Waiting(_) | Self::KeyWaiting => state == JobState::Available,
            Self::Completed => state == JobState::Completed,
            Self::Cancelled => state == JobState::Cancelled,
            Self::Discarded | Self::DeadLetters => state == JobState::Discarded,
        }
    }

    pub(super) fn is_wanted_by(self, filter: &JobFilter) -> bool {
        let has_state = JobState::ALL.into_iter().any(|state| self.has(state) && filter.has_state(state));
        let is_dead = self == Self::DeadLetters;
        has_state && filter.is_dead_letter == is_dead
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active(priority) => write!(f, "active:{priority}"),
            Self::Due => f.write_str("due"),
            Self::Pending => f.write_str("pending"),
            Self::Waiting(priority) => write!(f, "waiting:{priority}"),
            Self::KeyWaiting => f.write_str("key"),
            Self::Completed => f.write_str("completed"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Discarded => f.write_str("discarded"),
            Self::DeadLetters => f.write_str("dead"),
        }
    }
}

impl FromStr for SourceKind {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text.split_once(':') {
            Some(("active", priority)) => Self::Active(Priority::from_text(priority).ok_or(())?),
            Some(("waiting", priority)) => Self::Waiting(Priority::from_text(priority).ok_or(())?),
            Some(_) => return Err(()),
            None => match text {
                "due" => Self::Due,
                "pending" => Self::Pending,
                "key" => Self::KeyWaiting,
                "completed" => Self::Completed,
                "cancelled" => Self::Cancelled,
                "discarded" => Self::Discarded,
                "dead" => Self::DeadLetters,
                _ => return Err(()),
            },
        })
    }
}

impl Source {
    /// A place from its newest candidate on.
    pub(super) fn new(queue: QueueName, keys: QueueKeys, kind: SourceKind) -> Self {
        Self { queue, keys, kind, buffer: VecDeque::new(), after: After::Start, is_exhausted: false }
    }

    /// The time of its next candidate.
    pub(super) fn next_at(&self) -> Option<Millis> {
        self.buffer.front().map(|candidate| candidate.at)
    }

    /// Takes its next candidate.
    pub(super) fn take(&mut self) -> Option<SearchCandidate> {
        let front = self.buffer.pop_front()?;
        let Found::CompletedJobs(ids) = &front.found else { return Some(front) };
        // The other jobs of the entry are of the same time
        for candidate in SearchCandidate::of_index_entry(&front.tie, front.at, ids).into_iter().rev() {
            self.buffer.push_front(candidate);
        }
        self.take()
    }

    /// The order of sources whose candidates have the same time.
    pub(super) fn order(&self) -> (&QueueName, SourceKind) {
        (&self.queue, self.kind)
    }
}

impl SourceKind {
    /// The sorted set of jobs that this place is, if it is one.
    pub(super) fn sorted_set(self, keys: &QueueKeys) -> String {
        match self {
            Self::Pending => keys.pending(),
            Self::Discarded => keys.discarded(),
            Self::Cancelled => keys.cancelled(),
            Self::DeadLetters => keys.dead_letters(),
            Self::Due | Self::Active(_) | Self::Waiting(_) | Self::KeyWaiting | Self::Completed => keys.due(),
        }
    }
}

/// What a source has of a job.
#[derive(Debug, Clone)]
pub(super) struct SearchCandidate {
    /// Since when it is there, or when it is due.
    pub(super) at: Millis,
    /// Tells candidates of the same time apart.
    pub(super) tie: String,
    /// What is known of it.
    pub(super) found: Found,
}

#[derive(Debug, Clone)]
pub(super) enum Found {
    /// Its id.
    Id(JobId),
    /// The ids of jobs that completed together, in base64, separated by spaces: an entry of the index of completed jobs,
    /// which is taken apart when it is its turn.
    CompletedJobs(String),
    /// Its stream entry.
    Entry(String, Value),
    /// Its stream entry, who has it, and for how many ms.
    Claimed(EntryId, String, i64),
}

impl SearchCandidate {
    /// Without a time, the one in the id counts.
    pub(super) fn of_id(id: String, at: Option<Millis>) -> Option<Self> {
        let parsed: JobId = id.parse().ok()?;
        let at = at.or_else(|| Millis::try_from(parsed.milliseconds()).ok())?;
        Some(Self { at, tie: id, found: Found::Id(parsed) })
    }

    /// The jobs of an entry of the index of completed jobs, in the order of the list.
    pub(super) fn of_index_entry(number: &str, at: Millis, ids: &str) -> Vec<Self> {
        // Programs from before wrote whole ids
        let parse = |text: &str| JobId::from_base64(text).or_else(|| text.parse().ok());
        let mut ids: Vec<JobId> = ids.split(' ').filter_map(parse).collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.into_iter().map(|id| Self { at, tie: format!("{number}:{id}"), found: Found::Id(id) }).collect()
    }
}

impl After {
    /// Whether a candidate of that time may come behind this place.
    pub(super) fn admits(&self, at: Millis) -> bool {
        match self {
            Self::Start => true,
            Self::Until(until) | Self::Candidate { at: until, .. } => at <= *until,
        }
    }

    /// Whether a candidate comes behind this place.
    pub(super) fn admits_tie(&self, at: Millis, tie: &str) -> bool {
        match self {
            Self::Candidate { at: last_at, tie: last } => (at, tie) < (*last_at, last.as_str()),
            _ => self.admits(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_index_may_hold_whole_ids_of_programs_from_before() {
        let [old, new] = ["019539a4-b68c-7def-8000-1a2b3c4d5e6f", "019539a4-b68d-7def-8000-1a2b3c4d5e6f"];
        let short = new.parse::<JobId>().expect("an id").to_base64();
        let found = SearchCandidate::of_index_entry("7", 1, &format!("{old} {short} damaged"));
        let ties: Vec<&str> = found.iter().map(|candidate| candidate.tie.as_str()).collect();
        assert_eq!(ties, [format!("7:{new}"), format!("7:{old}")], "newest first");
    }
}
