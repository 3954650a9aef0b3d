//! A dedicated connection for blocking reads, which would block every caller of a shared one.
//!
//! A blocked read is ended with CLIENT UNBLOCK, never by dropping it: Redis may have handed out work in an answer that
//! would be lost.

use std::time::{Duration, Instant};

use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, aio::MultiplexedConnection,
    from_redis_value,
};

use super::client::{Origin, Redis};

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
}

impl DedicatedConnection {
    async fn open(redis: &Redis, config: &AsyncConnectionConfig) -> RedisResult<Self> {
        let connection = redis.connect_separately(config).await?;
        let mut opened = Self { connection, opened_at: Instant::now(), client_id: 0, redis: redis.clone() };
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
        if self.redis.left_server_since(self.opened_at) {
            return Err(RedisError::from((ErrorKind::Io, "opened to a server that was left")));
        }
        let answer = self.connection.send_packed_command(command).await;
        self.redis.judge(Origin::Other(self.opened_at), answer.as_ref().map(std::slice::from_ref));
        Ok(from_redis_value(answer?.extract_error()?)?)
    }
}
