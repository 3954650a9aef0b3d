//! Connects to the primary that the sentinels name, if `redis.url` names sentinels.

use std::{
    pin::pin,
    sync::{PoisonError, Weak},
    time::Instant,
};

use futures_util::StreamExt;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, RedisResult, aio::MultiplexedConnection};

use super::{client::RedisInner, dial::connect_to_writable, error_class::connect_error};
use crate::{next_reconnect_delay, reconnect_delays};

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
        *self.hot_connection.write().unwrap_or_else(PoisonError::into_inner) = None;
        let pool_error = |error: anyhow::Error| RedisError::from((ErrorKind::Io, "pool", format!("{error:#}")));
        self.replace_pool().map_err(pool_error)
    }

    /// Asks for the primary whenever a sentinel says that one moved, as long as there is a handle: a primary that is
    /// replaced may take writes for seconds, and they would be lost. A message that is missed only costs that time.
    pub(super) async fn follow_sentinels(redis: Weak<Self>) {
        let mut delays = reconnect_delays();
        while let Some(sentinels) = redis.upgrade().and_then(|redis| redis.address.sentinels()) {
            let moves = sentinels.moves().await;
            if let Ok(moves) = moves {
                delays = reconnect_delays();
                let mut moves = pin!(moves);
                loop {
                    let Some(redis) = redis.upgrade() else { return };
                    // Also at first: it may have moved before somebody listened
                    redis.look_for_primary().await;
                    drop(redis);
                    if moves.next().await.is_none() {
                        break;
                    }
                }
            }
            tokio::time::sleep(next_reconnect_delay(&mut delays)).await;
        }
    }

    /// Without a shared connection the next one finds the primary anyway.
    async fn look_for_primary(&self) {
        let is_connected = self.hot_connection.read().unwrap_or_else(PoisonError::into_inner).is_some();
        if is_connected && let Err(error) = self.find_primary().await {
            tracing::debug!(%error, "the sentinels name no primary");
        }
    }
}
