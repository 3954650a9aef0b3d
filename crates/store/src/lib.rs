//! The store: the only crate that talks to Redis. Every key is spelled in [`keys`], and every state change is one Lua
//! script.
//!
//! | module | what it does |
//! |---|---|
//! | [`connection`] | connections: shared, dedicated, pub/sub; Redis's clock; requirements on the server |
//! | [`keys`] | every key and pub/sub channel; `docs/redis.md` describes them |
//! | [`jobs`] | enqueue, claim, settle, cancel, look up jobs |
//! | [`rate_limits`] | jobs with a concurrency key or a rate limit |
//! | [`long_poll`] | waits for jobs without claiming them |
//! | [`workflows`], [`cron`], [`list_bridge`] | create jobs: from a graph, a schedule, a Redis list |
//! | [`idempotency`] | requests that have one effect however often they are sent |
//! | [`channels`], [`subscriptions`] | messages, their readers, durable subscriptions |
//! | [`api_keys`] | keys of clients, and copies of those in use |
//! | [`audit`] | who administered what |
//! | [`sessions`] | who is logged in to the dashboard |
//! | [`key_usage`] | what keys use, shared by all gateways |
//! | [`deliveries`] | the newest attempts to deliver, with what was answered |
//! | [`events`] | what happened to jobs, for observers |
//! | `command_times` | how many commands this process sends to Redis, and how long their answers take |
//! | `reader_limiter` | bounds how many readers read a page at a time |
//! | [`workers`] | the list of workers, and directives for them |
//! | [`maintenance`] | leader election, and the services that the leader runs |
//! | [`statistics`] | what happened to jobs, by minute and by hour |
//! | [`sealing`] | encryption of what is stored |
//! | `slots` | checks that what is sent to Redis has one slot of Redis Cluster |
//! | `script`, `lua/` | loads scripts; the preludes that several share |
//!
//! A failed command may have been executed: repeat only what may run twice, and say why it may.

pub mod api_keys;
pub mod audit;
pub mod channels;
mod command_times;
pub mod connection;
pub mod cron;
pub mod deliveries;
pub mod events;
pub mod idempotency;
pub mod jobs;
pub mod key_usage;
pub mod keys;
pub mod list_bridge;
pub mod log_level;
pub mod long_poll;
pub mod maintenance;
pub mod process_reports;
pub mod rate_limits;
mod reader_limiter;
mod script;
pub mod sealing;
pub mod sessions;
mod slots;
pub mod statistics;
pub mod subscriptions;
pub mod workers;
pub mod workflows;

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use common::settings::Settings;
use redis::{ErrorKind, RedisError};

pub use common::time::local_now;
pub use connection::client::Redis;
pub use reader_limiter::TooManyReaders;

use crate::{
    connection::{
        budgets::DataKind,
        error_class::{ErrorClass, cannot_save},
        notifier::Notifier,
    },
    events::EventLog,
    jobs::Jobs,
    sealing::OpenError,
};

/// What every part of the store shares. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pub(crate) redis: Redis,
    pub(crate) notifier: Notifier,
    pub(crate) settings: Arc<Settings>,
    pub(crate) events: EventLog,
}

impl Store {
    /// Combines a connection with the process's notifier and event log.
    #[must_use]
    pub fn new(redis: &Redis, notifier: &Notifier, settings: &Settings, events: EventLog) -> Self {
        Self { redis: redis.clone(), notifier: notifier.clone(), settings: Arc::new(settings.clone()), events }
    }

    /// The connection.
    #[must_use]
    pub fn redis(&self) -> &Redis {
        &self.redis
    }

    /// Notifications from other processes.
    #[must_use]
    pub fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// The jobs.
    #[must_use]
    pub fn jobs(&self) -> Jobs {
        Jobs::new(self, workflows::members_ended)
    }
}

/// Errors of the store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Redis is unreachable, starting, or did not answer in time. The command may have been executed.
    #[error("redis is unavailable: {0}")]
    Unavailable(RedisError),
    /// Redis is out of memory and refused a write. Nothing was written.
    #[error("redis is out of memory")]
    OutOfMemory,
    /// Data of that kind has used up its share of Redis's memory. Nothing was written.
    #[error("{} take their whole share of redis's memory", .0.budget().name)]
    NoRoom(DataKind),
    /// Redis answered with an error that waiting does not fix.
    #[error("redis refused a command: {0}")]
    Refused(RedisError),
    /// Data that Galley did not write is where Galley's data should be.
    #[error("unexpected data in redis: {0}")]
    Damaged(String),
    /// A stored value is sealed, and this process cannot open it. It stays where it is.
    #[error("stored data cannot be opened: {0}")]
    Sealed(OpenError),
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        match ErrorClass::of(&error) {
            ErrorClass::Broken | ErrorClass::WrongServer | ErrorClass::Passing => Self::Unavailable(error),
            ErrorClass::Full => Self::OutOfMemory,
            ErrorClass::Refused => Self::Refused(error),
        }
    }
}

impl StoreError {
    /// Whether a stream or its consumer group does not exist.
    #[must_use]
    pub fn is_missing_stream(&self) -> bool {
        matches!(self, Self::Refused(error) if matches!(error.code(), Some("NOGROUP" | "UNBLOCKED")))
    }

    /// Whether Redis takes no writes because it cannot save its data to the disk.
    #[must_use]
    pub fn is_cannot_save(&self) -> bool {
        matches!(self, Self::Unavailable(error) if cannot_save(error))
    }

    /// The error of a call after a write: it is unknown what was executed.
    pub(crate) fn after_write(self) -> Self {
        match self {
            Self::OutOfMemory | Self::NoRoom(_) => {
                Self::Unavailable(RedisError::from((ErrorKind::Io, "out of memory")))
            }
            other => other,
        }
    }

    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }
}

/// A result of the store.
pub type StoreResult<T> = Result<T, StoreError>;

/// An endless series of delays.
pub type ReconnectDelays = ExponentialBackoff;

/// Delays between attempts to reach Redis: 50 ms to a second, doubling, with jitter, without end.
#[must_use]
pub fn reconnect_delays() -> ReconnectDelays {
    reconnect_delays_up_to(Duration::from_secs(1))
}

/// The same with another longest delay, which jitter may double.
pub(crate) fn reconnect_delays_up_to(longest: Duration) -> ReconnectDelays {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(longest)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
}

/// The next delay; a second if the series should end, which it does not.
pub fn next_reconnect_delay(delays: &mut ReconnectDelays) -> Duration {
    delays.next().unwrap_or(Duration::from_secs(1)).min(Duration::from_secs(2))
}

/// Logs that a loop starts over. The connection logs once that Redis is unavailable; other errors are logged here.
pub fn log_interruption(what: &str, error: &StoreError) {
    if matches!(error, StoreError::Unavailable(_)) {
        tracing::debug!(event = "loop.interrupted", what, %error, "{what} interrupted");
    } else {
        tracing::warn!(event = "loop.interrupted", what, %error, "{what} interrupted");
    }
}
