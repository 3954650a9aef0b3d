//! `Idempotency-Key`: one effect and one answer however often a request is sent.

use std::collections::BTreeSet;
use testkit::redis;

use reqwest::Response;
use serde_json::{Value, json};
use testkit::RedisServer;

use crate::kit::{GalleyKit, job_body};

async fn send(kit: &GalleyKit, path: &str, key: &str, body: &Value) -> Response {
    let request = kit.http.post(kit.gateway.url(path)).header("content-type", "application/json");
    request.header("idempotency-key", key).body(body.to_string()).send().await.expect("an answer")
}

fn is_replayed(response: &Response) -> bool {
    response.headers().get("idempotency-replayed").is_some_and(|value| value == "true")
}

/// As if the gateway had died after it carried the request out and before it noted the answer.
async fn forget_answers(kit: &GalleyKit) {
    for key in kit.redis_keys().await.iter().filter(|key| key.starts_with("galley:idempotency:")) {
        kit.redis_command(&["HDEL", key, "status", "answer"]).await;
    }
}

async fn waiting(kit: &GalleyKit, queue: &str) -> u64 {
    let answer: Value = kit.get(&format!("/ojs/v1/queues/{queue}/stats?create=true")).await.json().await.expect("JSON");
    answer["queue"]["available"].as_u64().expect("a number")
}

#[tokio::test]
async fn the_same_request_is_answered_alike_and_makes_one_job() {
    let kit = GalleyKit::start().await;
    let body = job_body("a.b", &json!([1]));
    let first = send(&kit, "/ojs/v1/jobs", "order-1", &body).await;
    assert!(first.status() == 201 && !is_replayed(&first));
    let location = first.headers()["location"].clone();
    let first = first.text().await.expect("text");
    for _ in 0..3 {
        let again = send(&kit, "/ojs/v1/jobs", "order-1", &body).await;
        assert!(again.status() == 201 && is_replayed(&again));
        assert_eq!(again.headers()["content-type"], "application/openjobspec+json");
        assert_eq!(again.headers()["location"], location);
        assert_eq!(again.text().await.expect("text"), first);
    }
    assert_eq!(waiting(&kit, "default").await, 1);
    let other = send(&kit, "/ojs/v1/jobs", "order-2", &body).await;
    assert!(other.status() == 201 && !is_replayed(&other), "another key is another request");
    assert_eq!(waiting(&kit, "default").await, 2);
}

#[tokio::test]
async fn fifty_at_once_make_one_job() {
    let kit = GalleyKit::start().await;
    let body = job_body("a.b", &json!([1]));
    let all = futures_util::future::join_all((0..50).map(|_| send(&kit, "/ojs/v1/jobs", "at-once", &body))).await;
    let mut ids = BTreeSet::new();
    for response in all {
        assert_eq!(response.status(), 201);
        let answer: Value = response.json().await.expect("JSON");
        ids.insert(answer["job"]["id"].as_str().expect("an id").to_owned());
    }
    assert_eq!((ids.len(), waiting(&kit, "default").await), (1, 1));
}

#[tokio::test]
async fn a_key_belongs_to_one_body_and_one_path() {
    let kit = GalleyKit::start().await;
    assert_eq!(send(&kit, "/ojs/v1/jobs", "k", &job_body("a", &json!([1]))).await.status(), 201);
    let other = send(&kit, "/ojs/v1/jobs", "k", &job_body("a", &json!([2]))).await;
    assert_eq!(other.status(), 409);
    let error: Value = other.json().await.expect("JSON");
    assert_eq!(error["error"]["code"], "idempotency_conflict");
    let batch = json!({ "jobs": [job_body("a", &json!([1]))] });
    assert_eq!(send(&kit, "/ojs/v1/jobs/batch", "k", &batch).await.status(), 201, "keys of other paths are others");
}

#[tokio::test]
async fn a_key_that_is_none_is_refused_and_nothing_is_written() {
    let kit = GalleyKit::start().await;
    let before = kit.redis_keys().await;
    for key in ["", &"x".repeat(256)] {
        let refused = send(&kit, "/ojs/v1/jobs", key, &job_body("a", &json!([]))).await;
        assert_eq!(refused.status(), 400, "{} characters", key.len());
    }
    assert_eq!(kit.redis_keys().await, before);
    assert_eq!(send(&kit, "/ojs/v1/jobs", &"x".repeat(255), &job_body("a", &json!([]))).await.status(), 201);
}

#[tokio::test]
async fn a_request_that_was_refused_does_not_burn_its_key() {
    let kit = GalleyKit::start().await;
    let before = kit.redis_keys().await;
    assert_eq!(send(&kit, "/ojs/v1/jobs", "k", &json!({ "type": "a" })).await.status(), 400);
    assert_eq!(kit.redis_keys().await, before);
    let right = send(&kit, "/ojs/v1/jobs", "k", &job_body("a", &json!([]))).await;
    assert!(right.status() == 201 && !is_replayed(&right));
}

#[tokio::test]
async fn what_was_made_before_a_crash_is_found_by_a_client_that_repeats_the_request() {
    let kit = GalleyKit::start().await;
    let cron = json!({ "name": "nightly", "expression": "0 3 * * *", "type": "a", "args": [] });
    assert_eq!(send(&kit, "/ojs/v1/cron", "cron", &cron).await.status(), 201);
    let unique = json!({ "type": "u", "args": [1], "unique": { "keys": ["args"] } });
    let jobs = json!([job_body("a", &json!([1])), unique, { "type": "b", "args": [], "queue": "demo" }]);
    let steps = json!([job_body("a", &json!([1])), job_body("b", &json!([2]))]);
    let requests = [
        ("/ojs/v1/jobs", job_body("a", &json!([1])), "/job/id"),
        ("/ojs/v1/jobs", json!({ "type": "u", "args": [2], "unique": { "keys": ["args"] } }), "/job/id"),
        ("/ojs/v1/jobs", json!({ "type": "a", "args": [], "scheduled_at": "+PT1H" }), "/job/id"),
        ("/ojs/v1/jobs/batch", json!({ "jobs": jobs }), "/jobs/2/id"),
        ("/ojs/v1/jobs/batch", json!({ "jobs": jobs, "mode": "per_item" }), "/results/0/job/id"),
        ("/ojs/v1/workflows", json!({ "type": "chain", "steps": steps }), "/workflow/id"),
        ("/ojs/v1/cron", cron, "/cron/name"),
        ("/ojs/v1/cron/nightly/trigger", json!({}), "/job/id"),
    ];
    for (n, (path, body, id)) in requests.iter().enumerate() {
        let first: Value = send(&kit, path, &format!("k{n}"), body).await.json().await.expect("JSON");
        let made = first.pointer(id).unwrap_or_else(|| panic!("{path}: {first}")).clone();
        let before = (waiting(&kit, "default").await, waiting(&kit, "demo").await);
        forget_answers(&kit).await;
        let again = send(&kit, path, &format!("k{n}"), body).await;
        assert!(again.status().is_success() && !is_replayed(&again), "{path} {n}: {}", again.status());
        let again: Value = again.json().await.expect("JSON");
        assert_eq!(again.pointer(id), Some(&made), "{path}: {again}");
        assert_eq!((waiting(&kit, "default").await, waiting(&kit, "demo").await), before, "{path} made more");
        // From now on it is replayed again
        assert!(is_replayed(&send(&kit, path, &format!("k{n}"), body).await), "{path}");
    }
}

#[tokio::test]
async fn a_repetition_finds_its_jobs_although_the_queue_takes_no_more() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__QUEUES__SMALL__MAX_DEPTH", "2")]).await;
    let one = json!({ "type": "a", "args": [], "queue": "small" });
    let batch =
        json!({ "jobs": [{ "type": "a", "args": [], "queue": "full" }, { "type": "b", "args": [], "queue": "full" }] });
    let id = |answer: &Value, at: &str| answer.pointer(at).cloned().unwrap_or_else(|| panic!("{answer}"));
    let first: Value = send(&kit, "/ojs/v1/jobs", "one", &one).await.json().await.expect("JSON");
    let many: Value = send(&kit, "/ojs/v1/jobs/batch", "many", &batch).await.json().await.expect("JSON");
    kit.enqueue(&one).await;
    assert_eq!(kit.post("/ojs/v1/jobs", &one).await.status(), 429, "it is full");
    assert_eq!(kit.post("/ojs/v1/queues/full/drain", &json!({})).await.status(), 200);
    testkit::eventually("it is closed", || async {
        let extra = json!({ "type": "a", "args": [], "queue": "full", "scheduled_at": "+PT1H" });
        (kit.post("/ojs/v1/jobs", &extra).await.status() == 503).then_some(())
    })
    .await;
    forget_answers(&kit).await;
    let again = send(&kit, "/ojs/v1/jobs", "one", &one).await;
    assert_eq!(again.status(), 201);
    assert_eq!(id(&again.json().await.expect("JSON"), "/job/id"), id(&first, "/job/id"));
    let again = send(&kit, "/ojs/v1/jobs/batch", "many", &batch).await;
    assert_eq!(again.status(), 201);
    let again: Value = again.json().await.expect("JSON");
    for n in 0..2 {
        assert_eq!(id(&again, &format!("/jobs/{n}/id")), id(&many, &format!("/jobs/{n}/id")));
    }
}

#[tokio::test]
async fn a_message_is_published_once_whatever_became_of_the_answer() {
    let kit = GalleyKit::start().await;
    let many = json!([{ "data": 1 }, { "data": 2 }]);
    for (path, body, status) in [("", json!("hello"), 201), ("/batch", many, 200)] {
        let path = format!("/v1/channels/news/messages{path}");
        let first = send(&kit, &path, "k", &body).await;
        assert_eq!(first.status(), status);
        let first: Value = first.json().await.expect("JSON");
        let again = send(&kit, &path, "k", &body).await;
        assert!(again.status() == status && is_replayed(&again));
        assert_eq!(again.json::<Value>().await.expect("JSON"), first);
        forget_answers(&kit).await;
        let again = send(&kit, &path, "k", &body).await;
        assert!(again.status() == status && !is_replayed(&again));
        assert_eq!(again.json::<Value>().await.expect("JSON"), first);
    }
    assert_eq!(kit.redis_command(&["XLEN", "galley:{ch:news}:m"]).await, redis::Value::Int(3));
}

#[tokio::test]
async fn a_message_that_found_no_room_is_published_by_a_client_that_repeats_the_request() {
    let kit = GalleyKit::start().await;
    let publish = async |path: &str, body: &Value| {
        let response = send(&kit, &format!("/v1/channels/news/messages{path}"), "k", body).await;
        (response.status().as_u16(), response.json::<Value>().await.expect("JSON"))
    };
    let many = json!([{ "data": 1 }, 2]);
    for (path, body) in [("", json!("hello")), ("/batch", many)] {
        // Not so little that what is known of the request could not be noted
        kit.redis_command(&["ACL", "SETUSER", "default", "-xadd"]).await;
        let (_, refused) = publish(path, &body).await;
        assert!(refused["status"] == 500 || refused["results"][0]["status"] == 500, "{refused}");
        kit.redis_command(&["ACL", "SETUSER", "default", "+xadd"]).await;
        let (status, answer) = publish(path, &body).await;
        assert!(status < 300 && (path.is_empty() || answer["results"][0]["status"] == 201), "{answer}");
        assert!(path.is_empty() || answer["results"][1]["status"] == 400, "{answer}");
    }
    assert_eq!(kit.redis_command(&["XLEN", "galley:{ch:news}:m"]).await, redis::Value::Int(2));
}

#[tokio::test]
async fn a_key_belongs_to_what_is_said_of_a_message_too() {
    let kit = GalleyKit::start().await;
    let event = [("ce-specversion", "1.0"), ("ce-source", "/k"), ("ce-type", "a"), ("ce-id", "1")];
    let publish = async |content_type: &str, id: &str| {
        let request = kit.http.post(kit.gateway.url("/v1/channels/news/messages")).header("idempotency-key", "k");
        let request = event[..3].iter().fold(request, |request, (name, value)| request.header(name, *value));
        let request = request.header("ce-id", id).header("content-type", content_type);
        request.body("1").send().await.expect("an answer")
    };
    assert_eq!(publish("text/plain", "1").await.status(), 201);
    for _ in 0..10 {
        assert!(is_replayed(&publish("text/plain", "1").await), "whatever the order of the headers");
    }
    for (content_type, id) in [("text/plain", "2"), ("application/json", "1")] {
        let other = publish(content_type, id).await;
        assert_eq!(other.status(), 409);
        assert_eq!(other.json::<Value>().await.expect("JSON")["code"], "idempotency_conflict");
    }
}

#[tokio::test]
async fn a_job_of_somebody_else_is_not_taken_for_the_batchs_own() {
    let kit = GalleyKit::start().await;
    let taken = json!({ "type": "a", "args": ["first"], "id": "019539a4-b68c-7def-8000-1a2b3c4d5e6f" });
    let id = kit.enqueue(&taken).await;
    let mut other = taken;
    other["args"] = json!(["second"]);
    let batch = json!({ "jobs": [job_body("a", &json!([])), other] });
    let refused = send(&kit, "/ojs/v1/jobs/batch", "k", &batch).await;
    assert_eq!(refused.status(), 409);
    assert_eq!((&kit.job(&id).await["args"], waiting(&kit, "default").await), (&json!(["first"]), 1));
}

#[tokio::test]
async fn a_repetition_tries_again_what_may_go_better_and_makes_nothing_twice() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__QUEUES__SMALL__MAX_DEPTH", "1")]).await;
    let small = json!({ "type": "a", "args": [], "queue": "small" });
    let body = json!({ "jobs": [small, job_body("a", &json!([])), small], "mode": "per_item" });
    let repeat = async || {
        let response = send(&kit, "/ojs/v1/jobs/batch", "some", &body).await;
        assert_eq!(response.status(), 200);
        (is_replayed(&response), response.json::<Value>().await.expect("JSON"))
    };
    let (_, first) = repeat().await;
    // Jobs with ids of their own may overtake one another: either of the two may have got the place
    let full = [0, 2].into_iter().find(|n| first["results"][*n]["error"]["code"] == "queue_full");
    let full = full.expect("one finds no place");
    kit.fetch("small").await.expect("a job");
    let (is_replayed, second) = repeat().await;
    assert!(!is_replayed);
    for n in (0..3).filter(|n| *n != full) {
        assert_eq!(second["results"][n]["job"]["id"], first["results"][n]["job"]["id"], "{second}");
    }
    assert!(second["results"][full]["job"]["id"].is_string(), "{second}");
    assert_eq!((waiting(&kit, "small").await, waiting(&kit, "default").await), (1, 1));
    assert!(repeat().await.0, "an answer without anything to try again is kept");
}

#[tokio::test]
async fn an_interrupted_batch_that_meets_a_full_queue_is_answered_with_503_until_there_is_room() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__QUEUES__SMALL__MAX_DEPTH", "1")]).await;
    let small = json!({ "type": "a", "args": [], "queue": "small" });
    let batch = json!({ "jobs": [job_body("a", &json!([])), small] });
    let ids = |answer: &Value| -> Vec<String> {
        let jobs = answer["jobs"].as_array().expect("jobs").iter();
        jobs.map(|job| job["id"].as_str().expect("an id").to_owned()).collect()
    };
    let stored = ids(&send(&kit, "/ojs/v1/jobs/batch", "k", &batch).await.json().await.expect("JSON"));
    // As if it had broken off before it stored the second one
    forget_answers(&kit).await;
    for key in kit.redis_keys().await.iter().filter(|key| key.starts_with("galley:{small}:")) {
        kit.redis_command(&["DEL", key]).await;
    }
    let in_the_way = kit.enqueue(&small).await;
    for _ in 0..2 {
        let refused = send(&kit, "/ojs/v1/jobs/batch", "k", &batch).await;
        assert_eq!(refused.status(), 503);
        assert!(refused.headers().contains_key("retry-after"));
        let answer: Value = refused.json().await.expect("JSON");
        assert_eq!(answer["error"]["code"], "batch_incomplete", "{answer}");
    }
    kit.cancel(&in_the_way).await;
    let answer = send(&kit, "/ojs/v1/jobs/batch", "k", &batch).await;
    assert_eq!(answer.status(), 201);
    assert_eq!(ids(&answer.json().await.expect("JSON")), stored);
    assert_eq!((waiting(&kit, "default").await, waiting(&kit, "small").await), (1, 1));
}
