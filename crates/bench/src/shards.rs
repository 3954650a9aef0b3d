//! The same load on one server, and on clusters of one, two and four primaries: what a job costs Redis, and how evenly the
//! primaries share it.

use std::time::{Duration, Instant};

use anyhow::ensure;
use store::keys::QueueKeys;
use testkit::{
    ClusterProcesses, RedisDeployment, RedisServer, ServiceProcess,
    http::HttpConnection,
    redis::{AsyncCommands, aio::MultiplexedConnection},
};
use tokio::time::sleep;

use crate::{
    galley::{BenchDurability, MEASURE_TIMEOUT, batch_body, noop_job, redis_process_id},
    machine::scheduler_times_ms,
    numbers::count_as_f64,
    report::{BenchReport, median},
    scope::BenchScope,
};

/// Queues, whose names decide on the primary.
const QUEUES: u32 = 64;
const JOBS: u32 = 64_000;
const BATCH_SIZE: u32 = 100;
/// Numbers of primaries.
const CLUSTERS: [usize; 3] = [1, 2, 4];
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What a run cost each primary, in us for each job of all.
type CostOfPrimaries = Vec<f64>;

pub(crate) async fn run(durability: BenchDurability, scope: BenchScope) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("shards");
    let (jobs, rounds) = (scope.of(JOBS) / QUEUES, scope.rounds());
    report.add_note(format!(
        "{} no-op jobs in {QUEUES} queues, in batches of {BATCH_SIZE} over HTTP, and one queue-worker; medians of {rounds} \
         rounds; the clusters have no replicas and keep nothing on disk",
        jobs * QUEUES,
    ));
    let mut alone = Vec::new();
    for _ in 0..rounds {
        let server = RedisDeployment::Server(RedisServer::start_with(durability.persistence()));
        alone.push(measure(&server, jobs).await?.iter().sum::<f64>());
    }
    let alone = median(alone);
    report.add_figure("one server: processor time of a job in Redis", alone, "us");
    for primaries in CLUSTERS {
        let (mut costs, mut shares) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let cluster = RedisDeployment::Cluster(ClusterProcesses::start_without_replicas(primaries).await);
            let of_each = measure(&cluster, jobs).await?;
            let sum: f64 = of_each.iter().sum();
            let even = sum / count_as_f64(primaries as u64);
            costs.push(sum);
            shares.push(of_each.into_iter().fold(0.0, f64::max) / even);
        }
        let cost = median(costs);
        report.add_figure(format!("{primaries} primaries: processor time of a job in Redis"), cost, "us");
        report.add_with_goal(format!("{primaries} primaries: that, beside one server"), cost / alone, "", "<= 1.15");
        if primaries > 1 {
            let what = format!("{primaries} primaries: the busiest, beside an even share");
            report.add_with_goal(what, median(shares), "", "<= 1.2");
        }
    }
    Ok(report)
}

/// Stores and processes that many jobs of each queue.
async fn measure(redis: &RedisDeployment, jobs: u32) -> anyhow::Result<CostOfPrimaries> {
    let url = redis.url();
    let queues: Vec<String> = (0..QUEUES).map(|number| format!("shard-{number}")).collect();
    let gateway = ServiceProcess::start_with_redis_url("gateway", &url, &[]).await;
    gateway.wait_until_ready().await;
    let mut primaries = redis.connections().await;
    let mut processes = Vec::new();
    for primary in &mut primaries {
        processes.push(redis_process_id(primary).await?);
    }
    // Scripts, connections and buffers are there
    enqueue(&gateway, &queues, BATCH_SIZE).await?;
    let before: Vec<f64> = processes.iter().map(|process| scheduler_times_ms(*process).0).collect();
    enqueue(&gateway, &queues, jobs).await?;
    let variables = [("GALLEY__QUEUE_WORKER__QUEUES", &*queues.join(",")), ("GALLEY__BRIDGE__LIST", "")];
    let worker = ServiceProcess::start_with_redis_url("queue-worker", &url, &variables).await;
    wait_until_completed(&mut primaries, &queues, u64::from(jobs + BATCH_SIZE)).await?;
    let after = processes.iter().map(|process| scheduler_times_ms(*process).0);
    drop((worker, gateway));
    Ok(after.zip(before).map(|(after, before)| (after - before) * 1000.0 / f64::from(jobs * QUEUES)).collect())
}

async fn enqueue(gateway: &ServiceProcess, queues: &[String], jobs: u32) -> anyhow::Result<()> {
    let mut connection = HttpConnection::open(gateway.address()).await?;
    for queue in queues {
        let batch = batch_body(&vec![noop_job(queue); BATCH_SIZE as usize]);
        for _ in 0..jobs / BATCH_SIZE {
            connection.post("/ojs/v1/jobs/batch", &batch).await?;
        }
    }
    Ok(())
}

/// A node refuses to say anything of the queues of others.
async fn wait_until_completed(
    primaries: &mut [MultiplexedConnection],
    queues: &[String],
    jobs: u64,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + MEASURE_TIMEOUT;
    for queue in queues {
        let stats = QueueKeys::new(&queue.parse()?).stats();
        'queue: loop {
            for primary in &mut *primaries {
                let completed: Option<u64> = primary.hget(&stats, "completed").await.unwrap_or_default();
                if completed.is_some_and(|completed| completed >= jobs) {
                    break 'queue;
                }
            }
            ensure!(Instant::now() < deadline, "the jobs of {queue} are not completed");
            sleep(LOOK_INTERVAL).await;
        }
    }
    Ok(())
}
