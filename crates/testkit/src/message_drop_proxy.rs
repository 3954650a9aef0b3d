//! A way to Redis on which subscriptions can go deaf: connections stay open and answer, but what is published does not arrive.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::RedisServer;

/// How a published message begins in RESP3.
const MESSAGE_PREFIX: &[u8] = b"$7\r\nmessage\r\n";

/// The way; gone when it is dropped.
pub struct MessageDropProxy {
    address: SocketAddr,
    connections: Arc<ProxyConnections>,
    task: JoinHandle<()>,
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
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (ways, port) = (Arc::<ProxyConnections>::default(), redis.port());
        let known = ways.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let is_deaf = Arc::new(AtomicBool::new(known.drops_messages.load(SeqCst)));
                known.open_connections.lock().unwrap_or_else(PoisonError::into_inner).push(is_deaf.clone());
                if let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await {
                    tokio::spawn(relay(client, server, is_deaf));
                }
            }
        });
        Self { address, connections: ways, task }
    }

    /// The URL of database 5 behind it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}/5", self.address)
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

impl Drop for MessageDropProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(client: TcpStream, server: TcpStream, is_deaf: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            let swallowed =
                is_deaf.load(SeqCst) && bytes[..count].windows(MESSAGE_PREFIX.len()).any(|part| part == MESSAGE_PREFIX);
            if !swallowed && to_client.write_all(&bytes[..count]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        () = back => {}
    }
}
