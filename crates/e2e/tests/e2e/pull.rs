//! Programs that fetch: waiting for jobs, and telling how several ended at once.

use std::{collections::HashSet, io::Write, net::TcpStream};
use testkit::redis;

use reqwest::Response;
use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess, TEST_TIMEOUT, eventually};
use tokio::task::JoinHandle;

use crate::kit::{GalleyKit, job_body};

/// Longer than any test waits: a client that gets an answer got it because something happened.
pub(crate) const LONG_MS: u64 = 60_000;

/// A program that waits for jobs.
struct WaitingFetch(JoinHandle<reqwest::Result<Response>>);

impl WaitingFetch {
    fn of(kit: &GalleyKit, queues: &[&str]) -> Self {
        Self::with(kit, &json!({ "queues": queues, "wait_ms": LONG_MS }))
    }

    fn with(kit: &GalleyKit, body: &Value) -> Self {
        let request =
            kit.http.post(kit.gateway.url("/ojs/v1/workers/fetch")).header("content-type", "application/json");
        Self(tokio::spawn(request.body(body.to_string()).send()))
    }

    async fn response(self) -> Response {
        tokio::time::timeout(TEST_TIMEOUT, self.0)
            .await
            .expect("answered in time")
            .expect("no panic")
            .expect("an answer")
    }

    async fn answer(self) -> (u16, Value) {
        let response = self.response().await;
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    async fn ids(self) -> Vec<String> {
        let (status, answer) = self.answer().await;
        assert_eq!(status, 200, "{answer}");
        ids(&answer)
    }
}

fn ids(answer: &Value) -> Vec<String> {
    let jobs = answer["jobs"].as_array().expect("jobs");
    jobs.iter().map(|job| job["id"].as_str().expect("an id").to_owned()).collect()
}

async fn wait_for_waiters(kit: &GalleyKit, count: usize) {
    wait_for_waiters_of(kit, &kit.gateway, count).await;
}

pub(crate) async fn wait_for_waiters_of(kit: &GalleyKit, gateway: &ServiceProcess, count: usize) {
    let line = format!("galley_waiters {count}");
    eventually(&format!("{count} wait"), || async {
        let metrics = kit.http.get(gateway.url("/metrics")).send().await.ok()?.text().await.ok()?;
        metrics.lines().any(|found| found == line).then_some(())
    })
    .await;
}

async fn fetch(kit: &GalleyKit, body: &Value) -> (u16, Value) {
    let response = kit.post("/ojs/v1/workers/fetch", body).await;
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

async fn client_list(kit: &GalleyKit) -> String {
    match kit.redis_command(&["CLIENT", "LIST"]).await {
        redis::Value::VerbatimString { text, .. } => text,
        redis::Value::BulkString(text) => String::from_utf8(text).expect("text"),
        other => panic!("a list, not {other:?}"),
    }
}

async fn connections(kit: &GalleyKit) -> usize {
    client_list(kit).await.lines().count()
}

fn args(n: usize) -> Value {
    job_body("any.type", &json!([n]))
}

#[tokio::test]
async fn a_client_that_waits_gets_a_job_the_moment_it_arrives_from_wherever_it_comes() {
    let kit = GalleyKit::start().await;
    // A queue that does not exist yet, then one that does, then a priority that is new to it
    for body in [args(1), args(2), json!({ "type": "any.type", "args": [3], "priority": 7 })] {
        let waiter = WaitingFetch::of(&kit, &["other", "default"]);
        wait_for_waiters(&kit, 1).await;
        let id = kit.enqueue(&body).await;
        assert_eq!(waiter.ids().await, [id]);
    }
    // One that becomes due, one that failed, and one that is handed back
    let soon = json!({ "type": "any.type", "args": [4], "scheduled_at": "+PT1S" });
    let waiter = WaitingFetch::of(&kit, &["default"]);
    wait_for_waiters(&kit, 1).await;
    let id = kit.enqueue(&soon).await;
    let (_, answer) = waiter.answer().await;
    assert_eq!(ids(&answer), [id.as_str()]);
    for nack in [json!({ "requeue": true }), json!({ "error": { "message": "no", "retryable": true } })] {
        let held = json!({ "queues": ["default"], "wait_ms": LONG_MS });
        let waiter = WaitingFetch::with(&kit, &held);
        wait_for_waiters(&kit, 1).await;
        let mut nack = nack.clone();
        nack["job_id"] = json!(id);
        assert_eq!(kit.post("/ojs/v1/workers/nack", &nack).await.status(), 200);
        assert_eq!(waiter.ids().await, [id.as_str()]);
    }
    wait_for_waiters(&kit, 0).await;
}

#[tokio::test]
async fn a_client_that_waits_in_vain_gets_an_empty_list_and_no_job_is_taken_for_them_later() {
    let kit = GalleyKit::start().await;
    let (status, answer) = fetch(&kit, &json!({ "queues": ["default"], "wait_ms": 100 })).await;
    assert_eq!((status, answer), (200, json!({ "jobs": [] })));
    assert!(kit.redis_keys().await.iter().all(|key| !key.contains("{default}")), "waiting writes nothing");
    let id = kit.enqueue(&args(1)).await;
    assert_eq!(kit.job(&id).await["state"], "available");
    let (_, answer) = fetch(&kit, &json!({ "queues": ["default"], "wait_ms": LONG_MS, "count": 5 })).await;
    assert_eq!(ids(&answer), [id], "what is there is handed out without waiting for more");
}

#[tokio::test]
async fn two_hundred_who_wait_for_two_hundred_jobs_get_one_each_over_two_connections() {
    let kit = GalleyKit::start().await;
    kit.enqueue(&args(0)).await;
    kit.fetch("default").await.expect("a job");
    let before = connections(&kit).await;
    let all: Vec<WaitingFetch> = (0..200).map(|_| WaitingFetch::of(&kit, &["default", "other"])).collect();
    wait_for_waiters(&kit, 200).await;
    let with = connections(&kit).await;
    // Other work may have opened the four of the pool meanwhile
    assert!(with <= before + 2 + 4, "{with} connections, and {before} without them");
    let jobs: Vec<Value> = (0..200)
        .map(|n| json!({ "type": "any.type", "args": [n], "queue": if n % 3 == 0 { "other" } else { "default" } }))
        .collect();
    let response = kit.post("/ojs/v1/jobs/batch", &json!({ "jobs": jobs })).await;
    let enqueued: HashSet<String> = ids(&response.json().await.expect("JSON")).into_iter().collect();
    let mut got = Vec::new();
    for waiter in all {
        got.extend(waiter.ids().await);
    }
    assert_eq!((got.len(), enqueued.len()), (200, 200));
    assert_eq!(got.into_iter().collect::<HashSet<_>>(), enqueued);
    wait_for_waiters(&kit, 0).await;
}

#[tokio::test]
async fn those_who_wait_are_served_in_the_order_in_which_they_came_and_one_job_wakes_one() {
    let kit = GalleyKit::start().await;
    let mut all = Vec::new();
    for n in 1..=5 {
        all.push(WaitingFetch::of(&kit, &["default"]));
        wait_for_waiters(&kit, n).await;
    }
    for (served, waiter) in all.into_iter().enumerate() {
        let id = kit.enqueue(&args(served)).await;
        assert_eq!(waiter.ids().await, [id]);
        wait_for_waiters(&kit, 4 - served).await;
    }
}

#[tokio::test]
async fn several_gateways_share_what_arrives() {
    let kit = GalleyKit::start().await;
    let other = testkit::ServiceProcess::start("gateway", &kit.redis, &[]).await;
    other.wait_until_ready().await;
    let all: Vec<WaitingFetch> = (0..20)
        .map(|n| {
            let url = if n % 2 == 0 { &kit.gateway } else { &other }.url("/ojs/v1/workers/fetch");
            let body = json!({ "queues": ["default"], "wait_ms": LONG_MS }).to_string();
            let request = kit.http.post(url).header("content-type", "application/json").body(body);
            WaitingFetch(tokio::spawn(request.send()))
        })
        .collect();
    wait_for_waiters(&kit, 10).await;
    let mut enqueued = HashSet::new();
    for n in 0..20 {
        enqueued.insert(kit.enqueue(&args(n)).await);
    }
    let mut got = Vec::new();
    for waiter in all {
        got.extend(waiter.ids().await);
    }
    assert_eq!(got.len(), 20);
    assert_eq!(got.into_iter().collect::<HashSet<_>>(), enqueued);
}

#[tokio::test]
async fn a_client_that_hung_up_gets_no_job() {
    let kit = GalleyKit::start().await;
    kit.enqueue(&args(0)).await;
    kit.fetch("default").await.expect("a job");
    let body = json!({ "queues": ["default"], "wait_ms": LONG_MS }).to_string();
    let request = format!(
        "POST /ojs/v1/workers/fetch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let clients: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = TcpStream::connect(kit.gateway.address()).expect("it listens");
            stream.write_all(request.as_bytes()).expect("sent");
            stream
        })
        .collect();
    wait_for_waiters(&kit, 50).await;
    let stays = WaitingFetch::of(&kit, &["default"]);
    wait_for_waiters(&kit, 51).await;
    drop(clients);
    wait_for_waiters(&kit, 1).await;
    let first = kit.enqueue(&args(1)).await;
    assert_eq!(stays.ids().await, [first], "who hung up stands in nobody's way");
    let second = kit.enqueue(&args(2)).await;
    let stats: Value = kit.get("/ojs/v1/queues/default").await.json().await.expect("JSON");
    assert_eq!(kit.job(&second).await["state"], "available");
    assert_eq!(stats["queue"]["active"], 2, "the one of before and the one that was handed out: {stats}");
}

#[tokio::test]
async fn a_paused_queue_hands_out_nothing_until_it_goes_on_and_a_limit_is_kept() {
    let kit = GalleyKit::start().await;
    let post = async |path: &str| assert_eq!(kit.post(path, &json!({})).await.status(), 200);
    post("/ojs/v1/queues/default/pause?create=true").await;
    let first = kit.enqueue(&args(1)).await;
    let one = WaitingFetch::of(&kit, &["default"]);
    wait_for_waiters(&kit, 1).await;
    let two = WaitingFetch::of(&kit, &["default"]);
    wait_for_waiters(&kit, 2).await;
    // A job of another queue comes through meanwhile
    let other = WaitingFetch::of(&kit, &["default", "other"]);
    wait_for_waiters(&kit, 3).await;
    let elsewhere = kit.enqueue(&json!({ "type": "any.type", "args": [], "queue": "other" })).await;
    assert_eq!(other.ids().await, [elsewhere]);
    assert_eq!(kit.job(&first).await["state"], "available");
    let limits = json!({ "concurrency": 1 });
    let request = kit.http.put(kit.gateway.url("/ojs/v1/queues/default/limits"));
    let response = request.header("content-type", "application/json").body(limits.to_string()).send().await;
    assert_eq!(response.expect("an answer").status(), 200);
    let second = kit.enqueue(&args(2)).await;
    post("/ojs/v1/queues/default/resume").await;
    assert_eq!(one.ids().await, [first.as_str()]);
    wait_for_waiters(&kit, 1).await;
    assert_eq!(kit.job(&second).await["state"], "available", "the limit allows one");
    assert_eq!(kit.post("/ojs/v1/workers/ack", &json!({ "job_id": first })).await.status(), 200);
    assert_eq!(two.ids().await, [second]);
}

#[tokio::test]
async fn those_who_wait_go_on_waiting_while_redis_is_away() {
    let mut kit = GalleyKit::start_durable(&[]).await;
    kit.enqueue(&args(0)).await;
    kit.fetch("default").await.expect("a job");
    let all: Vec<WaitingFetch> = (0..5).map(|_| WaitingFetch::of(&kit, &["default", "other"])).collect();
    wait_for_waiters(&kit, 5).await;
    kit.redis.kill();
    eventually("the gateway notices", || async { (kit.get("/health/ready").await.status() == 503).then_some(()) })
        .await;
    kit.redis.restart();
    let nobodys = "/ojs/v1/jobs/019539a4-b68c-7def-8000-1a2b3c4d5e6f";
    eventually("the gateway looks into redis again", || async {
        (kit.get(nobodys).await.status() == 404).then_some(())
    })
    .await;
    let mut enqueued = HashSet::new();
    for n in 0..5 {
        enqueued.insert(kit.enqueue(&args(n)).await);
    }
    let mut got = HashSet::new();
    for waiter in all {
        got.extend(waiter.ids().await);
    }
    assert_eq!(got, enqueued);
}

#[tokio::test]
async fn a_gateway_that_is_told_to_stop_answers_those_who_wait_and_one_that_is_killed_takes_nothing_along() {
    let kit = GalleyKit::start().await;
    let all: Vec<WaitingFetch> = (0..5).map(|_| WaitingFetch::of(&kit, &["default"])).collect();
    wait_for_waiters(&kit, 5).await;
    let GalleyKit { gateway, redis, http } = kit;
    assert!(gateway.terminate().await.success());
    for waiter in all {
        assert_eq!(waiter.answer().await, (200, json!({ "jobs": [] })));
    }
    let gateway = testkit::ServiceProcess::start("gateway", &redis, &[]).await;
    gateway.wait_until_ready().await;
    let kit = GalleyKit { gateway, http, redis };
    let waiter = WaitingFetch::of(&kit, &["default"]);
    wait_for_waiters(&kit, 1).await;
    let GalleyKit { gateway, redis, http } = kit;
    gateway.kill();
    let cut = tokio::time::timeout(TEST_TIMEOUT, waiter.0).await.expect("in time").expect("no panic");
    assert!(cut.is_err(), "the connection is gone");
    let gateway = testkit::ServiceProcess::start("gateway", &redis, &[]).await;
    gateway.wait_until_ready().await;
    let kit = GalleyKit { gateway, http, redis };
    let id = kit.enqueue(&args(1)).await;
    let (_, answer) = fetch(&kit, &json!({ "queues": ["default"], "wait_ms": LONG_MS })).await;
    assert_eq!(ids(&answer), [id]);
}

#[tokio::test]
async fn more_than_may_wait_are_refused_but_not_while_there_are_jobs() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__MAX_WAITERS", "1")]).await;
    let waiter = WaitingFetch::of(&kit, &["default"]);
    wait_for_waiters(&kit, 1).await;
    let wait = json!({ "queues": ["other"], "wait_ms": LONG_MS });
    let (status, answer) = fetch(&kit, &wait).await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("too_many_waiters")), "{answer}");
    assert_eq!(fetch(&kit, &json!({ "queues": ["other"], "wait_ms": 0 })).await.0, 200);
    let id = kit.enqueue(&json!({ "type": "any.type", "args": [], "queue": "other" })).await;
    assert_eq!(ids(&fetch(&kit, &wait).await.1), [id]);
    kit.enqueue(&args(1)).await;
    assert_eq!(waiter.ids().await.len(), 1);
}
