//! Connects to the primary that the sentinels name, if `redis.url` names sentinels.

use std::{
    pin::pin,
    sync::{PoisonError, Weak},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, RedisResult, aio::MultiplexedConnection};
use tokio::time::timeout;

use super::{
    client::{RedisInner, cluster::Destination},
    dial::connect_to_writable,
    error_class::connect_error,
    server_address::ServerAddress,
};
use crate::{ReconnectDelays, next_reconnect_delay, reconnect_delays, reconnect_delays_up_to};

/// How long one sentinel is listened to.
const LISTENING_TIME: Duration = Duration::from_secs(30);
/// The pauses before sentinels are asked after one said that the primary moved. The others learn of it within two seconds, and
/// until then they name the old one, which may take writes still.
const LOOKS: [Duration; 4] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(2)];

/// The maximum delay between two questions which server is the primary, while none is: the failover ends at a moment that
/// nobody announces to a process without a connection.
const MAX_SEARCH_DELAY: Duration = Duration::from_millis(200);

impl RedisInner {
    /// The delays between attempts to open the shared connection.
    pub(super) fn connect_delays(address: &ServerAddress) -> ReconnectDelays {
        if address.has_sentinels() { reconnect_delays_up_to(MAX_SEARCH_DELAY) } else { reconnect_delays() }
    }

    /// Connects to the server, or to the one that the sentinels name now; with the time at which it was known which one.
    pub(super) async fn connect_to_primary(
        &self,
        config: &AsyncConnectionConfig,
    ) -> RedisResult<(MultiplexedConnection, Instant)> {
        self.find_primary().await.map_err(connect_error)?;
        let (client, known_at) = (self.address.client(), Instant::now());
        let is_node = matches!(self.destination, Destination::Node(..));
        Ok((connect_to_writable(&client, config, is_node).await?, known_at))
    }

    /// Asks the sentinels for the primary, if there are any. If it is another server than before, leaves every connection
    /// to the old one: that may still take writes, and they would be lost. True if it is another one.
    pub(super) async fn find_primary(&self) -> RedisResult<bool> {
        if !self.address.find_primary().await? {
            return Ok(false);
        }
        let address = self.address.info().addr().to_string();
        tracing::info!(event = "redis.primary_found", address, "the sentinels name this server as the primary");
        self.leave();
        let pool_error = |error: anyhow::Error| RedisError::from((ErrorKind::Io, "pool", format!("{error:#}")));
        self.replace_pool().map(|()| true).map_err(pool_error)
    }

    /// Leaves the server with every connection to it.
    pub(super) fn leave(&self) {
        // Under the lock, so that a connection to the old one that is just being opened does not come after it
        let mut live = self.hot_connection.write().unwrap_or_else(PoisonError::into_inner);
        self.server_left.send_replace(Some(Instant::now()));
        *live = None;
    }

    /// Asks for the primary whenever a sentinel says that one moved, as long as there is a handle: a primary that is
    /// replaced may take writes for seconds, and they would be lost. A message that is missed only costs that time.
    pub(super) async fn follow_sentinels(redis: Weak<Self>) {
        let mut delays = reconnect_delays();
        while let Some(sentinels) = redis.upgrade().and_then(|redis| redis.address.sentinels()) {
            if let Ok(Ok(moves)) = timeout(LISTENING_TIME, sentinels.moves()).await {
                delays = reconnect_delays();
                let mut moves = pin!(moves);
                // It may have moved before somebody listened
                look_for_primary(&redis, &LOOKS[..1]).await;
                // A sentinel whose machine is gone says nothing for ever, so one is asked again after a while
                while let Ok(Some(_)) = timeout(LISTENING_TIME, moves.next()).await {
                    look_for_primary(&redis, &LOOKS).await;
                }
            }
            tokio::time::sleep(next_reconnect_delay(&mut delays)).await;
        }
    }

    /// Whether anybody asked for the primary and may be at another one. Else the next connection asks.
    fn needs_look(&self) -> bool {
        let is_connected = self.hot_connection.read().unwrap_or_else(PoisonError::into_inner).is_some();
        is_connected || self.connect_state.lock().unwrap_or_else(PoisonError::into_inner).connecting.is_some()
    }
}

/// Asks for the primary after each pause, until it is another one or nobody needs to know.
async fn look_for_primary(redis: &Weak<RedisInner>, pauses: &[Duration]) {
    for pause in pauses {
        tokio::time::sleep(*pause).await;
        let Some(redis) = redis.upgrade().filter(|redis| redis.needs_look()) else { return };
        match redis.find_primary().await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the sentinels name no primary"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_is_looked_for_more_than_twice_a_second() {
        let mut delays = reconnect_delays_up_to(MAX_SEARCH_DELAY);
        for _ in 0..50 {
            assert!(next_reconnect_delay(&mut delays) <= 2 * MAX_SEARCH_DELAY);
        }
    }
}
