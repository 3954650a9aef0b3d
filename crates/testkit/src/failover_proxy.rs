//! An address that a failover moves: new connections lead to the current server, open ones stay where they are.

use tokio::io::copy_bidirectional;

use crate::{RedisServer, redis_proxy::RedisProxy};

/// The address; gone when it is dropped.
pub struct FailoverProxy(RedisProxy);

impl FailoverProxy {
    /// Opens an address that leads to a server.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn start(redis: &RedisServer) -> Self {
        let proxy = RedisProxy::start(redis, |mut client, mut server| async move {
            let _ = copy_bidirectional(&mut client, &mut server).await;
        });
        Self(proxy.await)
    }

    /// The URL of database 5 behind it.
    #[must_use]
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// New connections lead to this server.
    pub fn move_to(&self, redis: &RedisServer) {
        self.0.move_to(redis);
    }

    /// Cuts all connections. New ones may be opened.
    pub fn cut_connections(&self) {
        self.0.cut_connections();
    }
}
