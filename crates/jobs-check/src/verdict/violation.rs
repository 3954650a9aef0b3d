//! What can be wrong.

use std::fmt;

use serde::Serialize;

use crate::plan::PlannedJobKind;

/// A promise that was broken, or a run that shows nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "violation", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "their text below says what the members are")]
pub enum JobsViolation {
    Lost { key: u32, id: String },
    NotTerminal { id: String, state: String },
    WrongState { id: String, kind: PlannedJobKind, state: String, code: String },
    WrongWorkflow { request: u32, state: String },
    WrongResult { id: String, attempt: u32, newest: u32 },
    CountedTwice { queue: String, counted: u64, jobs: u64 },
    Changed { id: String, state: String, then: String },
    TwoAnswers { request: u32, ids: Vec<String> },
    TwoJobs { key: u32, ids: Vec<String> },
    Refused { request: u32, status: u16 },
    NeverAnswered { request: u32 },
    ConflictAccepted { request: u32 },
    RanRefused { key: u32, id: String },
    RanCancelled { id: String },
    CronRanTwice { run: String, jobs: usize },
    UnexplainedDuplicate { id: String, first: String, second: String },
    RanTogether { group: String, limit: usize, ids: Vec<String> },
    OutOfOrder { group: String, earlier: u32, later: u32 },
    TooManyStarts { group: String, starts: usize, within_ms: u64 },
    EqualJobs { group: String, ids: Vec<String> },
    StepTooEarly { request: u32, step: u32 },
    NeverStruck { fault: String },
    SlowRecovery { fault: String, after_ms: u64 },
}

impl JobsViolation {
    /// Whether a machine that is slow enough can cause it: a lease runs out while nobody gets a processor, a claimed job begins
    /// long after its cancellation, a fault passes before anything meets it.
    #[must_use]
    pub fn may_be_slowness(&self) -> bool {
        matches!(
            self,
            Self::UnexplainedDuplicate { .. }
                | Self::RanCancelled { .. }
                | Self::RanTogether { .. }
                | Self::OutOfOrder { .. }
                | Self::TooManyStarts { .. }
                | Self::NeverStruck { .. }
                | Self::SlowRecovery { .. }
        )
    }
}

impl fmt::Display for JobsViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { key, id } => write!(f, "job {key} ({id}) was acknowledged and is lost"),
            Self::NotTerminal { id, state } => write!(f, "job {id} is still {state}"),
            Self::WrongState { id, kind, state, code } => write!(f, "job {id} ({kind:?}) ended as {state} ({code})"),
            Self::WrongWorkflow { request, state } => write!(f, "the workflow of request {request} is {state}"),
            Self::WrongResult { id, attempt, newest } => {
                write!(f, "job {id} has the result of attempt {attempt}, and attempt {newest} began")
            }
            Self::CountedTwice { queue, counted, jobs } => {
                write!(f, "{queue} counts {counted} completed jobs, and has {jobs}")
            }
            Self::Changed { id, state, then } => {
                write!(f, "job {id} was {state} and then {then}, or has another result")
            }
            Self::TwoAnswers { request, ids } => write!(f, "request {request} was answered with {}", ids.join(" and ")),
            Self::TwoJobs { key, ids } => write!(f, "job {key} ran as {}", ids.join(" and ")),
            Self::Refused { request, status } => write!(f, "request {request} was refused with {status}"),
            Self::NeverAnswered { request } => write!(f, "request {request} was never answered"),
            Self::ConflictAccepted { request } => {
                write!(f, "the key of request {request} was accepted with another body")
            }
            Self::RanRefused { key, id } => write!(f, "job {key} ({id}) ran and must not"),
            Self::RanCancelled { id } => write!(f, "job {id} began after its cancellation was acknowledged"),
            Self::CronRanTwice { run, jobs } => write!(f, "the run {run} of a cron entry made {jobs} jobs"),
            Self::UnexplainedDuplicate { id, first, second } => {
                write!(f, "job {id} ran twice and no fault explains it: {first}, then {second}")
            }
            Self::RanTogether { group, limit, ids } => {
                write!(f, "more than {limit} of {group} ran at once: {}", ids.join(", "))
            }
            Self::OutOfOrder { group, earlier, later } => {
                write!(f, "of {group}, request {later} began before request {earlier}")
            }
            Self::TooManyStarts { group, starts, within_ms } => {
                write!(f, "of {group}, {starts} began within {within_ms} ms")
            }
            Self::EqualJobs { group, ids } => {
                write!(f, "of the equal jobs {group} two ran at once: {}", ids.join(", "))
            }
            Self::StepTooEarly { request, step } => {
                write!(f, "step {step} of the workflow of request {request} began before what it follows had ended")
            }
            Self::NeverStruck { fault } => write!(f, "a planned fault never struck: {fault}"),
            Self::SlowRecovery { fault, after_ms } => {
                write!(f, "{after_ms} ms after the end of this, fewer jobs ended than before it: {fault}")
            }
        }
    }
}
