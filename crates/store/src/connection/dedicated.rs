//! A dedicated connection for blocking reads, which would block every caller of a shared one.
//!
//! A blocked read is ended with CLIENT UNBLOCK, never by dropping it: Redis may have handed out work in an answer that
//! would be lost.

mod cluster_reads;

use std::time::{Duration, Instant};

use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, Value,
    aio::MultiplexedConnection, from_redis_value,
};

use self::cluster_reads::{ClusterReads, ReadsEnd};
use super::client::{Origin, Redis, cluster::NodeAddress};
use crate::command_times::count_blocking;

/// Pause between attempts to end a read that may not have reached the server yet.
const UNBLOCK_RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// A connection for one blocking read at a time; with a cluster, one to the node of each slot that the read is about.
pub struct DedicatedConnection(Dedicated);

enum Dedicated {
    Server(ServerConnection),
    Cluster(ClusterReads),
}

/// Ends the blocking read of a dedicated connection. Cheap to clone.
#[derive(Clone)]
pub struct ReadEnder(Ender);

#[derive(Clone)]
enum Ender {
    /// The id of the connection at the server.
    Server(i64),
    Cluster(ReadsEnd),
}

/// A connection to one server.
pub(super) struct ServerConnection {
    connection: MultiplexedConnection,
    opened_at: Instant,
    client_id: i64,
    redis: Redis,
}

impl Redis {
    /// A dedicated connection for reads that block for up to `block`.
    ///
    /// # Errors
    /// Redis is unreachable.
    pub async fn open_dedicated(&self, block: Duration) -> RedisResult<DedicatedConnection> {
        let config = self.config_for_answers_within(block);
        Ok(DedicatedConnection(match self.cluster() {
            Some(cluster) => Dedicated::Cluster(ClusterReads::new(cluster.clone(), config)),
            None => Dedicated::Server(ServerConnection::open(self, &config).await?),
        }))
    }

    /// Awaits a blocking read on a dedicated connection. When `interrupt` completes first, ends the read on the server
    /// and still awaits its answer, which may contain claimed work. True if it was interrupted.
    pub async fn interruptible<T>(
        &self,
        ReadEnder(ender): ReadEnder,
        read: impl Future<Output = T>,
        interrupt: impl Future<Output = ()>,
    ) -> (T, bool) {
        if let Ender::Cluster(end) = &ender {
            end.reset();
        }
        tokio::pin!(read);
        tokio::select! {
            answer = &mut read => return (answer, false),
            () = interrupt => {}
        }
        let client_id = match ender {
            Ender::Server(client_id) => client_id,
            Ender::Cluster(end) => {
                end.end();
                return (read.await, true);
            }
        };
        tokio::select! {
            answer = &mut read => (answer, true),
            // If Redis cannot be reached, the read ends by its own timeout
            () = self.unblock(client_id) => (read.await, true),
        }
    }

    /// Ends a blocked read, which may not have reached the server yet.
    async fn unblock(&self, client_id: i64) {
        let mut command = redis::cmd("CLIENT");
        command.arg("UNBLOCK").arg(client_id);
        while matches!(command.query_async(&mut self.clone()).await, Ok(false)) {
            tokio::time::sleep(UNBLOCK_RETRY_INTERVAL).await;
        }
    }
}

impl DedicatedConnection {
    /// What ends its blocked read.
    #[must_use]
    pub fn ender(&self) -> ReadEnder {
        ReadEnder(match &self.0 {
            Dedicated::Server(connection) => Ender::Server(connection.client_id),
            Dedicated::Cluster(reads) => Ender::Cluster(reads.end()),
        })
    }

    /// Sends a command and awaits its answer. An unblocked read answers as if it timed out.
    ///
    /// # Errors
    /// After any error drop the connection, and recover what its last answer may have contained.
    pub async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        let answer = match &mut self.0 {
            Dedicated::Server(connection) => connection.read(command).await?,
            Dedicated::Cluster(reads) => Box::pin(reads.read(command)).await?,
        };
        Ok(from_redis_value(answer)?)
    }

    /// The same for a pipeline, with the answer to each of its commands. Not with a cluster.
    ///
    /// # Errors
    /// As [`DedicatedConnection::query`].
    pub(super) async fn query_all(&mut self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        match &mut self.0 {
            Dedicated::Server(connection) => connection.read_all(pipeline).await,
            Dedicated::Cluster(_) => Err(RedisError::from((ErrorKind::InvalidClientConfig, "several servers"))),
        }
    }
}

impl ServerConnection {
    pub(super) async fn open(redis: &Redis, config: &AsyncConnectionConfig) -> RedisResult<Self> {
        let (connection, opened_at) = redis.connect_separately(config).await?;
        let mut opened = Self { connection, opened_at, client_id: 0, redis: redis.clone() };
        opened.client_id = from_redis_value(opened.read(redis::cmd("CLIENT").arg("ID")).await?)?;
        Ok(opened)
    }

    pub(super) async fn read(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.check_server()?;
        count_blocking(command);
        let answer = self.connection.send_packed_command(command).await;
        self.redis.judge(Origin::Other(self.opened_at), answer.as_ref().map(std::slice::from_ref));
        answer?.extract_error()
    }

    pub(super) async fn read_all(&mut self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        self.check_server()?;
        pipeline.cmd_iter().for_each(count_blocking);
        let answers = self.connection.send_packed_commands(pipeline, 0, pipeline.len()).await;
        self.redis.judge(Origin::Other(self.opened_at), answers.as_ref().map(Vec::as_slice));
        answers?.into_iter().map(Value::extract_error).collect()
    }

    /// The node of a cluster to which it leads.
    pub(super) fn node(&self) -> Option<&NodeAddress> {
        self.redis.node_of_cluster().map(|(address, _)| address)
    }

    /// Ends its blocked read from another connection to the same server.
    pub(super) fn unblock(&self) -> impl Future<Output = ()> + use<> {
        let (redis, client_id) = (self.redis.clone(), self.client_id);
        async move { redis.unblock(client_id).await }
    }

    fn check_server(&self) -> RedisResult<()> {
        if self.redis.left_server_since(self.opened_at) {
            return Err(RedisError::from((ErrorKind::Io, "opened to a server that was left")));
        }
        Ok(())
    }
}
