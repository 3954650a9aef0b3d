//! Changes jobs that wait, and ended ones before they run again; deletes ended ones.

use super::{
    JobRecord, Jobs, LocatedJob,
    finished_job::{FinishedJob, FinishedText},
};
use crate::{StoreError, StoreResult, connection::notification::Notification, keys::QueueKeys, script};
use common::{
    id::JobId,
    name::{LimitKey, Priority, QueueName},
    time::ParsedTime,
};
use model::job::{Envelope, JobState, KeyLimit, envelope::replace_members};

/// How often a job is looked up that moves meanwhile.
const MAX_LOOKUPS: usize = 8;

/// What to change of a job.
#[derive(Debug, Clone, Default)]
pub struct JobChanges {
    /// Its arguments: a JSON array.
    pub args: Option<String>,
    /// Its priority.
    pub priority: Option<Priority>,
    /// When it is due.
    pub scheduled_at: Option<ParsedTime>,
}

/// Why a job is not changed or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EditRefusal {
    /// There is no job with that id.
    NotFound,
    /// Its state does not allow it.
    State(JobState),
    /// It is unique by its arguments.
    Unique,
}

impl Jobs {
    /// Changes a job that waits, or one that was discarded or cancelled; returns its JSON.
    ///
    /// # Errors
    /// Redis is unavailable: it may have been changed nevertheless.
    pub async fn edit(&self, id: JobId, changes: &JobChanges) -> StoreResult<Result<String, EditRefusal>> {
        for _ in 0..MAX_LOOKUPS {
            let Some((located, queue)) = self.locate_with_queue(id).await? else {
                return Ok(Err(EditRefusal::NotFound));
            };
            let state = located.state();
            let is_over = state.is_terminal();
            let refuses_time = is_over || state == JobState::Pending;
            if matches!(state, JobState::Active | JobState::Completed)
                || (refuses_time && changes.scheduled_at.is_some())
            {
                return Ok(Err(EditRefusal::State(state)));
            }
            let done = match &located {
                LocatedJob::Finished(json) => self.edit_ended(id, &queue, json, changes).await?,
                LocatedJob::InRecord { job, .. } | LocatedJob::InStream { job, .. } => {
                    match changed_job(job, changes)? {
                        Ok(changed) => self.edit_waiting(&located, job, &changed, changes).await?,
                        Err(refused) => return Ok(Err(refused)),
                    }
                }
            };
            if done {
                let located = self.locate(id).await?;
                return Ok(located.map(|located| located.to_json()).ok_or(EditRefusal::NotFound));
            }
        }
        Err(StoreError::damaged(format!("job {id} cannot be pinned down")))
    }

    /// Changes an ended job as it is stored; false if it changed meanwhile.
    async fn edit_ended(&self, id: JobId, queue: &QueueName, json: &str, changes: &JobChanges) -> StoreResult<bool> {
        let key = QueueKeys::new(queue).result(&id);
        let text: Option<String> = redis::cmd("GET").arg(&key).query_async(&mut self.store.redis.clone()).await?;
        let Some(text) = text else { return Ok(false) };
        if FinishedJob::json_of(self.sealer(), &text, id, queue)?.as_deref() != Some(json) {
            return Ok(false);
        }
        let priority = changes.priority.map(|priority| priority.to_string());
        let mut replaced = Vec::new();
        replaced.extend(changes.args.as_deref().map(|args| ("args", args)));
        replaced.extend(priority.as_deref().map(|priority| ("priority", priority)));
        let damaged = |error| StoreError::damaged(format!("ended job {id}: {error}"));
        let changed = replace_members(json, &replaced).map_err(damaged)?;
        let changed = FinishedText { sealer: self.sealer(), id, queue }.with_json(&text, &changed);
        let mut call = script::REPLACE_RESULT.key(key);
        let done: i64 = call.arg(text).arg(changed).invoke_async(&mut self.store.redis.clone()).await?;
        Ok(done == 1)
    }

    /// Changes a waiting job; false if it moved meanwhile.
    async fn edit_waiting(
        &self,
        located: &LocatedJob,
        job: &JobRecord,
        changed: &JobRecord,
        changes: &JobChanges,
    ) -> StoreResult<bool> {
        let (keys, limit) = (QueueKeys::new(&job.queue), changed.key_limit());
        let key = LimitKey::or_placeholder(job.limit_key());
        let (state, due) = match located {
            LocatedJob::InRecord { state, due, .. } => (*state, *due),
            _ => (JobState::Available, None),
        };
        let (mut destination, mut at) = (state, due.unwrap_or_else(|| job.created_at()));
        if let Some(given) = &changes.scheduled_at {
            at = given.at;
            if state == JobState::Available && given.at > self.now().await? {
                destination = JobState::Scheduled;
            }
        }
        let topics = self.store.redis.topics();
        let answer: String = script::EDIT
            .key(keys.stream(job.priority))
            .key(keys.active())
            .key(keys.leases())
            .key(keys.record(&job.id))
            .key(keys.due())
            .key(keys.pending())
            .key(keys.key_queue(&key))
            .key(keys.admitted(&key))
            .key(keys.stats())
            .key(keys.stream(changed.priority))
            .key(keys.priorities())
            .key(keys.waiting_keys())
            .key(keys.key_limit(&key))
            .key(keys.timers())
            .arg(&located.seen_args())
            .arg(job.id.to_string())
            .arg(destination.as_str())
            .arg(changed.priority.get())
            .arg(at)
            .arg(topics.notifications())
            .arg(Notification::StreamCreated(job.queue.clone()).encode())
            .arg(Notification::DueChanged(job.queue.clone()).encode())
            .arg(limit.map_or("", |limit| limit.key.as_str()))
            .arg(limit.map(KeyLimit::encode).unwrap_or_default())
            .arg(changed.to_fields(self.sealer()))
            .invoke_async(&mut self.store.redis.clone())
            .await?;
        if answer != "done" {
            return Ok(false);
        }
        if let Some(key) = changed.limit_key() {
            self.admit(&job.queue, key).await?;
        }
        Ok(true)
    }

    /// Deletes what is stored of an ended job. What other jobs of its workflow need stays.
    ///
    /// # Errors
    /// Redis is unavailable: it may have been deleted nevertheless.
    pub async fn delete_ended(&self, id: JobId) -> StoreResult<Result<(), EditRefusal>> {
        let Some((located, queue)) = self.locate_with_queue(id).await? else { return Ok(Err(EditRefusal::NotFound)) };
        if !located.state().is_terminal() {
            return Ok(Err(EditRefusal::State(located.state())));
        }
        let (keys, mut pipeline) = (QueueKeys::new(&queue), redis::pipe());
        pipeline
            .cmd("DEL")
            .arg(keys.result(&id))
            .cmd("DEL")
            .arg(keys.log(&id))
            .arg(keys.checkpoint(&id))
            .arg(keys.signals(&id));
        for list in [keys.dead_letters(), keys.discarded(), keys.cancelled()] {
            pipeline.cmd("ZREM").arg(list).arg(id.to_string());
        }
        let (deleted, ..): (u64, u64, u64, u64, u64) = pipeline.query_async(&mut self.store.redis.clone()).await?;
        Ok(if deleted == 1 { Ok(()) } else { Err(EditRefusal::NotFound) })
    }
}

/// The job with the changes. The arguments by which it is unique stay.
fn changed_job(job: &JobRecord, changes: &JobChanges) -> StoreResult<Result<JobRecord, EditRefusal>> {
    let damaged = |error| StoreError::damaged(format!("job {}: {error}", job.id));
    let mut changed = job.clone();
    changed.has_record = true;
    changed.priority = changes.priority.unwrap_or(job.priority);
    if let Some(args) = &changes.args {
        changed.envelope = job.envelope.with_args(args).map_err(damaged)?;
        if fingerprint(&changed.envelope, &job.queue) != fingerprint(&job.envelope, &job.queue) {
            return Ok(Err(EditRefusal::Unique));
        }
    }
    if let Some(given) = &changes.scheduled_at {
        changed.envelope = changed.envelope.with_start(&given.text).map_err(damaged)?;
    }
    Ok(Ok(changed))
}

fn fingerprint(envelope: &Envelope, queue: &QueueName) -> Option<String> {
    envelope.fields().ok()?.unique(queue).map(|unique| unique.fingerprint)
}
