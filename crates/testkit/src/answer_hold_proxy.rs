//! A way to Redis on which answers can be held back: commands are carried out, and nobody learns of it for a while.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    RedisServer, eventually,
    redis_proxy::{RedisProxy, relay_answers},
};

/// The way; gone when it is dropped.
pub struct AnswerHoldProxy {
    proxy: RedisProxy,
    state: Arc<watch::Sender<HoldState>>,
}

/// Whether answers pass.
#[derive(Debug, Clone, PartialEq, Eq)]
enum HoldState {
    Passing,
    /// All are held from the first one that contains these bytes.
    Waiting(Vec<u8>),
    Holding,
    /// Those of each connection are held from the first one that contains these bytes.
    OfConnections(Vec<u8>),
}

impl AnswerHoldProxy {
    /// Opens a way to a server.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn start(redis: &RedisServer) -> Self {
        let state = Arc::new(watch::Sender::new(HoldState::Passing));
        let shared = state.clone();
        let proxy = RedisProxy::start(redis, move |client, server| {
            let state = shared.clone();
            relay_answers(client, server, move |bytes| pass_or_hold(state.clone(), bytes))
        });
        Self { proxy: proxy.await, state }
    }

    /// The URL of database 5 behind it.
    #[must_use]
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    /// Holds all answers from the next one on that contains these bytes.
    pub fn hold_from(&self, bytes: &[u8]) {
        self.state.send_replace(HoldState::Waiting(bytes.to_vec()));
    }

    /// Holds the answers of each connection on its own, from the next one on that contains these bytes.
    pub fn hold_connections_from(&self, bytes: &[u8]) {
        self.state.send_replace(HoldState::OfConnections(bytes.to_vec()));
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

/// Returns an answer as soon as answers pass.
async fn pass_or_hold(state: Arc<watch::Sender<HoldState>>, bytes: Vec<u8>) -> Option<Vec<u8>> {
    state.send_if_modified(|state| {
        let is_met = matches!(state, HoldState::Waiting(wanted) if contains(&bytes, wanted));
        if is_met {
            *state = HoldState::Holding;
        }
        is_met
    });
    let may_pass = |state: &HoldState| match state {
        HoldState::Holding => false,
        HoldState::OfConnections(wanted) => !contains(&bytes, wanted),
        HoldState::Passing | HoldState::Waiting(_) => true,
    };
    state.subscribe().wait_for(may_pass).await.ok()?;
    Some(bytes)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|part| part == wanted)
}
