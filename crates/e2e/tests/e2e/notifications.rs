//! Notifications between processes.

use serde_json::json;
use testkit::{eventually, redis};

use crate::kit::GalleyKit;

async fn pubsub_connections(kit: &GalleyKit) -> usize {
    let list = kit.redis_command(&["CLIENT", "LIST", "TYPE", "pubsub"]).await;
    redis::from_redis_value::<String>(list).expect("text").lines().count()
}

#[tokio::test]
async fn each_process_has_one_connection_for_notifications_whatever_it_waits_for() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[("GALLEY__QUEUES__LIMITED__CONCURRENCY", "1")]).await;
    let _pubsub_worker = kit.start_pubsub_worker().await;
    assert_eq!(pubsub_connections(&kit).await, 3);
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
        let topics = kit.redis_command(&["PUBSUB", "CHANNELS", "galley:{nobody}:*"]).await;
        let topics: Vec<String> = redis::from_redis_value(topics).expect("names");
        (!topics.is_empty()).then_some(())
    });
    tokio::select! {
        _ = fetch => panic!("there is no job to fetch"),
        _ = result => panic!("nobody runs the job"),
        () = both_wait => assert_eq!(pubsub_connections(&kit).await, 3),
    }
    drop((reader, events));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_notification_of_a_cancellation_stops_no_attempt() {
    let kit = GalleyKit::start().await;
    let worker = kit.start_worker(&[]).await;
    let id = kit.enqueue(&json!({ "type": "test.slow", "args": [1500] })).await;
    kit.wait_for_state(&id, "active").await;
    // Pub/sub knows no databases, so another installation on the same server may send these
    for noise in
        [format!("cancelled {id}"), "stream default".to_owned(), "due default".to_owned(), "cron entries".to_owned()]
    {
        for _ in 0..20 {
            kit.redis_command(&["PUBLISH", "galley:notifications", &noise]).await;
        }
    }
    let job = kit.wait_for_state(&id, "completed").await;
    assert_eq!(job["attempt"], 1);
    assert!(worker.events("attempt.lost").is_empty());
}
