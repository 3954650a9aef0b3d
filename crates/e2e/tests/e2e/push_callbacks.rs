//! Endpoints that answer 202 and finish later, with the token that they were given.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use testkit::{WebhookReceiver, WebhookReply, eventually};
use tokio::sync::Semaphore;

use crate::{
    kit::{GalleyKit, job_body},
    push_handlers::{once, pushing},
};

fn accepted() -> WebhookReply {
    WebhookReply::new(202, "", "")
}

/// The token that came with a request.
fn token(receiver: &WebhookReceiver, request: usize) -> String {
    receiver.requests()[request].header("galley-token").expect("a token").to_owned()
}

async fn call(kit: &GalleyKit, name: &str, body: &Value) -> u16 {
    kit.post(&format!("/ojs/v1/workers/{name}"), body).await.status().as_u16()
}

#[tokio::test]
async fn an_endpoint_that_has_accepted_ends_the_job_with_its_token() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([accepted(), WebhookReply::ok("1")]).await;
    let (worker, _rules) = pushing(&kit, &receiver, ", concurrency = 1").await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    worker.wait_for_event("job.waiting_for_callback").await;
    // The worker goes on with others, and takes nothing along when it stops
    let other = kit.enqueue(&job_body("a", &json!([]))).await;
    kit.wait_for_state(&other, "completed").await;
    assert!(worker.terminate().await.success());
    let held = kit.job(&id).await;
    assert_eq!((&held["state"], &held["attempt"]), (&json!("active"), &json!(1)));
    let token = token(&receiver, 0);
    assert_eq!(call(&kit, "ack", &json!({ "job_id": id, "token": "0".repeat(32), "result": 1 })).await, 409);
    let ack = json!({ "job_id": id, "token": token, "result": { "done": "later" } });
    assert_eq!(call(&kit, "ack", &ack).await, 200);
    let done = kit.job(&id).await;
    assert_eq!((&done["state"], &done["result"]), (&json!("completed"), &json!({ "done": "later" })));
    assert_eq!(done["attempt"], 1);
}

#[tokio::test]
async fn an_endpoint_may_fail_with_its_token_and_say_how_far_it_is() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([accepted()]).await;
    let (worker, _rules) = pushing(&kit, &receiver, "").await;
    let id = kit.enqueue(&once("a")).await;
    worker.wait_for_event("job.waiting_for_callback").await;
    let token = token(&receiver, 0);
    let progress = json!({ "token": token, "progress": 0.5 });
    assert_eq!(kit.post(&format!("/ojs/v1/jobs/{id}/progress"), &progress).await.status(), 200);
    assert_eq!(kit.job(&id).await["progress"], 0.5);
    let error = json!({ "code": "no_paper", "message": "there is no paper" });
    assert_eq!(call(&kit, "nack", &json!({ "job_id": id, "token": token, "error": error })).await, 200);
    let failed = kit.wait_for_state(&id, "discarded").await;
    assert_eq!((&failed["error"]["code"], &failed["attempt"]), (&json!("no_paper"), &json!(1)));
}

#[tokio::test]
async fn an_end_may_come_before_the_202() {
    let kit = GalleyKit::start().await;
    let gate = Arc::new(Semaphore::new(0));
    let WebhookReply::Raw(bytes) = accepted() else { panic!("bytes") };
    let receiver = WebhookReceiver::start([WebhookReply::Gated(gate.clone(), bytes)]).await;
    let (mut worker, _rules) = pushing(&kit, &receiver, "").await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    receiver.wait_for_requests(1).await;
    let ack = json!({ "job_id": id, "token": token(&receiver, 0), "result": "early" });
    assert_eq!(call(&kit, "ack", &ack).await, 200);
    let done = kit.job(&id).await;
    assert_eq!((&done["state"], &done["result"]), (&json!("completed"), &json!("early")));
    gate.add_permits(1);
    // The worker has seen the end of it, one way or the other, when it has stopped
    assert!(worker.is_running() && worker.terminate().await.success());
    assert_eq!(kit.job(&id).await, done, "nothing changed");
}

#[tokio::test]
async fn a_job_whose_endpoint_falls_silent_is_sent_again_and_its_old_token_is_worth_nothing() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([accepted(), WebhookReply::ok("\"second\"")]).await;
    let (_worker, _rules) = pushing(&kit, &receiver, ", callback_timeout_ms = 1000").await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    let done = kit.wait_for_state(&id, "completed").await;
    assert_eq!((&done["attempt"], &done["result"]), (&json!(2), &json!("second")), "{done}");
    let late = json!({ "job_id": id, "token": token(&receiver, 0), "result": "first" });
    assert_eq!(call(&kit, "ack", &late).await, 409);
    assert_eq!(kit.job(&id).await["result"], "second");
}

#[tokio::test]
async fn an_endpoint_that_has_accepted_a_job_that_is_cancelled_cannot_end_it() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([accepted()]).await;
    let (worker, _rules) = pushing(&kit, &receiver, "").await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    worker.wait_for_event("job.waiting_for_callback").await;
    kit.cancel(&id).await;
    let late = json!({ "job_id": id, "token": token(&receiver, 0), "result": 1 });
    assert_eq!(call(&kit, "ack", &late).await, 409);
    assert_eq!(kit.job(&id).await["state"], "cancelled");
}

#[tokio::test]
async fn an_endpoint_that_says_how_far_it_is_keeps_its_job_for_longer_than_its_silence_would_be_borne() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([accepted()]).await;
    // So long that no pause between two reports is longer, also on a machine that stands still for ten seconds
    let (worker, _rules) = pushing(&kit, &receiver, ", callback_timeout_ms = 12000").await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    worker.wait_for_event("job.waiting_for_callback").await;
    let token = token(&receiver, 0);
    let over = Instant::now() + Duration::from_secs(14);
    let mut progress = 0.0;
    eventually("a longer time has passed", || {
        progress += 0.0005;
        let body = json!({ "token": token, "progress": progress });
        let (kit, id) = (&kit, &id);
        async move {
            let response = kit.post(&format!("/ojs/v1/jobs/{id}/progress"), &body).await;
            assert_eq!(response.status(), 200);
            (Instant::now() >= over).then_some(())
        }
    })
    .await;
    assert_eq!(call(&kit, "ack", &json!({ "job_id": id, "token": token })).await, 200);
    assert_eq!((&kit.job(&id).await["attempt"], receiver.requests().len()), (&json!(1), 1));
}

#[tokio::test]
async fn the_time_of_a_job_is_over_for_an_endpoint_that_has_accepted_it_too() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([accepted()]).await;
    let (_worker, _rules) = pushing(&kit, &receiver, "").await;
    let mut body = once("a");
    // Enough for the request to arrive, also on a machine that stands still for ten seconds
    body["timeout_ms"] = json!(12_000);
    let id = kit.enqueue(&body).await;
    let late = kit.wait_for_state(&id, "discarded").await;
    assert_eq!((&late["error"]["code"], &late["attempt"]), (&json!("timeout"), &json!(1)), "{late}");
    let ack = json!({ "job_id": id, "token": token(&receiver, 0) });
    assert_eq!(call(&kit, "ack", &ack).await, 409);
}

#[tokio::test]
async fn an_endpoint_whose_worker_was_killed_before_it_answered_can_end_its_job_all_the_same() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([WebhookReply::Hang]).await;
    let (worker, _rules) = pushing(&kit, &receiver, "").await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    receiver.wait_for_requests(1).await;
    worker.kill();
    let ack = json!({ "job_id": id, "token": token(&receiver, 0), "result": "done" });
    assert_eq!(call(&kit, "ack", &ack).await, 200);
    let done = kit.job(&id).await;
    assert_eq!((&done["state"], &done["result"], &done["attempt"]), (&json!("completed"), &json!("done"), &json!(1)));
}
