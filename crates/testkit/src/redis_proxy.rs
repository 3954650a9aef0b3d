//! A way to a Redis server through an address of its own, on which tests can disturb what passes.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use crate::RedisServer;

/// The way; gone when it is dropped.
pub(crate) struct RedisProxy {
    address: SocketAddr,
    target: Arc<AtomicU16>,
    connections: Arc<Mutex<JoinSet<()>>>,
    task: JoinHandle<()>,
}

impl RedisProxy {
    /// Opens a way to a server. `relay` passes on the bytes of a connection: from a client, and to a server.
    pub(crate) async fn start<F>(
        redis: &RedisServer,
        relay: impl Fn(TcpStream, TcpStream) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let target = Arc::new(AtomicU16::new(redis.port()));
        let connections: Arc<Mutex<JoinSet<()>>> = Arc::default();
        let (current, open) = (target.clone(), connections.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = TcpStream::connect(("127.0.0.1", current.load(SeqCst))).await {
                    open.lock().unwrap_or_else(PoisonError::into_inner).spawn(relay(client, server));
                }
            }
        });
        Self { address, target, connections, task }
    }

    /// The URL of database 5 behind it.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}/5", self.address)
    }

    /// New connections lead to this server.
    pub(crate) fn move_to(&self, redis: &RedisServer) {
        self.target.store(redis.port(), SeqCst);
    }

    /// Cuts all connections. New ones may be opened.
    pub(crate) fn cut_connections(&self) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl Drop for RedisProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Relays everything that a client sends, and of what the server sends the parts that `pass` returns.
pub(crate) async fn relay_answers<F>(client: TcpStream, server: TcpStream, pass: impl Fn(Vec<u8>) -> F)
where
    F: Future<Output = Option<Vec<u8>>>,
{
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            if let Some(passed) = pass(bytes[..count].to_vec()).await
                && to_client.write_all(&passed).await.is_err()
            {
                break;
            }
        }
    };
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        () = back => {}
    }
}
