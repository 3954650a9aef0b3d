//! Connections for slow work, such as listing: they would hold up the callers of the shared one.

use std::{sync::PoisonError, time::Instant};

use deadpool_redis::{Pool, PoolError};
use futures_util::FutureExt;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, Value, aio::ConnectionLike};

use super::{
    client::{Origin, Redis, RedisInner},
    dial::open_pool,
    error_class::connect_error,
};
use crate::{StoreError, StoreResult};

/// A pooled connection. It returns to the pool when it is dropped. Of a cluster it is one to each node for the time of a
/// command.
pub struct PooledConnection {
    connection: Option<deadpool_redis::Connection>,
    opened_at: Instant,
    redis: Redis,
}

impl Redis {
    /// A pooled connection for slow work, such as listing.
    ///
    /// # Errors
    /// The pool has no free connection in time, or Redis is unreachable.
    pub async fn pooled_connection(&self) -> StoreResult<PooledConnection> {
        if self.cluster().is_some() {
            return Ok(PooledConnection { connection: None, opened_at: Instant::now(), redis: self.clone() });
        }
        self.server_connection().await?;
        let connection = self.inner().pool().get().await.map_err(|error| match error {
            PoolError::Backend(error) => connect_error(error).into(),
            other => StoreError::Unavailable(RedisError::from((ErrorKind::Io, "pool", other.to_string()))),
        })?;
        Ok(PooledConnection { connection: Some(connection), opened_at: Instant::now(), redis: self.clone() })
    }
}

impl RedisInner {
    pub(super) fn pool(&self) -> Pool {
        self.pool.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections that are in use return to the pool from before.
    pub(super) fn replace_pool(&self) -> anyhow::Result<()> {
        let pool = open_pool(&self.address, &self.settings, &self.server_left)?;
        *self.pool.write().unwrap_or_else(PoisonError::into_inner) = pool;
        Ok(())
    }
}

impl ConnectionLike for PooledConnection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        let (redis, origin) = (&self.redis, Origin::Other(self.opened_at));
        match &mut self.connection {
            Some(connection) => redis.send_on(connection, origin, cmd).boxed(),
            None => redis.send_pooled(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let (redis, origin) = (&self.redis, Origin::Other(self.opened_at));
        match &mut self.connection {
            Some(connection) => redis.send_all_on(connection, origin, (pipeline, offset, count)).boxed(),
            None => redis.send_all_pooled(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        self.redis.get_db()
    }
}
