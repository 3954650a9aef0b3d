//! The checkpoint of a job: what its handlers saved, so that the next attempt goes on from there. There is one for each job,
//! each save replaces it, and a job without one costs nothing: its key does not exist, and only jobs that have a record are
//! asked for it when they are claimed.

use redis::Value;

use super::{
    Attempt, ClaimedJob, JobChanges, Jobs, LocatedJob, attempt::call_about, checkpoint::JobCheckpoint,
    claim::malformed_reply, edit::EditRefusal,
};
use crate::{
    StoreError, StoreResult,
    connection::{budgets::DataKind, notification::Notification},
    events::JobEvent,
    keys::QueueKeys,
    script,
};
use common::{
    id::{EntryId, JobId},
    name::QueueName,
    time::Millis,
};
use model::job::JobState;

/// The largest state: what the Open Job Spec says.
pub const MAX_CHECKPOINT_BYTES: usize = 1 << 20;
/// How long a checkpoint is kept of a job whose end nobody recorded here.
const MAX_CHECKPOINT_TTL_MS: u64 = 90 * 24 * 60 * 60 * 1000;
/// About what Redis adds to it.
const CHECKPOINT_OVERHEAD_BYTES: usize = 100;
/// How often a job is looked up that moves meanwhile.
const MAX_LOOKUPS: usize = 8;

/// What became of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointOutcome {
    /// It is saved.
    Saved {
        /// Its number.
        sequence: u64,
        /// When it was saved.
        created_at: Millis,
    },
    /// The attempt is not the current one; nothing changed.
    Stale,
    /// A later save with this number came first; nothing changed.
    Superseded(u64),
}

/// Why the checkpoint of a waiting job was not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointRefusal {
    /// There is no job with that id.
    NotFound,
    /// Its state does not allow it.
    State(JobState),
}

impl Jobs {
    /// Saves the checkpoint of an attempt: any JSON of at most [`MAX_CHECKPOINT_BYTES`]. With a `sequence` a save that is
    /// late does not replace one with a greater number.
    ///
    /// # Errors
    /// Redis is unavailable or full: it may have been saved nevertheless.
    pub async fn save_checkpoint(
        &self,
        attempt: Attempt<'_>,
        sequence: Option<u64>,
        state: &str,
    ) -> StoreResult<CheckpointOutcome> {
        let outcome = self.store_checkpoint(attempt, &attempt.fence.args(), sequence, state).await?;
        if let CheckpointOutcome::Saved { sequence, .. } = outcome {
            self.record_event(JobEvent::checkpointed(attempt.job, sequence, state.len()));
        }
        Ok(outcome)
    }

    async fn store_checkpoint(
        &self,
        Attempt { job, entry, .. }: Attempt<'_>,
        fence: &[String; 3],
        sequence: Option<u64>,
        state: &str,
    ) -> StoreResult<CheckpointOutcome> {
        let (keys, id) = (QueueKeys::new(&job.queue), job.id.to_string());
        self.store.redis.memory().note_stored(DataKind::JobRecords, state.len() + CHECKPOINT_OVERHEAD_BYTES);
        let mut call = call_about(&script::SAVE_JOB_CHECKPOINT, job, entry);
        call.key(keys.record(&job.id)).key(keys.checkpoint(&job.id));
        let created_at = self.estimated_now();
        call.arg(fence).arg(sequence.unwrap_or_default()).arg(created_at).arg(MAX_CHECKPOINT_TTL_MS);
        call.arg(self.sealer().seal(&["checkpoint", job.queue.as_str(), &id], state).as_ref());
        call.arg(self.store.redis.topics().notifications());
        call.arg(Notification::DueChanged(job.queue.clone()).encode()).arg(self.store.redis.lease_start(keys.prefix()));
        let saved: i64 = call.invoke_async(&mut self.store.redis.clone()).await?;
        Ok(match saved {
            0 => CheckpointOutcome::Stale,
            saved if saved < 0 => CheckpointOutcome::Superseded(saved.unsigned_abs()),
            saved => CheckpointOutcome::Saved { sequence: saved.unsigned_abs(), created_at },
        })
    }

    /// Sets the checkpoint of a job that nobody runs, from which its next attempt goes on. A job that waits for its first
    /// attempt in its queue goes to the end of it, because its entry must say that there is something to read.
    ///
    /// # Errors
    /// Redis is unavailable or full: it may have been set nevertheless.
    pub async fn set_checkpoint(
        &self,
        id: JobId,
        sequence: Option<u64>,
        state: &str,
    ) -> StoreResult<Result<CheckpointOutcome, CheckpointRefusal>> {
        for _ in 0..MAX_LOOKUPS {
            let Some(located) = self.locate(id).await? else { return Ok(Err(CheckpointRefusal::NotFound)) };
            let (kind, record_state, job, entry) = match &located {
                LocatedJob::InRecord { job, record_state, .. } => ("record", record_state.as_str(), job, None),
                LocatedJob::InStream { job, entry, holder: None } => ("entry", "", job, Some(*entry)),
                LocatedJob::Finished(_) | LocatedJob::InStream { .. } => {
                    return Ok(Err(CheckpointRefusal::State(located.state())));
                }
            };
            if !job.has_record {
                match self.edit(id, &JobChanges::default()).await? {
                    Ok(_) => continue,
                    Err(EditRefusal::State(state)) => return Ok(Err(CheckpointRefusal::State(state))),
                    Err(EditRefusal::NotFound | EditRefusal::Unique) => return Ok(Err(CheckpointRefusal::NotFound)),
                }
            }
            let seen = ["waiting", kind, record_state].map(str::to_owned);
            let entry = entry.unwrap_or(EntryId { milliseconds: 0, sequence: 0 });
            let nobody = super::Fence::Pull { token: None, worker: None };
            let attempt = Attempt { job, entry, fence: &nobody };
            match self.store_checkpoint(attempt, &seen, sequence, state).await? {
                // It moved between the look-up and the script
                CheckpointOutcome::Stale => {}
                outcome => return Ok(Ok(outcome)),
            }
        }
        Err(StoreError::damaged(format!("job {id} cannot be pinned down")))
    }

    /// The checkpoint of a job.
    ///
    /// # Errors
    /// Redis is unavailable, or it cannot be opened.
    pub async fn read_checkpoint(&self, queue: &QueueName, id: JobId) -> StoreResult<Option<JobCheckpoint>> {
        let mut command = redis::cmd("GET");
        command.arg(QueueKeys::new(queue).checkpoint(&id));
        let text: Option<String> = command.query_async(&mut self.store.redis.clone()).await?;
        text.map(|text| JobCheckpoint::parse(self.sealer(), queue, id, &text)).transpose()
    }

    /// Deletes the checkpoint of a job; false if it has none. The next attempt starts from the beginning.
    ///
    /// # Errors
    /// Redis is unavailable: it may have been deleted nevertheless.
    pub async fn delete_checkpoint(&self, queue: &QueueName, id: JobId) -> StoreResult<bool> {
        let mut command = redis::cmd("DEL");
        command.arg(QueueKeys::new(queue).checkpoint(&id));
        let deleted: i64 = command.query_async(&mut self.store.redis.clone()).await?;
        Ok(deleted == 1)
    }

    /// Reads what claimed jobs need beside their entries: results of others, checkpoints, and signals.
    pub(super) async fn load_claimed(&self, claimed: &mut [ClaimedJob]) -> StoreResult<()> {
        self.load_claimed_parents(claimed).await?;
        // A blocking read gets jobs of several queues
        for of_queue in claimed.chunk_by_mut(|one, next| one.job.queue == next.job.queue) {
            self.load_checkpoints(of_queue).await?;
            self.load_signals(of_queue).await?;
        }
        Ok(())
    }

    /// Reads the checkpoints of jobs of one queue, of not too many in one answer: each may have a megabyte. A job without a
    /// record is in its first attempt, and has none.
    async fn load_checkpoints(&self, claimed: &mut [ClaimedJob]) -> StoreResult<()> {
        let mut later: Vec<&mut ClaimedJob> = claimed.iter_mut().filter(|claimed| claimed.job.has_record).collect();
        for some in later.chunks_mut(self.claim_budget.max_read()) {
            let keys = QueueKeys::new(&some[0].job.queue);
            let mut command = redis::cmd("MGET");
            for claimed in &*some {
                command.arg(keys.checkpoint(&claimed.job.id));
            }
            let stored: Result<Value, _> = command.query_async(&mut self.store.redis.clone()).await;
            let stored = self.claim_budget.observe(stored.map_err(StoreError::from))?;
            let stored: Vec<Option<String>> = redis::from_redis_value(stored).map_err(malformed_reply)?;
            for (claimed, text) in some.iter_mut().zip(stored) {
                let Some(text) = text else { continue };
                let job = &claimed.job;
                claimed.checkpoint = Some(Box::new(JobCheckpoint::parse(self.sealer(), &job.queue, job.id, &text)?));
                claimed.mark_checkpoint();
            }
        }
        Ok(())
    }
}
