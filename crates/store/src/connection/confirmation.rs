//! Confirms that what was written has reached what `durability` asks for: replicas, the disk.
//!
//! `WAIT` blocks its connection, and is about the last write of that connection. So one connection of a process does nothing
//! else: it writes a key of its own and waits until that has arrived. Replication and the append-only file keep the order of
//! writes, so everything that Redis acknowledged before has arrived too. Requests that ask meanwhile share the next round.
//!
//! This holds only if a round asks the server that acknowledged the write. So a request notes the generation of the shared
//! connection before it writes, and a round counts for that generation only: one write through each connection shows that
//! both lead to one server. Threads that serve requests have no connections of their own then.

use std::time::Instant;

use common::settings::DurabilitySettings;
use redis::{Cmd, RedisError, Value, from_redis_value};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::{
    access::{WAIT, WAIT_FOR_DISK},
    client::Redis,
    dedicated::DedicatedConnection,
    error_class::ErrorClass,
    server::{ServerDurability, ServerError},
};
use crate::keys;

/// Requests that wait for the next round. Further ones wait until there is room.
const QUEUE_LENGTH: usize = 1024;
const NO_FILE: &str = "durability.fsync needs an append-only file: set `appendonly yes` and `appendfsync everysec` or `always` there, or unset it";
const NOT_IN_CLUSTER: &str = "durability.replicas and durability.fsync cannot confirm what several servers have: unset them, or set redis.url to one server";
/// How long the key of a process outlives it.
const KEY_TTL_MS: u64 = 60_000;

/// Confirms writes. Cheap to clone.
#[derive(Clone)]
pub struct Confirmer(Option<Confirming>);

#[derive(Clone)]
struct Confirming {
    redis: Redis,
    wanted: DurabilitySettings,
    requests: mpsc::Sender<Request>,
    /// Whether the last round confirmed.
    last: watch::Receiver<Option<bool>>,
}

/// The connection to which a write is about to go.
#[derive(Debug, Clone, Copy)]
pub struct WriteMark(Option<u64>);

/// What a confirmer asks for, and what became of the last round.
#[derive(Debug, Clone)]
pub struct ConfirmationState {
    /// What is asked for.
    pub wanted: DurabilitySettings,
    /// Whether the last round confirmed; none before the first.
    pub last_confirmed: Option<bool>,
}

struct Request {
    generation: u64,
    answer: oneshot::Sender<bool>,
}

impl Confirmer {
    /// Confirms what the settings ask for; nothing, and at no cost, if Redis's own answer is enough.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn start(redis: &Redis, wanted: &DurabilitySettings) -> Self {
        if !wanted.asks_for_more() {
            return Self(None);
        }
        let (requests, received) = mpsc::channel(QUEUE_LENGTH);
        let (noted, last) = watch::channel(None);
        let rounds = Rounds {
            redis: redis.clone(),
            key: keys::confirmation(&Uuid::new_v4()),
            wanted: wanted.clone(),
            connection: None,
            last: noted,
        };
        tokio::spawn(rounds.run(received));
        Self(Some(Confirming { redis: redis.clone(), wanted: wanted.clone(), requests, last }))
    }

    /// Whether there is anything to confirm.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What is asked for, if anything is.
    #[must_use]
    pub fn state(&self) -> Option<ConfirmationState> {
        let Confirming { wanted, last, .. } = self.0.as_ref()?;
        Some(ConfirmationState { wanted: wanted.clone(), last_confirmed: *last.borrow() })
    }

    /// Checks when a process starts that the server has an append-only file, if writes must be on disk. An unavailable one may
    /// come later.
    ///
    /// # Errors
    /// The server or the setting must be changed first; the error says how.
    pub async fn check_at_start(&self) -> Result<(), ServerError> {
        let Some(Confirming { redis, wanted, .. }) = &self.0 else { return Ok(()) };
        if redis.has_several_servers() {
            return Err(ServerError::Unsuitable(NOT_IN_CLUSTER.to_owned()));
        }
        match redis.check_server().await {
            Ok(server) if wanted.fsync && server.durability == ServerDurability::Memory => {
                Err(ServerError::Unsuitable(NO_FILE.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// To be called before a write.
    pub async fn mark(&self) -> WriteMark {
        let Some(Confirming { redis, .. }) = &self.0 else { return WriteMark(None) };
        WriteMark(redis.hot_connection().await.ok().map(|live| live.generation))
    }

    /// To be called when Redis has acknowledged what was written after the mark: whether it has arrived.
    pub async fn confirm(&self, WriteMark(generation): WriteMark) -> bool {
        let Some(Confirming { redis, wanted, requests, .. }) = &self.0 else { return true };
        let started = Instant::now();
        let is_confirmed = match generation.filter(|generation| redis.current_generation() == Some(*generation)) {
            Some(generation) => {
                let (answer, answered) = oneshot::channel();
                let asked = async {
                    requests.send(Request { generation, answer }).await.is_ok() && answered.await.unwrap_or(false)
                };
                tokio::time::timeout(wanted.timeout, asked).await.unwrap_or(false)
            }
            // Some of it may have been written through a connection that was opened since
            None => false,
        };
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

/// Waits until what this connection wrote last has arrived.
fn wait_command(wanted: &DurabilitySettings) -> Cmd {
    let timeout_ms = u64::try_from(wanted.timeout.as_millis()).unwrap_or(u64::MAX);
    let mut command = if wanted.fsync { redis::cmd("WAITAOF") } else { redis::cmd("WAIT") };
    if wanted.fsync {
        command.arg(1);
    }
    command.arg(wanted.replicas).arg(timeout_ms);
    command
}

/// Why a round confirmed nothing.
#[derive(Debug, thiserror::Error)]
enum Shortfall {
    #[error("{replicas} of {wanted} replicas have it")]
    Replicas { replicas: u64, wanted: u8 },
    #[error("it is not on disk")]
    Disk,
    #[error("the server changed meanwhile")]
    ServerChanged,
    #[error(transparent)]
    Redis(#[from] RedisError),
}

/// Asks Redis, for all requests that wait.
struct Rounds {
    redis: Redis,
    key: String,
    wanted: DurabilitySettings,
    connection: Option<ConfirmingConnection>,
    last: watch::Sender<Option<bool>>,
}

/// A connection to the server that the shared connection of that generation leads to.
struct ConfirmingConnection {
    generation: u64,
    dedicated: DedicatedConnection,
}

impl Rounds {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut waiting = Vec::with_capacity(QUEUE_LENGTH);
        while requests.recv_many(&mut waiting, QUEUE_LENGTH).await > 0 {
            let newest = waiting.iter().map(|request| request.generation).max().unwrap_or(0);
            let arrived = self.ask(newest).await;
            self.note(arrived.as_ref().err());
            for Request { generation, answer } in waiting.drain(..) {
                // A writer that hung up does not wait for it
                let _ = answer.send(arrived.is_ok() && generation == newest);
            }
        }
    }

    /// Whether everything has arrived that was written on connections of that generation.
    async fn ask(&mut self, generation: u64) -> Result<(), Shortfall> {
        if let Some(connection) = self.connection.take_if(|connection| connection.generation == generation) {
            match self.ask_on(connection).await {
                // The server may have closed it because it was idle
                Err(Shortfall::Redis(error)) if ErrorClass::of(&error) == ErrorClass::Broken && !error.is_timeout() => {
                }
                asked => return asked,
            }
        }
        let connection = self.open(generation).await?;
        self.ask_on(connection).await
    }

    async fn ask_on(&mut self, mut connection: ConfirmingConnection) -> Result<(), Shortfall> {
        let mut round = redis::pipe();
        round.add_command(self.write("")).add_command(wait_command(&self.wanted));
        let answers = connection.dedicated.query_all(&round).await;
        if answers.as_ref().map_or_else(|error| ErrorClass::of(error) == ErrorClass::Refused, |_| true) {
            self.connection = Some(connection);
        }
        let arrived = answers?.pop().unwrap_or_default();
        let (on_disk, replicas): (u64, u64) = match arrived {
            both @ Value::Array(_) => from_redis_value(both).map_err(RedisError::from)?,
            replicas => (0, from_redis_value(replicas).map_err(RedisError::from)?),
        };
        if replicas < u64::from(self.wanted.replicas) {
            return Err(Shortfall::Replicas { replicas, wanted: self.wanted.replicas });
        }
        if self.wanted.fsync && on_disk == 0 {
            return Err(Shortfall::Disk);
        }
        Ok(())
    }

    /// Opens a connection, and shows that it leads to the server of the shared one.
    async fn open(&self, generation: u64) -> Result<ConfirmingConnection, Shortfall> {
        let mut dedicated = self.redis.open_dedicated(self.wanted.timeout).await?;
        // It takes writes, so it is the replica of no other that could tell it the next one
        dedicated.query::<()>(&self.write("")).await?;
        let nonce = Uuid::new_v4().to_string();
        let is_current = || self.redis.current_generation() == Some(generation);
        if !is_current() {
            return Err(Shortfall::ServerChanged);
        }
        self.write(&nonce).exec_async(&mut self.redis.clone()).await?;
        let read: Option<String> = dedicated.query(redis::cmd("GET").arg(&self.key)).await?;
        if read != Some(nonce) || !is_current() {
            return Err(Shortfall::ServerChanged);
        }
        Ok(ConfirmingConnection { generation, dedicated })
    }

    fn write(&self, value: &str) -> Cmd {
        let mut command = redis::cmd("SET");
        command.arg(&self.key).arg(value).arg("PX").arg(KEY_TTL_MS);
        command
    }

    /// Says it once when confirmations begin to fail, and once when they work again.
    fn note(&self, shortfall: Option<&Shortfall>) {
        let before = self.last.send_replace(Some(shortfall.is_none()));
        match shortfall {
            Some(shortfall) if before != Some(false) => {
                tracing::warn!(event = "durability.unmet", %shortfall, "writes are acknowledged as unconfirmed");
            }
            None if before == Some(false) => tracing::info!(event = "durability.met", "writes are confirmed again"),
            _ => {}
        }
    }
}
