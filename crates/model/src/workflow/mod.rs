//! Workflows: jobs that depend on each other. A chain runs its jobs in sequence, a group in parallel. A batch is a
//! group with callbacks. In a DAG each job names those that it depends on.
//!
//! A member may be a workflow itself: one that the request describes, or a group with a job for each element of a result.
//!
//! Pure code: `request` checks a client's request, `nested` makes the workflows that steps are and `stored_step` is how they are stored, `steps` reads one that has steps with `depends_on`, `step_order` finds
//! its kind, `progress` decides which jobs must exist now and the state, `view` is what clients see. The store
//! (`store::workflows`) applies it.
//!
//! A job of a workflow has an index: the members count from 0 in the order of the request, the callbacks come after
//! them.

mod nested;
mod progress;
mod request;
mod request_checks;
mod step_order;
mod steps;
mod stored_step;
mod view;

use std::{fmt, str::FromStr};

pub use nested::{elements_of, gather_results};
pub use progress::{TerminalState, WorkflowPlan, WorkflowProgress, parents_of};
pub use request::{MemberWork, NewWorkflow, NewWorkflowMember};
pub use request_checks::MAX_WORKFLOW_DEPTH;
pub use stored_step::StoredStep;
pub use view::{NestedView, WorkflowJobView, WorkflowMemberId, WorkflowView, duplicate_message};

use common::{
    id::WorkflowId,
    name::{NameError, quoted},
};

/// What kind of workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkflowKind {
    /// In sequence; each job gets the results of those before it.
    Chain,
    /// In parallel.
    Group,
    /// In parallel, then callbacks, which get all results.
    Batch,
    /// Each job after those that it depends on, whose results it gets.
    Dag,
}

impl WorkflowKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Chain, Self::Group, Self::Batch, Self::Dag];

    /// The name in the interface and in Redis.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chain => "chain",
            Self::Group => "group",
            Self::Batch => "batch",
            Self::Dag => "dag",
        }
    }

    /// The kind with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The member of a request that lists its jobs.
    #[must_use]
    pub fn members_key(self) -> &'static str {
        if matches!(self, Self::Chain | Self::Dag) { "steps" } else { "jobs" }
    }
}

/// The state of a workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkflowState {
    /// Not finished.
    Running,
    /// Every job succeeded.
    Completed,
    /// A job did not succeed.
    Failed,
    /// A client cancelled it.
    Cancelled,
}

impl WorkflowState {
    /// The name in the interface and in Redis.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Running, Self::Completed, Self::Failed, Self::Cancelled].into_iter().find(|state| state.as_str() == name)
    }
}

impl fmt::Display for WorkflowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A job that a batch starts when all its members are finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchCallback {
    /// Always.
    Complete,
    /// When all of them succeeded.
    Success,
    /// When one of them did not succeed.
    Failure,
}

impl BatchCallback {
    /// All three, in the order in which they are started.
    pub const ALL: [Self; 3] = [Self::Complete, Self::Success, Self::Failure];

    /// The name in the interface.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "on_complete",
            Self::Success => "on_success",
            Self::Failure => "on_failure",
        }
    }

    /// Its offset after the members.
    #[must_use]
    pub fn offset(self) -> usize {
        match self {
            Self::Complete => 0,
            Self::Success => 1,
            Self::Failure => 2,
        }
    }
}

/// A member of a workflow: `<workflow id>:<index>` in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    /// The workflow.
    pub workflow: WorkflowId,
    /// The index of the job.
    pub index: u32,
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.workflow, self.index)
    }
}

impl FromStr for Membership {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        text.split_once(':')
            .and_then(|(workflow, index)| Some(Self { workflow: workflow.parse().ok()?, index: index.parse().ok()? }))
            .ok_or_else(|| NameError::new("membership", "be <workflow id>:<index>", &quoted(text)))
    }
}

/// The member of another workflow that a workflow is: `<workflow id>:<index>` in Redis, with `:<source>` behind it if it has a
/// job for each element of what that member returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParentStep {
    /// The other workflow and the index there.
    pub membership: Membership,
    /// The index of the member that returned the elements.
    pub source: Option<usize>,
}

impl fmt::Display for ParentStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.membership.fmt(f)?;
        self.source.map_or(Ok(()), |source| write!(f, ":{source}"))
    }
}

impl FromStr for ParentStep {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong =
            || NameError::new("step", "be <workflow id>:<index> or <workflow id>:<index>:<source>", &quoted(text));
        match text.rsplit_once(':').filter(|(front, _)| front.contains(':')) {
            None => Ok(Self { membership: text.parse().map_err(|_| wrong())?, source: None }),
            Some((membership, source)) => Ok(Self {
                membership: membership.parse().map_err(|_| wrong())?,
                source: Some(source.parse().map_err(|_| wrong())?),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_memberships_lead_back_to_what_they_stand_for() {
        for kind in WorkflowKind::ALL {
            assert_eq!(WorkflowKind::from_name(kind.as_str()), Some(kind));
        }
        let membership = Membership { workflow: WorkflowId::new(), index: 7 };
        assert_eq!(membership.to_string().parse(), Ok(membership));
        for bad in ["", "7", "x:7", &format!("{}:", membership.workflow), &format!("{}:-1", membership.workflow)] {
            assert!(bad.parse::<Membership>().is_err(), "{bad}");
            assert!(bad.parse::<ParentStep>().is_err(), "{bad}");
        }
        for source in [None, Some(3)] {
            let step = ParentStep { membership, source };
            assert_eq!(step.to_string().parse(), Ok(step));
        }
        assert!(format!("{membership}:x").parse::<ParentStep>().is_err());
    }
}
