//! Confirms that what was written has reached what `durability` asks for: replicas, the disk.
//!
//! `WAIT` blocks its connection, and is about the last write of that connection. So one connection of a process does nothing
//! else: it writes a key of its own and waits until that has arrived. Replication and the append-only file keep the order of
//! writes, so everything that Redis acknowledged before has arrived too. Requests that ask meanwhile share the next round.
//!
//! This holds only if a round asks the server that acknowledged the write. So a request notes the generation of the shared
//! connection before it writes, and a round counts for that generation only: one write through each connection shows that
//! both lead to one server. Threads that serve requests have no connections of their own then.
//!
//! With a cluster each primary is asked that answered this process since the request noted it, unless to commands that write
//! nothing: those are the primaries that the request wrote to, and perhaps some to which others did. One that is away has
//! acknowledged nothing, so it does not stop what others confirm.

mod rounds;
mod writes;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use common::settings::DurabilitySettings;
use futures_util::future::join_all;
use uuid::Uuid;

use self::rounds::ServerConfirmer;
use super::{
    access::{WAIT, WAIT_FOR_DISK},
    client::Redis,
    server::{ServerDurability, ServerError},
};

const NO_FILE: &str = "durability.fsync needs an append-only file: set `appendonly yes` and `appendfsync everysec` or `always` there, or unset it";

/// Confirms writes. Cheap to clone.
#[derive(Clone)]
pub struct Confirmer(Option<Arc<Confirming>>);

struct Confirming {
    redis: Redis,
    wanted: DurabilitySettings,
    process: Uuid,
    /// One for each server that was asked.
    servers: Mutex<Vec<ServerConfirmer>>,
}

/// The servers and connections to which a write may go.
pub struct WriteMark(Vec<ServerMark>);

struct ServerMark {
    server: Redis,
    /// Of the connection that takes the next command.
    generation: u64,
    /// How often the server had answered what may have written to it.
    writes: u64,
}

/// What a confirmer asks for, and what became of the last round.
#[derive(Debug, Clone)]
pub struct ConfirmationState {
    /// What is asked for.
    pub wanted: DurabilitySettings,
    /// Whether the last round confirmed, of a cluster the last one at each node; none before the first.
    pub last_confirmed: Option<bool>,
}

impl Confirmer {
    /// Confirms what the settings ask for; nothing, and at no cost, if Redis's own answer is enough.
    #[must_use]
    pub fn new(redis: &Redis, wanted: &DurabilitySettings) -> Self {
        Self(wanted.asks_for_more().then(|| {
            let (redis, wanted) = (redis.clone(), wanted.clone());
            Arc::new(Confirming { redis, wanted, process: Uuid::new_v4(), servers: Mutex::default() })
        }))
    }

    /// Whether there is anything to confirm.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What is asked for, if anything is.
    #[must_use]
    pub fn state(&self) -> Option<ConfirmationState> {
        let confirming = self.0.as_ref()?;
        let servers = confirming.servers.lock().unwrap_or_else(PoisonError::into_inner);
        // Of several, one that does not confirm counts
        let last_confirmed = servers.iter().filter_map(ServerConfirmer::last).min();
        Some(ConfirmationState { wanted: confirming.wanted.clone(), last_confirmed })
    }

    /// Checks when a process starts that each server has an append-only file, if writes must be on disk. An unavailable one may
    /// come later.
    ///
    /// # Errors
    /// The server or the setting must be changed first; the error says how.
    pub async fn check_at_start(&self) -> Result<(), ServerError> {
        let Some(confirming) = &self.0 else { return Ok(()) };
        match confirming.redis.check_server().await {
            Ok(server) if confirming.wanted.fsync && server.durability == ServerDurability::Memory => {
                Err(ServerError::Unsuitable(NO_FILE.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// To be called before a write.
    #[must_use]
    pub fn mark(&self) -> WriteMark {
        let servers = self.0.as_ref().map(|confirming| confirming.redis.known_servers()).unwrap_or_default();
        WriteMark(servers.into_iter().map(ServerMark::of).collect())
    }

    /// To be called when Redis has acknowledged what was written after the mark: whether it has arrived.
    pub async fn confirm(&self, mark: WriteMark) -> bool {
        let Some(confirming) = &self.0 else { return true };
        let started = Instant::now();
        let arrived = join_all(confirming.used_since(mark).into_iter().map(|server| confirming.ask(server)));
        let arrived = tokio::time::timeout(confirming.wanted.timeout, arrived).await;
        let is_confirmed = arrived.is_ok_and(|arrived| arrived.into_iter().all(|has_arrived| has_arrived));
        let outcome = if is_confirmed { "confirmed" } else { "unconfirmed" };
        metrics::counter!("galley_confirmations_total", "outcome" => outcome).increment(1);
        metrics::histogram!("galley_confirmation_seconds").record(started.elapsed().as_secs_f64());
        is_confirmed
    }

    /// The calls that the user of `redis.url` must be allowed, for [`Redis::check_at_start`].
    #[must_use]
    pub fn needed_calls(wanted: &DurabilitySettings) -> Vec<String> {
        let calls = [(wanted.replicas > 0 && !wanted.fsync, WAIT), (wanted.fsync, WAIT_FOR_DISK)];
        calls.into_iter().filter(|(is_needed, _)| *is_needed).map(|(_, call)| call.to_owned()).collect()
    }
}

impl Confirming {
    /// The servers that may have acknowledged what was written after the mark.
    fn used_since(&self, WriteMark(marked): WriteMark) -> Vec<ServerMark> {
        let is_new = |server: &Redis| !marked.iter().any(|mark| mark.server.is_same(server));
        let new: Vec<ServerMark> =
            self.redis.known_servers().into_iter().filter(is_new).map(ServerMark::of_new).collect();
        marked.into_iter().chain(new).filter(ServerMark::is_used).collect()
    }

    /// Whether what was written to a server has arrived.
    async fn ask(&self, ServerMark { server, generation, .. }: ServerMark) -> bool {
        // Otherwise some of it may have been written through a connection that was opened since
        server.current_generation() == Some(generation) && self.confirmer_of(&server).confirm(generation).await
    }

    fn confirmer_of(&self, server: &Redis) -> ServerConfirmer {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = servers.iter().find(|known| known.server.is_same(server)) {
            return known.clone();
        }
        // A node that left the cluster is not asked again
        let known = self.redis.known_servers();
        servers.retain(|old| known.iter().any(|server| server.is_same(&old.server)));
        let started = ServerConfirmer::start(server, self.process, &self.wanted);
        servers.push(started.clone());
        started
    }
}

impl ServerMark {
    fn of(server: Redis) -> Self {
        // First: what is written in between counts as written by the request
        let writes = server.writes();
        Self { generation: server.next_generation(), server, writes }
    }

    /// Of a server that was not known when the request began.
    fn of_new(server: Redis) -> Self {
        Self { server, generation: 1, writes: 0 }
    }

    /// Whether it may have been written to since. The only server there is has been.
    fn is_used(&self) -> bool {
        self.server.node_of_cluster().is_none() || self.server.writes() != self.writes
    }
}
