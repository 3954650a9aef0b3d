//! Whether a long queue is slower than a short one: jobs processed per second with 1,000,000 waiting, beside 10,000.

use crate::{
    galley::{BenchDurability, BenchGalley},
    report::{BenchReport, median},
    scope::BenchScope,
};

const QUEUE: &str = "long";
const LONG: u32 = 1_000_000;
const SHORT: u32 = 10_000;
/// Jobs that are measured at the head of the long queue, and as many short queues one after the other.
const MEASURED: u32 = 100_000;

pub(crate) async fn run(durability: BenchDurability, scope: BenchScope) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("backlog");
    let (long, measured) = (scope.of(LONG), scope.of(MEASURED));
    let (mut with_long, mut with_short) = (Vec::new(), Vec::new());
    for _ in 0..scope.rounds() {
        with_short.push(short_queue(durability, measured / SHORT).await?);
        with_long.push(long_queue(durability, long, measured).await?);
    }
    let ratios = with_long.iter().zip(&with_short).map(|(long, short)| long / short).collect();
    report.add_note(format!("medians of {} rounds; {measured} jobs are measured of each", scope.rounds()));
    report.add_figure(format!("processed with {SHORT} waiting"), median(with_short), "1/s");
    report.add_figure(format!("processed with {long} waiting"), median(with_long), "1/s");
    report.add_with_goal("with the long queue / with the short one", median(ratios), "", ">= 0.9");
    Ok(report)
}

async fn long_queue(durability: BenchDurability, long: u32, measured: u32) -> anyhow::Result<f64> {
    let galley = BenchGalley::start(durability).await;
    galley.enqueue_noops(QUEUE, long).await?;
    let _worker = galley.start_worker(QUEUE, &[]).await;
    galley.completed_per_second(QUEUE, measured).await
}

/// Of each short queue the first tenth is not counted: the worker wakes up in it.
async fn short_queue(durability: BenchDurability, times: u32) -> anyhow::Result<f64> {
    let galley = BenchGalley::start(durability).await;
    let worker = galley.start_worker(QUEUE, &[]).await;
    let mut rates = Vec::new();
    for number in 0..times.max(1) {
        galley.set_paused(QUEUE, true).await?;
        galley.enqueue_noops(QUEUE, SHORT).await?;
        galley.set_paused(QUEUE, false).await?;
        rates.push(galley.completed_between(QUEUE, number * SHORT, (number + 1) * SHORT).await?);
    }
    worker.terminate().await;
    Ok(median(rates))
}
