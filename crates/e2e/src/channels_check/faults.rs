//! What breaks in a run, one thing after the other, in an order that follows from a seed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::sys::signal::Signal;
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use tokio::time::sleep;

use super::{LOOK_EVERY, Plan, readers::Reader, stage::Cast};
use crate::LIMIT;

/// Between two faults, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 200..1200;
/// How long something that was killed is away, in milliseconds.
const AWAY_MS: std::ops::Range<u64> = 20..400;
/// Of so many readers one loses its connection.
const CUT_ONE_OF: usize = 5;

/// What may break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A gateway is killed and another takes its place.
    KillGateway,
    /// A gateway is told to stop, and another takes its place.
    StopGateway,
    /// Redis is killed and comes back with what it had written down.
    KillRedis,
    /// Redis closes the connections on which gateways hear channels.
    CutSubscriptions,
    /// Redis closes all their other connections.
    CutCommands,
    /// Readers lose their connections.
    CutReaders,
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
        }
    }
}

/// Lets faults strike until the time is over and each has struck; how much each has hit.
pub(super) async fn strike(plan: &Plan, cast: &mut Cast, readers: &[Arc<Reader>]) -> anyhow::Result<Vec<(Fault, u64)>> {
    let mut random = StdRng::seed_from_u64(plan.seed);
    let until = Instant::now() + Duration::from_secs(plan.seconds.into());
    let mut hits: BTreeMap<Fault, u64> = Fault::ALL.into_iter().map(|fault| (fault, 0)).collect();
    let mut first = Fault::ALL.to_vec();
    first.shuffle(&mut random);
    while Instant::now() < until || !first.is_empty() {
        sleep(Duration::from_millis(random.random_range(PAUSE_MS))).await;
        let fault = first.pop().or_else(|| Fault::ALL.choose(&mut random).copied()).context("there are faults")?;
        *hits.entry(fault).or_default() += strike_once(fault, cast, readers, &mut random).await?;
    }
    Ok(hits.into_iter().collect())
}

async fn strike_once(
    fault: Fault,
    cast: &mut Cast,
    readers: &[Arc<Reader>],
    random: &mut StdRng,
) -> anyhow::Result<u64> {
    let index = random.random_range(0..cast.gateways());
    let away = Duration::from_millis(random.random_range(AWAY_MS));
    Ok(match fault {
        Fault::KillGateway => {
            cast.take_gateway(index).context("a gateway")?.kill();
            sleep(away).await;
            cast.start_gateway(index).await;
            1
        }
        Fault::StopGateway => {
            let gateway = cast.take_gateway(index).context("a gateway")?;
            gateway.signal(Signal::SIGTERM);
            gateway.terminate().await;
            cast.start_gateway(index).await;
            1
        }
        Fault::KillRedis => {
            cast.redis.kill();
            // Who comes back now finds gateways that can read nothing
            if random.random() {
                cut(readers, random);
            }
            sleep(away).await;
            tokio::task::block_in_place(|| cast.redis.start_again());
            1
        }
        Fault::CutSubscriptions => cut_by_redis(cast, "pubsub").await?,
        Fault::CutCommands => cut_by_redis(cast, "normal").await?,
        Fault::CutReaders => cut(readers, random),
    })
}

fn cut(readers: &[Arc<Reader>], random: &mut StdRng) -> u64 {
    let chosen = readers.choose_multiple(random, readers.len().div_ceil(CUT_ONE_OF));
    chosen.map(|reader| reader.cut()).count() as u64
}

/// Waits for something to cut: after the fault before, gateways may still be on their way back.
async fn cut_by_redis(cast: &Cast, kind: &str) -> anyhow::Result<u64> {
    let mut redis = cast.redis.connection().await;
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut command = redis::cmd("CLIENT");
        let cut: u64 = command.arg("KILL").arg("TYPE").arg(kind).query_async(&mut redis).await?;
        if cut > 0 || Instant::now() >= deadline {
            return Ok(cut);
        }
        sleep(LOOK_EVERY).await;
    }
}
