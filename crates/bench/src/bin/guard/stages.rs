//! What every job goes through, with the same calls as the gateway and the queue-worker make, one after the other.

use std::{collections::HashMap, time::Duration};
use testkit::redis;

use anyhow::Context;
use common::{
    name::{QueueName, WorkerId},
    settings::Settings,
};
use model::job::NewJob;
use store::{
    Redis, Store,
    connection::notifier::Notifier,
    events::{EventLog, JobEvent},
    jobs::{Claimant, ClaimedJob, Completion, Consumer, FinishedJob, Jobs},
    local_now,
};
use testkit::{RedisServer, redis::aio::MultiplexedConnection};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::measures::GuardMeasures;

/// Jobs in one claim and in one completion.
const BATCH_SIZE: usize = 100;
const LEASE: Duration = Duration::from_mins(5);
/// Commands of which there are fewer for a job count only in the sum.
const MIN_CALLS: f64 = 0.05;

/// A part of a job's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuardStage {
    /// From the body of a request to a job.
    Parse,
    /// The same, and stored, one by one.
    Enqueue,
    /// The same in batches.
    EnqueueBatch,
    /// Claimed by a worker, in batches.
    Claim,
    /// Completed without a result, in batches.
    Complete,
}

impl GuardStage {
    pub(crate) const ALL: [Self; 5] = [Self::Parse, Self::Enqueue, Self::EnqueueBatch, Self::Claim, Self::Complete];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Enqueue => "enqueue",
            Self::EnqueueBatch => "enqueue-batch",
            Self::Claim => "claim",
            Self::Complete => "complete",
        }
    }

    /// The stage that must run before, and whose instructions are not counted.
    pub(crate) fn before(self) -> Option<Self> {
        match self {
            Self::Claim => Some(Self::EnqueueBatch),
            Self::Complete => Some(Self::Claim),
            Self::Parse | Self::Enqueue | Self::EnqueueBatch => None,
        }
    }

    /// Whether another one runs before it.
    pub(crate) fn needs(self, other: Self) -> bool {
        self.before().is_some_and(|before| before == other || before.needs(other))
    }
}

/// One Galley without processes.
pub(crate) struct Stages {
    jobs: Jobs,
    queue: QueueName,
    consumer: Consumer,
    worker: WorkerId,
    claimed: Vec<ClaimedJob>,
    _stop: DropGuard,
}

impl Stages {
    pub(crate) async fn open(url: &str) -> anyhow::Result<Self> {
        // Below callgrind everything is slow, connecting too
        let variables = [
            ("GALLEY__REDIS__URL", url),
            ("GALLEY__REDIS__CONNECT_TIMEOUT_MS", "60000"),
            ("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "60000"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = Settings::from_sources(None, HashMap::from(variables))?;
        let stop = CancellationToken::new();
        let redis = Redis::new(&settings.redis)?;
        let notifier = Notifier::start(&redis, settings.channels.probe_interval, stop.clone());
        let (events, _) = EventLog::start(&redis, &settings, stop.clone());
        let jobs = Store::new(&redis, &notifier, &settings, events).jobs();
        let queue: QueueName = "guarded".parse()?;
        jobs.open_queue(&queue).await?;
        let (consumer, worker) = (Consumer::new(LEASE), "guard".parse()?);
        Ok(Self { jobs, queue, consumer, worker, claimed: Vec::new(), _stop: stop.drop_guard() })
    }

    pub(crate) async fn run(&mut self, stage: GuardStage, jobs: u32) -> anyhow::Result<()> {
        match stage {
            GuardStage::Parse => {
                for _ in 0..jobs {
                    std::hint::black_box(self.parse()?);
                }
                Ok(())
            }
            GuardStage::Enqueue => self.enqueue(jobs).await,
            GuardStage::EnqueueBatch => self.enqueue_batches(jobs).await,
            GuardStage::Claim => self.claim(jobs).await,
            GuardStage::Complete => self.complete().await,
        }
    }

    fn parse(&self) -> anyhow::Result<NewJob> {
        let filling = "x".repeat(200);
        let body = format!(r#"{{"type":"test.noop","args":["{filling}"],"options":{{"queue":"{}"}}}}"#, self.queue);
        Ok(NewJob::parse(&serde_json::from_str(&body)?, local_now())?)
    }

    async fn enqueue(&self, jobs: u32) -> anyhow::Result<()> {
        for _ in 0..jobs {
            let stored =
                self.jobs.enqueue(self.parse()?, common::trace_context::TraceContext::default(), local_now()).await?;
            stored.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
        }
        Ok(())
    }

    async fn enqueue_batches(&self, jobs: u32) -> anyhow::Result<()> {
        for _ in 0..jobs as usize / BATCH_SIZE {
            let new = (0..BATCH_SIZE).map(|_| self.parse()).collect::<anyhow::Result<Vec<_>>>()?;
            let stored = self
                .jobs
                .enqueue_all(
                    new,
                    common::trace_context::TraceContext::default(),
                    local_now(),
                    &std::collections::HashSet::new(),
                )
                .await?;
            stored.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
        }
        Ok(())
    }

    async fn claim(&mut self, jobs: u32) -> anyhow::Result<()> {
        let mut priorities = self.jobs.open_queue(&self.queue).await?;
        while self.claimed.len() < jobs as usize {
            let by = Claimant::Worker { consumer: &self.consumer, worker: &self.worker };
            let batch = self.jobs.claim(&self.queue, &mut priorities, BATCH_SIZE, by).await?;
            anyhow::ensure!(!batch.jobs.is_empty(), "{} of {jobs} jobs were claimed", self.claimed.len());
            self.claimed.extend(batch.jobs);
        }
        Ok(())
    }

    async fn complete(&mut self) -> anyhow::Result<()> {
        let claimed = std::mem::take(&mut self.claimed);
        let (priority, now) = (claimed.first().context("a claimed job")?.job.priority, local_now());
        let completions: Vec<Completion> = claimed
            .into_iter()
            .map(|claimed| {
                let finished = FinishedJob::completed(&claimed.job, None, Some(claimed.started_at), now);
                Completion { claimed: claimed.into(), finished, ended_at: now }
            })
            .collect();
        for batch in completions.chunks(BATCH_SIZE) {
            self.jobs.complete_batch(&self.queue, priority, &self.consumer, batch).await?;
            for completion in batch {
                let (job, started_at) = (&completion.claimed.job, completion.claimed.started_at);
                self.jobs.record_event(JobEvent::completed(job, started_at, now));
            }
        }
        Ok(())
    }
}

/// What Redis does for a job in each stage, and what it stores.
pub(crate) async fn measure_redis(measures: &mut GuardMeasures, jobs: u32) -> anyhow::Result<()> {
    for stage in [GuardStage::Enqueue, GuardStage::EnqueueBatch] {
        let server = RedisServer::start();
        let (mut stages, mut redis) = (Stages::open(&server.url()).await?, server.connection().await);
        // Scripts are loaded by then
        stages.run(stage, 100).await?;
        let before = used_memory(&mut redis).await?;
        measure_stage(measures, &mut stages, &mut redis, stage, jobs).await?;
        if stage == GuardStage::Enqueue {
            continue;
        }
        let waiting = (used_memory(&mut redis).await? - before) / f64::from(jobs);
        measures.set("bytes: a waiting job".to_owned(), waiting);
        measure_stage(measures, &mut stages, &mut redis, GuardStage::Claim, jobs).await?;
        measure_stage(measures, &mut stages, &mut redis, GuardStage::Complete, jobs).await?;
        let events: Option<f64> =
            redis::cmd("MEMORY").arg("USAGE").arg("galley:events").query_async(&mut redis).await?;
        let finished = used_memory(&mut redis).await? - before - events.unwrap_or_default();
        measures.set("bytes: the record of a finished job".to_owned(), finished / f64::from(jobs));
    }
    Ok(())
}

async fn measure_stage(
    measures: &mut GuardMeasures,
    stages: &mut Stages,
    redis: &mut MultiplexedConnection,
    stage: GuardStage,
    jobs: u32,
) -> anyhow::Result<()> {
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(redis).await?;
    stages.run(stage, jobs).await?;
    let info: String = redis::cmd("INFO").arg("all").query_async(redis).await?;
    let number = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    let mut sum = 0.0;
    for line in info.lines() {
        let Some((name, rest)) = line.strip_prefix("cmdstat_").and_then(|line| line.split_once(":calls=")) else {
            continue;
        };
        let calls = rest.split(',').next().unwrap_or_default().parse::<f64>()? / f64::from(jobs);
        sum += calls;
        if calls >= MIN_CALLS {
            measures.set(format!("redis: {}: {name}", stage.name()), calls);
        }
    }
    measures.set(format!("redis: {}: all commands", stage.name()), sum);
    for (name, field) in [("bytes to Redis", "total_net_input_bytes:"), ("bytes from Redis", "total_net_output_bytes:")]
    {
        let bytes = number(field).context("redis counts bytes")? / f64::from(jobs);
        measures.set(format!("redis: {}: {name}", stage.name()), bytes);
    }
    Ok(())
}

async fn used_memory(redis: &mut MultiplexedConnection) -> anyhow::Result<f64> {
    let info: String = redis::cmd("INFO").arg("memory").query_async(redis).await?;
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    let all = field("used_memory:").context("redis says how much memory it has in use")?;
    Ok(all - field("mem_clients_normal:").unwrap_or_default())
}
