//! What a job costs: microseconds of processor time of each service and of Redis, and bytes, as straight lines over the size
//! of the argument; and what a million jobs a second would take.

use serde_json::json;

use crate::{
    galley::{BenchDurability, BenchGalley},
    machine::scheduler_times_ms,
    memory::stored_memory,
    numbers::count_as_f64,
    report::BenchReport,
    scope::BenchScope,
};

const QUEUE: &str = "costly";
/// Bytes of the argument.
const SIZES: [u32; 4] = [100, 1024, 4096, 16_384];
const JOBS: u32 = 50_000;
/// Bytes of all arguments together: larger jobs are fewer.
const MAX_BYTES: u32 = 200_000_000;
const BATCH_SIZE: u32 = 100;
/// The job for which a million a second is reckoned.
const TYPICAL_KIB: f64 = 0.2;
/// How much of a processor may be in use: a queue at its limit is late.
const UTILISATION: f64 = 0.7;
const MILLION: f64 = 1_000_000.0;

/// What one job of some size takes.
#[derive(Clone, Copy)]
struct JobCost {
    kib: f64,
    gateway: f64,
    redis_enqueue: f64,
    worker: f64,
    redis_process: f64,
    waiting: f64,
    finished: f64,
}

/// A straight line: fixed, and for each KiB.
#[derive(Clone, Copy)]
struct CostLine {
    fixed: f64,
    per_kib: f64,
}

impl CostLine {
    /// The line with the least squares.
    fn fit(points: &[(f64, f64)]) -> Self {
        let count = count_as_f64(points.len() as u64);
        let mean = |pick: fn(&(f64, f64)) -> f64| points.iter().map(pick).sum::<f64>() / count;
        let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
        let (mut both, mut square) = (0.0, 0.0);
        for (x, y) in points {
            both += (x - mean_x) * (y - mean_y);
            square += (x - mean_x).powi(2);
        }
        let per_kib = if square > 0.0 { both / square } else { 0.0 };
        Self { fixed: mean_y - per_kib * mean_x, per_kib }
    }

    fn at(self, kib: f64) -> f64 {
        self.fixed + self.per_kib * kib
    }
}

pub(crate) async fn run(durability: BenchDurability, scope: BenchScope) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("cost");
    let sizes = if scope.is_quick() { &SIZES[..2] } else { &SIZES };
    let mut costs = Vec::new();
    for size in sizes {
        costs.push(measure(durability, *size, scope.of(JOBS).min(MAX_BYTES / size)).await?);
    }
    report.add_note(format!(
        "batches of {BATCH_SIZE} over HTTP, one queue-worker; arguments of {sizes:?} bytes; each line is a + b for each KiB"
    ));
    let lines: Vec<(&str, CostLine)> = PARTS
        .iter()
        .map(|(what, unit, pick)| {
            let points: Vec<(f64, f64)> = costs.iter().map(|cost| (cost.kib, pick(cost))).collect();
            let line = CostLine::fit(&points);
            report.add_figure(format!("{what}: a job"), line.fixed, unit);
            report.add_figure(format!("{what}: each KiB"), line.per_kib, unit);
            (*what, line)
        })
        .collect();
    add_million(&mut report, &lines);
    Ok(report)
}

type PickCost = fn(&JobCost) -> f64;

const PARTS: [(&str, &str, PickCost); 6] = [
    ("gateway, processor time", "us", |cost| cost.gateway),
    ("Redis, processor time to enqueue", "us", |cost| cost.redis_enqueue),
    ("queue-worker, processor time", "us", |cost| cost.worker),
    ("Redis, processor time to process", "us", |cost| cost.redis_process),
    ("Redis, a waiting job", "bytes", |cost| cost.waiting),
    ("Redis, the record of a finished job", "bytes", |cost| cost.finished),
];

/// What a million jobs a second would take, if all grew in proportion.
fn add_million(report: &mut BenchReport, lines: &[(&str, CostLine)]) {
    let at = |index: usize| lines[index].1.at(TYPICAL_KIB).max(0.0);
    let cores = |micros: f64| (micros * MILLION / 1e6 / UTILISATION).ceil();
    report.add_note(format!(
        "a million jobs a second with an argument of 200 bytes, processors {UTILISATION} in use, batches of {BATCH_SIZE}; a \
         shard of Redis has one processor; what connects shards costs nothing here"
    ));
    report.add_figure("a million a second: shards of Redis", cores(at(1) + at(3)), "");
    report.add_figure("a million a second: processors of gateways", cores(at(0)), "");
    report.add_figure("a million a second: processors of queue-workers", cores(at(2)), "");
    report.add_figure("a million a second: a minute of waiting jobs", at(4) * MILLION * 60.0 / 1e9, "GB");
    report.add_figure("a million a second: records kept for an hour", at(5) * MILLION * 3600.0 / 1e9, "GB");
}

async fn measure(durability: BenchDurability, bytes: u32, jobs: u32) -> anyhow::Result<JobCost> {
    let galley = BenchGalley::start(durability).await;
    let mut redis = galley.redis.connection().await;
    let (redis_id, gateway_id) = (galley.redis_process_id().await?, galley.gateway.process_id());
    let argument = "x".repeat(bytes as usize);
    let job = json!({ "type": "test.noop", "args": [argument], "options": { "queue": QUEUE } }).to_string();
    // The scripts, connections and buffers are there
    galley.enqueue_repeated(&job, jobs / 10, BATCH_SIZE).await?;
    let ran = |process: u32| scheduler_times_ms(process).0 * 1000.0;
    let per_job = |micros: f64| micros / f64::from(jobs);
    let before = stored_memory(&mut redis).await?;
    let (gateway_ran, redis_ran) = (ran(gateway_id), ran(redis_id));
    galley.enqueue_repeated(&job, jobs, BATCH_SIZE).await?;
    let gateway = per_job(ran(gateway_id) - gateway_ran);
    let redis_enqueue = per_job(ran(redis_id) - redis_ran);
    let waiting = per_job(stored_memory(&mut redis).await? - before);
    let all = jobs + jobs / 10;
    let redis_ran = ran(redis_id);
    let worker = galley.start_worker(QUEUE, &[]).await;
    let worker_ran = ran(worker.process_id());
    galley.completed_per_second(QUEUE, all).await?;
    let worker_micros = (ran(worker.process_id()) - worker_ran) / f64::from(all);
    let redis_process = (ran(redis_id) - redis_ran) / f64::from(all);
    worker.terminate().await;
    let empty = before - waiting * f64::from(jobs / 10);
    let finished = (stored_memory(&mut redis).await? - empty) / f64::from(all);
    let kib = f64::from(bytes) / 1024.0;
    Ok(JobCost { kib, gateway, redis_enqueue, worker: worker_micros, redis_process, waiting, finished })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_through_points_on_a_line_is_that_line() {
        let line = CostLine::fit(&[(0.1, 2.3), (1.0, 5.0), (4.0, 14.0), (16.0, 50.0)]);
        assert!((line.fixed - 2.0).abs() < 1e-9 && (line.per_kib - 3.0).abs() < 1e-9);
        assert!((line.at(2.0) - 8.0).abs() < 1e-9);
    }
}
