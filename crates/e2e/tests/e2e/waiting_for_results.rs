//! Waiting for jobs to end.

use std::{io::Write, net::TcpStream};
use testkit::redis;

use reqwest::Response;
use serde_json::{Value, json};
use testkit::{RedisServer, TEST_TIMEOUT, eventually};
use tokio::task::JoinHandle;

use crate::kit::{GalleyKit, job_body};

/// Longer than any test waits: a client that gets an answer got it because the job ended.
const LONG: &str = "wait_ms=60000";

/// Somebody who waits.
struct WaitingResult(JoinHandle<Response>);

impl WaitingResult {
    fn of(kit: &GalleyKit, id: &str) -> Self {
        let (http, url) = (kit.http.clone(), kit.gateway.url(&format!("/ojs/v1/jobs/{id}?{LONG}")));
        Self(tokio::spawn(async move { http.get(url).send().await.expect("an answer") }))
    }

    async fn answer(self) -> (u16, Value) {
        let response = tokio::time::timeout(TEST_TIMEOUT, self.0).await.expect("answered in time").expect("no panic");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }
}

pub(crate) async fn wait_for_waiters(kit: &GalleyKit, count: usize) {
    let line = format!("galley_waiters {count}");
    eventually(&format!("{count} wait"), || async {
        let metrics = kit.get("/metrics").await.text().await.ok()?;
        metrics.lines().any(|found| found == line).then_some(())
    })
    .await;
}

async fn fetched(kit: &GalleyKit) -> Value {
    kit.enqueue(&job_body("any.type", &json!([]))).await;
    kit.fetch("default").await.expect("a job")
}

fn id(job: &Value) -> &str {
    job["id"].as_str().expect("an id")
}

#[tokio::test]
async fn a_client_that_waits_is_answered_when_the_job_ends_however_it_ends() {
    let kit = GalleyKit::start().await;
    let (done, failed, dropped) = (fetched(&kit).await, fetched(&kit).await, fetched(&kit).await);
    let all = [
        WaitingResult::of(&kit, id(&done)),
        WaitingResult::of(&kit, id(&failed)),
        WaitingResult::of(&kit, id(&dropped)),
    ];
    wait_for_waiters(&kit, 3).await;
    let ack = json!({ "job_id": id(&done), "token": done["token"], "result": [1] });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    let error = json!({ "code": "handler_error", "message": "no", "retryable": false });
    let nack = json!({ "job_id": id(&failed), "token": failed["token"], "error": error });
    assert_eq!(kit.post("/ojs/v1/workers/nack", &nack).await.status(), 200);
    let url = kit.gateway.url(&format!("/ojs/v1/jobs/{}", id(&dropped)));
    assert_eq!(kit.http.delete(url).send().await.expect("an answer").status(), 200);
    for (waiter, state) in all.into_iter().zip(["completed", "discarded", "cancelled"]) {
        let (status, answer) = waiter.answer().await;
        assert_eq!((status, &answer["job"]["state"]), (200, &json!(state)), "{answer}");
    }
    // A job that is over is answered without waiting
    let (status, answer) = WaitingResult::of(&kit, id(&done)).answer().await;
    assert_eq!((status, &answer["job"]["result"]), (200, &json!([1])));
    wait_for_waiters(&kit, 0).await;
}

#[tokio::test]
async fn an_enqueue_that_prefers_to_wait_is_answered_with_the_result() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    let send = async |wait: &str, body: Value| {
        let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json");
        request.header("prefer", wait).body(body.to_string()).send().await.expect("an answer")
    };
    let response = send("respond-async, wait=20", job_body("test.echo", &json!(["x"]))).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["preference-applied"]),
        (201, &"wait=20".parse().expect("a value"))
    );
    let answer: Value = response.json().await.expect("JSON");
    assert_eq!((&answer["job"]["state"], &answer["job"]["result"]), (&json!("completed"), &json!(["x"])));
    let again =
        kit.http.get(kit.gateway.url(&format!("/ojs/v1/jobs/{}", id(&answer["job"])))).header("prefer", "wait=20");
    let again = again.send().await.expect("an answer");
    assert_eq!(again.headers()["preference-applied"], "wait=20");
    assert_eq!(again.json::<Value>().await.expect("JSON")["job"]["state"], "completed");
    let failing = json!({ "type": "test.fail_always", "args": [], "retry": { "max_attempts": 1 } });
    let answer: Value = send("wait=20", failing).await.json().await.expect("JSON");
    assert_eq!(answer["job"]["state"], "discarded", "{answer}");
    // The time is over before the job is
    let response = send("wait=0", job_body("test.slow", &json!([600_000]))).await;
    assert_eq!(response.status(), 201);
    // A wish that cannot be met is none
    for ignored in ["wait=soon", "wait=-1", "respond-async"] {
        let response = send(ignored, job_body("test.noop", &json!([]))).await;
        assert!(response.status() == 201 && !response.headers().contains_key("preference-applied"), "{ignored}");
    }
    let response = send("WAIT = 61", job_body("test.noop", &json!([]))).await;
    assert_eq!(response.headers()["preference-applied"], "wait=60", "the longest there is");
}

#[tokio::test]
async fn waiting_for_room_in_a_full_queue_takes_a_place_and_ends_with_the_gateway() {
    let small = [("GALLEY__QUEUES__SMALL__MAX_DEPTH", "1"), ("GALLEY__GATEWAY__MAX_WAITERS", "1")];
    let kit = GalleyKit::start_with(RedisServer::start(), &small).await;
    let body = json!({ "type": "a", "args": [], "queue": "small" });
    kit.enqueue(&body).await;
    let send = || {
        let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json");
        request.header("prefer", "wait=60").body(body.to_string()).send()
    };
    let one = tokio::spawn(send());
    wait_for_waiters(&kit, 1).await;
    let two: Value = send().await.expect("an answer").json().await.expect("JSON");
    assert_eq!(two["error"]["code"], "too_many_waiters");
    let GalleyKit { gateway, redis: _redis, .. } = kit;
    assert!(gateway.terminate().await.success());
    let one: Value = one.await.expect("no panic").expect("an answer").json().await.expect("JSON");
    assert_eq!(one["error"]["code"], "queue_full");
}

#[tokio::test]
async fn waiting_has_its_limits() {
    let kit = GalleyKit::start().await;
    let waiting = kit.enqueue(&job_body("a", &json!([]))).await;
    for wrong in ["60001", "x", "-1", "1.5", ""] {
        assert_eq!(kit.get(&format!("/ojs/v1/jobs/{waiting}?wait_ms={wrong}")).await.status(), 400, "{wrong:?}");
    }
    for over in ["0", "30"] {
        let response = kit.get(&format!("/ojs/v1/jobs/{waiting}?wait_ms={over}")).await;
        assert_eq!(response.status(), 200);
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(answer["job"]["state"], "available");
    }
    for nobody in ["019539a4-b68c-7def-8000-1a2b3c4d5e6f", "x"] {
        assert_eq!(WaitingResult::of(&kit, nobody).answer().await.0, 404, "there is nothing to wait for");
    }
}

#[tokio::test]
async fn a_job_that_ends_while_redis_comes_back_is_not_missed() {
    let mut kit = GalleyKit::start_durable(&[]).await;
    let (one, two) = (fetched(&kit).await, fetched(&kit).await);
    let both = [WaitingResult::of(&kit, id(&one)), WaitingResult::of(&kit, id(&two))];
    wait_for_waiters(&kit, 2).await;
    kit.redis.kill();
    kit.redis.restart();
    for job in [&one, &two] {
        let ack = json!({ "job_id": id(job), "token": job["token"] });
        // As soon as the gateway has a connection again, which may be before it hears again
        eventually("it is acknowledged", || async {
            (kit.post("/ojs/v1/workers/ack", &ack).await.status() == 200).then_some(())
        })
        .await;
    }
    for waiter in both {
        let (status, answer) = waiter.answer().await;
        assert_eq!((status, &answer["job"]["state"]), (200, &json!("completed")), "{answer}");
    }
}

#[tokio::test]
async fn more_than_may_wait_are_refused_and_an_enqueue_is_not() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__MAX_WAITERS", "2")]).await;
    let held = fetched(&kit).await;
    let two = [WaitingResult::of(&kit, id(&held)), WaitingResult::of(&kit, id(&held))];
    wait_for_waiters(&kit, 2).await;
    let third = kit.get(&format!("/ojs/v1/jobs/{}?{LONG}", id(&held))).await;
    assert!(third.status() == 503 && third.headers().contains_key("retry-after"));
    let error: Value = third.json().await.expect("JSON");
    assert_eq!((&error["error"]["code"], &error["error"]["retryable"]), (&json!("too_many_waiters"), &json!(true)));
    let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json");
    let stored = request.header("prefer", "wait=60").body(job_body("a", &json!([])).to_string()).send();
    let stored = tokio::time::timeout(TEST_TIMEOUT, stored).await.expect("at once").expect("an answer");
    assert_eq!(stored.status(), 201, "it is stored, and says so");
    let ack = json!({ "job_id": id(&held), "token": held["token"] });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    for waiter in two {
        assert_eq!(waiter.answer().await.0, 200);
    }
}

#[tokio::test]
async fn a_gateway_that_is_told_to_stop_answers_those_who_wait() {
    let kit = GalleyKit::start().await;
    let held = fetched(&kit).await;
    let several: Vec<WaitingResult> = (0..5).map(|_| WaitingResult::of(&kit, id(&held))).collect();
    wait_for_waiters(&kit, 5).await;
    let GalleyKit { gateway, redis: _redis, .. } = kit;
    assert!(gateway.terminate().await.success());
    for waiter in several {
        let (status, answer) = waiter.answer().await;
        assert_eq!((status, &answer["job"]["state"]), (200, &json!("active")));
    }
}

#[tokio::test]
async fn those_who_hang_up_wait_no_longer() {
    let kit = GalleyKit::start().await;
    let held = fetched(&kit).await;
    let request = format!("GET /ojs/v1/jobs/{}?{LONG} HTTP/1.1\r\nHost: x\r\n\r\n", id(&held));
    let clients: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = TcpStream::connect(kit.gateway.address()).expect("it listens");
            stream.write_all(request.as_bytes()).expect("sent");
            stream
        })
        .collect();
    wait_for_waiters(&kit, 50).await;
    drop(clients);
    wait_for_waiters(&kit, 0).await;
}

#[tokio::test]
async fn two_hundred_who_wait_need_one_more_connection_to_redis() {
    let kit = GalleyKit::start().await;
    // Always the same connection, which counts once: the end of another one might not have been noticed
    let connection = kit.redis.connection().await;
    let clients = async || {
        let mut connection = connection.clone();
        let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut connection).await.expect("redis runs");
        list.lines().count()
    };
    let mut jobs = Vec::new();
    for _ in 0..200 {
        jobs.push(fetched(&kit).await);
    }
    let before = clients().await;
    let all: Vec<WaitingResult> = jobs.iter().map(|job| WaitingResult::of(&kit, id(job))).collect();
    wait_for_waiters(&kit, 200).await;
    let with = clients().await;
    assert!(with <= before + 1, "{with} connections, and {before} without them");
    for job in &jobs {
        let ack = json!({ "job_id": id(job), "token": job["token"] });
        assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    }
    for waiter in all {
        assert_eq!(waiter.answer().await.1["job"]["state"], "completed");
    }
}
