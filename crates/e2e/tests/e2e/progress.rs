//! How far running jobs have come, and who may say so.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::{eventually, redis};

use crate::kit::{GalleyKit, job_body};

async fn report(kit: &GalleyKit, method: &str, id: &str, body: &Value) -> (u16, Value) {
    let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
    let request = kit.http.request(method, kit.gateway.url(&format!("/ojs/v1/jobs/{id}/progress")));
    let request = request.header("content-type", "application/json").body(body.to_string());
    let response = request.send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

#[tokio::test]
async fn progress_is_shown_and_never_goes_back() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    let token = kit.fetch("default").await.expect("a job")["token"].clone();
    let say = async |method: &str, mut body: Value| {
        body["token"] = token.clone();
        let (status, answer) = report(&kit, method, &id, &body).await;
        assert_eq!(status, 200, "{answer}");
        let shown = kit.job(&id).await;
        assert_eq!(shown["state"], "active");
        (shown["progress"].clone(), shown["progress_data"].clone())
    };
    assert_eq!(
        say("POST", json!({ "progress": 0.25, "data": { "row": 1 } })).await,
        (json!(0.25), json!({ "row": 1 }))
    );
    assert_eq!(say("PUT", json!({ "progress": 0.5 })).await, (json!(0.5), json!({ "row": 1 })), "data is kept");
    assert_eq!(say("POST", json!({ "progress": 0.125 })).await.0, json!(0.5), "it does not go back");
    assert_eq!(say("POST", json!({ "data": { "row": 2 } })).await, (json!(0.5), json!({ "row": 2 })));
    assert_eq!(say("POST", json!({ "progress": 1 })).await.0.as_f64(), Some(1.0));
    let ack = json!({ "job_id": id, "token": token });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    let told = eventually("the events tell of it", || async {
        let answer: Value = kit.get("/ojs/v1/events?types=job.progress").await.json().await.ok()?;
        answer["events"].as_array().filter(|events| events.len() == 5).cloned()
    })
    .await;
    assert!(told.iter().all(|event| event["data"]["job_id"] == json!(id)), "{told:?}");
    let stream = kit.get(&format!("/ojs/v1/jobs/{id}/events")).await.text().await.expect("text");
    assert_eq!(stream.matches("event: job.progress").count(), 5, "{stream}");
}

#[tokio::test]
async fn progress_with_a_message_is_shown_alone_too() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    let path = format!("/ojs/v1/jobs/{id}/progress");
    let shown = async || kit.get(&path).await.json::<Value>().await.expect("JSON");
    assert_eq!(shown().await, json!({ "id": id, "state": "available" }), "nobody reported anything");
    let token = kit.fetch("default").await.expect("a job")["token"].clone();
    let (status, _) = report(&kit, "PUT", &id, &json!({ "progress": 0.75, "message": "nearly", "token": token })).await;
    assert_eq!(status, 200);
    let answer = shown().await;
    assert_eq!(
        (&answer["progress"], &answer["message"], &answer["state"]),
        (&json!(0.75), &json!("nearly"), &json!("active"))
    );
    assert_eq!(kit.job(&id).await["progress_data"], json!({ "message": "nearly" }));
    let mut data = json!({ "message": "with much else" });
    (0..300).for_each(|number| data[number.to_string()] = json!(number));
    assert_eq!(report(&kit, "PUT", &id, &json!({ "data": data, "token": token })).await.0, 200);
    assert_eq!(shown().await["message"], "with much else");
    let twice = json!({ "message": "a", "data": {}, "token": token });
    assert_eq!(report(&kit, "PUT", &id, &twice).await.0, 400);
    assert_eq!(kit.get("/ojs/v1/jobs/nobody/progress").await.status(), 404);
}

#[tokio::test]
async fn progress_that_is_none_is_refused_and_nothing_is_noted() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    assert_eq!(report(&kit, "POST", &id, &json!({ "progress": 0.5 })).await.0, 409, "nobody runs it");
    let token = kit.fetch("default").await.expect("a job")["token"].clone();
    let long = json!({ "text": "x".repeat(4096) });
    for wrong in [
        json!({}),
        json!({ "progress": "half" }),
        json!({ "progress": null }),
        json!({ "progress": 40 }),
        json!({ "progress": 0.5, "percent": 50 }),
        json!({ "data": [1] }),
        json!({ "data": "text" }),
        json!({ "data": long }),
        json!({ "progress": 0.5, "token": "short" }),
    ] {
        let (status, answer) = report(&kit, "POST", &id, &wrong).await;
        assert_eq!(status, 400, "{answer}");
    }
    let stranger = json!({ "progress": 0.5, "worker_id": "somebody-else" });
    assert_eq!(report(&kit, "POST", &id, &stranger).await.0, 409);
    for nobody in ["x", "019539a4-b68c-7def-8000-1a2b3c4d5e6f"] {
        assert_eq!(report(&kit, "POST", nobody, &json!({ "progress": 0.5, "token": token })).await.0, 404);
    }
    assert!(kit.job(&id).await["progress"].is_null());
}

#[tokio::test]
async fn a_report_of_progress_renews_the_lease() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&json!({ "type": "a", "args": [], "visibility_timeout_ms": 600_000 })).await;
    let token = kit.fetch("default").await.expect("a job")["token"].clone();
    let lease = async || {
        let words = ["ZRANGE", "galley:{default}:leases", "0", "-1", "WITHSCORES"];
        let mut leases: Vec<(String, f64)> =
            redis::from_redis_value(kit.redis_command(&words).await).expect("names and times");
        assert_eq!(leases.len(), 1, "{leases:?}");
        leases.remove(0)
    };
    // As if a minute of it had passed
    let (name, end) = lease().await;
    let earlier = (end - 60_000.0).to_string();
    kit.redis_command(&["ZADD", "galley:{default}:leases", &earlier, &name]).await;
    assert!(lease().await.1 < end);
    let (status, answer) = report(&kit, "POST", &id, &json!({ "progress": 0.1, "token": token })).await;
    assert_eq!(status, 200, "{answer}");
    assert!(lease().await.1 >= end, "it has its full length again");
    let held = kit.job(&id).await;
    assert_eq!((&held["state"], &held["attempt"]), (&json!("active"), &json!(1)));
}

/// In silence it runs out. The same for queue-workers:
/// `faults::a_worker_that_stopped_for_three_leases_cannot_record_what_another_has_done_since`.
#[tokio::test]
async fn a_program_that_was_silent_for_three_leases_cannot_say_anything_about_its_job_any_more() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&json!({ "type": "a", "args": [], "visibility_timeout_ms": 1000 })).await;
    let zombie = kit.fetch("default").await.expect("a job");
    let three_leases = Instant::now() + Duration::from_millis(900);
    eventually("three leases have passed", || async { (Instant::now() >= three_leases).then_some(()) }).await;
    let heir = json!({ "queues": ["default"], "worker_id": "heir", "visibility_timeout_ms": 600_000 });
    let heir = eventually("another one gets it", || async {
        let answer: Value = kit.post("/ojs/v1/workers/fetch", &heir).await.json().await.ok()?;
        answer["jobs"].as_array()?.first().cloned()
    })
    .await;
    assert_eq!((&heir["id"], &heir["attempt"]), (&json!(id), &json!(2)));
    let still = async |fence: Value| {
        let with = |mut body: Value| {
            for (name, value) in fence.as_object().expect("members") {
                body[name] = value.clone();
            }
            body
        };
        let error = json!({ "code": "handler_error", "message": "zombie" });
        let calls = [
            ("ack", with(json!({ "job_id": id, "result": "zombie" }))),
            ("nack", with(json!({ "job_id": id, "error": error }))),
            ("nack", with(json!({ "job_id": id, "requeue": true }))),
        ];
        for (call, body) in calls {
            assert_eq!(kit.post(&format!("/ojs/v1/workers/{call}"), &body).await.status(), 409, "{call} {body}");
        }
        assert_eq!(report(&kit, "POST", &id, &with(json!({ "progress": 0.9 }))).await.0, 409);
    };
    still(json!({ "token": zombie["token"] })).await;
    still(json!({ "worker_id": "puller" })).await;
    let beat = json!({ "worker_id": "puller", "active_jobs": [id], "tokens": { (id.clone()): zombie["token"] } });
    assert_eq!(kit.post("/ojs/v1/workers/heartbeat", &beat).await.status(), 409);
    let ack = json!({ "job_id": id, "token": heir["token"], "result": "heir" });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    still(json!({ "token": zombie["token"] })).await;
    let done = kit.job(&id).await;
    assert_eq!((&done["state"], &done["result"], &done["attempt"]), (&json!("completed"), &json!("heir"), &json!(2)));
    let stats: Value = kit.get("/ojs/v1/queues/default").await.json().await.expect("JSON");
    assert_eq!(stats["queue"]["completed"], 1);
}
