//! Rounds of questions to one server: what was written before is confirmed for all requests that wait.

use common::settings::DurabilitySettings;
use redis::{Cmd, RedisError, Value, from_redis_value};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::{
    connection::{
        client::Redis,
        dedicated::DedicatedConnection,
        error_class::{ErrorClass, is_about_slot},
    },
    keys,
};

/// Requests that wait for the next round. Further ones wait until there is room.
const QUEUE_LENGTH: usize = 1024;
/// How long the key of a process outlives it.
const KEY_TTL_MS: u64 = 60_000;

/// Asks one server. Cheap to clone; the questions end with the last clone.
#[derive(Clone)]
pub(super) struct ServerConfirmer {
    pub(super) server: Redis,
    requests: mpsc::Sender<Request>,
    last: watch::Receiver<Option<bool>>,
}

struct Request {
    generation: u64,
    answer: oneshot::Sender<bool>,
}

impl ServerConfirmer {
    pub(super) fn start(server: &Redis, process: Uuid, wanted: &DurabilitySettings) -> Self {
        let (requests, received) = mpsc::channel(QUEUE_LENGTH);
        let (noted, last) = watch::channel(None);
        let rounds = Rounds { server: server.clone(), process, wanted: wanted.clone(), connection: None, last: noted };
        server.inner().runtime.spawn(rounds.run(received));
        Self { server: server.clone(), requests, last }
    }

    /// Whether everything has arrived that was written on connections of that generation.
    pub(super) async fn confirm(&self, generation: u64) -> bool {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request { generation, answer }).await.is_ok() && answered.await.unwrap_or(false)
    }

    /// Whether the last round confirmed; none before the first.
    pub(super) fn last(&self) -> Option<bool> {
        *self.last.borrow()
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
    server: Redis,
    process: Uuid,
    wanted: DurabilitySettings,
    connection: Option<ConfirmingConnection>,
    last: watch::Sender<Option<bool>>,
}

/// A connection to the server that the shared connection of that generation leads to.
struct ConfirmingConnection {
    generation: u64,
    dedicated: DedicatedConnection,
    /// Written on it: at a node of a cluster, one in a slot of that node.
    key: String,
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
        match self.ask_once(generation).await {
            Err(Shortfall::Redis(error)) if needs_another_connection(&error) => self.ask_once(generation).await,
            asked => asked,
        }
    }

    async fn ask_once(&mut self, generation: u64) -> Result<(), Shortfall> {
        let connection = match self.connection.take_if(|connection| connection.generation == generation) {
            Some(connection) => connection,
            None => self.open(generation).await?,
        };
        self.ask_on(connection).await
    }

    async fn ask_on(&mut self, mut connection: ConfirmingConnection) -> Result<(), Shortfall> {
        let mut round = redis::pipe();
        round.add_command(write(&connection.key, "")).add_command(wait_command(&self.wanted));
        let answers = connection.dedicated.query_all(&round).await;
        let is_usable = |error: &RedisError| ErrorClass::of(error) == ErrorClass::Refused && !is_about_slot(error);
        if answers.as_ref().map_or_else(is_usable, |_| true) {
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
        let key = keys::confirmation(&self.process, self.server.own_slot());
        let mut dedicated = self.server.open_dedicated(self.wanted.timeout).await?;
        // It takes writes, so it is the replica of no other that could tell it the next one
        dedicated.query::<()>(&write(&key, "")).await?;
        let nonce = Uuid::new_v4().to_string();
        let is_current = || self.server.current_generation() == Some(generation);
        if !is_current() {
            return Err(Shortfall::ServerChanged);
        }
        write(&key, &nonce).exec_async(&mut self.server.clone()).await?;
        let read: Option<String> = dedicated.query(redis::cmd("GET").arg(&key)).await?;
        if read != Some(nonce) || !is_current() {
            return Err(Shortfall::ServerChanged);
        }
        Ok(ConfirmingConnection { generation, dedicated, key })
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

/// Whether the server closed it because it was idle, or has given the slot of its key away.
fn needs_another_connection(error: &RedisError) -> bool {
    is_about_slot(error) || ErrorClass::of(error) == ErrorClass::Broken && !error.is_timeout()
}

fn write(key: &str, value: &str) -> Cmd {
    let mut command = redis::cmd("SET");
    command.arg(key).arg(value).arg("PX").arg(KEY_TTL_MS);
    command
}
