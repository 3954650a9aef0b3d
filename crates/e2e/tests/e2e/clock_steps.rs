//! The clock of the Redis host is set, and the clocks of processes are wrong.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use testkit::{AdjustableClock, RedisServer, ServiceProcess, WebhookReceiver, WebhookReply, eventually, redis};

use crate::{
    kit::{GalleyKit, RULES_VARIABLE, SHORT_LEASE, TestFolder},
    push_handlers::rule,
    subscriptions_delivery::PRIVATE,
};

const HOUR: Duration = Duration::from_hours(1);
const WORK: (&str, &str) = ("GALLEY__QUEUE_WORKER__QUEUES", "work");

async fn start() -> GalleyKit {
    start_with(&SHORT_SWEEP).await
}

async fn start_with(gateway: &[(&str, &str)]) -> GalleyKit {
    let kit = GalleyKit::start_with(RedisServer::start_with_clock(), gateway).await;
    // A step of the clock shows by the time that a leader noted before
    eventually("a leader has noted the time", || async {
        (kit.redis_command(&["EXISTS", "galley:{galley:leader}:clock"]).await == redis::Value::Int(1)).then_some(())
    })
    .await;
    kit
}

/// Maintenance looks for vanished workers often.
const SHORT_SWEEP: [(&str, &str); 1] = [("GALLEY__MAINTENANCE__SWEEP_MS", "100")];

fn slow(ms: u64) -> Value {
    json!({ "type": "test.slow", "args": [ms], "queue": "work" })
}

#[tokio::test]
async fn no_running_job_is_run_again_after_the_clock_is_set_forward() {
    let kit = start().await;
    let _worker = kit.start_worker(&[WORK, SHORT_SWEEP[0]]).await;
    let running = kit.enqueue(&slow(4000)).await;
    let pulled = kit.enqueue(&json!({ "type": "a", "args": [], "timeout_ms": 600_000 })).await;
    kit.wait_for_state(&running, "active").await;
    let attempt = kit.fetch("default").await.expect("a job");
    kit.redis.clock().set_ahead(HOUR);
    // Maintenance has looked many times when the job is done
    let done = kit.wait_for_state(&running, "completed").await;
    assert_eq!(done["attempt"], 1, "{done}");
    let ack = json!({ "job_id": pulled, "token": attempt["token"] });
    let answer = kit.post("/ojs/v1/workers/ack", &ack).await;
    assert_eq!(answer.status(), 200, "{}", answer.text().await.expect("text"));
    assert_eq!(kit.job(&pulled).await["attempt"], 1);
}

#[tokio::test]
async fn a_workers_jobs_and_the_leader_lease_are_taken_over_although_the_clock_was_set_back() {
    // The gateway may be the next leader, and a leader takes nothing over before half of its own lease has passed
    let kit = start_with(&SHORT_LEASE).await;
    let lost = kit.start_worker(&[WORK, SHORT_LEASE[0], SHORT_LEASE[1]]).await;
    let id = kit.enqueue(&slow(600_000)).await;
    let first = kit.wait_for_state(&id, "active").await["attempt"].as_u64();
    // Nobody is left, and what they left behind lasts an hour longer by the clock
    let leader_lease = ("GALLEY__MAINTENANCE__LEADER_LEASE_MS", "1500");
    kit.redis_command(&["SET", "galley:leader", "gone", "PX", "1500"]).await;
    lost.kill();
    kit.redis.clock().set_behind(HOUR);
    let _worker = kit.start_worker(&[WORK, SHORT_LEASE[0], SHORT_LEASE[1], leader_lease]).await;
    eventually("another worker has it", || async {
        let job = kit.job(&id).await;
        // A lease may be lost when the machine is busy, too
        (job["attempt"].as_u64() > first && job["state"] == "active").then_some(())
    })
    .await;
}

#[tokio::test]
async fn retries_limits_and_cron_entries_go_on_after_the_clock_is_set_back() {
    let kit = start().await;
    let _worker = kit.start_worker(&[WORK, SHORT_SWEEP[0]]).await;
    let entry = json!({ "name": "tick", "cron": "* * * * * *", "type": "test.noop", "options": { "queue": "work" } });
    let registered = kit.post("/ojs/v1/cron", &entry).await;
    assert_eq!(registered.status(), 201);
    let run_count = || async {
        let shown: Value = kit.get("/ojs/v1/cron/tick").await.json().await.ok()?;
        shown["cron"]["run_count"].as_u64()
    };
    eventually("it runs", || async { run_count().await.filter(|count| *count > 0) }).await;
    // Two days ahead by mistake, for long enough to run something
    kit.redis.clock().set_ahead(48 * HOUR);
    let before = run_count().await.expect("a number");
    eventually("it runs", || async { run_count().await.filter(|count| *count > before + 1) }).await;
    let retried = json!({ "type": "test.fail_once", "args": [], "queue": "work", "retry": { "initial_interval": "PT10S", "jitter": false } });
    let retried = kit.enqueue(&retried).await;
    kit.wait_for_state(&retried, "retryable").await;
    let limited = json!({ "type": "test.noop", "args": [], "queue": "work", "rate_limit": { "key": "k", "rate": { "limit": 1, "period": "PT2S" } } });
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(kit.enqueue(&limited).await);
    }
    kit.wait_for_state(&ids[0], "completed").await;
    kit.redis.clock().set_ahead(Duration::ZERO);
    for id in &ids {
        kit.wait_for_state(id, "completed").await;
    }
    assert_eq!(kit.wait_for_state(&retried, "completed").await["attempt"], 2);
    let before = run_count().await.expect("a number");
    eventually("it runs again", || async { run_count().await.filter(|count| *count > before + 1) }).await;
}

#[tokio::test]
async fn the_clock_of_a_worker_or_a_gateway_decides_nothing() {
    let (clock, redis) = (AdjustableClock::new(), RedisServer::start());
    clock.set_ahead(24 * 60 * HOUR);
    let [preload, file] = clock.variables();
    let kit = GalleyKit::start_with(redis, &[preload, file, SHORT_SWEEP[0]]).await;
    let worker = kit.start_worker(&[WORK, preload, file, SHORT_SWEEP[0]]).await;
    let id = kit.enqueue(&json!({ "type": "test.noop", "args": [], "queue": "work", "expires_at": "+PT30M" })).await;
    assert_eq!(kit.wait_for_state(&id, "completed").await["attempt"], 1);
    let retried = json!({ "type": "test.fail_once", "args": [], "queue": "work", "total_timeout_ms": 600_000, "retry": { "initial_interval": "PT0.1S" } });
    let id = kit.enqueue(&retried).await;
    assert_eq!(kit.wait_for_state(&id, "completed").await["attempt"], 2);
    // Listed for longer than dead letters of sixty days ago would be
    let dead = json!({ "type": "test.fail_always", "args": [], "queue": "work", "retry": { "max_attempts": 1, "on_exhaustion": "dead_letter" } });
    let id = kit.enqueue(&dead).await;
    kit.wait_for_state(&id, "discarded").await;
    let last = kit.enqueue(&slow(500)).await;
    kit.wait_for_state(&last, "completed").await;
    let listed: Value = kit.get("/ojs/v1/dead-letter").await.json().await.expect("JSON");
    assert_eq!(listed["jobs"].as_array().map(Vec::len), Some(1), "{listed}");
    drop(worker);
}

#[tokio::test]
async fn times_that_leave_a_process_are_by_the_clock_of_redis() {
    let (clock, redis) = (AdjustableClock::new(), RedisServer::start());
    clock.set_ahead(24 * 60 * HOUR);
    let variables = clock.variables();
    let variables = [variables[0], variables[1], PRIVATE];
    let kit = GalleyKit::start_with(redis, &variables).await;
    let receiver = WebhookReceiver::start([WebhookReply::ok("1")]).await;
    let folder = TestFolder::with_rules(&rule("pushed", &receiver, ""));
    let rules = folder.path_text("rules.toml");
    let _worker = kit.start_worker(&[WORK, variables[0], variables[1], (RULES_VARIABLE, &rules)]).await;
    let deliverer = ServiceProcess::start("pubsub-worker", &kit.redis, &variables).await;
    deliverer.wait_until_ready().await;

    // A receiver refuses a signature that is five minutes away
    let id = kit.enqueue(&json!({ "type": "pushed", "args": [], "queue": "work" })).await;
    kit.wait_for_state(&id, "completed").await;
    let subscription = json!({ "channels": ["c"], "deliver": { "http": { "url": receiver.url("/") } } });
    let put = kit.http.put(kit.gateway.url("/v1/subscriptions/s")).header("content-type", "application/json");
    assert_eq!(put.body(subscription.to_string()).send().await.expect("an answer").status(), 201);
    assert_eq!(kit.post("/v1/channels/c/messages", &json!({})).await.status(), 201);
    receiver.wait_for_requests(2).await;
    for request in receiver.requests() {
        let sent_at: u64 = request.header("webhook-timestamp").expect("a time").parse().expect("a number");
        assert!(sent_at.abs_diff(seconds_now()) < 300, "{sent_at} in {}", request.head);
    }

    // What observers see. Redis decides when an hour is over
    let later = kit.enqueue(&json!({ "type": "a", "args": [], "scheduled_at": "+PT1H" })).await;
    let in_an_hour = kit.job(&later).await["scheduled_at"].as_str().expect("a time").to_owned();
    let fetch = json!({ "queues": ["work"], "worker_id": "w" });
    assert_eq!(kit.post("/ojs/v1/workers/fetch", &fetch).await.status(), 200);
    let shown = eventually("the worker is listed", || async {
        let shown: Value = kit.get("/ojs/v1/workers/w").await.json().await.ok()?;
        shown["worker"]["last_seen_at"].as_str().map(ToOwned::to_owned)
    })
    .await;
    let events = eventually("events", || async {
        let page: Value = kit.get("/ojs/v1/events").await.json().await.ok()?;
        page["events"].as_array().filter(|events| events.len() >= 2).cloned()
    })
    .await;
    let times = events.iter().map(|event| event["time"].as_str().expect("a time").to_owned());
    for time in times.chain([shown]) {
        assert!(time < in_an_hour, "{time} is not before {in_an_hour}");
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}
