//! Calling workflows off. It is marked first, so that nothing more is started; then the jobs that may exist are ended.

use futures_util::{TryStreamExt, stream};

use super::{
    MAX_CONCURRENT_COMMANDS, Workflows, advance,
    record::{WorkflowMember, WorkflowRecord},
};
use crate::local_now;
use crate::{
    StoreError, StoreResult,
    jobs::{FinishedJob, JobTransitionError, LocatedJob, new_job_record},
    keys::QueueKeys,
    script,
};
use common::id::{JobId, WorkflowId};
use model::{
    job::{JobState, NewJob},
    workflow::{TerminalState, WorkflowState},
};

/// A workflow that was not cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelWorkflowError {
    /// There is none with that id.
    NotFound,
    /// It is over already.
    AlreadyEnded(WorkflowState),
}

impl Workflows {
    /// Cancels a workflow that is not over, and every job of it that is not.
    ///
    /// # Errors
    /// Redis is unavailable: it may be cancelled all the same, and then the upkeep ends what jobs are left.
    pub async fn cancel_workflow(&self, id: WorkflowId) -> StoreResult<Result<(), CancelWorkflowError>> {
        let answer = self.end_workflow(id, WorkflowState::Cancelled).await?;
        match answer.as_str() {
            "done" => {}
            "gone" => return Ok(Err(CancelWorkflowError::NotFound)),
            state => {
                let state = WorkflowState::from_name(state);
                let state = state.ok_or_else(|| StoreError::damaged(format!("workflow {id} is in no known state")))?;
                return Ok(Err(CancelWorkflowError::AlreadyEnded(state)));
            }
        }
        // In case this is cut off
        self.reschedule_workflow(id, advance::CHECK_SOON).await?;
        if let Some(kept) = self.read_workflow(id).await? {
            let kind = kept.progress.kind.as_str();
            metrics::counter!("galley_workflows_ended_total", "type" => kind, "state" => "cancelled").increment(1);
            self.cancel_members(&kept).await?;
        }
        Ok(Ok(()))
    }

    /// Ends every job of a cancelled workflow that exists, or that somebody may be about to make: who makes one has seen
    /// the workflow before it was cancelled, so it follows from the ends that are recorded now. Those that run come last:
    /// a worker that is set free must not find another job of the same workflow.
    pub(super) async fn cancel_members(&self, kept: &WorkflowRecord) -> StoreResult<()> {
        let jobs = self.read_members(kept, kept.unfinished_indexes()).await?;
        let looks = stream::iter(jobs.into_iter().map(Ok)).map_ok(|job| self.cancel_unless_active(kept, job));
        let active: Vec<Option<WorkflowMember>> = looks.try_buffered(MAX_CONCURRENT_COMMANDS).try_collect().await?;
        let cancels = stream::iter(active.into_iter().flatten().map(Ok));
        cancels.try_for_each_concurrent(MAX_CONCURRENT_COMMANDS, |job| self.cancel_member(kept, job)).await?;
        self.expire_workflow(kept.id).await
    }

    /// Ends a job, or gives it back because somebody has it.
    async fn cancel_unless_active(
        &self,
        kept: &WorkflowRecord,
        job: WorkflowMember,
    ) -> StoreResult<Option<WorkflowMember>> {
        let located = self.jobs.locate_in_queue(kept.job_id(job.index, &job.new_job.queue), &job.new_job.queue).await?;
        if located.is_some_and(|located| located.state() == JobState::Active) {
            return Ok(Some(job));
        }
        self.cancel_member(kept, job).await.map(|()| None)
    }

    pub(super) async fn cancel_member(
        &self,
        kept: &WorkflowRecord,
        WorkflowMember { index, new_job: mut new, .. }: WorkflowMember,
    ) -> StoreResult<()> {
        let id = kept.job_id(index, &new.queue);
        let membership = kept.membership(index);
        new.workflow = Some(membership);
        // It may come to be between the look and the script
        for _ in 0..3 {
            match self.jobs.cancel(id).await? {
                Ok(_) => {}
                Err(JobTransitionError::NotFound) => {
                    if !self.cancel_before_create(id, new.clone()).await? {
                        continue;
                    }
                }
                Err(JobTransitionError::Conflict(_)) => {
                    if let Some(LocatedJob::Finished(json)) = self.jobs.locate_in_queue(id, &new.queue).await? {
                        self.record_member_end(membership, id, &json).await?;
                    }
                    return Ok(());
                }
            }
            return self.record_member(membership, id, TerminalState::Cancelled, "").await.map(drop);
        }
        Err(StoreError::damaged(format!("job {id} of workflow {} cannot be pinned down", kept.id)))
    }

    /// Ends a job before it exists; false when it does.
    async fn cancel_before_create(&self, id: JobId, new: NewJob) -> StoreResult<bool> {
        let job = new_job_record(id, new);
        let keys = QueueKeys::new(&job.queue);
        let ended: i64 = script::CANCEL_BEFORE_CREATE
            .key(keys.record(&id))
            .key(keys.result(&id))
            .arg(FinishedJob::cancelled(&job, None, local_now()).to_text_without_attempt())
            .arg(self.jobs.store.settings.jobs.result_ttl.as_millis().to_string())
            .invoke_async(&mut self.jobs.store.redis.clone())
            .await?;
        Ok(ended == 1)
    }
}
