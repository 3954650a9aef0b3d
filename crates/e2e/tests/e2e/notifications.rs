//! Notifications between processes.

use std::collections::BTreeSet;

use futures_util::StreamExt;
use serde_json::{Value, json};
use testkit::{PATIENCE, RedisServer, ServiceProcess, eventually, redis};

use crate::{
    http_client::CheckedClient,
    kit::{GalleyKit, RULES_VARIABLE, TestFolder},
    pull::LONG_MS,
    sse::ChannelEventsClient,
};

async fn wait_for_pubsub_connections(kit: &GalleyKit, count: usize) {
    eventually(&format!("there are {count} connections for notifications"), || async {
        let list = kit.redis_command(&["CLIENT", "LIST", "TYPE", "pubsub"]).await;
        let list: String = redis::from_redis_value(list).expect("text");
        (list.lines().count() == count).then_some(())
    })
    .await;
}

/// A worker whose jobs of the type `wait` run until the file `go` is there.
async fn start_waiting_worker(kit: &GalleyKit, folder: &TestFolder) -> ServiceProcess {
    let here = json!(folder.path_text(""));
    let wait = json!("until [ -e go ]; do sleep 0.05; done");
    folder.write_rules(&format!(
        "[[rule]]\ntype = \"wait\"\n[rule.command]\nprogram = \"/bin/sh\"\nargs = [\"-c\", {wait}]\ndirectory = {here}\n"
    ));
    kit.start_worker(&[(RULES_VARIABLE, &folder.path_text("rules.toml"))]).await
}

#[tokio::test]
async fn each_process_has_one_connection_for_notifications_whatever_it_waits_for() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[("GALLEY__QUEUES__LIMITED__CONCURRENCY", "1")]).await;
    let _pubsub_worker = kit.start_pubsub_worker().await;
    wait_for_pubsub_connections(&kit, 3).await;
    assert_eq!(kit.post("/v1/channels/c/messages", &json!("first")).await.status(), 201);
    // A reader of a channel, one of events, a fetch that waits and a request that waits for a result
    let url = |path: &str| kit.gateway.url(path);
    let reader = kit.http.get(url("/v1/channels/c/stream")).send().await.expect("a stream");
    let events = kit.http.get(url("/ojs/v1/events/stream")).send().await.expect("a stream");
    kit.wait_for_readers("c", 1).await;
    let fetch = json!({ "queues": ["other"], "wait_ms": 60_000 });
    let fetch = kit.post("/ojs/v1/workers/fetch", &fetch);
    let id = kit.enqueue(&json!({ "type": "x", "args": [], "queue": "nobody" })).await;
    let path = format!("/ojs/v1/jobs/{id}?wait_ms=60000");
    let result = kit.get(&path);
    let both_wait = eventually("the gateway waits for the result", || async {
        let topics = kit.redis_command(&["PUBSUB", "CHANNELS", "galley:5:{nobody}:*"]).await;
        let topics: Vec<String> = redis::from_redis_value(topics).expect("names");
        (!topics.is_empty()).then_some(())
    });
    tokio::select! {
        _ = fetch => panic!("there is no job to fetch"),
        _ = result => panic!("nobody runs the job"),
        () = both_wait => wait_for_pubsub_connections(&kit, 3).await,
    }
    drop((reader, events));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_notification_of_a_cancellation_stops_no_attempt() {
    let (kit, folder) = (GalleyKit::start().await, TestFolder::new());
    let worker = start_waiting_worker(&kit, &folder).await;
    let id = kit.enqueue(&json!({ "type": "wait", "args": [] })).await;
    let other = kit.enqueue(&json!({ "type": "test.slow", "args": [600_000] })).await;
    kit.wait_for_state(&id, "active").await;
    kit.wait_for_state(&other, "active").await;
    // Pub/sub knows no databases, so another installation on the same server may send these
    for noise in
        [format!("cancelled {id}"), "stream default".to_owned(), "due default".to_owned(), "cron entries".to_owned()]
    {
        for _ in 0..20 {
            kit.redis_command(&["PUBLISH", "galley:5:notifications", &noise]).await;
        }
    }
    // A true one comes after them
    kit.cancel(&other).await;
    worker.wait_for_event("attempt.lost").await;
    folder.touch("go");
    let job = kit.wait_for_state(&id, "completed").await;
    assert_eq!(job["attempt"], 1);
    assert_eq!(worker.events("attempt.lost").len(), 1, "that of the other job");
}

/// Everything that is published on a server, in all databases.
async fn listen_to_all(redis: &RedisServer) -> redis::aio::PubSub {
    let client = redis::Client::open(redis.url()).expect("a URL");
    let mut heard = client.get_async_pubsub().await.expect("redis runs");
    heard.psubscribe("*").await.expect("redis runs");
    heard
}

/// The topics of a server that somebody subscribes to.
async fn topics(kit: &GalleyKit) -> BTreeSet<String> {
    redis::from_redis_value(kit.redis_command(&["PUBSUB", "CHANNELS"]).await).expect("names")
}

#[tokio::test]
async fn two_installations_in_two_databases_of_a_server_do_not_hear_each_other() {
    let here = GalleyKit::start().await;
    let other_url = format!("redis://127.0.0.1:{}/6", here.redis.port());
    let start = async |name| ServiceProcess::start_with_redis_url(name, &other_url, &PATIENCE).await;
    let (gateway, other_worker, other_listener) =
        (start("gateway").await, start("queue-worker").await, start("pubsub-worker").await);
    let (worker, listener) = (here.start_worker(&[]).await, here.start_pubsub_worker().await);
    for service in [&gateway, &other_worker, &other_listener] {
        service.wait_until_ready().await;
    }
    let mut all = listen_to_all(&here.redis).await;
    let url = |path: &str| [here.gateway.url(path), gateway.url(path)];
    let mut streams = Vec::new();
    for url in url("/v1/channels/c/stream") {
        streams.push(ChannelEventsClient::open(url, None).await);
    }
    let id = here.enqueue(&json!({ "type": "test.slow", "args": [60_000] })).await;
    here.wait_for_state(&id, "active").await;
    here.cancel(&id).await;
    let done = here.enqueue(&json!({ "type": "test.noop", "args": [] })).await;
    here.get(&format!("/ojs/v1/jobs/{done}?wait_ms=20000")).await;
    let later = json!({ "type": "test.noop", "args": [], "scheduled_at": "+PT3600S" });
    here.enqueue(&later).await;
    here.post("/ojs/v1/queues/default/pause", &json!({})).await;
    let subscription = json!({ "channels": ["c"], "deliver": { "log": {} } });
    let put = here.http.put(here.gateway.url("/v1/subscriptions/s")).header("content-type", "application/json");
    assert!(put.body(subscription.to_string()).send().await.expect("an answer").status().is_success());
    assert_eq!(here.post("/v1/channels/c/messages", &json!("here")).await.status(), 201);
    assert_eq!(streams[0].expect("message").await["data"], "here");
    let other = CheckedClient::new().post(gateway.url("/v1/channels/c/messages")).body("there");
    assert_eq!(other.send().await.expect("an answer").status(), 201);
    assert_eq!(streams[1].expect("message").await["data"], "there", "nothing came before");

    // What was published for one database, somebody of that database listens to at most
    let mut heard = BTreeSet::new();
    let mut missing = BTreeSet::from(["notifications", "channels", "live", "finished"]);
    let mut messages = all.on_message().boxed();
    while !missing.is_empty() {
        let message = tokio::time::timeout(testkit::TEST_TIMEOUT, messages.next()).await.expect("in time");
        let name = message.expect("a message").get_channel_name().to_owned();
        missing.remove(name.strip_prefix("galley:5:").and_then(|rest| rest.split(':').next_back()).unwrap_or_default());
        heard.insert(name);
    }
    drop(messages);
    heard.extend(topics(&here).await);
    let is_ours = |name: &String| name.starts_with("galley:5:") || name.starts_with("galley:6:");
    let bare: Vec<&String> = heard.iter().filter(|name| !is_ours(name)).collect();
    assert!(bare.iter().all(|name| ["c", "task:pubsub:channel"].contains(&name.as_str())), "{bare:?}");
    drop((worker, listener));
}

/// Waits until what is published on a topic reaches that number of processes.
async fn wait_for_listeners(kit: &GalleyKit, topic: &str, count: i64) {
    eventually(&format!("{topic} is heard"), || async {
        let heard = kit.redis_command(&["PUBSUB", "NUMSUB", topic]).await;
        let (_, listeners): (String, i64) = redis::from_redis_value(heard).ok()?;
        (listeners >= count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_message_of_a_plain_publisher_is_told_also_behind_a_position_that_somebody_made_up() {
    let kit = GalleyKit::start().await;
    let channel = "task:pubsub:channel";
    let live = format!("galley:5:{{ch:{channel}}}:live");
    let mut stream = ChannelEventsClient::open(kit.gateway.url(&format!("/v1/channels/{channel}/stream")), None).await;
    wait_for_listeners(&kit, &live, 1).await;
    wait_for_listeners(&kit, channel, 1).await;
    let url = kit.gateway.url(&format!("/v1/channels/{channel}/messages"));
    let ours = kit.http.post(url).body("ours").send().await.expect("an answer");
    let ours: Value = ours.json().await.expect("JSON");
    let position = ours["id"].as_str().expect("a position");
    assert_eq!(stream.expect("message").await["id"], position);
    let (epoch, _) = position.split_once('-').expect("two numbers");
    for made_up in [position.to_owned(), format!("{epoch}-1"), "0-0".to_owned(), format!("{}-{}", u64::MAX, u64::MAX)] {
        kit.redis_command(&["PUBLISH", &live, &made_up]).await;
        kit.redis_command(&["PUBLISH", channel, "theirs"]).await;
        let theirs = stream.expect("message").await;
        assert!(theirs["id"].is_null() && theirs["data"] == "theirs", "{made_up}: {theirs}");
    }
}

/// The calls of Redis's commands so far, without those of this test.
async fn calls(kit: &GalleyKit) -> u64 {
    let stats: String = redis::from_redis_value(kit.redis_command(&["INFO", "commandstats"]).await).expect("text");
    let own = ["cmdstat_publish:", "cmdstat_info:", "cmdstat_pubsub|", "cmdstat_client|", "cmdstat_hello"];
    let count = |line: &str| line.split_once("calls=")?.1.split(',').next()?.parse::<u64>().ok();
    stats.lines().filter(|line| !own.iter().any(|name| line.starts_with(name))).filter_map(count).sum()
}

#[tokio::test]
async fn a_flood_of_false_notifications_costs_a_few_looks_and_breaks_nothing() {
    let (kit, folder) = (GalleyKit::start().await, TestFolder::new());
    let (worker, listener) = (start_waiting_worker(&kit, &folder).await, kit.start_pubsub_worker().await);
    let subscription = json!({ "channels": ["*"], "deliver": { "log": {} } });
    let put = kit.http.put(kit.gateway.url("/v1/subscriptions/s")).header("content-type", "application/json");
    assert!(put.body(subscription.to_string()).send().await.expect("an answer").status().is_success());
    kit.post("/v1/channels/c/messages", &json!("first")).await;
    listener.wait_for_logged_body("\"first\"").await;
    let _stream = ChannelEventsClient::open(kit.gateway.url("/v1/channels/c/stream"), None).await;
    let running = kit.enqueue(&json!({ "type": "wait", "args": [] })).await;
    kit.wait_for_state(&running, "active").await;
    let awaited = kit.enqueue(&json!({ "type": "x", "args": [], "queue": "nobody" })).await;
    let path = format!("/ojs/v1/jobs/{awaited}?wait_ms={LONG_MS}");
    let waiting = kit.get(&path);
    let fetch = json!({ "queues": ["other"], "wait_ms": LONG_MS });
    let fetching = kit.post("/ojs/v1/workers/fetch", &fetch);
    let flood = async {
        wait_for_listeners(&kit, "galley:5:{nobody}:finished", 1).await;
        let names = topics(&kit).await;
        let garbage = ["", "\0", "x y", "cron entries", "subscriptions changed", "due default", "due no.such", "1"];
        let mut payloads: Vec<String> = garbage.map(str::to_owned).into();
        payloads.extend([format!("cancelled {running}"), awaited.clone(), [awaited.as_str(); 500].join(" ")]);
        payloads.extend(["stream default", "stream other", "99999999999999-1", "made.up"].map(str::to_owned));
        payloads.push(format!("directive {}", worker_key(&kit).await));
        let mut connection = kit.redis.connection().await;
        let (before, begin) = (calls(&kit).await, std::time::Instant::now());
        for _ in 0..300 {
            let mut pipeline = redis::pipe();
            for name in names.iter().filter(|name| name.starts_with("galley:")) {
                for payload in &payloads {
                    pipeline.cmd("PUBLISH").arg(name).arg(payload).ignore();
                }
            }
            let () = pipeline.query_async(&mut connection).await.expect("redis runs");
        }
        let published = 300 * payloads.len() * names.len();
        let seconds = begin.elapsed().as_secs() + 1;
        (calls(&kit).await - before, published, seconds)
    };
    let (made, published, seconds) = tokio::select! {
        _ = waiting => panic!("the job does not end"),
        _ = fetching => panic!("there is no job to fetch"),
        flooded = flood => flooded,
    };
    // Without a bound each of them costs several commands
    let allowed = 5_000 + 1_500 * seconds;
    assert!(published > 30_000 && made < allowed, "{made} commands for {published} messages, {allowed} allowed");
    folder.touch("go");
    let job = kit.wait_for_state(&running, "completed").await;
    assert_eq!(job["attempt"], 1);
    assert!(worker.events("attempt.lost").is_empty());
    kit.post("/v1/channels/made.up/messages", &json!("second")).await;
    listener.wait_for_logged_body("\"second\"").await;
}

/// The key of the only worker.
async fn worker_key(kit: &GalleyKit) -> String {
    let keys = kit.redis_command(&["ZRANGE", "galley:workers", "0", "-1"]).await;
    redis::from_redis_value::<Vec<String>>(keys).expect("names").pop().expect("a worker")
}
