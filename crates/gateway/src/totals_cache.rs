//! The totals of all queues, which cost a few commands for each queue: read once for all who ask at about the same time.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::name::QueueName;
use store::{StoreResult, jobs::Jobs, statistics::JobTotals};

/// How long the totals are shown before they are read again.
const MAX_AGE: Duration = Duration::from_secs(2);

/// The totals of all queues, as they were last read.
#[derive(Debug, Default)]
pub(crate) struct TotalsCache(Mutex<Option<(Instant, JobTotals)>>);

impl TotalsCache {
    /// Reads them, unless they were read just now. Requests at the same time may each read them.
    pub(crate) async fn all(&self, jobs: &Jobs, queues: &[QueueName]) -> StoreResult<JobTotals> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, totals)) = known.filter(|(at, _)| at.elapsed() < MAX_AGE) {
            return Ok(totals);
        }
        let totals = jobs.job_totals(queues).await?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), totals));
        Ok(totals)
    }
}
