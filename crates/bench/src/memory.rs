//! Bytes in Redis of a job that waits, and of the record that a finished one leaves.

use testkit::{
    RedisServer,
    redis::{self, aio::MultiplexedConnection},
};

use crate::{
    galley::{BenchDurability, BenchGalley},
    machine::used_memory,
    processing::BareClient,
    report::BenchReport,
    scope::BenchScope,
};

const QUEUE: &str = "stored";
const JOBS: u32 = 100_000;

/// What was measured.
pub(crate) struct StoredBytes {
    pub(crate) waiting: f64,
    pub(crate) finished: f64,
}

pub(crate) async fn run(durability: BenchDurability, scope: BenchScope) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("memory");
    let jobs = if scope.is_quick() { JOBS / 2 } else { JOBS };
    let stored = measure(durability, jobs).await?;
    report
        .add_note(format!("{jobs} no-op jobs with an argument of 200 bytes, used_memory of Redis; without the events"));
    report.add_with_goal("a waiting job", stored.waiting, "bytes", "<= 230");
    report.add_figure(
        "bare: an entry with the same type, argument and id",
        bare_entry(durability, jobs).await?,
        "bytes",
    );
    report.add_with_goal("the record of a finished job", stored.finished, "bytes", "<= 300");
    Ok(report)
}

pub(crate) async fn measure(durability: BenchDurability, jobs: u32) -> anyhow::Result<StoredBytes> {
    let galley = BenchGalley::start(durability).await;
    let mut redis = galley.redis.connection().await;
    // The scripts, the queue and a thousand jobs are there before anything is counted
    galley.enqueue_noops(QUEUE, jobs / 100).await?;
    let before = stored_memory(&mut redis).await?;
    galley.enqueue_noops(QUEUE, jobs).await?;
    let waiting = (stored_memory(&mut redis).await? - before) / f64::from(jobs);
    let worker = galley.start_worker(QUEUE, &[]).await;
    galley.completed_per_second(QUEUE, jobs + jobs / 100).await?;
    worker.terminate().await;
    let after = stored_memory(&mut redis).await?;
    let empty = before - waiting * f64::from(jobs / 100);
    let finished = (after - empty) / f64::from(jobs + jobs / 100);
    Ok(StoredBytes { waiting, finished })
}

/// The least that a stream can hold of such a job: its body as the client sent it, and half of its id.
async fn bare_entry(durability: BenchDurability, entries: u32) -> anyhow::Result<f64> {
    let server = RedisServer::start_with(durability.persistence());
    let mut redis = server.connection().await;
    let before = used_memory(&mut redis).await?;
    BareClient::open(&server).await?.add_entries(entries, 100).await?;
    Ok((used_memory(&mut redis).await? - before) / f64::from(entries))
}

/// Bytes that Redis has allocated, without the events: those are a fixed number.
pub(crate) async fn stored_memory(redis: &mut MultiplexedConnection) -> anyhow::Result<f64> {
    let events: Option<f64> = redis::cmd("MEMORY").arg("USAGE").arg("galley:events").query_async(redis).await?;
    Ok(used_memory(redis).await? - events.unwrap_or_default())
}
