//! Clients that wait for results on one gateway: what each costs, and how soon each is answered.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use testkit::redis;

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::redis::aio::MultiplexedConnection;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    galley::{BenchDurability, BenchGalley, job_time, noop_job, now_ms, poll_until},
    machine::resident_bytes,
    numbers::count_as_f64,
    report::BenchReport,
};

pub(crate) const CLIENTS: u32 = 5000;

/// Connections that are being made at a time: fewer than the backlog of a listening socket.
const MAX_CONNECTING: usize = 64;
/// Longest wait until all of them wait.
const WAIT_TIMEOUT: Duration = Duration::from_secs(40);

#[expect(clippy::too_many_lines, reason = "one scenario: start, connect, wait, measure")]
pub(crate) async fn run(durability: BenchDurability, clients: u32) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("waiters");
    let galley = Arc::new(BenchGalley::start(durability).await);
    let mut redis = galley.redis.connection().await;
    let jobs: Vec<String> = (0..clients).map(|_| noop_job("awaited")).collect();
    let ids = galley.enqueue_all(&jobs).await?;
    let process = galley.gateway.process_id();
    let (memory, connections) = (resident_bytes(process), count_redis_connections(&mut redis).await?);

    let opening = Arc::new(Semaphore::new(MAX_CONNECTING));
    let began = Instant::now();
    let mut waiting = JoinSet::new();
    for id in ids {
        waiting.spawn(wait_for_result(galley.clone(), id, opening.clone()));
    }
    let all_wait = poll_until(WAIT_TIMEOUT, Duration::from_millis(50), || async {
        Ok(count_waiting_clients(&galley).await? >= clients)
    })
    .await?;
    ensure!(
        all_wait,
        "only {} of {clients} clients wait: does ulimit -n allow more?",
        count_waiting_clients(&galley).await?
    );
    report.add_figure("clients", clients.into(), "");
    report.add_figure("until all of them waited", began.elapsed().as_secs_f64(), "s");
    let (memory_then, connections_then) = (resident_bytes(process), count_redis_connections(&mut redis).await?);
    report.add_figure("gateway: memory before", memory / 1e6, "MB");
    report.add_figure("gateway: memory while they wait", memory_then / 1e6, "MB");
    report.add_figure(
        "gateway: memory per waiting client and its connection",
        (memory_then - memory) / f64::from(clients),
        "bytes",
    );
    let more = connections_then.saturating_sub(connections);
    report.add_with_goal("gateway: connections to Redis for all of them", count_as_f64(more as u64), "", "<= 1");

    let worker_start = Instant::now();
    let _worker = galley.start_worker("awaited", &[]).await;
    let (mut latencies, mut ends, mut unanswered) = (Vec::new(), Vec::new(), 0_u32);
    while let Some(answer) = waiting.join_next().await {
        match answer? {
            Ok((answered, completed)) => {
                latencies.push((answered - completed).max(0.0));
                ends.push((answered, completed));
            }
            Err(error) => {
                unanswered += 1;
                if unanswered == 1 {
                    report.add_note(format!("the first without an answer: {error:#}"));
                }
            }
        }
    }
    report.check(unanswered == 0, || format!("{unanswered} clients were not answered with the end of their job"));
    let stats = galley.stats("awaited").await?;
    report.check(stats.has_only_completed(clients.into()), || {
        format!("not every job completed exactly once: {}", stats.to_line())
    });
    report.add_figure("answered", count_as_f64(ends.len() as u64), "");
    report.add_times("end of the job to its answer", &latencies, "");
    let first = ends.iter().map(|(_, completed)| *completed).fold(f64::INFINITY, f64::min);
    let last = ends.iter().map(|(answered, _)| *answered).fold(0.0, f64::max);
    report.add_figure("from the first end to the last answer", last - first, "ms");
    report.add_figure("from the start of the worker to the last answer", worker_start.elapsed().as_secs_f64(), "s");
    Ok(report)
}

/// When the answer was here, and when the job had ended.
async fn wait_for_result(galley: Arc<BenchGalley>, id: String, opening: Arc<Semaphore>) -> anyhow::Result<(f64, f64)> {
    let mut connection = {
        let _permit = opening.acquire().await?;
        galley.connect().await?
    };
    let answer = connection.get(&format!("/ojs/v1/jobs/{id}?wait_ms=60000")).await?;
    let answered = now_ms();
    let answer: Value = serde_json::from_str(&answer)?;
    let completed = job_time(&answer["job"], "completed_at").context("answered before the job was completed")?;
    Ok((answered, completed))
}

/// How many clients wait, says the gateway.
async fn count_waiting_clients(galley: &BenchGalley) -> anyhow::Result<u32> {
    let metrics = galley.connect().await?.get("/metrics").await?;
    let number = metrics.lines().find_map(|line| line.strip_prefix("galley_waiters ")?.trim().parse().ok());
    Ok(number.unwrap_or(0))
}

async fn count_redis_connections(redis: &mut MultiplexedConnection) -> anyhow::Result<usize> {
    let list: String = redis::cmd("CLIENT").arg("LIST").query_async(redis).await?;
    Ok(list.lines().count())
}
