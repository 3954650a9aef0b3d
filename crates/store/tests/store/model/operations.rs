//! What the test does: random operations, each on one of the jobs that it makes sense for.

use std::time::Duration;

use model::job::RetryAdvice;
use proptest::{prelude::*, sample::select};

/// An operation. A `usize` picks one of the jobs that it is for; when there is none nothing is done.
#[derive(Debug, Clone)]
pub(super) enum ModelOp {
    /// What the others shrink to.
    Noop,
    Enqueue(ModelJobSpec),
    Claim {
        by: ModelClaimer,
        max: usize,
    },
    Complete(usize),
    Fail(usize, RetryAdvice),
    Release(usize),
    /// The worker vanishes, and the maintenance finds out.
    WorkerLost(usize),
    /// Any job, also one that is over.
    Cancel(usize),
    /// The time of a scheduled or retryable job comes.
    MakeDue(usize),
    Activate(usize),
    Redrive(usize),
    DeleteDeadLetter(usize),
    /// Somebody ends an attempt that is over, or that is somebody else's.
    Stale(usize, StaleAction),
    Pause(bool),
    Purge(Vec<&'static str>),
    /// The maintenance, which also finds nothing that cannot be.
    Maintenance,
}

/// Who claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ModelClaimer {
    Worker(usize),
    Pull,
}

/// What somebody does who comes late.
#[derive(Debug, Clone, Copy)]
pub(super) enum StaleAction {
    Complete,
    Fail,
    Release,
    WorkerLost,
    /// The attempt is the current one, but a client that ends it does not have it.
    WrongFence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ModelStart {
    Now,
    Scheduled,
    Pending,
}

/// A job to enqueue.
#[derive(Debug, Clone)]
pub(super) struct ModelJobSpec {
    pub(super) priority: i64,
    pub(super) start: ModelStart,
    /// One of a few ids, so that they are chosen again.
    pub(super) id: Option<u8>,
    /// Arguments that count for being the same, and what happens then.
    pub(super) unique: Option<(u8, &'static str)>,
    /// A key and how many jobs with it may be in streams.
    pub(super) limit: Option<(&'static str, u32)>,
    pub(super) max_attempts: u32,
    pub(super) dead_letter: bool,
    pub(super) own_lease: bool,
    pub(super) deadline: bool,
}

impl ModelJobSpec {
    pub(super) fn body(&self) -> String {
        let mut body = serde_json::json!({
            "type": "test.model", "args": [self.unique.map_or(0, |(args, _)| args)], "priority": self.priority,
            "retry": {
                "max_attempts": self.max_attempts, "initial_interval": "PT5H", "max_interval": "PT9H", "jitter": false,
                "on_exhaustion": if self.dead_letter { "dead_letter" } else { "discard" },
            },
        });
        match self.start {
            ModelStart::Now => {}
            ModelStart::Scheduled => body["scheduled_at"] = "+PT10H".into(),
            ModelStart::Pending => body["pending"] = true.into(),
        }
        if let Some(number) = self.id {
            body["id"] = format!("019539a4-b68c-7def-8000-0000000000{number:02x}").into();
        }
        if let Some((_, on_conflict)) = self.unique {
            body["unique"] = serde_json::json!({ "keys": ["args"], "on_conflict": on_conflict });
        }
        if let Some((key, concurrency)) = self.limit {
            body["rate_limit"] = serde_json::json!({ "key": key, "concurrency": concurrency });
        }
        if self.own_lease {
            body["visibility_timeout_ms"] = 3_600_000.into();
        }
        if self.deadline {
            body["total_timeout_ms"] = 500_000_000.into();
        }
        body.to_string()
    }
}

fn job_spec_strategy() -> impl Strategy<Value = ModelJobSpec> {
    let start =
        prop_oneof![6 => Just(ModelStart::Now), 1 => Just(ModelStart::Scheduled), 1 => Just(ModelStart::Pending)];
    let policies = select(vec!["reject", "ignore", "replace", "replace_except_schedule"]);
    let unique = prop_oneof![3 => Just(None), 1 => (0..3_u8, policies).prop_map(Some)];
    let limit = prop_oneof![2 => Just(None), 1 => (select(vec!["a", "b"]), 0..=2_u32).prop_map(Some)];
    let id = prop_oneof![4 => Just(None), 1 => (0..6_u8).prop_map(Some)];
    let flag = || prop_oneof![3 => Just(false), 1 => Just(true)];
    (-1..=1_i64, start, id, unique, limit, 1..=3_u32, any::<bool>(), flag(), flag()).prop_map(
        |(priority, start, id, unique, limit, max_attempts, dead_letter, own_lease, deadline)| ModelJobSpec {
            priority,
            start,
            id,
            unique,
            limit,
            max_attempts,
            dead_letter,
            own_lease,
            deadline,
        },
    )
}

pub(super) fn op_strategy() -> impl Strategy<Value = ModelOp> {
    let which = || any::<u16>().prop_map(usize::from);
    let by = prop_oneof![2 => (0..2_usize).prop_map(ModelClaimer::Worker), 1 => Just(ModelClaimer::Pull)];
    let late = select(vec![
        StaleAction::Complete,
        StaleAction::Fail,
        StaleAction::Release,
        StaleAction::WorkerLost,
        StaleAction::WrongFence,
    ]);
    let after = RetryAdvice::After(Duration::from_mins(1));
    let advice =
        select(vec![RetryAdvice::ByPolicy, RetryAdvice::ByPolicy, after, RetryAdvice::Never, RetryAdvice::Discard]);
    let states = select(vec![vec!["available"], vec!["scheduled"], vec!["retryable", "pending"]]);
    prop_oneof![
        1 => Just(ModelOp::Noop),
        30 => job_spec_strategy().prop_map(ModelOp::Enqueue),
        16 => (by, 1..=5_usize).prop_map(|(by, max)| ModelOp::Claim { by, max }),
        8 => which().prop_map(ModelOp::Complete),
        10 => (which(), advice).prop_map(|(which, advice)| ModelOp::Fail(which, advice)),
        4 => which().prop_map(ModelOp::Release),
        5 => which().prop_map(ModelOp::WorkerLost),
        6 => which().prop_map(ModelOp::Cancel),
        6 => which().prop_map(ModelOp::MakeDue),
        3 => which().prop_map(ModelOp::Activate),
        4 => which().prop_map(ModelOp::Redrive),
        2 => which().prop_map(ModelOp::DeleteDeadLetter),
        6 => (which(), late).prop_map(|(which, late)| ModelOp::Stale(which, late)),
        1 => Just(ModelOp::Pause(true)),
        3 => Just(ModelOp::Pause(false)),
        1 => states.prop_map(ModelOp::Purge),
        4 => Just(ModelOp::Maintenance),
    ]
}
