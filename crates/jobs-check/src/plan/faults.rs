//! The faults of a run, one after the other.

use rand::{Rng, rngs::StdRng, seq::SliceRandom};
use serde::{Deserialize, Serialize};
use testkit::RedisKind;

use super::{CheckLoad, JobsCheckOptions};

/// The lease of every job, in ms.
pub(crate) const LEASE_MS: u64 = 3000;
/// After the last fault, in ms.
pub(super) const QUIET_MS: u64 = 1000;
/// Before the first fault, in ms.
const FIRST_MS: u64 = 2000;
/// Between two faults, in ms.
const PAUSE_MS: std::ops::Range<u64> = 200..600;
/// The same, where it is measured how soon everything is as it was.
pub(super) const STEADY_PAUSE_MS: u64 = 9000;

/// Faults that are switched on together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultGroup {
    /// Processes of Galley's are killed, frozen and told to stop.
    Processes,
    /// Redis is killed, frozen and filled, loses its disk or what was not synced, forgets its scripts, cuts its connections,
    /// and its clock is set.
    Redis,
    /// What passes on a connection is disturbed.
    Links,
}

impl FaultGroup {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Processes, Self::Redis, Self::Links];
}

/// A way that can be disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckLink {
    /// From a queue-worker to Redis.
    WorkerToRedis,
    /// From a gateway to Redis.
    GatewayToRedis,
    /// From producers and pulling workers to a gateway.
    ClientsToGateway,
}

impl CheckLink {
    const ALL: [Self; 3] = [Self::WorkerToRedis, Self::GatewayToRedis, Self::ClientsToGateway];
}

/// What happens to what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkDisturbance {
    /// Everything comes 200 ms late.
    Delay,
    /// 10 kB per second.
    Bandwidth,
    /// A few bytes at a time.
    Slice,
    /// A command or request is carried out, and the connection ends instead of the reply.
    DropReply,
    /// The connection is reset in the middle of a reply.
    Reset,
    /// Nothing passes, and nobody learns why.
    BlackHole,
}

impl LinkDisturbance {
    const ALL: [Self; 6] = [Self::Delay, Self::Bandwidth, Self::Slice, Self::DropReply, Self::Reset, Self::BlackHole];
}

/// What may break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlannedFaultKind {
    /// SIGKILL, and another takes its place.
    KillWorker,
    /// SIGSTOP for longer than a lease, then SIGCONT.
    FreezeWorker,
    /// SIGTERM, and another takes its place.
    TerminateWorker,
    /// The same for a worker that pulls.
    KillPuller,
    /// The same.
    FreezePuller,
    /// The same.
    TerminatePuller,
    /// The same for a gateway.
    KillGateway,
    /// Shorter than a lease.
    FreezeGateway,
    /// The same.
    TerminateGateway,
    /// SIGKILL of a server that takes writes: it comes back with what it had written down, or its replica takes over.
    KillRedis,
    /// SIGSTOP of a server that takes writes for two leases, then SIGCONT; no replica takes over.
    FreezeRedis,
    /// SIGKILL, and it comes back with what it had synced to the disk, as after a power failure.
    LoseUnsynced,
    /// The disk is full: nothing can be written to the append-only file. It ends, and comes back when there is room.
    FillDisk,
    /// No memory is left for a while.
    FillRedis,
    /// Its clock is 30 s ahead from now on.
    ClockForward,
    /// Its clock is 30 s behind from now on.
    ClockBack,
    /// `CLIENT KILL`, a few times.
    CutConnections,
    /// `SCRIPT FLUSH`, a few times.
    FlushScripts,
    /// A link is disturbed.
    Link(CheckLink, LinkDisturbance),
}

impl PlannedFaultKind {
    const PROCESSES: [Self; 9] = [
        Self::KillWorker,
        Self::FreezeWorker,
        Self::TerminateWorker,
        Self::KillPuller,
        Self::FreezePuller,
        Self::TerminatePuller,
        Self::KillGateway,
        Self::FreezeGateway,
        Self::TerminateGateway,
    ];
    const REDIS: [Self; 9] = [
        Self::KillRedis,
        Self::LoseUnsynced,
        Self::FillDisk,
        Self::FreezeRedis,
        Self::FillRedis,
        Self::ClockForward,
        Self::ClockBack,
        Self::CutConnections,
        Self::FlushScripts,
    ];

    /// The faults of a group.
    #[must_use]
    pub fn of(group: FaultGroup) -> Vec<Self> {
        match group {
            FaultGroup::Processes => Self::PROCESSES.to_vec(),
            FaultGroup::Redis => Self::REDIS.to_vec(),
            FaultGroup::Links => {
                let all = CheckLink::ALL.into_iter();
                all.flat_map(|link| LinkDisturbance::ALL.map(|disturbance| Self::Link(link, disturbance))).collect()
            }
        }
    }

    /// Whether it can strike a Redis of that kind: a clock, a disk and a proxy are those of one server.
    #[must_use]
    pub fn can_strike(self, redis: RedisKind) -> bool {
        let needs_one_server = matches!(
            self,
            Self::LoseUnsynced
                | Self::FillDisk
                | Self::FillRedis
                | Self::ClockForward
                | Self::ClockBack
                | Self::Link(CheckLink::WorkerToRedis | CheckLink::GatewayToRedis, _)
        );
        redis == RedisKind::Server || !needs_one_server
    }

    /// Every fault.
    #[must_use]
    pub fn all() -> Vec<Self> {
        FaultGroup::ALL.into_iter().flat_map(Self::of).collect()
    }

    /// The fault of an option's value, such as `kill-worker` or `worker-to-redis.delay`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::all().into_iter().find(|kind| kind.option() == text)
    }

    /// What chooses it as an option.
    #[must_use]
    pub fn option(self) -> String {
        let text = |json: serde_json::Value| json.as_str().unwrap_or_default().to_owned();
        match self {
            Self::Link(link, disturbance) => {
                format!("{}.{}", text(serde_json::json!(link)), text(serde_json::json!(disturbance)))
            }
            kind => text(serde_json::json!(kind)),
        }
    }

    /// It in a few words.
    #[must_use]
    pub fn name(self) -> String {
        let text = match self {
            Self::KillWorker => "kill -9 of a queue-worker",
            Self::FreezeWorker => "freeze of a queue-worker",
            Self::TerminateWorker => "SIGTERM of a queue-worker",
            Self::KillPuller => "kill -9 of a pulling worker",
            Self::FreezePuller => "freeze of a pulling worker",
            Self::TerminatePuller => "SIGTERM of a pulling worker",
            Self::KillGateway => "kill -9 of a gateway",
            Self::FreezeGateway => "freeze of a gateway",
            Self::TerminateGateway => "SIGTERM of a gateway",
            Self::KillRedis => "kill -9 of Redis",
            Self::FreezeRedis => "freeze of Redis",
            Self::LoseUnsynced => "power failure of Redis",
            Self::FillDisk => "disk of Redis full",
            Self::FillRedis => "Redis without memory",
            Self::ClockForward => "clock 30 s ahead",
            Self::ClockBack => "clock 30 s behind",
            Self::CutConnections => "CLIENT KILL",
            Self::FlushScripts => "SCRIPT FLUSH",
            Self::Link(link, disturbance) => {
                let link = match link {
                    CheckLink::WorkerToRedis => "queue-worker to Redis",
                    CheckLink::GatewayToRedis => "gateway to Redis",
                    CheckLink::ClientsToGateway => "clients to gateway",
                };
                let what = match disturbance {
                    LinkDisturbance::Delay => "200 ms late",
                    LinkDisturbance::Bandwidth => "10 kB/s",
                    LinkDisturbance::Slice => "few bytes at a time",
                    LinkDisturbance::DropReply => "replies dropped",
                    LinkDisturbance::Reset => "reset in a reply",
                    LinkDisturbance::BlackHole => "black hole",
                };
                return format!("{link}: {what}");
            }
        };
        text.to_owned()
    }

    fn duration_ms(self) -> std::ops::Range<u64> {
        match self {
            Self::FreezeWorker | Self::FreezePuller => LEASE_MS + 500..LEASE_MS + 1500,
            Self::FreezeRedis => 2 * LEASE_MS..2 * LEASE_MS + 500,
            Self::FreezeGateway | Self::FillRedis | Self::FillDisk => 800..1200,
            Self::KillWorker | Self::KillPuller | Self::KillGateway | Self::KillRedis | Self::LoseUnsynced => 50..400,
            Self::TerminateWorker | Self::TerminatePuller | Self::TerminateGateway => 50..100,
            Self::ClockForward | Self::ClockBack => 300..500,
            Self::CutConnections | Self::FlushScripts => 800..1200,
            Self::Link(CheckLink::WorkerToRedis, LinkDisturbance::BlackHole) => LEASE_MS + 500..LEASE_MS + 1000,
            Self::Link(..) => 800..1500,
        }
    }
}

/// A fault and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFault {
    /// When it begins, in ms from the start; later if the one before took longer.
    pub at_ms: u64,
    /// How long it lasts. Processes take longer to come back.
    pub duration_ms: u64,
    /// What breaks.
    pub kind: PlannedFaultKind,
    /// Which of the processes or links of that kind, by this number modulo how many there are.
    pub target: usize,
}

/// Each fault as often as is asked for, in any order, then any of them until the time is over.
pub(super) fn plan_faults(random: &mut StdRng, options: &JobsCheckOptions) -> Vec<PlannedFault> {
    let all: Vec<_> = options.faults.iter().copied().filter(|fault| fault.can_strike(options.redis)).collect();
    let count = all.len() * usize::try_from(options.times).unwrap_or(1);
    let (mut planned, mut now) =
        (Vec::new(), if options.load == CheckLoad::Steady { STEADY_PAUSE_MS } else { FIRST_MS });
    while !all.is_empty() {
        let mut round = all.clone();
        round.shuffle(random);
        for kind in round {
            let duration_ms = random.random_range(kind.duration_ms());
            let end = now + duration_ms + QUIET_MS;
            if planned.len() >= count && end > u64::from(options.seconds) * 1000 {
                return planned;
            }
            planned.push(PlannedFault { at_ms: now, duration_ms, kind, target: random.random_range(0..12) });
            let pause_ms = match options.load {
                CheckLoad::Mixed => random.random_range(PAUSE_MS),
                CheckLoad::Steady => STEADY_PAUSE_MS,
            };
            now += duration_ms + pause_ms;
        }
    }
    planned
}
