//! Subscriptions and their workers: sharing, order, broadcasts, and whatever breaks.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess, WebhookReceiver, WebhookReply, eventually, eventually_for};

use crate::{
    kit::GalleyKit,
    subscriptions_delivery::{PRIVATE, figure, has_event, progress, publish, put, started, worker},
};

/// A deadline short enough to wait for, and so long that a live worker on a busy machine keeps it.
const SHORT_ACK_DEADLINE_MS: u64 = 3_000;

async fn publish_all(kit: &GalleyKit, channel: &str, numbers: std::ops::Range<usize>) {
    for number in numbers {
        publish(kit, channel, "text/plain", &number.to_string()).await;
    }
}

/// How often each body was logged by a worker, as `message <body>`.
fn logged(worker: &ServiceProcess) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for body in worker.logged_bodies() {
        *counts.entry(body).or_default() += 1;
    }
    counts
}

fn all_once(numbers: std::ops::Range<usize>) -> BTreeMap<String, usize> {
    numbers.map(|number| (number.to_string(), 1)).collect()
}

fn together<'a>(workers: impl IntoIterator<Item = &'a ServiceProcess>) -> BTreeMap<String, usize> {
    let mut all: BTreeMap<String, usize> = BTreeMap::new();
    for worker in workers {
        for (body, count) in logged(worker) {
            *all.entry(body).or_default() += count;
        }
    }
    all
}

#[tokio::test]
async fn shared_goes_to_one_worker_and_broadcast_to_each() {
    let (kit, one) = started().await;
    let two = worker(&kit, &[("GALLEY__PUBSUB_WORKER__NAME", "two")]).await;
    let broadcast = json!({ "channels": ["b"], "deliver": { "log": {} }, "mode": "broadcast" });
    put(&kit, "shared", &json!({ "channels": ["s.*"], "deliver": { "log": {} } })).await;
    put(&kit, "all", &broadcast).await;
    for number in 0..40 {
        publish(&kit, &format!("s.{}", number % 4), "text/plain", &number.to_string()).await;
    }
    figure(&kit, "shared", "delivered", 40).await;
    eventually("one logs each", || async { (together([&one, &two]) == all_once(0..40)).then_some(()) }).await;
    let before = (logged(&one), logged(&two));
    publish_all(&kit, "b", 100..120).await;
    for (worker, before) in [(&one, before.0), (&two, before.1)] {
        let expected: BTreeMap<String, usize> = before.into_iter().chain(all_once(100..120)).collect();
        eventually("each hears all", || async { (logged(worker) == expected).then_some(()) }).await;
    }
    figure(&kit, "all", "delivered", 40).await;
    let workers = progress(&kit, "all").await["workers"].as_array().map(Vec::len);
    assert_eq!(workers, Some(2));
}

#[tokio::test]
async fn a_worker_of_a_broadcast_goes_on_where_it_was() {
    let (kit, one) = started().await;
    put(&kit, "all", &json!({ "channels": ["b"], "deliver": { "log": {} }, "mode": "broadcast" })).await;
    publish_all(&kit, "b", 0..5).await;
    eventually("it hears them", || async { (logged(&one) == all_once(0..5)).then_some(()) }).await;
    assert!(one.terminate().await.success());
    publish_all(&kit, "b", 5..10).await;
    let again = worker(&kit, &[]).await;
    eventually("it hears the others", || async { (logged(&again) == all_once(5..10)).then_some(()) }).await;
    // A worker that was not there before begins now
    let new = worker(&kit, &[("GALLEY__PUBSUB_WORKER__NAME", "new")]).await;
    new.wait_for_event("subscription.served").await;
    publish_all(&kit, "b", 10..12).await;
    eventually("it hears what is new", || async { (logged(&new) == all_once(10..12)).then_some(()) }).await;
}

#[tokio::test]
async fn a_worker_of_a_broadcast_that_comes_back_gets_what_channels_began_with_while_it_was_away() {
    let (kit, one) = started().await;
    put(&kit, "all", &json!({ "channels": ["b.*"], "deliver": { "log": {} }, "mode": "broadcast" })).await;
    eventually("it takes part", || async { (progress(&kit, "all").await["workers_total"] == json!(1)).then_some(()) })
        .await;
    one.kill();
    publish_all(&kit, "b.new", 0..5).await;
    let again = worker(&kit, &[]).await;
    eventually("it hears them", || async { (logged(&again) == all_once(0..5)).then_some(()) }).await;
}

#[tokio::test]
async fn messages_of_a_worker_that_is_killed_are_taken_over() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[PRIVATE]).await;
    // The first worker's requests are never answered
    let receiver =
        WebhookReceiver::start([WebhookReply::Hang, WebhookReply::Hang, WebhookReply::Hang].into_iter().chain(ok(100)))
            .await;
    let doomed = worker(&kit, &[]).await;
    let target = json!({ "http": { "url": receiver.url("/"), "concurrency": 3 } });
    let body = json!({ "channels": ["c"], "deliver": target, "ack_deadline_ms": SHORT_ACK_DEADLINE_MS });
    put(&kit, "hook", &body).await;
    publish_all(&kit, "c", 0..3).await;
    receiver.wait_for_requests(3).await;
    doomed.kill();
    assert_eq!(progress(&kit, "hook").await["in_flight"], json!(3));
    let _heir = worker(&kit, &[]).await;
    // Longer than the deadline and the grace
    eventually_for(std::time::Duration::from_mins(1), "they are taken over", || async {
        let progress = progress(&kit, "hook").await;
        (progress["delivered"] == json!(3) && progress["in_flight"] == json!(0)).then_some(())
    })
    .await;
    assert_eq!(receiver.requests().len(), 6);
}

#[tokio::test]
async fn a_message_that_every_worker_vanishes_with_is_a_dead_letter() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[PRIVATE]).await;
    let receiver = WebhookReceiver::start([WebhookReply::Hang].into_iter().chain(ok(10))).await;
    let target = json!({ "http": { "url": receiver.url("/") } });
    let body = json!({ "channels": ["c"], "deliver": target, "ack_deadline_ms": SHORT_ACK_DEADLINE_MS });
    let _heir = vanish_with_a_message(&kit, &receiver, &body).await;
    receiver.wait_for_requests(2).await;
    assert_eq!(receiver.requests().len(), 2, "nobody else had it, and the other one was delivered");
}

/// Every worker that has a message of a new subscription vanishes with it: it becomes a dead letter. Returns the next
/// worker, which another message waits for.
pub(crate) async fn vanish_with_a_message(
    kit: &GalleyKit,
    receiver: &WebhookReceiver,
    subscription: &Value,
) -> ServiceProcess {
    let no_budget = ("GALLEY__JOBS__CRASH_BUDGET", "0");
    let doomed = worker(kit, &[no_budget]).await;
    put(kit, "hook", subscription).await;
    publish(kit, "c", "text/plain", "deadly").await;
    receiver.wait_for_requests(1).await;
    doomed.kill();
    let heir = worker(kit, &[no_budget]).await;
    publish(kit, "c", "text/plain", "harmless").await;
    eventually_for(std::time::Duration::from_mins(1), "it is a dead letter", || async {
        (progress(kit, "hook").await["dead"] == json!(1)).then_some(())
    })
    .await;
    let dead: Value = kit.get("/ojs/v1/dead-letter").await.json().await.expect("JSON");
    let job = &dead["jobs"][0];
    assert_eq!(job["args"][0]["body"], json!("deadly"));
    assert_eq!(job["errors"][0]["code"], json!("crash_budget_exhausted"), "{job}");
    heir
}

fn ok(times: usize) -> impl Iterator<Item = WebhookReply> {
    std::iter::repeat_with(|| WebhookReply::ok("1")).take(times)
}

#[tokio::test]
async fn a_worker_that_is_told_to_stop_finishes_or_gives_back() {
    let (kit, first) = started().await;
    let receiver = WebhookReceiver::start([WebhookReply::Hang].into_iter().chain(ok(10))).await;
    let target = json!({ "http": { "url": receiver.url("/") } });
    put(&kit, "hook", &json!({ "channels": ["c"], "deliver": target, "max_in_flight": 1 })).await;
    first.wait_for_event("subscription.served").await;
    let hasty = worker(&kit, &[("GALLEY__PUBSUB_WORKER__SHUTDOWN_GRACE_MS", "0")]).await;
    hasty.wait_for_event("subscription.served").await;
    assert!(first.terminate().await.success(), "it has nothing");
    publish(&kit, "c", "text/plain", "x").await;
    receiver.wait_for_requests(1).await;
    let heir = worker(&kit, &[]).await;
    heir.wait_for_event("subscription.served").await;
    assert!(hasty.terminate().await.success());
    // At once, long before the deadline of 30 s is over
    figure(&kit, "hook", "delivered", 1).await;
    assert_eq!(receiver.requests().len(), 2);
}

#[tokio::test]
async fn in_order_stays_in_order_while_workers_come_go_and_fail() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[PRIVATE]).await;
    let broken = || WebhookReply::new(500, "", "");
    let receiver = WebhookReceiver::start(ok(10).chain([broken(), broken()]).chain(ok(500))).await;
    let target = json!({ "http": { "url": receiver.url("/{channel}") } });
    let retry = json!({ "initial_interval": "PT0.05S", "jitter": false });
    let body = json!({ "channels": ["o.*"], "deliver": target, "ordering": "channel", "retry": retry, "ack_deadline_ms": SHORT_ACK_DEADLINE_MS });
    let first = worker(&kit, &[]).await;
    put(&kit, "order", &body).await;
    let channels = ["o.a", "o.b", "o.c"];
    let publish_some = async |numbers: std::ops::Range<usize>| {
        for number in numbers {
            for channel in channels {
                publish(&kit, channel, "text/plain", &format!("{number:03}")).await;
            }
        }
    };
    publish_some(0..10).await;
    let second = worker(&kit, &[]).await;
    publish_some(10..20).await;
    first.kill();
    publish_some(20..30).await;
    let third = worker(&kit, &[]).await;
    assert!(second.terminate().await.success());
    publish_some(30..40).await;
    eventually_for(std::time::Duration::from_mins(1), "all are delivered", || async {
        let progress = progress(&kit, "order").await;
        (progress["lag"] == json!(0)).then_some(())
    })
    .await;
    for channel in channels {
        let line = format!("POST /{channel} ");
        let requests = receiver.requests().into_iter().filter(|request| request.head.starts_with(&line));
        let mut bodies: Vec<String> = requests.map(|request| String::from_utf8(request.body).expect("text")).collect();
        // A repetition follows what it repeats: nothing is overtaken
        assert!(bodies.is_sorted(), "{channel}: {bodies:?}");
        bodies.dedup();
        let expected: Vec<String> = (0..40).map(|number| format!("{number:03}")).collect();
        assert_eq!(bodies, expected, "{channel}");
    }
    drop(third);
}

#[tokio::test]
async fn in_order_a_failure_holds_up_its_channel_until_somebody_skips_it() {
    let (kit, _worker) = started().await;
    // The failure of a message, and not of the endpoint, which would be left alone after five of them
    let broken = WebhookReply::new(409, "", "never this");
    let receiver = WebhookReceiver::start(std::iter::repeat_n(broken, 50).collect::<Vec<_>>()).await;
    let target = json!({ "http": { "url": receiver.url("/") } });
    let retry = json!({ "initial_interval": "PT0.05S", "max_interval": "PT0.1S", "jitter": false });
    put(&kit, "order", &json!({ "channels": ["c"], "deliver": target, "ordering": "channel", "retry": retry })).await;
    let stuck = publish(&kit, "c", "text/plain", "stuck").await;
    publish(&kit, "c", "text/plain", "behind").await;
    let held_up = eventually("it is held up", || async {
        let progress = progress(&kit, "order").await;
        let held_up = progress["channels"][0]["held_up"].clone();
        (held_up["failures"].as_u64()? >= 2).then_some(held_up)
    })
    .await;
    assert!(held_up["problem"].as_str().is_some_and(|text| text.contains("never this")), "{held_up}");
    assert!(receiver.requests().iter().all(|request| request.body == b"stuck"), "one at a time");
    let skipped = kit.post("/v1/subscriptions/order/seek", &json!({ "to": stuck })).await;
    assert!(skipped.status().is_success());
    eventually("the next one is tried", || async {
        receiver.requests().iter().any(|request| request.body == b"behind").then_some(())
    })
    .await;
}

#[tokio::test]
async fn pausing_changing_and_removing_take_effect_while_it_runs() {
    let (kit, worker) = started().await;
    let body = json!({ "channels": ["c"], "deliver": { "log": {} } });
    put(&kit, "s", &body).await;
    publish_all(&kit, "c", 0..3).await;
    figure(&kit, "s", "delivered", 3).await;
    assert!(kit.post("/v1/subscriptions/s/pause", &json!({})).await.status().is_success());
    eventually("nobody delivers it", || async {
        publish(&kit, "c", "text/plain", "x").await;
        (progress(&kit, "s").await["lag"].as_u64()? > 0).then_some(())
    })
    .await;
    assert!(kit.post("/v1/subscriptions/s/resume", &json!({})).await.status().is_success());
    figure(&kit, "s", "lag", 0).await;
    // Another channel besides, from now on
    publish(&kit, "d", "text/plain", "before").await;
    put(&kit, "s", &json!({ "channels": ["c", "d"], "deliver": { "log": {} } })).await;
    publish(&kit, "d", "text/plain", "after").await;
    worker.wait_for_logged_body("after").await;
    assert!(!worker.logged_bodies().contains(&"before".to_owned()));
    let url = kit.gateway.url("/v1/subscriptions/s");
    assert!(kit.http.delete(url).send().await.expect("an answer").status().is_success());
    publish(&kit, "c", "text/plain", "unheard").await;
    put(&kit, "s", &body).await;
    publish(&kit, "c", "text/plain", "heard").await;
    worker.wait_for_logged_body("heard").await;
    let logged = worker.logged_bodies();
    assert!(!logged.contains(&"unheard".to_owned()), "a deleted subscription starts over: {logged:?}");
}

#[tokio::test]
async fn deliveries_go_on_whatever_happens_to_connections_scripts_or_redis() {
    let mut kit = GalleyKit::start_durable(&[PRIVATE]).await;
    let one = worker(&kit, &[]).await;
    let two = worker(&kit, &[("GALLEY__PUBSUB_WORKER__NAME", "two")]).await;
    put(&kit, "s", &json!({ "channels": ["c"], "deliver": { "log": {} } })).await;
    put(&kit, "o", &json!({ "channels": ["c"], "deliver": { "log": {} }, "ordering": "channel" })).await;
    let mut count = 0;
    for command in
        [&["CLIENT", "KILL", "TYPE", "pubsub"][..], &["CLIENT", "KILL", "TYPE", "normal"], &["SCRIPT", "FLUSH"]]
    {
        publish_all(&kit, "c", count..count + 10).await;
        kit.redis_command(command).await;
        // The request that notices the cut connection may get 503, and only that
        let first = count + 10;
        eventually("the gateway is connected again", || async {
            let path = "/v1/channels/c/messages";
            let request = kit.http.post(kit.gateway.url(path)).header("content-type", "text/plain");
            let response = request.body(first.to_string()).send().await.expect("the gateway answers");
            assert!([201, 503].contains(&response.status().as_u16()), "{}", response.status());
            (response.status() == 201).then_some(())
        })
        .await;
        publish_all(&kit, "c", first + 1..count + 20).await;
        count += 20;
    }
    kit.redis.kill();
    kit.redis.restart();
    eventually("a message is taken again", || async {
        let url = kit.gateway.url("/v1/channels/c/messages");
        let response = kit.http.post(url).body("again").send().await.ok()?;
        response.status().is_success().then_some(())
    })
    .await;
    publish_all(&kit, "c", count..count + 10).await;
    count += 10;
    for name in ["s", "o"] {
        figure(&kit, name, "lag", 0).await;
        eventually("nothing is under way", || async {
            (progress(&kit, name).await["in_flight"] == json!(0)).then_some(())
        })
        .await;
    }
    eventually("each was logged for both", || async {
        let all = together([&one, &two]);
        (0..count).all(|number| all.get(&number.to_string()).is_some_and(|times| *times >= 2)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn subscriptions_are_restored_when_redis_has_lost_everything() {
    let (mut kit, worker) = started().await;
    put(&kit, "s", &json!({ "channels": ["c.*"], "deliver": { "log": {} } })).await;
    publish(&kit, "c.1", "text/plain", "before").await;
    worker.wait_for_logged_body("before").await;
    kit.redis.kill();
    kit.redis.restart();
    worker.wait_for_event("subscription.restored").await;
    let published = eventually("a message is taken", || async {
        let url = kit.gateway.url("/v1/channels/c.1/messages");
        let response = kit.http.post(url).body("after").send().await.ok()?;
        response.json::<Value>().await.ok()?["id"].as_str().map(ToOwned::to_owned)
    })
    .await;
    worker.wait_for_logged_body("after").await;
    let progress = figure(&kit, "s", "lag", 0).await;
    assert_eq!(progress["channels"][0]["position"], json!(published));
    has_event(&kit, "subscription.restored").await;
}

#[tokio::test]
async fn a_lost_group_is_made_again_where_it_was_and_a_gap_is_told() {
    let (kit, worker) = started().await;
    put(&kit, "s", &json!({ "channels": ["c"], "deliver": { "log": {} } })).await;
    publish_all(&kit, "c", 0..5).await;
    figure(&kit, "s", "delivered", 5).await;
    worker.signal(Signal::SIGSTOP);
    publish_all(&kit, "c", 5..10).await;
    kit.redis_command(&["XGROUP", "DESTROY", "galley:{ch:c}:m", "sub:s"]).await;
    kit.redis_command(&["XTRIM", "galley:{ch:c}:m", "MAXLEN", "3"]).await;
    worker.signal(Signal::SIGCONT);
    worker.wait_for_logged_body("9").await;
    let expected: Vec<usize> = (0..5).chain(7..10).collect();
    let expected: BTreeMap<String, usize> = expected.into_iter().map(|number| (number.to_string(), 1)).collect();
    eventually("what is kept is delivered", || async { (logged(&worker) == expected).then_some(()) }).await;
    worker.wait_for_event("subscription.group_recreated").await;
    let gap = worker.wait_for_event("subscription.gap").await;
    assert!(gap["gap"].as_str().is_some_and(|gap| gap.contains(r#""count":2"#)), "{gap}");
}

#[tokio::test]
async fn two_workers_of_one_name_that_share_the_positions_of_a_broadcast_say_so() {
    let kit = GalleyKit::start().await;
    let name = [("GALLEY__PUBSUB_WORKER__NAME", "twin")];
    put(&kit, "s", &json!({ "channels": ["c"], "deliver": { "log": {} }, "mode": "broadcast" })).await;
    let before = worker(&kit, &name).await;
    publish(&kit, "c", "text/plain", "0").await;
    before.wait_for_logged_body("0").await;
    assert!(before.events("subscription.name_shared").is_empty());
    assert!(before.terminate().await.success());
    let one = worker(&kit, &name).await;
    publish(&kit, "c", "text/plain", "1").await;
    one.wait_for_logged_body("1").await;
    assert!(one.events("subscription.name_shared").is_empty(), "the one before it is gone");
    let _two = worker(&kit, &name).await;
    eventually("it is noticed", || async {
        publish(&kit, "c", "text/plain", "more").await;
        (!one.events("subscription.name_shared").is_empty()).then_some(())
    })
    .await;
}
