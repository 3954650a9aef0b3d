//! Waits for stream entries without claiming them: a plain blocking read after the last claimed entry.
//!
//! It is for waiters for whom a blocking claim would be wrong: on queues with limits, which a claim must check, and
//! for many waiters at once, since nobody knows beforehand which one gets the job.

use std::{collections::HashMap, time::Duration};

use redis::{FromRedisValue, RedisResult, Value};

use crate::jobs::{Jobs, duration_millis, malformed_reply, sorted_priorities};
use crate::{StoreError, StoreResult, connection::dedicated::DedicatedConnection, keys::QueueKeys};
use common::name::{Priority, QueueName};

/// The position in a stream without claims.
const STREAM_START: &str = "0";

/// A stream and its last claimed entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedStream {
    /// The queue.
    pub queue: QueueName,
    /// The priority of the stream.
    pub priority: Priority,
    last_delivered_id: String,
}

impl Jobs {
    /// The streams of these queues with their last claimed entries, in two round trips. Missing or damaged streams are
    /// left out.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn streams_to_watch<'a>(
        &self,
        queues: impl IntoIterator<Item = &'a QueueName>,
    ) -> StoreResult<Vec<WatchedStream>> {
        let queues: Vec<&QueueName> = queues.into_iter().collect();
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for queue in &queues {
            pipeline.cmd("SMEMBERS").arg(QueueKeys::new(queue).priorities());
        }
        let members: Vec<RedisResult<Vec<String>>> = pipeline.query_async(&mut self.store.redis.clone()).await?;
        let mut streams = Vec::new();
        for (queue, members) in queues.into_iter().zip(members) {
            let priorities = sorted_priorities(&ignore_unexpected(members)?.unwrap_or_default());
            streams.extend(priorities.into_iter().map(|priority| (queue.clone(), priority)));
        }
        self.delivery_positions(streams).await
    }

    async fn delivery_positions(&self, streams: Vec<(QueueName, Priority)>) -> StoreResult<Vec<WatchedStream>> {
        if streams.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for (queue, priority) in &streams {
            pipeline.cmd("XINFO").arg("GROUPS").arg(QueueKeys::new(queue).stream(*priority));
        }
        let groups: Vec<RedisResult<Vec<HashMap<String, Value>>>> =
            pipeline.query_async(&mut self.store.redis.clone()).await?;
        let mut watched = Vec::with_capacity(streams.len());
        for ((queue, priority), groups) in streams.into_iter().zip(groups) {
            let Some(groups) = ignore_unexpected(groups)? else { continue };
            let last = groups.into_iter().find_map(|mut group| group.remove("last-delivered-id"));
            let last = last.and_then(|last| String::from_redis_value(last).ok());
            watched.push(WatchedStream {
                queue,
                priority,
                last_delivered_id: last.unwrap_or_else(|| STREAM_START.to_owned()),
            });
        }
        Ok(watched)
    }

    /// Waits for unclaimed entries on the streams, without claiming them; returns the queues that have some, or none
    /// after the time limit.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn wait_for_entries(
        &self,
        connection: &mut DedicatedConnection,
        streams: &[WatchedStream],
        block: Duration,
    ) -> StoreResult<Vec<QueueName>> {
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(1).arg("BLOCK").arg(duration_millis(block)).arg("STREAMS");
        let keys: Vec<String> =
            streams.iter().map(|watched| QueueKeys::new(&watched.queue).stream(watched.priority)).collect();
        read.arg(&keys);
        for watched in streams {
            read.arg(&watched.last_delivered_id);
        }
        let reply: Value = connection.query(&read).await?;
        let arrived: HashMap<String, Value> =
            Option::from_redis_value(reply).map_err(malformed_reply)?.unwrap_or_default();
        let mut queues: Vec<QueueName> = streams
            .iter()
            .zip(keys)
            .filter(|(_, key)| arrived.contains_key(key))
            .map(|(watched, _)| watched.queue.clone())
            .collect();
        queues.dedup();
        Ok(queues)
    }

    /// Waits for an entry that was never claimed, without claiming it; false if none came.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn wait_for_undelivered(
        &self,
        connection: &mut DedicatedConnection,
        streams: &[(QueueName, Priority)],
        block: Duration,
    ) -> StoreResult<bool> {
        let watched = self.delivery_positions(streams.to_vec()).await?;
        Ok(!self.wait_for_entries(connection, &watched, block).await?.is_empty())
    }
}

/// A read's result, or none if the key is not Galley's. Such a key must not prevent watching the others.
fn ignore_unexpected<T: Default>(found: RedisResult<T>) -> StoreResult<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        // The stream does not exist: whatever appears there is new
        Err(error) if error.code() == Some("ERR") => Ok(Some(T::default())),
        Err(error) => match StoreError::from(error) {
            error @ StoreError::Unavailable(_) => Err(error),
            error => {
                tracing::warn!(%error, "a queue cannot be watched");
                Ok(None)
            }
        },
    }
}
