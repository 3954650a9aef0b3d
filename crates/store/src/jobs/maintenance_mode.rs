//! Maintenance mode: no queue hands out jobs, no scheduled job becomes available and no cron entry runs, while clients may
//! enqueue. Operators switch it on before they work on what handlers need.

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use super::Jobs;
use crate::{StoreError, StoreResult, connection::notification::Notification, keys, keys::QueueKeys, script};
use common::{name::QueueName, time::Millis};

/// Queues that are paused at the same time.
const CONCURRENCY: usize = 32;

/// The mode while it is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceMode {
    /// Why, for people.
    #[serde(default)]
    pub reason: Option<String>,
    /// Since when.
    pub enabled_at: Millis,
    /// When it will probably end, for people.
    #[serde(default)]
    pub estimated_end: Option<Millis>,
}

/// Why a queue hands out no jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PauseReason {
    Operator,
    MaintenanceMode,
}

impl Jobs {
    /// The mode, if it is on.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn maintenance_mode(&self) -> StoreResult<Option<MaintenanceMode>> {
        let mut command = redis::cmd("GET");
        command.arg(keys::MAINTENANCE_MODE);
        let stored: Option<String> = command.query_async(&mut self.store.redis.clone()).await?;
        let read = |text: String| {
            serde_json::from_str(&text).map_err(|error| StoreError::damaged(format!("maintenance mode: {error}")))
        };
        stored.map(read).transpose()
    }

    /// Switches the mode on or off.
    ///
    /// # Errors
    /// Redis is unavailable: some queues may be paused or resumed. Call again.
    pub async fn set_maintenance_mode(&self, mode: Option<&MaintenanceMode>) -> StoreResult<()> {
        let mut redis = self.store.redis.clone();
        // First: a queue that is made meanwhile looks here
        match mode {
            Some(mode) => {
                let text = serde_json::to_string(mode).unwrap_or_default();
                redis::cmd("SET").arg(keys::MAINTENANCE_MODE).arg(text).exec_async(&mut redis).await?;
            }
            None => redis::cmd("DEL").arg(keys::MAINTENANCE_MODE).exec_async(&mut redis).await?,
        }
        let queues = self.list_partitions().await?;
        let paused = queues.iter().map(|queue| self.set_paused(queue, PauseReason::MaintenanceMode, mode.is_some()));
        stream::iter(paused.collect::<Vec<_>>()).buffer_unordered(CONCURRENCY).try_collect().await
    }

    /// Pauses a new queue if the mode is on.
    pub(super) async fn follow_maintenance_mode(&self, queue: &QueueName) -> StoreResult<()> {
        if self.maintenance_mode().await?.is_none() {
            return Ok(());
        }
        self.set_paused(queue, PauseReason::MaintenanceMode, true).await?;
        // It may have ended meanwhile
        if self.maintenance_mode().await?.is_none() {
            self.set_paused(queue, PauseReason::MaintenanceMode, false).await?;
        }
        Ok(())
    }

    pub(super) async fn set_paused(&self, queue: &QueueName, reason: PauseReason, pauses: bool) -> StoreResult<()> {
        let mut call = script::SET_PAUSED.key(QueueKeys::new(queue).control());
        call.arg(match reason {
            PauseReason::Operator => "1",
            PauseReason::MaintenanceMode => "m",
        });
        call.arg(u8::from(pauses)).arg(self.store.redis.topics().notifications());
        call.arg(Notification::StreamCreated(queue.clone()).encode());
        let _: i64 = call.invoke_async(&mut self.store.redis.clone()).await?;
        Ok(())
    }
}
