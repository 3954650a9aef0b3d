//! Checkpoints over HTTP, of endpoints, and of handlers in Rust.

use serde_json::{Value, json};
use testkit::{ServiceProcess, WebhookReceiver, WebhookReply, eventually};

use crate::{
    kit::{GalleyKit, RULES_VARIABLE, TestFolder, job_body},
    push_handlers::pushing,
};

/// A job whose attempts follow each other at once.
fn patient(job_type: &str, args: &Value) -> Value {
    json!({ "type": job_type, "args": args, "retry": { "max_attempts": 5, "initial_interval": "PT0.1S" } })
}

fn path(id: &str) -> String {
    format!("/ojs/v1/jobs/{id}/checkpoint")
}

async fn put(kit: &GalleyKit, id: &str, body: &Value) -> (u16, Value) {
    let request = kit.http.put(kit.gateway.url(&path(id))).header("content-type", "application/json");
    let response = request.body(body.to_string()).send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

async fn post(kit: &GalleyKit, id: &str, body: &Value) -> (u16, Value) {
    let response = kit.post(&path(id), body).await;
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

async fn show(kit: &GalleyKit, id: &str) -> Option<Value> {
    let response = kit.get(&path(id)).await;
    (response.status() == 200).then_some(response.json().await.expect("JSON"))
}

async fn delete(kit: &GalleyKit, id: &str) -> (u16, Value) {
    let response = kit.http.delete(kit.gateway.url(&path(id))).send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

async fn end(kit: &GalleyKit, how: &str, job: &Value, more: (&str, Value)) {
    let body = json!({ "job_id": job["id"], "token": job["token"], more.0: more.1 });
    assert_eq!(kit.post(&format!("/ojs/v1/workers/{how}"), &body).await.status(), 200);
}

async fn fetch(kit: &GalleyKit) -> Value {
    eventually("the job is available", || kit.fetch("default")).await
}

#[tokio::test]
async fn what_a_program_saved_comes_with_the_next_attempt_until_the_job_is_done() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&patient("a", &json!([]))).await;
    let first = fetch(&kit).await;
    assert_eq!((show(&kit, &id).await, first.get("checkpoint")), (None, None));
    let state = json!({ "rows": 750, "cursor": "\u{1f600}", "nested": [{ "empty": {} }, null, 1.5] });
    let (status, saved) = post(&kit, &id, &json!({ "state": state, "token": first["token"] })).await;
    assert_eq!((status, &saved["sequence"], &saved["checkpoint"]["sequence"]), (200, &json!(1), &json!(1)), "{saved}");
    let shown = show(&kit, &id).await.expect("a checkpoint");
    assert_eq!((&shown["job_id"], &shown["state"], &shown["created_at"]), (&json!(id), &state, &saved["created_at"]));
    assert_eq!(shown["checkpoint"]["state"], state);
    let failure = json!({ "code": "handler_error", "message": "lost", "retryable": true });
    end(&kit, "nack", &first, ("error", failure)).await;
    let second = fetch(&kit).await;
    assert_eq!((&second["attempt"], &second["checkpoint"]["state"]), (&json!(2), &state));
    assert_eq!(second["checkpoint"]["sequence"], 1);
    assert_eq!(kit.job(&id).await.get("checkpoint"), None, "it is for the attempt");

    // The attempt before can save no more
    let late = json!({ "state": "late", "token": first["token"] });
    assert_eq!((post(&kit, &id, &late).await.0, put(&kit, &id, &late).await.0), (409, 409));
    let (status, saved) = put(&kit, &id, &json!({ "state": null, "sequence": 7, "token": second["token"] })).await;
    assert_eq!((status, &saved["sequence"]), (200, &json!(7)));
    let (status, refused) = post(&kit, &id, &json!({ "state": 1, "sequence": 6, "token": second["token"] })).await;
    assert_eq!((status, &refused["error"]["code"]), (409, &json!("conflict")), "{refused}");
    assert_eq!(show(&kit, &id).await.expect("a checkpoint")["state"], Value::Null);
    eventually("the event is written", || async {
        let answer: Value = kit.get("/ojs/v1/events?types=job.checkpointed").await.json().await.ok()?;
        let events = answer["events"].as_array()?.clone();
        (events.len() == 2 && events.iter().any(|event| event["data"]["sequence"] == 7)).then_some(())
    })
    .await;
    end(&kit, "ack", &second, ("result", json!(1))).await;
    assert_eq!(show(&kit, &id).await, None);
    for refused in [post(&kit, &id, &json!({ "state": 1 })).await, put(&kit, &id, &json!({ "state": 1 })).await] {
        assert_eq!((refused.0, &refused.1["error"]["code"]), (409, &json!("conflict")));
    }
}

#[tokio::test]
async fn what_cannot_be_saved_is_refused_with_what_is_allowed() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&patient("a", &json!([]))).await;
    let (status, refused) = post(&kit, &id, &json!({ "state": 1 })).await;
    assert_eq!(status, 409, "nobody runs it");
    assert!(refused["error"]["message"].as_str().is_some_and(|text| text.contains("is available")), "{refused}");
    let token = fetch(&kit).await["token"].clone();
    let unknown = "019539a4-b68c-7def-8000-1a2b3c4d5e6f";
    assert_eq!(post(&kit, unknown, &json!({ "state": 1, "token": token })).await.0, 404);
    assert_eq!((put(&kit, unknown, &json!({ "state": 1 })).await.0, delete(&kit, unknown).await.0), (404, 404));
    assert_eq!(kit.get(&path(unknown)).await.status(), 404);
    for body in [
        json!({ "token": token }),
        json!({ "state": 1, "sequence": 0, "token": token }),
        json!({ "state": 1, "sequence": -1, "token": token }),
        json!({ "state": 1, "token": "x" }),
        json!({ "state": 1, "checkpoint": 1, "token": token }),
        json!([1]),
    ] {
        assert_eq!(post(&kit, &id, &body).await.0, 400, "{body}");
    }
    let stranger = json!({ "state": 1, "worker_id": "somebody-else", "token": "0".repeat(32) });
    assert_eq!(post(&kit, &id, &stranger).await.0, 409);
    // 1,048,576 bytes as JSON, and one more
    let of = |letters: usize| json!({ "state": "x".repeat(letters), "token": token });
    assert_eq!(post(&kit, &id, &of(1_048_574)).await.0, 200);
    let (status, refused) = post(&kit, &id, &of(1_048_575)).await;
    assert_eq!((status, &refused["error"]["code"]), (413, &json!("payload_too_large")));
    assert!(refused["error"]["message"].as_str().is_some_and(|text| text.contains("1048576")), "{refused}");
}

#[tokio::test]
async fn a_checkpoint_is_set_before_a_job_runs_and_deleted_by_an_operator() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&patient("a", &json!([]))).await;
    assert_eq!(put(&kit, &id, &json!({ "state": { "from": 5 } })).await.1["sequence"], 1);
    assert_eq!(put(&kit, &id, &json!({ "state": { "from": 6 } })).await.1["sequence"], 2);
    let first = fetch(&kit).await;
    assert_eq!((&first["id"], &first["checkpoint"]["state"]), (&json!(id), &json!({ "from": 6 })));
    for _ in 0..2 {
        assert_eq!(delete(&kit, &id).await, (200, json!({ "deleted": true, "job_id": id })));
    }
    assert_eq!(show(&kit, &id).await, None);
    end(&kit, "nack", &first, ("requeue", json!(true))).await;
    let again = fetch(&kit).await;
    assert_eq!((&again["id"], again.get("checkpoint")), (&json!(id), None));
    assert_eq!(
        put(&kit, &id, &json!({ "state": 1 })).await.1["sequence"],
        1,
        "the attempt that runs, without its token"
    );
}

#[tokio::test]
async fn an_endpoint_saves_with_its_token_and_is_sent_what_it_saved() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([WebhookReply::new(202, "", ""), WebhookReply::ok("\"done\"")]).await;
    let (worker, _rules) = pushing(&kit, &receiver, "").await;
    let id = kit.enqueue(&patient("a", &json!([]))).await;
    worker.wait_for_event("job.waiting_for_callback").await;
    let token = receiver.requests()[0].header("galley-token").expect("a token").to_owned();
    assert_eq!(post(&kit, &id, &json!({ "state": { "page": 3 }, "token": token })).await.0, 200);
    let job = json!({ "id": id, "token": token });
    end(&kit, "nack", &job, ("error", json!({ "code": "busy", "message": "not now" }))).await;
    kit.wait_for_state(&id, "completed").await;
    let requests = receiver.requests();
    let [first, second] = [0, 1].map(|at| serde_json::from_slice::<Value>(&requests[at].body).expect("JSON"));
    assert_eq!((first.get("checkpoint"), &second["checkpoint"]["state"]), (None, &json!({ "page": 3 })));
    assert_eq!(show(&kit, &id).await, None);
}

#[tokio::test]
async fn a_program_saves_by_a_line_and_is_given_what_it_saved() {
    let kit = GalleyKit::start().await;
    let script = r#"echo '@checkpoint {"page":1}' >&2; echo '@checkpoint {"page":2}' >&2
        echo '@checkpoint no JSON' >&2
        if [ "$GALLEY_ATTEMPT" = 1 ]; then exit 1; fi; cat"#;
    let folder = TestFolder::with_rules(&format!(
        "[[rule]]\ntype = \"a\"\n[rule.command]\nprogram = \"sh\"\nargs = [\"-c\", {}]\n",
        json!(script)
    ));
    let rules = folder.path_text("rules.toml");
    let _worker = kit.start_worker(&[(RULES_VARIABLE, rules.as_str())]).await;
    let id = kit.enqueue(&patient("a", &json!([]))).await;
    let done = kit.wait_for_state(&id, "completed").await;
    assert_eq!((&done["attempt"], &done["result"]["checkpoint"]["state"]), (&json!(2), &json!({ "page": 2 })));
    assert_eq!(show(&kit, &id).await, None);
    let logs: Value = kit.get(&format!("/ojs/v1/jobs/{id}/logs")).await.json().await.expect("JSON");
    let lines: Vec<_> = logs["items"].as_array().expect("lines").iter().map(|line| &line["message"]).collect();
    assert_eq!(lines, [&json!("@checkpoint no JSON"); 2], "what is none is a line");
}

#[tokio::test]
async fn a_step_of_a_handler_in_rust_runs_once_although_the_job_needs_more_attempts() {
    let kit = GalleyKit::start().await;
    let outbox = TestFolder::new();
    let folder = outbox.path_text("");
    let worker = ServiceProcess::start_worker("email_worker", &kit.redis, &[("OUTBOX", folder.as_str())]).await;
    worker.wait_until_ready().await;
    let id = kit.enqueue(&patient("email.order", &json!(["x@flaky.example", 7]))).await;
    let done = kit.wait_for_state(&id, "completed").await;
    assert_eq!(done["result"], json!({ "receipt": "receipt 1 for 7", "attempts": 2 }), "{done}");
    assert_eq!(outbox.read(&format!("{id}.charges")), "7\n", "charged once");
    assert_eq!(show(&kit, &id).await, None);
    // What another program saved in the same form counts too
    let paid = json!({ "galley:steps": { "charge": "paid in cash" }, "state": 4 });
    let mut later = patient("email.order", &json!(["x@example.com", 8]));
    later["scheduled_at"] = json!("+PT1H");
    let id = kit.enqueue(&later).await;
    assert_eq!(put(&kit, &id, &json!({ "state": paid })).await.0, 200);
    assert_eq!(kit.post(&format!("/ojs/v1/jobs/{id}/retry"), &json!({})).await.status(), 200);
    let done = kit.wait_for_state(&id, "completed").await;
    assert_eq!(done["result"], json!({ "receipt": "paid in cash", "attempts": 5 }));
    assert!(!outbox.path(&format!("{id}.charges")).exists());
    let refused = kit.enqueue(&job_body("email.order", &json!(["x@huge.example", 9]))).await;
    let failed = kit.wait_for_state(&refused, "discarded").await;
    assert_eq!(failed["attempt"], 1);
    assert!(failed["error"]["message"].as_str().is_some_and(|text| text.contains("1048576")), "{failed}");
}
