//! Every key and channel of Galley, spelled here and nowhere else. `docs/redis.md` describes each; a test compares.
//!
//! Keys of a queue carry its name as hash tag, so that in a cluster they share a slot and one script may use them.

use crate::{
    id::{EntryId, JobId},
    name::{ChannelName, Priority, QueueName},
    redis::workers::WorkerKey,
};

/// The patterns of all keys and channels, as `docs/redis.md` lists them.
pub const PATTERNS: [&str; 19] = [
    "galley:queues",
    "galley:{<queue>}:priorities",
    "galley:{<queue>}:s:<priority>",
    "galley:{<queue>}:active",
    "galley:{<queue>}:leases",
    "galley:{<queue>}:due",
    "galley:{<queue>}:j:<id>",
    "galley:{<queue>}:r:<id>",
    "galley:{<queue>}:dead",
    "galley:{<queue>}:stats",
    "galley:id:<id>",
    "galley:bridge:{<list>}",
    "galley:{ch:<channel>}:m",
    "galley:events",
    "galley:workers",
    "galley:worker:<worker>",
    "galley:directive:<worker>",
    "galley:maintainer",
    "galley:wake",
];

/// The queues there are: a sorted set, name by tag.
pub const QUEUES: &str = "galley:queues";
/// What happened: a capped stream.
pub const EVENTS: &str = "galley:events";
/// The workers there are: a sorted set of ids, by when their last report stops counting.
pub const WORKERS: &str = "galley:workers";
/// Who does the upkeep: a string with a TTL.
pub const MAINTAINER: &str = "galley:maintainer";
/// Wake-up calls: a pub/sub channel, see [`super::jobs::wake`].
pub const WAKE: &str = "galley:wake";

/// The keys of one queue.
#[derive(Debug, Clone)]
pub struct QueueKeys {
    prefix: String,
}

impl QueueKeys {
    /// The keys of that queue.
    #[must_use]
    pub fn new(queue: &QueueName) -> Self {
        Self { prefix: format!("galley:{{{queue}}}:") }
    }

    fn key(&self, name: &str) -> String {
        [&self.prefix, name].concat()
    }

    /// Priorities in use: a set.
    #[must_use]
    pub fn priorities(&self) -> String {
        self.key("priorities")
    }

    /// Jobs of one priority that wait or run: a stream with the consumer group `workers`.
    #[must_use]
    pub fn stream(&self, priority: Priority) -> String {
        format!("{}s:{priority}", self.prefix)
    }

    /// Attempts that began elsewhere than in a queue-worker's first seconds: a hash, by `<priority>:<entry>`.
    #[must_use]
    pub fn active(&self) -> String {
        self.key("active")
    }

    /// When those attempts lapse: a sorted set.
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

    /// A job that is over: a string with a TTL.
    #[must_use]
    pub fn result(&self, id: &JobId) -> String {
        format!("{}r:{id}", self.prefix)
    }

    /// Dead letters: a sorted set of ids, by when they died.
    #[must_use]
    pub fn dead(&self) -> String {
        self.key("dead")
    }

    /// Totals: a hash of counters.
    #[must_use]
    pub fn stats(&self) -> String {
        self.key("stats")
    }
}

/// Which queue a client-chosen id went to: a string with a TTL.
#[must_use]
pub fn chosen_id(id: &JobId) -> String {
    format!("galley:id:{id}")
}

/// Elements on their way from a list to a queue: a list in the same slot.
#[must_use]
pub fn bridge(list: &str) -> String {
    format!("galley:bridge:{{{list}}}")
}

/// The history of a channel: a capped stream with a TTL.
#[must_use]
pub fn history(channel: &ChannelName) -> String {
    format!("galley:{{ch:{channel}}}:m")
}

/// What a worker reported last: a string with a TTL.
#[must_use]
pub fn worker(key: &WorkerKey) -> String {
    format!("galley:worker:{}", key.as_str())
}

/// What is asked of a worker: a string with a TTL.
#[must_use]
pub fn directive(key: &WorkerKey) -> String {
    format!("galley:directive:{}", key.as_str())
}

/// How an attempt is named in the active hash and among the leases.
#[must_use]
pub fn attempt(priority: Priority, entry: EntryId) -> String {
    format!("{priority}:{entry}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_is_in_the_document_and_the_document_has_no_other() {
        let document = include_str!("../../../../docs/redis.md");
        let documented: BTreeSet<&str> = document
            .lines()
            .filter_map(|line| line.strip_prefix("| `galley:"))
            .filter_map(|rest| rest.split('`').next())
            .collect();
        let spelled: BTreeSet<&str> = PATTERNS.iter().filter_map(|pattern| pattern.strip_prefix("galley:")).collect();
        assert_eq!(documented, spelled);
    }

    #[test]
    fn every_function_spells_one_of_the_patterns() {
        let queue = "q".parse().expect("a name");
        let id: JobId = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
        let keys = QueueKeys::new(&queue);
        let worker = "pull:w".parse().expect("a worker");
        let channel = "c".parse().expect("a name");
        let spelled = [
            keys.priorities(),
            keys.stream(Priority::default()),
            keys.active(),
            keys.leases(),
            keys.due(),
            keys.record(&id),
            keys.result(&id),
            keys.dead(),
            keys.stats(),
            chosen_id(&id),
            bridge("l"),
            history(&channel),
            QUEUES.to_owned(),
            EVENTS.to_owned(),
            WORKERS.to_owned(),
            super::worker(&worker),
            directive(&worker),
            MAINTAINER.to_owned(),
            WAKE.to_owned(),
        ];
        let filled: BTreeSet<String> = PATTERNS
            .iter()
            .map(|pattern| {
                pattern
                    .replace("<queue>", "q")
                    .replace("<priority>", "0")
                    .replace("<id>", &id.to_string())
                    .replace("<list>", "l")
                    .replace("<worker>", "pull:w")
                    .replace("<channel>", "c")
            })
            .collect();
        assert_eq!(filled, spelled.into_iter().collect());
    }
}
