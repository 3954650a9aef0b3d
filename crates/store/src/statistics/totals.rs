//! What all queues hold now.

use common::name::QueueName;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{StoreResult, jobs::Jobs, keys::QueueKeys};

/// Queues that are read at a time.
const CONCURRENT_QUEUES: usize = 16;
/// Scheduled and retryable jobs that are told apart, in all and in one queue. The share among more is estimated.
const MAX_TOLD_APART: usize = 2000;
const MAX_TOLD_APART_PER_QUEUE: usize = 200;

/// Jobs of several queues by state. Those that ended are totals since each queue was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is a state of jobs")]
pub struct JobTotals {
    pub available: u64,
    pub active: u64,
    pub scheduled: u64,
    pub retryable: u64,
    pub pending: u64,
    pub completed: u64,
    pub discarded: u64,
    pub cancelled: u64,
}

impl Jobs {
    /// What these queues hold now. A few commands for each queue, a few queues at a time.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn job_totals(&self, queues: &[QueueName]) -> StoreResult<JobTotals> {
        let read = queues.iter().map(|queue| async move { StoreResult::Ok((queue, self.queue_stats(queue).await?)) });
        let all: Vec<_> = stream::iter(read).buffer_unordered(CONCURRENT_QUEUES).try_collect().await?;
        let (mut totals, mut told_apart) = (JobTotals::default(), 0);
        for (queue, stats) in all {
            totals.available += stats.available;
            totals.active += stats.active;
            totals.pending += stats.pending;
            totals.completed += stats.completed;
            totals.discarded += stats.discarded;
            totals.cancelled += stats.cancelled;
            let count = MAX_TOLD_APART_PER_QUEUE.min(MAX_TOLD_APART - told_apart);
            let (retryable, of) = if stats.delayed == 0 { (0, 0) } else { self.count_retryable(queue, count).await? };
            told_apart += usize::try_from(of).unwrap_or(0).min(count);
            let retryable = if of == 0 { 0 } else { stats.delayed.saturating_mul(retryable).div_euclid(of) };
            totals.retryable += retryable;
            totals.scheduled += stats.delayed.saturating_sub(retryable);
        }
        Ok(totals)
    }

    /// Of the jobs of a queue that are due first: how many wait for another attempt, and of how many.
    async fn count_retryable(&self, queue: &QueueName, max: usize) -> StoreResult<(u64, u64)> {
        let (keys, mut redis) = (QueueKeys::new(queue), self.store.redis.clone());
        if max == 0 {
            return Ok((0, 0));
        }
        let mut command = redis::cmd("ZRANGE");
        let ids: Vec<String> = command.arg(keys.due()).arg(0).arg(max - 1).query_async(&mut redis).await?;
        let mut pipeline = redis::pipe();
        for id in ids.iter().filter_map(|id| id.parse().ok()) {
            pipeline.cmd("HGET").arg(keys.record(&id)).arg("s");
        }
        if pipeline.is_empty() {
            return Ok((0, 0));
        }
        let states: Vec<Option<String>> = pipeline.query_async(&mut redis).await?;
        let retryable = states.iter().filter(|state| state.as_deref() == Some("retryable")).count();
        Ok((retryable as u64, states.len() as u64))
    }
}
