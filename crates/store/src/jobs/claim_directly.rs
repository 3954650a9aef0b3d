//! Claims without a script: a plain read costs Redis a third of what `claim.lua` does. Only for queue-workers, and only
//! from queues that have one priority and no limits, as most do. Whether that is still so is read just before, in the same
//! pipeline.

use redis::Value;

use super::{
    Attempt, ClaimAvailability, ClaimBatch, ClaimedJob, Consumer, Fence, JobRecord, Jobs,
    claim::{parse_claimed_entries, parse_streams_reply},
};
use crate::{StoreResult, keys::QueueKeys};
use common::name::{Priority, QueueName};

/// About what an entry has beside its envelope, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// The size of the jobs that a queue had lately: a plain read counts jobs, not bytes, so their size must be known.
#[derive(Debug, Clone, Copy, Default)]
pub struct JobSizes {
    largest: Option<usize>,
}

impl JobSizes {
    /// Notes jobs that were claimed. The memory of a large one fades.
    pub fn observe(&mut self, jobs: &[ClaimedJob]) {
        let size = |job: &JobRecord| job.envelope.as_str().len() + job.parent_results_bytes.unwrap_or(0);
        let Some(largest) = jobs.iter().map(|claimed| size(&claimed.job)).max() else { return };
        let faded = self.largest.map_or(0, |before| before - before / 8);
        self.largest = Some(faded.max(largest + ENTRY_OVERHEAD_BYTES));
    }
}

impl Jobs {
    /// How many jobs of that size a plain read may ask for; none if a script must count their bytes.
    #[must_use]
    pub fn direct_claim_size(&self, max: usize, sizes: JobSizes) -> Option<usize> {
        let count = max.min(self.claim_bytes() / sizes.largest?);
        (count > 1 && self.claim_budget.is_full()).then_some(count)
    }

    /// Claims up to `max` jobs of a queue that had one priority and no limits at the last claim, for a queue-worker. If it
    /// has other priorities or limits now, `priorities` or the availability says so, and jobs that these do not allow go
    /// back to the queue.
    ///
    /// # Errors
    /// After [`crate::StoreError::Unavailable`] jobs may have been claimed nevertheless: [`Jobs::recover_claims`].
    pub async fn claim_directly(
        &self,
        queue: &QueueName,
        priorities: &mut Vec<Priority>,
        max: usize,
        consumer: &Consumer,
    ) -> StoreResult<ClaimBatch> {
        let (keys, priority) = (QueueKeys::new(queue), priorities.first().copied().unwrap_or_default());
        let mut pipeline = redis::pipe();
        pipeline.cmd("HMGET").arg(keys.control()).arg("paused").arg("c").arg("rl");
        pipeline.cmd("SCARD").arg(keys.priorities());
        pipeline.cmd("XREADGROUP").arg("GROUP").arg("workers").arg(consumer.name()).arg("COUNT").arg(max);
        pipeline.arg("STREAMS").arg(keys.stream(priority)).arg(">");
        let reply = pipeline.query_async(&mut self.store.redis.clone()).await.map_err(crate::StoreError::from);
        let (control, streams, read): (Vec<Option<String>>, usize, Value) = self.claim_budget.observe(reply)?;
        let entries = parse_streams_reply(read)?.into_values().flatten().collect();
        let mut jobs: Vec<ClaimedJob> =
            parse_claimed_entries(self.sealer(), queue, priority, entries, self.estimated_now()).collect();
        if streams != priorities.len() {
            priorities.clear();
        }
        let is_cut = jobs.len() == max;
        if control.iter().all(Option::is_none) {
            self.load_claimed_parents(&mut jobs).await?;
            return Ok(ClaimBatch { jobs, availability: ClaimAvailability::Unlimited, is_cut });
        }
        let fence = Fence::for_worker(consumer);
        for claimed in &jobs {
            self.release(Attempt::of(claimed, &fence)).await?;
        }
        let is_paused = control.first().is_some_and(Option::is_some);
        let availability = if is_paused { ClaimAvailability::Paused } else { ClaimAvailability::Limited };
        Ok(ClaimBatch { jobs: Vec::new(), availability, is_cut: !is_paused })
    }
}
