//! Claims without a script: a plain read costs Redis a third of what `claim.lua` does. Only for queue-workers, and only
//! from queues that have one priority and no limits, as most do. Whether that is still so is read just before, in the same
//! pipeline.

use redis::Value;

use super::{
    Attempt, ClaimAvailability, ClaimedJob, Consumer, Fence, JobRecord, Jobs,
    claim::{malformed_reply, parse_claimed_entries, parse_streams_reply},
};
use crate::{StoreResult, keys::QueueKeys, sealing::Sealer};
use common::{
    name::{Priority, QueueName},
    time::Millis,
};

/// About what an entry has beside its envelope, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// Jobs that were claimed without a script, and when more are available. As [`super::ClaimBatch`], but not decoded yet: the
/// next claim need not wait for that.
#[derive(Debug)]
pub struct DirectClaim {
    /// The jobs.
    pub jobs: EncodedJobs,
    /// Whether and when more jobs can be claimed.
    pub availability: ClaimAvailability,
    /// Whether there may be more jobs now, which had no room in this answer.
    pub is_cut: bool,
    /// How many partitions the queue has, if it has several.
    pub partitions: Option<u16>,
}

/// Claimed jobs as Redis sent them: [`Jobs::decode_claimed`].
#[derive(Debug)]
pub struct EncodedJobs {
    queue: QueueName,
    priority: Priority,
    entries: Vec<(String, Value)>,
    started_at: Millis,
}

impl EncodedJobs {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn decode(&mut self, sealer: &Sealer) -> impl Iterator<Item = ClaimedJob> {
        let entries = std::mem::take(&mut self.entries);
        parse_claimed_entries(sealer, &self.queue, self.priority, entries, self.started_at)
    }
}

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
    ) -> StoreResult<DirectClaim> {
        let (keys, priority) = (QueueKeys::new(queue), priorities.first().copied().unwrap_or_default());
        let mut pipeline = redis::pipe();
        pipeline.cmd("HMGET").arg(keys.control()).arg("paused").arg("c").arg("rl").arg("n");
        pipeline.cmd("SCARD").arg(keys.priorities());
        pipeline.cmd("XREADGROUP").arg("GROUP").arg("workers").arg(consumer.name()).arg("COUNT").arg(max);
        pipeline.arg("STREAMS").arg(keys.stream(priority)).arg(">");
        let reply = pipeline.query_async(&mut self.store.redis.clone()).await.map_err(crate::StoreError::from);
        let (control, streams, read): (Vec<Option<String>>, usize, Value) = self.claim_budget.observe(reply)?;
        let entries: Vec<_> = parse_streams_reply(read)?.into_values().flatten().collect();
        let mut jobs = EncodedJobs { queue: queue.clone(), priority, entries, started_at: self.estimated_now() };
        if streams != priorities.len() {
            priorities.clear();
        }
        let is_cut = jobs.len() == max;
        let [limits @ .., partitions] = &control[..] else { return Err(malformed_reply("no controls")) };
        let partitions = partitions.as_ref().and_then(|count| count.parse().ok());
        if limits.iter().all(Option::is_none) {
            return Ok(DirectClaim { jobs, availability: ClaimAvailability::Unlimited, is_cut, partitions });
        }
        let fence = Fence::for_worker(consumer);
        for claimed in jobs.decode(self.sealer()) {
            self.release(Attempt::of(&claimed, &fence)).await?;
        }
        let is_paused = limits.first().is_some_and(Option::is_some);
        let availability = if is_paused { ClaimAvailability::Paused } else { ClaimAvailability::Limited };
        Ok(DirectClaim { jobs, availability, is_cut: !is_paused, partitions })
    }

    /// Decodes jobs that were claimed without a script.
    ///
    /// # Errors
    /// Redis is unavailable, and the jobs need results of others or have checkpoints: [`Jobs::recover_claims`].
    pub async fn decode_claimed(&self, mut encoded: EncodedJobs) -> StoreResult<Vec<ClaimedJob>> {
        let mut jobs: Vec<ClaimedJob> = encoded.decode(self.sealer()).collect();
        self.load_claimed(&mut jobs).await?;
        Ok(jobs)
    }
}
