//! New jobs that are more than an entry in a stream: they have a record from the start.

use super::{
    EnqueueRefusal, EnqueuedJob, Jobs, LocatedJob,
    client_ids::RESERVATION_TTL_MS,
    enqueue::build_job_record,
    local_now,
    record::{FinishedJob, JobRecord},
};
use crate::connection::notification::Notification;
use crate::{
    StoreError, StoreResult,
    keys::{self, QueueKeys},
    script,
};
use common::{
    id::{EntryId, JobId},
    name::{LimitKey, QueueName},
    time::{self, Millis},
};
use model::job::{JobHistory, JobLimit, JobState, NewJob, OnConflict, UniquePolicy};

/// Looks at whoever holds the uniqueness: it can change between a look and the script, each time because somebody else got
/// further. So many may replace each other at once.
const MAX_UNIQUENESS_CHECKS: usize = 256;

/// Where a new job goes.
enum JobDestination {
    Stream,
    KeyQueue,
    Pending,
    Scheduled(Millis),
}

/// Whether a job may be made as far as its uniqueness goes.
enum UniquenessCheck {
    /// It may, if that is still who holds it.
    Free(String),
    /// It may not.
    Conflict(EnqueueRefusal),
    /// It takes the place of that one, which is cancelled when it is there.
    Replaces(JobId),
}

impl Jobs {
    /// Creates a job with a record.
    pub(super) async fn create_with_record(
        &self,
        mut new: NewJob,
        traceparent: Option<String>,
        now: Millis,
    ) -> StoreResult<Result<EnqueuedJob, EnqueueRefusal>> {
        let id = match new.id {
            // The id of a workflow's job was not chosen: making the job twice does nothing
            Some(id) if new.workflow.is_none() && self.locate(id).await?.is_some() => {
                return Ok(Err(EnqueueRefusal::Duplicate(id)));
            }
            Some(id) => id,
            None => JobId::without_address(u64::try_from(now).unwrap_or_default(), &new.queue),
        };
        if let Err(refused) = self.register_queue(&new.queue).await? {
            return Ok(Err(refused));
        }
        for _ in 0..MAX_UNIQUENESS_CHECKS {
            let (holder, replaced) = match self.resolve_uniqueness(&mut new).await? {
                UniquenessCheck::Free(holder) => (holder, None),
                UniquenessCheck::Replaces(older) => (older.to_string(), Some(older)),
                UniquenessCheck::Conflict(refused) => return Ok(Err(refused)),
            };
            if let Some(outcome) = self.create_if_holder(id, new.clone(), &holder, traceparent.clone(), now).await? {
                if let (Ok(_), Some(older)) = (&outcome, replaced) {
                    self.cancel_replaced(older, &new.queue).await?;
                }
                return Ok(outcome);
            }
        }
        Err(StoreError::damaged(format!("the uniqueness of a job of {} cannot be settled", new.queue)))
    }

    /// Creates it if the uniqueness is still held by that one; none when it is not.
    async fn create_if_holder(
        &self,
        id: JobId,
        new: NewJob,
        holder: &str,
        traceparent: Option<String>,
        now: Millis,
    ) -> StoreResult<Option<Result<EnqueuedJob, EnqueueRefusal>>> {
        let place = match (&new.summary.limit, new.start_at) {
            _ if new.is_pending => JobDestination::Pending,
            (_, Some(at)) => JobDestination::Scheduled(at),
            (Some(JobLimit::Key(_)), None) => JobDestination::KeyQueue,
            _ => JobDestination::Stream,
        };
        let claim_ttl = RESERVATION_TTL_MS + new.start_at.map_or(0, |start| (start - now).max(0));
        let unique = new.unique.clone();
        let has_chosen_id = new.id.is_some() && new.workflow.is_none();
        let mut history = JobHistory { created_at: new.id.map(|_| now), ..JobHistory::default() };
        for failure in new.failures.iter().cloned() {
            history.record_failure(failure, None);
        }
        let mut job = build_job_record(id, new, traceparent, history, true);
        let answer = self.run_create_script(&job, &place, (unique.as_ref(), holder, claim_ttl), now).await?;
        match answer.first().map(String::as_str) {
            Some("full") => {
                let max_depth = self.max_depth(&job.queue).unwrap_or(0);
                return Ok(Some(Err(EnqueueRefusal::QueueFull { max_depth })));
            }
            Some("changed") => return Ok(None),
            Some("created") => {
                if has_chosen_id {
                    self.save_client_job_id(id, &job.queue, claim_ttl).await.map_err(StoreError::after_write)?;
                }
            }
            _ if !has_chosen_id => return Ok(Some(Err(EnqueueRefusal::Duplicate(id)))),
            _ => {
                // It is there, but perhaps not to be found: an earlier request may have ended just before it was noted
                self.save_client_job_id(id, &job.queue, claim_ttl).await?;
                return Ok(Some(Err(EnqueueRefusal::Duplicate(id))));
            }
        }
        // It may have been deleted between the registration and this
        if answer.get(2).is_some_and(|new| new == "new") {
            self.add_to_registry(&job.queue).await.map_err(StoreError::after_write)?;
        }
        let state = match place {
            JobDestination::Stream | JobDestination::KeyQueue => JobState::Available,
            JobDestination::Pending => JobState::Pending,
            JobDestination::Scheduled(_) => JobState::Scheduled,
        };
        // Wherever the job itself waits: the limit it brought may let others in
        if let Some(key) = job.limit_key() {
            self.admit(&job.queue, key).await?;
        }
        let entry = answer.get(1).and_then(|entry| entry.parse::<EntryId>().ok());
        job.enqueued_at = match state {
            JobState::Available => entry.map_or(Some(now), |entry| i64::try_from(entry.milliseconds).ok()),
            _ => None,
        };
        Ok(Some(Ok(EnqueuedJob { job, state })))
    }

    async fn run_create_script(
        &self,
        job: &JobRecord,
        place: &JobDestination,
        (unique, holder, claim_ttl): (Option<&UniquePolicy>, &str, i64),
        now: Millis,
    ) -> StoreResult<Vec<String>> {
        let keys = QueueKeys::new(&job.queue);
        // A job without a limit never touches the keys of one
        let key = LimitKey::or_placeholder(job.limit_key());
        // There was room for a workflow when it was accepted: its jobs are let in
        let max_depth = self.max_depth(&job.queue).filter(|_| job.workflow.is_none()).unwrap_or(0);
        let mut call = script::CREATE.prepare_invoke();
        call.key(keys.record(&job.id)).key(keys.result(&job.id)).key(keys.due()).key(keys.pending());
        call.key(keys.timers()).key(keys.stats());
        call.key(keys.uniqueness(unique.map_or("-", |unique| unique.fingerprint.as_str())));
        call.key(keys.key_limit(&key)).key(keys.key_queue(&key)).key(keys.waiting_keys());
        call.key(keys.priorities()).key(keys.stream(job.priority));
        if max_depth > 0 && matches!(place, JobDestination::Stream | JobDestination::KeyQueue) {
            self.add_other_streams(&mut call, &job.queue, job.priority).await?;
        }
        let (how, at) = match place {
            JobDestination::Stream => ("now", String::new()),
            JobDestination::KeyQueue => ("key_queue", String::new()),
            JobDestination::Pending => ("pending", now.to_string()),
            JobDestination::Scheduled(at) => ("scheduled", at.to_string()),
        };
        call.arg(job.id.to_string()).arg(job.priority.get()).arg(how).arg(at);
        call.arg(job.expiry_timer().map(|at| at.to_string()).unwrap_or_default());
        call.arg(keys::NOTIFICATIONS)
            .arg(Notification::DueChanged(job.queue.clone()).encode())
            .arg(Notification::StreamCreated(job.queue.clone()).encode());
        let unique_ttl = unique.and_then(|unique| i64::try_from(unique.period?.as_millis()).ok()).unwrap_or(claim_ttl);
        call.arg(max_depth).arg(if unique.is_some() { holder } else { "-" }).arg(unique_ttl.max(1));
        match job.key_limit() {
            Some(limit) => call.arg(limit.key.as_str()).arg(limit.encode()),
            None => call.arg("").arg(""),
        };
        Ok(call.arg(job.to_fields()).invoke_async(&mut self.store.redis.clone()).await?)
    }

    /// Who stands in the way of a job, and what its policy says to that.
    async fn resolve_uniqueness(&self, new: &mut NewJob) -> StoreResult<UniquenessCheck> {
        let Some(unique) = new.unique.clone() else { return Ok(UniquenessCheck::Free(String::new())) };
        let key = QueueKeys::new(&new.queue).uniqueness(&unique.fingerprint);
        let holder: Option<String> = redis::cmd("GET").arg(key).query_async(&mut self.store.redis.clone()).await?;
        let holder = holder.unwrap_or_default();
        let Ok(id) = holder.parse::<JobId>() else { return Ok(UniquenessCheck::Free(holder)) };
        if new.id == Some(id) {
            // Made by an earlier call: it is not its own rival
            return Ok(UniquenessCheck::Conflict(EnqueueRefusal::Duplicate(id)));
        }
        let Some(located) = self.locate_in_queue(id, &new.queue).await? else {
            // Its result is gone, but it may be in the way for longer than that
            let outlives_its_result = unique.period.is_some() && unique.states.iter().any(|state| state.is_terminal());
            let conflict = UniquenessCheck::Conflict(EnqueueRefusal::Duplicate(id));
            return Ok(if outlives_its_result { conflict } else { UniquenessCheck::Free(holder) });
        };
        let state = located.state();
        if !unique.states.contains(&state) {
            return Ok(UniquenessCheck::Free(holder));
        }
        match unique.on_conflict {
            OnConflict::Ignore => {
                Ok(UniquenessCheck::Conflict(EnqueueRefusal::Ignored { id, json: located.to_json() }))
            }
            OnConflict::Reject => Ok(UniquenessCheck::Conflict(EnqueueRefusal::Duplicate(id))),
            // One that runs may have had effects already, and one that is over cannot be replaced
            _ if state == JobState::Active => Ok(UniquenessCheck::Conflict(EnqueueRefusal::Duplicate(id))),
            _ if state.is_terminal() => Ok(UniquenessCheck::Free(holder)),
            OnConflict::ReplaceExceptSchedule => {
                if let LocatedJob::InRecord { state: JobState::Scheduled, due: Some(due), .. } = located {
                    new.start_at = Some(due);
                    new.envelope = new
                        .envelope
                        .with_start(&time::format(due))
                        .map_err(|error| StoreError::damaged(error.to_string()))?;
                }
                Ok(UniquenessCheck::Replaces(id))
            }
            OnConflict::Replace => Ok(UniquenessCheck::Replaces(id)),
        }
    }

    /// Whether nobody stands in the way of a job, or its policy has an answer to that.
    pub(super) async fn check_uniqueness(&self, job: &NewJob) -> StoreResult<Result<(), EnqueueRefusal>> {
        match self.resolve_uniqueness(&mut job.clone()).await? {
            UniquenessCheck::Conflict(EnqueueRefusal::Ignored { id, .. }) => Ok(Err(EnqueueRefusal::Duplicate(id))),
            UniquenessCheck::Conflict(refused) => Ok(Err(refused)),
            UniquenessCheck::Free(_) | UniquenessCheck::Replaces(_) => Ok(Ok(())),
        }
    }

    /// Cancels a job that another took the place of. One that a worker took meanwhile came first, and runs.
    async fn cancel_replaced(&self, id: JobId, queue: &QueueName) -> StoreResult<()> {
        for _ in 0..MAX_UNIQUENESS_CHECKS {
            let Some(located) = self.locate_in_queue(id, queue).await? else { return Ok(()) };
            let (LocatedJob::InRecord { job, .. } | LocatedJob::InStream { job, holder: None, .. }) = &located else {
                return Ok(());
            };
            if self.end_externally(&located, &FinishedJob::cancelled(job, None, local_now())).await? {
                return Ok(());
            }
        }
        Ok(())
    }
}
