//! Cancels workflows. The workflow is marked first, so that no further job starts; then the existing jobs are ended, and the
//! workflows in it cancelled.

use futures_util::{FutureExt, TryStreamExt, future::BoxFuture, stream};

use super::{
    MAX_CONCURRENT_COMMANDS, Workflows, advance,
    record::{StoredWork, WorkflowMember, WorkflowRecord},
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
        let outer = match self.cancel_alone(id).await? {
            Ok(outer) => outer,
            Err(refused) => return Ok(Err(refused)),
        };
        if let Some(outer) = outer {
            self.advance(outer).await?;
            self.expire_workflow(id).await?;
        }
        Ok(Ok(()))
    }

    /// Cancels a workflow and those in it. Returns the one that it is a member of, if that continues now.
    async fn cancel_alone(&self, id: WorkflowId) -> StoreResult<Result<Option<WorkflowId>, CancelWorkflowError>> {
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
        let Some(record) = self.read_workflow(id).await? else { return Ok(Ok(None)) };
        let kind = record.progress.kind.as_str();
        metrics::counter!("galley_workflows_ended_total", "type" => kind, "state" => "cancelled").increment(1);
        self.cancel_members(&record).await.map(Ok)
    }

    /// Cancels the workflow that a member is. One that does not exist yet sees that the outer one is cancelled: what creates
    /// it looks, and so does maintenance.
    fn cancel_nested<'a>(&'a self, record: &'a WorkflowRecord, index: usize) -> BoxFuture<'a, StoreResult<()>> {
        async move {
            if self.nested_state(record, index).await? != Some(WorkflowState::Running) {
                return Ok(());
            }
            let id = record.nested_id(index);
            match self.cancel_alone(id).await? {
                Ok(Some(_)) => self.expire_workflow(id).await,
                Ok(None) | Err(_) => Ok(()),
            }
        }
        .boxed()
    }

    /// Ends every job of a cancelled workflow that exists, or that another process may be about to create: that
    /// process saw the workflow before it was cancelled, so its job follows from the ends recorded now. Running jobs
    /// come last: a worker that becomes free must not find another job of the same workflow. Returns the workflow that this
    /// one is a member of, if that continues now.
    pub(super) async fn cancel_members(&self, record: &WorkflowRecord) -> StoreResult<Option<WorkflowId>> {
        let jobs = self.read_members(record, record.unfinished_indexes()).await?;
        let looks = stream::iter(jobs.into_iter().map(Ok)).map_ok(|job| self.cancel_unless_active(record, job));
        let active: Vec<Option<(usize, NewJob)>> = looks.try_buffered(MAX_CONCURRENT_COMMANDS).try_collect().await?;
        let cancels = stream::iter(active.into_iter().flatten().map(Ok));
        cancels
            .try_for_each_concurrent(MAX_CONCURRENT_COMMANDS, |(index, job)| self.cancel_member(record, index, job))
            .await?;
        let outer = self.end_step(record, WorkflowState::Cancelled).await?;
        if outer.is_none() {
            self.expire_workflow(record.id).await?;
        }
        Ok(outer)
    }

    /// Ends a member, or returns its index and job if a worker has it.
    async fn cancel_unless_active(
        &self,
        record: &WorkflowRecord,
        WorkflowMember { index, work, .. }: WorkflowMember,
    ) -> StoreResult<Option<(usize, NewJob)>> {
        let StoredWork::Job(job) = work else { return self.cancel_nested(record, index).await.map(|()| None) };
        let located = self.jobs.locate_in_queue(record.job_id(index, &job.queue), &job.queue).await?;
        if located.is_some_and(|located| located.state() == JobState::Active) {
            return Ok(Some((index, *job)));
        }
        self.cancel_member(record, index, *job).await.map(|()| None)
    }

    pub(super) async fn cancel_member(
        &self,
        record: &WorkflowRecord,
        index: usize,
        mut new: NewJob,
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
