//! What follows for messages that a target refuses, and for subscriptions whose target does.

use std::sync::Arc;

use serde_json::{Value, json};
use testkit::{WebhookReceiver, WebhookReply, eventually};
use tokio::sync::Semaphore;

use crate::{
    kit::GalleyKit,
    subscriptions_delivery::{PRIVATE, figure, progress, publish, put, started},
    subscriptions_workers::vanish_with_a_message,
};

const EVENT: &str = "application/cloudevents+json";

async fn state(kit: &GalleyKit, name: &str) -> Value {
    let answer: Value = kit.get(&format!("/v1/subscriptions/{name}")).await.json().await.expect("JSON");
    answer["subscription"]["state"].clone()
}

async fn resume(kit: &GalleyKit, name: &str) {
    assert!(kit.post(&format!("/v1/subscriptions/{name}/resume"), &json!({})).await.status().is_success());
}

/// As if nothing but failures had been seen for days.
async fn has_failed_for_days(kit: &GalleyKit, name: &str) {
    kit.redis_command(&["HSET", &format!("galley:sub:{name}"), "failing_since", "1000"]).await;
}

/// Publishes an event in binary mode with an attribute `x`, percent-encoded; returns the status.
async fn publish_event(kit: &GalleyKit, channel: &str, x: &str) -> u16 {
    let request = kit.http.post(kit.gateway.url(&format!("/v1/channels/{channel}/messages"))).body("{}");
    let request = request.header("content-type", "application/json").header("ce-specversion", "1.0");
    let request = request.header("ce-id", "1").header("ce-source", "/k").header("ce-type", "t").header("ce-x", x);
    request.send().await.expect("an answer").status().as_u16()
}

#[tokio::test]
async fn what_can_be_published_can_be_delivered_in_order() {
    let (kit, _worker) = started().await;
    let receiver = WebhookReceiver::start([WebhookReply::ok("1")]).await;
    let target = json!({ "http": { "url": receiver.url("/") } });
    put(&kit, "hook", &json!({ "channels": ["c"], "deliver": target, "ordering": "channel" })).await;
    // As headers these have nine bytes a character, as JSON three
    let fits = "%E9%A5%AD".repeat(1_700);
    assert_eq!(publish_event(&kit, "c", &fits).await, 201);
    assert_eq!(publish_event(&kit, "c", &"%E9%A5%AD".repeat(1_900)).await, 400);
    let event = |x: &str| format!(r#"{{"specversion":"1.0","id":"1","source":"/k","type":"t","x":"{x}"}}"#);
    let url = kit.gateway.url("/v1/channels/c/messages");
    for (x, status) in [("饭".repeat(1_700), 201), ("饭".repeat(1_900), 400)] {
        let request = kit.http.post(&url).header("content-type", EVENT).body(event(&x));
        assert_eq!(request.send().await.expect("an answer").status(), status);
    }
    figure(&kit, "hook", "delivered", 2).await;
    assert_eq!(receiver.requests()[0].header("ce-x"), Some(fits.as_str()));
}

#[tokio::test]
async fn a_message_that_is_refused_for_good_makes_way_for_the_next_one_in_order() {
    let (kit, _worker) = started().await;
    let replies = [WebhookReply::new(422, "", "no"), WebhookReply::new(401, "", "who"), WebhookReply::ok("1")];
    let receiver = WebhookReceiver::start(replies).await;
    let target = json!({ "http": { "url": receiver.url("/") } });
    let retry =
        json!({ "initial_interval": "PT0.05S", "jitter": false, "max_attempts": 9, "on_exhaustion": "dead_letter" });
    let body = json!({ "channels": ["c"], "deliver": target, "ordering": "channel", "retry": retry });
    put(&kit, "hook", &body).await;
    let (first, second) = (publish(&kit, "c", "text/plain", "1").await, publish(&kit, "c", "text/plain", "2").await);
    figure(&kit, "hook", "delivered", 1).await;
    let shown = figure(&kit, "hook", "dead", 1).await;
    assert_eq!((&shown["lag"], &shown["retrying"]), (&json!(0), &json!(0)));
    // The endpoint refused the second one for a reason of its own, so it was tried again
    let requests = receiver.requests();
    let ids: Vec<_> = requests.iter().filter_map(|request| request.header("galley-message-id")).collect();
    assert_eq!(ids, [&first, &second, &second]);
    let dead: Value = kit.get("/ojs/v1/dead-letter?queue=sub.hook").await.json().await.expect("JSON");
    assert_eq!((&dead["jobs"][0]["args"][0]["id"], &dead["jobs"][0]["attempt"]), (&json!(first), &json!(1)));
}

#[tokio::test]
async fn an_event_fits_the_filter_in_every_mode_and_json_that_cannot_be_read_is_delivered_with_a_warning() {
    let (kit, worker) = started().await;
    let filter = json!({ "attributes": { "n": 7, "datacontenttype": "application/json" }, "data": { "/kind": "a" } });
    put(&kit, "some", &json!({ "channels": ["c"], "deliver": { "log": {} }, "filter": filter })).await;
    let url = kit.gateway.url("/v1/channels/c/messages");
    let binary = async |body: &str| {
        let request = kit.http.post(&url).header("content-type", "Application/JSON").header("ce-specversion", "1.0");
        let request = request.header("ce-id", "1").header("ce-source", "/k").header("ce-type", "t").header("ce-n", "7");
        assert_eq!(request.body(body.to_owned()).send().await.expect("an answer").status(), 201);
    };
    let event = |data: &str| format!(r#"{{"specversion":"1.0","id":"1","source":"/k","type":"t","n":7,{data}}}"#);
    binary(r#"{"kind":"a"}"#).await;
    publish(&kit, "c", "Application/CloudEvents+JSON", &event(r#""data":{"kind":"a"}"#)).await;
    publish(&kit, "c", EVENT, &event(r#""data_base64":"eyJraW5kIjoiYSJ9""#)).await;
    let batch = format!("[{}]", event(r#""data":{"kind":"a"}"#));
    let request = kit.http.post(format!("{url}/batch")).header("content-type", "application/cloudevents-batch+json");
    assert_eq!(request.body(batch).send().await.expect("an answer").status(), 200);
    let item = format!(r#"[{{"content_type":"{EVENT}","data":{}}}]"#, event(r#""data":{"kind":"a"}"#));
    let request = kit.http.post(format!("{url}/batch")).header("content-type", "application/json");
    assert_eq!(request.body(item).send().await.expect("an answer").status(), 200);
    figure(&kit, "some", "delivered", 5).await;
    // No parser is stricter than the publisher's: numbers of any size, any depth, lone surrogates
    let deep = format!(r#"{{"x":{}{},"kind":"a"}}"#, "[".repeat(300), "]".repeat(300));
    for body in [deep.as_str(), r#"{"x":1e999,"kind":"a"}"#, r#"{"x":"\ud800","kind":"a"}"#] {
        binary(body).await;
    }
    figure(&kit, "some", "delivered", 8).await;
    binary(r#"{"kind":"b"}"#).await;
    binary(r#"{"kind":"a""#).await;
    figure(&kit, "some", "delivered", 9).await;
    figure(&kit, "some", "filtered", 1).await;
    worker.wait_for_event("message.filter_unreadable").await;
    eventually("it is counted once", || async {
        let metrics = crate::http_client::get(worker.url("/metrics")).await.ok()?.text().await.ok()?;
        metrics.contains(r#"galley_messages_unfiltered_total{subscription="some"} 1"#).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_few_bad_messages_disable_nothing_however_far_apart() {
    let (kit, _worker) = started().await;
    let replies = [WebhookReply::new(500, "", ""), WebhookReply::new(500, "", ""), WebhookReply::new(422, "", "")];
    let receiver = WebhookReceiver::start(replies).await;
    let retry = json!({ "max_attempts": 1, "on_exhaustion": "dead_letter" });
    let target = json!({ "http": { "url": receiver.url("/") } });
    put(&kit, "hook", &json!({ "channels": ["c"], "deliver": target, "retry": retry, "max_in_flight": 1 })).await;
    publish(&kit, "c", "text/plain", "1").await;
    figure(&kit, "hook", "failed", 1).await;
    has_failed_for_days(&kit, "hook").await;
    for number in 2..=9_u64 {
        // One more failure of the endpoint, then refusals of single messages
        publish(&kit, "c", "text/plain", &number.to_string()).await;
        figure(&kit, "hook", "dead", number).await;
    }
    assert_eq!(state(&kit, "hook").await, "active");
    assert_eq!(progress(&kit, "hook").await["failing_since"], "1970-01-01T00:00:01.000Z", "refusals are no success");
}

#[tokio::test]
async fn after_a_resume_what_waits_is_tried_again_before_it_is_given_up() {
    let (kit, _worker) = started().await;
    let replies = [WebhookReply::new(500, "", ""), WebhookReply::new(410, "", "gone"), WebhookReply::ok("1")];
    let receiver = WebhookReceiver::start(replies).await;
    let retry = json!({ "max_attempts": 5, "initial_interval": "PT10H", "on_exhaustion": "dead_letter" });
    let target = json!({ "http": { "url": receiver.url("/") } });
    put(&kit, "hook", &json!({ "channels": ["c"], "deliver": target, "retry": retry })).await;
    publish(&kit, "c", "text/plain", "waits for hours").await;
    figure(&kit, "hook", "retrying", 1).await;
    publish(&kit, "c", "text/plain", "waits for nothing").await;
    eventually("it is disabled", || async { (state(&kit, "hook").await == "disabled").then_some(()) }).await;
    figure(&kit, "hook", "retrying", 2).await;
    resume(&kit, "hook").await;
    receiver.wait_for_requests(4).await;
    figure(&kit, "hook", "retrying", 0).await;
    assert_eq!(progress(&kit, "hook").await["dead"], json!(0));
    assert_eq!(receiver.requests().len(), 4, "each was tried again");
}

#[tokio::test]
async fn a_delivery_that_fails_after_a_removal_is_no_job_of_the_next_subscription_of_that_name() {
    let (kit, worker) = started().await;
    let gate = Arc::new(Semaphore::new(0));
    let WebhookReply::Raw(broken) = WebhookReply::new(500, "", "") else { panic!("bytes") };
    let old = WebhookReceiver::start([WebhookReply::Gated(gate.clone(), broken)]).await;
    let new = WebhookReceiver::start([WebhookReply::ok("1")]).await;
    let body = |receiver: &WebhookReceiver, channel: &str| {
        let retry = json!({ "initial_interval": "PT0.05S", "max_attempts": 5, "on_exhaustion": "dead_letter" });
        json!({ "channels": [channel], "deliver": { "http": { "url": receiver.url("/") } }, "retry": retry })
    };
    put(&kit, "hook", &body(&old, "c")).await;
    publish(&kit, "c", "text/plain", "of the old one").await;
    old.wait_for_requests(1).await;
    let url = kit.gateway.url("/v1/subscriptions/hook");
    assert!(kit.http.delete(url).send().await.expect("an answer").status().is_success());
    put(&kit, "hook", &body(&new, "d")).await;
    gate.add_permits(1);
    worker.wait_for_event("delivery.obsolete").await;
    publish(&kit, "d", "text/plain", "of the new one").await;
    let shown = figure(&kit, "hook", "delivered", 1).await;
    for (name, value) in [("failed", 0), ("retrying", 0), ("dead", 0), ("lag", 0)] {
        assert_eq!(shown[name], json!(value), "{name}: {shown}");
    }
    assert_eq!((old.requests().len(), new.requests().len()), (1, 1));
}

#[tokio::test]
async fn a_2xx_is_a_delivery_whatever_its_body() {
    let (kit, _worker) = started().await;
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let receiver = WebhookReceiver::start([
        WebhookReply::Endless("HTTP/1.1 200 OK\r\n\r\n"),
        WebhookReply::Cut(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{".to_vec()),
        WebhookReply::Cut(format!("{chunked}zz\r\n").into_bytes()),
        WebhookReply::new(200, "", "\u{0}"),
    ])
    .await;
    let target = json!({ "http": { "url": receiver.url("/") } });
    put(&kit, "hook", &json!({ "channels": ["c"], "deliver": target, "max_in_flight": 1 })).await;
    for number in 0..4 {
        publish(&kit, "c", "text/plain", &number.to_string()).await;
    }
    let shown = figure(&kit, "hook", "delivered", 4).await;
    assert_eq!((&shown["failed"], &shown["retrying"], receiver.requests().len()), (&json!(0), &json!(0), 4));
}

#[tokio::test]
async fn in_order_a_message_that_every_worker_vanishes_with_makes_way_for_the_next_one() {
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &[PRIVATE]).await;
    let receiver = WebhookReceiver::start([WebhookReply::Hang, WebhookReply::ok("1")]).await;
    let target = json!({ "http": { "url": receiver.url("/") } });
    let body = json!({ "channels": ["c"], "deliver": target, "ordering": "channel", "ack_deadline_ms": 1_000 });
    let _heir = vanish_with_a_message(&kit, &receiver, &body).await;
    figure(&kit, "hook", "delivered", 1).await;
}
