//! Connects to the primary that the sentinels name, if `redis.url` names sentinels.

use std::time::Instant;

use redis::{AsyncConnectionConfig, ErrorKind, RedisError, RedisResult, aio::MultiplexedConnection};

use super::{client::RedisInner, dial::connect_to_writable, error_class::connect_error};

impl RedisInner {
    /// Connects to the server, or to the one that the sentinels name now.
    pub(super) async fn connect_to_primary(
        &self,
        config: &AsyncConnectionConfig,
    ) -> RedisResult<MultiplexedConnection> {
        self.find_primary().await.map_err(connect_error)?;
        connect_to_writable(&self.address.client(), config).await
    }

    /// Asks the sentinels for the primary, if there are any. If it is another server than before, leaves every connection
    /// to the old one: that may still take writes, and they would be lost.
    pub(super) async fn find_primary(&self) -> RedisResult<()> {
        if !self.address.find_primary().await? {
            return Ok(());
        }
        let address = self.address.info().addr().to_string();
        tracing::info!(event = "redis.primary_found", address, "the sentinels name this server as the primary");
        self.server_left.send_replace(Some(Instant::now()));
        let pool_error = |error: anyhow::Error| RedisError::from((ErrorKind::Io, "pool", format!("{error:#}")));
        self.replace_pool().map_err(pool_error)
    }
}
