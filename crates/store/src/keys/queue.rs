//! The keys of a queue, and the names of attempts in them.

use common::{
    id::{EntryId, JobId},
    name::{LimitKey, Priority, QueueName},
};
use model::job::JobState;

/// The keys of one queue.
#[derive(Debug, Clone)]
pub struct QueueKeys {
    prefix: String,
}

impl QueueKeys {
    /// The keys of that queue.
    #[must_use]
    pub fn new(queue: &QueueName) -> Self {
        Self { prefix: format!("galley:{{{}}}:", queue.stored()) }
    }

    /// Their common prefix.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Names of keys that only a queue that exists has.
    pub(crate) const LASTING: [&str; 9] =
        ["priorities", "due", "pending", "waiting_keys", "timers", "dead", "control", "active", "stats"];

    /// The keys that only a queue that exists has.
    #[must_use]
    pub fn lasting(&self) -> Vec<String> {
        let names = Self::LASTING.iter().map(|name| self.key(name));
        names.chain(Priority::all().map(|priority| self.stream(priority))).collect()
    }

    fn key(&self, name: &str) -> String {
        [&self.prefix, name].concat()
    }

    /// Priorities in use: a set.
    #[must_use]
    pub fn priorities(&self) -> String {
        self.key("priorities")
    }

    /// Waiting and running jobs of one priority: a stream with the consumer group `workers`.
    #[must_use]
    pub fn stream(&self, priority: Priority) -> String {
        format!("{}s:{priority}", self.prefix)
    }

    /// Attempts that need more than a pending entry (pulled, or with their own lease or limit): a hash by
    /// `<priority>:<entry>`.
    #[must_use]
    pub fn active(&self) -> String {
        self.key("active")
    }

    /// When the leases of those attempts expire: a sorted set.
    #[must_use]
    pub fn leases(&self) -> String {
        self.key("leases")
    }

    /// When scheduled and retryable jobs are due: a sorted set of ids.
    #[must_use]
    pub fn due(&self) -> String {
        self.key("due")
    }

    /// The record of a job that is not simply waiting for, or in, its first attempt: a hash.
    #[must_use]
    pub fn record(&self, id: &JobId) -> String {
        format!("{}j:{id}", self.prefix)
    }

    /// A finished job: a string with a TTL.
    #[must_use]
    pub fn result(&self, id: &JobId) -> String {
        format!("{}r:{id}", self.prefix)
    }

    /// The lines that the handlers of a job logged: a capped stream with a TTL.
    #[must_use]
    pub fn log(&self, id: &JobId) -> String {
        format!("{}log:{id}", self.prefix)
    }

    /// What the handlers of a job saved for its next attempt: a string with a TTL.
    #[must_use]
    pub fn checkpoint(&self, id: &JobId) -> String {
        format!("{}checkpoint:{id}", self.prefix)
    }

    /// The signals that came for a job: a list with a TTL.
    #[must_use]
    pub fn signals(&self, id: &JobId) -> String {
        format!("{}signals:{id}", self.prefix)
    }

    /// The chunks that the handlers of a job streamed: a capped stream with a TTL.
    #[must_use]
    pub fn output(&self, id: &JobId) -> String {
        format!("{}output:{id}", self.prefix)
    }

    /// That a batch of jobs was completed whose results are not stored: a string with a TTL.
    #[must_use]
    pub fn completed_batch(&self, priority: Priority, first: EntryId, count: usize) -> String {
        format!("{}completed:{priority}:{first}:{count}", self.prefix)
    }

    /// Dead letters: a sorted set of ids by time of death.
    #[must_use]
    pub fn dead_letters(&self) -> String {
        self.key("dead")
    }

    /// The newest discarded jobs, dead letters among them: a sorted set of ids by the time of their end.
    #[must_use]
    pub fn discarded(&self) -> String {
        self.key("discarded")
    }

    /// The newest cancelled jobs: a sorted set of ids by the time of their end.
    #[must_use]
    pub fn cancelled(&self) -> String {
        self.key("cancelled")
    }

    /// The list of jobs that ended the same way, unless they succeeded: those are in the index of completed ones.
    #[must_use]
    pub fn ended_list(&self, state: JobState) -> String {
        if state == JobState::Cancelled { self.cancelled() } else { self.discarded() }
    }

    /// The newest completed jobs: a stream of their ids, an entry for each call.
    #[must_use]
    pub fn completed_index(&self) -> String {
        self.key("completed_index")
    }

    /// Batches of elements of a list that became jobs here: a sorted set by time, with a TTL.
    #[must_use]
    pub fn bridged(&self, list: &str) -> String {
        format!("{}bridged:{list}", self.prefix)
    }

    /// Totals: a hash of counters.
    #[must_use]
    pub fn stats(&self) -> String {
        self.key("stats")
    }

    /// What is due at a time: a sorted set of `expire <id>`, `follow_up <id>`, `chosen_id <id>` and `key <key>`.
    #[must_use]
    pub fn timers(&self) -> String {
        self.key("timers")
    }

    /// Jobs that wait to be activated: a sorted set of ids by creation time.
    #[must_use]
    pub fn pending(&self) -> String {
        self.key("pending")
    }

    /// Whether the queue is paused or closed, and its limits: a hash.
    #[must_use]
    pub fn control(&self) -> String {
        self.key("control")
    }

    /// How many partitions share the queue's keys, unique jobs and chosen ids, if that is more than one: a string.
    #[must_use]
    pub fn key_partitions(&self) -> String {
        self.key("key_partitions")
    }

    /// Starts of the last period, if the queue has a strict rate: a sorted set by time.
    #[must_use]
    pub fn starts(&self) -> String {
        self.key("starts")
    }

    /// Starts of the last period, if a key has a strict rate: a sorted set by time.
    #[must_use]
    pub fn key_starts(&self, key: &LimitKey) -> String {
        format!("{}starts:{key}", self.prefix)
    }

    /// The job that holds a uniqueness fingerprint: a string with a TTL.
    #[must_use]
    pub fn uniqueness(&self, fingerprint: &str) -> String {
        format!("{}unique:{fingerprint}", self.prefix)
    }

    /// Keys with waiting jobs: a set.
    #[must_use]
    pub fn waiting_keys(&self) -> String {
        self.key("waiting_keys")
    }

    /// Jobs that wait for the limit of a key: a sorted set of ids.
    #[must_use]
    pub fn key_queue(&self, key: &LimitKey) -> String {
        format!("{}key_queue:{key}", self.prefix)
    }

    /// Jobs of a key that are in a stream: a sorted set of ids by admission time.
    #[must_use]
    pub fn admitted(&self, key: &LimitKey) -> String {
        format!("{}admitted:{key}", self.prefix)
    }

    /// The limit of a key and its remaining capacity: a hash.
    #[must_use]
    pub fn key_limit(&self, key: &LimitKey) -> String {
        format!("{}limit:{key}", self.prefix)
    }
}

/// The name of an attempt in the active hash and among the leases.
#[must_use]
pub fn attempt_name(priority: Priority, entry: EntryId) -> String {
    format!("{priority}:{entry}")
}

/// Parses the name of an attempt.
#[must_use]
pub fn parse_attempt_name(name: &str) -> Option<(Priority, EntryId)> {
    let (priority, entry) = name.split_once(':')?;
    Some((Priority::from_text(priority)?, entry.parse().ok()?))
}
