//! What the end of a job sets off: others may have waited for it.
//!
//! The script that ends the job leaves a timer, so that the upkeep does this if whoever ended the job dies before. Each
//! step may be done twice.

use std::time::Duration;

use super::{JobRecord, Jobs, LocatedJob, record::FinishedJob};
use crate::{StoreError, StoreResult, keys::QueueKeys, script};
use common::{
    id::{JobId, WorkflowId},
    name::QueueName,
};
use model::{
    job::{Envelope, JobLimit},
    workflow::Membership,
};

/// A job whose end sets something off can be looked up at least this long, so that the upkeep can make up for it.
const MIN_FOLLOW_UP_TTL: Duration = Duration::from_hours(1);

/// The workflow that a job belongs to, as its JSON says.
#[derive(serde::Deserialize)]
struct MembershipFields {
    workflow_id: Option<WorkflowId>,
    workflow_index: Option<u32>,
}

impl Jobs {
    /// What the end of a job sets off.
    pub(super) async fn after_end(&self, job: &JobRecord, ended: &FinishedJob, ttl: Duration) {
        self.shorten_client_job_id(job, ttl).await;
        if job.has_follow_up() {
            log_follow_up_failure(&job.queue, job.id, self.run_follow_up(&job.queue, job.id, &ended.json).await);
        }
    }

    /// How long a job can be looked up when it is over: what follows its end has to find it too.
    pub(super) fn result_ttl(&self, job: &JobRecord) -> Duration {
        let ttl = self.store.settings.jobs.result_ttl;
        if job.has_follow_up() { ttl.max(MIN_FOLLOW_UP_TTL) } else { ttl }
    }

    /// Does what may have been left undone by whoever recorded the end.
    pub(super) async fn repeat_follow_up(&self, queue: &QueueName, id: JobId) {
        log_follow_up_failure(queue, id, self.run_missed_follow_up(queue, id).await);
    }

    /// Does what was left undone; a job that is gone leaves nothing to do.
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
        // As long as a state that it can be in for good is in the way, it stays in the way for its period
        if let Some(unique) =
            parts.unique(queue).filter(|unique| !unique.states.iter().any(|state| state.is_terminal()))
        {
            let key = QueueKeys::new(queue).uniqueness(&unique.fingerprint);
            let _: i64 = script::DELETE_IF_EQUAL
                .key(key)
                .arg(id.to_string())
                .invoke_async(&mut self.store.redis.clone())
                .await?;
        }
        if let Some(JobLimit::Key(limit)) = parts.summary().limit {
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

/// What fails now the upkeep does in two seconds.
fn log_follow_up_failure(queue: &QueueName, id: JobId, done: StoreResult<()>) {
    if let Err(error) = done {
        tracing::debug!(%error, %queue, %id, "the upkeep has to see to what follows the end of a job");
    }
}
