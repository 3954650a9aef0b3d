//! What handlers stream while a job runs: followed live, read late, and resumed.

use serde_json::{Value, json};
use testkit::{ServiceProcess, eventually};

use crate::{
    kit::{GalleyKit, TestFolder, job_body},
    sse::ChannelEventsClient,
};

fn path(id: &str) -> String {
    format!("/ojs/v1/jobs/{id}/output")
}

async fn follow(kit: &GalleyKit, id: &str, last: Option<&str>) -> ChannelEventsClient {
    ChannelEventsClient::open(kit.gateway.url(&path(id)), last).await
}

async fn write(kit: &GalleyKit, job: &Value, chunks: Value) -> u16 {
    let id = job["id"].as_str().expect("an id");
    let body = json!({ "chunks": chunks, "token": job["token"] });
    kit.post(&path(id), &body).await.status().as_u16()
}

async fn end(kit: &GalleyKit, how: &str, job: &Value, more: (&str, Value)) {
    let body = json!({ "job_id": job["id"], "token": job["token"], more.0: more.1 });
    assert_eq!(kit.post(&format!("/ojs/v1/workers/{how}"), &body).await.status(), 200);
}

async fn fetch(kit: &GalleyKit) -> Value {
    eventually("the job is available", || kit.fetch("default")).await
}

/// Reads chunks, which must come one after the other.
async fn chunks(stream: &mut ChannelEventsClient, attempt: u32, expected: &[&str]) {
    for chunk in expected {
        assert_eq!(stream.expect("chunk").await, json!({ "attempt": attempt, "chunk": chunk }));
    }
}

#[tokio::test]
async fn output_is_followed_live_across_attempts_and_read_again_after_the_end() {
    let kit = GalleyKit::start().await;
    let retry = json!({ "max_attempts": 5, "initial_interval": "PT0.1S" });
    let id = kit.enqueue(&json!({ "type": "a", "args": [], "retry": retry })).await;
    let mut live = follow(&kit, &id, None).await;
    let first = fetch(&kit).await;
    assert_eq!(write(&kit, &first, json!(["one", "two"])).await, 200);
    assert_eq!(live.expect("attempt").await, json!({ "attempt": 1 }));
    chunks(&mut live, 1, &["one", "two"]).await;
    let seen = live.last_id.clone();
    assert_eq!(write(&kit, &first, json!(["three"])).await, 200);
    chunks(&mut live, 1, &["three"]).await;
    end(&kit, "nack", &first, ("error", json!({ "code": "x", "message": "y" }))).await;
    let second = fetch(&kit).await;
    assert_eq!(write(&kit, &first, json!(["late"])).await, 409);
    assert_eq!(write(&kit, &second, json!(["ONE"])).await, 200);
    assert_eq!(live.expect("attempt").await, json!({ "attempt": 2 }));
    chunks(&mut live, 2, &["ONE"]).await;
    end(&kit, "ack", &second, ("result", json!("ONE"))).await;
    assert_eq!(live.expect("end").await, json!({ "state": "completed" }));
    assert!(live.next().await.is_none());

    let mut late = follow(&kit, &id, Some(&seen)).await;
    assert_eq!(late.expect("attempt").await, json!({ "attempt": 1 }));
    chunks(&mut late, 1, &["three"]).await;
    assert_eq!(late.expect("attempt").await, json!({ "attempt": 2 }));
    chunks(&mut late, 2, &["ONE"]).await;
    late.expect("end").await;
    assert_eq!(late.last_id, "end");
    let request = kit.http.get(kit.gateway.url(&path(&id))).header("last-event-id", &late.last_id);
    assert_eq!(request.send().await.expect("an answer").status(), 204, "a browser stops there");
}

#[tokio::test]
async fn chunks_that_are_none_and_chunks_of_strangers_are_refused() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    let waiting = json!({ "id": id });
    assert_eq!(write(&kit, &waiting, json!([1])).await, 409, "nobody runs it");
    let job = fetch(&kit).await;
    for refused in [json!([]), json!("text"), json!(vec![1; 1001])] {
        assert_eq!(write(&kit, &job, refused).await, 400);
    }
    for first in [json!(0), json!(-1), json!("1")] {
        let body = json!({ "chunks": [1], "first": first, "token": job["token"] });
        assert_eq!(kit.post(&path(&id), &body).await.status(), 400, "{body}");
    }
    assert_eq!(write(&kit, &job, json!(["x".repeat(65_534)])).await, 200, "65,536 bytes with its quotes");
    assert_eq!(write(&kit, &job, json!(["x".repeat(65_535)])).await, 413);
    assert_eq!(write(&kit, &json!({ "id": id, "token": "0".repeat(32) }), json!([1])).await, 409);
    let unknown = json!({ "id": "019539a4-b68c-7def-8000-1a2b3c4d5e6f", "token": job["token"] });
    assert_eq!(write(&kit, &unknown, json!([1])).await, 404);
    let of_nobody = kit.get(&path("019539a4-b68c-7def-8000-1a2b3c4d5e6f")).await;
    assert_eq!(of_nobody.status(), 404);
    assert_eq!(kit.get(&format!("{}?after=x", path(&id))).await.status(), 400);
}

#[tokio::test]
async fn chunks_of_a_handler_in_rust_are_those_of_its_attempts() {
    let kit = GalleyKit::start().await;
    let outbox = TestFolder::new();
    let folder = outbox.path_text("");
    let id = kit.enqueue(&job_body("email.order", &json!(["x@flaky.example", 7]))).await;
    let mut live = follow(&kit, &id, None).await;
    let worker = ServiceProcess::start_worker("email_worker", &kit.redis, &[("OUTBOX", folder.as_str())]).await;
    worker.wait_until_ready().await;
    for attempt in [1, 2] {
        assert_eq!(live.expect("attempt").await, json!({ "attempt": attempt }));
        chunks(&mut live, attempt, &["charged 7"]).await;
    }
    assert_eq!(live.expect("end").await, json!({ "state": "completed" }));
}
