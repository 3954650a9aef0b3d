//! Drops the oldest dead letters of a queue beyond their number, with everything that is stored of them.

use super::Jobs;
use crate::{StoreResult, keys::QueueKeys, script};
use common::{id::JobId, name::QueueName};

/// Dead letters dropped in one call.
const BATCH_SIZE: u64 = 100;

impl Jobs {
    /// Drops the dead letters of a queue beyond `jobs.dead_letter_max`. A failure is left to maintenance.
    pub(super) async fn drop_excess_dead_letters(&self, queue: &QueueName) {
        if let Err(error) = self.trim_dead_letters(queue, self.store.settings.jobs.dead_letter_max).await {
            tracing::debug!(%error, %queue, "dead letters not trimmed, left to maintenance");
        }
    }

    /// Drops the oldest dead letters of a queue beyond a number, with everything that is stored of them.
    ///
    /// # Errors
    /// Redis is unavailable: some may have been dropped.
    pub(crate) async fn trim_dead_letters(&self, queue: &QueueName, max: u64) -> StoreResult<()> {
        let (keys, mut redis) = (QueueKeys::new(queue), self.store.redis.clone());
        loop {
            let count: u64 = redis::cmd("ZCARD").arg(keys.dead_letters()).query_async(&mut redis).await?;
            let excess = count.saturating_sub(max).min(BATCH_SIZE);
            if excess == 0 {
                return Ok(());
            }
            let mut command = redis::cmd("ZRANGE");
            command.arg(keys.dead_letters()).arg(0).arg(excess - 1);
            let oldest: Vec<String> = command.query_async(&mut redis).await?;
            let ids: Vec<JobId> = oldest.iter().filter_map(|id| id.parse().ok()).collect();
            if ids.is_empty() {
                // Somebody else wrote them
                redis::cmd("ZREM").arg(keys.dead_letters()).arg(&oldest).exec_async(&mut redis).await?;
                continue;
            }
            let mut call = script::DROP_DEAD_LETTERS.key(keys.dead_letters());
            call.key(keys.discarded());
            for id in &ids {
                call.key(keys.result(id)).arg(id.to_string());
            }
            for id in &ids {
                call.key(keys.log(id));
            }
            for id in &ids {
                call.key(keys.checkpoint(id));
            }
            for id in &ids {
                call.key(keys.signals(id));
            }
            let dropped: u64 = call.invoke_async(&mut redis).await?;
            metrics::counter!("galley_dead_letters_dropped_total", "queue" => queue.to_string()).increment(dropped);
            if dropped > 0 {
                tracing::warn!(event = "dead_letters.dropped", %queue, dropped, max, "too many dead letters");
            }
        }
    }
}
