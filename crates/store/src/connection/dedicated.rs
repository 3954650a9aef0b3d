//! A connection of its own for reads that block: on a shared one they would hold up everybody else.
//!
//! A blocked read is ended from outside with CLIENT UNBLOCK, never by dropping it: Redis may have handed out work
//! whose answer would be lost.

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

    /// The id by which another connection can end this one's blocked read.
    #[must_use]
    pub fn client_id(&self) -> i64 {
        self.client_id
    }

    /// Sends a command and waits for its answer. An ended read answers as if its time were over.
    ///
    /// # Errors
    /// After any error the connection must be dropped and what it may have been given must be recovered.
    pub async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        command.query_async(&mut self.connection).await
    }
}
