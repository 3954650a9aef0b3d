//! How the nodes of a real Redis Cluster name each other: addresses of IPv6, names, nothing at all, and with TLS the names of
//! certificates.

use std::collections::BTreeSet;

use common::{
    name::{ChannelName, QueueName},
    settings::Settings,
};
use model::message::NewMessage;
use redis::{AsyncCommands, Value};
use store::{Redis, StoreError, connection::notifier::SubscriberEvent, jobs::Claimant};
use testkit::{ClusterProcesses, RedisServer, TestAuthority, eventually, has_ipv6, skip};

use crate::kit::{StoreKit, consumer};

/// Queues whose slots are spread over all nodes.
const QUEUES: [&str; 8] = ["mail", "orders", "images", "default", "reports", "q1", "q2", "q3"];
const BY_NAME: [&str; 2] = ["--cluster-preferred-endpoint-type", "hostname"];

/// What the nodes answer as the host of each node.
async fn announced(cluster: &ClusterProcesses) -> BTreeSet<String> {
    let ranges: Vec<Vec<Value>> = cluster.ask(0, redis::cmd("CLUSTER").arg("SLOTS")).await;
    let nodes = ranges.into_iter().flat_map(|range| range.into_iter().skip(2));
    let host = |node: Value| {
        let mut parts = redis::from_redis_value::<Vec<Value>>(node).expect("a node").into_iter();
        redis::from_redis_value::<Option<String>>(parts.next().expect("a host")).expect("text").unwrap_or_default()
    };
    nodes.map(host).collect()
}

/// Jobs, messages and notifications at all nodes, before and after slots have moved.
async fn assert_it_works(cluster: &ClusterProcesses, kit: &StoreKit) {
    kit.redis.check_at_start(&[]).await.expect("every node is as it should be");
    jobs_work(kit).await;
    messages_work(kit).await;
    for name in ["mail", "q2"] {
        let slot = cluster.slot_of(&format!("{{{name}}}")).await;
        let to = (cluster.primary_of(slot).await + 1) % 3;
        // While it moves the old node answers with ASK, and then with MOVED
        let from = cluster.begin_move(slot, to).await;
        let count: u8 = kit.redis.clone().incr(format!("{{{name}}}new"), 1).await.expect("written at the new node");
        assert_eq!(count, 1);
        cluster.move_keys(slot, from, to).await;
        cluster.end_move(slot, from, to).await;
        jobs_work(kit).await;
    }
}

async fn jobs_work(kit: &StoreKit) {
    let (consumer, worker) = (consumer(), "w".parse().expect("a name"));
    for name in QUEUES {
        let id = kit.enqueue(&format!(r#"{{"type":"a","args":[],"options":{{"queue":"{name}"}}}}"#)).await;
        let queue: QueueName = name.parse().expect("a name");
        let by = Claimant::Worker { consumer: &consumer, worker: &worker };
        let claimed = kit.jobs.claim(&queue, &mut Vec::new(), 10, by).await.expect("the nodes run");
        assert_eq!(claimed.jobs.iter().map(|claimed| claimed.job.id).collect::<Vec<_>>(), [id], "{name}");
    }
}

async fn messages_work(kit: &StoreKit) {
    eventually("messages of our own are heard", || async { kit.notifier.problem().is_none().then_some(()) }).await;
    for number in 0..6 {
        let channel: ChannelName = format!("news.{number}").parse().expect("a name");
        let (_topics, mut heard) = kit.subscribe(&[channel.as_str()]);
        assert!(matches!(heard.recv().await, Some(SubscriberEvent::Subscribed(_))));
        kit.channels.publish(&channel, &NewMessage::plain(b"one")).await.expect("the nodes run").expect("accepted");
        assert!(matches!(heard.recv().await, Some(SubscriberEvent::Message { .. })));
    }
}

#[tokio::test]
async fn the_nodes_may_have_addresses_of_ipv6() {
    if !has_ipv6() {
        return skip("this machine has no address ::1");
    }
    let cluster = ClusterProcesses::start_at("::1", "[::1]", &[], None).await;
    assert_eq!(announced(&cluster).await, BTreeSet::from(["::1".to_owned()]));
    assert!(cluster.url().contains("[::1]:"));
    assert_it_works(&cluster, &StoreKit::of_cluster(&cluster, &[])).await;
}

#[tokio::test]
async fn nodes_that_do_not_say_their_address_are_where_they_were_asked() {
    let cluster = ClusterProcesses::start_at(
        "127.0.0.1",
        "localhost",
        &["--cluster-preferred-endpoint-type", "unknown-endpoint"],
        None,
    )
    .await;
    assert_eq!(announced(&cluster).await, BTreeSet::from([String::new()]));
    // The others must be found by way of one
    let url = format!("redis+cluster://localhost:{}", cluster.port(4));
    assert_it_works(&cluster, &StoreKit::of_cluster(&cluster, &[("GALLEY__REDIS__URL", &url)])).await;
}

#[tokio::test]
async fn nodes_may_get_their_names_one_after_the_other() {
    let cluster = ClusterProcesses::start_with_options(&BY_NAME).await;
    assert_eq!(announced(&cluster).await, BTreeSet::from(["?".to_owned()]));
    let kit = StoreKit::of_cluster(&cluster, &[]);
    jobs_work(&kit).await;
    for node in cluster.running() {
        let mut name = redis::cmd("CONFIG");
        cluster.ask::<()>(node, name.arg("SET").arg("cluster-announce-hostname").arg("localhost")).await;
        jobs_work(&kit).await;
    }
    eventually("the nodes have told each other", || async {
        (announced(&cluster).await == BTreeSet::from(["localhost".to_owned()])).then_some(())
    })
    .await;
    assert_it_works(&cluster, &kit).await;
}

#[tokio::test]
async fn certificates_have_the_names_that_the_nodes_announce() {
    let authority = TestAuthority::new();
    // Not its address
    let certificate = authority.issue("nodes", &["localhost"]);
    if RedisServer::start_with_tls(&authority, &certificate).is_none() {
        return skip("this redis-server was built without TLS");
    }
    let options = [&BY_NAME[..], &["--cluster-announce-hostname", "localhost"]].concat();
    let cluster =
        ClusterProcesses::start_at("127.0.0.1", "localhost", &options, Some((&authority, &certificate))).await;
    eventually("the nodes have told each other", || async {
        (announced(&cluster).await == BTreeSet::from(["localhost".to_owned()])).then_some(())
    })
    .await;
    let (url, ca) = (cluster.tls_url(), authority.ca_file());
    let variables = |url: &str| {
        [
            ("GALLEY__REDIS__URL", url.to_owned()),
            ("GALLEY__REDIS__TLS_CA_FILE", ca.clone()),
            ("GALLEY__REDIS__TLS_CERT_FILE", certificate.cert.clone()),
            ("GALLEY__REDIS__TLS_KEY_FILE", certificate.key.clone()),
        ]
    };
    let of_names = variables(&url);
    let of_names: Vec<(&str, &str)> = of_names.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let kit = StoreKit::of_cluster(&cluster, &of_names);
    jobs_work(&kit).await;
    messages_work(&kit).await;
    // An empty slot: keys move between the ports without TLS only
    let slot = cluster.slot_of("{moved}").await;
    let to = (cluster.primary_of(slot).await + 1) % 3;
    let from = cluster.begin_move(slot, to).await;
    let _: () = kit.redis.clone().set("{moved}a", 1).await.expect("written at the new node");
    cluster.end_move(slot, from, to).await;
    let _: () = kit.redis.clone().set("{moved}b", 1).await.expect("written at the new node");

    // Another name is refused
    let all = variables(&url.replace("localhost", "127.0.0.1")).map(|(name, value)| (name.to_owned(), value));
    let settings = Settings::from_sources(None, all.into()).expect("allowed settings");
    let redis = Redis::new(&settings.redis).expect("a URL");
    let refused = redis.ping().await.expect_err("the certificate has another name");
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
}
