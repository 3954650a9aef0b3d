//! The rules in force. SIGHUP has the file read again; one that cannot be used changes nothing.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Dispatch, Rules, RulesError};
use crate::handlers::Handlers;

/// The rules that jobs are run by from now on.
pub(crate) struct InForce {
    path: Option<PathBuf>,
    rules: RwLock<Arc<Rules>>,
}

impl InForce {
    /// Reads the rules of a file; without one there are none.
    pub(crate) fn load(path: Option<&Path>, handlers: &Handlers) -> Result<Self, RulesError> {
        let rules = path.map(|path| Rules::load(path, handlers, &Rules::default())).transpose()?.unwrap_or_default();
        Ok(Self { path: path.map(Path::to_path_buf), rules: RwLock::new(Arc::new(rules)) })
    }

    pub(crate) fn now(&self) -> Arc<Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn reload(&self, handlers: &Handlers) {
        let Some(path) = &self.path else {
            tracing::info!("there is no file of rules to read again");
            return;
        };
        match Rules::load(path, handlers, &self.now()) {
            Ok(rules) => {
                tracing::info!(rules = rules.0.len(), "rules read again");
                *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
            }
            Err(error) => tracing::error!(%error, "the rules stay as they were"),
        }
    }
}

/// Hears SIGHUP until `stop` is cancelled.
pub(crate) async fn on_signal(dispatch: Arc<Dispatch>, stop: CancellationToken) {
    let Ok(mut hang_up) = signal(SignalKind::hangup()) else {
        tracing::warn!("SIGHUP cannot be listened to");
        return;
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = hang_up.recv() => dispatch.rules.reload(&dispatch.handlers),
        }
    }
}
