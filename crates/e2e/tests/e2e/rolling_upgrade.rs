//! Two versions side by side on one Redis, forward and back again, as a rolling upgrade and a rollback have them: what one
//! accepted, the other finishes.
//!
//! `GALLEY_TEST_PREVIOUS_BINARIES` names the folder with the programs of the version before: `make test` builds those of
//! `deploy/dev/previous-version`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use testkit::{RedisPersistence, RedisServer, ServiceProcess, binary_path, eventually, redis};

use crate::trace_context::TRACE;

/// One gateway, queue-worker and pubsub-worker of a version.
struct Version {
    gateway: ServiceProcess,
    workers: Vec<ServiceProcess>,
}

const VARIABLES: [(&str, &str); 2] =
    [("GALLEY__JOBS__LEASE_MS", "3000"), ("GALLEY__QUEUE_WORKER__QUEUES", "default,sink,prodcons")];

impl Version {
    async fn start(folder: &Path, redis: &RedisServer) -> Self {
        let gateway = ServiceProcess::start_from(folder, "gateway", redis, &VARIABLES).await;
        gateway.wait_until_ready().await;
        let mut workers = Vec::new();
        for name in ["queue-worker", "pubsub-worker"] {
            let worker = ServiceProcess::start_from(folder, name, redis, &VARIABLES).await;
            worker.wait_until_ready().await;
            workers.push(worker);
        }
        Self { gateway, workers }
    }

    /// Stops it as an orchestrator does, while its jobs run.
    async fn stop(self) {
        for process in self.workers {
            assert!(process.terminate().await.success());
        }
        assert!(self.gateway.terminate().await.success());
    }
}

/// What was accepted.
#[derive(Default)]
struct Accepted {
    jobs: Vec<String>,
    messages: BTreeSet<String>,
    list_elements: u64,
}

struct Load {
    /// Without the check against `openapi.json`: the version before answers as its own describes
    http: reqwest::Client,
    redis: redis::aio::MultiplexedConnection,
    accepted: Accepted,
}

impl Load {
    async fn post(&self, gateway: &ServiceProcess, path: &str, body: &Value) -> Value {
        let mut request = self.http.post(gateway.url(path)).header("content-type", "application/json");
        // A version that knows less of them keeps what it knows
        for (name, value) in TRACE {
            request = request.header(name, value);
        }
        let response = request.body(body.to_string()).send().await.expect("the gateway answers");
        assert!(response.status().is_success(), "{path} {body}: {}", response.text().await.expect("text"));
        response.json().await.expect("JSON")
    }

    /// One of everything that is stored until later, and messages, through one gateway.
    async fn add(&mut self, gateway: &ServiceProcess, phase: &str) {
        for n in 0..20 {
            let mut push = redis::cmd("LPUSH");
            push.arg("task:prodcons:queue").arg(format!("{phase} {n}"));
            push.exec_async(&mut self.redis).await.expect("redis runs");
            self.accepted.list_elements += 1;
        }
        let retry = json!({ "max_attempts": 5, "initial_interval": "PT0.1S" });
        let plain = (0..10).map(|n| json!({ "type": "test.echo", "args": [phase, n] }));
        let slow = (0..3).map(|n| json!({ "type": "test.slow", "args": [300 + n] }));
        let others = [
            json!({ "type": "test.fail_twice", "args": [phase], "options": { "retry": retry } }),
            json!({ "type": "test.echo", "args": [phase], "options": { "delay_until": "+PT1S", "priority": 5 } }),
            json!({ "type": "test.echo", "args": [phase], "unique": { "keys": ["args"] } }),
            json!({ "type": "test.echo", "args": [phase], "rate_limit": { "key": "tenant", "concurrency": 1 } }),
        ];
        for job in plain.chain(slow).chain(others) {
            let answer = self.post(gateway, "/ojs/v1/jobs", &job).await;
            self.accepted.jobs.push(answer["job"]["id"].as_str().expect("an id").to_owned());
        }
        let steps = json!([{ "type": "test.produce", "args": [phase] }, { "type": "test.gather", "args": [] }]);
        self.post(gateway, "/ojs/v1/workflows", &json!({ "type": "chain", "steps": steps })).await;
        for n in 0..5 {
            let body = format!("{phase} {n}");
            self.post(gateway, "/v1/channels/orders.new/messages", &json!(body)).await;
            self.accepted.messages.insert(body);
        }
    }

    async fn completed(&self, gateway: &ServiceProcess, queue: &str) -> u64 {
        let shown = self.http.get(gateway.url(&format!("/ojs/v1/queues/{queue}"))).send().await.expect("it answers");
        let shown: Value = shown.json().await.expect("JSON");
        shown["queue"]["completed"].as_u64().expect("a number")
    }

    async fn wait_until_finished(&self, gateway: &ServiceProcess) {
        for id in &self.accepted.jobs {
            eventually(&format!("job {id} is completed"), || async {
                let shown = self.http.get(gateway.url(&format!("/ojs/v1/jobs/{id}"))).send().await.ok()?;
                let shown: Value = shown.json().await.ok()?;
                (shown["job"]["state"] == "completed").then_some(())
            })
            .await;
        }
        eventually("every workflow is completed", || async {
            let shown: Value = self.http.get(gateway.url("/ojs/v1/workflows")).send().await.ok()?.json().await.ok()?;
            // The version before names its lists otherwise
            let workflows = shown["items"].as_array().or_else(|| shown["workflows"].as_array())?;
            workflows.iter().all(|workflow| workflow["state"] == "completed").then_some(())
        })
        .await;
        eventually("no element waits in the list", || async {
            let mut exists = redis::cmd("EXISTS");
            exists.arg("task:prodcons:queue").arg("galley:bridge:{task:prodcons:queue}");
            let lists: u64 = exists.query_async(&mut self.redis.clone()).await.ok()?;
            let mut count = redis::cmd("XLEN");
            count.arg("galley:bridge:{task:prodcons:queue}:batches");
            let batches: u64 = count.query_async(&mut self.redis.clone()).await.ok()?;
            (lists + batches == 0).then_some(())
        })
        .await;
        eventually("nothing waits", || async {
            let shown: Value = self.http.get(gateway.url("/ojs/v1/queues")).send().await.ok()?.json().await.ok()?;
            let waits = |queue: &Value| ["available", "active", "waiting"].iter().any(|name| queue[name] != 0);
            (!shown["queues"].as_array()?.iter().any(waits)).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_side_by_side_finish_what_either_accepted() {
    let previous = std::env::var_os("GALLEY_TEST_PREVIOUS_BINARIES").filter(|folder| !folder.is_empty());
    let Some(previous) = previous.map(PathBuf::from) else {
        eprintln!("skipped: GALLEY_TEST_PREVIOUS_BINARIES does not name the programs of the version before");
        return;
    };
    eprintln!("beside {}: CONTRIBUTING.md says what a change of what is stored has to do", previous.display());
    let current = binary_path("gateway").parent().expect("a folder").to_owned();
    let redis = RedisServer::start_with(RedisPersistence::Always);
    let mut load = Load {
        http: reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("a client"),
        redis: redis.connection().await,
        accepted: Accepted::default(),
    };

    let old = Version::start(&previous, &redis).await;
    let subscription =
        json!({ "channels": ["orders.*"], "deliver": { "queue": { "queue": "sink", "type": "test.echo" } } });
    let put = load.http.put(old.gateway.url("/v1/subscriptions/orders")).header("content-type", "application/json");
    let put = put.body(subscription.to_string()).send().await.expect("the gateway answers");
    assert!(put.status().is_success(), "{}", put.text().await.expect("text"));
    load.add(&old.gateway, "old alone").await;

    let new = Version::start(&current, &redis).await;
    load.add(&old.gateway, "old beside new").await;
    load.add(&new.gateway, "new beside old").await;
    old.stop().await;
    load.add(&new.gateway, "new alone").await;
    load.wait_until_finished(&new.gateway).await;

    // And back, because an upgrade may turn out badly
    load.add(&new.gateway, "before the way back").await;
    let old = Version::start(&previous, &redis).await;
    load.add(&new.gateway, "new beside old again").await;
    new.stop().await;
    load.add(&old.gateway, "old again").await;
    load.wait_until_finished(&old.gateway).await;
    let delivered = load.completed(&old.gateway, "sink").await;
    assert!(delivered >= load.accepted.messages.len() as u64, "{delivered} of {}", load.accepted.messages.len());
    assert_eq!(load.completed(&old.gateway, "prodcons").await, load.accepted.list_elements);
    old.stop().await;
}
