//! A cache of which queues accept no new jobs.
//!
//! An ordinary enqueue is one command that reads nothing, so the closed flag is read separately, once a second for
//! each queue in use, and with it the number of partitions.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use super::{Jobs, Partitions};
use crate::{StoreResult, keys::QueueKeys};
use common::name::QueueName;

/// How long an answer is cached.
const CACHE_TTL: Duration = Duration::from_secs(1);
/// Maximum number of cached answers.
const MAX_CACHED_QUEUES: usize = 10_000;

/// Cached answers.
#[derive(Default)]
pub(super) struct ClosedQueueCache(RwLock<HashMap<QueueName, (bool, Instant)>>);

impl Jobs {
    /// Whether a queue accepts no new jobs, up to a second late. What Redis says of its partitions is known then.
    pub(super) async fn is_closed(&self, queue: &QueueName) -> StoreResult<bool> {
        let queue = &*queue.base();
        let known = self.closed_queues.0.read().unwrap_or_else(PoisonError::into_inner).get(queue).copied();
        if let Some((is_closed, at)) = known
            && at.elapsed() < CACHE_TTL
        {
            return Ok(is_closed);
        }
        let mut command = redis::cmd("HMGET");
        command.arg(QueueKeys::new(queue).control()).arg("closed").arg("n").arg("k");
        let (closed, count, key_count): (Option<String>, Option<u16>, Option<u16>) =
            command.query_async(&mut self.store.redis.clone()).await?;
        let found = Partitions::from_fields(count, key_count);
        let partitions = Box::pin(self.raise_to_settings(queue, found)).await?;
        self.note_partitions(queue, partitions);
        let is_closed = closed.is_some();
        let mut answers = self.closed_queues.0.write().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MAX_CACHED_QUEUES {
            answers.clear();
        }
        answers.insert(queue.clone(), (is_closed, Instant::now()));
        Ok(is_closed)
    }
}
