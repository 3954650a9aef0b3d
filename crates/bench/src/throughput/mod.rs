//! Jobs taken and worked off per second, each beside a bare client that does the same in the same round: machines are noisy,
//! and only the ratio of two figures of one run says something.

mod bare;
mod load;

use anyhow::ensure;

pub(crate) use self::load::requests_per_second;
use crate::{
    galley::{Durability, Galley, batch, noop},
    http,
    report::{Report, median},
};

pub(crate) const ROUNDS: u32 = 3;

/// Jobs in each part of a round that is counted in jobs.
const JOBS: u32 = 200_000;
/// Jobs in one batch request, and in one pipeline of the bare client.
const BATCH: u32 = 100;
/// Connections of the single enqueues, and of the batches.
const SINGLE: u32 = 64;
const BATCHES: u32 = 8;

/// Everything of one round, per second.
struct Round {
    live: f64,
    single: f64,
    batches: f64,
    xadd: f64,
    processed: f64,
    bare: f64,
}

pub(crate) async fn run(durability: Durability, rounds: u32) -> anyhow::Result<Report> {
    let mut report = Report::new("throughput");
    let mut all = Vec::new();
    for _ in 0..rounds {
        all.push(round(&mut report, durability).await?);
    }
    let of = |figure: fn(&Round) -> f64| median(all.iter().map(figure).collect());
    report.note(format!(
        "medians of {rounds} rounds; no-op jobs with an argument of 200 bytes, 1 queue-worker, defaults"
    ));
    report.add("GET /health/live, 64 connections", of(|round| round.live), "1/s");
    report.add("POST /ojs/v1/jobs, 64 connections", of(|round| round.single), "1/s");
    report.add("enqueued singly / bare route", of(|round| round.single / round.live), "");
    report
        .note("the bare route is GET /health/live, which reads no body and no JSON: a route that does would be slower");
    report.add("jobs by POST /ojs/v1/jobs/batch, 100 each, 8 connections", of(|round| round.batches), "1/s");
    report.add("bare client: XADD, 100 per pipeline", of(|round| round.xadd), "1/s");
    report.add_with_goal("enqueued in batches / bare XADD", of(|round| round.batches / round.xadd), "", ">= 0.5");
    report.add("jobs processed by one queue-worker", of(|round| round.processed), "1/s");
    report.add("bare client: fenced, batches of 128, results kept", of(|round| round.bare), "1/s");
    report.add_with_goal("processed / bare fenced", of(|round| round.processed / round.bare), "", ">= 0.7");
    Ok(report)
}

/// One round, on a Redis of its own, so that none inherits what the one before has stored.
async fn round(report: &mut Report, durability: Durability) -> anyhow::Result<Round> {
    let galley = Galley::start(durability).await;
    let address = galley.gateway.address();
    let live = requests_per_second(address, "GET /health/live HTTP/1.1\r\nhost: bench\r\n\r\n", SINGLE).await?;
    let request = http::post("/ojs/v1/jobs", &noop("single"));
    let single = requests_per_second(address, &request, SINGLE).await?;
    let jobs: Vec<String> = (0..BATCH).map(|_| noop("batched")).collect();
    let request = http::post("/ojs/v1/jobs/batch", &batch(&jobs));
    let batches = f64::from(BATCH) * load::count_per_second(address, &request, BATCHES, JOBS / BATCH).await?;
    let stats = galley.stats("batched").await?;
    ensure!(stats.available() == u64::from(JOBS), "batches were lost: {}", stats.line());

    let client = bare::Client::open(&galley.redis).await?;
    let xadd = client.fill(JOBS, BATCH).await?;
    let bare = client.work_off(JOBS).await?;
    let processed = processed(&galley).await?;
    let stats = galley.stats("batched").await?;
    report.check(stats.is_exactly(JOBS.into()), || format!("not every job completed exactly once: {}", stats.line()));
    Ok(Round { live, single, batches, xadd, processed, bare })
}

/// Lets a worker work off what the batches left; jobs per second from its first result to the last.
async fn processed(galley: &Galley) -> anyhow::Result<f64> {
    let worker = galley.worker("batched", &[]).await;
    let rate = galley.completed_per_second("batched", JOBS).await?;
    worker.terminate().await;
    Ok(rate)
}
