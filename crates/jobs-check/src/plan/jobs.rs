//! The requests of a run: jobs of every kind, for every way to run a job.

use rand::{
    Rng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Groups of jobs that share a key, or are the same to `unique`.
const GROUPS: u32 = 3;
/// How long jobs run that are longer than a lease.
const LONG_MS: std::ops::Range<u32> = 3500..4500;

/// The kind of a planned request: which options its jobs have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlannedJobKind {
    /// A job without options.
    Plain,
    /// A job with a priority.
    Priority,
    /// A job for later.
    Scheduled,
    /// A job that fails at first.
    Retried,
    /// A job that always fails.
    Exhausted,
    /// A job that fails until it was redriven from the dead letters.
    Redriven,
    /// A job that may expire before it starts.
    Expiring,
    /// A job that is never activated, so it must expire.
    Expired,
    /// A job that is refused while an equal one is there.
    UniqueReject,
    /// A job instead of which an equal one is answered.
    UniqueIgnore,
    /// One at a time, in order.
    Ordered,
    /// Two at a time.
    Keyed,
    /// A few per second.
    RateLimited,
    /// A job that is cancelled long before it is due.
    Cancelled,
    /// A job that is cancelled while it runs, if that is not too late.
    Stopped,
    /// Many jobs in one request.
    Batch,
    /// A request that is sent again although it was answered.
    Repeated,
    /// A request whose key comes again with another body.
    Conflicting,
    /// One job after the other.
    Chain,
    /// Jobs side by side.
    Group,
    /// Jobs side by side, and one when they are over.
    WorkflowBatch,
}

impl PlannedJobKind {
    /// Each of them.
    pub const ALL: [Self; 21] = [
        Self::Plain,
        Self::Priority,
        Self::Scheduled,
        Self::Retried,
        Self::Exhausted,
        Self::Redriven,
        Self::Expiring,
        Self::Expired,
        Self::UniqueReject,
        Self::UniqueIgnore,
        Self::Ordered,
        Self::Keyed,
        Self::RateLimited,
        Self::Cancelled,
        Self::Stopped,
        Self::Batch,
        Self::Repeated,
        Self::Conflicting,
        Self::Chain,
        Self::Group,
        Self::WorkflowBatch,
    ];

    /// Whether the request makes a workflow.
    #[must_use]
    pub fn is_workflow(self) -> bool {
        matches!(self, Self::Chain | Self::Group | Self::WorkflowBatch)
    }

    /// Whether the answer may be another job.
    #[must_use]
    pub fn is_unique(self) -> bool {
        matches!(self, Self::UniqueReject | Self::UniqueIgnore)
    }

    /// How many of its jobs may run at once, if jobs of a group share a limit.
    #[must_use]
    pub fn concurrency(self) -> Option<usize> {
        match self {
            Self::Ordered => Some(1),
            Self::Keyed => Some(2),
            _ => None,
        }
    }
}

/// Who runs a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobRunner {
    /// A handler in a queue-worker.
    Rust,
    /// A worker in Python that pulls.
    Pull,
    /// An endpoint.
    Push,
    /// A program.
    Command,
}

impl JobRunner {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Rust, Self::Pull, Self::Push, Self::Command];

    /// The queue of its jobs.
    #[must_use]
    pub fn queue(self) -> &'static str {
        match self {
            Self::Rust => "check.rust",
            Self::Pull => "check.pull",
            Self::Push => "check.push",
            Self::Command => "check.command",
        }
    }

    /// The type of its jobs.
    #[must_use]
    pub fn job_type(self) -> &'static str {
        self.queue()
    }
}

/// What a handler does with a job. It stands in the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobBehaviour {
    /// How long it runs.
    pub run_ms: u32,
    /// The first attempts, which fail.
    pub failures: u32,
    /// It fails as long as there is no file that says otherwise.
    pub fails_until_redriven: bool,
}

/// A job.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedJob {
    /// The number by which histories know it.
    pub key: u32,
    /// Who runs it.
    pub runner: JobRunner,
    /// What happens when it runs.
    pub behaviour: JobBehaviour,
}

/// A request with one or more jobs.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedRequest {
    /// Its number.
    pub number: u32,
    /// When it is sent, in ms from the start.
    pub at_ms: u64,
    /// What it asks for.
    pub kind: PlannedJobKind,
    /// Jobs of a group share a limit or are equal.
    pub group: u32,
    /// A number that its options may follow from.
    pub detail: u32,
    /// Its jobs, in their order.
    pub jobs: Vec<PlannedJob>,
}

impl PlannedRequest {
    /// The path that it is sent to.
    #[must_use]
    pub fn path(&self) -> &'static str {
        match self.kind {
            PlannedJobKind::Batch => "/ojs/v1/jobs/batch",
            kind if kind.is_workflow() => "/ojs/v1/workflows",
            _ => "/ojs/v1/jobs",
        }
    }

    /// Its body, the same each time that it is sent.
    #[must_use]
    pub fn body(&self) -> Value {
        let jobs: Vec<Value> = self.jobs.iter().map(|job| self.job_body(job)).collect();
        match self.kind {
            PlannedJobKind::Batch => json!({ "jobs": jobs }),
            PlannedJobKind::Group => json!({ "type": "group", "jobs": jobs }),
            PlannedJobKind::Chain => json!({ "type": "chain", "steps": jobs }),
            PlannedJobKind::WorkflowBatch => {
                let (members, callback) = jobs.split_at(jobs.len() - 1);
                json!({ "type": "batch", "jobs": members, "callbacks": { "on_complete": callback[0] } })
            }
            _ => jobs[0].clone(),
        }
    }

    /// The key that says that it is the same request.
    #[must_use]
    pub fn idempotency_key(&self, seed: u64) -> String {
        format!("check-{seed}-{}", self.number)
    }

    fn job_body(&self, job: &PlannedJob) -> Value {
        let mut options = json!({ "queue": job.runner.queue() });
        let (detail, group) = (self.detail, self.group);
        let retry = json!({ "max_attempts": 5, "initial_interval": "PT0.3S", "backoff_strategy": "constant" });
        let mut set = |name: &str, value: Value| options[name] = value;
        let unique = |on_conflict: &str| json!({ "keys": ["args"], "args_keys": ["2"], "on_conflict": on_conflict });
        match self.kind {
            PlannedJobKind::Priority => set("priority", json!(i64::from(detail % 21) - 10)),
            PlannedJobKind::Scheduled => set("scheduled_at", json!(format!("+PT{}S", 1 + detail % 4))),
            PlannedJobKind::Retried => set("retry", retry),
            PlannedJobKind::Exhausted | PlannedJobKind::Redriven => {
                let last = if self.kind == PlannedJobKind::Redriven { "dead_letter" } else { "discard" };
                let retry = json!({ "max_attempts": 2, "initial_interval": "PT0.3S", "on_exhaustion": last });
                set("retry", retry);
            }
            PlannedJobKind::Expiring => set("expires_at", json!(format!("+PT{}S", 1 + detail % 3))),
            PlannedJobKind::Expired => {
                set("expires_at", json!(format!("+PT{}S", 1 + detail % 3)));
                set("pending", json!(true));
            }
            PlannedJobKind::UniqueReject => set("unique", unique("reject")),
            PlannedJobKind::UniqueIgnore => set("unique", unique("ignore")),
            PlannedJobKind::Ordered => {
                set("rate_limit", json!({ "key": format!("ordered-{group}"), "concurrency": 1 }));
            }
            PlannedJobKind::Keyed => set("rate_limit", json!({ "key": format!("keyed-{group}"), "concurrency": 2 })),
            PlannedJobKind::RateLimited => {
                let rate = json!({ "limit": 4, "period": "PT1S" });
                set("rate_limit", json!({ "key": format!("rated-{group}"), "rate": rate }));
            }
            PlannedJobKind::Cancelled => set("scheduled_at", json!("+PT10M")),
            _ => {}
        }
        // What `unique` compares is the third argument. It differs by kind
        let same = format!("{:?}-{group}", self.kind);
        json!({ "type": job.runner.job_type(), "args": [job.key, job.behaviour, same], "options": options })
    }
}

/// Requests at random times, of every kind at least once.
pub(super) fn plan_requests(random: &mut StdRng, rate: u32, length_ms: u64) -> Vec<PlannedRequest> {
    let kinds = PlannedJobKind::ALL;
    let count = usize::try_from(u64::from(rate) * length_ms / 1000).unwrap_or(0).max(kinds.len());
    let mut times: Vec<u64> = (0..count).map(|_| random.random_range(0..length_ms.max(1))).collect();
    times.sort_unstable();
    let mut chosen: Vec<PlannedJobKind> = kinds.to_vec();
    // Half of them are plain ones
    chosen.extend((kinds.len()..count).map(|_| {
        if random.random_bool(0.4) { PlannedJobKind::Plain } else { *kinds.choose(random).unwrap_or(&kinds[0]) }
    }));
    chosen.shuffle(random);
    let (mut requests, mut key) = (Vec::with_capacity(count), 0);
    for ((at_ms, kind), number) in times.into_iter().zip(chosen).zip(0..) {
        let jobs = match kind {
            PlannedJobKind::Batch => random.random_range(2..8),
            kind if kind.is_workflow() => 3,
            _ => 1,
        };
        let group = random.random_range(0..GROUPS);
        // A limit holds within a queue, and jobs are equal within one
        let runner = plan_runner(random, number);
        let jobs = (0..jobs)
            .map(|_| {
                key += 1;
                let runner = if jobs > 1 { plan_runner(random, key) } else { runner };
                let runner = if shares_a_queue(kind) { JobRunner::Rust } else { runner };
                PlannedJob { key, runner, behaviour: plan_behaviour(random, kind, runner) }
            })
            .collect();
        requests.push(PlannedRequest { number, at_ms, kind, group, detail: random.random_range(0..1000), jobs });
    }
    requests
}

/// Plain short jobs, one after the other at even times.
pub(super) fn plan_steady_requests(random: &mut StdRng, rate: u32, length_ms: u64) -> Vec<PlannedRequest> {
    let count = u32::try_from(u64::from(rate) * length_ms / 1000).unwrap_or(u32::MAX);
    let requests = (0..count).map(|number| {
        let behaviour = JobBehaviour { run_ms: random.random_range(0..50), failures: 0, fails_until_redriven: false };
        let jobs = vec![PlannedJob { key: number + 1, runner: plan_runner(random, number), behaviour }];
        let at_ms = u64::from(number) * 1000 / u64::from(rate);
        PlannedRequest { number, at_ms, kind: PlannedJobKind::Plain, group: 0, detail: 0, jobs }
    });
    requests.collect()
}

/// Jobs that limit one another must be in one queue.
fn shares_a_queue(kind: PlannedJobKind) -> bool {
    kind.is_unique() || kind.concurrency().is_some() || kind == PlannedJobKind::RateLimited
}

/// The first ones are one of each.
fn plan_runner(random: &mut StdRng, number: u32) -> JobRunner {
    if let Some(runner) = JobRunner::ALL.get(number as usize) {
        return *runner;
    }
    match random.random_range(0..100) {
        0..60 => JobRunner::Rust,
        60..85 => JobRunner::Pull,
        85..94 => JobRunner::Push,
        _ => JobRunner::Command,
    }
}

fn plan_behaviour(random: &mut StdRng, kind: PlannedJobKind, runner: JobRunner) -> JobBehaviour {
    let run_ms = match kind {
        PlannedJobKind::Stopped => random.random_range(1500..3000),
        PlannedJobKind::Ordered | PlannedJobKind::Keyed => random.random_range(5..150),
        // And some outlast their lease, so that it must be renewed
        _ if runner == JobRunner::Rust && random.random_bool(0.02) => random.random_range(LONG_MS),
        // Some are long enough that a fault meets them
        _ if random.random_bool(0.1) => random.random_range(500..2500),
        _ => random.random_range(0..120),
    };
    let failures = match kind {
        PlannedJobKind::Retried => random.random_range(1..4),
        PlannedJobKind::Exhausted => u32::MAX,
        _ => 0,
    };
    JobBehaviour { run_ms, failures, fails_until_redriven: kind == PlannedJobKind::Redriven }
}
