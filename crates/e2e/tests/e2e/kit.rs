//! A gateway and workers on a Redis of their own.

use std::{
    fs,
    path::PathBuf,
    process::{Output, Stdio},
};
use testkit::redis;

use reqwest::Response;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{RedisPersistence, RedisServer, ServiceProcess, TEST_TIMEOUT, binary_path, eventually};

use crate::http_client::CheckedClient;

/// A lease short enough to wait for, and so long that a busy machine renews it in time: workers renew each third of it.
pub(crate) const SHORT_LEASE: [(&str, &str); 2] =
    [("GALLEY__JOBS__LEASE_MS", "3000"), ("GALLEY__MAINTENANCE__SWEEP_MS", "100")];

pub(crate) struct GalleyKit {
    pub(crate) gateway: ServiceProcess,
    pub(crate) http: CheckedClient,
    // Dropped last: the services need it until they are gone
    pub(crate) redis: RedisServer,
}

impl GalleyKit {
    pub(crate) async fn start() -> Self {
        Self::start_with(RedisServer::start(), &[]).await
    }

    /// The same with a Redis whose acknowledged writes survive a kill.
    pub(crate) async fn start_durable(variables: &[(&str, &str)]) -> Self {
        Self::start_with(RedisServer::start_with(RedisPersistence::Always), variables).await
    }

    pub(crate) async fn start_with(redis: RedisServer, variables: &[(&str, &str)]) -> Self {
        let gateway = ServiceProcess::start("gateway", &redis, variables).await;
        gateway.wait_until_ready().await;
        Self { gateway, http: CheckedClient::new(), redis }
    }

    pub(crate) async fn start_worker(&self, variables: &[(&str, &str)]) -> ServiceProcess {
        let worker = ServiceProcess::start("queue-worker", &self.redis, variables).await;
        worker.wait_until_ready().await;
        worker
    }

    /// Runs the queue-worker binary with arguments until it exits.
    pub(crate) async fn run_worker(&self, args: &[&str], variables: &[(&str, &str)]) -> Output {
        self.run_binary("queue-worker", args, variables).await
    }

    /// The same for another binary.
    pub(crate) async fn run_binary(&self, name: &str, args: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = tokio::process::Command::new(binary_path(name));
        command.args(args).env("GALLEY__REDIS__URL", self.redis.url()).env("GALLEY__LOG__FORMAT", "json");
        command.env("GALLEY__QUEUE_WORKER__DEMO_HANDLERS", "true");
        command.envs(variables.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(TEST_TIMEOUT, command.output()).await;
        output.expect("it ends in time").expect("a binary of ours starts")
    }

    /// Cancels a job.
    pub(crate) async fn cancel(&self, id: &str) {
        let url = self.gateway.url(&format!("/ojs/v1/jobs/{id}"));
        assert_eq!(self.http.delete(url).send().await.expect("the gateway answers").status(), 200);
    }

    pub(crate) async fn start_pubsub_worker(&self) -> ServiceProcess {
        let listener = ServiceProcess::start("pubsub-worker", &self.redis, &[]).await;
        listener.wait_until_ready().await;
        listener
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        let request = self.http.post(self.gateway.url(path)).header("content-type", "application/json");
        request.body(body.to_string()).send().await.expect("the gateway answers")
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.http.get(self.gateway.url(path)).send().await.expect("the gateway answers")
    }

    /// Enqueues a job and gives its id.
    pub(crate) async fn enqueue(&self, body: &Value) -> String {
        let response = self.post("/ojs/v1/jobs", body).await;
        assert_eq!(response.status(), 201);
        let answer: Value = response.json().await.expect("JSON");
        answer["job"]["id"].as_str().expect("an id").to_owned()
    }

    pub(crate) async fn job(&self, id: &str) -> Value {
        let answer: Value = self.get(&format!("/ojs/v1/jobs/{id}")).await.json().await.expect("JSON");
        answer["job"].clone()
    }

    /// Waits until a job is in that state and gives it.
    pub(crate) async fn wait_for_state(&self, id: &str, state: &str) -> Value {
        eventually(&format!("job {id} is {state}"), || async {
            let response = self.http.get(self.gateway.url(&format!("/ojs/v1/jobs/{id}"))).send().await.ok()?;
            let answer: Value = response.json().await.ok()?;
            (answer["job"]["state"] == state).then(|| answer["job"].clone())
        })
        .await
    }

    /// Waits until a channel has that number of readers.
    pub(crate) async fn wait_for_readers(&self, channel: &str, readers: u64) {
        eventually(&format!("{readers} readers of {channel}"), || async {
            let shown: Value = self.get(&format!("/v1/channels/{channel}")).await.json().await.ok()?;
            (shown["channel"]["readers"] == readers).then_some(())
        })
        .await;
    }

    /// Fetches a job as a program over HTTP does.
    pub(crate) async fn fetch(&self, queue: &str) -> Option<Value> {
        let body = json!({ "queues": [queue], "worker_id": "puller" });
        let answer: Value = self.post("/ojs/v1/workers/fetch", &body).await.json().await.expect("JSON");
        answer["jobs"].as_array().expect("an array").first().cloned()
    }

    pub(crate) async fn redis_command(&self, words: &[&str]) -> redis::Value {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(word);
        }
        command.query_async(&mut self.redis.connection().await).await.expect("redis runs")
    }

    /// All keys except those of the leader and of statistics, for tests that nothing was written.
    pub(crate) async fn redis_keys(&self) -> Vec<String> {
        let mut keys: Vec<String> =
            redis::cmd("KEYS").arg("*").query_async(&mut self.redis.connection().await).await.expect("redis runs");
        keys.retain(|key| {
            !["galley:leader", "galley:leader_details", "galley:{galley:leader}:clock"].contains(&key.as_str())
                && !key.starts_with("galley:{statistics}:")
        });
        keys.sort();
        keys
    }
}

pub(crate) fn job_body(job_type: &str, args: &Value) -> Value {
    json!({ "type": job_type, "args": args })
}

/// A folder for a worker's rules and for other files of a test.
pub(crate) struct TestFolder(TempDir);

impl TestFolder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// With rules.
    pub(crate) fn with_rules(rules: &str) -> Self {
        let folder = Self::new();
        folder.write_rules(rules);
        folder
    }

    pub(crate) fn write_rules(&self, rules: &str) {
        self.write("rules.toml", rules);
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("it is there");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The same as text.
    pub(crate) fn path_text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().expect("UTF-8")
    }

    /// The text of a file, empty if it does not exist.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Creates a file that a program waits for.
    pub(crate) fn touch(&self, name: &str) {
        self.write(name, "");
    }

    /// Waits until a file has that in it.
    pub(crate) async fn wait_for_text(&self, name: &str, text: &str) {
        let what = format!("{name} has {text:?}");
        eventually(&what, || async { self.read(name).contains(text).then_some(()) }).await;
    }
}

/// The setting that names the rules.
pub(crate) const RULES_VARIABLE: &str = "GALLEY__QUEUE_WORKER__RULES";
