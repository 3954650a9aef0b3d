//! A dedicated connection for blocking reads, which would block every caller of a shared one.
//!
//! A blocked read is ended with CLIENT UNBLOCK, never by dropping it: Redis may have handed out work in an answer that
//! would be lost.

use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, RedisResult, aio::MultiplexedConnection};

/// A connection for one blocking read at a time.
pub struct DedicatedConnection {
    connection: MultiplexedConnection,
    client_id: i64,
}

impl DedicatedConnection {
    pub(crate) async fn open(client: &Client, config: &AsyncConnectionConfig) -> RedisResult<Self> {
        let mut connection = client.get_multiplexed_async_connection_with_config(config).await?;
        let client_id = redis::cmd("CLIENT").arg("ID").query_async(&mut connection).await?;
        Ok(Self { connection, client_id })
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
        command.query_async(&mut self.connection).await
    }
}
