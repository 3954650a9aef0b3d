//! The log level that an operator sets for all processes at run time.
//!
//! It is one stored text, which may expire. Every process reads it when it starts and when its notifications begin to
//! arrive, and learns of changes; when it expires, each returns to the level of its settings by its own clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    Redis, StoreError, StoreResult,
    connection::notifier::{Notifier, SubscriberEvent},
    keys,
};
use common::{
    telemetry::log_level::{self, LogFilter},
    time::Millis,
};

/// Changes come one at a time; when some are missed, the last one counts.
const NOTIFICATION_BUFFER: usize = 4;
/// The pause before a read that failed is tried again.
const READ_PAUSE: Duration = Duration::from_secs(5);
/// How much later than Redis a process takes a level for expired: its clock is an estimate.
const CLOCK_SLACK_MS: i64 = 50;

/// A level that was set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevelOverride {
    /// What is logged.
    pub level: LogFilter,
    /// Until then, if it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Millis>,
}

impl Redis {
    /// The level that was set, if one is in effect.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn log_level(&self) -> StoreResult<Option<LogLevelOverride>> {
        let stored: Option<String> = redis::cmd("GET").arg(keys::LOG_LEVEL).query_async(&mut self.clone()).await?;
        let read = |text: String| {
            serde_json::from_str(&text).map_err(|error| StoreError::damaged(format!("log level: {error}")))
        };
        stored.map(read).transpose()
    }

    /// Sets the level of all processes for that long, or until it is changed.
    ///
    /// # Errors
    /// Redis is unavailable: it may have been set nevertheless.
    pub async fn set_log_level(&self, level: LogFilter, length: Option<Duration>) -> StoreResult<LogLevelOverride> {
        let length = length.map(|length| i64::try_from(length.as_millis()).unwrap_or(i64::MAX).max(1));
        let until = match length {
            Some(length) => Some(self.now().await?.saturating_add(length)),
            None => None,
        };
        let set = LogLevelOverride { level, until };
        let mut command = redis::cmd("SET");
        command.arg(keys::LOG_LEVEL).arg(serde_json::to_string(&set).unwrap_or_default());
        if let Some(until) = until {
            command.arg("PXAT").arg(until);
        }
        command.exec_async(&mut self.clone()).await?;
        self.tell_log_level().await;
        Ok(set)
    }

    /// Lets all processes return to the level of their settings.
    ///
    /// # Errors
    /// Redis is unavailable: it may have happened nevertheless.
    pub async fn reset_log_level(&self) -> StoreResult<()> {
        redis::cmd("DEL").arg(keys::LOG_LEVEL).exec_async(&mut self.clone()).await?;
        self.tell_log_level().await;
        Ok(())
    }

    /// Processes that miss it read the level when they hear again.
    async fn tell_log_level(&self) {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(self.topics().log_level()).arg("changed");
        if let Err(error) = publish.exec_async(&mut self.clone()).await {
            tracing::debug!(%error, "a new log level was not announced");
        }
    }
}

/// Logs as the stored level says, until `stop` is cancelled.
pub async fn follow(redis: Redis, notifier: Notifier, stop: CancellationToken) {
    let (topics, mut events) = notifier.subscribe(NOTIFICATION_BUFFER);
    topics.add(redis.topics().log_level());
    let mut next = NextLook::Never;
    loop {
        let is_over = matches!(next, NextLook::AtExpiry(_));
        let waiting = async {
            match next {
                NextLook::AtExpiry(pause) => tokio::time::sleep(pause).await,
                NextLook::Retry => tokio::time::sleep(READ_PAUSE).await,
                NextLook::Never => std::future::pending().await,
            }
        };
        let must_look = tokio::select! {
            () = stop.cancelled() => return,
            () = waiting => {
                // Also while Redis is away
                if is_over {
                    log_level::set(None);
                }
                true
            }
            event = events.recv() => match event {
                Some(SubscriberEvent::Subscribed(_) | SubscriberEvent::Message { .. }) => true,
                Some(SubscriberEvent::ConnectionLost) => false,
                None => return,
            },
        };
        if must_look {
            next = look(&redis).await;
        }
    }
}

/// When to look again, if nothing is announced before.
#[derive(Debug, Clone, Copy)]
enum NextLook {
    AtExpiry(Duration),
    Retry,
    Never,
}

/// Reads the level and applies it.
async fn look(redis: &Redis) -> NextLook {
    let stored = match redis.log_level().await {
        Ok(stored) => stored,
        Err(StoreError::Damaged(problem)) => {
            tracing::warn!(event = "logging.level_unreadable", problem, "the stored log level is not used");
            None
        }
        Err(error) => {
            tracing::debug!(%error, "the log level was not read");
            return NextLook::Retry;
        }
    };
    let until = stored.as_ref().and_then(|stored| stored.until);
    log_level::set(stored.map(|stored| stored.level));
    let Some(until) = until else { return NextLook::Never };
    let left = until.saturating_sub(redis.estimated_now()).max(0).saturating_add(CLOCK_SLACK_MS);
    NextLook::AtExpiry(Duration::from_millis(left.unsigned_abs()))
}
