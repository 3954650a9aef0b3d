//! A dedicated connection for blocking reads, which would block every caller of a shared one.
//!
//! A blocked read is ended with CLIENT UNBLOCK, never by dropping it: Redis may have handed out work in an answer that
//! would be lost.

use std::time::{Duration, Instant};

use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, Value,
    aio::MultiplexedConnection, from_redis_value,
};

use super::client::{Origin, Redis};
use crate::command_times::count_blocking;

/// Pause between attempts to end a read that may not have reached the server yet.
const UNBLOCK_RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// A connection for one blocking read at a time.
pub struct DedicatedConnection {
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
        DedicatedConnection::open(self, &self.config_for_answers_within(block)).await
    }

    /// Awaits a blocking read on a dedicated connection. When `interrupt` completes first, ends the read on the server
    /// and still awaits its answer, which may contain claimed work. True if it was interrupted.
    pub async fn interruptible<T>(
        &self,
        client_id: i64,
        read: impl Future<Output = T>,
        interrupt: impl Future<Output = ()>,
    ) -> (T, bool) {
        tokio::pin!(read);
        tokio::select! {
            answer = &mut read => return (answer, false),
            () = interrupt => {}
        }
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
    async fn open(redis: &Redis, config: &AsyncConnectionConfig) -> RedisResult<Self> {
        let (connection, opened_at) = redis.connect_separately(config).await?;
        let mut opened = Self { connection, opened_at, client_id: 0, redis: redis.clone() };
        opened.client_id = opened.query(redis::cmd("CLIENT").arg("ID")).await?;
        Ok(opened)
    }

    /// The client id with which another connection can end this one's blocked read.
    #[must_use]
    pub fn client_id(&self) -> i64 {
        self.client_id
    }

    /// Sends a command and awaits its answer. An unblocked read answers as if it timed out.
    ///
    /// # Errors
    /// After any error drop the connection, and recover what its last answer may have contained.
    pub async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        self.check_server()?;
        count_blocking(command);
        let answer = self.connection.send_packed_command(command).await;
        self.redis.judge(Origin::Other(self.opened_at), answer.as_ref().map(std::slice::from_ref));
        Ok(from_redis_value(answer?.extract_error()?)?)
    }

    /// The same for a pipeline, with the answer to each of its commands.
    ///
    /// # Errors
    /// As [`DedicatedConnection::query`].
    pub(super) async fn query_all(&mut self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        self.check_server()?;
        pipeline.cmd_iter().for_each(count_blocking);
        let answers = self.connection.send_packed_commands(pipeline, 0, pipeline.len()).await;
        self.redis.judge(Origin::Other(self.opened_at), answers.as_ref().map(Vec::as_slice));
        answers?.into_iter().map(Value::extract_error).collect()
    }

    fn check_server(&self) -> RedisResult<()> {
        if self.redis.left_server_since(self.opened_at) {
            return Err(RedisError::from((ErrorKind::Io, "opened to a server that was left")));
        }
        Ok(())
    }
}
