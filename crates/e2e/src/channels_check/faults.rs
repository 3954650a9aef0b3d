//! What breaks in a run, one thing after the other, in an order that follows from a seed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use testkit::redis;

use anyhow::Context;
use nix::sys::signal::Signal;
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use tokio::time::sleep;

use super::{CheckPlan, POLL_INTERVAL, cluster::CheckCluster, readers::CheckedReader};
use testkit::TEST_TIMEOUT;

/// Between two faults, in milliseconds.
const FAULT_INTERVAL_MS: std::ops::Range<u64> = 200..1200;
/// How long something that was killed is away, in milliseconds.
const DOWNTIME_MS: std::ops::Range<u64> = 20..400;
/// Of that many readers one loses its connection.
const CUT_READERS_ONE_IN: usize = 5;

/// Something that broke.
#[derive(Debug, Clone, Copy)]
pub struct FaultWindow {
    /// What.
    pub fault: Fault,
    /// The worker, if it was one.
    pub worker: Option<usize>,
    /// From when.
    pub from: Instant,
    /// Until when.
    pub to: Instant,
}

/// What may break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A gateway is killed and another takes its place.
    KillGateway,
    /// A gateway is told to stop, and another takes its place.
    StopGateway,
    /// A Redis that takes writes is killed, and it or its replica goes on with what it had acknowledged.
    KillRedis,
    /// Redis closes the connections on which gateways hear channels.
    CutSubscriptions,
    /// Redis closes all their other connections.
    CutCommands,
    /// Readers lose their connections.
    CutReaders,
    /// A pubsub-worker is killed and comes back under its name.
    KillWorker,
    /// A pubsub-worker is told to stop, and comes back under its name.
    StopWorker,
}

impl Fault {
    const ALL: [Self; 6] = [
        Self::KillGateway,
        Self::StopGateway,
        Self::KillRedis,
        Self::CutSubscriptions,
        Self::CutCommands,
        Self::CutReaders,
    ];
    /// These are the first to strike: others take over long after.
    const WORKER_FAULTS: [Self; 2] = [Self::KillWorker, Self::StopWorker];

    /// Whether a message that was delivered may come again after it: that it was delivered could not be noted.
    pub(super) fn causes_redelivery(self) -> bool {
        matches!(self, Self::KillWorker | Self::StopWorker | Self::KillRedis | Self::CutCommands)
    }

    /// It in words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KillGateway => "gateways killed",
            Self::StopGateway => "gateways told to stop",
            Self::KillRedis => "kills of Redis",
            Self::CutSubscriptions => "subscriptions cut by Redis",
            Self::CutCommands => "other connections cut by Redis",
            Self::CutReaders => "connections of readers cut",
            Self::KillWorker => "pubsub-workers killed",
            Self::StopWorker => "pubsub-workers told to stop",
        }
    }
}

/// What struck.
#[derive(Default)]
pub(super) struct FaultLog {
    /// How much each fault has hit.
    pub(super) hits: BTreeMap<Fault, u64>,
    /// What struck when, one after the other.
    pub(super) windows: Vec<FaultWindow>,
}

/// What a fault has hit.
struct FaultHit {
    count: u64,
    /// The worker, if it was one.
    worker: Option<usize>,
}

impl FaultHit {
    fn without_worker(count: u64) -> Self {
        Self { count, worker: None }
    }
}

/// Lets faults strike until the time is over and each has struck.
pub(super) async fn inject_faults(
    plan: &CheckPlan,
    cast: &mut CheckCluster,
    readers: &[Arc<CheckedReader>],
) -> anyhow::Result<FaultLog> {
    let mut random = StdRng::seed_from_u64(plan.seed);
    let until = Instant::now() + Duration::from_secs(plan.seconds.into());
    let mut first = Fault::ALL.to_vec();
    first.shuffle(&mut random);
    if plan.workers > 0 {
        first.extend(Fault::WORKER_FAULTS);
    }
    let all = first.clone();
    let mut struck = FaultLog { hits: all.iter().map(|fault| (*fault, 0)).collect(), ..FaultLog::default() };
    while Instant::now() < until || !first.is_empty() {
        sleep(Duration::from_millis(random.random_range(FAULT_INTERVAL_MS))).await;
        let fault = first.pop().or_else(|| all.choose(&mut random).copied()).context("there are faults")?;
        let from = Instant::now();
        let hit = inject_fault(fault, cast, readers, &mut random).await?;
        *struck.hits.entry(fault).or_default() += hit.count;
        struck.windows.push(FaultWindow { fault, worker: hit.worker, from, to: Instant::now() });
    }
    Ok(struck)
}

async fn inject_fault(
    fault: Fault,
    cast: &mut CheckCluster,
    readers: &[Arc<CheckedReader>],
    random: &mut StdRng,
) -> anyhow::Result<FaultHit> {
    let away = Duration::from_millis(random.random_range(DOWNTIME_MS));
    Ok(match fault {
        Fault::KillGateway | Fault::StopGateway => {
            let index = random.random_range(0..cast.gateway_count());
            let gateway = cast.take_gateway(index).context("a gateway")?;
            if fault == Fault::KillGateway {
                gateway.kill();
                sleep(away).await;
            } else {
                // Twice: it does not wait for its readers
                gateway.signal(Signal::SIGTERM);
                gateway.terminate().await;
            }
            cast.start_gateway(index).await;
            FaultHit::without_worker(1)
        }
        Fault::KillWorker | Fault::StopWorker => {
            let index = random.random_range(0..cast.worker_count());
            let worker = cast.take_worker(index).context("a worker")?;
            if fault == Fault::KillWorker {
                worker.kill();
                sleep(away).await;
            } else {
                worker.terminate().await;
            }
            cast.start_worker(index).await;
            FaultHit { count: 1, worker: Some(index) }
        }
        Fault::KillRedis => {
            let number = random.random_range(0..1 << 20);
            let readers_leave = random.random();
            cast.redis
                .kill_primary(number, away, || {
                    // Who comes back now finds gateways that can read nothing
                    if readers_leave {
                        disconnect_readers(readers, random);
                    }
                })
                .await;
            FaultHit::without_worker(1)
        }
        Fault::CutSubscriptions => FaultHit::without_worker(kill_redis_clients(cast, "pubsub").await),
        Fault::CutCommands => FaultHit::without_worker(kill_redis_clients(cast, "normal").await),
        Fault::CutReaders => FaultHit::without_worker(disconnect_readers(readers, random)),
    })
}

fn disconnect_readers(readers: &[Arc<CheckedReader>], random: &mut StdRng) -> u64 {
    let chosen = readers.choose_multiple(random, readers.len().div_ceil(CUT_READERS_ONE_IN));
    chosen.map(|reader| reader.disconnect()).count() as u64
}

/// Waits for something to cut: after the fault before, gateways may still be on their way back.
async fn kill_redis_clients(cast: &CheckCluster, kind: &str) -> u64 {
    let mut command = redis::cmd("CLIENT");
    command.arg("KILL").arg("TYPE").arg(kind);
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let cut = cast.redis.ask_primaries::<u64>(&command).await.iter().sum();
        if cut > 0 || Instant::now() >= deadline {
            return cut;
        }
        sleep(POLL_INTERVAL).await;
    }
}
