//! A Redis that gets full recovers by itself, and never takes much more than its maximum.

use serde_json::{Value, json};
use testkit::{RedisServer, eventually, redis};

use crate::kit::GalleyKit;

const MAX_MEMORY: u64 = 64 << 20;

/// What the fullest moment may take.
const MAX_PEAK: u64 = MAX_MEMORY + MAX_MEMORY / 20;

async fn start() -> GalleyKit {
    let kit = GalleyKit::start_with(RedisServer::start(), &[]).await;
    kit.redis_command(&["CONFIG", "SET", "maxmemory", &MAX_MEMORY.to_string()]).await;
    kit
}

impl GalleyKit {
    async fn memory_figure(&self, name: &str) -> u64 {
        let info: String = redis::from_redis_value(self.redis_command(&["INFO", "memory"]).await).expect("text");
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.expect("it says so").trim().parse().expect("a number")
    }

    async fn assert_peak(&self) {
        let peak = self.memory_figure("used_memory_peak").await;
        assert!(peak <= MAX_PEAK, "{peak} of {MAX_MEMORY} bytes");
    }

    /// Enqueues small batches of jobs until Redis is full; true if it was. What a request brings counts as used memory too.
    async fn enqueue_until_full(&self, argument: &str, batches: usize) -> bool {
        let job = json!({ "type": "test.echo", "args": [argument] });
        let jobs: Vec<&Value> = std::iter::repeat_n(&job, 4).collect();
        for _ in 0..batches {
            match self.post("/ojs/v1/jobs/batch", &json!({ "jobs": jobs })).await.status().as_u16() {
                201 => {}
                503 => return true,
                other => panic!("answered with {other}"),
            }
        }
        false
    }

    /// Publishes until Redis is full; true if it was.
    async fn publish_until_full(&self, channel: &str, message: &str, count: usize) -> bool {
        for _ in 0..count {
            match self.post(&format!("/v1/channels/{channel}/messages"), &json!(message)).await.status().as_u16() {
                201 => {}
                503 => return true,
                other => panic!("answered with {other}"),
            }
        }
        false
    }

    async fn wait_until_it_publishes(&self, channel: &str, message: &str) {
        eventually("messages are accepted again", || async {
            let answer = self.post(&format!("/v1/channels/{channel}/messages"), &json!(message)).await;
            (answer.status() == 201).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_full_of_jobs_takes_new_ones_once_workers_have_caught_up() {
    let kit = start().await;
    assert!(kit.enqueue_until_full(&"x".repeat(50_000), 1000).await);
    // Operators can see and steer it meanwhile
    for path in ["/ojs/v1/queues", "/ojs/v1/queues/default", "/ojs/v1/dead-letter", "/ojs/v1/workers"] {
        assert_eq!(kit.get(path).await.status(), 200, "{path}");
    }
    for action in ["pause", "resume"] {
        assert_eq!(kit.post(&format!("/ojs/v1/queues/default/{action}"), &json!({})).await.status(), 200, "{action}");
    }
    let _worker = kit.start_worker(&[]).await;
    eventually("jobs are accepted again", || async {
        let answer = kit.post("/ojs/v1/jobs", &json!({ "type": "test.echo", "args": ["again"] })).await;
        (answer.status() == 201).then_some(())
    })
    .await;
    kit.assert_peak().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_never_fill_a_redis() {
    let kit = start().await;
    let _worker = kit.start_worker(&[]).await;
    for _ in 0..200 {
        eventually("jobs are accepted", || async {
            (!kit.enqueue_until_full(&"x".repeat(50_000), 2).await).then_some(())
        })
        .await;
    }
    let id = eventually("jobs are accepted", || async {
        let answer = kit.post("/ojs/v1/jobs", &json!({ "type": "test.echo", "args": [] })).await;
        let answer: Value = answer.json().await.ok()?;
        answer["job"]["id"].as_str().map(str::to_owned)
    })
    .await;
    eventually("all are done", || async {
        let shown: Value = kit.get("/ojs/v1/queues/default").await.json().await.ok()?;
        (shown["queue"]["available"] == 0 && shown["queue"]["active"] == 0).then_some(())
    })
    .await;
    assert!(!id.is_empty());
    kit.assert_peak().await;
    eventually("health shows the memory", || async {
        let health: Value = kit.get("/ojs/v1/health").await.json().await.ok()?;
        (health["backend"]["memory"]["max_bytes"] == MAX_MEMORY).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_full_of_messages_takes_new_ones() {
    let kit = start().await;
    let message = "x".repeat(900_000);
    assert!(kit.publish_until_full("c", &message, 100).await);
    kit.wait_until_it_publishes("c", &message).await;
    kit.assert_peak().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_lags_does_not_stop_jobs_and_messages_for_good() {
    let kit = start().await;
    // Nobody delivers it
    let subscription = json!({ "channels": ["c"], "deliver": { "log": {} } });
    let request = kit.http.put(kit.gateway.url("/v1/subscriptions/s")).header("content-type", "application/json");
    assert!(request.body(subscription.to_string()).send().await.expect("an answer").status().is_success());
    let message = "x".repeat(200_000);
    assert!(kit.publish_until_full("c", &message, 500).await);
    kit.wait_until_it_publishes("c", &message).await;
    let worker = kit.start_pubsub_worker().await;
    let paused = kit.post("/v1/subscriptions/s/pause", &json!({})).await;
    let (status, said) = (paused.status(), paused.text().await.expect("text"));
    assert_eq!(status, 200, "{said}");
    kit.wait_until_it_publishes("c", &message).await;
    kit.assert_peak().await;
    drop(worker);
}
