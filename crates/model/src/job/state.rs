//! The eight states of the Open Job Spec and the transitions between them.
//!
//! ```text
//! pending ──activate──▶ available ◀──due── scheduled
//!                        │  ▲  ▲
//!                  claim │  │  └──due── retryable
//!                        ▼  │release      ▲
//!                      active ───retry────┘
//!                        ├──wait──▶ scheduled
//!                        ├──succeed──▶ completed
//!                        └──discard──▶ discarded ──redrive──▶ available ◀──redrive── cancelled
//! cancel: from every state that is not terminal; expire: from every state but active and the terminal ones
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits to be activated.
    Pending,
    /// Waits for its start time.
    Scheduled,
    /// Waits for a worker.
    Available,
    /// A worker runs it.
    Active,
    /// Succeeded.
    Completed,
    /// Failed, and waits for its next attempt.
    Retryable,
    /// Cancelled by request.
    Cancelled,
    /// Failed for good: no attempts left, an error that is not retried, or expired.
    Discarded,
}

/// An event that changes the state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobTransition {
    /// A pending job is activated.
    Activate,
    /// Its start or retry time is reached.
    Due,
    /// A worker claims it.
    Claim,
    /// The attempt succeeded.
    Succeed,
    /// The attempt failed and the job is retried.
    Retry,
    /// The attempt failed and the job is not retried.
    Discard,
    /// The attempt ended because the job waits for a signal or a time.
    Wait,
    /// The attempt ended without an outcome: the job was released, or its lease expired.
    Release,
    /// A client cancelled it.
    Cancel,
    /// It did not start before it expired.
    Expire,
    /// A client retries it: a discarded or cancelled job becomes available again.
    Redrive,
}

/// A transition that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {state} cannot be {}", transition.participle())]
pub struct InvalidTransition {
    /// The state the job is in.
    pub state: JobState,
    /// The event.
    pub transition: JobTransition,
}

impl JobState {
    /// All eight states.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Scheduled,
        Self::Available,
        Self::Active,
        Self::Completed,
        Self::Retryable,
        Self::Cancelled,
        Self::Discarded,
    ];

    /// The state after an event.
    ///
    /// # Errors
    /// The event is not possible in this state; nothing changes.
    pub fn after(self, event: JobTransition) -> Result<Self, InvalidTransition> {
        use JobState::{Active, Available, Cancelled, Completed, Discarded, Pending, Retryable, Scheduled};
        match (self, event) {
            (Pending, JobTransition::Activate) | (Scheduled | Retryable, JobTransition::Due) => Ok(Available),
            (Active, JobTransition::Release) | (Discarded | Cancelled, JobTransition::Redrive) => Ok(Available),
            (Available, JobTransition::Claim) => Ok(Active),
            (Active, JobTransition::Wait) => Ok(Scheduled),
            (Active, JobTransition::Succeed) => Ok(Completed),
            (Active, JobTransition::Retry) => Ok(Retryable),
            (Active, JobTransition::Discard) => Ok(Discarded),
            (Pending | Scheduled | Available | Active | Retryable, JobTransition::Cancel) => Ok(Cancelled),
            (Pending | Scheduled | Available | Retryable, JobTransition::Expire) => Ok(Discarded),
            (state, event) => Err(InvalidTransition { state, transition: event }),
        }
    }

    /// Whether the job is finished: completed, cancelled or discarded.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled | Self::Discarded)
    }

    /// The name in the interface and in Redis.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Scheduled => "scheduled",
            Self::Available => "available",
            Self::Active => "active",
            Self::Completed => "completed",
            Self::Retryable => "retryable",
            Self::Cancelled => "cancelled",
            Self::Discarded => "discarded",
        }
    }

    /// The state with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl JobTransition {
    fn participle(self) -> &'static str {
        match self {
            Self::Activate => "activated",
            Self::Due => "made available",
            Self::Claim => "claimed",
            Self::Succeed => "acknowledged",
            Self::Retry => "retried",
            Self::Discard => "discarded",
            Self::Wait => "made to wait",
            Self::Release => "released",
            Self::Cancel => "cancelled",
            Self::Expire => "expired",
            Self::Redrive => "retried by a client",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    const TRANSITIONS: [JobTransition; 11] = [
        JobTransition::Activate,
        JobTransition::Due,
        JobTransition::Claim,
        JobTransition::Succeed,
        JobTransition::Retry,
        JobTransition::Discard,
        JobTransition::Wait,
        JobTransition::Release,
        JobTransition::Cancel,
        JobTransition::Expire,
        JobTransition::Redrive,
    ];

    fn any_transition() -> impl Strategy<Value = JobTransition> {
        select(TRANSITIONS.to_vec())
    }

    #[test]
    fn every_state_has_a_name_that_leads_back_to_it() {
        for state in JobState::ALL {
            assert_eq!(JobState::from_name(state.as_str()), Some(state));
            assert_eq!(serde_json::to_string(&state).expect("encodes"), format!("\"{state}\""));
        }
    }

    #[test]
    fn every_job_that_is_not_over_can_be_cancelled_and_no_other() {
        for state in JobState::ALL {
            assert_eq!(state.after(JobTransition::Cancel).is_ok(), !state.is_terminal(), "{state}");
        }
    }

    #[test]
    fn only_an_active_job_can_be_acknowledged() {
        for state in JobState::ALL {
            for event in [JobTransition::Succeed, JobTransition::Retry, JobTransition::Discard, JobTransition::Release]
            {
                assert_eq!(state.after(event).is_ok(), state == JobState::Active, "{state} {event:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_leaves_a_terminal_state_but_a_redrive(events in proptest::collection::vec(any_transition(), 0..60)) {
            let mut state = JobState::Available;
            for event in events {
                match state.after(event) {
                    Ok(next) => {
                        prop_assert!(!state.is_terminal() || event == JobTransition::Redrive);
                        // A job starts only by being claimed, and only when available
                        prop_assert_eq!(next == JobState::Active, event == JobTransition::Claim);
                        state = next;
                    }
                    Err(conflict) => prop_assert_eq!(conflict, InvalidTransition { state, transition: event }),
                }
            }
        }
    }
}
