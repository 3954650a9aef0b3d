//! Proof of an attempt. Only the current attempt can be ended or kept alive.

use std::time::Duration;

use super::{Consumer, PULL_CONSUMER};
use common::name::WorkerId;

/// Which attempt the caller means.
#[derive(Debug, Clone)]
pub enum Fence {
    /// The attempt of a queue-worker, if it was silent for `min_idle`.
    Worker {
        /// Its name in the pending list.
        consumer: Consumer,
        /// Minimum silence; zero when the worker itself asks.
        min_idle: Duration,
    },
    /// A pulled attempt. The given values must match.
    Pull {
        /// Its token.
        token: Option<String>,
        /// The name of its worker.
        worker: Option<WorkerId>,
    },
    /// An attempt whose lease or time limit is over.
    ExpiredLease {
        /// Its token.
        token: String,
    },
}

impl Fence {
    /// The fence of the worker that runs the job.
    #[must_use]
    pub fn for_worker(consumer: &Consumer) -> Self {
        Self::Worker { consumer: consumer.clone(), min_idle: Duration::ZERO }
    }

    /// Whether the attempt's own worker asks, and not maintenance on its behalf: only the worker may recognize a
    /// recorded outcome as its own when it repeats the call.
    pub(crate) fn is_attempts_own(&self) -> bool {
        match self {
            Self::Worker { min_idle: silent_for, .. } => silent_for.is_zero(),
            Self::Pull { .. } => true,
            Self::ExpiredLease { .. } => false,
        }
    }

    pub(crate) fn args(&self) -> [String; 3] {
        match self {
            Self::Worker { consumer, min_idle: silent_for } => {
                ["worker".into(), consumer.to_string(), silent_for.as_millis().to_string()]
            }
            Self::Pull { token, worker } => [
                "pull".into(),
                token.clone().unwrap_or_default(),
                worker.as_ref().map(ToString::to_string).unwrap_or_default(),
            ],
            Self::ExpiredLease { token } => ["expired_lease".into(), token.clone(), PULL_CONSUMER.into()],
        }
    }
}
