//! A Redis that gets full recovers by itself, and never takes much more than its maximum.

use serde_json::{Value, json};
use testkit::{RedisServer, eventually, redis};

use crate::kit::GalleyKit;

const MAX_MEMORY: u64 = 64 << 20;

async fn start() -> GalleyKit {
    start_with(MAX_MEMORY, &[]).await
}

async fn start_with(max_memory: u64, variables: &[(&str, &str)]) -> GalleyKit {
    let redis = RedisServer::start();
    let set = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(max_memory).to_owned();
    set.exec_async(&mut redis.connection().await).await.expect("redis runs");
    GalleyKit::start_with(redis, variables).await
}

/// A batch of jobs of one kind.
fn batch(job: &Value, count: usize) -> Value {
    json!({ "jobs": std::iter::repeat_n(job, count).collect::<Vec<_>>() })
}

impl GalleyKit {
    async fn memory_figure(&self, name: &str) -> u64 {
        let info: String = redis::from_redis_value(self.redis_command(&["INFO", "memory"]).await).expect("text");
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.expect("it says so").trim().parse().expect("a number")
    }

    async fn assert_peak(&self) {
        self.assert_peak_of("all", MAX_MEMORY).await;
    }

    async fn assert_peak_of(&self, what: &str, max_memory: u64) {
        let peak = self.memory_figure("used_memory_peak").await;
        // Shown with --no-capture, for docs/evidence.md
        println!("{what}: used_memory_peak {peak} of {max_memory} bytes");
        assert!(peak <= max_memory + max_memory / 20, "{what}: {peak} of {max_memory} bytes");
    }

    /// Waits until everybody can work: jobs and messages are accepted.
    async fn assert_recovers(&self, from: &str) {
        eventually(&format!("it takes jobs after {from}"), || async {
            let answer = self.post("/ojs/v1/jobs", &json!({ "type": "test.noop", "args": [] })).await;
            (answer.status() == 201).then_some(())
        })
        .await;
        self.wait_until_it_publishes("other", "m").await;
        self.assert_peak_of(from, MAX_MEMORY).await;
    }

    /// Enqueues small batches of jobs until Redis is full; true if it was. What a request brings counts as used memory too.
    async fn enqueue_until_full(&self, argument: &str, batches: usize) -> bool {
        let job = json!({ "type": "test.echo", "args": [argument] });
        self.fill_with(&batch(&job, 4), batches).await
    }

    /// Sends a batch again and again until it is refused; true if it was.
    async fn fill_with(&self, batch: &Value, times: usize) -> bool {
        for _ in 0..times {
            match self.post("/ojs/v1/jobs/batch", batch).await.status().as_u16() {
                201 => {}
                503 => return true,
                other => panic!("answered with {other}"),
            }
        }
        false
    }

    /// Publishes until Redis is full; true if it was. As plain bytes: Redis must fill faster than the maintenance trims.
    async fn publish_until_full(&self, channel: &str, message: &str, count: usize) -> bool {
        let request = self.http.post(self.gateway.url(&format!("/v1/channels/{channel}/messages")));
        let request = request.header("content-type", "application/octet-stream").body(message.to_owned());
        for _ in 0..count {
            let answer = request.try_clone().expect("bytes").send().await.expect("an answer");
            match answer.status().as_u16() {
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
    // Often enough, also if a pause lets maintenance trim in between
    assert!(kit.publish_until_full("c", &message, 1000).await);
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
    assert!(kit.publish_until_full("c", &message, 5000).await);
    kit.wait_until_it_publishes("c", &message).await;
    let worker = kit.start_pubsub_worker().await;
    let paused = kit.post("/v1/subscriptions/s/pause", &json!({})).await;
    let (status, said) = (paused.status(), paused.text().await.expect("text"));
    assert_eq!(status, 200, "{said}");
    kit.wait_until_it_publishes("c", &message).await;
    kit.assert_peak().await;
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_redis_is_filled_with_one_kind_after_the_other_and_recovers_from_each() {
    let kit = start().await;
    let large = "x".repeat(50_000);
    assert!(kit.enqueue_until_full(&large, 1000).await, "jobs are refused at some point");
    let _worker = kit.start_worker(&[]).await;
    kit.assert_recovers("jobs").await;
    for _ in 0..100 {
        kit.enqueue_until_full(&large, 2).await;
    }
    kit.assert_recovers("results").await;
    let subscription = json!({ "channels": ["c"], "deliver": { "log": {} } });
    let request = kit.http.put(kit.gateway.url("/v1/subscriptions/s")).header("content-type", "application/json");
    assert!(request.body(subscription.to_string()).send().await.expect("an answer").status().is_success());
    kit.publish_until_full("c", &"x".repeat(400_000), 160).await;
    kit.assert_recovers("a subscription that lags").await;
    let history = "x".repeat(900_000);
    kit.publish_until_full("d", &history, 60).await;
    kit.wait_until_it_publishes("d", &history).await;
    kit.assert_recovers("messages").await;
    let retried = json!({ "type": "test.fail_always", "args": ["x".repeat(500)],
        "retry": { "max_attempts": 3, "initial_interval": "PT1S" } });
    kit.fill_with(&batch(&retried, 500), 30).await;
    kit.assert_recovers("jobs that are retried").await;
    let dead = json!({ "type": "test.fail_always", "args": [large],
        "retry": { "max_attempts": 1, "on_exhaustion": "dead_letter" } });
    for _ in 0..60 {
        kit.fill_with(&batch(&dead, 4), 2).await;
    }
    kit.assert_recovers("dead letters").await;
    let scheduled = json!({ "type": "test.noop", "args": ["x".repeat(20_000)], "scheduled_at": "+PT1H" });
    assert!(kit.fill_with(&batch(&scheduled, 10), 200).await, "scheduled jobs leave room for others");
    kit.assert_recovers("scheduled jobs").await;
    kit.fill_with_keys(&"x".repeat(20_000)).await;
    kit.assert_recovers("idempotency keys").await;
}

impl GalleyKit {
    /// Sends requests with an Idempotency-Key until one is refused.
    async fn fill_with_keys(&self, argument: &str) {
        let body = json!({ "type": "test.noop", "args": [argument] }).to_string();
        for n in 0..2000 {
            let request = self.http.post(self.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json");
            let request = request.header("idempotency-key", format!("key-{n}"));
            let answer = request.body(body.clone()).send().await.expect("the gateway answers");
            if answer.status() == 503 {
                assert!(answer.headers().contains_key("retry-after"));
                let said: Value = answer.json().await.expect("JSON");
                if said["error"]["code"] == "memory_budget_used" {
                    return;
                }
            }
        }
        panic!("requests with a key never used up their share");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_jobs_that_all_fail_never_fill_a_redis() {
    const MAX: u64 = 32 << 20;
    let kit = start_with(MAX, &[]).await;
    let job = json!({ "type": "test.fail_always", "args": ["x".repeat(400)],
        "retry": { "max_attempts": 3, "initial_interval": "PT5M" } });
    let jobs = batch(&job, 500);
    let mut refused = kit.post("/ojs/v1/jobs/batch", &jobs).await;
    for _ in 0..500 {
        if refused.status() == 503 {
            break;
        }
        refused = kit.post("/ojs/v1/jobs/batch", &jobs).await;
    }
    let refused: Value = refused.json().await.expect("JSON");
    let _worker = kit.start_worker(&[]).await;
    // However many there was room for: a slow machine takes long, but goes on
    let mut available = u64::MAX;
    while available > 0 {
        available = eventually("more of them have had an attempt", || async {
            let shown: Value = kit.get("/ojs/v1/queues/default").await.json().await.ok()?;
            shown["queue"]["available"].as_u64().filter(|now| *now < available)
        })
        .await;
    }
    kit.assert_peak_of("jobs that wait for a retry", MAX).await;
    assert_eq!(refused["error"]["code"], "memory_budget_used", "{}", refused["error"]);
    eventually("health shows what the records of the jobs take", || async {
        let health: Value = kit.get("/ojs/v1/health").await.json().await.ok()?;
        let budgets = health["backend"]["memory"]["budgets"].as_array()?;
        let records = budgets.iter().find(|budget| budget["kind"] == "job_records")?;
        (records["used_bytes"].as_u64()? > MAX / 10).then_some(())
    })
    .await;
}
