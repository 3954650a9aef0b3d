//! Cancels jobs, in whatever state they are.

use super::{Jobs, LocatedJob, finished_job::FinishedJob};
use crate::connection::notification::Notification;
use crate::{StoreError, StoreResult, keys::QueueKeys, script};
use common::{id::JobId, name::LimitKey};
use model::job::{JobTransition, state::InvalidTransition};

/// Why a job was not cancelled, activated or retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobTransitionError {
    /// There is no job with that id.
    NotFound,
    /// Its state does not allow it.
    Conflict(InvalidTransition),
    /// This job, which is equal by its uniqueness policy, is in the way.
    Duplicate(JobId),
}

impl Jobs {
    /// Cancels an unfinished job and returns its JSON. Its worker is notified and can no longer record an outcome.
    ///
    /// # Errors
    /// Redis is unavailable: the job may have been cancelled nevertheless.
    pub async fn cancel(&self, id: JobId) -> StoreResult<Result<String, JobTransitionError>> {
        // The job may move between the look-up and the script, which then changes nothing
        for _ in 0..8 {
            let Some(located) = self.locate(id).await? else { return Ok(Err(JobTransitionError::NotFound)) };
            if let Err(conflict) = located.state().after(JobTransition::Cancel) {
                return Ok(Err(JobTransitionError::Conflict(conflict)));
            }
            let (job, running_since) = match &located {
                LocatedJob::Finished(_) => continue,
                LocatedJob::InRecord { job, .. } => (job, None),
                LocatedJob::InStream { job, holder, .. } => (job, holder.as_ref().map(super::JobHolder::started_at)),
            };
            let ended = FinishedJob::cancelled(job, running_since, self.estimated_now());
            if self.end_externally(&located, &ended).await? {
                return Ok(Ok(ended.json().to_owned()));
            }
        }
        Err(StoreError::damaged(format!("job {id} cannot be pinned down")))
    }

    /// Ends an unfinished job; false if it has moved since `located`.
    pub(super) async fn end_externally(&self, located: &LocatedJob, ended: &FinishedJob) -> StoreResult<bool> {
        let job = match located {
            LocatedJob::Finished(_) => return Ok(false),
            LocatedJob::InRecord { job, .. } | LocatedJob::InStream { job, .. } => job,
        };
        let keys = QueueKeys::new(&job.queue);
        let key = LimitKey::or_placeholder(job.limit_key());
        let text = ended.to_text_without_attempt(self.sealer(), job);
        let ttl = self.result_ttl(job, text.len());
        let stored = self.stored_end(job, ended, text, ttl);
        let topics = self.store.redis.topics();
        let answer: String = script::CANCEL
            .key(keys.stream(job.priority))
            .key(keys.active())
            .key(keys.leases())
            .key(keys.record(&job.id))
            .key(keys.result(&job.id))
            .key(keys.due())
            .key(keys.pending())
            .key(keys.timers())
            .key(keys.key_queue(&key))
            .key(keys.admitted(&key))
            .key(keys.stats())
            .key(keys.ended_list(ended.state))
            .key(keys.log(&job.id))
            .key(keys.checkpoint(&job.id))
            .key(keys.signals(&job.id))
            .arg(&located.seen_args())
            .arg(job.id.to_string())
            .arg(ended.state.as_str())
            .arg(stored.text.as_str())
            .arg(stored.ttl.as_millis().to_string())
            .arg(u8::from(job.has_follow_up()))
            .arg(topics.notifications())
            .arg(Notification::JobCancelled(job.id).encode())
            .arg(topics.for_script(topics.finished_jobs(&job.queue)))
            .arg(Notification::DueChanged(job.queue.clone()).encode())
            .arg(self.store.settings.jobs.discarded_max)
            .arg(self.discarded_list_ttl_ms())
            .arg(stored.note_ttl.as_millis().to_string())
            .invoke_async(&mut self.store.redis.clone())
            .await?;
        if answer != "done" {
            return Ok(false);
        }
        self.report_end(job, ended.state, self.estimated_now());
        self.after_end(job, ended, stored.known_for(), false).await;
        Ok(true)
    }
}
