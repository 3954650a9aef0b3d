//! Jobs over HTTP, run by a queue-worker or pulled.

use serde_json::{Value, json};
use testkit::eventually;

use crate::kit::{GalleyKit, job_body};

#[tokio::test]
async fn a_job_is_run_and_its_result_can_be_looked_up() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    let response = kit.post("/ojs/v1/jobs", &job_body("test.echo", &json!(["hello", { "n": 1 }]))).await;
    assert_eq!(response.status(), 201);
    let location = response.headers()["location"].to_str().expect("text").to_owned();
    assert_eq!(response.headers()["content-type"], "application/openjobspec+json");
    let id = location.rsplit('/').next().expect("an id");
    let done = kit.wait_for_state(id, "completed").await;
    assert_eq!(done["result"], json!(["hello", { "n": 1 }]));
    assert_eq!((&done["attempt"], &done["queue"]), (&json!(1), &json!("default")));
}

#[tokio::test]
async fn failures_are_retried_by_their_policy_and_remembered() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    let retry = json!({ "initial_interval": "PT0.1S", "jitter": false });
    let once = kit.enqueue(&json!({ "type": "test.fail_once", "args": [], "retry": retry })).await;
    let done = kit.wait_for_state(&once, "completed").await;
    assert_eq!((&done["attempt"], done["errors"].as_array().map(Vec::len)), (&json!(2), Some(1)));
    assert!(done["error"].is_null(), "a success clears the error");

    let policy = json!({ "max_attempts": 2, "initial_interval": "PT0.1S", "on_exhaustion": "dead_letter" });
    let always = kit.enqueue(&json!({ "type": "test.fail_always", "args": [], "retry": policy })).await;
    let dead = kit.wait_for_state(&always, "discarded").await;
    assert_eq!((&dead["attempt"], &dead["error"]["code"]), (&json!(2), &json!("handler_error")));
    let listed: Value = kit.get("/ojs/v1/dead-letter").await.json().await.expect("JSON");
    assert_eq!(listed["jobs"][0]["id"], json!(always));
}

#[tokio::test]
async fn a_panic_a_timeout_and_an_unknown_type_are_failures_and_the_worker_lives_on() {
    let kit = GalleyKit::start().await;
    let mut worker = kit.start_worker(&[]).await;
    let once = json!({ "max_attempts": 1 });
    // Only one of them is to run out of time
    for (job_type, timeout_ms, code) in [
        ("test.panic", 600_000, "handler_panic"),
        ("test.timeout", 1000, "timeout"),
        ("nobody.knows", 600_000, "handler_not_found"),
    ] {
        let body = json!({ "type": job_type, "args": [], "retry": once, "timeout_ms": timeout_ms });
        let id = kit.enqueue(&body).await;
        let job = kit.wait_for_state(&id, "discarded").await;
        assert_eq!(job["error"]["code"], code, "{job}");
    }
    let id = kit.enqueue(&job_body("test.noop", &json!([]))).await;
    kit.wait_for_state(&id, "completed").await;
    assert!(worker.is_running());
}

#[tokio::test]
async fn a_scheduled_job_starts_when_its_time_has_come_and_not_before() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    let body = json!({ "type": "test.echo", "args": [], "scheduled_at": "+PT3S" });
    // As it was stored: its time may have come when somebody asks
    let answer: Value = kit.post("/ojs/v1/jobs", &body).await.json().await.expect("JSON");
    let scheduled = &answer["job"];
    assert_eq!(scheduled["state"], "scheduled");
    let time = scheduled["scheduled_at"].as_str().expect("a time");
    let done = kit.wait_for_state(scheduled["id"].as_str().expect("an id"), "completed").await;
    assert!(done["started_at"].as_str() >= Some(time), "{scheduled} {done}");
}

#[tokio::test]
async fn a_job_with_a_higher_priority_wakes_a_worker_that_has_never_seen_it() {
    let kit = GalleyKit::start().await;
    let worker = kit.start_worker(&[]).await;
    let first = kit.enqueue(&job_body("test.noop", &json!([]))).await;
    kit.wait_for_state(&first, "completed").await;
    for priority in [100, 7, -100] {
        let id = kit.enqueue(&json!({ "type": "test.noop", "args": [], "priority": priority })).await;
        kit.wait_for_state(&id, "completed").await;
    }
    assert!(worker.events("loop.interrupted").is_empty());
}

#[tokio::test]
async fn a_running_job_that_is_cancelled_is_dropped_by_its_worker() {
    let kit = GalleyKit::start().await;
    let worker = kit.start_worker(&[("GALLEY__QUEUE_WORKER__CONCURRENCY", "1")]).await;
    let id = kit.enqueue(&job_body("test.slow", &json!([600_000]))).await;
    kit.wait_for_state(&id, "active").await;
    let url = kit.gateway.url(&format!("/ojs/v1/jobs/{id}"));
    assert_eq!(kit.http.delete(&url).send().await.expect("an answer").status(), 200);
    worker.wait_for_event("attempt.lost").await;
    // Its place is free again
    let next = kit.enqueue(&job_body("test.noop", &json!([]))).await;
    kit.wait_for_state(&next, "completed").await;
    assert_eq!(kit.job(&id).await["state"], "cancelled");
    assert_eq!(kit.http.delete(&url).send().await.expect("an answer").status(), 409);
}

#[tokio::test]
async fn a_queue_with_a_depth_limit_answers_429_until_there_is_room() {
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &[("GALLEY__QUEUES__DEMO__MAX_DEPTH", "2")]).await;
    let dish = json!({ "type": "demo.dish", "args": [3], "queue": "demo" });
    for _ in 0..2 {
        assert_eq!(kit.post("/ojs/v1/jobs", &dish).await.status(), 201);
    }
    let refused = kit.post("/ojs/v1/jobs", &dish).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    let error: Value = refused.json().await.expect("JSON");
    assert_eq!((&error["error"]["code"], &error["error"]["retryable"]), (&json!("queue_full"), &json!(true)));
    let _worker = kit.start_worker(&[]).await;
    eventually("there is room", || async { (kit.post("/ojs/v1/jobs", &dish).await.status() == 201).then_some(()) })
        .await;
}

#[tokio::test]
async fn a_pulled_job_is_fenced_by_its_token() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("any.type", &json!([]))).await;
    let old = kit.fetch("default").await.expect("a job");
    let back = json!({ "job_id": id, "token": old["token"], "requeue": true });
    assert_eq!(kit.post("/ojs/v1/workers/nack", &back).await.status(), 200);
    let new = kit.fetch("default").await.expect("a job");
    assert_eq!((&new["id"], &new["attempt"]), (&json!(id), &json!(1)), "handing back does not spend an attempt");
    assert_ne!(old["token"], new["token"]);

    let error = json!({ "code": "handler_error", "message": "zombie" });
    let stale = [
        ("ack", json!({ "job_id": id, "token": old["token"], "result": "zombie" })),
        ("nack", json!({ "job_id": id, "token": old["token"], "error": error })),
        ("heartbeat", json!({ "worker_id": "puller", "active_jobs": [id], "tokens": { (id.clone()): old["token"] } })),
        ("ack", json!({ "job_id": id, "worker_id": "somebody-else" })),
    ];
    for (call, body) in stale {
        assert_eq!(kit.post(&format!("/ojs/v1/workers/{call}"), &body).await.status(), 409, "{call} {body}");
    }
    assert_eq!(kit.job(&id).await["state"], "active");
    let beat = json!({ "worker_id": "puller", "active_jobs": [id], "tokens": { (id.clone()): new["token"] } });
    assert_eq!(kit.post("/ojs/v1/workers/heartbeat", &beat).await.status(), 200);
    let ack = json!({ "job_id": id, "token": new["token"], "result": { "n": 1 } });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    assert_eq!(kit.job(&id).await["result"], json!({ "n": 1 }));
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 409, "it is over");
}

#[tokio::test]
async fn a_job_that_expired_while_it_waited_is_discarded_and_not_handed_out() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&json!({ "type": "a", "args": [], "expires_at": "2001-01-01T00:00:00Z" })).await;
    assert_eq!(kit.fetch("default").await, None);
    let job = kit.job(&id).await;
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("discarded"), &json!("expired")));
    assert!(job["completed_at"].is_null());
    let other = kit.enqueue(&json!({ "type": "test.noop", "args": [], "expires_at": "2001-01-01T00:00:00Z" })).await;
    let _worker = kit.start_worker(&[]).await;
    kit.wait_for_state(&other, "discarded").await;
}

#[tokio::test]
async fn events_tell_what_happened() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    let id = kit.enqueue(&json!({ "type": "test.noop", "args": [], "queue": "demo" })).await;
    kit.enqueue(&job_body("test.noop", &json!([]))).await;
    let events = eventually("both events are there", || async {
        let path = "/ojs/v1/events?types=job.enqueued,job.completed&queues=demo&limit=10";
        let answer: Value = kit.get(path).await.json().await.ok()?;
        answer["events"].as_array().filter(|events| events.len() == 2).cloned()
    })
    .await;
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().expect("a type")).collect();
    assert!(kinds.contains(&"job.enqueued") && kinds.contains(&"job.completed"));
    assert!(events.iter().all(|event| event["data"]["job_id"] == json!(id)));
}

#[tokio::test]
async fn metrics_and_health_are_there_on_every_service() {
    let kit = GalleyKit::start().await;
    let (worker, listener) = (kit.start_worker(&[]).await, kit.start_pubsub_worker().await);
    let id = kit.enqueue(&job_body("test.noop", &json!([]))).await;
    kit.wait_for_state(&id, "completed").await;
    for service in [&kit.gateway, &worker, &listener] {
        for path in ["/health/live", "/health/ready"] {
            assert_eq!(kit.http.get(service.url(path)).send().await.expect("an answer").status(), 200);
        }
    }
    // A process counts what it did after it has done it; routes are patterns, not paths
    for (service, line) in [
        (&kit.gateway, r#"galley_jobs_enqueued_total{queue="default"} 1"#),
        (&kit.gateway, r#"route="/ojs/v1/jobs/{id}""#),
        (&worker, r#"galley_attempts_total{queue="default",outcome="completed"} 1"#),
    ] {
        eventually(&format!("{line} is shown"), || async {
            let text = kit.http.get(service.url("/metrics")).send().await.ok()?.text().await.ok()?;
            text.contains(line).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_failed_job_of_the_default_policy_is_listed_and_retried_and_why_it_is_no_dead_letter_is_said() {
    let kit = GalleyKit::start().await;
    let worker = kit.start_worker(&[]).await;
    let id = kit.enqueue(&json!({ "type": "test.fail_always", "args": [], "retry": { "max_attempts": 1 } })).await;
    kit.wait_for_state(&id, "discarded").await;
    drop(worker);
    let listed = async |query: &str| -> Vec<String> {
        let page: Value = kit.get(&format!("/ojs/v1/admin/jobs?{query}")).await.json().await.expect("JSON");
        let jobs = page["items"].as_array().unwrap_or_else(|| panic!("{query}: {page}"));
        jobs.iter().map(|job| job["id"].as_str().expect("an id").to_owned()).collect()
    };
    for (query, expected) in [
        ("state=discarded", vec![id.clone()]),
        ("state=discarded&queue=default&type=test.*&since=-PT1H", vec![id.clone()]),
        ("state=discarded&type=other", vec![]),
    ] {
        assert_eq!(listed(query).await, expected, "{query}");
    }
    for query in ["?state=broken", "?sort=name", "?limit=1&page=2", "?q=stat:x", "?after=x", "?per_page=101"] {
        let refused = kit.get(&format!("/ojs/v1/admin/jobs{query}")).await;
        assert_eq!(refused.status(), 400, "{query}");
    }
    let not_listed = kit.get(&format!("/ojs/v1/dead-letter/{id}")).await;
    assert_eq!(not_listed.status(), 404);
    let error: Value = not_listed.json().await.expect("JSON");
    let said = error["error"]["message"].as_str().expect("a message");
    assert!(said.contains("is discarded") && said.contains("jobs.on_exhaustion"), "{said}");
    for path in [format!("/ojs/v1/dead-letter/{id}/retry"), format!("/ojs/v1/jobs/{id}/retry")] {
        let retried = kit.post(&path, &json!({})).await;
        assert_eq!(retried.status(), 200, "{path}");
        let answer: Value = retried.json().await.expect("JSON");
        assert_eq!((&answer["job"]["state"], &answer["job"]["attempt"]), (&json!("available"), &json!(0)));
        assert_eq!(kit.post(&path, &json!({})).await.status(), 409, "it waits");
        assert_eq!(listed("state=discarded").await, Vec::<String>::new());
        kit.cancel(&id).await;
    }
    let scheduled = kit.enqueue(&json!({ "type": "a", "args": [], "scheduled_at": "+PT1H" })).await;
    let path = format!("/ojs/v1/jobs/{scheduled}/retry");
    let answer: Value = kit.post(&path, &json!({})).await.json().await.expect("JSON");
    assert_eq!(answer["job"]["state"], "available");
    assert_eq!(kit.post("/ojs/v1/jobs/019539a4-b68c-7def-8000-1a2b3c4d5e6f/retry", &json!({})).await.status(), 404);
}
