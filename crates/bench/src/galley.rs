//! A Galley of a scenario's own: a Redis, a gateway, and workers when the scenario wants them.

use std::{
    future::Future,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};
use testkit::redis;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use common::time::parse_time;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use store::keys::QueueKeys;
use testkit::redis::{AsyncCommands, InfoDict, aio::MultiplexedConnection};
use testkit::{RedisPersistence, RedisServer, ServiceProcess, TestAuthority, eventually};

use crate::http::HttpConnection;

/// Jobs in one request, as many as the gateway takes.
const BATCH_SIZE: usize = 1000;
/// Longest wait for what is measured by its count.
pub(crate) const MEASURE_TIMEOUT: Duration = Duration::from_mins(2);
/// The first tenth of the jobs warms up.
const WARM_UP_DIVISOR: u32 = 10;
/// Requests at a time that are no part of what is measured.
const CONCURRENCY: usize = 4;

/// What Redis writes down before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchDurability {
    /// Nothing: no append-only file.
    None,
    /// Everything: an append-only file, synced before every answer.
    Always,
}

impl BenchDurability {
    pub(crate) fn persistence(self) -> RedisPersistence {
        match self {
            Self::None => RedisPersistence::None,
            Self::Always => RedisPersistence::Always,
        }
    }
}

/// A running one; it ends with this value.
pub(crate) struct BenchGalley {
    pub(crate) gateway: ServiceProcess,
    pub(crate) redis: RedisServer,
}

impl BenchGalley {
    pub(crate) async fn start(durability: BenchDurability) -> Self {
        Self::start_with(durability, &[]).await
    }

    /// The same with other settings of the gateway.
    pub(crate) async fn start_with(durability: BenchDurability, variables: &[(&str, &str)]) -> Self {
        let redis = RedisServer::start_with(durability.persistence());
        let gateway = ServiceProcess::start("gateway", &redis, variables).await;
        gateway.wait_until_ready().await;
        Self { gateway, redis }
    }

    /// The same with TLS, and a certificate for `localhost`.
    pub(crate) async fn start_with_tls(durability: BenchDurability, authority: &TestAuthority) -> Self {
        let files = authority.issue("gateway", &["localhost"]);
        let variables = [
            ("GALLEY__GATEWAY__TLS_CERT_FILE", files.cert.as_str()),
            ("GALLEY__GATEWAY__TLS_KEY_FILE", files.key.as_str()),
        ];
        let redis = RedisServer::start_with(durability.persistence());
        let gateway = ServiceProcess::start("gateway", &redis, &variables).await;
        let address = gateway.address();
        eventually("the gateway is ready", || async {
            let stream = authority.connect(address, "localhost", &["http/1.1"]).await.ok()?;
            HttpConnection::over(stream).get("/health/ready").await.ok()
        })
        .await;
        Self { gateway, redis }
    }

    /// A queue-worker on these queues, with the defaults otherwise.
    pub(crate) async fn start_worker(&self, queues: &str, variables: &[(&str, &str)]) -> ServiceProcess {
        let mut all = vec![("GALLEY__QUEUE_WORKER__QUEUES", queues), ("GALLEY__BRIDGE__LIST", "")];
        all.extend_from_slice(variables);
        let worker = ServiceProcess::start("queue-worker", &self.redis, &all).await;
        worker.wait_until_ready().await;
        worker
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<HttpConnection> {
        HttpConnection::open(self.gateway.address()).await
    }

    /// Stores jobs in batches; their ids, in their order.
    pub(crate) async fn enqueue_all(&self, jobs: &[String]) -> anyhow::Result<Vec<String>> {
        let batches: Vec<Vec<String>> = stream::iter(jobs.chunks(BATCH_SIZE).map(batch_body))
            .map(|batch| async move {
                let answer = self.connect().await?.post("/ojs/v1/jobs/batch", &batch).await?;
                let answer: Value = serde_json::from_str(&answer)?;
                let jobs = answer["jobs"].as_array().context("a batch is answered with its jobs")?;
                jobs.iter().map(job_id).collect::<anyhow::Result<_>>()
            })
            .buffered(CONCURRENCY)
            .try_collect()
            .await?;
        let ids = batches.concat();
        ensure!(ids.len() == jobs.len(), "{} of {} jobs were stored", ids.len(), jobs.len());
        Ok(ids)
    }

    /// Stores that many jobs that do nothing.
    pub(crate) async fn enqueue_noops(&self, queue: &str, jobs: u32) -> anyhow::Result<()> {
        self.enqueue_repeated(&noop_job(queue), jobs, u32::try_from(BATCH_SIZE)?).await
    }

    /// Stores a job that many times, in requests of a size.
    pub(crate) async fn enqueue_repeated(&self, job: &str, jobs: u32, batch_size: u32) -> anyhow::Result<()> {
        let batch = |size: u32| batch_body(&vec![job.to_owned(); size as usize]);
        let (whole, rest) = (batch(batch_size), batch(jobs % batch_size));
        let batches = std::iter::repeat_n(&whole, (jobs / batch_size) as usize);
        let batches: Vec<&String> = batches.chain((!jobs.is_multiple_of(batch_size)).then_some(&rest)).collect();
        // Each sender keeps its connection
        let senders = batches.chunks(batches.len().div_ceil(CONCURRENCY).max(1)).map(|some| async move {
            let mut connection = self.connect().await?;
            for batch in some {
                connection.post("/ojs/v1/jobs/batch", batch).await?;
            }
            anyhow::Ok(())
        });
        futures_util::future::try_join_all(senders).await.map(drop)
    }

    /// Pauses a queue, which may not exist yet, or resumes it.
    pub(crate) async fn set_paused(&self, queue: &str, is_paused: bool) -> anyhow::Result<()> {
        let action = if is_paused { "pause?create=true" } else { "resume" };
        self.connect().await?.post(&format!("/ojs/v1/queues/{queue}/{action}"), "").await.map(drop)
    }

    /// The jobs with these ids, in their order.
    pub(crate) async fn fetch_jobs(&self, ids: &[String]) -> anyhow::Result<Vec<Value>> {
        let parts: Vec<Vec<Value>> = stream::iter(ids.chunks(BATCH_SIZE))
            .map(|ids| async move {
                let mut connection = self.connect().await?;
                let mut jobs = Vec::with_capacity(ids.len());
                for id in ids {
                    let mut answer: Value =
                        serde_json::from_str(&connection.get(&format!("/ojs/v1/jobs/{id}")).await?)?;
                    jobs.push(answer["job"].take());
                }
                anyhow::Ok(jobs)
            })
            .buffered(CONCURRENCY)
            .try_collect()
            .await?;
        Ok(parts.concat())
    }

    /// The id of Redis's process.
    pub(crate) async fn redis_process_id(&self) -> anyhow::Result<u32> {
        redis_process_id(&mut self.redis.connection().await).await
    }

    /// Bytes of the record that a finished job left.
    pub(crate) async fn result_bytes(&self, queue: &str, id: &str) -> anyhow::Result<usize> {
        let key = QueueKeys::new(&queue.parse()?).result(&id.parse()?);
        Ok(self.redis.connection().await.strlen(key).await?)
    }

    /// Waits until that many jobs of a queue completed; how many did per second, after the first tenth.
    pub(crate) async fn completed_per_second(&self, queue: &str, jobs: u32) -> anyhow::Result<f64> {
        self.completed_between(queue, 0, jobs).await
    }

    /// The same for the jobs after the first ones.
    pub(crate) async fn completed_between(&self, queue: &str, from: u32, to: u32) -> anyhow::Result<f64> {
        let stats = QueueKeys::new(&queue.parse()?).stats();
        let warm = from + ((to - from) / WARM_UP_DIVISOR).max(1);
        let (mut redis, mut first, deadline) = (self.redis.connection().await, None, Instant::now() + MEASURE_TIMEOUT);
        loop {
            // Asked of Redis itself: the gateway needs several commands for it
            let completed: Option<u32> = redis.hget(&stats, "completed").await?;
            let (completed, now) = (completed.unwrap_or(0), Instant::now());
            if first.is_none() && completed >= warm {
                first = Some((completed, now));
            }
            if completed >= to || now >= deadline {
                let (first_count, first_at) = first.context("no job was completed")?;
                return Ok(f64::from(completed - first_count) / now.duration_since(first_at).as_secs_f64());
            }
            // Few jobs are over soon
            tokio::time::sleep(Duration::from_millis(if to - from < 20_000 { 1 } else { 5 })).await;
        }
    }

    /// Lets Redis go before everything else on the machine, as if it had a processor of its own; false when that is not
    /// allowed, or there is no `chrt` to say it with.
    pub(crate) async fn prioritize_redis(&self) -> anyhow::Result<bool> {
        let process = self.redis_process_id().await?.to_string();
        let asked = Command::new("chrt").args(["--fifo", "--pid", "1", &process]).stderr(Stdio::null()).status();
        Ok(asked.is_ok_and(|status| status.success()))
    }

    /// The numbers of a queue.
    pub(crate) async fn stats(&self, queue: &str) -> anyhow::Result<BenchStats> {
        let answer = self.connect().await?.get(&format!("/ojs/v1/queues/{queue}/stats")).await?;
        let mut answer: Value = serde_json::from_str(&answer)?;
        Ok(BenchStats(answer["queue"].take()))
    }
}

/// The id of the process to which a connection leads.
pub(crate) async fn redis_process_id(redis: &mut MultiplexedConnection) -> anyhow::Result<u32> {
    let info: InfoDict = redis::cmd("INFO").arg("server").query_async(redis).await?;
    info.get("process_id").context("redis does not say which process it is")
}

/// The numbers of a queue, as the gateway shows them.
pub(crate) struct BenchStats(Value);

impl BenchStats {
    pub(crate) fn completed(&self) -> u64 {
        self.number("completed")
    }

    pub(crate) fn available(&self) -> u64 {
        self.number("available")
    }

    /// Whether that many jobs completed, each once, and there is nothing else.
    pub(crate) fn has_only_completed(&self, completed: u64) -> bool {
        let others = ["available", "active", "waiting", "pending", "dead", "discarded", "cancelled", "retried"];
        self.completed() == completed && others.iter().all(|name| self.number(name) == 0)
    }

    pub(crate) fn to_line(&self) -> String {
        self.0.to_string()
    }

    fn number(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or(u64::MAX)
    }
}

/// A job that does nothing, with an argument of 200 bytes.
pub(crate) fn noop_job(queue: &str) -> String {
    json!({ "type": "test.noop", "args": ["x".repeat(200)], "options": { "queue": queue } }).to_string()
}

/// The same for a time in ms.
pub(crate) fn noop_job_at(queue: &str, at: i64) -> String {
    let at = common::time::format(at);
    json!({ "type": "test.noop", "args": ["x".repeat(200)], "options": { "queue": queue, "scheduled_at": at } })
        .to_string()
}

/// The body of a request with these jobs.
pub(crate) fn batch_body(jobs: &[String]) -> String {
    format!("{{\"jobs\":[{}]}}", jobs.join(","))
}

/// The id of a job that was shown.
pub(crate) fn job_id(job: &Value) -> anyhow::Result<String> {
    Ok(job["id"].as_str().context("a job has an id")?.to_owned())
}

/// A time in a job that was shown, in ms; none if it is not there.
pub(crate) fn job_time(job: &Value, name: &str) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^52")]
    parse_time(job[name].as_str()?, 0).ok().map(|given| given.at as f64)
}

/// Milliseconds since 1970, with what is below a millisecond.
pub(crate) fn now_ms() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1000.0
}

/// Asks again and again, until the answer is yes or the time is over.
pub(crate) async fn poll_until<F: Future<Output = anyhow::Result<bool>>>(
    limit: Duration,
    every: Duration,
    mut check: impl FnMut() -> F,
) -> anyhow::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        if check().await? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(every).await;
    }
}
