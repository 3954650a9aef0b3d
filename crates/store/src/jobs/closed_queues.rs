//! Queues that take no new jobs for now.
//!
//! An ordinary enqueue is one command that asks nothing, so whether a queue is closed is looked up beside it, once a second
//! for each queue that is in use.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use super::Jobs;
use crate::{StoreResult, keys::QueueKeys};
use common::name::QueueName;

/// How long an answer is good for.
const CACHE_TTL: Duration = Duration::from_secs(1);
/// Answers kept.
const MAX_CACHED_QUEUES: usize = 10_000;

/// What was found out lately.
#[derive(Default)]
pub(super) struct ClosedQueueCache(RwLock<HashMap<QueueName, (bool, Instant)>>);

impl Jobs {
    /// Whether a queue takes no new jobs, as of the last second.
    pub(super) async fn is_closed(&self, queue: &QueueName) -> StoreResult<bool> {
        let known = self.closed_queues.0.read().unwrap_or_else(PoisonError::into_inner).get(queue).copied();
        if let Some((is_closed, at)) = known
            && at.elapsed() < CACHE_TTL
        {
            return Ok(is_closed);
        }
        let is_closed: bool = redis::cmd("HEXISTS")
            .arg(QueueKeys::new(queue).control())
            .arg("closed")
            .query_async(&mut self.store.redis.clone())
            .await?;
        let mut answers = self.closed_queues.0.write().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MAX_CACHED_QUEUES {
            answers.clear();
        }
        answers.insert(queue.clone(), (is_closed, Instant::now()));
        Ok(is_closed)
    }
}
