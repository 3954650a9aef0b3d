//! Opens connections to a server that takes writes.

use std::time::Instant;

use common::settings::RedisSettings;
use deadpool_redis::{Hook, HookError, Manager, Pool};
use redis::{
    AsyncConnectionConfig, Client, RedisResult,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::sync::watch;

use super::{
    error_class::{ErrorClass, connect_error, is_about_slot},
    server_address::ServerAddress,
};
use crate::keys;

/// Connects to a server that takes writes: one that became a replica accepts connections too. A node of a cluster need not
/// have the slot of that write.
pub(super) async fn connect_to_writable(
    client: &Client,
    config: &AsyncConnectionConfig,
    is_node: bool,
) -> RedisResult<MultiplexedConnection> {
    let mut connection = client.get_multiplexed_async_connection_with_config(config).await.map_err(connect_error)?;
    match check_write(&mut connection).await {
        Err(error) if is_node && is_about_slot(&error) => Ok(connection),
        Err(error) if ErrorClass::of(&error) >= ErrorClass::WrongServer => Err(connect_error(error)),
        _ => Ok(connection),
    }
}

/// Whether writes work, without one: deletes a key that never exists. A full Redis allows that.
pub(super) async fn check_write(connection: &mut impl ConnectionLike) -> RedisResult<()> {
    redis::cmd("DEL").arg(keys::WRITE_CHECK).exec_async(connection).await
}

/// The pool; it drops connections to a server that was left since they were opened.
pub(super) fn open_pool(
    address: &ServerAddress,
    settings: &RedisSettings,
    server_left: &watch::Sender<Option<Instant>>,
) -> anyhow::Result<Pool> {
    let server_left = server_left.clone();
    let is_current = Hook::sync_fn(move |_, metrics| match *server_left.borrow() {
        Some(left_at) if metrics.created <= left_at => Err(HookError::message("opened to a server that was left")),
        _ => Ok(()),
    });
    let config = address.config(settings, settings.response_timeout);
    Ok(Pool::builder(Manager::new_with_config(address.info(), config)?)
        .max_size(settings.pool_size)
        .wait_timeout(Some(settings.response_timeout))
        .create_timeout(Some(settings.connect_timeout))
        .recycle_timeout(Some(settings.response_timeout))
        .pre_recycle(is_current)
        .runtime(deadpool_redis::Runtime::Tokio1)
        .build()?)
}
