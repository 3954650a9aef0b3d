//! Lets the planned faults strike, and writes down what they hit and when.

use std::{path::Path, time::Duration};

use anyhow::Context;
use nix::sys::signal::Signal;
use testkit::{RedisDeployment, RedisServer, ServiceProcess, redis};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    cluster::{CheckedService, JobsCluster},
    fault_proxy::FaultProxy,
    history::{HistoryEvent, HistoryWriter, now_ms},
    plan::{CheckLink, JobsPlan, LEASE_MS, LinkDisturbance, PlannedFault, PlannedFaultKind},
};

/// How far the clock steps.
const CLOCK_STEP: Duration = Duration::from_secs(30);
/// Between two strikes of what strikes a few times.
const STRIKE_INTERVAL: Duration = Duration::from_millis(100);
/// A fault that has hit nothing yet goes on for so long.
const MAX_EXTENSION: Duration = Duration::from_secs(4);

/// What a fault did.
struct StrikeOutcome {
    target: String,
    from: u64,
    to: u64,
    hits: u64,
}

/// Lets all faults strike, one after the other.
pub(crate) async fn strike_all(
    plan: &JobsPlan,
    cluster: &mut JobsCluster,
    folder: &Path,
    start: Instant,
) -> anyhow::Result<()> {
    let writer = HistoryWriter::open(folder, "nemesis")?;
    for (fault, planned) in plan.faults.iter().enumerate() {
        sleep_until(start + Duration::from_millis(planned.at_ms)).await;
        let hit = strike(planned, cluster).await.with_context(|| planned.kind.name())?;
        let StrikeOutcome { target, from, to, hits } = hit;
        writer.append(HistoryEvent::Struck { fault, target, from, to, hits });
    }
    // A job that was scheduled while the clock was ahead is not waited for. Two opposite steps at once may let a job of a
    // queue-worker run again, which no rule explains: the last one is noticed before this one comes
    sleep(Duration::from_millis(LEASE_MS)).await;
    if let Some(server) = cluster.redis.server() {
        server.clock().set_ahead(CLOCK_STEP);
    }
    Ok(())
}

async fn strike(planned: &PlannedFault, cluster: &mut JobsCluster) -> anyhow::Result<StrikeOutcome> {
    use PlannedFaultKind as Kind;
    let duration = Duration::from_millis(planned.duration_ms);
    let from = now_ms();
    let number = |count: usize| planned.target % count;
    let (target, to, hits) = match planned.kind {
        Kind::KillWorker | Kind::FreezeWorker | Kind::TerminateWorker => {
            let number = number(cluster.workers.len());
            let to = strike_process(planned.kind, &mut cluster.workers[number], duration).await?;
            if cluster.workers[number].process.is_none() {
                sleep(duration).await;
                cluster.start_worker(number).await;
            }
            (cluster.workers[number].name.clone(), to, 1)
        }
        Kind::KillGateway | Kind::FreezeGateway | Kind::TerminateGateway => {
            let number = number(cluster.gateways.len());
            strike_process(planned.kind, &mut cluster.gateways[number], duration).await?;
            if cluster.gateways[number].process.is_none() {
                sleep(duration).await;
                cluster.start_gateway(number).await;
            }
            // It is away until another has its place
            (cluster.gateways[number].name.clone(), now_ms(), 1)
        }
        Kind::KillPuller | Kind::FreezePuller | Kind::TerminatePuller => {
            let number = number(cluster.pullers.len());
            let to = strike_puller(planned.kind, cluster, number, duration).await?;
            (cluster.pullers[number].name.clone(), to, 1)
        }
        Kind::Link(link, disturbance) => {
            let service = match link {
                CheckLink::WorkerToRedis => &cluster.workers[number(cluster.workers.len())],
                CheckLink::GatewayToRedis | CheckLink::ClientsToGateway => {
                    &cluster.gateways[number(cluster.gateways.len())]
                }
            };
            let to_redis = || service.to_redis.as_ref().context("one server, to which links lead");
            let proxy = if link == CheckLink::ClientsToGateway { &service.from_clients } else { to_redis()? };
            let hits = disturb(proxy, disturbance, duration).await;
            (service.name.clone(), now_ms(), hits)
        }
        _ => {
            let hits = strike_redis(planned, cluster, duration).await?;
            ("redis".to_owned(), now_ms(), hits)
        }
    };
    Ok(StrikeOutcome { target, from, to, hits })
}

/// Until when; a process that has ended is taken away.
async fn strike_process(
    kind: PlannedFaultKind,
    service: &mut CheckedService,
    duration: Duration,
) -> anyhow::Result<u64> {
    match kind {
        PlannedFaultKind::FreezeWorker | PlannedFaultKind::FreezeGateway => {
            let process = service.process.as_ref().context("it runs")?;
            process.signal(Signal::SIGSTOP);
            sleep(duration).await;
            process.signal(Signal::SIGCONT);
        }
        PlannedFaultKind::KillWorker | PlannedFaultKind::KillGateway => {
            let process = service.process.take().context("it runs")?;
            tokio::task::block_in_place(|| ServiceProcess::kill(process));
        }
        _ => {
            service.process.take().context("it runs")?.terminate().await;
        }
    }
    Ok(now_ms())
}

async fn strike_puller(
    kind: PlannedFaultKind,
    cluster: &mut JobsCluster,
    number: usize,
    duration: Duration,
) -> anyhow::Result<u64> {
    let puller = &mut cluster.pullers[number];
    if kind == PlannedFaultKind::FreezePuller {
        puller.signal(Signal::SIGSTOP)?;
        sleep(duration).await;
        puller.signal(Signal::SIGCONT)?;
        return Ok(now_ms());
    }
    let signal = if kind == PlannedFaultKind::KillPuller { Signal::SIGKILL } else { Signal::SIGTERM };
    puller.signal(signal)?;
    puller.wait()?;
    let to = now_ms();
    sleep(duration).await;
    cluster.start_puller(number)?;
    Ok(to)
}

async fn disturb(proxy: &FaultProxy, disturbance: LinkDisturbance, duration: Duration) -> u64 {
    proxy.disturb(disturbance);
    sleep(duration).await;
    let deadline = Instant::now() + MAX_EXTENSION;
    while proxy.hits() == 0 && Instant::now() < deadline {
        sleep(STRIKE_INTERVAL).await;
    }
    proxy.heal()
}

async fn strike_redis(planned: &PlannedFault, cluster: &mut JobsCluster, duration: Duration) -> anyhow::Result<u64> {
    let redis = &mut cluster.redis;
    match planned.kind {
        PlannedFaultKind::KillRedis => redis.kill_primary(planned.target, duration, || {}).await,
        PlannedFaultKind::FreezeRedis => redis.freeze_primary(planned.target, duration).await,
        PlannedFaultKind::CutConnections | PlannedFaultKind::FlushScripts => {
            return strike_connections(planned.kind, redis, duration).await;
        }
        kind => return strike_server(kind, redis.server().context("one server")?, duration).await,
    }
    Ok(1)
}

/// What can be done to one server only.
async fn strike_server(kind: PlannedFaultKind, redis: &mut RedisServer, duration: Duration) -> anyhow::Result<u64> {
    match kind {
        PlannedFaultKind::LoseUnsynced => {
            redis.kill_and_lose_unsynced();
            sleep(duration).await;
            tokio::task::block_in_place(|| redis.restart());
        }
        PlannedFaultKind::FillDisk => return fill_disk(redis, duration).await,
        PlannedFaultKind::ClockForward | PlannedFaultKind::ClockBack => {
            if kind == PlannedFaultKind::ClockForward {
                redis.clock().set_ahead(CLOCK_STEP);
            } else {
                redis.clock().set_behind(CLOCK_STEP);
            }
            sleep(duration).await;
        }
        _ => return fill_memory(redis, duration).await,
    }
    Ok(1)
}

/// A Redis that syncs before it answers ends when it cannot write; its supervisor starts it again when there is room.
async fn fill_disk(redis: &mut RedisServer, duration: Duration) -> anyhow::Result<u64> {
    redis.disk().set_full(true);
    sleep(duration).await;
    let deadline = Instant::now() + MAX_EXTENSION;
    while !redis.has_ended() && Instant::now() < deadline {
        sleep(STRIKE_INTERVAL).await;
    }
    let has_ended = redis.has_ended();
    redis.disk().set_full(false);
    if has_ended {
        tokio::task::block_in_place(|| redis.restart());
    }
    Ok(has_ended.into())
}

async fn fill_memory(redis: &RedisServer, duration: Duration) -> anyhow::Result<u64> {
    let refused = count_errors(&[redis.ask(&error_statistics()).await], "OOM")?;
    redis.ask::<()>(&max_memory(1)).await;
    sleep(duration).await;
    let (mut hits, extended) = (0, Instant::now() + MAX_EXTENSION);
    while hits == 0 && Instant::now() < extended {
        hits = count_errors(&[redis.ask(&error_statistics()).await], "OOM")? - refused;
        sleep(STRIKE_INTERVAL).await;
    }
    redis.ask::<()>(&max_memory(0)).await;
    Ok(hits)
}

/// Cuts all connections to the servers that take writes a few times, or lets them forget all scripts.
async fn strike_connections(
    kind: PlannedFaultKind,
    redis: &RedisDeployment,
    duration: Duration,
) -> anyhow::Result<u64> {
    let deadline = Instant::now() + duration;
    let mut hits = 0;
    if kind == PlannedFaultKind::CutConnections {
        while Instant::now() < deadline || hits == 0 && Instant::now() < deadline + MAX_EXTENSION {
            for kind in ["normal", "pubsub"] {
                let mut command = redis::cmd("CLIENT");
                command.arg("KILL").arg("TYPE").arg(kind).arg("SKIPME").arg("yes");
                hits += redis.ask_primaries::<u64>(&command).await.iter().sum::<u64>();
            }
            sleep(STRIKE_INTERVAL).await;
        }
        return Ok(hits);
    }
    let unknown = count_errors(&redis.ask_primaries(&error_statistics()).await, "NOSCRIPT")?;
    let mut flush = redis::cmd("SCRIPT");
    flush.arg("FLUSH");
    while Instant::now() < deadline {
        redis.ask_primaries::<()>(&flush).await;
        sleep(STRIKE_INTERVAL).await;
    }
    Ok(count_errors(&redis.ask_primaries(&error_statistics()).await, "NOSCRIPT")? - unknown)
}

fn max_memory(bytes: u64) -> redis::Cmd {
    let mut command = redis::cmd("CONFIG");
    command.arg("SET").arg("maxmemory").arg(bytes);
    command
}

fn error_statistics() -> redis::Cmd {
    let mut command = redis::cmd("INFO");
    command.arg("errorstats");
    command
}

/// Errors of a kind that servers have answered with so far.
fn count_errors(statistics: &[String], code: &str) -> anyhow::Result<u64> {
    let mut sum = 0;
    for info in statistics {
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("errorstat_{code}:count=")));
        sum += line.map_or(Ok(0), |count| count.trim().parse::<u64>())?;
    }
    Ok(sum)
}
