//! What follows the end of a job: its workflow, its key's limit and its uniqueness continue.
//!
//! The script that ends the job sets a timer, so that maintenance does this if the process that ended the job dies
//! before. Each step may run twice.

use std::time::Duration;

use super::{JobRecord, Jobs, LocatedJob, MemberEnd, finished_job::FinishedJob};
use crate::{
    StoreError, StoreResult,
    connection::{budgets::DataKind, memory::ResultRetention},
    keys::QueueKeys,
    script,
};
use common::{
    id::{JobId, WorkflowId},
    name::QueueName,
    trace_context::SpanReference,
};
use model::{job::Envelope, workflow::Membership};

/// Minimum TTL of a job whose end has a follow-up, so that maintenance can still run it.
pub(super) const MIN_FOLLOW_UP_TTL: Duration = Duration::from_hours(1);
/// About what Redis adds to a result: the key, its TTL and their objects.
pub(super) const RESULT_OVERHEAD_BYTES: usize = 200;

/// The workflow that a job belongs to, from its JSON.
#[derive(serde::Deserialize)]
struct MembershipFields {
    workflow_id: Option<WorkflowId>,
    workflow_index: Option<u32>,
}

impl Jobs {
    /// Runs the follow-up of an ended job.
    pub(super) async fn after_end(&self, job: &JobRecord, ended: &FinishedJob, ttl: Duration, is_dead_letter: bool) {
        self.shorten_client_job_id(job, ttl).await;
        if !job.has_follow_up() {
            return;
        }
        let done = self.run_follow_up(&job.queue, job.id, ended.json(), job.span()).await;
        if done.is_ok() && !is_dead_letter {
            self.shorten_result(job, ended).await;
        }
        log_follow_up_failure(&job.queue, job.id, done);
    }

    /// TTL of the result of a job that ends now, zero if Redis is too full for it. A follow-up must find the result: it
    /// is stored whatever the fill level, and [`Jobs::after_end`] shortens its life when the follow-up has run.
    pub(super) fn result_ttl(&self, job: &JobRecord, bytes: usize) -> Duration {
        let ttl = self.store.settings.jobs.result_ttl;
        if !job.has_follow_up() {
            return self.own_result_ttl(job, self.stored_result_ttl(ttl, 1, bytes));
        }
        self.store.redis.memory().note_stored(DataKind::Results, bytes + RESULT_OVERHEAD_BYTES);
        self.follow_up_result_ttl()
    }

    /// TTL of a result that a follow-up must find.
    pub(super) fn follow_up_result_ttl(&self) -> Duration {
        let ttl = self.store.settings.jobs.result_ttl;
        self.store.redis.memory().result_retention().limit(ttl).max(MIN_FOLLOW_UP_TTL)
    }

    /// TTL of results that are stored now, zero if Redis is too full for them.
    pub(super) fn stored_result_ttl(&self, ttl: Duration, count: usize, bytes: usize) -> Duration {
        let memory = self.store.redis.memory();
        let ttl = memory.result_retention().limit(ttl);
        if ttl.is_zero() {
            metrics::counter!("galley_results_dropped_total").increment(u64::try_from(count).unwrap_or(u64::MAX));
        } else {
            memory.note_stored(DataKind::Results, bytes + count * RESULT_OVERHEAD_BYTES);
        }
        ttl
    }

    /// Shortens the life of results that were stored only for their follow-ups, as the fill level asks. Where this fails
    /// their own TTL applies.
    pub(super) async fn shorten_results(&self, queue: &QueueName, ids: &[JobId]) {
        let retention = self.store.redis.memory().result_retention();
        let ttl = retention.limit(self.store.settings.jobs.result_ttl);
        if ids.is_empty() || retention == ResultRetention::Full || ttl >= MIN_FOLLOW_UP_TTL {
            return;
        }
        let keys = QueueKeys::new(queue);
        let results = ids.iter().map(|id| keys.result(id));
        let mut pipeline = redis::pipe();
        if ttl.is_zero() {
            metrics::counter!("galley_results_dropped_total").increment(ids.len() as u64);
            pipeline.cmd("DEL").arg(results.collect::<Vec<_>>());
        } else {
            let ttl_ms = ttl.as_millis().to_string();
            for key in results {
                pipeline.cmd("PEXPIRE").arg(key).arg(&ttl_ms);
            }
        }
        let _ = pipeline.exec_async(&mut self.store.redis.clone()).await;
    }

    /// Runs a follow-up that the process which recorded the end may not have run.
    pub(super) async fn repeat_follow_up(&self, queue: &QueueName, id: JobId) {
        log_follow_up_failure(queue, id, self.run_missed_follow_up(queue, id).await);
    }

    /// Runs a missed follow-up; a deleted job needs none.
    pub(crate) async fn run_missed_follow_up(&self, queue: &QueueName, id: JobId) -> StoreResult<()> {
        match self.locate_in_queue(id, queue).await? {
            Some(LocatedJob::Finished(json)) => self.run_follow_up(queue, id, &json, None).await,
            _ => self.clear_follow_up_timers(queue, &[id]).await,
        }
    }

    /// `span` is that of the attempt that ended the job.
    async fn run_follow_up(
        &self,
        queue: &QueueName,
        id: JobId,
        json: &str,
        span: Option<SpanReference>,
    ) -> StoreResult<()> {
        let damaged = |error: model::job::envelope::EnvelopeError| StoreError::damaged(format!("job {id}: {error}"));
        let envelope = Envelope::from_job_json(json).map_err(damaged)?;
        let parts = envelope.fields().map_err(damaged)?;
        // If a final state blocks equal jobs, it blocks them for its period
        if let Some(unique) =
            parts.unique(queue).filter(|unique| !unique.states.iter().any(|state| state.is_terminal()))
        {
            let key = self.uniqueness_key(&QueueKeys::new(queue), Some(&unique));
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
            let end = MemberEnd { membership: Membership { workflow, index }, job: id, json, span };
            (self.members_ended)(self, vec![end]).await.into_iter().collect::<StoreResult<()>>()?;
        }
        self.clear_follow_up_timers(queue, &[id]).await
    }

    /// Continues the workflows of jobs of one queue that ended in a batch, which has done everything else that follows.
    pub(super) async fn continue_workflows(&self, queue: &QueueName, ends: Vec<MemberEnd<'_>>) {
        let ids: Vec<JobId> = ends.iter().map(|end| end.job).collect();
        let mut done = Vec::with_capacity(ids.len());
        for (id, continued) in ids.into_iter().zip((self.members_ended)(self, ends).await) {
            if continued.is_ok() {
                done.push(id);
            }
            log_follow_up_failure(queue, id, continued);
        }
        if let Err(error) = self.clear_follow_up_timers(queue, &done).await {
            // They are continued once more, which changes nothing, and find their results
            return tracing::debug!(%error, %queue, "timers of follow-ups not cleared, left to maintenance");
        }
        self.shorten_results(queue, &done).await;
    }

    async fn clear_follow_up_timers(&self, queue: &QueueName, ids: &[JobId]) -> StoreResult<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let timers: Vec<String> = ids.iter().map(|id| format!("follow_up {id}")).collect();
        let mut command = redis::cmd("ZREM");
        command.arg(QueueKeys::new(queue).timers()).arg(timers);
        Ok(command.exec_async(&mut self.store.redis.clone()).await?)
    }
}

/// Logs a failed follow-up, which maintenance repeats in two seconds.
pub(super) fn log_follow_up_failure(queue: &QueueName, id: JobId, done: StoreResult<()>) {
    if let Err(error) = done {
        tracing::debug!(%error, %queue, %id, "follow-up of a job failed, left to maintenance");
    }
}
