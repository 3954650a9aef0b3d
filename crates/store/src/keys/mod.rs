//! Every key and channel of Galley, spelled here and nowhere else. `docs/redis.md` describes each; a test compares.
//!
//! Keys of a queue carry its name as hash tag, so that in a cluster they share a slot and one script may use them.

mod queue;

pub use self::queue::{QueueKeys, attempt_name, parse_attempt_name};
use crate::workers::key::WorkerKey;
use common::{
    id::{JobId, WorkflowId},
    name::{ChannelName, SubscriptionName, WorkerId},
};

/// The patterns of all keys and channels, as `docs/redis.md` lists them.
pub const KEY_PATTERNS: [&str; 46] = [
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
    "galley:{<queue>}:timers",
    "galley:{<queue>}:pending",
    "galley:{<queue>}:control",
    "galley:{<queue>}:unique:<fingerprint>",
    "galley:{<queue>}:waiting_keys",
    "galley:{<queue>}:key_queue:<key>",
    "galley:{<queue>}:admitted:<key>",
    "galley:{<queue>}:limit:<key>",
    "galley:{<queue>}:finished",
    "galley:id:<id>",
    "galley:idempotency:<fingerprint>",
    "galley:workflows",
    "galley:{wf:<id>}:w",
    "galley:bridge:{<list>}",
    "galley:channels",
    "galley:epoch",
    "galley:{ch:<channel>}:m",
    "galley:{ch:<channel>}:state",
    "galley:{ch:<channel>}:once:<seed>-<n>",
    "galley:{ch:<channel>}:live",
    "galley:{ch:<channel>}:sub:<name>",
    "galley:subscriptions",
    "galley:sub:<name>",
    "galley:sub:<name>:workers",
    "galley:sub:<name>:at:<instance>",
    "galley:probe:<gateway>",
    "galley:readers",
    "galley:readers:<gateway>",
    "galley:{cron}:entries",
    "galley:{cron}:next",
    "galley:events",
    "galley:workers",
    "galley:worker:<worker>",
    "galley:directive:<worker>",
    "galley:leader",
    "galley:notifications",
];

/// The queues there are: a sorted set, name by tag.
pub const QUEUES: &str = "galley:queues";
/// Workflows that are not over: a sorted set of ids, by when the upkeep looks at them next.
pub const WORKFLOWS: &str = "galley:workflows";
/// Cron entries: a hash, JSON by name.
pub const CRON_ENTRIES: &str = "galley:{cron}:entries";
/// When cron entries have to be looked at: a sorted set of names.
pub const CRON_NEXT: &str = "galley:{cron}:next";
/// The channels there are: a sorted set of names, by when they were last seen to be in use. Under the same name a pub/sub
/// channel: names that are new.
pub const CHANNELS: &str = "galley:channels";
/// Gateways that noted how many read channels there: a sorted set with a TTL, by when they did.
pub const READER_GATEWAYS: &str = "galley:readers";
/// Subscriptions: a hash, JSON by name. The field of no name says that there is such a list.
pub const SUBSCRIPTIONS: &str = "galley:subscriptions";
/// From when on messages are numbered anew, and of which data that is true: a string.
pub const EPOCH: &str = "galley:epoch";
/// What happened: a capped stream.
pub const EVENTS: &str = "galley:events";
/// The workers there are: a sorted set of ids, by when their last report stops counting.
pub const WORKERS: &str = "galley:workers";
/// Who does the upkeep: a string with a TTL.
pub const LEADER: &str = "galley:leader";
/// Wake-up calls: a pub/sub channel, see [`crate::connection::notification`].
pub const NOTIFICATIONS: &str = "galley:notifications";

/// Which queue a client-chosen id went to: a string with a TTL.
#[must_use]
pub fn client_job_id(id: &JobId) -> String {
    format!("galley:id:{id}")
}

/// What became of a request with that idempotency key: a string with a TTL.
#[must_use]
pub fn idempotency(fingerprint: &str) -> String {
    format!("galley:idempotency:{fingerprint}")
}

/// A workflow: a hash, with a TTL once it is over. A queue cannot be called `wf:...`.
#[must_use]
pub fn workflow(id: &WorkflowId) -> String {
    format!("galley:{{wf:{id}}}:w")
}

/// Elements on their way from a list to a queue: a list in the same slot.
#[must_use]
pub fn list_bridge(list: &str) -> String {
    format!("galley:bridge:{{{list}}}")
}

/// The history of a channel: a capped stream with a TTL.
#[must_use]
pub fn channel_history(channel: &ChannelName) -> String {
    format!("galley:{{ch:{channel}}}:m")
}

/// The epoch of a channel, and when it was last registered: a hash with a TTL.
#[must_use]
pub fn channel_state(channel: &ChannelName) -> String {
    format!("galley:{{ch:{channel}}}:state")
}

/// What became of the message that a request with an idempotency key publishes as its n-th: a string with a TTL.
#[must_use]
pub fn published_message(channel: &ChannelName, seed: u128, nth: usize) -> String {
    format!("galley:{{ch:{channel}}}:once:{seed:032x}-{nth}")
}

/// Messages with their positions, for gateways: a pub/sub channel.
#[must_use]
pub fn live_messages(channel: &ChannelName) -> String {
    format!("galley:{{ch:{channel}}}:live")
}

/// The channel whose messages a gateway hears there.
#[must_use]
pub fn channel_of_live_messages(name: &str) -> Option<ChannelName> {
    name.strip_prefix("galley:{ch:")?.strip_suffix("}:live")?.parse().ok()
}

/// What a gateway sends itself, to see whether it hears: a pub/sub channel.
#[must_use]
pub fn gateway_probe(gateway: &uuid::Uuid) -> String {
    format!("galley:probe:{}", gateway.simple())
}

/// How many read which channels at a gateway: a hash with a TTL.
#[must_use]
pub fn gateway_readers(gateway: &uuid::Uuid) -> String {
    format!("galley:readers:{}", gateway.simple())
}

/// What a worker reported last: a string with a TTL.
#[must_use]
pub fn worker_report(key: &WorkerKey) -> String {
    format!("galley:worker:{}", key.as_str())
}

/// What is asked of a worker: a string with a TTL.
#[must_use]
pub fn worker_directive(key: &WorkerKey) -> String {
    format!("galley:directive:{}", key.as_str())
}

/// Where a subscription is in a channel, and who delivers it in order: a hash with a TTL.
#[must_use]
pub fn subscription_cursor(channel: &ChannelName, subscription: &SubscriptionName) -> String {
    format!("galley:{{ch:{channel}}}:sub:{subscription}")
}

/// What became of a subscription's messages: a hash of figures.
#[must_use]
pub fn subscription_counters(subscription: &SubscriptionName) -> String {
    format!("galley:sub:{subscription}")
}

/// The workers of a subscription in order, or of a broadcast: a sorted set of names, by when each was there last.
#[must_use]
pub fn subscription_workers(subscription: &SubscriptionName) -> String {
    format!("galley:sub:{subscription}:workers")
}

/// Where one worker of a broadcast is: a hash with a TTL, positions by channel.
#[must_use]
pub fn broadcast_checkpoint(subscription: &SubscriptionName, instance: &WorkerId) -> String {
    format!("galley:sub:{subscription}:at:{}", instance.as_str())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use common::name::Priority;

    #[test]
    fn every_key_is_in_the_document_and_the_document_has_no_other() {
        let document = include_str!("../../../../docs/redis.md");
        let documented: BTreeSet<&str> = document
            .lines()
            .filter_map(|line| line.strip_prefix("| `galley:"))
            .filter_map(|rest| rest.split('`').next())
            .collect();
        let spelled: BTreeSet<&str> =
            KEY_PATTERNS.iter().filter_map(|pattern| pattern.strip_prefix("galley:")).collect();
        assert_eq!(documented, spelled);
    }

    #[test]
    fn every_function_spells_one_of_the_patterns() {
        let queue = "q".parse().expect("a name");
        let id: JobId = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
        let keys = QueueKeys::new(&queue);
        let worker = "pull:w".parse().expect("a worker");
        let channel = "c".parse().expect("a name");
        let key = "k".parse().expect("a key");
        let subscription = "n".parse().expect("a name");
        let spelled = [
            keys.priorities(),
            keys.stream(Priority::default()),
            keys.active(),
            keys.leases(),
            keys.due(),
            keys.record(&id),
            keys.result(&id),
            keys.dead_letters(),
            keys.stats(),
            keys.timers(),
            keys.pending(),
            keys.control(),
            keys.uniqueness("f"),
            keys.waiting_keys(),
            keys.key_queue(&key),
            keys.admitted(&key),
            keys.key_limit(&key),
            keys.finished(),
            idempotency("f"),
            client_job_id(&id),
            workflow(&id.to_string().parse().expect("an id")),
            WORKFLOWS.to_owned(),
            list_bridge("l"),
            channel_history(&channel),
            channel_state(&channel),
            published_message(&channel, 7, 0),
            live_messages(&channel),
            subscription_cursor(&channel, &subscription),
            SUBSCRIPTIONS.to_owned(),
            subscription_counters(&subscription),
            subscription_workers(&subscription),
            broadcast_checkpoint(&subscription, &"i".parse().expect("an instance")),
            gateway_probe(&uuid::Uuid::nil()),
            READER_GATEWAYS.to_owned(),
            gateway_readers(&uuid::Uuid::nil()),
            CHANNELS.to_owned(),
            EPOCH.to_owned(),
            QUEUES.to_owned(),
            CRON_ENTRIES.to_owned(),
            CRON_NEXT.to_owned(),
            EVENTS.to_owned(),
            WORKERS.to_owned(),
            super::worker_report(&worker),
            worker_directive(&worker),
            LEADER.to_owned(),
            NOTIFICATIONS.to_owned(),
        ];
        let filled: BTreeSet<String> = KEY_PATTERNS
            .iter()
            .map(|pattern| {
                pattern
                    .replace("<queue>", "q")
                    .replace("<priority>", "0")
                    .replace("<id>", &id.to_string())
                    .replace("<fingerprint>", "f")
                    .replace("<seed>-<n>", "00000000000000000000000000000007-0")
                    .replace("<key>", "k")
                    .replace("<list>", "l")
                    .replace("<worker>", "pull:w")
                    .replace("<channel>", "c")
                    .replace("<name>", "n")
                    .replace("<instance>", "i")
                    .replace("<gateway>", &"0".repeat(32))
            })
            .collect();
        assert_eq!(filled, spelled.into_iter().collect());
    }
}
