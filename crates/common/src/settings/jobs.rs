//! Jobs, and what makes them: workflows, cron, the list bridge. Limits of single queues.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    SettingError, YEAR_MS,
    declare::{Section, section},
    error::invalid_value,
    kinds::{Kind, QUEUE_TABLE, bytes, millis, number, optional, parse_value, switch, text, text_with},
};
use crate::{
    name::{JobType, MAX_PARTITIONS, QueueName},
    rate::Rate,
};

/// The shortest lease. A shorter one is over before it is renewed, when the machine or the network is slow for a moment.
pub const MIN_LEASE_MS: u64 = 1000;
/// The largest `workflows.max_jobs`: one script call writes all jobs of a workflow.
pub const MAX_WORKFLOW_JOBS: u64 = 1000;

section! {
    /// Jobs in every service.
    pub struct JobSettings = "jobs" {
        /// Lease of a job that queue-worker runs: after this long without a renewal another worker gets the job. A
        /// shorter lease recovers faster from a lost worker. It must exceed the longest pause of a worker or of Redis.
        "lease_ms" => lease: Duration = millis(MIN_LEASE_MS..=86_400_000, 30_000);
        /// Lease of a job that is claimed over HTTP, unless the job or the claim sets another.
        "pull_lease_ms" => pull_lease: Duration = millis(MIN_LEASE_MS..=604_800_000, 1_800_000);
        /// Crash budget: workers that may be lost while they run a job. The next loss discards the job.
        "crash_budget" => crash_budget: u32 = number(0..=1000, 3);
        /// What happens to a job that failed for good, unless its retry policy has `on_exhaustion`: `discard`, or
        /// `dead_letter` to list it among the dead letters too. Either way it can be retried while it can be looked up.
        "on_exhaustion" => on_exhaustion: OnExhaustion = text("discard or dead_letter", "discard");
        /// Longest attempt of a job without `timeout_ms`: then the attempt fails, and the retry policy applies. A queue can
        /// have its own. A claim over HTTP that asks for a longer lease gets it, and so does an endpoint that answered 202.
        "attempt_timeout_ms" => attempt_timeout: Duration = millis(1..=604_800_000, 3_600_000);
        /// Longest attempt of any job, whatever its `timeout_ms`, its queue or a claim over HTTP asks for. A queue can have
        /// its own.
        "max_attempt_timeout_ms" => max_attempt_timeout: Duration = millis(1..=604_800_000, 604_800_000);
        /// How long a completed, cancelled or discarded job can be looked up.
        "result_ttl_ms" => result_ttl: Duration = millis(1000..=YEAR_MS, 86_400_000);
        /// Whether a job that succeeded can still be looked up with what the client sent (`args`, `meta`, options). Without
        /// it only a job that asks (`keep_envelope`), failed once, or is unique, limited or part of a workflow keeps that:
        /// the others take a quarter of the memory.
        "keep_envelope" => keep_envelope: bool = switch(false);
        /// How long a dead letter is kept.
        "dead_letter_ttl_ms" => dead_letter_ttl: Duration = millis(1000..=YEAR_MS, 2_592_000_000);
        /// Dead letters that a queue keeps. The oldest are removed first.
        "dead_letter_max" => dead_letter_max: u64 = number(1..=10_000_000, 10_000);
        /// Discarded jobs that a queue lists for searches, as long as they are kept, and as many cancelled ones. The oldest
        /// leave the list first.
        "discarded_max" => discarded_max: u64 = number(1..=10_000_000, 100_000);
        /// Completed jobs that a queue lists for searches, as long as they are kept, about. Each takes some forty bytes of
        /// memory more.
        "completed_max" => completed_max: u64 = number(1..=10_000_000, 100_000);
        /// Largest result of a job.
        "result_limit_bytes" => result_limit_bytes: usize = bytes(1024..=64 << 20, 1 << 20);
        /// Queues that may exist. A job for one more is refused.
        "max_queues" => max_queues: u64 = number(1..=65_536, 10_000);
        /// Job events that are kept, about; on a cluster in each of eight streams. Raise it if clients that reconnect miss events.
        "events_max" => events_max: u64 = number(100..=10_000_000, 10_000);
        /// Whether the start of an attempt is an event too. That makes half as many events again.
        "started_events" => started_events: bool = switch(false);
        /// Lines that a job's handlers can log: the oldest are dropped first. 0 keeps none.
        "log_lines_max" => log_lines_max: usize = number(0..=100_000, 1000);
        /// Longest text of such a line. A longer one is cut.
        "log_line_bytes" => log_line_bytes: usize = bytes(16..=65_536, 1000);
        /// Length of the list of workers beyond which programs that claim over HTTP are not added to it. They still get
        /// jobs.
        "max_pull_workers" => max_pull_workers: u64 = number(1..=1_000_000, 10_000);
    }
}

/// What happens to a job that has no attempts left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExhaustion {
    /// It is discarded.
    Discard,
    /// It is discarded and listed among the dead letters.
    DeadLetter,
}

impl FromStr for OnExhaustion {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "discard" => Ok(Self::Discard),
            "dead_letter" => Ok(Self::DeadLetter),
            other => Err(format!("{other:?} is neither discard nor dead_letter")),
        }
    }
}

section! {
    /// Workflows, jobs that depend on each other: chains, groups, batches, DAGs.
    pub struct WorkflowSettings = "workflows" {
        /// Jobs in one workflow, those of workflows in it among them, without callbacks.
        "max_jobs" => max_jobs: usize = number(1..=MAX_WORKFLOW_JOBS, 1000);
        /// Size of all results that a workflow keeps and passes on. A result beyond it is replaced by a reference to
        /// its job.
        "results_limit_bytes" => results_limit_bytes: u64 = bytes(65_536..=64 << 20, 4 << 20);
        /// How often maintenance resumes workflows whose progress was interrupted. It resumes their creation within
        /// five seconds.
        "check_ms" => check_interval: Duration = millis(100..=3_600_000, 60_000);
    }
}

section! {
    /// Limits of single queues, by name. `PUT /ojs/v1/queues/{queue}/limits` changes concurrency, rate and priority aging at run time.
    pub(super) struct QueueSection = "queues.<queue>" {
        /// Jobs that may wait in the queue. An enqueue beyond it is answered with 429. Jobs that become available later
        /// (scheduled, retried, released) and elements of the bridged list still enter.
        "max_depth" => max_depth: Option<u64> = optional(number(1..=1_000_000_000, 1), "demo.max_depth = 10");
        /// Jobs of the queue that run at a time, in all workers together. 0 stops the queue.
        "concurrency" => concurrency: Option<u32> = optional(number(0..=1_000_000, 0), "reports.concurrency = 2");
        /// Jobs of the queue that may start in each `rate_period_ms`. The limit is a token bucket that starts full: right
        /// after a pause a period can have up to twice as many starts, less with `rate_burst`, none with `rate_strict`.
        "rate_limit" => rate_limit: Option<u32> = optional(number(1..=1_000_000, 1), "mail.rate_limit = 100");
        /// Period of `rate_limit`; 1000 if absent.
        "rate_period_ms" => rate_period_ms: Option<u64> =
            optional(Kind { unit: "Milliseconds", ..number(1..=86_400_000, 1000) }, "mail.rate_period_ms = 60000");
        /// Jobs of the queue that may start at once after a pause, at most `rate_limit`, which is the default.
        "rate_burst" => rate_burst: Option<u32> = optional(number(1..=1_000_000, 1), "mail.rate_burst = 1");
        /// Whether no period of `rate_period_ms`, wherever it begins, has more than `rate_limit` starts. Then
        /// `rate_limit` is 1000 at most.
        "rate_strict" => rate_strict: Option<bool> = optional(switch(false), "mail.rate_strict = true");
        /// How much earlier a job counts as arrived for each step of its priority; jobs start in the order of that. A job of a
        /// lower priority waits for that long per step at most, however many others come. Strictly by priority if absent.
        "priority_aging_ms" => priority_aging_ms: Option<u64> = optional(
            Kind { unit: "Milliseconds", ..number(1..=604_800_000, 60_000) },
            "mail.priority_aging_ms = 60000",
        );
        /// Partitions of the queue: each has a slot of its own in a Redis Cluster, and an order of its own. The number can be
        /// raised here or with `galley queues partitions`, never lowered: the largest one of all processes holds.
        "partitions" => partitions: Option<u16> = optional(number(1..=MAX_PARTITIONS.into(), 1), "mail.partitions = 8");
        /// Longest attempt of the queue's jobs without `timeout_ms`; `jobs.attempt_timeout_ms` if absent.
        "attempt_timeout_ms" => attempt_timeout_ms: Option<u64> = optional(
            Kind { unit: "Milliseconds", ..number(1..=604_800_000, 3_600_000) },
            "video.attempt_timeout_ms = 43200000",
        );
        /// Longest attempt of any job of the queue; `jobs.max_attempt_timeout_ms` if absent.
        "max_attempt_timeout_ms" => max_attempt_timeout_ms: Option<u64> = optional(
            Kind { unit: "Milliseconds", ..number(1..=604_800_000, 604_800_000) },
            "mail.max_attempt_timeout_ms = 60000",
        );
    }
}

/// Limits of one queue.
#[derive(Debug, Clone, Copy, Default)]
pub struct QueueLimits {
    /// Jobs that may wait.
    pub max_depth: Option<u64>,
    /// Jobs that may run at a time.
    pub concurrency: Option<u32>,
    /// Jobs that may start in a period.
    pub rate: Option<Rate>,
    /// How much earlier a job counts as arrived for each step of its priority.
    pub priority_aging: Option<Duration>,
    /// Its partitions, at least.
    pub partitions: Option<u16>,
    /// The longest attempt of its jobs that ask for nothing.
    pub attempt_timeout: Option<Duration>,
    /// The longest attempt of any of its jobs.
    pub max_attempt_timeout: Option<Duration>,
}

impl QueueLimits {
    /// Whether each of this number of partitions gets a share of every limit.
    #[must_use]
    pub fn have_shares(&self, partitions: u16) -> bool {
        let (partitions, concurrency) = (u64::from(partitions), self.concurrency.filter(|max| *max > 0));
        let rate = self.rate.map(|rate| u64::from(rate.limit.min(rate.burst)));
        let least = self.max_depth.into_iter().chain(concurrency.map(u64::from)).chain(rate).min();
        least.is_none_or(|least| least >= partitions)
    }
}

pub(super) fn read_queues(root: &mut Section) -> Result<BTreeMap<QueueName, QueueLimits>, SettingError> {
    let queues = root.entries("queues", QueueSection::read)?.into_iter().map(|(name, queue)| {
        let period_ms = queue.rate_period_ms.unwrap_or(1000);
        let rate = queue.rate_limit.map(|limit| Rate {
            limit,
            period_ms,
            burst: queue.rate_burst.unwrap_or(limit),
            is_strict: queue.rate_strict.unwrap_or(false),
        });
        if let Some(rate) = rate.filter(|rate| rate.burst > rate.limit) {
            let key = format!("queues.{name}.rate_burst");
            return Err(invalid_value(&key, "at most rate_limit", rate.burst));
        }
        if let Some(rate) = rate.filter(|rate| rate.is_strict && rate.limit > Rate::MAX_STRICT_LIMIT) {
            let key = format!("queues.{name}.rate_limit");
            return Err(invalid_value(&key, "at most 1000 if rate_strict is true", rate.limit));
        }
        let limits = QueueLimits {
            partitions: queue.partitions,
            max_depth: queue.max_depth,
            concurrency: queue.concurrency,
            rate,
            priority_aging: queue.priority_aging_ms.map(Duration::from_millis),
            attempt_timeout: queue.attempt_timeout_ms.map(Duration::from_millis),
            max_attempt_timeout: queue.max_attempt_timeout_ms.map(Duration::from_millis),
        };
        let key = format!("queues.{name}.partitions");
        if let Some(partitions) = limits.partitions.filter(|partitions| !limits.have_shares(*partitions)) {
            let must =
                "at most max_depth, concurrency (unless that is 0), rate_limit and rate_burst, which partitions share";
            return Err(invalid_value(&key, must, partitions));
        }
        let queue = parse_value("queues", &name, QUEUE_TABLE)?;
        if name.starts_with("sub.") && limits.partitions.is_some_and(|partitions| partitions > 1) {
            return Err(invalid_value(&key, "1, because one process takes the jobs of a subscription", "more"));
        }
        Ok((queue, limits))
    });
    queues.collect()
}

section! {
    /// Cron: jobs that a schedule creates.
    pub struct CronSettings = "cron" {
        /// Cron entries that may exist.
        "max_entries" => max_entries: u64 = number(1..=100_000, 10_000);
        /// After an outage: the number of missed runs of an entry that are run late. The newest ones are.
        "catch_up_max" => catch_up_max: usize = number(1..=100, 1);
        /// Age of the oldest missed run that is run late.
        "catch_up_window_ms" => catch_up_window: Duration = millis(10_000..=604_800_000, 3_600_000);
    }
}

section! {
    /// The list bridge: elements of a Redis list become jobs. The original demo's producers push onto such a list, and
    /// any other program can.
    pub struct BridgeSettings = "bridge" {
        /// Redis key of the list. Empty: no bridge.
        "list" => list: String = text_with(LIST_KEY, "task:prodcons:queue", |key, list| {
            if list.starts_with("galley:") || list.len() > 512 || list.chars().any(char::is_control) {
                return Err(invalid_value(key, LIST_KEY, format_args!("{list:?}")));
            }
            Ok(list)
        });
        /// Queue of the jobs.
        "queue" => queue: QueueName = text("a queue name (^[a-z0-9][a-z0-9.-]*$)", "prodcons");
        /// Type of the jobs.
        "job_type" => job_type: JobType = text("a job type such as demo.task", "demo.task");
    }
}

const LIST_KEY: &str = "a Redis key of at most 512 bytes that does not start with \"galley:\"";
