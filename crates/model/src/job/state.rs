//! The eight states of the Open Job Spec and the only ways between them.
//!
//! ```text
//! pending ──activate──▶ available ◀──due── scheduled
//!                        │  ▲  ▲
//!                  claim │  │  └──due── retryable
//!                        ▼  │release      ▲
//!                      active ───retry────┘
//!                        ├──succeed──▶ completed
//!                        └──discard──▶ discarded ──redrive──▶ available
//! cancel: from every state that is not terminal; expire: from every state but active and the terminal ones
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Staged; waits to be activated.
    Pending,
    /// Waits for its start time.
    Scheduled,
    /// Waits for a worker.
    Available,
    /// One worker has it.
    Active,
    /// Ended well.
    Completed,
    /// Failed, and waits for its next attempt.
    Retryable,
    /// Ended by request.
    Cancelled,
    /// Ended badly: attempts used up, not to be retried, or expired.
    Discarded,
}

/// What can happen to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobTransition {
    /// A pending job is let go.
    Activate,
    /// Its start or retry time has come.
    Due,
    /// A worker takes it.
    Claim,
    /// The attempt succeeded.
    Succeed,
    /// The attempt failed and another follows.
    Retry,
    /// The attempt failed and none follows.
    Discard,
    /// The attempt was given up without an outcome: handed back, or its lease ran out.
    Release,
    /// Somebody called it off.
    Cancel,
    /// It was not started in time.
    Expire,
    /// A dead letter is tried again.
    Redrive,
}

/// A change of state that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {state} cannot be {}", transition.participle())]
pub struct InvalidTransition {
    /// The state the job is in.
    pub state: JobState,
    /// What was asked for.
    pub transition: JobTransition,
}

impl JobState {
    /// All eight.
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
    /// The event cannot happen in this state; nothing changes.
    pub fn after(self, event: JobTransition) -> Result<Self, InvalidTransition> {
        use JobState::{Active, Available, Cancelled, Completed, Discarded, Pending, Retryable, Scheduled};
        match (self, event) {
            (Pending, JobTransition::Activate) | (Scheduled | Retryable, JobTransition::Due) => Ok(Available),
            (Active, JobTransition::Release) | (Discarded, JobTransition::Redrive) => Ok(Available),
            (Available, JobTransition::Claim) => Ok(Active),
            (Active, JobTransition::Succeed) => Ok(Completed),
            (Active, JobTransition::Retry) => Ok(Retryable),
            (Active, JobTransition::Discard) => Ok(Discarded),
            (Pending | Scheduled | Available | Active | Retryable, JobTransition::Cancel) => Ok(Cancelled),
            (Pending | Scheduled | Available | Retryable, JobTransition::Expire) => Ok(Discarded),
            (state, event) => Err(InvalidTransition { state, transition: event }),
        }
    }

    /// Completed, cancelled and discarded jobs are over.
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

    /// The state of that name.
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
            Self::Release => "released",
            Self::Cancel => "cancelled",
            Self::Expire => "expired",
            Self::Redrive => "redriven",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    const TRANSITIONS: [JobTransition; 10] = [
        JobTransition::Activate,
        JobTransition::Due,
        JobTransition::Claim,
        JobTransition::Succeed,
        JobTransition::Retry,
        JobTransition::Discard,
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
