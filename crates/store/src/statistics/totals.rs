//! What all queues hold now.

use common::name::QueueName;

use crate::{StoreResult, jobs::Jobs};

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
    /// What these queues hold now.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn job_totals(&self, queues: &[QueueName]) -> StoreResult<JobTotals> {
        let mut totals = JobTotals::default();
        for (stats, _) in self.queue_overviews(queues).await? {
            totals.available += stats.available;
            totals.active += stats.active;
            totals.pending += stats.pending;
            totals.completed += stats.completed;
            totals.discarded += stats.discarded;
            totals.cancelled += stats.cancelled;
            totals.retryable += stats.retryable;
            totals.scheduled += stats.delayed.saturating_sub(stats.retryable);
        }
        Ok(totals)
    }
}
