//! Telling how several jobs ended in one request, with the next fetch or without.

use serde_json::{Value, json};

use crate::kit::{GalleyKit, job_body};

async fn fetched(kit: &GalleyKit, count: usize) -> Vec<Value> {
    let jobs: Vec<Value> = (0..count).map(|n| job_body("any.type", &json!([n]))).collect();
    assert_eq!(kit.post("/ojs/v1/jobs/batch", &json!({ "jobs": jobs })).await.status(), 201);
    let body = json!({ "queues": ["default"], "count": count, "worker_id": "puller" });
    let answer = call(kit, "fetch", &body).await.1;
    let jobs = answer["jobs"].as_array().expect("jobs").clone();
    assert_eq!(jobs.len(), count);
    jobs
}

async fn call(kit: &GalleyKit, name: &str, body: &Value) -> (u16, Value) {
    let response = kit.post(&format!("/ojs/v1/workers/{name}"), body).await;
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

fn ack(job: &Value, result: &Value) -> Value {
    json!({ "job_id": job["id"], "token": job["token"], "result": result })
}

fn id(job: &Value) -> &str {
    job["id"].as_str().expect("an id")
}

#[tokio::test]
async fn a_hundred_results_in_one_request_are_recorded_each_byte_for_byte() {
    let kit = GalleyKit::start().await;
    let jobs = fetched(&kit, 100).await;
    let acks: Vec<Value> = jobs.iter().map(|job| ack(job, &json!({ "of": job["args"], "n": 1 }))).collect();
    let (status, answer) = call(&kit, "ack", &json!({ "acks": acks, "worker_id": "puller" })).await;
    let results = answer["results"].as_array().expect("results");
    assert_eq!((status, results.len()), (200, 100), "{answer}");
    for (job, result) in jobs.iter().zip(results) {
        assert_eq!((&result["id"], &result["state"]), (&job["id"], &json!("completed")));
        let ended = kit.job(id(job)).await;
        assert_eq!((&ended["state"], &ended["result"]["of"]), (&json!("completed"), &job["args"]));
    }
}

#[tokio::test]
async fn a_bad_item_has_an_error_of_its_own_and_spoils_no_other() {
    let kit = GalleyKit::start().await;
    let jobs = fetched(&kit, 3).await;
    let unknown = "019539a4-b68c-7def-8000-1a2b3c4d5e6f";
    let items = json!([
        ack(&jobs[0], &json!(1)),
        { "job_id": unknown, "token": jobs[1]["token"] },
        { "job_id": jobs[1]["id"], "token": jobs[0]["token"] },
        { "job_id": "x" },
        { "job_id": jobs[1]["id"], "token": "short" },
        { "job_id": jobs[1]["id"], "worker_id": "another" },
        { "token": jobs[1]["token"] },
        "text",
        [jobs[1]["id"], null, null, null],
        ack(&jobs[1], &json!("x".repeat(1 << 20))),
        ack(&jobs[2], &json!(3)),
    ]);
    let (status, answer) = call(&kit, "ack", &json!({ "acks": items, "worker_id": "puller" })).await;
    assert_eq!(status, 200, "{answer}");
    let codes: Vec<&str> = answer["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|result| result["error"]["code"].as_str().unwrap_or_else(|| result["state"].as_str().expect("a state")))
        .collect();
    let invalid = "invalid_request";
    assert_eq!(codes[..7], ["completed", "not_found", "conflict", invalid, invalid, "conflict", invalid]);
    assert_eq!(codes[7..], [invalid, invalid, "payload_too_large", "completed"]);
    assert_eq!(kit.job(id(&jobs[0])).await["result"], 1);
    assert_eq!(kit.job(id(&jobs[1])).await["state"], "active");
    assert_eq!(kit.job(id(&jobs[2])).await["state"], "completed");
    // Of two about the same job one counts
    let twice = json!({ "acks": [ack(&jobs[1], &json!(1)), ack(&jobs[1], &json!(2))] });
    let (_, answer) = call(&kit, "ack", &twice).await;
    let is_done = |n: usize| answer["results"][n]["state"] == "completed";
    assert!(is_done(0) != is_done(1), "{answer}");
    assert_eq!(kit.job(id(&jobs[1])).await["result"], if is_done(0) { 1 } else { 2 });
}

#[tokio::test]
async fn failures_and_jobs_that_are_handed_back_go_in_one_request() {
    let kit = GalleyKit::start().await;
    let jobs = fetched(&kit, 3).await;
    let nack = |job: &Value, more: Value| {
        let mut nack = more;
        nack["job_id"] = job["id"].clone();
        nack["token"] = job["token"].clone();
        nack
    };
    let nacks = [
        nack(&jobs[0], json!({ "requeue": true })),
        nack(&jobs[1], json!({ "error": { "message": "no", "retryable": false, "stack": "line 1" } })),
        nack(&jobs[2], json!({ "error": { "message": "later" } })),
        nack(&jobs[2], json!({})),
    ];
    let (status, answer) = call(&kit, "nack", &json!({ "nacks": nacks })).await;
    let states: Vec<&Value> = answer["results"].as_array().expect("results").iter().map(|one| &one["state"]).collect();
    assert_eq!(
        (status, states),
        (200, vec![&json!("available"), &json!("discarded"), &json!("retryable"), &json!(null)])
    );
    assert_eq!(answer["results"][3]["error"]["code"], "invalid_request");
    assert_eq!(kit.job(id(&jobs[1])).await["errors"][0]["message"], "no");
    assert_eq!(kit.job(id(&jobs[0])).await["attempt"], 0, "it is not spent");
}

#[tokio::test]
async fn a_failure_may_say_when_the_next_attempt_follows() {
    let kit = GalleyKit::start().await;
    let body = json!({ "type": "any.type", "args": [], "retry": { "initial_interval": "PT1H", "max_attempts": 2 } });
    kit.enqueue(&body).await;
    let held = kit.fetch("default").await.expect("a job");
    for (pause, status) in [(json!(604_800_001), 400), (json!(-1), 400), (json!("1"), 400), (json!(0), 200)] {
        let error = json!({ "message": "later", "retry_after_ms": pause });
        let nack = json!({ "job_id": held["id"], "token": held["token"], "error": error });
        assert_eq!(call(&kit, "nack", &nack).await.0, status, "{pause}");
    }
    let body = json!({ "queues": ["default"], "wait_ms": 60_000 });
    let again = call(&kit, "fetch", &body).await.1["jobs"][0].clone();
    assert_eq!((&again["id"], &again["attempt"]), (&held["id"], &json!(2)));
    let error = json!({ "message": "later", "retry_after_ms": 0 });
    let nack = json!({ "job_id": again["id"], "token": again["token"], "error": error });
    assert_eq!(call(&kit, "nack", &nack).await.1["state"], "discarded", "there are no more attempts for that");
}

#[tokio::test]
async fn a_fetch_brings_along_how_jobs_ended_and_gets_the_next() {
    let kit = GalleyKit::start().await;
    let jobs = fetched(&kit, 2).await;
    let next = kit.enqueue(&job_body("any.type", &json!(["next"]))).await;
    let error = json!({ "message": "no", "retryable": false });
    let nack = json!({ "job_id": jobs[1]["id"], "token": jobs[1]["token"], "error": error });
    let mut body =
        json!({ "queues": ["default"], "worker_id": "puller", "acks": [ack(&jobs[0], &json!("r"))], "nacks": [nack] });
    let (status, answer) = call(&kit, "fetch", &body).await;
    assert_eq!((status, &answer["jobs"][0]["id"]), (200, &json!(next)), "{answer}");
    assert_eq!((&answer["acks"][0]["state"], &answer["nacks"][0]["state"]), (&json!("completed"), &json!("discarded")));
    assert_eq!(kit.job(id(&jobs[0])).await["result"], "r");
    // The same again: what was recorded stays, and that nothing is found is no error
    let (status, answer) = call(&kit, "fetch", &body).await;
    assert_eq!((status, &answer["jobs"]), (200, &json!([])));
    assert_eq!(answer["acks"][0]["error"]["code"], "conflict");
    // Whose fetch fails is told what became of the rest
    body["acks"] = json!([ack(&answer_of(&kit, &next).await, &json!("n"))]);
    body["nacks"] = json!([]);
    kit.redis_command(&["SET", "galley:{broken}:priorities", "not a set"]).await;
    body["queues"] = json!(["broken"]);
    let (status, answer) = call(&kit, "fetch", &body).await;
    assert_eq!(
        (status, &answer["acks"][0]["state"], &answer["jobs"]),
        (200, &json!("completed"), &json!([])),
        "{answer}"
    );
    assert_eq!(answer["error"]["code"], "backend_error");
    body["acks"] = Value::Null;
    body["nacks"] = Value::Null;
    assert_eq!(call(&kit, "fetch", &body).await.0, 500, "a fetch alone just fails");
}

async fn answer_of(kit: &GalleyKit, id: &str) -> Value {
    assert_eq!(kit.job(id).await["state"], "active");
    json!({ "id": id })
}

#[tokio::test]
async fn a_fetch_that_is_refused_has_recorded_nothing() {
    let kit = GalleyKit::start().await;
    let jobs = fetched(&kit, 1).await;
    let acks = json!([ack(&jobs[0], &json!(1))]);
    let many = vec![acks[0].clone(); 60];
    for (mut body, message) in [
        (json!({}), "queues"),
        (json!({ "queues": ["{x}"] }), "queue must match"),
        (json!({ "queues": ["default"], "count": 0 }), "count must be"),
        (json!({ "queues": ["default"], "worker_id": "a b" }), "worker_id must"),
        (json!({ "queues": ["default"], "visibility_timeout_ms": 0 }), "visibility_timeout_ms must be"),
        (
            json!({ "queues": ["default"], "wait_ms": 60_001 }),
            "wait_ms must be an integer of milliseconds from 0 to 60000",
        ),
        (json!({ "queues": ["default"], "wait_ms": -1 }), "wait_ms"),
        (json!({ "queues": ["default"], "wait_ms": "1" }), "wait_ms"),
        (json!({ "queues": ["default"], "wait_ms": 1.5 }), "wait_ms"),
        (json!({ "queues": ["default"], "nacks": 5 }), "nacks"),
        (json!({ "queues": ["default"], "nacks": vec![json!({}); 100] }), "together have at most 100"),
        (json!({ "queues": ["default"], "acks": many, "nacks": many }), "together have at most 100"),
    ] {
        if body["acks"].is_null() {
            body["acks"] = acks.clone();
        }
        let (status, answer) = call(&kit, "fetch", &body).await;
        let text = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 400 && text.contains(message), "{message:?} is not in {answer}");
    }
    for (name, body, message) in [
        ("ack", json!({ "acks": [] }), "1 to 100"),
        ("ack", json!({ "acks": many.iter().chain(&many).collect::<Vec<_>>() }), "1 to 100"),
        ("ack", json!({ "acks": {} }), "acks"),
        ("ack", json!({ "acks": acks, "worker_id": "a b" }), "worker_id must"),
        ("nack", json!({ "nacks": [] }), "1 to 100"),
        ("nack", json!({ "nacks": "x" }), "nacks"),
        ("nack", json!({ "nacks": acks, "worker_id": "" }), "worker_id must"),
    ] {
        let (status, answer) = call(&kit, name, &body).await;
        let text = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 400 && text.contains(message), "{message:?} is not in {answer}");
    }
    assert_eq!(kit.job(id(&jobs[0])).await["state"], "active");
}
