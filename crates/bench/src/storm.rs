//! Many jobs that are due in the same second, while another queue gets a few all the time: how long that takes, and what
//! the other queue and Redis notice of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use testkit::redis;

use anyhow::ensure;
use serde_json::Value;
use store::local_now;
use testkit::redis::aio::MultiplexedConnection;
use tokio::{
    task::JoinSet,
    time::{interval_at, sleep},
};

use crate::{
    galley::{BenchDurability, BenchGalley, job_id, job_time, noop_job, noop_job_at, now_ms, poll_until},
    machine::scheduler_times_ms,
    numbers::count_as_f64,
    report::BenchReport,
};

pub(crate) const JOBS: u32 = 100_000;

/// All jobs are stored by then, and the other queue was measured in peace for a while; more for more jobs.
const LEAD_MS: i64 = 40_000;
/// The least of that.
const MIN_BASELINE: Duration = Duration::from_secs(5);
const STORM_TIMEOUT: Duration = Duration::from_mins(3);
/// Senders of the other queue. Several, so that a slow answer does not slow down the rest: 50 jobs a second together.
const SENDERS: u32 = 5;
const SEND_INTERVAL: Duration = Duration::from_millis(100);
/// Redis notes commands that take longer than 10 ms.
const SLOW_COMMAND_US: u32 = 10_000;

pub(crate) async fn run(durability: BenchDurability, jobs: u32) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("storm");
    let galley = Arc::new(BenchGalley::start(durability).await);
    // Weights: neither queue goes before the other
    let weights = [("GALLEY__QUEUE_WORKER__WEIGHTS__STORM", "1"), ("GALLEY__QUEUE_WORKER__WEIGHTS__OTHER", "1")];
    let _worker = galley.start_worker("storm,other", &weights).await;

    report.add_note(if galley.prioritize_redis().await? {
        "Redis goes before everything else on the machine, as if it had a processor of its own"
    } else {
        "Redis shares the processors with everything else: a command that waits for one is slow too"
    });
    report.add_figure("jobs", jobs.into(), "");
    let due = local_now() + LEAD_MS * i64::from(jobs.div_ceil(JOBS));
    enqueue_storm(&mut report, &galley, jobs, due).await?;
    let left = u64::try_from(due - local_now()).map_or(Duration::ZERO, Duration::from_millis);
    ensure!(left >= MIN_BASELINE, "storing took so long that they are due in {left:?}: give it fewer jobs");

    let mut redis = galley.redis.connection().await;
    reset_redis_statistics(&mut redis).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut senders = JoinSet::new();
    for number in 0..SENDERS {
        senders.spawn(send_jobs(galley.clone(), SEND_INTERVAL / SENDERS * number, stop.clone()));
    }
    sleep(left).await;
    let process = galley.redis_process_id().await?;
    let (began, before) = (now_ms(), scheduler_times_ms(process));
    let is_over = || async { Ok(galley.stats("storm").await?.completed() >= u64::from(jobs)) };
    poll_until(STORM_TIMEOUT, Duration::from_millis(50), is_over).await?;
    let (ended, after) = (now_ms(), scheduler_times_ms(process));
    let seconds = (ended - began) / 1000.0;
    report.add_figure("from the first due time until all were completed", seconds, "s");
    report.add_figure("jobs completed per second", f64::from(jobs) / seconds, "1/s");
    report.add_figure("Redis ran", after.0 - before.0, "ms");
    report.add_figure("Redis waited for a processor that others had", after.1 - before.1, "ms");
    add_redis_latency(&mut report, &mut redis).await?;
    stop.store(true, Relaxed);
    // A job that was run twice would show by now
    sleep(Duration::from_secs(2)).await;
    let stats = galley.stats("storm").await?;
    report.check(stats.has_only_completed(jobs.into()), || {
        format!("not every job completed exactly once: {}", stats.to_line())
    });
    let mut sent = Vec::new();
    for some in senders.join_all().await {
        sent.extend(some?);
    }
    add_other_queue(&mut report, &galley, &sent, (began, ended)).await?;
    Ok(report)
}

async fn enqueue_storm(report: &mut BenchReport, galley: &BenchGalley, jobs: u32, due: i64) -> anyhow::Result<()> {
    let requests: Vec<String> = (0..jobs).map(|_| noop_job_at("storm", due + rand::random_range(0..1000))).collect();
    let began = Instant::now();
    galley.enqueue_all(&requests).await?;
    report.add_figure("storing them as scheduled jobs, 1,000 per request", began.elapsed().as_secs_f64(), "s");
    Ok(())
}

/// Sends a job to the other queue every now and then until told to stop; when each was sent, and its id.
async fn send_jobs(
    galley: Arc<BenchGalley>,
    first: Duration,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<Vec<(f64, String)>> {
    let mut connection = galley.connect().await?;
    let mut ticks = interval_at(tokio::time::Instant::now() + first, SEND_INTERVAL);
    let (request, mut sent) = (noop_job("other"), Vec::new());
    while !stop.load(Relaxed) {
        ticks.tick().await;
        let at = now_ms();
        let answer: Value = serde_json::from_str(&connection.post("/ojs/v1/jobs", &request).await?)?;
        sent.push((at, job_id(&answer["job"])?));
    }
    Ok(sent)
}

async fn add_other_queue(
    report: &mut BenchReport,
    galley: &BenchGalley,
    sent: &[(f64, String)],
    (began, ended): (f64, f64),
) -> anyhow::Result<()> {
    let ids: Vec<String> = sent.iter().map(|(_, id)| id.clone()).collect();
    let (mut before, mut during, mut lost) = (Vec::new(), Vec::new(), 0);
    for ((at, _), job) in sent.iter().zip(galley.fetch_jobs(&ids).await?) {
        let Some(started) = job_time(&job, "started_at").filter(|_| job["state"] == "completed") else {
            lost += 1;
            continue;
        };
        // When it started is a whole millisecond, rounded down
        let latency = (started - at).max(0.0);
        if *at < began {
            before.push(latency);
        } else if *at < ended {
            during.push(latency);
        }
    }
    report.check(lost == 0, || format!("{lost} jobs of the other queue were not completed"));
    report.add_figure("other queue: jobs during the storm", count_as_f64(during.len() as u64), "");
    report.add_times("other queue: enqueue to start, before", &before, "");
    report.add_times("other queue: enqueue to start, during the storm", &during, "");
    Ok(())
}

/// Tells Redis to note what takes long.
async fn reset_redis_statistics(redis: &mut MultiplexedConnection) -> anyhow::Result<()> {
    let mut settings = redis::pipe();
    settings
        .cmd("CONFIG")
        .arg("SET")
        .arg("slowlog-log-slower-than")
        .arg(SLOW_COMMAND_US)
        .arg("slowlog-max-len")
        .arg(1000);
    settings.cmd("CONFIG").arg("SET").arg("latency-monitor-threshold").arg(SLOW_COMMAND_US / 1000);
    settings.cmd("SLOWLOG").arg("RESET").cmd("LATENCY").arg("RESET");
    settings.cmd("CONFIG").arg("RESETSTAT");
    Ok(settings.exec_async(redis).await?)
}

type SlowlogEntry = (i64, i64, i64, Vec<String>, String, String);

async fn add_redis_latency(report: &mut BenchReport, redis: &mut MultiplexedConnection) -> anyhow::Result<()> {
    let slow: Vec<SlowlogEntry> = redis::cmd("SLOWLOG").arg("GET").arg(1000).query_async(redis).await?;
    report.add_figure("commands of Redis over 10 ms", count_as_f64(slow.len() as u64), "");
    if let Some((_, _, micros, command, ..)) = slow.iter().max_by_key(|(_, _, micros, ..)| *micros) {
        report.add_figure("the slowest of them", count_as_f64(u64::try_from(*micros)?) / 1000.0, "ms");
        let beginning: Vec<&str> = command.iter().take(4).map(String::as_str).collect();
        report.add_note(format!("the slowest command: {}", beginning.join(" ")));
    }
    add_script_times(report, redis).await?;
    let events: Vec<(String, i64, i64, i64)> = redis::cmd("LATENCY").arg("LATEST").query_async(redis).await?;
    for (event, _, _, most) in events {
        report.add_note(format!("Redis's latency monitor: {event}, at most {most} ms"));
    }
    Ok(())
}

/// How long calls of scripts took, by Redis's own histogram: one long call among very many is one that was interrupted.
async fn add_script_times(report: &mut BenchReport, redis: &mut MultiplexedConnection) -> anyhow::Result<()> {
    // Of each bound in microseconds how many calls took no longer
    type LatencyHistogram = (String, u64, String, Vec<(u64, u64)>);
    let (_, (_, calls, _, upto)): (String, LatencyHistogram) =
        redis::cmd("LATENCY").arg("HISTOGRAM").arg("evalsha").query_async(redis).await?;
    report.add_figure("calls of scripts", count_as_f64(calls), "");
    for (name, of_1000) in [("99 %", 990), ("99.9 %", 999)] {
        let within = upto.iter().find(|(_, count)| count * 1000 >= calls * of_1000);
        report.add_figure(
            format!("{name} of them took at most"),
            count_as_f64(within.map_or(0, |(bound, _)| *bound)) / 1000.0,
            "ms",
        );
    }
    Ok(())
}
