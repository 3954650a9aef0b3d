//! A way to Redis on which subscriptions can go deaf: connections stay open and answer, but what is published does not arrive.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use crate::{
    RedisServer,
    redis_proxy::{RedisProxy, relay_answers},
};

/// How a published message begins in RESP3.
const MESSAGE_PREFIX: &[u8] = b"$7\r\nmessage\r\n";

/// The way; gone when it is dropped.
pub struct MessageDropProxy {
    proxy: RedisProxy,
    connections: Arc<ProxyConnections>,
}

#[derive(Default)]
struct ProxyConnections {
    /// New connections are deaf.
    drops_messages: AtomicBool,
    open_connections: Mutex<Vec<Arc<AtomicBool>>>,
}

impl MessageDropProxy {
    /// Opens a way to a server.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn start(redis: &RedisServer) -> Self {
        let connections = Arc::<ProxyConnections>::default();
        let known = connections.clone();
        let proxy = RedisProxy::start(redis, move |client, server| {
            let is_deaf = known.open();
            relay_answers(client, server, move |bytes| {
                let is_message = || bytes.windows(MESSAGE_PREFIX.len()).any(|part| part == MESSAGE_PREFIX);
                let is_swallowed = is_deaf.load(SeqCst) && is_message();
                std::future::ready((!is_swallowed).then_some(bytes))
            })
        });
        Self { proxy: proxy.await, connections }
    }

    /// The URL of database 5 behind it.
    #[must_use]
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    /// From now on no message arrives, over connections old and new.
    pub fn drop_messages(&self) {
        self.connections.drops_messages.store(true, SeqCst);
        let open = self.connections.open_connections.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().for_each(|is_deaf| is_deaf.store(true, SeqCst));
    }

    /// Connections that are made from now on hear; those that are open stay deaf.
    pub fn deliver_on_new_connections(&self) {
        self.connections.drops_messages.store(false, SeqCst);
    }
}

impl ProxyConnections {
    /// Notes a new connection; returns whether it is deaf.
    fn open(&self) -> Arc<AtomicBool> {
        let mut open = self.open_connections.lock().unwrap_or_else(PoisonError::into_inner);
        let is_deaf = Arc::new(AtomicBool::new(self.drops_messages.load(SeqCst)));
        open.push(is_deaf.clone());
        is_deaf
    }
}
