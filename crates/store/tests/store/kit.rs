//! A store on a Redis of its own.

use std::{collections::HashMap, time::Duration};

use common::{
    id::JobId,
    json::Object,
    name::{Priority, QueueName, WorkerId},
    settings::Settings,
};
use model::job::{Failure, NewJob};
use serde_json::Value;
use store::{
    Redis,
    events::EventLog,
    jobs::{Claim, Claimed, Completion, Consumer, Ended, Enqueued, Fence, Jobs, Refused, Settled, local_now},
    maintenance,
};
use testkit::RedisServer;
use tokio_util::sync::CancellationToken;

pub(crate) struct Kit {
    pub(crate) server: RedisServer,
    pub(crate) redis: Redis,
    pub(crate) jobs: Jobs,
    pub(crate) settings: Settings,
}

impl Kit {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(variables: &[(&str, &str)]) -> Self {
        Self::on(RedisServer::start(), variables)
    }

    pub(crate) fn on(server: RedisServer, variables: &[(&str, &str)]) -> Self {
        let mut all: HashMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        all.insert("GALLEY__REDIS__URL".to_owned(), server.url());
        let settings = Settings::from_sources(None, all).expect("allowed settings");
        let redis = Redis::new(&settings.redis).expect("a URL");
        let (log, _writer) = EventLog::start(&redis, settings.jobs.events_max, CancellationToken::new());
        let jobs = Jobs::new(&redis, &settings, log);
        Self { server, redis, jobs, settings }
    }

    /// Enqueues a request as a client would send it.
    pub(crate) async fn try_enqueue(&self, body: &str) -> Result<Enqueued, Refused> {
        let now = self.jobs.now().await.expect("redis runs");
        let members: Object = serde_json::from_str(body).expect("JSON");
        let new = NewJob::parse(&members, now).expect("a valid request");
        self.jobs.enqueue(new, None, now).await.expect("redis runs")
    }

    pub(crate) async fn enqueue(&self, body: &str) -> JobId {
        self.try_enqueue(body).await.expect("accepted").job.id
    }

    /// The job as clients see it.
    pub(crate) async fn job(&self, id: JobId) -> Value {
        let located = self.jobs.locate(id).await.expect("redis runs").expect("the job exists");
        serde_json::from_str(&located.to_json()).expect("JSON")
    }

    pub(crate) async fn state(&self, id: JobId) -> String {
        self.job(id).await["state"].as_str().expect("a state").to_owned()
    }

    /// Claims up to `most` jobs of the default queue for a queue-worker.
    pub(crate) async fn claim(&self, consumer: &Consumer, most: usize) -> Vec<Claimed> {
        let worker: WorkerId = "test-worker".parse().expect("a name");
        let by = Claim::Worker { consumer, worker: &worker };
        self.jobs.claim(&queue(), &mut Vec::new(), most, by).await.expect("redis runs").jobs
    }

    pub(crate) async fn claim_one(&self, consumer: &Consumer) -> Claimed {
        self.claim(consumer, 1).await.pop().expect("a job waits")
    }

    /// Fetches one job of the default queue as a program over HTTP does.
    pub(crate) async fn pull(&self, lease: Option<Duration>) -> Option<Claimed> {
        let by = Claim::Pull { worker: None, lease };
        self.jobs.claim(&queue(), &mut Vec::new(), 1, by).await.expect("redis runs").jobs.pop()
    }

    pub(crate) async fn complete(&self, consumer: &Consumer, claimed: &Claimed, result: &str) -> Settled {
        let ended = Ended::completed(&claimed.job, Some(result), Some(claimed.started_at), local_now());
        let completion = Completion { claimed: claimed.clone(), ended, ended_at: local_now() };
        let (queue, priority) = (&claimed.job.queue, claimed.job.priority);
        self.jobs.complete(queue, priority, consumer, 1, &[completion]).await.expect("redis runs")[0]
    }

    /// Starts the upkeep.
    pub(crate) fn upkeep(&self) -> Upkeep {
        let stop = CancellationToken::new();
        let task = tokio::spawn(maintenance::run(self.jobs.clone(), self.settings.maintenance.clone(), stop.clone()));
        Upkeep { stop, task }
    }

    /// Every key there is, for tests that nothing was written.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> =
            redis::cmd("KEYS").arg("*").query_async(&mut self.server.connection().await).await.expect("redis runs");
        keys.retain(|key| key != "galley:events");
        keys.sort();
        keys
    }

    pub(crate) async fn command(&self, words: &[&str]) -> redis::Value {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(word);
        }
        command.query_async(&mut self.server.connection().await).await.expect("redis runs")
    }
}

/// The upkeep while it runs.
pub(crate) struct Upkeep {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Upkeep {
    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("no panic");
    }
}

pub(crate) fn queue() -> QueueName {
    "default".parse().expect("a name")
}

pub(crate) fn normal() -> Priority {
    Priority::default()
}

pub(crate) fn consumer() -> Consumer {
    Consumer::new(Duration::from_secs(30))
}

pub(crate) fn failure(attempt: u32) -> Failure {
    Failure::new("handler_error", "handler_error", "it failed", attempt, local_now())
}

pub(crate) fn fence(consumer: &Consumer) -> Fence {
    Fence::of(consumer)
}

pub(crate) const JOB: &str = r#"{"type":"test.echo","args":[1]}"#;
