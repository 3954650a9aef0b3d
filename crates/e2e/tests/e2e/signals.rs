//! Jobs that wait for signals and times, over HTTP, with handlers in Rust, and while things break.

use serde_json::{Value, json};
use testkit::{ServiceProcess, WebhookReceiver, WebhookReply, eventually};

use crate::{
    kit::{GalleyKit, TestFolder, job_body},
    push_handlers::pushing,
};

fn path(id: &str) -> String {
    format!("/ojs/v1/jobs/{id}/signals")
}

async fn send(kit: &GalleyKit, id: &str, body: &Value) -> (u16, Value) {
    let response = kit.post(&path(id), body).await;
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

async fn list(kit: &GalleyKit, id: &str) -> Vec<Value> {
    let answer: Value = kit.get(&path(id)).await.json().await.expect("JSON");
    assert_eq!(answer["next"], Value::Null);
    answer["items"].as_array().expect("signals").clone()
}

async fn nack(kit: &GalleyKit, job: &Value, wait: &Value) -> (u16, Value) {
    let body = json!({ "job_id": job["id"], "token": job["token"], "wait": wait });
    let response = kit.post("/ojs/v1/workers/nack", &body).await;
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

async fn fetch(kit: &GalleyKit) -> Value {
    eventually("the job is available", || kit.fetch("default")).await
}

#[tokio::test]
async fn a_program_waits_for_a_signal_and_is_given_what_came() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    let first = fetch(&kit).await;
    assert!(first.get("waiting").is_none() && first.get("signals").is_none());
    let wait = json!({ "step": "second look", "signal": "approved", "timeout_ms": 3_600_000 });
    let (status, waiting) = nack(&kit, &first, &wait).await;
    assert_eq!((status, &waiting["state"], &waiting["attempt"]), (200, &json!("scheduled"), &json!(1)), "{waiting}");
    let shown = kit.job(&id).await;
    assert_eq!((&shown["state"], &shown["waiting"]["step"]), (&json!("scheduled"), &json!("second look")));
    assert!(shown["waiting"]["until"].is_string() && shown.get("signals").is_none(), "{shown}");
    let answer: Value = kit.get("/ojs/v1/admin/jobs?state=scheduled").await.json().await.expect("JSON");
    assert_eq!(answer["items"][0]["waiting"]["signal"], "approved", "{answer}");
    assert_eq!(kit.fetch("default").await, None, "no worker holds it, and none gets it");

    let (status, sent) = send(&kit, &id, &json!({ "name": "approved", "data": { "by": "ann" }, "id": "s-1" })).await;
    assert_eq!((status, &sent["resumed"], &sent["signal"]["sequence"]), (201, &json!(true), &json!(1)), "{sent}");
    let (status, again) = send(&kit, &id, &json!({ "id": "s-1", "data": { "by": "ann" }, "name": "approved" })).await;
    assert_eq!((status, &again["resumed"], &again["signal"]), (200, &json!(false), &sent["signal"]));
    let (status, other) = send(&kit, &id, &json!({ "name": "approved", "data": 2, "id": "s-1" })).await;
    assert_eq!((status, &other["error"]["code"]), (409, &json!("conflict")), "{other}");
    let second = fetch(&kit).await;
    assert_eq!((&second["attempt"], &second["waiting"]["is_over"]), (&json!(1), &json!(false)));
    assert_eq!((&second["signals"], list(&kit, &id).await), (&json!([sent["signal"]]), vec![sent["signal"].clone()]));
    assert_eq!(nack(&kit, &first, &wait).await.0, 409, "the attempt before");
    // It knows that one, and its time is over at once
    let wait = json!({ "step": "third", "signal": "approved", "timeout_ms": 0, "received": [1] });
    assert_eq!(nack(&kit, &second, &wait).await.1["state"], "available");
    let third = fetch(&kit).await;
    assert_eq!((&third["waiting"]["is_over"], &third["waiting"]["step"]), (&json!(true), &json!("third")));
    let body = json!({ "job_id": id, "token": third["token"], "result": 1 });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &body).await.status(), 200);
    assert_eq!(list(&kit, &id).await, Vec::<Value>::new());
    let (status, refused) = send(&kit, &id, &json!({ "name": "approved" })).await;
    assert_eq!((status, &refused["error"]["code"]), (409, &json!("conflict")), "{refused}");
    eventually("the events are written", || async {
        let answer: Value = kit.get("/ojs/v1/events?types=job.waiting,job.signalled").await.json().await.ok()?;
        let mut types: Vec<_> = answer["events"].as_array()?.iter().map(|event| event["type"].clone()).collect();
        types.sort_by_key(ToString::to_string);
        (types == ["job.signalled", "job.waiting", "job.waiting"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_with_an_idempotency_key_sends_one_signal() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    let request = |data: i32| {
        let body = json!({ "name": "go", "data": data }).to_string();
        let request = kit.http.post(kit.gateway.url(&path(&id))).header("content-type", "application/json");
        request.header("idempotency-key", "once").body(body).send()
    };
    let first: Value = request(1).await.expect("an answer").json().await.expect("JSON");
    let again = request(1).await.expect("an answer");
    assert_eq!(
        (again.status(), again.headers()["idempotency-replayed"].to_str().ok()),
        (201.try_into().expect("a status"), Some("true"))
    );
    assert_eq!(again.json::<Value>().await.expect("JSON"), first);
    assert_eq!(request(2).await.expect("an answer").status(), 409);
    assert_eq!(list(&kit, &id).await, [first["signal"].clone()]);
}

#[tokio::test]
async fn what_is_no_signal_and_no_wait_is_refused_with_what_is_allowed() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    for body in [
        json!({}),
        json!({ "name": "" }),
        json!({ "name": "a b" }),
        json!({ "name": "x".repeat(129) }),
        json!({ "name": "a", "id": "" }),
        json!({ "name": "a", "id": "a b" }),
        json!({ "name": "a", "more": 1 }),
        json!([1]),
    ] {
        assert_eq!(send(&kit, &id, &body).await.0, 400, "{body}");
    }
    let of = |letters: usize| json!({ "name": "a", "data": "x".repeat(letters) });
    assert_eq!(send(&kit, &id, &of(65_534)).await.0, 201);
    let (status, refused) = send(&kit, &id, &of(65_535)).await;
    assert_eq!((status, &refused["error"]["code"]), (413, &json!("payload_too_large")), "{refused}");
    assert_eq!(send(&kit, &id, &json!({ "name": "b" })).await.0, 201);
    let page = async |query: &str| kit.get(&format!("{}{query}", path(&id))).await;
    let first: Value = page("?limit=1").await.json().await.expect("JSON");
    assert_eq!((&first["items"][0]["name"], &first["next"]), (&json!("a"), &json!("1")));
    let second: Value = page("?limit=1&after=1").await.json().await.expect("JSON");
    assert_eq!((&second["items"][0]["name"], &second["next"]), (&json!("b"), &Value::Null));
    for query in ["?limit=0", "?limit=1001", "?after=x"] {
        assert_eq!(page(query).await.status(), 400, "{query}");
    }
    let unknown = "019539a4-b68c-7def-8000-1a2b3c4d5e6f";
    assert_eq!(
        (send(&kit, unknown, &json!({ "name": "a" })).await.0, kit.get(&path(unknown)).await.status().as_u16()),
        (404, 404)
    );
    let job = fetch(&kit).await;
    for wait in [
        json!({}),
        json!({ "step": "a" }),
        json!({ "step": "", "signal": "a" }),
        json!({ "step": "a\nb", "signal": "a" }),
        json!({ "step": "a", "signal": "a b" }),
        json!({ "step": "a", "timeout_ms": 31_622_400_001_u64 }),
        json!({ "step": "a", "signal": "a", "received": [-1] }),
        json!({ "step": "a", "signal": "a", "received": vec![1; 1001] }),
        json!({ "step": "a", "signal": "a", "more": 1 }),
    ] {
        assert_eq!(nack(&kit, &job, &wait).await.0, 400, "{wait}");
    }
    let both =
        json!({ "job_id": id, "token": job["token"], "requeue": true, "wait": { "step": "a", "timeout_ms": 1 } });
    assert_eq!(kit.post("/ojs/v1/workers/nack", &both).await.status(), 400);
    assert_eq!(nack(&kit, &job, &json!({ "step": "a", "signal": "never" })).await.0, 200);
    assert!(kit.job(&id).await["waiting"].get("until").is_none(), "it waits for ever");
}

#[tokio::test]
async fn an_endpoint_waits_with_its_token() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([WebhookReply::new(202, "", ""), WebhookReply::ok("\"done\"")]).await;
    let (worker, _rules) = pushing(&kit, &receiver, "").await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    worker.wait_for_event("job.waiting_for_callback").await;
    let token = receiver.requests()[0].header("galley-token").expect("a token").to_owned();
    let job = json!({ "id": id, "token": token });
    assert_eq!(nack(&kit, &job, &json!({ "step": "a", "signal": "go" })).await.0, 200);
    assert_eq!(send(&kit, &id, &json!({ "name": "go", "data": [1] })).await.1["resumed"], true);
    kit.wait_for_state(&id, "completed").await;
    let sent: Value = serde_json::from_slice(&receiver.requests()[1].body).expect("JSON");
    assert_eq!((&sent["signals"][0]["data"], &sent["waiting"]["signal"]), (&json!([1]), &json!("go")));
}

#[tokio::test]
async fn a_handler_in_rust_waits_for_a_person_a_time_and_signals_and_spends_no_attempt() {
    let kit = GalleyKit::start().await;
    let outbox = TestFolder::new();
    let folder = outbox.path_text("");
    let variables = [("OUTBOX", folder.as_str())];
    let worker = ServiceProcess::start_worker("email_worker", &kit.redis, &variables).await;
    worker.wait_until_ready().await;
    let once = |args: Value| json!({ "type": "email.campaign", "args": args, "retry": { "max_attempts": 1 } });
    let id = kit.enqueue(&once(json!(["x@example.com", 50]))).await;
    let waits_for = async |id: &str, signal: &str| {
        eventually("the job waits", || async { (kit.job(id).await["waiting"]["signal"] == signal).then_some(()) })
            .await;
    };
    waits_for(&id, "approval.campaign").await;
    assert_eq!(kit.job(&id).await["state"], "scheduled");
    // Its worker is gone meanwhile; another one goes on
    drop(worker);
    let worker = ServiceProcess::start_worker("email_worker", &kit.redis, &variables).await;
    worker.wait_until_ready().await;
    // The first report comes before the job waits for it
    assert_eq!(send(&kit, &id, &json!({ "name": "opened", "data": 3 })).await.1["resumed"], false);
    let decision = json!({ "name": "approval.campaign", "data": { "approved": true, "by": "ann" } });
    assert_eq!(send(&kit, &id, &decision).await.1["resumed"], true);
    waits_for(&id, "opened").await;
    assert_eq!(send(&kit, &id, &json!({ "name": "opened", "data": 4 })).await.1["resumed"], true);
    let done = kit.wait_for_state(&id, "completed").await;
    assert_eq!((&done["result"], &done["attempt"]), (&json!("x@example.com opened 7, approved by ann"), &json!(1)));
    assert_eq!(outbox.read(&format!("{id}.charges")), "1\n", "what is before the waits ran once");
    worker.wait_for_event("job.waiting").await;

    let rejected = kit.enqueue(&once(json!(["x@example.com", 50]))).await;
    waits_for(&rejected, "approval.campaign").await;
    let decision = json!({ "name": "approval.campaign", "data": { "approved": false, "comment": "too loud" } });
    assert_eq!(send(&kit, &rejected, &decision).await.0, 201);
    let failed = kit.wait_for_state(&rejected, "discarded").await;
    assert_eq!((&failed["error"]["message"], &failed["attempt"]), (&json!("too loud"), &json!(1)));
}

#[tokio::test]
async fn a_kill_of_redis_loses_no_wait_and_no_signal() {
    let mut kit = GalleyKit::start_durable(&[]).await;
    let outbox = TestFolder::new();
    let folder = outbox.path_text("");
    let worker = ServiceProcess::start_worker("email_worker", &kit.redis, &[("OUTBOX", folder.as_str())]).await;
    worker.wait_until_ready().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(kit.enqueue(&job_body("email.campaign", &json!(["x@example.com", 0]))).await);
    }
    for id in &ids {
        eventually("the job waits", || async { kit.job(id).await["waiting"]["signal"].as_str().map(|_| ()) }).await;
    }
    for id in &ids {
        assert_eq!(send(&kit, id, &json!({ "name": "opened", "data": 1, "id": "1" })).await.0, 201);
    }
    kit.redis.kill();
    kit.redis.restart();
    for id in &ids {
        for (name, data) in [("approval.campaign", json!({ "approved": true })), ("opened", json!(2))] {
            let body = json!({ "name": name, "data": data, "id": name });
            eventually("the signal is taken", || async { (send(&kit, id, &body).await.0 < 300).then_some(()) }).await;
        }
    }
    for id in &ids {
        let done = kit.wait_for_state(id, "completed").await;
        assert_eq!(done["result"], "x@example.com opened 3, approved by somebody");
    }
}
