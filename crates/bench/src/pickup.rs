//! How soon an idle worker has a job, from enqueueing it: with a blocking claim, as queue-workers wait, and with the long poll,
//! which reads without taking and then claims. Both take turns on one Redis, so that the machine disturbs both alike.

use std::{collections::HashMap, time::Duration};

use anyhow::Context;
use common::{name::QueueName, settings::Settings};
use model::job::NewJob;
use store::{
    Redis, Store,
    connection::notifier::Notifier,
    events::EventLog,
    jobs::{Claimant, Consumer, Jobs},
    local_now,
    long_poll::LongPoll,
};
use testkit::RedisServer;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{numbers::count_as_f64, report::BenchReport};

pub(crate) const JOBS: u32 = 500;

const LEASE: Duration = Duration::from_secs(30);
const BLOCK: Duration = Duration::from_secs(5);
/// By then the reader is blocked on the server.
const REST: Duration = Duration::from_millis(5);

pub(crate) async fn run(jobs: u32) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("pickup");
    let server = RedisServer::start();
    let settings = Settings::from_sources(None, HashMap::from([("GALLEY__REDIS__URL".to_owned(), server.url())]))?;
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let redis = Redis::new(&settings.redis)?;
    let notifier = Notifier::start(&redis, settings.channels.probe_interval, stop.clone());
    let (events, _) = EventLog::start(&redis, &settings, stop.clone());
    let store = Store::new(&redis, &notifier, &settings, events).jobs();
    let long_poll = LongPoll::start(&store, stop.clone());
    let (mut blocking, mut polling) = (Vec::new(), Vec::new());
    for _ in 0..jobs {
        blocking.push(with_blocking_claim(&store).await?);
        polling.push(with_long_poll(&store, &long_poll).await?);
    }
    report.add_figure("jobs, each way", count_as_f64(jobs.into()), "");
    report.add_times("blocking claim", &blocking, "");
    report.add_times("long poll, then a claim", &polling, "");
    let mean = |times: &[f64]| times.iter().sum::<f64>() / count_as_f64(times.len() as u64);
    report.add_with_goal("long poll / blocking claim, of the means", mean(&polling) / mean(&blocking), "", "<= 1.2");
    Ok(report)
}

async fn with_blocking_claim(jobs: &Jobs) -> anyhow::Result<f64> {
    let queue: QueueName = "blocking".parse()?;
    let consumer = Consumer::new(LEASE);
    let priorities = jobs.open_queue(&queue).await?;
    let streams: Vec<_> = priorities.into_iter().map(|priority| (queue.clone(), priority)).collect();
    let mut connection = jobs.redis().open_dedicated(BLOCK).await?;
    let claim = async {
        let claimed = jobs.claim_blocking(&mut connection, &streams, &consumer, BLOCK).await?;
        anyhow::Ok((Instant::now(), claimed.len()))
    };
    let (claimed, enqueued_at) = tokio::try_join!(claim, enqueue_after_rest(jobs, &queue))?;
    anyhow::ensure!(claimed.1 == 1, "{} jobs were claimed", claimed.1);
    Ok((claimed.0 - enqueued_at).as_secs_f64() * 1000.0)
}

async fn with_long_poll(jobs: &Jobs, long_poll: &LongPoll) -> anyhow::Result<f64> {
    let queue: QueueName = "polling".parse()?;
    jobs.open_queue(&queue).await?;
    let waiter = long_poll.register(std::slice::from_ref(&queue)).ok().context("a waiter")?;
    let claim = async {
        waiter.wait_for_wakeup().await;
        let by = Claimant::Pull { worker: None, lease: Some(LEASE) };
        let claimed = jobs.claim(&queue, &mut Vec::new(), 1, by).await?;
        anyhow::Ok((Instant::now(), claimed.jobs.len()))
    };
    let (claimed, enqueued_at) = tokio::try_join!(claim, enqueue_after_rest(jobs, &queue))?;
    anyhow::ensure!(claimed.1 == 1, "{} jobs were claimed", claimed.1);
    Ok((claimed.0 - enqueued_at).as_secs_f64() * 1000.0)
}

async fn enqueue_after_rest(jobs: &Jobs, queue: &QueueName) -> anyhow::Result<Instant> {
    tokio::time::sleep(REST).await;
    let body = format!(r#"{{"type":"test.noop","args":[],"queue":"{queue}"}}"#);
    let now = local_now();
    let new = NewJob::parse(&serde_json::from_str(&body)?, now)?;
    let at = Instant::now();
    jobs.enqueue(new, common::trace_context::TraceContext::default(), now)
        .await?
        .map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
    Ok(at)
}
