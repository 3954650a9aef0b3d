//! Statistics over HTTP: what queue-workers and programs that fetch did, now and in each minute.

use serde_json::{Value, json};
use testkit::eventually;

use crate::kit::{GalleyKit, job_body};

const QUICK: (&str, &str) = ("GALLEY__STATISTICS__FLUSH_MS", "100");

async fn history(kit: &GalleyKit, query: &str) -> Value {
    let response = kit.get(&format!("/ojs/v1/admin/stats/history{query}")).await;
    assert_eq!(response.status(), 200);
    response.json().await.expect("JSON")
}

fn total(answer: &Value, name: &str) -> u64 {
    answer["data"].as_array().expect("points").iter().filter_map(|point| point[name].as_u64()).sum()
}

#[tokio::test]
async fn the_history_counts_what_workers_of_both_kinds_did_and_survives_a_restart_of_redis() {
    let mut kit = GalleyKit::start_durable(&[QUICK]).await;
    let worker = kit.start_worker(&[QUICK]).await;
    let slow = kit.enqueue(&job_body("test.slow", &json!([300]))).await;
    let failing = json!({ "type": "test.fail_always", "args": [], "retry": { "max_attempts": 1 } });
    let failed = kit.enqueue(&failing).await;
    kit.wait_for_state(&slow, "completed").await;
    kit.wait_for_state(&failed, "discarded").await;
    kit.enqueue(&json!({ "type": "a", "args": [], "queue": "pulled" })).await;
    let job = kit.fetch("pulled").await.expect("a job");
    let ack = json!({ "job_id": job["id"], "token": job["token"] });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    let shown = eventually("all of it is sent", || async {
        let answer = history(&kit, "?period=1m").await;
        (total(&answer, "processed") == 3 && total(&answer, "enqueued") == 3).then_some(answer)
    })
    .await;
    assert_eq!((total(&shown, "failed"), total(&shown, "completed"), total(&shown, "discarded")), (1, 2, 1));
    let points = shown["data"].as_array().expect("points");
    assert!((60..=61).contains(&points.len()), "{} points in an hour", points.len());
    assert!(points.iter().any(|point| point["latency_p99_ms"].as_u64() >= Some(270)), "{shown}");
    let stats: Value = kit.get("/ojs/v1/admin/stats").await.json().await.expect("JSON");
    assert_eq!(stats["jobs"]["completed"], 2);
    assert!(stats["queues"].as_u64() >= Some(2), "{stats}");
    assert!(stats["workers"].as_u64() >= Some(1), "{stats}");
    assert!(stats["throughput"]["processed_per_minute"].as_f64() > Some(0.0), "{stats}");
    // The leader has folded it when Redis is killed, or it still waits: either way it is there afterwards
    kit.redis.kill();
    kit.redis.restart();
    let again = eventually("redis is back", || async {
        let response = kit.get("/ojs/v1/admin/stats/history?queue=pulled&period=1d").await;
        (response.status() == 200).then_some(response)
    })
    .await;
    let again: Value = again.json().await.expect("JSON");
    assert_eq!((total(&again, "processed"), &again["covered"]), (1, &json!(true)));
    drop(worker);
}

#[tokio::test]
async fn a_history_that_nobody_can_mean_is_refused() {
    let kit = GalleyKit::start().await;
    kit.enqueue(&job_body("a", &json!([]))).await;
    for (query, status) in [
        ("?period=2m", 400),
        ("?period=", 400),
        ("?since=yesterday", 400),
        ("?until=1", 400),
        ("?since=-PT1H&until=-PT2H", 400),
        ("?queue=NO", 400),
        ("?queue=nothing", 404),
        ("?queue=default&since=1970-01-01T00:00:00Z&period=1m", 200),
        ("?since=1970-01-01T00:00:00Z&until=9000-01-01T00:00:00Z&period=1d", 200),
        ("?since=2200-01-01T00:00:00Z&until=2200-01-02T00:00:00Z&period=1m", 200),
    ] {
        let response = kit.get(&format!("/ojs/v1/admin/stats/history{query}")).await;
        assert_eq!(response.status(), status, "{query}");
        if status == 200 {
            let answer: Value = response.json().await.expect("JSON");
            assert!(answer["data"].as_array().expect("points").len() <= 1501, "{query}");
        }
    }
}
