//! Every script's keys, as its header names them, have one slot of Redis Cluster, whatever the names of queues, channels
//! and the like are. What callers really pass, [`crate::slots`] checks at each call.

use common::{
    id::JobId,
    name::{ChannelName, LimitKey, Priority, QueueName, SubscriptionName, WorkerId},
};
use proptest::prelude::*;

use super::tests::files;
use crate::{
    keys::{self, QueueKeys},
    slots::slot_of,
    workers::WorkerKey,
};

/// What the keys of one call are about.
#[derive(Debug, Clone)]
struct SampleNames {
    queue: QueueName,
    id: JobId,
    other_id: JobId,
    key: LimitKey,
    other_key: LimitKey,
    channel: ChannelName,
    subscription: SubscriptionName,
    other_subscription: SubscriptionName,
    worker: WorkerKey,
    instance: WorkerId,
    list: String,
    text: String,
    number: u128,
}

/// The keys that a header names. A label that is not here fails the test: add it with the keys that it stands for.
#[expect(clippy::too_many_lines, reason = "one table: each label beside its keys")]
fn keys_of(folder: &str, label: &str, names: &SampleNames) -> Option<Vec<String>> {
    let queue = QueueKeys::new(&names.queue);
    let ids = [&names.id, &names.other_id];
    let limit_keys = [&names.key, &names.other_key];
    let one = |key: String| Some(vec![key]);
    let streams = || Priority::all().map(|priority| queue.stream(priority)).collect::<Vec<_>>();
    match (folder, label) {
        ("statistics", "history" | "histories" | "the history of each sum") => {
            Some(vec![keys::statistics_history(names.queue.as_str()), keys::statistics_history("_all")])
        }
        ("statistics", "flushes") => one(keys::STATISTICS_FLUSHES.to_owned()),
        ("statistics", "queues with a history") => one(keys::STATISTICS_QUEUES.to_owned()),
        ("cron", "entries") => one(keys::CRON_ENTRIES.to_owned()),
        ("cron", "next runs") => one(keys::CRON_NEXT.to_owned()),
        ("api_keys", "keys") => one(keys::API_KEYS.to_owned()),
        ("api_keys", "last uses") => one(keys::API_KEY_USES.to_owned()),
        ("workers", "workers") => one(keys::WORKERS.to_owned()),
        ("workers", "silent workers") => one(keys::SILENT_WORKERS.to_owned()),
        ("workers", "report") => one(keys::worker_report(&names.worker)),
        ("workers", "directive") => one(keys::worker_directive(&names.worker)),
        ("workflows", "workflow") => one(keys::workflow(&names.id.to_string().parse().ok()?)),
        ("workflows", "workflows") => one(keys::WORKFLOWS.to_owned()),
        ("connection", "epoch") => one(keys::EPOCH.to_owned()),
        ("connection", "lock") => one(keys::LEADER.to_owned()),
        ("connection", "stream, in no other use") => one(keys::HEALTH_CHECK.to_owned()),
        ("maintenance", "leader") => one(keys::LEADER.to_owned()),
        ("maintenance", "the latest time that a leader saw") => one(keys::CLOCK.to_owned()),
        ("idempotency", "request") => one(keys::idempotency(&names.text)),
        ("key_usage", "bucket") => one(keys::key_usage("requests", &names.text)),
        ("events", "events") => one(keys::EVENTS.to_owned()),
        ("list_bridge", "list") => one(names.list.clone()),
        ("list_bridge", "elements in transit") => one(keys::list_bridge(&names.list)),
        ("list_bridge", "batches") => one(keys::bridge_batches(&names.list)),
        ("list_bridge", "batches that became jobs") => one(queue.bridged(&names.list)),
        ("channels", "channels") => one(keys::CHANNELS.to_owned()),
        ("channels", "members") => one(keys::channel_members(&names.channel)),
        ("channels", "gateways of members") => one(keys::member_gateways(&names.channel)),
        ("channels", "gateways") => one(keys::READER_GATEWAYS.to_owned()),
        ("channels", "reader counts of the gateway") => {
            one(keys::gateway_readers(&uuid::Uuid::from_u128(names.number)))
        }
        ("channels", "outcome of this request, given only if the client may repeat it") => {
            one(keys::published_message(&names.channel, names.number, 7))
        }
        ("channels" | "subscriptions", "history") => one(keys::channel_history(&names.channel)),
        ("channels", "state") | ("channels" | "subscriptions", "state of the channel") => {
            one(keys::channel_state(&names.channel))
        }
        ("channels" | "subscriptions", "cursor" | "cursors") => Some(
            [&names.subscription, &names.other_subscription]
                .map(|name| keys::subscription_cursor(&names.channel, name))
                .to_vec(),
        ),
        ("subscriptions", "stream") => one(queue.stream(Priority::default())),
        ("subscriptions", "subscriptions") => one(keys::SUBSCRIPTIONS.to_owned()),
        ("subscriptions", "counters of the subscription") => one(keys::subscription_counters(&names.subscription)),
        ("subscriptions", "workers of the subscription") => one(keys::subscription_workers(&names.subscription)),
        ("subscriptions", "checkpoint of the worker") => {
            one(keys::broadcast_checkpoint(&names.subscription, &names.instance))
        }
        ("jobs", "queues") => one(keys::QUEUES.to_owned()),
        ("jobs" | "rate_limits" | "maintenance" | "list_bridge" | "workflows" | "connection", _) => Some(match label {
            "active" => vec![queue.active()],
            "leases" => vec![queue.leases()],
            "control" => vec![queue.control()],
            "stats" => vec![queue.stats()],
            "pending" => vec![queue.pending()],
            "priorities" | "priorities, of the job to replace, if any:" => vec![queue.priorities()],
            "timers" => vec![queue.timers()],
            "timers, or another sorted set whose scores say when its members are due" => {
                vec![queue.timers(), queue.due(), queue.leases()]
            }
            "due" => vec![queue.due()],
            "due or pending" => vec![queue.due(), queue.pending()],
            "dead letters" => vec![queue.dead_letters()],
            "discarded" => vec![queue.discarded()],
            "cancelled" => vec![queue.cancelled()],
            "key partitions or a key that is never there, then the new job's stream, then every other stream of the queue if it has a max depth" => {
                streams().into_iter().chain([queue.key_partitions(), queue.uniqueness("-")]).collect()
            }
            "key partitions" => vec![queue.key_partitions()],
            "discarded or cancelled: the list of those that ended the same way"
            | "discarded or cancelled: where it is listed" => vec![queue.discarded(), queue.cancelled()],
            "index of completed jobs" => vec![queue.completed_index()],
            "note of this call" => {
                vec![queue.completed_batch(
                    Priority::default(),
                    common::id::EntryId { milliseconds: 7, sequence: 0 },
                    2,
                )]
            }
            "uniqueness" => vec![queue.uniqueness(&names.text)],
            "waiting keys" => vec![queue.waiting_keys()],
            "starts of a strict rate" => vec![queue.starts()],
            "limit of the key" => vec![queue.key_limit(&names.key)],
            "admitted" => vec![queue.admitted(&names.key)],
            "key queue" | "key queues" => limit_keys.map(|key| queue.key_queue(key)).to_vec(),
            "log" => vec![queue.log(&names.id)],
            "checkpoint" => vec![queue.checkpoint(&names.id)],
            "output" => vec![queue.output(&names.id)],
            "signals" => vec![queue.signals(&names.id)],
            "record"
            | "records"
            | "record (without a job to replace: of the holder of uniqueness that the caller saw ended)"
            | "record of the holder of uniqueness that the caller saw ended, else of the job" => {
                ids.map(|id| queue.record(id)).to_vec()
            }
            "result" | "result of the job" => ids.map(|id| queue.result(id)).to_vec(),
            "the result of each, then the log of each, then the checkpoint of each, then the signals of each" => ids
                .iter()
                .flat_map(|id| [queue.result(id), queue.log(id), queue.checkpoint(id), queue.signals(id)])
                .collect(),
            "the result of each job, then the records, checkpoints and signals, the uniqueness keys and the sets of admitted jobs of those jobs that have one" =>
            {
                let of_each =
                    |id| [queue.result(id), queue.record(id), queue.checkpoint(id), queue.uniqueness(&names.text)];
                ids.into_iter().flat_map(of_each).chain(limit_keys.map(|key| queue.admitted(key))).collect()
            }
            "for each key: its queue, admitted, its limit, its starts of a strict rate, then the record and the stream of each job that the caller saw" =>
            {
                let of_each =
                    |key| [queue.key_queue(key), queue.admitted(key), queue.key_limit(key), queue.key_starts(key)];
                let records = ids.map(|id| queue.record(id));
                limit_keys.into_iter().flat_map(of_each).chain(records).chain(streams()).collect()
            }
            "stream, then the record and the result of each job" => {
                let of_each = |id| [queue.record(id), queue.result(id)];
                streams().into_iter().chain(ids.into_iter().flat_map(of_each)).collect()
            }
            "stream"
            | "streams"
            | "new stream"
            | "streams, highest priority first"
            | "the stream of every priority"
            | "the job's stream, then every other stream of the queue"
            | "stream that the record names"
            | "stream of the checked entry or attempt" => streams(),
            _ => return None,
        }),
        _ => None,
    }
}

/// The labels of the keys in the header of a script.
fn labels(text: &str) -> Vec<String> {
    let (_, rest) = text.split_once("-- KEYS: ").expect("a header that lists keys");
    let (header, _) = rest.split_once("\n-- ARGV:").expect("a header that lists arguments");
    let header = header.lines().map(|line| line.trim_start_matches("--").trim()).collect::<Vec<_>>().join(" ");
    let mut labels: Vec<Vec<&str>> = Vec::new();
    for word in header.split(' ') {
        if word.trim_end_matches("..").bytes().all(|byte| byte.is_ascii_digit()) {
            labels.push(Vec::new());
        } else {
            labels.last_mut().expect("a number comes first").push(word);
        }
    }
    labels.iter().map(|words| words.join(" ").trim_end_matches(',').to_owned()).collect()
}

fn id() -> impl Strategy<Value = JobId> {
    any::<[u8; 10]>().prop_map(|random| {
        let id = uuid::Builder::from_unix_timestamp_millis(1_700_000_000_000, &random).into_uuid();
        id.to_string().parse().expect("an id")
    })
}

fn names() -> impl Strategy<Value = SampleNames> {
    let list = "[a-zA-Z0-9:._-]{1,20}|[a-z:]{0,5}\\{[a-z:{]{1,5}\\}[a-z}{:]{0,5}";
    let keys = ("[a-zA-Z0-9][a-zA-Z0-9._:-]{0,20}", "[a-zA-Z0-9][a-zA-Z0-9._:-]{0,20}");
    let subscriptions = ("[a-z0-9][a-z0-9-]{0,15}", "[a-z0-9][a-z0-9-]{0,15}");
    let others = ("[a-z0-9][a-z0-9.-]{0,20}", "[A-Z0-9][A-Za-z0-9._:-]{0,20}", list, "[0-9a-f]{64}");
    (others, keys, subscriptions, (id(), id()), ("[a-z0-9]{1,12}", "[a-z0-9]{1,12}", any::<u128>())).prop_map(
        |(others, keys, subscriptions, (id, other_id), (worker, instance, number))| {
            let (queue, channel, list, text) = others;
            SampleNames {
                queue: queue.parse().expect("a queue"),
                id,
                other_id,
                key: keys.0.parse().expect("a key"),
                other_key: keys.1.parse().expect("a key"),
                channel: channel.parse().expect("a channel"),
                subscription: subscriptions.0.parse().expect("a subscription"),
                other_subscription: subscriptions.1.parse().expect("a subscription"),
                worker: format!("pull:{worker}").parse().expect("a worker"),
                instance: instance.parse().expect("an instance"),
                list,
                text,
                number,
            }
        },
    )
}

proptest! {
    #[test]
    fn every_script_touches_one_slot(names in names()) {
        let mut scripts = 0;
        for (file, text) in files().into_iter().filter(|(file, _)| !file.contains("/src/lua/")) {
            let folder = file.rsplit("/src/").next().and_then(|path| path.split('/').next()).unwrap_or_default();
            let keys = labels(&text).into_iter().flat_map(|label| {
                let keys = keys_of(folder, &label, &names);
                keys.unwrap_or_else(|| panic!("{file}: say in keys_of which keys {label:?} stands for"))
            });
            let keys: Vec<String> = keys.collect();
            let slots: Vec<u16> = keys.iter().map(|key| slot_of(key.as_bytes())).collect();
            prop_assert!(!slots.is_empty(), "{file}");
            prop_assert!(slots.windows(2).all(|two| two[0] == two[1]), "{file}: {keys:?} have the slots {slots:?}");
            scripts += 1;
        }
        prop_assert!(scripts > 80, "only {scripts} scripts were found");
    }
}
