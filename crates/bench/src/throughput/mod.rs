//! Jobs taken and worked off per second, each beside a bare client that does the same in the same round: machines are noisy,
//! and only the ratio of two figures of one run says something.

mod bare;
mod load;

use anyhow::ensure;

pub(crate) use self::load::requests_per_second;
use crate::{
    galley::{BenchDurability, BenchGalley, batch_body, noop_job},
    http,
    report::{BenchReport, median},
};

pub(crate) const ROUNDS: u32 = 3;

/// Jobs in each part of a round that is counted in jobs.
const JOBS: u32 = 200_000;
/// Jobs in one batch request, and in one pipeline of the bare client.
const BATCH_SIZE: u32 = 100;
/// Connections of the single enqueues, and of the batches.
const SINGLE_CONNECTIONS: u32 = 64;
const BATCH_CONNECTIONS: u32 = 8;

/// Everything of one round, per second.
struct ThroughputRound {
    live: f64,
    single: f64,
    batches: f64,
    xadd: f64,
    processed: f64,
    bare: f64,
}

pub(crate) async fn run(durability: BenchDurability, rounds: u32) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("throughput");
    let mut all = Vec::new();
    for _ in 0..rounds {
        all.push(run_round(&mut report, durability).await?);
    }
    let of = |figure: fn(&ThroughputRound) -> f64| median(all.iter().map(figure).collect());
    report.add_note(format!(
        "medians of {rounds} rounds; no-op jobs with an argument of 200 bytes, 1 queue-worker, defaults"
    ));
    report.add_figure("GET /health/live, 64 connections", of(|round| round.live), "1/s");
    report.add_figure("POST /ojs/v1/jobs, 64 connections", of(|round| round.single), "1/s");
    report.add_figure("enqueued singly / bare route", of(|round| round.single / round.live), "");
    report.add_note(
        "the bare route is GET /health/live, which reads no body and no JSON: a route that does would be slower",
    );
    report.add_figure("jobs by POST /ojs/v1/jobs/batch, 100 each, 8 connections", of(|round| round.batches), "1/s");
    report.add_figure("bare client: XADD, 100 per pipeline", of(|round| round.xadd), "1/s");
    report.add_with_goal("enqueued in batches / bare XADD", of(|round| round.batches / round.xadd), "", ">= 0.5");
    report.add_figure("jobs processed by one queue-worker", of(|round| round.processed), "1/s");
    report.add_figure("bare client: fenced, batches of 128, results kept", of(|round| round.bare), "1/s");
    report.add_with_goal("processed / bare fenced", of(|round| round.processed / round.bare), "", ">= 0.7");
    Ok(report)
}

/// One round, on a Redis of its own, so that none inherits what the one before has stored.
async fn run_round(report: &mut BenchReport, durability: BenchDurability) -> anyhow::Result<ThroughputRound> {
    let galley = BenchGalley::start(durability).await;
    let address = galley.gateway.address();
    let live =
        requests_per_second(address, "GET /health/live HTTP/1.1\r\nhost: bench\r\n\r\n", SINGLE_CONNECTIONS).await?;
    let request = http::post_request("/ojs/v1/jobs", &noop_job("single"));
    let single = requests_per_second(address, &request, SINGLE_CONNECTIONS).await?;
    let jobs: Vec<String> = (0..BATCH_SIZE).map(|_| noop_job("batched")).collect();
    let request = http::post_request("/ojs/v1/jobs/batch", &batch_body(&jobs));
    let batches =
        f64::from(BATCH_SIZE) * load::count_per_second(address, &request, BATCH_CONNECTIONS, JOBS / BATCH_SIZE).await?;
    let stats = galley.stats("batched").await?;
    ensure!(stats.available() == u64::from(JOBS), "batches were lost: {}", stats.to_line());

    let client = bare::BareClient::open(&galley.redis).await?;
    let xadd = client.add_entries(JOBS, BATCH_SIZE).await?;
    let bare = client.process_entries(JOBS).await?;
    let processed = measure_processing(&galley).await?;
    let stats = galley.stats("batched").await?;
    report.check(stats.has_only_completed(JOBS.into()), || {
        format!("not every job completed exactly once: {}", stats.to_line())
    });
    Ok(ThroughputRound { live, single, batches, xadd, processed, bare })
}

/// Lets a worker work off what the batches left; jobs per second from its first result to the last.
async fn measure_processing(galley: &BenchGalley) -> anyhow::Result<f64> {
    let worker = galley.start_worker("batched", &[]).await;
    let rate = galley.completed_per_second("batched", JOBS).await?;
    worker.terminate().await;
    Ok(rate)
}
