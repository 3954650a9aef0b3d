//! A gateway and workers on a Redis of their own.

use e2e::{Persistence, RedisServer, Service, eventually};
use reqwest::{Client, Response};
use serde_json::{Value, json};

pub(crate) struct Kit {
    pub(crate) gateway: Service,
    pub(crate) http: Client,
    // Dropped last: the services outlive nothing they need
    pub(crate) redis: RedisServer,
}

impl Kit {
    pub(crate) async fn start() -> Self {
        Self::with(RedisServer::start(), &[]).await
    }

    /// On a Redis whose acknowledged writes survive a kill.
    pub(crate) async fn durable(variables: &[(&str, &str)]) -> Self {
        Self::with(RedisServer::start_with(Persistence::Always), variables).await
    }

    pub(crate) async fn with(redis: RedisServer, variables: &[(&str, &str)]) -> Self {
        let gateway = Service::start("gateway", &redis, variables).await;
        gateway.ready().await;
        // A connection each: a broken keep-alive connection must not fail a test that kills the gateway
        let http = Client::builder().pool_max_idle_per_host(0).build().expect("a client");
        Self { gateway, http, redis }
    }

    pub(crate) async fn worker(&self, variables: &[(&str, &str)]) -> Service {
        let worker = Service::start("queue-worker", &self.redis, variables).await;
        worker.ready().await;
        worker
    }

    pub(crate) async fn listener(&self) -> Service {
        let listener = Service::start("pubsub-worker", &self.redis, &[]).await;
        listener.ready().await;
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
    pub(crate) async fn reaches(&self, id: &str, state: &str) -> Value {
        eventually(&format!("job {id} is {state}"), || async {
            let response = self.http.get(self.gateway.url(&format!("/ojs/v1/jobs/{id}"))).send().await.ok()?;
            let answer: Value = response.json().await.ok()?;
            (answer["job"]["state"] == state).then(|| answer["job"].clone())
        })
        .await
    }

    /// Fetches a job as a program over HTTP does.
    pub(crate) async fn fetch(&self, queue: &str) -> Option<Value> {
        let body = json!({ "queues": [queue], "worker_id": "puller" });
        let answer: Value = self.post("/ojs/v1/workers/fetch", &body).await.json().await.expect("JSON");
        answer["jobs"].as_array().expect("an array").first().cloned()
    }

    pub(crate) async fn command(&self, words: &[&str]) -> redis::Value {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(word);
        }
        command.query_async(&mut self.redis.connection().await).await.expect("redis runs")
    }

    /// Every key there is, for tests that nothing was written.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> =
            redis::cmd("KEYS").arg("*").query_async(&mut self.redis.connection().await).await.expect("redis runs");
        keys.retain(|key| key != "galley:maintainer");
        keys.sort();
        keys
    }
}

pub(crate) fn job(job_type: &str, args: &Value) -> Value {
    json!({ "type": job_type, "args": args })
}
