//! What the test does: random operations, each on one of the jobs that it makes sense for.

use std::time::Duration;

use model::job::Advice;
use proptest::{prelude::*, sample::select};

/// An operation. A `usize` picks one of the jobs that it is for; when there is none nothing is done.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// What the others shrink to.
    Nothing,
    Enqueue(Spec),
    Claim {
        by: By,
        most: usize,
    },
    Complete(usize),
    Fail(usize, Advice),
    Requeue(usize),
    /// The worker vanishes, and the upkeep finds out.
    Crash(usize),
    /// Any job, also one that is over.
    Cancel(usize),
    /// The time of a scheduled or retryable job comes.
    Due(usize),
    Activate(usize),
    Redrive(usize),
    DeleteDeadLetter(usize),
    /// Somebody ends an attempt that is over, or that is somebody else's.
    Stale(usize, Late),
    Pause(bool),
    Purge(Vec<&'static str>),
    /// The upkeep, which also finds nothing that cannot be.
    Upkeep,
}

/// Who claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Worker(usize),
    Pull,
}

/// What somebody does who comes late.
#[derive(Debug, Clone, Copy)]
pub(super) enum Late {
    Complete,
    Fail,
    Requeue,
    Crash,
    /// The attempt is the current one, but whoever ends it does not have it.
    NotMine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Now,
    Scheduled,
    Pending,
}

/// A job to enqueue.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) priority: i64,
    pub(super) start: Start,
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

impl Spec {
    pub(super) fn body(&self) -> String {
        let mut body = serde_json::json!({
            "type": "test.model", "args": [self.unique.map_or(0, |(args, _)| args)], "priority": self.priority,
            "retry": {
                "max_attempts": self.max_attempts, "initial_interval": "PT5H", "max_interval": "PT9H", "jitter": false,
                "on_exhaustion": if self.dead_letter { "dead_letter" } else { "discard" },
            },
        });
        match self.start {
            Start::Now => {}
            Start::Scheduled => body["scheduled_at"] = "+PT10H".into(),
            Start::Pending => body["pending"] = true.into(),
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

fn a_spec() -> impl Strategy<Value = Spec> {
    let start = prop_oneof![6 => Just(Start::Now), 1 => Just(Start::Scheduled), 1 => Just(Start::Pending)];
    let policies = select(vec!["reject", "ignore", "replace", "replace_except_schedule"]);
    let unique = prop_oneof![3 => Just(None), 1 => (0..3_u8, policies).prop_map(Some)];
    let limit = prop_oneof![2 => Just(None), 1 => (select(vec!["a", "b"]), 0..=2_u32).prop_map(Some)];
    let id = prop_oneof![4 => Just(None), 1 => (0..6_u8).prop_map(Some)];
    let flag = || prop_oneof![3 => Just(false), 1 => Just(true)];
    (-1..=1_i64, start, id, unique, limit, 1..=3_u32, any::<bool>(), flag(), flag()).prop_map(
        |(priority, start, id, unique, limit, max_attempts, dead_letter, own_lease, deadline)| Spec {
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

pub(super) fn an_op() -> impl Strategy<Value = Op> {
    let which = || any::<u16>().prop_map(usize::from);
    let by = prop_oneof![2 => (0..2_usize).prop_map(By::Worker), 1 => Just(By::Pull)];
    let late = select(vec![Late::Complete, Late::Fail, Late::Requeue, Late::Crash, Late::NotMine]);
    let after = Advice::After(Duration::from_mins(1));
    let advice = select(vec![Advice::ByPolicy, Advice::ByPolicy, after, Advice::Never, Advice::Discard]);
    let states = select(vec![vec!["available"], vec!["scheduled"], vec!["retryable", "pending"]]);
    prop_oneof![
        1 => Just(Op::Nothing),
        30 => a_spec().prop_map(Op::Enqueue),
        16 => (by, 1..=5_usize).prop_map(|(by, most)| Op::Claim { by, most }),
        8 => which().prop_map(Op::Complete),
        10 => (which(), advice).prop_map(|(which, advice)| Op::Fail(which, advice)),
        4 => which().prop_map(Op::Requeue),
        5 => which().prop_map(Op::Crash),
        6 => which().prop_map(Op::Cancel),
        6 => which().prop_map(Op::Due),
        3 => which().prop_map(Op::Activate),
        4 => which().prop_map(Op::Redrive),
        2 => which().prop_map(Op::DeleteDeadLetter),
        6 => (which(), late).prop_map(|(which, late)| Op::Stale(which, late)),
        1 => Just(Op::Pause(true)),
        3 => Just(Op::Pause(false)),
        1 => states.prop_map(Op::Purge),
        4 => Just(Op::Upkeep),
    ]
}
