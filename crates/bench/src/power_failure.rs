//! What a power failure of Redis costs: it is killed under load, and what it had not synced to the disk is taken away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use clap::Args;
use serde_json::Value;
use testkit::{RedisPersistence, RedisServer, ServiceProcess};
use tokio::time::sleep;

use crate::{
    galley::{job_id, noop_job},
    numbers::count_as_f64,
    report::BenchReport,
    stored_jobs::are_stored,
};

/// Requests at a time.
const SENDERS: usize = 4;
/// From the start of the load until the power fails.
const MIN_LOAD_MS: u64 = 2500;
const MAX_LOAD_MS: u64 = 4000;
/// What docs/guarantees.md says of `everysec`.
const MAX_LOSS: Duration = Duration::from_secs(2);
/// A request that is answered later was not answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// What is run.
#[derive(Debug, Clone, Args)]
pub(crate) struct PowerFailureArgs {
    /// Power failures at each durability level.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    failures: u32,
}

pub(crate) async fn run(args: PowerFailureArgs) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("power-failure");
    for (name, persistence) in [("always", RedisPersistence::Always), ("everysec", RedisPersistence::EverySecond)] {
        let (mut acknowledged, mut lost, mut oldest) = (0, 0, Duration::ZERO);
        for _ in 0..args.failures {
            let cut = cut_power(persistence).await?;
            acknowledged += cut.acknowledged;
            lost += cut.lost;
            oldest = oldest.max(cut.oldest);
        }
        report.add_figure(format!("{name}: jobs acknowledged"), count_as_f64(acknowledged), "");
        report.add_figure(format!("{name}: acknowledged and lost"), count_as_f64(lost), "");
        let oldest_ms = oldest.as_secs_f64() * 1000.0;
        report.add_figure(
            format!("{name}: longest from an acknowledgement that was lost to the failure"),
            oldest_ms,
            "ms",
        );
        let limit = if persistence == RedisPersistence::Always { Duration::ZERO } else { MAX_LOSS };
        report.check(oldest <= limit, || format!("{name}: a job was lost {oldest:?} after its acknowledgement"));
    }
    Ok(report)
}

struct PowerCut {
    acknowledged: u64,
    lost: u64,
    oldest: Duration,
}

async fn cut_power(persistence: RedisPersistence) -> anyhow::Result<PowerCut> {
    let mut redis = tokio::task::block_in_place(|| RedisServer::start_on_watched_disk(persistence));
    let gateway = Arc::new(ServiceProcess::start("gateway", &redis, &[]).await);
    gateway.wait_until_ready().await;
    let http = reqwest::Client::builder().timeout(ANSWER_TIMEOUT).build()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> =
        (0..SENDERS).map(|_| tokio::spawn(send(http.clone(), gateway.url("/ojs/v1/jobs"), is_over.clone()))).collect();
    sleep(Duration::from_millis(rand::random_range(MIN_LOAD_MS..MAX_LOAD_MS))).await;
    let failure = Instant::now();
    tokio::task::block_in_place(|| redis.kill_and_lose_unsynced());
    is_over.store(true, Relaxed);
    let mut acknowledged = Vec::new();
    for sender in senders {
        acknowledged.extend(sender.await??);
    }
    tokio::task::block_in_place(|| redis.restart());
    gateway.wait_until_ready().await;
    ensure!(!acknowledged.is_empty(), "nothing was acknowledged");
    let mut cut = PowerCut { acknowledged: acknowledged.len() as u64, lost: 0, oldest: Duration::ZERO };
    let (ids, times): (Vec<String>, Vec<Instant>) = acknowledged.into_iter().unzip();
    for (at, found) in times.into_iter().zip(are_stored(gateway.address(), &ids).await?) {
        if !found {
            cut.lost += 1;
            cut.oldest = cut.oldest.max(failure.saturating_duration_since(at));
        }
    }
    Ok(cut)
}

/// Sends one job after the other; those that were acknowledged, and when.
async fn send(http: reqwest::Client, url: String, is_over: Arc<AtomicBool>) -> anyhow::Result<Vec<(String, Instant)>> {
    let mut acknowledged = Vec::new();
    while !is_over.load(Relaxed) {
        let request = http.post(&url).header("content-type", "application/json").body(noop_job("default"));
        let Ok(answer) = request.send().await else { continue };
        if answer.status() != 201 {
            continue;
        }
        let Ok(text) = answer.text().await else { continue };
        let answer: Value = serde_json::from_str(&text)?;
        acknowledged.push((job_id(&answer["job"])?, Instant::now()));
    }
    Ok(acknowledged)
}
