//! Cancels workflows. The workflow is marked first, so that no further job starts; then the existing jobs are ended.

use futures_util::{TryStreamExt, stream};

use super::{
    MAX_CONCURRENT_COMMANDS, Workflows, advance,
    record::{WorkflowMember, WorkflowRecord},
};
use crate::{
    StoreError, StoreResult,
    jobs::{FinishedJob, JobTransitionError, LocatedJob, MemberEnd, new_job_record},
    keys::QueueKeys,
    script,
};
use common::id::{JobId, WorkflowId};
use model::{
    job::{JobState, NewJob},
    workflow::{TerminalState, WorkflowState},
};

/// Why a workflow was not cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelWorkflowError {
    /// There is no workflow with that id.
    NotFound,
    /// It is finished already.
    AlreadyEnded(WorkflowState),
}

impl Workflows {
    /// Cancels an unfinished workflow and all of its unfinished jobs.
    ///
    /// # Errors
    /// Redis is unavailable: it may be cancelled nevertheless, and then maintenance ends the remaining jobs.
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
        // In case this call is interrupted
        self.reschedule_workflow(id, advance::CHECK_SOON).await?;
        if let Some(record) = self.read_workflow(id).await? {
            let kind = record.progress.kind.as_str();
            metrics::counter!("galley_workflows_ended_total", "type" => kind, "state" => "cancelled").increment(1);
            self.cancel_members(&record).await?;
        }
        Ok(Ok(()))
    }

    /// Ends every job of a cancelled workflow that exists, or that another process may be about to create: that
    /// process saw the workflow before it was cancelled, so its job follows from the ends recorded now. Running jobs
    /// come last: a worker that becomes free must not find another job of the same workflow.
    pub(super) async fn cancel_members(&self, record: &WorkflowRecord) -> StoreResult<()> {
        let jobs = self.read_members(record, record.unfinished_indexes()).await?;
        let looks = stream::iter(jobs.into_iter().map(Ok)).map_ok(|job| self.cancel_unless_active(record, job));
        let active: Vec<Option<WorkflowMember>> = looks.try_buffered(MAX_CONCURRENT_COMMANDS).try_collect().await?;
        let cancels = stream::iter(active.into_iter().flatten().map(Ok));
        cancels.try_for_each_concurrent(MAX_CONCURRENT_COMMANDS, |job| self.cancel_member(record, job)).await?;
        self.expire_workflow(record.id).await
    }

    /// Ends a job, or returns it if a worker has it.
    async fn cancel_unless_active(
        &self,
        record: &WorkflowRecord,
        job: WorkflowMember,
    ) -> StoreResult<Option<WorkflowMember>> {
        let located =
            self.jobs.locate_in_queue(record.job_id(job.index, &job.new_job.queue), &job.new_job.queue).await?;
        if located.is_some_and(|located| located.state() == JobState::Active) {
            return Ok(Some(job));
        }
        self.cancel_member(record, job).await.map(|()| None)
    }

    pub(super) async fn cancel_member(
        &self,
        record: &WorkflowRecord,
        WorkflowMember { index, new_job: mut new, .. }: WorkflowMember,
    ) -> StoreResult<()> {
        let id = record.job_id(index, &new.queue);
        let membership = record.membership(index);
        new.workflow = Some(membership);
        // It may be created between the look-up and the script
        for _ in 0..3 {
            match self.jobs.cancel(id).await? {
                Ok(_) => {}
                Err(JobTransitionError::NotFound) => {
                    if !self.cancel_before_create(id, new.clone()).await? {
                        continue;
                    }
                }
                Err(JobTransitionError::Conflict(_) | JobTransitionError::Duplicate(_)) => {
                    if let Some(LocatedJob::Finished(json)) = self.jobs.locate_in_queue(id, &new.queue).await? {
                        self.record_end(MemberEnd { membership, job: id, json: &json, span: None }).await?;
                    }
                    return Ok(());
                }
            }
            return self.record_end_as(membership, id, TerminalState::Cancelled).await;
        }
        Err(StoreError::damaged(format!("job {id} of workflow {} cannot be pinned down", record.id)))
    }

    /// Ends a job before it exists; false if it exists.
    async fn cancel_before_create(&self, id: JobId, new: NewJob) -> StoreResult<bool> {
        let job = new_job_record(id, new);
        let keys = QueueKeys::new(&job.queue);
        let ended = FinishedJob::cancelled(&job, None, self.jobs.estimated_now());
        let is_ended: i64 = script::CANCEL_BEFORE_CREATE
            .key(keys.record(&id))
            .key(keys.result(&id))
            .arg(ended.to_text_without_attempt(self.jobs.sealer(), &job))
            .arg(self.jobs.store.settings.jobs.result_ttl.as_millis().to_string())
            .invoke_async(&mut self.jobs.store.redis.clone())
            .await?;
        Ok(is_ended == 1)
    }
}
