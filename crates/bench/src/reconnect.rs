//! What a Redis that comes back sees of queue-workers that all lost it at once.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use futures_util::future::join_all;
use testkit::{
    RedisPersistence, RedisServer, ServiceProcess,
    redis::{self, aio::MultiplexedConnection},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{numbers::count_as_f64, report::BenchReport};

const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);
/// How long Redis is away: pauses between tries have become as long as they get.
const AWAY: Duration = Duration::from_secs(10);
/// How long it is watched when it is back.
const WATCHED: Duration = Duration::from_secs(15);
const WINDOW: Duration = Duration::from_secs(1);

/// What is run.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReconnectArgs {
    /// Queue-workers.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    workers: u32,
}

pub(crate) async fn run(args: ReconnectArgs) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("reconnect");
    let mut server = RedisServer::start_with(RedisPersistence::Always);
    let url = server.url();
    let (mut starting, mut workers) = (JoinSet::new(), Vec::new());
    for _ in 0..args.workers {
        let url = url.clone();
        starting.spawn(async move {
            ServiceProcess::start_with_redis_url("queue-worker", &url, &[("GALLEY__BRIDGE__LIST", "")]).await
        });
    }
    while let Some(worker) = starting.join_next().await {
        workers.push(worker?);
    }
    for worker in &workers {
        worker.wait_until_ready().await;
    }
    let before = read_counter(&mut server.connection().await, "connected_clients").await?;
    tokio::task::block_in_place(|| server.kill());
    sleep(AWAY).await;
    tokio::task::block_in_place(|| server.restart());
    let mut redis = server.connection().await;
    let start = Instant::now();
    let http = reqwest::Client::new();
    let ready = tokio::spawn(async move {
        // All at once: an idle worker connects when it is asked
        let until_ready = workers.iter().map(async |worker| {
            while start.elapsed() < WATCHED && !is_ready(&http, worker).await {
                sleep(SAMPLE_INTERVAL).await;
            }
        });
        join_all(until_ready).await;
        (start.elapsed(), workers)
    });
    let mut samples = vec![(Duration::ZERO, 0)];
    while start.elapsed() < WATCHED {
        samples.push((start.elapsed(), read_counter(&mut redis, "total_connections_received").await?));
        sleep(SAMPLE_INTERVAL).await;
    }
    let (back, _workers) = ready.await?;
    let total = samples.last().map_or(0, |(_, total)| *total);
    let most = samples.iter().map(|(at, total)| {
        let earlier = samples.iter().rev().find(|(other, _)| *other + WINDOW <= *at).map_or(0, |(_, total)| *total);
        total - earlier
    });
    report.add_figure("queue-workers", args.workers.into(), "");
    report.add_figure("connections before", count_as_f64(before), "");
    report.add_figure("connections accepted in the 15 s after Redis came back", count_as_f64(total), "");
    report.add_figure("most of them within a second", count_as_f64(most.max().unwrap_or(0)), "");
    report.add_figure("until every worker was ready", back.as_secs_f64(), "s");
    report.check(back < WATCHED, || "not every worker got ready".to_owned());
    // Those of this program and of the wait for the start come on top
    report.check(total <= 2 * before, || format!("{total} connections were opened where {before} were needed"));
    Ok(report)
}

async fn is_ready(http: &reqwest::Client, worker: &ServiceProcess) -> bool {
    let answer = http.get(worker.url("/health/ready")).send().await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

async fn read_counter(redis: &mut MultiplexedConnection, name: &str) -> anyhow::Result<u64> {
    let info: String = redis::cmd("INFO").query_async(redis).await?;
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.context("a counter of Redis")?.trim().parse()?)
}
