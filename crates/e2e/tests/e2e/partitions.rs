//! A queue with partitions is one queue to everybody: clients, operators, programs that fetch.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use testkit::{ClusterProcesses, PATIENCE, ServiceProcess, eventually, redis};

use crate::{
    galley::GalleyProgram,
    http_client::CheckedClient,
    kit::GalleyKit,
    pull::{LONG_MS, wait_for_waiters_of},
};

const QUEUES: (&str, &str) = ("GALLEY__QUEUE_WORKER__QUEUES", "mail");
/// The setting of the queue at every process.
const EIGHT: (&str, &str) = ("GALLEY__QUEUES__MAIL__PARTITIONS", "8");

fn mail(job_type: &str, more: &Value) -> Value {
    let mut body = json!({ "type": job_type, "args": [1], "queue": "mail" });
    let more = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

/// What people and programs are shown of the queue.
async fn everything_shown(kit: &GalleyKit, id: &str) -> Vec<(String, String)> {
    let mut shown = Vec::new();
    for path in [
        "/ojs/v1/queues",
        "/ojs/v1/queues/mail",
        "/ojs/v1/admin/queues",
        "/ojs/v1/admin/queues/mail",
        "/ojs/v1/admin/jobs?queue=mail&per_page=50",
        "/ojs/v1/admin/dead-letter",
        "/ojs/v1/dead-letter",
        "/ojs/v1/dead-letter/stats",
        "/ojs/v1/events?limit=1000",
        "/ojs/v1/workers",
        "/ojs/v1/admin/fsck?queue=mail",
        "/metrics",
        "/ui/queues",
        "/ui/queues/mail",
        "/ui/jobs?queue=mail",
        "/ui/dead-letters",
        &format!("/ojs/v1/jobs/{id}"),
        &format!("/ui/jobs/{id}"),
    ] {
        let response = kit.get(path).await;
        let (status, text) = (response.status(), response.text().await.expect("text"));
        assert!(status.is_success(), "{path}: {status} {text}");
        shown.push((path.to_owned(), text));
    }
    shown
}

#[tokio::test]
async fn everybody_is_shown_one_queue_and_the_sums_of_its_partitions() {
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &[EIGHT]).await;
    let worker = kit.start_worker(&[QUEUES, EIGHT]).await;
    let dead = json!({ "retry": { "max_attempts": 1, "on_exhaustion": "dead_letter" } });
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for number in 0..10 {
        done.push(kit.enqueue(&mail("test.echo", &json!({}))).await);
        let limit = json!({ "rate_limit": { "key": format!("k{number}"), "concurrency": 1 } });
        done.push(kit.enqueue(&mail("test.echo", &limit)).await);
        done.push(kit.enqueue(&mail("test.echo", &json!({ "unique": { "keys": ["args"] }, "args": [number] }))).await);
        failed.push(kit.enqueue(&mail("test.fail", &dead)).await);
    }
    for id in &done {
        assert_eq!(kit.wait_for_state(id, "completed").await["queue"], "mail");
    }
    for id in &failed {
        kit.wait_for_state(id, "discarded").await;
    }
    let shown: Value = kit.get("/ojs/v1/queues/mail").await.json().await.expect("JSON");
    let queue = &shown["queue"];
    assert_eq!(
        (&queue["completed"], &queue["dead"], &queue["partitions"]),
        (&json!(30), &json!(10), &json!(8)),
        "{queue}"
    );
    for (path, text) in everything_shown(&kit, &failed[0]).await {
        assert!(!text.contains("mail~"), "{path}: {text}");
    }
    for log in [kit.gateway.raw_log(), worker.raw_log()] {
        assert!(!log.contains("mail~"), "{log}");
    }
}

#[tokio::test]
async fn partitions_are_raised_over_http_and_by_the_command_line_and_never_lowered() {
    let galley = GalleyProgram::start().await;
    let kit = &galley.kit;
    galley.run(&["queues", "show", "mail", "--create"]).await.done();
    let shown = galley.run(&["queues", "partitions", "mail", "4"]).await.done();
    assert!(shown.lines().any(|line| line.starts_with("partitions") && line.ends_with('4')), "{shown}");
    let put = async |body: &Value| {
        let put = kit.http.put(kit.gateway.url("/ojs/v1/admin/queues/mail/config"));
        let response = put.header("content-type", "application/json").body(body.to_string()).send().await;
        let response = response.expect("an answer");
        (response.status().as_u16(), response.text().await.expect("text"))
    };
    let (status, answer) = put(&json!({ "partitions": 2 })).await;
    assert!(status == 400 && answer.contains("never lowered"), "{status} {answer}");
    let (status, answer) = put(&json!({ "concurrency": 4, "partitions": 5 })).await;
    assert!(status == 400 && answer.contains("share"), "{status} {answer}");
    let (status, answer) = put(&json!({ "concurrency": 8, "partitions": 8 })).await;
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let configuration = &answer["configuration"];
    assert_eq!((status, &configuration["partitions"], &configuration["key_partitions"]), (200, &json!(8), &json!(4)));
    assert_eq!(put(configuration).await.0, 200, "what is shown can be sent back");
    assert_eq!(galley.json(&["queues", "partitions", "mail"]).await["configuration"]["concurrency"], 8);
    let refused = galley.run(&["queues", "delete", "mail", "--yes"]).await;
    assert!(refused.code != 0 && refused.err.contains("partitions"), "{}", refused.err);
    let steps =
        json!({ "type": "chain", "steps": [mail("a", &json!({ "rate_limit": { "key": "k", "concurrency": 1 } }))] });
    let refused = kit.post("/ojs/v1/workflows", &steps).await;
    assert_eq!(refused.status(), 400);
    assert!(refused.text().await.expect("text").contains("partitions"));
}

#[tokio::test]
async fn a_program_fetches_the_jobs_of_all_partitions_and_waits_for_them() {
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &[EIGHT]).await;
    let mut expected = BTreeSet::new();
    for _ in 0..24 {
        expected.insert(kit.enqueue(&mail("a", &json!({}))).await);
    }
    // A gateway that puts no jobs into the queue
    let other = ServiceProcess::start("gateway", &kit.redis, &[]).await;
    let fetch = async |gateway: &ServiceProcess, count: usize, wait_ms: u64| -> Vec<Value> {
        let wanted = json!({ "queues": ["mail"], "count": count, "wait_ms": wait_ms });
        let post = kit.http.post(gateway.url("/ojs/v1/workers/fetch")).header("content-type", "application/json");
        let answer: Value = post.body(wanted.to_string()).send().await.expect("an answer").json().await.expect("JSON");
        answer["jobs"].as_array().expect("jobs").clone()
    };
    let first = fetch(&other, 10, 0).await;
    assert_eq!(first.len(), 10, "it finds the partitions");
    let rest = fetch(&kit.gateway, 100, 0).await;
    let fetched: BTreeSet<String> =
        first.iter().chain(&rest).map(|job| job["id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!(fetched, expected);
    for job in first.iter().chain(&rest) {
        assert_eq!(job["queue"], "mail");
        let done = json!({ "job_id": job["id"], "token": job["token"], "result": 1 });
        assert_eq!(kit.post("/ojs/v1/workers/ack", &done).await.status(), 200);
    }
    // One for each partition
    for _ in 0..8 {
        let waiting = fetch(&other, 1, LONG_MS);
        let enqueue = async {
            wait_for_waiters_of(&kit, &other, 1).await;
            kit.enqueue(&mail("a", &json!({}))).await
        };
        let (jobs, id) = tokio::join!(waiting, enqueue);
        assert_eq!(jobs[0]["id"], json!(id));
    }
}

#[tokio::test]
async fn one_hot_queue_with_eight_partitions_uses_all_primaries_of_a_cluster() {
    let cluster = ClusterProcesses::start().await;
    let url = cluster.url();
    let of_gateway: Vec<(&str, &str)> = PATIENCE.iter().copied().chain([EIGHT]).collect();
    let of_worker: Vec<(&str, &str)> = PATIENCE.iter().copied().chain([QUEUES]).collect();
    let gateway = ServiceProcess::start_with_redis_url("gateway", &url, &of_gateway).await;
    let kit = GalleyKit { gateway, http: CheckedClient::new(), redis: testkit::RedisServer::start() };
    kit.gateway.wait_until_ready().await;
    let mut ids = Vec::new();
    for number in 0..24 {
        ids.push(kit.enqueue(&mail("test.echo", &json!({}))).await);
        let limit = json!({ "rate_limit": { "key": format!("k{number}"), "concurrency": 1 } });
        ids.push(kit.enqueue(&mail("test.echo", &limit)).await);
    }
    let mut streams = 0;
    for primary in 0..3 {
        let found: Vec<String> = cluster.ask(primary, redis::cmd("KEYS").arg("galley:{mail*}:s:0")).await;
        let mut waiting = 0;
        for stream in &found {
            waiting += cluster.ask::<u64>(primary, redis::cmd("XLEN").arg(stream)).await;
        }
        assert!(found.len() >= 2 && waiting >= 6, "primary {primary} has {waiting} jobs in {found:?}");
        streams += found.len();
    }
    assert_eq!(streams, 8);
    // A worker whose settings say nothing of partitions
    let worker = ServiceProcess::start_with_redis_url("queue-worker", &url, &of_worker).await;
    for id in &ids {
        kit.wait_for_state(id, "completed").await;
    }
    let shown = eventually("all is counted", || async {
        let shown: Value = kit.get("/ojs/v1/queues/mail").await.json().await.ok()?;
        (shown["queue"]["completed"] == ids.len()).then_some(shown)
    })
    .await;
    assert_eq!((&shown["queue"]["available"], &shown["queue"]["active"]), (&json!(0), &json!(0)));
    for service in [&kit.gateway, &worker] {
        let log = service.raw_log();
        assert!(!["CROSSSLOT", "NOSCRIPT", "mail~"].iter().any(|word| log.contains(word)), "{log}");
    }
}
