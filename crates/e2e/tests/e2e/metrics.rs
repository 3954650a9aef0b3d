//! What the services show at `/metrics`.

use std::{
    collections::BTreeSet,
    io::Write,
    process::{Command, Stdio},
};

use serde_json::json;
use testkit::{RedisServer, ServiceProcess, TEST_TIMEOUT, eventually, eventually_for};

use crate::kit::GalleyKit;

/// The leader reads for its metrics as often as it may.
pub(crate) const OFTEN: [(&str, &str); 3] = [
    ("GALLEY__METRICS__INTERVAL_MS", "100"),
    ("GALLEY__STATISTICS__FLUSH_MS", "100"),
    ("GALLEY__MAINTENANCE__HISTORY_TRIM_MS", "100"),
];

/// A leader that stands still for a while stays the leader: then another process would show what only the leader does.
const PATIENT: (&str, &str) = ("GALLEY__MAINTENANCE__LEADER_LEASE_MS", "60000");

async fn text_of(service: &ServiceProcess) -> String {
    let answer = crate::http_client::get(service.url("/metrics")).await.expect("the service answers");
    answer.text().await.expect("text")
}

/// Waits until a service shows a line that begins so, and gives its value.
pub(crate) async fn value_of(service: &ServiceProcess, series: &str, is_it: impl Fn(f64) -> bool) -> f64 {
    eventually(series, || async {
        let text = text_of(service).await;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())?;
        is_it(value).then_some(value)
    })
    .await
}

/// Whether a value is that number.
pub(crate) fn is(expected: f64) -> impl Fn(f64) -> bool {
    move |value| value.to_bits() == expected.to_bits()
}

/// The names of the metrics of a text.
fn names_in(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| line.split(' ').next()).map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn promtool_has_no_complaint_about_the_metrics_of_any_service() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[&OFTEN[..], &[PATIENT]].concat()).await;
    let (worker, listener) = (kit.start_worker(&OFTEN).await, kit.start_pubsub_worker().await);
    let id = kit.enqueue(&json!({ "type": "test.echo", "args": [] })).await;
    kit.wait_for_state(&id, "completed").await;
    let late = json!({ "type": "test.echo", "args": [], "scheduled_at": "+PT1S" });
    kit.wait_for_state(&kit.enqueue(&late).await, "completed").await;
    kit.post("/v1/channels/news/messages", &json!({ "a": 1 })).await;
    value_of(&kit.gateway, r#"galley_queue_jobs{queue="default",state="available"}"#, |_| true).await;
    for service in [&kit.gateway, &worker, &listener] {
        let text = text_of(service).await;
        for name in ["galley_build_info", "galley_leader", "galley_redis_command_seconds", "process_open_fds"] {
            assert!(names_in(&text).contains(name), "{name} is not in\n{text}");
        }
        let Some((is_content, said)) = promtool(&["check", "metrics"], &text) else { return };
        assert!(is_content && said.is_empty(), "{said}");
    }
    let (is_content, said) =
        promtool(&["check", "metrics"], "# TYPE a_seconds counter\na_seconds 1\n").expect("it is there");
    assert!(!is_content && !said.is_empty(), "it complains about others");
}

/// Whether promtool is content, and what it says; none if it is not there.
fn promtool(arguments: &[&str], input: &str) -> Option<(bool, String)> {
    let started = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = started else {
        testkit::skip("there is no promtool, which Debian's package prometheus has; `.ci/run` installs it");
        return None;
    };
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[tokio::test]
async fn only_the_leader_shows_queues_and_the_next_one_goes_on() {
    let lease = ("GALLEY__MAINTENANCE__LEADER_LEASE_MS", "6000");
    let kit = GalleyKit::start_with(RedisServer::start(), &[&OFTEN[..], &[lease]].concat()).await;
    let second = ServiceProcess::start("gateway", &kit.redis, &OFTEN).await;
    second.wait_until_ready().await;
    for _ in 0..3 {
        kit.enqueue(&json!({ "type": "test.echo", "args": [], "queue": "left" })).await;
    }
    let waiting = r#"galley_queue_jobs{queue="left",state="available"}"#;
    value_of(&kit.gateway, waiting, is(3.0)).await;
    assert!(value_of(&kit.gateway, r#"galley_queue_oldest_age_seconds{queue="left"}"#, |age| age > 0.0).await < 60.0);
    value_of(&kit.gateway, "galley_leader ", is(1.0)).await;
    value_of(&second, "galley_leader ", is(0.0)).await;
    let of_leader = ["galley_queue_jobs", "galley_dead_letters", "galley_redis_durability_level"];
    let shown = names_in(&text_of(&second).await);
    assert!(of_leader.iter().all(|name| !shown.contains(*name)), "{shown:?}");
    drop(kit.gateway);
    value_of(&second, waiting, is(3.0)).await;
    value_of(&second, "galley_leader ", is(1.0)).await;
}

#[tokio::test]
async fn queues_have_series_by_state_and_a_paused_one_says_so() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[&OFTEN[..], &[PATIENT]].concat()).await;
    let worker = kit.start_worker(&[("GALLEY__QUEUE_WORKER__CONCURRENCY", "1")]).await;
    for _ in 0..3 {
        kit.enqueue(&json!({ "type": "test.timeout", "args": [] })).await;
    }
    kit.enqueue(&json!({ "type": "test.echo", "args": [], "scheduled_at": "+PT1H" })).await;
    let series = |state: &str| format!(r#"galley_queue_jobs{{queue="default",state="{state}"}}"#);
    for (state, expected) in [("active", 1.0), ("available", 2.0), ("scheduled", 1.0), ("retryable", 0.0)] {
        value_of(&kit.gateway, &series(state), is(expected)).await;
    }
    kit.post("/ojs/v1/queues/default/pause", &json!({})).await;
    value_of(&kit.gateway, r#"galley_queue_paused{queue="default"}"#, is(1.0)).await;
    assert!(!names_in(&text_of(&worker).await).contains("galley_queue_jobs"), "the worker is not the leader");
}

#[tokio::test]
async fn attempts_of_clients_that_fetch_are_counted_at_their_gateway() {
    let kit = GalleyKit::start_with(RedisServer::start(), &OFTEN).await;
    let retry = json!({ "max_attempts": 1, "on_exhaustion": "dead_letter" });
    for _ in 0..2 {
        kit.enqueue(&json!({ "type": "a", "args": [], "queue": "pulled", "retry": retry })).await;
    }
    let job = kit.fetch("pulled").await.expect("a job");
    let ack = json!({ "job_id": job["id"], "token": job["token"], "worker_id": "puller", "result": { "n": 1 } });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    let job = kit.fetch("pulled").await.expect("a job");
    let id = job["id"].as_str().expect("an id");
    let stale = json!({ "job_id": id, "token": "0".repeat(32), "worker_id": "puller" });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &stale).await.status(), 409);
    let beat = json!({ "worker_id": "puller", "active_jobs": [id], "tokens": { id: job["token"] } });
    assert_eq!(kit.post("/ojs/v1/workers/heartbeat", &beat).await.status(), 200);
    let error = json!({ "code": "x", "message": "y" });
    let nack = json!({ "job_id": id, "token": job["token"], "worker_id": "puller", "error": error });
    assert_eq!(kit.post("/ojs/v1/workers/nack", &nack).await.status(), 200);
    for series in [
        r#"galley_attempts_total{queue="pulled",outcome="completed"}"#,
        r#"galley_attempts_total{queue="pulled",outcome="discarded"}"#,
        r#"galley_dead_letters{queue="pulled"}"#,
    ] {
        value_of(&kit.gateway, series, is(1.0)).await;
    }
    value_of(&kit.gateway, r#"galley_queue_wait_seconds_count{queue="pulled"}"#, is(2.0)).await;
    value_of(&kit.gateway, r#"galley_result_bytes_total{queue="pulled"}"#, |bytes| bytes > 0.0).await;
    value_of(&kit.gateway, "galley_stale_tokens_total", is(1.0)).await;
    value_of(&kit.gateway, r#"galley_lease_renewals_total{result="renewed"}"#, is(1.0)).await;
    value_of(&kit.gateway, "galley_claim_batch_jobs_count", is(2.0)).await;
}

#[tokio::test]
async fn queues_without_room_are_counted_together_and_idle_series_make_room() {
    // Long enough to read a series before it is dropped
    let few = [("GALLEY__METRICS__MAX_LABEL_VALUES", "2"), ("GALLEY__METRICS__IDLE_TIMEOUT_MS", "10000")];
    let kit = GalleyKit::start_with(RedisServer::start(), &[&OFTEN[..], &few].concat()).await;
    for queue in ["a", "b", "c", "d"] {
        kit.enqueue(&json!({ "type": "test.echo", "args": [], "queue": queue })).await;
    }
    let enqueued = |queue: &str| format!(r#"galley_jobs_enqueued_total{{queue="{queue}"}}"#);
    value_of(&kit.gateway, &enqueued("_other"), is(2.0)).await;
    value_of(&kit.gateway, r#"galley_queue_jobs{queue="_other",state="available"}"#, is(2.0)).await;
    let text = text_of(&kit.gateway).await;
    assert!(text.contains(&enqueued("a")) && !text.contains(r#"queue="c""#), "{text}");
    value_of(&kit.gateway, "galley_series_overflowed_total", |values| values >= 2.0).await;
    eventually_for(TEST_TIMEOUT * 2, "idle series are gone, and counters without labels stay", || async {
        let text = text_of(&kit.gateway).await;
        let stays = text.contains("galley_redis_connect_failures_total 0");
        (!text.contains(&enqueued("a")) && stays).then_some(())
    })
    .await;
    // The thread that serves this may have kept the counter that was dropped
    kit.enqueue(&json!({ "type": "test.echo", "args": [], "queue": "a" })).await;
    value_of(&kit.gateway, &enqueued("a"), is(1.0)).await;
}

#[tokio::test]
async fn the_lag_of_a_subscription_is_shown_by_the_leader() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[&OFTEN[..], &[PATIENT]].concat()).await;
    let deliver = json!({ "queue": { "queue": "from-news", "type": "test.echo" } });
    let subscription = json!({ "channels": ["news"], "deliver": deliver });
    let created = kit.http.put(kit.gateway.url("/v1/subscriptions/late")).header("content-type", "application/json");
    let answer = created.body(subscription.to_string()).send().await.expect("an answer");
    assert!(answer.status().is_success(), "{}", answer.text().await.expect("text"));
    for n in 0..3 {
        kit.post("/v1/channels/news/messages", &json!({ "n": n })).await;
    }
    let lag = r#"galley_subscription_lag_messages{subscription="late"}"#;
    value_of(&kit.gateway, lag, is(3.0)).await;
    value_of(&kit.gateway, r#"galley_subscription_oldest_age_seconds{subscription="late"}"#, |age| age > 0.0).await;
    let _worker = kit.start_pubsub_worker().await;
    value_of(&kit.gateway, lag, is(0.0)).await;
    value_of(&kit.gateway, r#"galley_subscription_in_flight_messages{subscription="late"}"#, is(0.0)).await;
}

#[tokio::test]
async fn the_state_of_redis_is_shown_by_the_leader_and_its_memory_by_all() {
    let kit = GalleyKit::start_durable(&OFTEN).await;
    value_of(&kit.gateway, "galley_redis_durability_level", is(2.0)).await;
    kit.redis_command(&["CONFIG", "SET", "appendfsync", "everysec"]).await;
    value_of(&kit.gateway, "galley_redis_durability_level", is(1.0)).await;
    value_of(&kit.gateway, r#"galley_redis_can_save{file="aof"}"#, is(1.0)).await;
    value_of(&kit.gateway, "galley_redis_clients", |clients| clients > 1.0).await;
    value_of(&kit.gateway, "galley_redis_memory_used_bytes", |bytes| bytes > 100_000.0).await;
    value_of(&kit.gateway, r#"galley_script_seconds_count{script="maintenance/acquire_leadership"}"#, |n| n > 0.0)
        .await;
    let before = value_of(&kit.gateway, "galley_redis_reconnects_total", |_| true).await;
    kit.redis_command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    value_of(&kit.gateway, "galley_redis_reconnects_total", |count| count > before).await;
}
