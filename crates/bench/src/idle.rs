//! What Galley costs while nothing happens: memory, processor time, and commands to Redis, with 10, 100 and 1,000 queues.

use std::{collections::BTreeMap, time::Duration};
use testkit::redis;

use testkit::{ServiceProcess, redis::aio::MultiplexedConnection};
use tokio::time::{Instant, sleep};

use crate::{
    galley::{BenchDurability, BenchGalley, noop_job},
    machine::{resident_bytes, scheduler_times_ms},
    numbers::count_as_f64,
    report::BenchReport,
    scope::BenchScope,
};

const QUEUES: [u32; 3] = [10, 100, 1000];
/// Before it is measured: what follows a start or a job is over.
const SETTLE_TIME: Duration = Duration::from_secs(8);
const SECONDS: u32 = 20;
const SAMPLE_SECONDS: u32 = 5;
/// Most of the commands that a note names.
const MAX_NAMED: usize = 8;

pub(crate) async fn run(durability: BenchDurability, scope: BenchScope) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("idle");
    let time = Duration::from_secs(if scope.is_quick() { SAMPLE_SECONDS } else { SECONDS }.into());
    report.add_note(format!("one process of each service, {} s, queues that had a job each", time.as_secs()));
    let queues: &[u32] = if scope.is_quick() { &QUEUES[2..] } else { &QUEUES };
    for count in queues {
        measure(&mut report, durability, *count, time).await?;
    }
    Ok(report)
}

async fn measure(
    report: &mut BenchReport,
    durability: BenchDurability,
    queues: u32,
    time: Duration,
) -> anyhow::Result<()> {
    let galley = BenchGalley::start(durability).await;
    let names: Vec<String> = (0..queues).map(|number| format!("idle-{number}")).collect();
    let jobs: Vec<String> = names.iter().map(|name| noop_job(name)).collect();
    galley.enqueue_all(&jobs).await?;
    let worker = galley.start_worker(&names.join(","), &[]).await;
    let pubsub = ServiceProcess::start("pubsub-worker", &galley.redis, &[]).await;
    pubsub.wait_until_ready().await;
    sleep(SETTLE_TIME).await;
    let services = [("gateway", &galley.gateway), ("queue-worker", &worker), ("pubsub-worker", &pubsub)];
    let mut redis = galley.redis.connection().await;
    let ran = services.map(|(_, service)| scheduler_times_ms(service.process_id()).0);
    let redis_process = galley.redis_process_id().await?;
    let (redis_ran, _) = scheduler_times_ms(redis_process);
    let (began, before) = (Instant::now(), calls(&mut redis).await?);
    sleep(time).await;
    let after = calls(&mut redis).await?;
    let seconds = began.elapsed().as_secs_f64();
    for ((name, service), ran) in services.into_iter().zip(ran) {
        let percent = (scheduler_times_ms(service.process_id()).0 - ran) / 10.0 / seconds;
        let what = format!("{queues} queues: {name}");
        report.add_with_goal(format!("{what}, resident"), resident_bytes(service.process_id()) / 1e6, "MB", "<= 20");
        report.add_with_goal(format!("{what}, of a core"), percent, "%", "<= 0.5");
    }
    let percent = (scheduler_times_ms(redis_process).0 - redis_ran) / 10.0 / seconds;
    report.add_figure(format!("{queues} queues: Redis, of a core"), percent, "%");
    let mut rates: Vec<(f64, String)> = after
        .iter()
        .map(|(name, count)| {
            let since = count - before.get(name).copied().unwrap_or_default();
            (count_as_f64(since) / seconds, name.clone())
        })
        .filter(|(rate, name)| *rate > 0.0 && name != "info")
        .collect();
    rates.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let sum = rates.iter().map(|(rate, _)| rate).sum();
    report.add_with_goal(format!("{queues} queues: commands to Redis, of scripts too"), sum, "1/s", "<= 30");
    let named: Vec<String> = rates.iter().take(MAX_NAMED).map(|(rate, name)| format!("{name} {rate:.1}")).collect();
    report.add_note(format!("{queues} queues, a second: {}", named.join(", ")));
    Ok(())
}

/// How often each command was called, by scripts too.
async fn calls(redis: &mut MultiplexedConnection) -> anyhow::Result<BTreeMap<String, u64>> {
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(redis).await?;
    let commands = info.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="));
    Ok(commands.filter_map(|(name, rest)| Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))).collect())
}
