//! The store on a real Redis Cluster: what goes where, slots that move, primaries that die.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{
    health::PartState,
    id::JobId,
    name::{ChannelName, QueueName},
    trace_context::TraceContext,
};
use model::{job::NewJob, message::NewMessage};
use redis::{AsyncCommands, RedisResult, Script, Value};
use store::{
    StoreError,
    connection::{
        health::{ServiceWork, WorkCheck},
        notifier::SubscriberEvent,
    },
    jobs::Claimant,
};
use testkit::{ClusterProcesses, eventually};

use crate::kit::{StoreKit, consumer, normal_priority};

/// A part of the slots is served without the others.
const OPTIONS: [&str; 2] = ["--cluster-require-full-coverage", "no"];
/// After how long a node that stands still is replaced, while one is to be, and otherwise.
const SOON: Duration = Duration::from_secs(1);
const NEVER: Duration = Duration::from_mins(5);
/// Queues whose slots are spread over all nodes.
const QUEUES: [&str; 8] = ["mail", "orders", "images", "default", "reports", "q1", "q2", "q3"];

fn queue(name: &str) -> QueueName {
    name.parse().expect("a name")
}

fn body(queue: &str, more: &str) -> String {
    format!(r#"{{"type":"test.echo","args":[1],"options":{{"queue":"{queue}"}}{more}}}"#)
}

async fn enqueue(kit: &StoreKit, queue: &str) -> Result<JobId, StoreError> {
    let now = kit.jobs.now().await?;
    let new = NewJob::parse(&serde_json::from_str(&body(queue, "")).expect("JSON"), now).expect("valid");
    Ok(kit.jobs.enqueue(new, TraceContext::default(), now).await?.expect("accepted").job.id)
}

/// Claims until the queue is empty.
async fn claim_all(kit: &StoreKit, name: &str) -> BTreeSet<JobId> {
    let (consumer, worker) = (consumer(), "w".parse().expect("a name"));
    let by = Claimant::Worker { consumer: &consumer, worker: &worker };
    let mut all = BTreeSet::new();
    loop {
        let claimed = eventually("a claim is answered", || async {
            kit.jobs.claim(&queue(name), &mut Vec::new(), 1000, by).await.ok()
        })
        .await;
        if claimed.jobs.is_empty() {
            return all;
        }
        all.extend(claimed.jobs.iter().map(|claimed| claimed.job.id));
    }
}

/// Keys of which each node has some.
fn keys() -> Vec<String> {
    (0..60).map(|number| format!("test:{{{number}}}")).collect()
}

#[tokio::test]
async fn every_part_of_the_store_works_on_a_cluster() {
    let cluster = ClusterProcesses::start().await;
    let kit = StoreKit::of_cluster(&cluster, &[]);
    kit.redis.check_at_start(&[]).await.expect("every node is as it should be");
    every_kind_of_command_finds_its_node(&cluster, &kit).await;
    one_bad_answer_of_a_pipeline_leaves_the_others(&kit).await;
    jobs_are_claimed_by_blocking_reads(&kit).await;
    a_blocked_read_of_all_nodes_ends_when_it_is_told_to(&kit).await;
    messages_and_notifications_reach_every_node(&kit).await;
    the_maintenance_serves_the_queues_of_every_node(&kit).await;
    a_process_is_ready(&kit).await;
    a_server_that_evicts_is_refused(&cluster, &kit).await;
}

async fn every_kind_of_command_finds_its_node(cluster: &ClusterProcesses, kit: &StoreKit) {
    let mut redis = kit.redis.clone();
    let mut owners = BTreeSet::new();
    for key in keys() {
        let _: () = redis.set(&key, &key).await.expect("written");
        owners.insert(owner(cluster, &key).await);
        assert_eq!(redis.get::<_, String>(&key).await.expect("read"), key);
    }
    assert_eq!(owners.len(), 3, "the keys are at all nodes");

    // A pipeline over all nodes has its answers in order
    let mut pipeline = redis::pipe();
    for key in keys() {
        pipeline.get(key);
    }
    let answers: Vec<String> = pipeline.query_async(&mut redis).await.expect("read");
    assert_eq!(answers, keys());
    let mut pooled = kit.redis.pooled_connection().await.expect("a connection");
    let answers: Vec<String> = pipeline.query_async(&mut pooled).await.expect("read");
    assert_eq!(answers, keys(), "on pooled connections");

    // A transaction and a script have one slot, on any node; no node knows the script
    let script = Script::new("return {redis.call('GET', KEYS[1]), ARGV[1]}");
    for key in keys() {
        let mut transaction = redis::pipe();
        transaction.atomic().get(&key).append(&key, "!");
        let (before, length): (String, usize) = transaction.query_async(&mut redis).await.expect("executed");
        assert_eq!((before, length), (key.clone(), key.len() + 1));
        let answer: (String, String) = script.key(&key).arg("a").invoke_async(&mut redis).await.expect("run");
        assert_eq!(answer, (format!("{key}!"), "a".to_owned()));
    }
    let answer: u8 = Script::new("return 7").invoke_async(&mut redis).await.expect("run");
    assert_eq!(answer, 7, "without a key at any node");
}

async fn one_bad_answer_of_a_pipeline_leaves_the_others(kit: &StoreKit) {
    let mut pipeline = redis::pipe();
    pipeline.ignore_errors();
    for key in keys() {
        pipeline.set(&key, "text").hget(&key, "field");
    }
    let answers: Vec<RedisResult<Value>> = pipeline.query_async(&mut kit.redis.clone()).await.expect("answers");
    for pair in answers.chunks(2) {
        assert!(pair[0].is_ok(), "{pair:?}");
        assert_eq!(pair[1].as_ref().expect_err("no hash").code(), Some("WRONGTYPE"));
    }
}

async fn jobs_are_claimed_by_blocking_reads(kit: &StoreKit) {
    for (number, name) in QUEUES.iter().enumerate() {
        let id = enqueue(kit, name).await.expect("accepted");
        let block = Duration::from_mins(1);
        let mut connection = kit.redis.open_dedicated(block).await.expect("a connection");
        let streams = QUEUES.map(|name| (queue(name), normal_priority()));
        let claimed = kit.jobs.claim_blocking(&mut connection, &streams[..=number], &consumer(), block).await;
        let claimed = claimed.expect("a job");
        assert_eq!(claimed.iter().map(|claimed| claimed.job.id).collect::<Vec<_>>(), [id], "{name}");
    }
}

async fn a_blocked_read_of_all_nodes_ends_when_it_is_told_to(kit: &StoreKit) {
    let block = Duration::from_mins(10);
    let mut connection = kit.redis.open_dedicated(block).await.expect("a connection");
    let streams = QUEUES.map(|name| (queue(name), normal_priority()));
    for _ in 0..2 {
        let (ender, consumer) = (connection.ender(), consumer());
        let read = kit.jobs.claim_blocking(&mut connection, &streams, &consumer, block);
        let interrupt = async { tokio::task::yield_now().await };
        let (claimed, is_interrupted) = kit.redis.interruptible(ender, read, interrupt).await;
        assert!(claimed.expect("no error").is_empty());
        assert!(is_interrupted);
    }
}

async fn messages_and_notifications_reach_every_node(kit: &StoreKit) {
    eventually("messages of our own are heard", || async { kit.notifier.problem().is_none().then_some(()) }).await;
    for number in 0..20 {
        let channel: ChannelName = format!("news.{number}").parse().expect("a name");
        let (_topics, mut heard) = kit.subscribe(&[channel.as_str()]);
        assert!(matches!(heard.recv().await, Some(SubscriberEvent::Subscribed(_))));
        let mut last = None;
        // The first one takes the script, and the others follow without it
        for text in [b"one", b"two", b"six"] {
            let published = kit.channels.publish(&channel, &NewMessage::plain(text)).await;
            let position = published.expect("redis runs").expect("accepted").position;
            assert!(last.is_none_or(|last| last < position), "{position} follows {last:?}");
            last = Some(position);
            let Some(SubscriberEvent::Message { payload, .. }) = heard.recv().await else { panic!("a message") };
            assert_eq!(&payload[..], text);
        }
    }
}

async fn the_maintenance_serves_the_queues_of_every_node(kit: &StoreKit) {
    let maintenance = kit.start_maintenance();
    let mut ids = Vec::new();
    for name in QUEUES {
        ids.push((name, kit.enqueue(&body(name, r#","scheduled_at":"+PT0.1S""#)).await));
    }
    for (name, id) in ids {
        eventually("the job is due", || async { (kit.state(id).await == "available").then_some(()) }).await;
        // Those that were claimed before may be back after their lease
        assert!(claim_all(kit, name).await.contains(&id), "{name}");
    }
    maintenance.stop().await;
    // All keys of all nodes, whatever is on the lists
    let (mut cursor, mut violations) = (0, Vec::new());
    loop {
        let (next, found) = kit.jobs.check_lists(cursor, 1000).await.expect("redis runs");
        violations.extend(found);
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    assert!(violations.is_empty(), "{violations:?}");
}

async fn a_process_is_ready(kit: &StoreKit) {
    for work in [ServiceWork::Enqueue, ServiceWork::Claim] {
        let check = WorkCheck::new(&kit.redis, work);
        eventually("it works", || async { (check.run().await == PartState::Working).then_some(()) }).await;
    }
    assert!(kit.redis.shared_connection_state().is_open);
}

async fn a_server_that_evicts_is_refused(cluster: &ClusterProcesses, kit: &StoreKit) {
    // A replica too, but a cluster names one only when it has received something
    let mut evict = redis::cmd("CONFIG");
    cluster.ask::<()>(1, evict.arg("SET").arg("maxmemory-policy").arg("allkeys-lru")).await;
    let refused = kit.redis.check_at_start(&[]).await.expect_err("it would lose jobs").to_string();
    let port = cluster.port(1).to_string();
    assert!(refused.contains(&port) && refused.contains("noeviction"), "{refused}");
}

#[tokio::test]
async fn nothing_is_lost_or_refused_while_slots_move() {
    let cluster = ClusterProcesses::start().await;
    let kit = Arc::new(StoreKit::of_cluster(&cluster, &[]));
    keys_of_a_slot_that_is_being_moved_are_found_at_both_nodes(&cluster, &kit).await;
    messages_of_a_slot_that_moves_are_accepted(&cluster, &kit).await;
    for name in QUEUES {
        enqueue(&kit, name).await.expect("the queue is opened");
        assert_eq!(claim_all(&kit, name).await.len(), 1);
    }
    let is_done = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for name in QUEUES {
        let (kit, is_done) = (kit.clone(), is_done.clone());
        writers.push(tokio::spawn(async move {
            let mut ids = BTreeSet::new();
            while !is_done.load(Ordering::Relaxed) {
                ids.insert(enqueue(&kit, name).await.unwrap_or_else(|error| panic!("{name}: {error}")));
            }
            (name, ids)
        }));
    }
    for name in QUEUES {
        let slot = cluster.slot_of(&format!("{{{name}}}")).await;
        let from = cluster.primary_of(slot).await;
        cluster.move_slot(slot, (from + 1) % 3).await;
        cluster.move_slot(slot, (from + 2) % 3).await;
    }
    is_done.store(true, Ordering::Relaxed);
    for writer in writers {
        let (name, ids) = writer.await.expect("no error");
        assert_eq!(claim_all(&kit, name).await, ids, "{name}");
    }
}

async fn keys_of_a_slot_that_is_being_moved_are_found_at_both_nodes(cluster: &ClusterProcesses, kit: &StoreKit) {
    let mut redis = kit.redis.clone();
    let (old, new) = ("{moved}old", "{moved}new");
    let _: () = redis.set(old, "1").await.expect("written");
    let slot = cluster.slot_of(old).await;
    let to = (cluster.primary_of(slot).await + 1) % 3;
    let from = cluster.begin_move(slot, to).await;
    let _: () = redis.set(new, "2").await.expect("written at the new node");
    let mut both = redis::pipe();
    both.get(old).get(new);
    let answers: (String, String) = both.query_async(&mut redis).await.expect("read");
    assert_eq!(answers, ("1".to_owned(), "2".to_owned()));
    let mut transaction = redis::pipe();
    transaction.atomic().incr(new, 1).incr(new, 1);
    let answers: (i64, i64) = transaction.query_async(&mut redis).await.expect("executed at the new node");
    assert_eq!(answers, (3, 4));
    let script = Script::new("return redis.call('INCR', KEYS[1])");
    let answer: i64 = script.key(new).invoke_async(&mut redis).await.expect("run at the new node");
    assert_eq!(answer, 5);
    cluster.move_keys(slot, from, to).await;
    cluster.end_move(slot, from, to).await;
    let answers: (String, String) = both.query_async(&mut redis).await.expect("read");
    assert_eq!(answers, ("1".to_owned(), "5".to_owned()));
}

async fn messages_of_a_slot_that_moves_are_accepted(cluster: &ClusterProcesses, kit: &StoreKit) {
    let channel: ChannelName = "news".parse().expect("a name");
    let slot = cluster.slot_of("{ch:news}").await;
    let mut last = None;
    let mut publish = async || {
        let published = kit.channels.publish(&channel, &NewMessage::plain(b"one")).await;
        let position = published.expect("redis runs").expect("accepted").position;
        assert!(last.is_none_or(|last| last < position), "{position} follows {last:?}");
        last = Some(position);
    };
    // The process asks the old node first: a slot that moved before its first message, one that moves, and one that has moved
    cluster.move_slot(slot, (cluster.primary_of(slot).await + 1) % 3).await;
    publish().await;
    let to = (cluster.primary_of(slot).await + 1) % 3;
    let from = cluster.begin_move(slot, to).await;
    publish().await;
    cluster.move_keys(slot, from, to).await;
    publish().await;
    cluster.end_move(slot, from, to).await;
    publish().await;
    let history = kit.redis.clone().xlen::<_, usize>("galley:{ch:news}:m").await.expect("a stream");
    assert_eq!(history, 4);
}

/// The primary that has a key.
async fn owner(cluster: &ClusterProcesses, key: &str) -> usize {
    cluster.primary_of(cluster.slot_of(key).await).await
}

async fn queue_at(cluster: &ClusterProcesses, node: usize) -> String {
    for number in 0.. {
        let name = format!("queue-{number}");
        if owner(cluster, &format!("{{{name}}}")).await == node {
            return name;
        }
    }
    unreachable!("every node has some")
}

#[tokio::test]
async fn a_killed_primary_is_replaced_and_the_others_go_on() {
    let mut cluster = ClusterProcesses::start_with_options(&OPTIONS).await;
    let kit = StoreKit::of_cluster(&cluster, &[]);
    let (mut names, mut ids) = (Vec::new(), Vec::new());
    for node in 0..3 {
        let name = queue_at(&cluster, node).await;
        ids.push(BTreeSet::from([enqueue(&kit, &name).await.expect("all nodes run")]));
        names.push(name);
    }
    cluster.wait_until_replicated(0).await;
    cluster.kill(0);
    for (name, ids) in names.iter().zip(&mut ids).skip(1) {
        ids.insert(eventually("a node that runs accepts a job", || async { enqueue(&kit, name).await.ok() }).await);
    }
    let replica = cluster.replica_of(0).await;
    for primary in [1, 2] {
        cluster.wait_until_replicated(primary).await;
    }
    cluster.set_down_after(SOON).await;
    cluster.wait_until_promoted(replica).await;
    cluster.set_down_after(NEVER).await;
    ids[0].insert(eventually("the replica accepts a job", || async { enqueue(&kit, &names[0]).await.ok() }).await);
    for (name, ids) in names.iter().zip(&ids) {
        // An attempt whose answer was lost with a connection may have made a job too
        assert!(claim_all(&kit, name).await.is_superset(ids), "{name}");
    }

    // Nobody is left
    for node in cluster.running() {
        cluster.kill(node);
    }
    for name in &names {
        let refused = enqueue(&kit, name).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
}
