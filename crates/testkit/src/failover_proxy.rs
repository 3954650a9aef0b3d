//! An address that a failover moves: new connections lead to the current server, open ones stay where they are.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use crate::RedisServer;

/// The address; gone when it is dropped.
pub struct FailoverProxy {
    address: SocketAddr,
    target: Arc<AtomicU16>,
    connections: Arc<Mutex<JoinSet<()>>>,
    task: JoinHandle<()>,
}

impl FailoverProxy {
    /// Opens an address that leads to a server.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn start(redis: &RedisServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let target = Arc::new(AtomicU16::new(redis.port()));
        let connections: Arc<Mutex<JoinSet<()>>> = Arc::default();
        let (current, open) = (target.clone(), connections.clone());
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                if let Ok(mut server) = TcpStream::connect(("127.0.0.1", current.load(SeqCst))).await {
                    open.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    });
                }
            }
        });
        Self { address, target, connections, task }
    }

    /// The URL of database 5 behind it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}/5", self.address)
    }

    /// New connections lead to this server.
    pub fn move_to(&self, redis: &RedisServer) {
        self.target.store(redis.port(), SeqCst);
    }

    /// Cuts all connections. New ones may be opened.
    pub fn cut_connections(&self) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl Drop for FailoverProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
