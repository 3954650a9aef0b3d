//! When jobs start and when their time is over. Cancelling is in `jobs`.

use serde_json::{Value, json};
use testkit::eventually;

use crate::kit::{GalleyKit, job_body};

#[tokio::test]
async fn a_pending_job_waits_until_it_is_activated() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    let id = kit.enqueue(&json!({ "type": "test.echo", "args": [1], "pending": true })).await;
    let other = kit.enqueue(&job_body("test.noop", &json!([]))).await;
    kit.wait_for_state(&other, "completed").await;
    assert_eq!((&kit.job(&id).await["state"], kit.fetch("default").await), (&json!("pending"), None));
    let activate = async |id: &str| kit.post(&format!("/ojs/v1/jobs/{id}/activate"), &json!({})).await;
    let response = activate(&id).await;
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().await.expect("JSON");
    assert_ne!(answer["job"]["state"], "pending", "a worker may have it already");
    assert_eq!(kit.wait_for_state(&id, "completed").await["result"], json!([1]));
    assert_eq!(activate(&id).await.status(), 409);
    assert_eq!(activate(&other).await.status(), 409);
    assert_eq!(activate("019539a4-b68c-7def-8000-1a2b3c4d5e6f").await.status(), 404);
    let dropped = kit.enqueue(&json!({ "type": "a", "args": [], "pending": true })).await;
    let url = kit.gateway.url(&format!("/ojs/v1/jobs/{dropped}"));
    assert_eq!(kit.http.delete(url).send().await.expect("an answer").status(), 200);
    assert_eq!(activate(&dropped).await.status(), 409, "what is over stays over");
    let both = json!({ "type": "a", "args": [], "pending": true, "scheduled_at": "+PT1H" });
    assert_eq!(kit.post("/ojs/v1/jobs", &both).await.status(), 400);
}

#[tokio::test]
async fn a_job_expires_on_time_wherever_it_waits_although_nobody_asks_for_it() {
    let kit = GalleyKit::start().await;
    let mut ids = Vec::new();
    for more in [
        json!({}),
        json!({ "pending": true }),
        json!({ "scheduled_at": "+PT1H" }),
        json!({ "rate_limit": { "key": "k", "concurrency": 0 } }),
    ] {
        let mut body = json!({ "type": "a", "args": [], "expires_at": "+PT3S" });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        ids.push(kit.enqueue(&body).await);
    }
    for id in &ids {
        let job = kit.wait_for_state(id, "discarded").await;
        assert_eq!(job["error"]["code"], "expired", "{job}");
        assert!(job["discarded_at"].as_str() >= job["expires_at"].as_str(), "not before: {job}");
    }
    let stats: Value = kit.get("/ojs/v1/queues/default").await.json().await.expect("JSON");
    assert_eq!((&stats["queue"]["available"], &stats["queue"]["pending"]), (&json!(0), &json!(0)), "{stats}");
}

#[tokio::test]
async fn a_job_whose_whole_time_is_over_is_stopped_and_its_worker_told() {
    let kit = GalleyKit::start().await;
    let worker = kit.start_worker(&[("GALLEY__QUEUE_WORKER__CONCURRENCY", "1")]).await;
    let id = kit.enqueue(&json!({ "type": "test.slow", "args": [600_000], "total_timeout_ms": 12_000 })).await;
    kit.wait_for_state(&id, "active").await;
    let job = kit.wait_for_state(&id, "discarded").await;
    assert_eq!((&job["error"]["code"], &job["attempt"]), (&json!("total_timeout"), &json!(1)), "{job}");
    worker.wait_for_event("attempt.lost").await;
    // Its place is free again
    let next = kit.enqueue(&json!({ "type": "test.noop", "args": [] })).await;
    kit.wait_for_state(&next, "completed").await;
    assert_eq!(kit.job(&id).await, job, "nothing changed");
}

#[tokio::test]
async fn no_attempt_follows_that_would_begin_after_the_whole_time() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    // With jitter the delays are random, and so is the number of attempts
    for (interval, total_ms, attempts) in [("PT0.4S", 13_000, 2..=33), ("PT1M", 30_000, 1..=1)] {
        let retry = json!({
            "max_attempts": 1000, "initial_interval": interval, "backoff_strategy": "constant", "jitter": false,
        });
        let body = json!({ "type": "test.fail_always", "args": [], "retry": retry, "total_timeout_ms": total_ms });
        let id = kit.enqueue(&body).await;
        let job = kit.wait_for_state(&id, "discarded").await;
        assert!(job["attempt"].as_u64().is_some_and(|attempt| attempts.contains(&attempt)), "{job}");
    }
}

#[tokio::test]
async fn a_program_whose_jobs_time_is_over_cannot_end_it_any_more() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&json!({ "type": "a", "args": [], "total_timeout_ms": 12_000 })).await;
    let fetched = kit.fetch("default").await.expect("a job");
    let beat = json!({ "worker_id": "puller", "active_jobs": [id], "tokens": { (id.clone()): fetched["token"] } });
    eventually("it is told with a heartbeat", || async {
        (kit.post("/ojs/v1/workers/heartbeat", &beat).await.status() == 409).then_some(())
    })
    .await;
    assert_eq!(kit.job(&id).await["error"]["code"], "total_timeout");
    let ack = json!({ "job_id": id, "token": fetched["token"], "result": 1 });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 409);
    assert_eq!(kit.job(&id).await["state"], "discarded");
}
