//! What follows the end of a job: its workflow, its key's limit and its uniqueness continue.
//!
//! The script that ends the job sets a timer, so that maintenance does this if the process that ended the job dies
//! before. Each step may run twice.

use std::time::Duration;

use super::{JobRecord, Jobs, LocatedJob, record::FinishedJob};
use crate::{StoreError, StoreResult, keys::QueueKeys, script};
use common::{
    id::{JobId, WorkflowId},
    name::QueueName,
};
use model::{job::Envelope, workflow::Membership};

/// Minimum TTL of a job whose end has a follow-up, so that maintenance can still run it.
const MIN_FOLLOW_UP_TTL: Duration = Duration::from_hours(1);
/// About what Redis adds to a result: the key, its TTL and their objects.
const RESULT_OVERHEAD_BYTES: usize = 200;

/// The workflow that a job belongs to, from its JSON.
#[derive(serde::Deserialize)]
struct MembershipFields {
    workflow_id: Option<WorkflowId>,
    workflow_index: Option<u32>,
}

impl Jobs {
    /// Runs the follow-up of an ended job.
    pub(super) async fn after_end(&self, job: &JobRecord, ended: &FinishedJob, ttl: Duration) {
        self.shorten_client_job_id(job, ttl).await;
        if job.has_follow_up() {
            log_follow_up_failure(&job.queue, job.id, self.run_follow_up(&job.queue, job.id, ended.json()).await);
        }
    }

    /// TTL of a finished job; the follow-up must find it, too.
    pub(super) fn result_ttl(&self, job: &JobRecord) -> Duration {
        let ttl = self.store.settings.jobs.result_ttl;
        if job.has_follow_up() { ttl.max(MIN_FOLLOW_UP_TTL) } else { ttl }
    }

    /// TTL of results that are stored now, zero if Redis is too full for them.
    pub(super) fn stored_result_ttl(&self, ttl: Duration, count: usize, bytes: usize) -> Duration {
        let memory = self.store.redis.memory();
        let ttl = memory.result_retention().limit(ttl);
        if ttl.is_zero() {
            metrics::counter!("galley_results_dropped_total").increment(u64::try_from(count).unwrap_or(u64::MAX));
        } else {
            memory.note_stored(bytes + count * RESULT_OVERHEAD_BYTES);
        }
        ttl
    }

    /// Runs a follow-up that the process which recorded the end may not have run.
    pub(super) async fn repeat_follow_up(&self, queue: &QueueName, id: JobId) {
        log_follow_up_failure(queue, id, self.run_missed_follow_up(queue, id).await);
    }

    /// Runs a missed follow-up; a deleted job needs none.
    pub(crate) async fn run_missed_follow_up(&self, queue: &QueueName, id: JobId) -> StoreResult<()> {
        match self.locate_in_queue(id, queue).await? {
            Some(LocatedJob::Finished(json)) => self.run_follow_up(queue, id, &json).await,
            _ => self.clear_follow_up_timer(queue, id).await,
        }
    }

    async fn run_follow_up(&self, queue: &QueueName, id: JobId, json: &str) -> StoreResult<()> {
        let damaged = |error: model::job::envelope::EnvelopeError| StoreError::damaged(format!("job {id}: {error}"));
        let envelope = Envelope::from_job_json(json).map_err(damaged)?;
        let parts = envelope.fields().map_err(damaged)?;
        // If a final state blocks equal jobs, it blocks them for its period
        if let Some(unique) =
            parts.unique(queue).filter(|unique| !unique.states.iter().any(|state| state.is_terminal()))
        {
            let key = QueueKeys::new(queue).uniqueness(&unique.fingerprint);
            let _: i64 = script::RELEASE_UNIQUENESS
                .key(key)
                .key(QueueKeys::new(queue).result(&id))
                .arg(id.to_string())
                .invoke_async(&mut self.store.redis.clone())
                .await?;
        }
        if let Some(limit) = parts.summary().limit {
            self.admit(queue, &limit.key).await?;
        }
        let member: MembershipFields =
            serde_json::from_str(json).map_err(|error| StoreError::damaged(error.to_string()))?;
        if let (Some(workflow), Some(index)) = (member.workflow_id, member.workflow_index) {
            (self.member_ended)(self, Membership { workflow, index }, id, json).await?;
        }
        self.clear_follow_up_timer(queue, id).await
    }

    async fn clear_follow_up_timer(&self, queue: &QueueName, id: JobId) -> StoreResult<()> {
        let mut command = redis::cmd("ZREM");
        command.arg(QueueKeys::new(queue).timers()).arg(format!("follow_up {id}"));
        Ok(command.exec_async(&mut self.store.redis.clone()).await?)
    }
}

/// Logs a failed follow-up, which maintenance repeats in two seconds.
fn log_follow_up_failure(queue: &QueueName, id: JobId, done: StoreResult<()>) {
    if let Err(error) = done {
        tracing::debug!(%error, %queue, %id, "follow-up of a job failed, left to maintenance");
    }
}
