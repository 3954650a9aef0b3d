//! A way to Redis on which answers can be held back: commands are carried out, and nobody learns of it for a while.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::{RedisServer, eventually};

/// The way; gone when it is dropped.
pub struct AnswerHoldProxy {
    address: SocketAddr,
    state: Arc<watch::Sender<HoldState>>,
    task: JoinHandle<()>,
}

/// Whether answers pass.
#[derive(Debug, Clone, PartialEq, Eq)]
enum HoldState {
    Passing,
    /// All are held from the first one that contains these bytes.
    Waiting(Vec<u8>),
    Holding,
}

impl AnswerHoldProxy {
    /// Opens a way to a server.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn start(redis: &RedisServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (state, port) = (Arc::new(watch::Sender::new(HoldState::Passing)), redis.port());
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await {
                    tokio::spawn(relay(client, server, shared.clone()));
                }
            }
        });
        Self { address, state, task }
    }

    /// The URL of database 5 behind it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}/5", self.address)
    }

    /// Holds all answers from the next one on that contains these bytes.
    pub fn hold_from(&self, bytes: &[u8]) {
        self.state.send_replace(HoldState::Waiting(bytes.to_vec()));
    }

    /// Waits until answers are held.
    pub async fn wait_until_held(&self) {
        eventually("answers are held", || async { (*self.state.borrow() == HoldState::Holding).then_some(()) }).await;
    }

    /// Lets all answers pass.
    pub fn release(&self) {
        self.state.send_replace(HoldState::Passing);
    }
}

impl Drop for AnswerHoldProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(client: TcpStream, server: TcpStream, state: Arc<watch::Sender<HoldState>>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = async {
        let (mut bytes, mut watched) = (vec![0; 64 * 1024], state.subscribe());
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            state.send_if_modified(|state| {
                let is_met = matches!(state, HoldState::Waiting(wanted)
                    if bytes[..count].windows(wanted.len()).any(|part| part == wanted));
                if is_met {
                    *state = HoldState::Holding;
                }
                is_met
            });
            if watched.wait_for(|state| *state != HoldState::Holding).await.is_err() {
                break;
            }
            if to_client.write_all(&bytes[..count]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        () = back => {}
    }
}
