//! Many dead letters at once: counts, redrives and deletes them.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::Jobs;
use crate::{StoreResult, connection::clock::first_due_at, keys::QueueKeys};
use common::{id::JobId, name::QueueName, time::Millis};

/// Maximum number of queues in one read.
const QUEUE_PAGE_SIZE: usize = 500;
/// Dead letters redriven or deleted concurrently.
const CONCURRENCY: usize = 16;

/// Statistics of dead letters.
#[derive(Debug, Default)]
pub struct DeadLetterStats {
    /// Their number in each queue that has some.
    pub by_queue: BTreeMap<QueueName, u64>,
    /// When the oldest died.
    pub oldest_at: Option<Millis>,
    /// When the newest died.
    pub newest_at: Option<Millis>,
}

impl Jobs {
    /// Makes dead letters available again; returns how many.
    ///
    /// # Errors
    /// Redis is unavailable: some may be available nevertheless.
    pub async fn redrive_all(&self, ids: &[JobId]) -> StoreResult<usize> {
        let done: Vec<bool> = stream::iter(ids.iter().copied())
            .map(|id| async move { self.redrive(id).await.map(|job| job.is_ok()) })
            .buffered(CONCURRENCY)
            .try_collect()
            .await?;
        Ok(done.into_iter().filter(|done| *done).count())
    }

    /// Deletes dead letters; returns how many.
    ///
    /// # Errors
    /// Redis is unavailable: some may have been deleted.
    pub async fn delete_dead_letters(&self, ids: &[JobId]) -> StoreResult<usize> {
        let done: Vec<bool> = stream::iter(ids.iter().copied())
            .map(|id| self.delete_dead_letter(id))
            .buffered(CONCURRENCY)
            .try_collect()
            .await?;
        Ok(done.into_iter().filter(|done| *done).count())
    }

    /// The statistics of the dead letters of some queues.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn dead_letter_stats(&self, is_wanted: impl Fn(&QueueName) -> bool) -> StoreResult<DeadLetterStats> {
        let mut queues = self.list_partitions().await?;
        queues.retain(is_wanted);
        let mut stats = DeadLetterStats::default();
        for some in queues.chunks(QUEUE_PAGE_SIZE) {
            let mut pipeline = redis::pipe();
            for keys in some.iter().map(QueueKeys::new) {
                pipeline.cmd("ZCARD").arg(keys.dead_letters());
                pipeline.cmd("ZRANGE").arg(keys.dead_letters()).arg(0).arg(0).arg("WITHSCORES");
                pipeline.cmd("ZREVRANGE").arg(keys.dead_letters()).arg(0).arg(0).arg("WITHSCORES");
            }
            let replies: Vec<redis::Value> =
                pipeline.query_async(&mut self.store.redis.pooled_connection().await?).await?;
            for (queue, replies) in some.iter().zip(replies.chunks(3)) {
                let [count, oldest, newest] = replies else { continue };
                let count: u64 = redis::from_redis_value(count.clone()).map_err(super::claim::malformed_reply)?;
                if count > 0 {
                    *stats.by_queue.entry(queue.base().into_owned()).or_default() += count;
                    stats.oldest_at = stats.oldest_at.into_iter().chain(died_at(oldest)).min();
                    stats.newest_at = stats.newest_at.into_iter().chain(died_at(newest)).max();
                }
            }
        }
        Ok(stats)
    }
}

fn died_at(head: &redis::Value) -> Option<Millis> {
    let head: Vec<(redis::Value, f64)> = redis::from_redis_value(head.clone()).ok()?;
    first_due_at(&head)
}
