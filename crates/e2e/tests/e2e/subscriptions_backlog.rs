//! Subscriptions under load, and those whose failed messages cannot be kept.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde_json::json;
use testkit::{RedisServer, WebhookReceiver, WebhookReply, eventually_for};

use crate::{
    kit::GalleyKit,
    subscriptions_delivery::{PRIVATE, figure, progress, publish, put, started, worker},
};

#[tokio::test]
async fn messages_of_a_worker_that_is_killed_do_not_wait_until_a_backlog_is_gone() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[PRIVATE]).await;
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let answer = || WebhookReply::Gated(gate.clone(), b"HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n".to_vec());
    let receiver =
        WebhookReceiver::start([WebhookReply::Hang].into_iter().chain(std::iter::repeat_with(answer).take(200))).await;
    let doomed = worker(&kit, &[]).await;
    let target = json!({ "http": { "url": receiver.url("/"), "concurrency": 1 } });
    let body = json!({ "channels": ["c"], "deliver": target, "ack_deadline_ms": 1000, "max_in_flight": 1 });
    put(&kit, "hook", &body).await;
    publish(&kit, "c", "text/plain", "first").await;
    receiver.wait_for_requests(1).await;
    doomed.kill();
    let publishing = stream::iter(0..150).map(|_| publish(&kit, "c", "text/plain", "later"));
    publishing.buffer_unordered(16).count().await;
    let _heir = worker(&kit, &[]).await;
    // An answer goes out with every fiftieth look, so that no place is free but for a moment: 120 of the 150 at most
    let mut looks = 0;
    eventually_for(Duration::from_mins(1), "the first one is delivered", || {
        looks += 1;
        gate.add_permits(usize::from(looks % 50 == 0));
        let is_there = receiver.requests().iter().skip(1).any(|request| request.body == b"first");
        async move { is_there.then_some(()) }
    })
    .await;
    let lag = progress(&kit, "hook").await["lag"].as_u64().expect("a number");
    assert!(lag > 0, "everything else came before it");
}

#[tokio::test]
async fn a_subscription_whose_queue_takes_nothing_can_be_changed_and_loses_nothing() {
    let (kit, _worker) = started().await;
    let refusing = WebhookReceiver::start((0..3).map(|_| WebhookReply::new(422, "", "no"))).await;
    let of =
        |receiver: &WebhookReceiver| json!({ "channels": ["c"], "deliver": { "http": { "url": receiver.url("/") } } });
    put(&kit, "broken", &of(&refusing)).await;
    assert!(kit.post("/ojs/v1/queues/sub.broken/drain", &json!({})).await.status().is_success());
    for body in ["0", "1", "2"] {
        publish(&kit, "c", "text/plain", body).await;
    }
    refusing.wait_for_requests(3).await;
    // What could neither be delivered nor kept is given back, and goes where it is to go now
    let sound = WebhookReceiver::start((0..3).map(|_| WebhookReply::ok("1"))).await;
    put(&kit, "broken", &of(&sound)).await;
    let progress = figure(&kit, "broken", "delivered", 3).await;
    assert_eq!((&progress["dead"], &progress["retrying"]), (&json!(0), &json!(0)));
    figure(&kit, "broken", "in_flight", 0).await;
}
