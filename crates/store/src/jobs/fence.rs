//! Which attempt a call is about. Only the current one can be ended or kept alive.

use std::time::Duration;

use super::{Consumer, PULL_CONSUMER};
use common::name::WorkerId;

/// Which attempt the caller means.
#[derive(Debug, Clone)]
pub enum Fence {
    /// The one that a queue-worker holds, if it has been silent for so long.
    Worker {
        /// Its name in the pending list.
        consumer: Consumer,
        /// Least silence; zero when the worker itself asks.
        min_idle: Duration,
    },
    /// One that was fetched over HTTP. What is given must match.
    Pull {
        /// Its token.
        token: Option<String>,
        /// Who fetched it.
        worker: Option<WorkerId>,
    },
    /// One whose lease or time is over.
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

    /// Whether whoever runs the attempt asks, and not the upkeep over its head: only the former may recognise what is
    /// recorded as its own when it asks again.
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
