//! A Redis as services may have it: one server, a primary and its replica behind sentinels, or a cluster.

use std::{fmt, str::FromStr, time::Duration};

use redis::{Cmd, FromRedisValue, InfoDict, aio::MultiplexedConnection};
use tokio::{task::block_in_place, time::sleep};

use crate::{ClusterProcesses, RedisServer, SentinelSet, eventually, sentinel_set::NEVER_DOWN};

/// Longer than any test: a primary that is killed takes no more writes until then.
const PAUSE_MS: u64 = 600_000;
/// After how long without an answer a primary that was killed counts as down.
const SOON_DOWN: Duration = Duration::from_secs(1);

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisKind {
    /// One server.
    Server,
    /// A primary, its replica and three sentinels.
    Sentinels,
    /// Three primaries and a replica of each.
    Cluster,
}

impl FromStr for RedisKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "server" => Ok(Self::Server),
            "sentinels" => Ok(Self::Sentinels),
            "cluster" => Ok(Self::Cluster),
            _ => Err("must be server, sentinels or cluster".to_owned()),
        }
    }
}

impl fmt::Display for RedisKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Sentinels => "sentinels",
            Self::Cluster => "cluster",
        })
    }
}

/// The running servers.
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
pub enum RedisDeployment {
    /// One server.
    Server(RedisServer),
    /// A primary, its replica and three sentinels.
    Sentinels(SentinelSet),
    /// Three primaries and a replica of each.
    Cluster(ClusterProcesses),
}

impl RedisDeployment {
    /// Starts one; `server` makes the one server. Replicas keep nothing on disk.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start(kind: RedisKind, server: impl FnOnce() -> RedisServer) -> Self {
        match kind {
            RedisKind::Server => Self::Server(block_in_place(server)),
            RedisKind::Sentinels => Self::Sentinels(SentinelSet::start().await),
            RedisKind::Cluster => {
                let options = ["--cluster-require-full-coverage", "no"];
                Self::Cluster(ClusterProcesses::start_with_options(&options).await)
            }
        }
    }

    /// What `redis.url` must be.
    #[must_use]
    pub fn url(&self) -> String {
        match self {
            Self::Server(server) => server.url(),
            Self::Sentinels(set) => set.sentinels.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    /// The one server, if there is only one.
    pub fn server(&mut self) -> Option<&mut RedisServer> {
        if let Self::Server(server) = self { Some(server) } else { None }
    }

    /// The URL of each server that takes writes.
    pub async fn primary_urls(&self) -> Vec<String> {
        match self {
            Self::Server(server) => vec![server.url()],
            Self::Sentinels(set) => vec![set.primary.url()],
            Self::Cluster(cluster) => {
                let primaries = cluster.primaries().await;
                primaries.into_iter().map(|node| format!("redis://127.0.0.1:{}", cluster.port(node))).collect()
            }
        }
    }

    /// A connection to each server that takes writes.
    ///
    /// # Panics
    /// One does not run.
    pub async fn connections(&self) -> Vec<MultiplexedConnection> {
        match self {
            Self::Server(server) => vec![server.connection().await],
            Self::Sentinels(set) => vec![set.primary.connection().await],
            Self::Cluster(cluster) => {
                let mut connections = Vec::new();
                for primary in cluster.primaries().await {
                    connections.push(cluster.connection(primary).await);
                }
                connections
            }
        }
    }

    /// What each server that takes writes answers to a command that may be sent twice.
    ///
    /// # Panics
    /// One does not run, or refuses the command.
    pub async fn ask_primaries<T: FromRedisValue>(&self, command: &Cmd) -> Vec<T> {
        match self {
            Self::Server(server) => vec![server.ask(command).await],
            Self::Sentinels(set) => vec![set.primary.ask(command).await],
            Self::Cluster(cluster) => {
                cluster.ask_primaries(command).await.into_iter().map(|(_, answer)| answer).collect()
            }
        }
    }

    /// Kills a server that takes writes, of several the one of that number modulo how many there are. One server comes back
    /// after that time with what it had written down. Otherwise the replica has everything by then, takes over at once, and
    /// the server comes back as its replica: what replicas may lack is another matter. `when_killed` is called while no server
    /// has its part.
    ///
    /// # Panics
    /// A server does not start, or no replica takes over.
    pub async fn kill_primary(&mut self, number: usize, away: Duration, when_killed: impl FnOnce()) {
        match self {
            Self::Server(server) => {
                server.kill();
                when_killed();
                sleep(away).await;
                block_in_place(|| server.restart());
            }
            Self::Sentinels(set) => set.replace_primary(away, when_killed).await,
            Self::Cluster(cluster) => {
                let primaries = cluster.primaries().await;
                cluster.replace_primary(primaries[number % primaries.len()], away, when_killed).await;
            }
        }
    }

    /// Stops a server that takes writes in its tracks for that time. No replica takes over.
    ///
    /// # Panics
    /// It does not run.
    pub async fn freeze_primary(&self, number: usize, duration: Duration) {
        match self {
            Self::Server(server) => {
                server.freeze();
                sleep(duration).await;
                server.thaw();
            }
            Self::Sentinels(set) => {
                set.primary.freeze();
                sleep(duration).await;
                set.primary.thaw();
            }
            Self::Cluster(cluster) => {
                let primaries = cluster.primaries().await;
                let frozen = primaries[number % primaries.len()];
                cluster.freeze(frozen);
                sleep(duration).await;
                cluster.thaw(frozen);
            }
        }
    }
}

impl SentinelSet {
    async fn replace_primary(&mut self, away: Duration, when_killed: impl FnOnce()) {
        self.primary.ask::<()>(&pause_writes()).await;
        let written = self.primary.ask(&replication()).await;
        wait_until_replicated(&written, async || self.replica.ask(&replication()).await).await;
        self.primary.kill();
        when_killed();
        self.sentinels.set_down_after(SOON_DOWN).await;
        self.sentinels.wait_until_primary_is(&self.replica).await;
        self.sentinels.set_down_after(NEVER_DOWN).await;
        sleep(away).await;
        std::mem::swap(&mut self.primary, &mut self.replica);
        let primary = self.primary.port();
        block_in_place(|| self.replica.restart_as_replica_of(primary));
        eventually("the replica follows", || async {
            let info: InfoDict = self.replica.ask(&replication()).await;
            (info.get::<String>("master_link_status")? == "up").then_some(())
        })
        .await;
    }
}

impl ClusterProcesses {
    async fn replace_primary(&mut self, primary: usize, away: Duration, when_killed: impl FnOnce()) {
        let replica = self.replica_of(primary).await;
        self.ask::<()>(primary, &pause_writes()).await;
        let written = self.ask(primary, &replication()).await;
        wait_until_replicated(&written, async || self.ask(replica, &replication()).await).await;
        self.kill(primary);
        when_killed();
        self.promote(replica).await;
        self.wait_until_promoted(replica).await;
        sleep(away).await;
        block_in_place(|| self.restart(primary));
        self.wait_until_complete().await;
    }
}

/// Lets a primary take no more writes: its replica then gets all there are.
fn pause_writes() -> Cmd {
    let mut command = redis::cmd("CLIENT");
    command.arg("PAUSE").arg(PAUSE_MS).arg("WRITE");
    command
}

fn replication() -> Cmd {
    let mut command = redis::cmd("INFO");
    command.arg("replication");
    command
}

/// Waits until a replica has everything that its primary had when it was asked.
async fn wait_until_replicated(written: &InfoDict, ask_replica: impl AsyncFn() -> InfoDict) {
    let written: Option<u64> = written.get("master_repl_offset");
    eventually("the replica has everything", || async {
        (ask_replica().await.get("slave_repl_offset") >= written).then_some(())
    })
    .await;
}
