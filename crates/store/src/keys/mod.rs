//! Every key and pub/sub channel of Galley is spelled here and nowhere else. `docs/redis.md` describes each; a test
//! compares the two.
//!
//! A queue's keys have its name as hash tag, so that in a cluster they share a slot and one script may use them.

mod queue;
mod stored_key;
mod topics;

use std::borrow::Cow;

pub(crate) use self::stored_key::StoredKey;
pub use self::{
    queue::{QueueKeys, attempt_name, parse_attempt_name},
    topics::TopicNames,
};
use crate::{slots, workers::key::WorkerKey};
use common::{
    id::{JobId, WorkflowId},
    name::{ChannelName, SubscriptionName, WorkerId},
};

/// The patterns of all keys and channels, as `docs/redis.md` lists them.
pub const KEY_PATTERNS: [&str; 90] = [
    "galley:queues",
    "galley:{<queue>}:priorities",
    "galley:{<queue>}:s:<priority>",
    "galley:{<queue>}:active",
    "galley:{<queue>}:leases",
    "galley:{<queue>}:due",
    "galley:{<queue>}:j:<id>",
    "galley:{<queue>}:r:<id>",
    "galley:{<queue>}:log:<id>",
    "galley:{<queue>}:checkpoint:<id>",
    "galley:{<queue>}:output:<id>",
    "galley:{<queue>}:signals:<id>",
    "galley:{<queue>}:completed:<priority>:<entry>:<n>",
    "galley:{<queue>}:dead",
    "galley:{<queue>}:discarded",
    "galley:{<queue>}:cancelled",
    "galley:{galley:workers}:silent",
    "galley:maintenance_mode",
    "galley:{<queue>}:completed_index",
    "galley:{<queue>}:stats",
    "galley:{<queue>}:timers",
    "galley:{<queue>}:pending",
    "galley:{<queue>}:control",
    "galley:{<queue>}:key_partitions",
    "galley:{<queue>}:unique:<fingerprint>",
    "galley:{<queue>}:waiting_keys",
    "galley:{<queue>}:key_queue:<key>",
    "galley:{<queue>}:admitted:<key>",
    "galley:{<queue>}:limit:<key>",
    "galley:<db>:{<queue>}:finished",
    "galley:<db>:{<queue>}:output",
    "galley:{<queue>}:starts",
    "galley:{<queue>}:starts:<key>",
    "galley:id:<id>",
    "galley:idempotency:<fingerprint>",
    "galley:workflows",
    "galley:{wf:<id>}:w",
    "galley:bridge:{<list>}",
    "galley:bridge:{<list>}:batches",
    "galley:{<queue>}:bridged:<list>",
    "galley:channels",
    "galley:epoch",
    "galley:{<tag>}:epoch",
    "galley:{ch:<channel>}:m",
    "galley:{ch:<channel>}:state",
    "galley:{ch:<channel>}:once:<seed>-<n>",
    "galley:<db>:{ch:<channel>}:live",
    "galley:{ch:<channel>}:members",
    "galley:{ch:<channel>}:gateways",
    "galley:<db>:{ch:<channel>}:presence",
    "galley:{ch:<channel>}:sub:<name>",
    "galley:subscriptions",
    "galley:sub:<name>",
    "galley:sub:<name>:workers",
    "galley:sub:<name>:attempts:<outcome>",
    "galley:push:<rule>:attempts:<outcome>",
    "galley:push_rules",
    "galley:sub:<name>:at:<instance>",
    "galley:<db>:probe:<process>",
    "galley:<db>:process_questions",
    "galley:<db>:process_answers:<number>",
    "galley:readers",
    "galley:readers:<gateway>",
    "galley:{api_keys}:keys",
    "galley:{api_keys}:uses",
    "galley:{cron}:entries",
    "galley:{cron}:next",
    "galley:events",
    "galley:{<tag>}:events",
    "galley:workers",
    "galley:worker:<worker>",
    "galley:directive:<worker>",
    "galley:audit",
    "galley:session:<fingerprint>",
    "galley:usage:<kind>:<access>",
    "galley:leader",
    "galley:{galley:leader}:clock",
    "galley:<db>:notifications",
    "galley:<db>:channels",
    "galley:write_check",
    "galley:health_check",
    "galley:confirmation:<process>",
    "galley:{<tag>}:confirmation:<process>",
    "galley:log_level",
    "galley:leader_details",
    "galley:<db>:log_level",
    "galley:encryption",
    "galley:{statistics}:flushes",
    "galley:{statistics}:queues",
    "galley:{statistics}:history:<series>",
];

/// The queues: a sorted set of names by tag.
pub const QUEUES: &str = "galley:queues";
/// Unfinished workflows: a sorted set of ids by the time of maintenance's next check.
pub const WORKFLOWS: &str = "galley:workflows";
/// API keys: a hash of JSON by id, without secrets.
pub const API_KEYS: &str = "galley:{api_keys}:keys";
/// When each API key was last used: a hash of times by id.
pub const API_KEY_USES: &str = "galley:{api_keys}:uses";
/// Cron entries: a hash of JSON by name.
pub const CRON_ENTRIES: &str = "galley:{cron}:entries";
/// The next check of each cron entry: a sorted set of names.
pub const CRON_NEXT: &str = "galley:{cron}:next";
/// The channels: a sorted set of names by the time they were last in use.
pub const CHANNELS: &str = "galley:channels";
/// Gateways that publish reader counts: a sorted set with a TTL, by the time they last did.
pub const READER_GATEWAYS: &str = "galley:readers";
/// Subscriptions: a hash of JSON by name. The unnamed field marks that the list exists.
pub const SUBSCRIPTIONS: &str = "galley:subscriptions";
/// The epoch of message positions, and the data it belongs to: a string.
pub const EPOCH: &str = "galley:epoch";

/// The same in a cluster, for the channels of one slot.
#[must_use]
pub fn epoch_of_slot(slot: u16) -> String {
    format!("galley:{{{}}}:epoch", slots::tag_of_slot(slot))
}
/// Events: a capped stream.
pub const EVENTS: &str = "galley:events";

/// In how many streams a cluster has its events. Every process must know the same number.
pub(crate) const EVENT_STREAMS: usize = 8;

/// The same in a cluster, the stream with a number below `EVENT_STREAMS`. Number 0 is the one of a server. The
/// others have slots at equal distances.
#[must_use]
pub fn events(stream: usize) -> Cow<'static, str> {
    if stream == 0 {
        return EVENTS.into();
    }
    let (first, count) = (usize::from(slots::slot_of(EVENTS.as_bytes())), usize::from(slots::SLOTS));
    let slot = (first + stream * count / EVENT_STREAMS) % count;
    format!("galley:{{{}}}:events", slots::tag_of_slot(u16::try_from(slot).unwrap_or_default())).into()
}
/// What was administered: a capped stream.
pub const AUDIT: &str = "galley:audit";
/// The workers: a sorted set of ids by the time their last report expires.
pub const WORKERS: &str = "galley:workers";

/// Workers that stopped reporting a short while ago: a sorted set of ids by when that was noticed. Its tag is the whole name
/// of the list of workers, so both share a slot.
pub const SILENT_WORKERS: &str = "galley:{galley:workers}:silent";

/// Why and since when no queue hands out jobs: a string with JSON.
pub const MAINTENANCE_MODE: &str = "galley:maintenance_mode";
/// Who does the maintenance: a string with a TTL.
pub const LEADER: &str = "galley:leader";
/// More about it, for people: a hash.
pub const LEADER_DETAILS: &str = "galley:leader_details";
/// The keys that sealed what is stored: a hash of a sealed text by the id of each.
pub const ENCRYPTION_KEYS: &str = "galley:encryption";
/// Deleted to see whether Redis takes writes: it never exists.
pub const WRITE_CHECK: &str = "galley:write_check";
/// What all processes log, if an operator has set that: a string with JSON, with a TTL if it expires.
pub const LOG_LEVEL: &str = "galley:log_level";
/// Written, claimed and deleted to see whether work can be done: a stream that nobody finds.
pub const HEALTH_CHECK: &str = "galley:health_check";
/// Rules that sent jobs to an endpoint: a sorted set of their patterns by the time of the last attempt.
pub const PUSH_RULES: &str = "galley:push_rules";
/// Sums of what processes counted: a capped stream, until the leader folds them.
pub const STATISTICS_FLUSHES: &str = "galley:{statistics}:flushes";
/// Queues whose statistics have a history: a sorted set by the time of the last change.
pub const STATISTICS_QUEUES: &str = "galley:{statistics}:queues";
/// The latest time by Redis's clock that a leader saw: a string of milliseconds, in the slot of the leader.
pub const CLOCK: &str = "galley:{galley:leader}:clock";

/// The queue of a client-chosen job id: a string with a TTL.
#[must_use]
pub fn client_job_id(id: &JobId) -> String {
    format!("galley:id:{id}")
}

/// Somebody who is logged in to the dashboard: a string with a TTL.
#[must_use]
pub fn session(fingerprint: &str) -> String {
    format!("galley:session:{fingerprint}")
}

/// Written by a process to learn what has reached replicas and the disk: a string with a TTL; at a node of a cluster in a slot
/// of that node.
#[must_use]
pub fn confirmation(process: &uuid::Uuid, slot: Option<u16>) -> String {
    let tag = slot.map(|slot| format!("{{{}}}:", slots::tag_of_slot(slot))).unwrap_or_default();
    format!("galley:{tag}confirmation:{}", process.simple())
}

/// The state of a request with an idempotency key: a string with a TTL.
#[must_use]
pub fn idempotency(fingerprint: &str) -> String {
    format!("galley:idempotency:{fingerprint}")
}

/// A workflow: a hash, with a TTL once it is finished. No queue can be called `wf:...`.
#[must_use]
pub fn workflow(id: &WorkflowId) -> String {
    format!("galley:{{wf:{id}}}:w")
}

/// Elements in transit from a list to a queue: a list in the same slot. The list may have a hash tag of its own.
#[must_use]
pub fn list_bridge(list: &str) -> String {
    let has_tag = list.split_once('{').is_some_and(|(_, rest)| rest.find('}').is_some_and(|end| end > 0));
    if has_tag { format!("galley:bridge:{list}") } else { format!("galley:bridge:{{{list}}}") }
}

/// Batches of such elements whose jobs are being added: a stream in the same slot.
#[must_use]
pub fn bridge_batches(list: &str) -> String {
    [&list_bridge(list), ":batches"].concat()
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

/// The n-th message that a request with an idempotency key published: a string with a TTL.
#[must_use]
pub fn published_message(channel: &ChannelName, seed: u128, nth: usize) -> String {
    format!("galley:{{ch:{channel}}}:once:{seed:032x}-{nth}")
}

/// Who is present on a channel: a hash with a TTL, described in `lua/presence.lua`.
#[must_use]
pub fn channel_members(channel: &ChannelName) -> String {
    format!("galley:{{ch:{channel}}}:members")
}

/// Gateways with members of a channel: a sorted set with a TTL, by when the lease of each ends.
#[must_use]
pub fn member_gateways(channel: &ChannelName) -> String {
    format!("galley:{{ch:{channel}}}:gateways")
}

/// Reader counts of a gateway by channel: a hash with a TTL.
#[must_use]
pub fn gateway_readers(gateway: &uuid::Uuid) -> String {
    format!("galley:readers:{}", gateway.simple())
}

/// What a key has left to use: a hash with a TTL.
#[must_use]
pub fn key_usage(kind: &str, access: &str) -> String {
    format!("galley:usage:{kind}:{access}")
}

/// The history of a queue's statistics, or of a sum of queues: a hash with a TTL.
#[must_use]
pub fn statistics_history(series: &str) -> String {
    format!("galley:{{statistics}}:history:{series}")
}

/// A worker's last report: a string with a TTL.
#[must_use]
pub fn worker_report(key: &WorkerKey) -> String {
    format!("galley:worker:{}", key.as_str())
}

/// A worker's directive: a string with a TTL.
#[must_use]
pub fn worker_directive(key: &WorkerKey) -> String {
    format!("galley:directive:{}", key.as_str())
}

/// A subscription's position in a channel, and its owner in order: a hash with a TTL.
#[must_use]
pub fn subscription_cursor(channel: &ChannelName, subscription: &SubscriptionName) -> String {
    format!("galley:{{ch:{channel}}}:sub:{subscription}")
}

/// Counters of a subscription's messages: a hash.
#[must_use]
pub fn subscription_counters(subscription: &SubscriptionName) -> String {
    format!("galley:sub:{subscription}")
}

/// The workers of an ordered or broadcast subscription: a sorted set of names by the time each was last seen.
#[must_use]
pub fn subscription_workers(subscription: &SubscriptionName) -> String {
    format!("galley:sub:{subscription}:workers")
}

/// The newest attempts of a subscription with that outcome: a capped stream with a TTL.
#[must_use]
pub fn subscription_attempts(subscription: &SubscriptionName, outcome: &str) -> String {
    format!("galley:sub:{subscription}:attempts:{outcome}")
}

/// The newest attempts of a rule that sends jobs to an endpoint: a capped stream with a TTL.
#[must_use]
pub fn rule_attempts(pattern: &str, outcome: &str) -> String {
    format!("galley:push:{pattern}:attempts:{outcome}")
}

/// The positions of a broadcast worker: a hash with a TTL, by channel.
#[must_use]
pub fn broadcast_checkpoint(subscription: &SubscriptionName, instance: &WorkerId) -> String {
    format!("galley:sub:{subscription}:at:{}", instance.as_str())
}

#[cfg(test)]
mod tests;
