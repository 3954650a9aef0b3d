//! Events on a real Redis Cluster: several streams, which are followed, resumed and listed as one.

use std::collections::{BTreeMap, BTreeSet};

use common::{
    id::{EntryId, JobId},
    name::QueueName,
};
use store::{
    events::{EventCursor, EventFilter, EventHub, EventReader, EventReaderItem, EventStart, ReadEvent},
    keys,
};
use testkit::{ClusterProcesses, TEST_TIMEOUT, eventually};
use tokio_util::sync::CancellationToken;

use crate::kit::StoreKit;

/// Streams of a cluster.
const STREAMS: usize = 8;
const QUEUES: [&str; 8] = ["mail", "orders", "images", "default", "reports", "q1", "q2", "q3"];
const ROUNDS: usize = 4;
/// The other nodes serve their slots, and nobody takes those of one that stands still.
const OPTIONS: [&str; 4] = ["--cluster-require-full-coverage", "no", "--cluster-node-timeout", "300000"];

/// A node that does not answer is given up soon.
const QUICK: [(&str, &str); 2] =
    [("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "1000"), ("GALLEY__REDIS__CONNECT_TIMEOUT_MS", "1000")];

struct Seen {
    cursor: String,
    id: String,
    job: Option<JobId>,
    queue: String,
    stream: Option<usize>,
    number: Option<u64>,
}

fn hub(kit: &StoreKit) -> EventHub {
    EventHub::start(&kit.redis, 10, CancellationToken::new()).0
}

async fn reader(hub: &EventHub, start: EventStart) -> EventReader {
    hub.read(start).await.expect("the nodes run").expect("there is room")
}

async fn resumed(hub: &EventHub, cursor: &str) -> EventReader {
    reader(hub, EventStart::After(cursor.parse::<EventCursor>().expect("a cursor"))).await
}

async fn next(reader: &mut EventReader) -> EventReaderItem {
    tokio::time::timeout(TEST_TIMEOUT, reader.next()).await.expect("something in time")
}

/// The next events; nothing is missing before them.
async fn events(reader: &mut EventReader, how_many: usize) -> Vec<Seen> {
    let mut all = Vec::new();
    while all.len() < how_many {
        let item = next(reader).await;
        let EventReaderItem::Events(events) = &item else { panic!("{item:?}") };
        for event in events.iter() {
            let json: serde_json::Value = serde_json::from_str(&event.json).expect("JSON");
            assert_eq!(json["id"].as_str(), Some(event.id().as_str()));
            all.push(Seen {
                cursor: events.cursor(event),
                id: event.id(),
                job: event.job,
                queue: event.queue.clone(),
                stream: event.stream,
                number: json["data"]["n"].as_u64(),
            });
        }
    }
    assert_eq!(all.len(), how_many, "no event is one too many");
    all
}

async fn enqueue_everywhere(kit: &StoreKit) -> BTreeMap<String, Vec<JobId>> {
    let mut ids: BTreeMap<String, Vec<JobId>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for queue in QUEUES {
            let body = format!(r#"{{"type":"test.echo","args":[1],"options":{{"queue":"{queue}"}}}}"#);
            ids.entry(queue.to_owned()).or_default().push(kit.enqueue(&body).await);
        }
    }
    ids
}

/// Writes an event with a number into a stream.
async fn write(kit: &StoreKit, stream: usize, number: u64) {
    let event = format!(r#"[{{"type":"job.enqueued","time":"","data":{{"n":{number}}}}}]"#);
    let mut command = redis::cmd("XADD");
    command.arg(&*keys::events(stream)).arg("*").arg("d").arg(event);
    eventually("the node takes it", || async { command.exec_async(&mut kit.redis.clone()).await.ok() }).await;
}

fn by_queue(seen: &[Seen]) -> BTreeMap<String, Vec<JobId>> {
    let mut ids: BTreeMap<String, Vec<JobId>> = BTreeMap::new();
    for event in seen {
        ids.entry(event.queue.clone()).or_default().extend(event.job);
    }
    ids
}

#[tokio::test]
async fn events_of_a_cluster_come_from_all_nodes_in_the_order_of_each_queue() {
    let cluster = ClusterProcesses::start().await;
    let kit = StoreKit::of_cluster(&cluster, &[]);
    streams_have_nodes_evenly(&cluster).await;
    let hub = hub(&kit);
    let mut live = reader(&hub, EventStart::Now).await;
    let beginning = live.cursor().to_string();
    let ids = enqueue_everywhere(&kit).await;
    let count = QUEUES.len() * ROUNDS;
    let seen = events(&mut live, count).await;
    assert_eq!(by_queue(&seen), ids);
    let streams: BTreeSet<Option<usize>> = seen.iter().map(|event| event.stream).collect();
    assert!(streams.len() >= STREAMS / 2 && !streams.contains(&None), "{streams:?}");
    for queue in QUEUES {
        let of_queue: BTreeSet<_> =
            seen.iter().filter(|event| event.queue == queue).map(|event| event.stream).collect();
        assert_eq!(of_queue.len(), 1, "{queue} has one stream");
    }

    // A client that comes back with the last id that it saw gets the rest, each event once
    assert_eq!(by_queue(&events(&mut resumed(&hub, &beginning).await, count).await), ids);
    for (number, event) in seen.iter().enumerate().filter(|(number, _)| number % 5 == 0) {
        let rest = events(&mut resumed(&hub, &event.cursor).await, count - number - 1).await;
        let expected: BTreeSet<_> = seen[number + 1..].iter().map(|event| event.job).collect();
        assert_eq!(rest.iter().map(|event| event.job).collect::<BTreeSet<_>>(), expected, "{}", event.cursor);
        // Twice
        let Some(middle) = rest.get(rest.len() / 2) else { continue };
        let last = events(&mut resumed(&hub, &middle.cursor).await, rest.len() - rest.len() / 2 - 1).await;
        assert!(last.iter().all(|event| rest[rest.len() / 2 + 1..].iter().any(|other| other.id == event.id)));
    }

    lists_are_merged(&kit, &ids).await;
    ids_of_events_alone_lose_nothing(&hub, &seen).await;
    every_partition_of_a_queue_has_another_stream(&kit, &mut live).await;
}

async fn streams_have_nodes_evenly(cluster: &ClusterProcesses) {
    let mut nodes: BTreeMap<usize, usize> = BTreeMap::new();
    for stream in 0..STREAMS {
        *nodes.entry(cluster.primary_of(cluster.slot_of(&keys::events(stream)).await).await).or_default() += 1;
    }
    assert!(nodes.len() == 3 && nodes.values().all(|count| *count <= 3), "{nodes:?}");
}

async fn lists_are_merged(kit: &StoreKit, ids: &BTreeMap<String, Vec<JobId>>) {
    let start = EntryId { milliseconds: 0, sequence: 0 };
    let list = async |filter: &EventFilter, limit| kit.redis.events(filter, start, limit).await.expect("the nodes run");
    let all = list(&EventFilter::default(), 1000).await;
    let order: Vec<_> = all.iter().map(|event| (event.position.entry, event.stream)).collect();
    assert!(order.is_sorted(), "{order:?}");
    for (queue, ids) in ids {
        let filter = EventFilter { queues: vec![queue.parse().expect("a name")], ..EventFilter::default() };
        let of_queue = list(&filter, 1000).await;
        assert_eq!(of_queue.iter().filter_map(|event| event.job).collect::<Vec<_>>(), *ids);
        let newest = list(&filter, 2).await;
        assert_eq!(newest.iter().filter_map(|event| event.job).collect::<Vec<_>>(), ids[ids.len() - 2..]);
    }
}

async fn ids_of_events_alone_lose_nothing(hub: &EventHub, seen: &[Seen]) {
    let event = &seen[seen.len() / 2];
    let expected: BTreeSet<&str> = seen
        .iter()
        .enumerate()
        .filter(|(number, other)| other.stream != event.stream || *number > seen.len() / 2)
        .map(|(_, other)| other.id.as_str())
        .collect();
    let again = events(&mut resumed(hub, &event.id).await, expected.len()).await;
    assert_eq!(again.iter().map(|event| event.id.as_str()).collect::<BTreeSet<_>>(), expected);

    // A process of the version before read and wrote one stream only
    let old =
        seen.iter().rfind(|event| event.stream == Some(0)).map(|event| event.id.trim_end_matches("-0").to_owned());
    let old = old.unwrap_or_else(|| "0-0-0".to_owned());
    let expected: BTreeSet<&str> =
        seen.iter().filter(|event| event.stream != Some(0)).map(|event| event.id.as_str()).collect();
    let others = events(&mut resumed(hub, &old).await, expected.len()).await;
    assert_eq!(others.iter().map(|event| event.id.as_str()).collect::<BTreeSet<_>>(), expected);
}

async fn every_partition_of_a_queue_has_another_stream(kit: &StoreKit, live: &mut EventReader) {
    let hot: QueueName = "hot".parse().expect("a name");
    kit.jobs.raise_partitions(&hot, 8).await.expect("the nodes run").expect("raised");
    let count = 64;
    for _ in 0..count {
        kit.enqueue(r#"{"type":"test.echo","args":[1],"options":{"queue":"hot"}}"#).await;
    }
    let seen = events(live, count).await;
    let streams: BTreeSet<Option<usize>> = seen.iter().map(|event| event.stream).collect();
    assert!(streams.len() > STREAMS / 2, "{streams:?}");
    assert!(seen.iter().all(|event| event.queue == "hot"));
}

#[tokio::test]
async fn a_gap_in_one_stream_of_a_cluster_is_told_once_and_the_others_go_on() {
    let cluster = ClusterProcesses::start().await;
    let kit = StoreKit::of_cluster(&cluster, &[]);
    let hub = hub(&kit);
    for number in 0..16 {
        write(&kit, number % STREAMS, number as u64).await;
    }
    let mut first = resumed(&hub, "0-0-0").await;
    let seen = events(&mut first, 16).await;
    let last = seen.last().expect("some").cursor.clone();
    // What the client saw last in stream 3 goes, and more comes
    let mut trim = redis::cmd("XTRIM");
    trim.arg(&*keys::events(3)).arg("MAXLEN").arg(0).exec_async(&mut kit.redis.clone()).await.expect("the node runs");
    for number in 16..32 {
        write(&kit, number % STREAMS, number as u64).await;
    }
    let mut back = resumed(&hub, &last).await;
    let gap = next(&mut back).await;
    assert!(matches!(gap, EventReaderItem::Gap(_)), "{gap:?}");
    let numbers: BTreeSet<Option<u64>> = events(&mut back, 16).await.iter().map(|event| event.number).collect();
    assert_eq!(numbers, (16..32).map(Some).collect());
    // Who was there all the time is told too, at once or before the next events of that stream
    let (mut numbers, mut gaps) = (BTreeSet::new(), 0);
    while numbers.len() < 16 {
        match next(&mut first).await {
            EventReaderItem::Gap(_) => gaps += 1,
            item => numbers.extend(item.events().map(ReadEvent::id)),
        }
    }
    assert_eq!(gaps, 1);
}

#[tokio::test]
async fn events_of_a_node_that_stands_still_come_later_and_those_of_the_others_at_once() {
    let cluster = ClusterProcesses::start_with_options(&OPTIONS).await;
    let kit = StoreKit::of_cluster(&cluster, &QUICK);
    let hub = hub(&kit);
    let mut live = reader(&hub, EventStart::Now).await;
    let frozen = cluster.primary_of(cluster.slot_of(&keys::events(0)).await).await;
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for stream in 0..STREAMS {
        let node = cluster.primary_of(cluster.slot_of(&keys::events(stream)).await).await;
        if node == frozen { there.push(stream) } else { here.push(stream) }
    }
    for (number, stream) in there.iter().enumerate() {
        write(&kit, *stream, number as u64).await;
    }
    let before = events(&mut live, there.len()).await;
    cluster.freeze(frozen);
    for number in 100..150 {
        write(&kit, here[number % here.len()], number as u64).await;
    }
    let numbers: BTreeSet<_> = events(&mut live, 50).await.iter().filter_map(|event| event.number).collect();
    assert_eq!(numbers, (100..150).collect());
    // So for a client that comes back meanwhile
    let mut meanwhile = resumed(&hub, &before.last().expect("some").cursor).await;
    let numbers: BTreeSet<_> = events(&mut meanwhile, 50).await.iter().filter_map(|event| event.number).collect();
    assert_eq!(numbers, (100..150).collect());
    cluster.thaw(frozen);
    for (number, stream) in there.iter().enumerate() {
        write(&kit, *stream, 200 + number as u64).await;
    }
    let numbers: BTreeSet<_> = events(&mut live, there.len()).await.iter().filter_map(|event| event.number).collect();
    assert_eq!(numbers, (200..200 + there.len() as u64).collect());
    assert_eq!(events(&mut meanwhile, there.len()).await.len(), there.len());
    // At another gateway, where nobody followed events before
    cluster.freeze(frozen);
    let other = self::hub(&kit);
    let mut first = reader(&other, EventStart::Now).await;
    for number in 300..350 {
        write(&kit, here[number % here.len()], number as u64).await;
    }
    let numbers: BTreeSet<_> = events(&mut first, 50).await.iter().filter_map(|event| event.number).collect();
    assert_eq!(numbers, (300..350).collect());
    cluster.thaw(frozen);
    let mut expected: BTreeSet<u64> = (400..400 + there.len() as u64).collect();
    for (number, stream) in there.iter().enumerate() {
        write(&kit, *stream, 400 + number as u64).await;
    }
    while !expected.is_empty() {
        // Events of the last minute may come before
        for event in events(&mut first, 1).await {
            if let Some(number) = event.number {
                expected.remove(&number);
            }
        }
    }
    assert_eq!(events(&mut live, 50 + there.len()).await.len(), 50 + there.len());

    // Nothing was missed: a client that comes back gets all of it, too
    let mut back = resumed(&hub, &before.last().expect("some").cursor).await;
    assert_eq!(events(&mut back, 2 * (50 + there.len())).await.len(), 2 * (50 + there.len()));
}
