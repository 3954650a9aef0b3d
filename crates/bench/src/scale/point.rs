//! One point of a curve.

use std::time::Duration;

use serde_json::json;

use super::ScaleAxis;
use crate::{
    channels::{BenchServerKind, measure_fan_out},
    galley::{BenchDurability, BenchGalley},
    open_load::{OpenLoad, start_stopwatch},
    report::{BenchReport, median, percentile_of},
    scope::BenchScope,
};

const BUSY: &str = "busy";
/// The queue of the open load.
const PROMPT: &str = "prompt";
/// Jobs of which the rate is measured.
const JOBS: u32 = 50_000;
/// Bytes of arguments of which the rate is measured: large ones are fewer.
const MAX_PAYLOAD_BYTES: u32 = 200_000_000;
const MIN_JOBS: u32 = 200;
/// Bytes of a batch request.
const BATCH_BYTES: u32 = 8_000_000;
/// How often few waiting jobs are measured.
const SHORT_ROUNDS: u32 = 10;
const LOAD_PER_SECOND: u32 = 200;
const LOAD_SECONDS: u64 = 4;
const FAN_OUT_SECONDS: u64 = 3;

/// What was measured.
pub(super) struct ScalePoint {
    pub(super) per_second: f64,
    pub(super) p99_ms: f64,
}

impl ScalePoint {
    pub(super) async fn measure(
        report: &mut BenchReport,
        axis: ScaleAxis,
        count: u32,
        durability: BenchDurability,
        scope: BenchScope,
    ) -> anyhow::Result<Self> {
        if axis == ScaleAxis::Readers {
            let time = Duration::from_secs(FAN_OUT_SECONDS);
            let measured = measure_fan_out(report, BenchServerKind::EventStream, durability, count, time).await?;
            return Ok(Self { per_second: measured.delivered_per_second, p99_ms: percentile_of(measured.times, 99) });
        }
        let galley = BenchGalley::start(durability).await;
        let jobs = scope.of(JOBS);
        match axis {
            ScaleAxis::Waiting => waiting(&galley, count, jobs).await,
            ScaleAxis::Queues => queues(&galley, count, jobs).await,
            ScaleAxis::Priorities => priorities(&galley, count, jobs).await,
            ScaleAxis::Workers => workers(&galley, count, jobs).await,
            ScaleAxis::Payload => payload(&galley, count, jobs).await,
            ScaleAxis::Results | ScaleAxis::Readers => results(&galley, count, jobs).await,
        }
    }
}

async fn waiting(galley: &BenchGalley, count: u32, jobs: u32) -> anyhow::Result<ScalePoint> {
    let _worker = start_stopwatch_beside(galley).await;
    // A few jobs are over before they can be measured well
    let rounds = if count < jobs { SHORT_ROUNDS } else { 1 };
    let (mut rates, mut p99_ms) = (Vec::new(), f64::NAN);
    for round in 0..rounds {
        galley.set_paused(BUSY, true).await?;
        galley.enqueue_noops(BUSY, count).await?;
        if round == 0 {
            p99_ms = open_load(galley, PROMPT).await?;
        }
        galley.set_paused(BUSY, false).await?;
        let from = round * count;
        rates.push(galley.completed_between(BUSY, from, from + count.min(jobs)).await?);
    }
    Ok(ScalePoint { per_second: median(rates), p99_ms })
}

async fn queues(galley: &BenchGalley, count: u32, jobs: u32) -> anyhow::Result<ScalePoint> {
    let mut names: Vec<String> = (2..count).map(|number| format!("quiet-{number}")).collect();
    for name in &names {
        galley.enqueue_noops(name, 1).await?;
    }
    names.extend([PROMPT.to_owned(), BUSY.to_owned()]);
    // Of a single queue, both kinds of jobs
    let (busy, prompt) = if count == 1 { (PROMPT, PROMPT) } else { (BUSY, PROMPT) };
    let names = if count == 1 { PROMPT.to_owned() } else { names.join(",") };
    galley.enqueue_noops(busy, jobs).await?;
    let _worker = start_stopwatch(galley, &names, &[]).await;
    let per_second = galley.completed_per_second(busy, jobs).await?;
    Ok(ScalePoint { per_second, p99_ms: open_load(galley, prompt).await? })
}

async fn priorities(galley: &BenchGalley, count: u32, jobs: u32) -> anyhow::Result<ScalePoint> {
    let lowest = -i64::from(count / 2);
    for priority in lowest..lowest + i64::from(count) {
        let options = json!({ "queue": BUSY, "priority": priority });
        let job = json!({ "type": "test.noop", "args": [], "options": options }).to_string();
        galley.enqueue_all(&[job]).await?;
    }
    galley.enqueue_noops(BUSY, jobs).await?;
    let _worker = start_stopwatch_beside(galley).await;
    let per_second = galley.completed_per_second(BUSY, jobs + count).await?;
    // In the queue with all those priorities
    Ok(ScalePoint { per_second, p99_ms: open_load(galley, BUSY).await? })
}

async fn workers(galley: &BenchGalley, count: u32, jobs: u32) -> anyhow::Result<ScalePoint> {
    galley.set_paused(BUSY, true).await?;
    galley.enqueue_noops(BUSY, jobs).await?;
    let mut running = Vec::new();
    for _ in 0..count {
        running.push(galley.start_worker(BUSY, &[]).await);
    }
    galley.set_paused(BUSY, false).await?;
    let per_second = galley.completed_per_second(BUSY, jobs).await?;
    for worker in running {
        worker.terminate().await;
    }
    // Only one worker can tell when its handlers start
    Ok(ScalePoint { per_second, p99_ms: f64::NAN })
}

async fn payload(galley: &BenchGalley, bytes: u32, jobs: u32) -> anyhow::Result<ScalePoint> {
    let jobs = jobs.min(MAX_PAYLOAD_BYTES / bytes).max(MIN_JOBS);
    let argument = "x".repeat(bytes as usize);
    let job = json!({ "type": "test.noop", "args": [argument], "options": { "queue": BUSY } }).to_string();
    galley.enqueue_repeated(&job, jobs, (BATCH_BYTES / (bytes + 200)).clamp(1, 1000)).await?;
    let _worker = start_stopwatch_beside(galley).await;
    let per_second = galley.completed_per_second(BUSY, jobs).await?;
    Ok(ScalePoint { per_second, p99_ms: f64::NAN })
}

async fn results(galley: &BenchGalley, count: u32, jobs: u32) -> anyhow::Result<ScalePoint> {
    let _worker = start_stopwatch_beside(galley).await;
    galley.enqueue_noops(BUSY, count).await?;
    galley.completed_per_second(BUSY, count).await?;
    galley.set_paused(BUSY, true).await?;
    galley.enqueue_noops(BUSY, jobs).await?;
    galley.set_paused(BUSY, false).await?;
    let per_second = galley.completed_between(BUSY, count, count + jobs).await?;
    Ok(ScalePoint { per_second, p99_ms: open_load(galley, PROMPT).await? })
}

/// A worker on both queues, neither of which goes before the other.
async fn start_stopwatch_beside(galley: &BenchGalley) -> testkit::ServiceProcess {
    let weights = [("GALLEY__QUEUE_WORKER__WEIGHTS__BUSY", "1"), ("GALLEY__QUEUE_WORKER__WEIGHTS__PROMPT", "1")];
    start_stopwatch(galley, "busy,prompt", &weights).await
}

async fn open_load(galley: &BenchGalley, queue: &str) -> anyhow::Result<f64> {
    let load = OpenLoad {
        queue: queue.to_owned(),
        per_second: LOAD_PER_SECOND,
        time: Duration::from_secs(LOAD_SECONDS),
        argument_bytes: 200,
    };
    Ok(load.run(galley).await?.start_ms(0.99))
}
