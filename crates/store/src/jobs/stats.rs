//! Counters of a queue.

use std::collections::HashMap;

use super::Jobs;
use crate::{StoreResult, keys::QueueKeys};
use common::{name::QueueName, time::Millis};

/// The counters of one queue at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Jobs that wait for a worker.
    pub available: u64,
    /// Jobs that a worker has.
    pub active: u64,
    /// Scheduled and retryable jobs.
    pub delayed: u64,
    /// Jobs that wait to be activated.
    pub pending: u64,
    /// Dead letters.
    pub dead: u64,
    /// Jobs that succeeded, in total.
    pub completed: u64,
    /// Jobs that failed permanently or expired, in total.
    pub discarded: u64,
    /// Cancelled jobs, in total.
    pub cancelled: u64,
    /// Failed attempts that another one followed, in total.
    pub retried: u64,
}

impl Jobs {
    /// The counters of a queue; zeros if it does not exist.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn queue_stats(&self, queue: &QueueName) -> StoreResult<QueueStats> {
        match self.read_queue_stats(queue).await {
            // A stream was removed between the list of streams and the look at them
            Err(error) if error.is_missing_stream() => self.read_queue_stats(queue).await,
            stats => stats,
        }
    }

    /// When the job became available that waits longest in the streams of a queue; none if none waits.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn oldest_waiting_at(&self, queue: &QueueName) -> StoreResult<Option<Millis>> {
        let keys = QueueKeys::new(queue);
        let streams: Vec<String> =
            self.priorities(queue).await?.into_iter().map(|priority| keys.stream(priority)).collect();
        let mut pipeline = redis::pipe();
        for stream in &streams {
            pipeline.cmd("XINFO").arg("GROUPS").arg(stream);
        }
        // A stream that was removed meanwhile has no job that waits
        pipeline.ignore_errors();
        let groups: Vec<redis::RedisResult<Vec<HashMap<String, redis::Value>>>> =
            pipeline.query_async(&mut self.store.redis.clone()).await?;
        let mut next = redis::pipe();
        for (stream, groups) in streams.iter().zip(groups) {
            let group = groups.ok().and_then(|groups| groups.into_iter().next());
            let last: Option<String> =
                group.and_then(|mut group| redis::from_redis_value(group.remove("last-delivered-id")?).ok());
            let after = last.map_or_else(|| "-".to_owned(), |last| format!("({last}"));
            next.cmd("XRANGE").arg(stream).arg(after).arg("+").arg("COUNT").arg(1);
        }
        let first: Vec<redis::streams::StreamRangeReply> = next.query_async(&mut self.store.redis.clone()).await?;
        let times = first.iter().filter_map(|reply| reply.ids.first()?.id.split_once('-')?.0.parse::<Millis>().ok());
        Ok(times.min())
    }

    async fn read_queue_stats(&self, queue: &QueueName) -> StoreResult<QueueStats> {
        let keys = QueueKeys::new(queue);
        let priorities = self.priorities(queue).await?;
        let mut pipeline = redis::pipe();
        // No transaction: Redis refuses those when it is out of memory, and operators look then above all
        pipeline
            .cmd("HGETALL")
            .arg(keys.stats())
            .cmd("ZCARD")
            .arg(keys.due())
            .cmd("ZCARD")
            .arg(keys.dead_letters())
            .cmd("ZCARD")
            .arg(keys.pending());
        for priority in &priorities {
            let stream = keys.stream(*priority);
            pipeline.cmd("XLEN").arg(&stream).cmd("XPENDING").arg(&stream).arg("workers");
        }
        let reply: Vec<redis::Value> = pipeline.query_async(&mut self.store.redis.clone()).await?;
        let mut reply = reply.into_iter();
        let totals: HashMap<String, i64> = next_value(&mut reply)?;
        let total = |name: &str| totals.get(name).and_then(|total| u64::try_from(*total).ok()).unwrap_or(0);
        let mut stats = QueueStats {
            delayed: next_value(&mut reply)?,
            dead: next_value(&mut reply)?,
            pending: next_value(&mut reply)?,
            // Those that wait for the limit of their key
            available: total("key_waiting"),
            completed: total("completed"),
            discarded: total("discarded"),
            cancelled: total("cancelled"),
            retried: total("retried"),
            ..QueueStats::default()
        };
        for _ in &priorities {
            let length: u64 = next_value(&mut reply)?;
            let pending: Vec<redis::Value> = next_value(&mut reply)?;
            let held = pending
                .into_iter()
                .next()
                .map_or(Ok(0), redis::from_redis_value)
                .map_err(super::claim::malformed_reply)?;
            stats.active += held;
            stats.available += length.saturating_sub(held);
        }
        Ok(stats)
    }
}

fn next_value<T: redis::FromRedisValue>(reply: &mut std::vec::IntoIter<redis::Value>) -> StoreResult<T> {
    redis::from_redis_value(reply.next().unwrap_or_default()).map_err(super::claim::malformed_reply)
}
