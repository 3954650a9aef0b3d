//! Counters of a queue.

use std::collections::HashMap;

use redis::{RedisResult, Value};

use super::{
    Jobs, QueueControl,
    claim::{last_delivered_id, malformed_reply},
    sorted_priorities,
};
use crate::{StoreError, StoreResult, keys::QueueKeys};
use common::{
    id::EntryId,
    name::{Priority, QueueName},
    time::Millis,
};

/// Queues that are looked at in one read.
const QUEUE_PAGE_SIZE: usize = 200;

/// The counters of one queue at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Jobs that wait for a worker.
    pub available: u64,
    /// Jobs that a worker has.
    pub active: u64,
    /// Scheduled and retryable jobs.
    pub delayed: u64,
    /// Those of them that wait for their next attempt.
    pub retryable: u64,
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

impl QueueStats {
    fn add(&mut self, other: &Self) {
        let Self { available, active, delayed, retryable, pending, dead, completed, discarded, cancelled, retried } =
            other;
        self.available += available;
        self.active += active;
        self.delayed += delayed;
        self.retryable += retryable;
        self.pending += pending;
        self.dead += dead;
        self.completed += completed;
        self.discarded += discarded;
        self.cancelled += cancelled;
        self.retried += retried;
    }
}

impl Jobs {
    /// The counters of a queue with all its partitions; zeros if it does not exist.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn queue_stats(&self, queue: &QueueName) -> StoreResult<QueueStats> {
        let mut overviews = self.queue_overviews(std::slice::from_ref(queue)).await?;
        Ok(overviews.pop().map(|(stats, _)| stats).unwrap_or_default())
    }

    /// The counters and controls of queues, in their order: two round trips for some hundred queues, and two for the
    /// partitions of those that have some.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn queue_overviews(&self, queues: &[QueueName]) -> StoreResult<Vec<(QueueStats, QueueControl)>> {
        let mut overviews = if queues.iter().any(|queue| queue.partition_number() > 0) {
            let queues: Vec<QueueName> = queues.iter().map(|queue| queue.base().into_owned()).collect();
            self.partition_overviews(&queues).await?
        } else {
            self.partition_overviews(queues).await?
        };
        let mut partitions = Vec::new();
        for (number, (queue, (_, control))) in queues.iter().zip(&overviews).enumerate() {
            let others = (1..control.partitions.count).map(|partition| (number, queue.partition(partition)));
            partitions.extend(others);
        }
        if !partitions.is_empty() {
            let (numbers, partitions): (Vec<usize>, Vec<QueueName>) = partitions.into_iter().unzip();
            for (number, (stats, _)) in numbers.into_iter().zip(self.partition_overviews(&partitions).await?) {
                overviews[number].0.add(&stats);
            }
        }
        Ok(overviews)
    }

    /// The same of each partition alone.
    async fn partition_overviews(&self, queues: &[QueueName]) -> StoreResult<Vec<(QueueStats, QueueControl)>> {
        let mut overviews = Vec::with_capacity(queues.len());
        for queues in queues.chunks(QUEUE_PAGE_SIZE) {
            let mut pipeline = redis::pipe();
            for keys in queues.iter().map(QueueKeys::new) {
                pipeline.cmd("SMEMBERS").arg(keys.priorities());
            }
            let mut redis = self.store.redis.clone();
            let priorities: Vec<Vec<String>> = pipeline.query_async(&mut redis).await?;
            let priorities: Vec<Vec<Priority>> = priorities.iter().map(|listed| sorted_priorities(listed)).collect();
            let mut pipeline = redis::pipe();
            // No transaction: Redis refuses those when it is out of memory, and operators look then above all
            pipeline.ignore_errors();
            for (keys, priorities) in queues.iter().map(QueueKeys::new).zip(&priorities) {
                pipeline.cmd("HGETALL").arg(keys.stats()).cmd("HGETALL").arg(keys.control());
                pipeline.cmd("ZCARD").arg(keys.due()).cmd("ZCARD").arg(keys.dead_letters());
                pipeline.cmd("ZCARD").arg(keys.pending());
                for priority in priorities {
                    let stream = keys.stream(*priority);
                    pipeline.cmd("XLEN").arg(&stream).cmd("XPENDING").arg(&stream).arg("workers");
                }
            }
            let replies: Vec<RedisResult<Value>> = pipeline.query_async(&mut redis).await?;
            let mut replies = replies.into_iter();
            for (queue, priorities) in queues.iter().zip(&priorities) {
                let fields: HashMap<String, i64> = next_value(&mut replies)?;
                let control: HashMap<String, String> = next_value(&mut replies)?;
                let stats = read_stats(&fields, priorities.len(), &mut replies)?;
                overviews.push((stats, self.control_of(queue, &control)));
            }
        }
        Ok(overviews)
    }

    /// When the job that has waited longest for a worker came to its queue; jobs that wait for their key do not count, nor
    /// those in partitions that this process does not know.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn oldest_waiting_at(&self, queue: &QueueName) -> StoreResult<Option<Millis>> {
        let mut oldest = None::<Millis>;
        for partition in self.known_partitions(queue) {
            oldest = oldest.into_iter().chain(self.oldest_waiting_in(&partition).await?).min();
        }
        Ok(oldest)
    }

    async fn oldest_waiting_in(&self, queue: &QueueName) -> StoreResult<Option<Millis>> {
        let (keys, mut redis, mut oldest) = (QueueKeys::new(queue), self.store.redis.clone(), None::<Millis>);
        for priority in self.priorities(queue).await? {
            let stream = keys.stream(priority);
            let claimed = match last_delivered_id(&mut redis, &stream).await {
                // The stream was removed
                Err(StoreError::Refused(_)) => continue,
                claimed => claimed?,
            };
            let mut command = redis::cmd("XRANGE");
            command.arg(stream).arg(format!("({claimed}")).arg("+").arg("COUNT").arg(1);
            let first: Vec<(String, Value)> = command.query_async(&mut redis).await?;
            let entry = first.first().and_then(|(entry, _)| entry.parse::<EntryId>().ok());
            let at = entry.and_then(|entry| Millis::try_from(entry.milliseconds).ok());
            oldest = oldest.into_iter().chain(at).min();
        }
        Ok(oldest)
    }
}

fn read_stats(
    totals: &HashMap<String, i64>,
    streams: usize,
    replies: &mut std::vec::IntoIter<RedisResult<Value>>,
) -> StoreResult<QueueStats> {
    let total = |name: &str| totals.get(name).and_then(|total| u64::try_from(*total).ok()).unwrap_or(0);
    let mut stats = QueueStats {
        delayed: next_value(replies)?,
        dead: next_value(replies)?,
        pending: next_value(replies)?,
        // Those that wait for the limit of their key
        available: total("key_waiting"),
        completed: total("completed"),
        discarded: total("discarded"),
        cancelled: total("cancelled"),
        retried: total("retried"),
        ..QueueStats::default()
    };
    // A record that was lost may have left the counter too high
    stats.retryable = total("retryable").min(stats.delayed);
    for _ in 0..streams {
        let length: u64 = next_value(replies)?;
        let pending: Vec<Value> = match next_value(replies) {
            // The stream was removed between the list of streams and the look at them
            Err(error) if error.is_missing_stream() => Vec::new(),
            pending => pending?,
        };
        let held = pending.into_iter().next().map_or(Ok(0), redis::from_redis_value).map_err(malformed_reply)?;
        stats.active += held;
        stats.available += length.saturating_sub(held);
    }
    Ok(stats)
}

fn next_value<T: redis::FromRedisValue>(replies: &mut std::vec::IntoIter<RedisResult<Value>>) -> StoreResult<T> {
    let reply = replies.next().unwrap_or(Ok(Value::Nil))?;
    redis::from_redis_value(reply).map_err(malformed_reply)
}
