//! A store on a Redis of its own.

use std::{collections::HashMap, sync::Arc, time::Duration};

use common::{
    id::JobId,
    json::Object,
    name::{Priority, QueueName, WorkerId},
    settings::Settings,
};
use model::job::{AttemptError, NewJob};
use serde_json::Value;
use store::local_now;
use store::{
    Redis, Store,
    channels::Channels,
    connection::notifier::{EventReceiver, Notifier, Topics},
    events::EventLog,
    jobs::{
        Claimant, ClaimedJob, Completion, Consumer, EnqueueRefusal, EnqueuedJob, Fence, FinishedJob, Jobs, Settled,
    },
    maintenance,
    sealing::Sealer,
    workflows::Workflows,
};
use testkit::{ClusterProcesses, RedisServer};
use tokio_util::sync::CancellationToken;

pub(crate) struct StoreKit {
    pub(crate) server: RedisServer,
    pub(crate) redis: Redis,
    pub(crate) jobs: Jobs,
    pub(crate) workflows: Workflows,
    pub(crate) channels: Channels,
    pub(crate) notifier: Notifier,
    pub(crate) settings: Settings,
}

impl StoreKit {
    pub(crate) fn start() -> Self {
        Self::with_variables(&[])
    }

    pub(crate) fn with_variables(variables: &[(&str, &str)]) -> Self {
        Self::with_server(RedisServer::start(), variables)
    }

    /// Another process, at that address: it waits for answers that are held back, however slow the machine is.
    pub(crate) fn patient(server: RedisServer, url: &str) -> Self {
        Self::with_server(server, &[("GALLEY__REDIS__URL", url), ("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "60000")])
    }

    pub(crate) fn with_server(server: RedisServer, variables: &[(&str, &str)]) -> Self {
        let mut all: HashMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let url = all.entry("GALLEY__REDIS__URL".to_owned()).or_insert_with(|| server.url());
        // A server that does not answer for seconds is on a slow machine. Only one that sentinels replace really hangs
        if !url.contains("sentinel") {
            for name in ["GALLEY__REDIS__CONNECT_TIMEOUT_MS", "GALLEY__REDIS__RESPONSE_TIMEOUT_MS"] {
                all.entry(name.to_owned()).or_insert_with(|| "30000".to_owned());
            }
        }
        let settings = Settings::from_sources(None, all).expect("allowed settings");
        let redis = Redis::new(&settings.redis).expect("a URL");
        Self::with_redis(server, redis, settings)
    }

    /// A store that knows the nodes of a cluster. The server is another one.
    pub(crate) fn of_cluster(cluster: &ClusterProcesses, variables: &[(&str, &str)]) -> Self {
        let mut all: HashMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        all.entry("GALLEY__REDIS__URL".to_owned()).or_insert_with(|| cluster.url());
        for name in ["GALLEY__REDIS__CONNECT_TIMEOUT_MS", "GALLEY__REDIS__RESPONSE_TIMEOUT_MS"] {
            all.entry(name.to_owned()).or_insert_with(|| "20000".to_owned());
        }
        let settings = Settings::from_sources(None, all).expect("allowed settings");
        let redis = Redis::new(&settings.redis).expect("a URL");
        Self::with_redis(RedisServer::start(), redis, settings)
    }

    fn with_redis(server: RedisServer, redis: Redis, settings: Settings) -> Self {
        let redis = redis.with_sealer(Sealer::from_settings(&settings.encryption).expect("keys"));
        let (log, _writer) = EventLog::start(&redis, &settings, CancellationToken::new());
        let notifier = Notifier::start(&redis, settings.channels.probe_interval, CancellationToken::new());
        let jobs = Store::new(&redis, &notifier, &settings, log).jobs();
        let workflows = Workflows::new(&jobs);
        let channels = Channels::new(&redis, &settings.channels);
        Self { server, redis, jobs, workflows, channels, notifier, settings }
    }

    /// A subscriber to these topics.
    pub(crate) fn subscribe(&self, topics: &[&str]) -> (Topics, EventReceiver) {
        let (subscribed, events) = self.notifier.subscribe(100);
        subscribed.add_all(topics.iter().map(|topic| (*topic).to_owned()));
        (subscribed, events)
    }

    /// Enqueues a request as a client would send it.
    pub(crate) async fn try_enqueue(&self, body: &str) -> Result<EnqueuedJob, EnqueueRefusal> {
        let now = self.jobs.now().await.expect("redis runs");
        let members: Object = serde_json::from_str(body).expect("JSON");
        let new = NewJob::parse(&members, now).expect("a valid request");
        self.jobs.enqueue(new, common::trace_context::TraceContext::default(), now).await.expect("redis runs")
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
    pub(crate) async fn claim(&self, consumer: &Consumer, most: usize) -> Vec<ClaimedJob> {
        let worker: WorkerId = "test-worker".parse().expect("a name");
        let by = Claimant::Worker { consumer, worker: &worker };
        self.jobs.claim(&queue(), &mut Vec::new(), most, by).await.expect("redis runs").jobs
    }

    pub(crate) async fn claim_one(&self, consumer: &Consumer) -> ClaimedJob {
        self.claim(consumer, 1).await.pop().expect("a job waits")
    }

    /// Fetches one job of the default queue as a program over HTTP does.
    pub(crate) async fn pull(&self, lease: Option<Duration>) -> Option<ClaimedJob> {
        let by = Claimant::Pull { worker: None, lease };
        self.jobs.claim(&queue(), &mut Vec::new(), 1, by).await.expect("redis runs").jobs.pop()
    }

    pub(crate) async fn complete(&self, consumer: &Consumer, claimed: &ClaimedJob, result: &str) -> Settled {
        self.complete_all(consumer, std::slice::from_ref(claimed), result).await[0]
    }

    /// Completes jobs of one stream in a batch, as a queue-worker does.
    pub(crate) async fn complete_all(&self, consumer: &Consumer, all: &[ClaimedJob], result: &str) -> Vec<Settled> {
        let batch = all.iter().map(|claimed| {
            let finished = FinishedJob::completed(&claimed.job, Some(result), Some(claimed.started_at), local_now());
            Completion { claimed: Arc::new(claimed.clone()), finished, ended_at: local_now() }
        });
        let (batch, first) = (batch.collect::<Vec<_>>(), &all[0].job);
        let completed = self.jobs.complete_batch(&first.queue, first.priority, consumer, &batch).await;
        let (settled, follow_ups) = completed.expect("redis runs");
        self.jobs.run_follow_ups(follow_ups).await;
        settled
    }

    /// Starts the maintenance.
    pub(crate) fn start_maintenance(&self) -> RunningMaintenance {
        let stop = CancellationToken::new();
        let task = tokio::spawn(maintenance::run(self.jobs.clone(), self.settings.maintenance.clone(), stop.clone()));
        RunningMaintenance { stop, task }
    }

    /// Every key there is, for tests that nothing was written.
    pub(crate) async fn redis_keys(&self) -> Vec<String> {
        let mut keys: Vec<String> =
            redis::cmd("KEYS").arg("*").query_async(&mut self.server.connection().await).await.expect("redis runs");
        // Written behind the calls
        keys.retain(|key| !key.ends_with(":events") && !key.starts_with("galley:{statistics}:"));
        keys.sort();
        keys
    }

    pub(crate) async fn redis_command(&self, words: &[&str]) -> redis::Value {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(word);
        }
        command.query_async(&mut self.server.connection().await).await.expect("redis runs")
    }
}

/// The maintenance while it runs.
pub(crate) struct RunningMaintenance {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl RunningMaintenance {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no panic");
    }
}

pub(crate) fn queue() -> QueueName {
    "default".parse().expect("a name")
}

pub(crate) fn normal_priority() -> Priority {
    Priority::default()
}

pub(crate) fn consumer() -> Consumer {
    Consumer::new(Duration::from_secs(30))
}

pub(crate) fn failure(attempt: u32) -> AttemptError {
    AttemptError::new("handler_error", "handler_error", "it failed", attempt, local_now())
}

pub(crate) fn fence(consumer: &Consumer) -> Fence {
    Fence::for_worker(consumer)
}

pub(crate) const JOB_BODY: &str = r#"{"type":"test.echo","args":[1]}"#;
