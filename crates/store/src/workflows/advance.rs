//! Advances a workflow as far as possible.

use std::time::Duration;

use futures_util::{FutureExt, TryStreamExt, future::BoxFuture, stream};

use super::{
    MAX_CONCURRENT_COMMANDS, Workflows,
    record::{StartedMembers, StoredWork, WorkflowMember, WorkflowRecord},
};
use crate::{
    StoreError, StoreResult,
    jobs::{EnqueueRefusal, LocatedJob, MemberEnd},
    keys, script,
};
use common::{
    id::{JobId, WorkflowId},
    telemetry::spans,
    time::Millis,
    trace_context::SpanReference,
};
use model::{
    job::{AttemptError, NewJob},
    workflow::{BatchCallback, TerminalState, WorkflowKind, WorkflowState, duplicate_message},
};

/// When maintenance checks a workflow after a change to it.
pub(super) const CHECK_SOON: Duration = Duration::from_secs(5);
/// Number of members that are read and created before the progress is saved.
const BATCH: usize = 50;
/// Longest time between two checks by maintenance, unless the setting is longer.
const MAX_CHECK_INTERVAL: Duration = Duration::from_hours(1);
/// Maximum number of workflows that maintenance checks in one turn.
const MAX_WORKFLOWS_PER_TICK: usize = 20;

/// Whether a workflow may advance further at once.
enum Advanced {
    /// No; the workflow that it is a member of, if that continues now.
    Done(Option<WorkflowId>),
    /// A job ended instead of starting.
    Again,
}

impl Workflows {
    /// Creates the jobs of a workflow that must exist by now, and ends it if it is finished. Safe at any time in any
    /// process.
    ///
    /// # Errors
    /// Redis is unavailable, or a job cannot be created: maintenance tries again.
    pub async fn advance(&self, id: WorkflowId) -> StoreResult<()> {
        // One that ended leads to the one that it is a member of, and is forgotten when that has gone on
        let (mut next, mut ended) = (Some(id), Vec::new());
        while let Some(id) = next {
            next = self.advance_alone(id).await?;
            ended.extend(next.map(|_| id));
        }
        for id in ended {
            self.expire_workflow(id).await?;
        }
        Ok(())
    }

    /// Advances a workflow and those in it. Returns the one that it is a member of, if it ended and that one continues now.
    ///
    /// Boxed: starting a workflow that is a member advances that.
    pub(super) fn advance_alone(&self, id: WorkflowId) -> BoxFuture<'_, StoreResult<Option<WorkflowId>>> {
        async move {
            // Each further turn is about a job that ended in the one before, so they come to an end
            loop {
                if let Advanced::Done(outer) = self.advance_once(id).await? {
                    return Ok(outer);
                }
            }
        }
        .boxed()
    }

    async fn advance_once(&self, id: WorkflowId) -> StoreResult<Advanced> {
        let Some(record) = self.read_workflow(id).await? else {
            return self.unschedule_workflow(id).await.map(|()| Advanced::Done(None));
        };
        match record.ended {
            Some((WorkflowState::Cancelled, _)) => return self.cancel_members(&record).await.map(Advanced::Done),
            Some((state, _)) => return self.leave_ended(&record, state).await,
            None => {}
        }
        let plan = record.progress.plan();
        let mut ended = false;
        let missing: Vec<usize> =
            record.unfinished_indexes().into_iter().filter(|index| !record.started.contains(*index)).collect();
        for some in missing.chunks(BATCH) {
            let bytes = self.results_bytes(&record).await?;
            for WorkflowMember { index, work, now } in self.read_members(&record, some.to_vec()).await? {
                ended |= match work {
                    StoredWork::Job(job) => self.start_member(&record, index, (*job, now), bytes).await?,
                    StoredWork::Nested(step) => self.start_nested(&record, index, (&step, now), bytes).await?,
                };
            }
            // It may have been cancelled meanwhile by a process that did not see the new jobs
            match self.record_started_members(&record, some).await? {
                None => {}
                Some(WorkflowState::Cancelled) => {
                    let Some(record) = self.read_workflow(id).await? else { return Ok(Advanced::Done(None)) };
                    return self.cancel_members(&record).await.map(Advanced::Done);
                }
                Some(_) => return Ok(Advanced::Done(None)),
            }
        }
        if ended {
            return Ok(Advanced::Again);
        }
        if plan.state == WorkflowState::Running {
            let after = self.next_check_delay(&record);
            return self.reschedule_workflow(id, after).await.map(|()| Advanced::Done(None));
        }
        let state = match self.end_workflow(id, plan.state).await?.as_str() {
            "done" => {
                let (kind, state) = (record.progress.kind.as_str(), plan.state.as_str());
                metrics::counter!("galley_workflows_ended_total", "type" => kind, "state" => state).increment(1);
                tracing::info!(workflow = %id, kind, state, "workflow is over");
                plan.state
            }
            "gone" => return Ok(Advanced::Done(None)),
            // It ended in another way meanwhile
            other => WorkflowState::from_name(other).unwrap_or(plan.state),
        };
        self.leave_ended(&record, state).await
    }

    /// Tells the workflow that an ended one is a member of, and sets its TTL, unless the other one must go on first.
    async fn leave_ended(&self, record: &WorkflowRecord, state: WorkflowState) -> StoreResult<Advanced> {
        let outer = self.end_step(record, state).await?;
        if outer.is_none() {
            self.expire_workflow(record.id).await?;
        }
        Ok(Advanced::Done(outer))
    }

    /// Creates a job; true if it ended instead, because another one blocks it. `bytes` is the size of all results.
    async fn start_member(
        &self,
        record: &WorkflowRecord,
        index: usize,
        (mut new, now): (NewJob, Millis),
        bytes: usize,
    ) -> StoreResult<bool> {
        let id = record.job_id(index, &new.queue);
        new.id = Some(id);
        new.workflow = Some(record.membership(index));
        new.parent_results_bytes = record.parent_results_size(bytes, index);
        let causes = self.attempts_before(record, index).await?;
        match self.jobs.enqueue_after(Box::new(new.clone()), (record.trace.clone(), causes), now).await? {
            Ok(_) => Ok(false),
            Err(EnqueueRefusal::Duplicate(known)) if known == id => Ok(false),
            // Another job blocks it: it counts as cancelled, and the workflow continues from there
            Err(EnqueueRefusal::Duplicate(known) | EnqueueRefusal::Ignored { id: known, .. }) => {
                self.record_duplicate(record.id, index, known).await?;
                new.failures.push(AttemptError::new("duplicate", "Duplicate", &duplicate_message(&known), 0, now));
                self.cancel_member(record, index, new).await?;
                Ok(true)
            }
            // The queue got partitions after the workflow was accepted
            Err(EnqueueRefusal::WorkflowJobWithHome) => {
                let message = "its key or uniqueness belongs to another partition than the jobs of workflows";
                new.failures.push(AttemptError::new("partitioned", "Partitioned", message, 0, now));
                self.cancel_member(record, index, new).await?;
                Ok(true)
            }
            Err(refused) => {
                Err(StoreError::damaged(format!("job {index} of workflow {} cannot be made: {refused:?}", record.id)))
            }
        }
    }

    /// The recorded attempts whose ends lead to a job of a DAG or to a callback, of a bounded number of jobs. None for any
    /// other job.
    async fn attempts_before(&self, record: &WorkflowRecord, index: usize) -> StoreResult<Vec<SpanReference>> {
        if !spans::is_exporting() {
            return Ok(Vec::new());
        }
        let causes = causes_of(record, index);
        let fields: Vec<String> = causes.iter().take(spans::MAX_LINKS).map(|index| format!("p{index}")).collect();
        if fields.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(keys::workflow(&record.id)).arg(fields);
        let attempts: Vec<Option<String>> = command.query_async(&mut self.jobs.store.redis.clone()).await?;
        Ok(attempts.iter().flatten().filter_map(|attempt| SpanReference::parse(attempt)).collect())
    }

    /// Notes which job is in the way of one of the workflow's.
    async fn record_duplicate(&self, id: WorkflowId, index: usize, known: JobId) -> StoreResult<()> {
        let mut command = redis::cmd("HSET");
        command.arg(keys::workflow(&id)).arg(format!("d{index}")).arg(known.to_string());
        Ok(command.exec_async(&mut self.jobs.store.redis.clone()).await?)
    }

    /// About how many bytes the recorded results of a workflow have.
    async fn results_bytes(&self, record: &WorkflowRecord) -> StoreResult<usize> {
        let mut command = redis::cmd("HGET");
        command.arg(keys::workflow(&record.id)).arg("b");
        let bytes: Option<usize> = command.query_async(&mut self.jobs.store.redis.clone()).await?;
        Ok(bytes.unwrap_or(0))
    }

    /// Saves that jobs exist, of a workflow that is no DAG also all before them; returns the workflow's state if it is
    /// finished. A deleted workflow counts as finished.
    async fn record_started_members(
        &self,
        record: &WorkflowRecord,
        indexes: &[usize],
    ) -> StoreResult<Option<WorkflowState>> {
        let mut call = script::NOTE_STARTED.key(keys::workflow(&record.id));
        match &record.started {
            StartedMembers::Before(_) => call.arg(indexes.last().map_or(0, |last| last + 1)),
            StartedMembers::Each(_) => call.arg(0).arg(indexes),
        };
        let state: String = call.invoke_async(&mut self.jobs.store.redis.clone()).await?;
        Ok(if state == "gone" { Some(WorkflowState::Failed) } else { WorkflowState::from_name(&state) })
    }

    pub(super) async fn end_workflow(&self, id: WorkflowId, state: WorkflowState) -> StoreResult<String> {
        let mut call = script::END_WORKFLOW.key(keys::workflow(&id));
        Ok(call
            .arg(state.as_str())
            .arg(self.jobs.estimated_now())
            .invoke_async(&mut self.jobs.store.redis.clone())
            .await?)
    }

    /// Sets the TTL of a finished workflow that has nothing left to do.
    pub(super) async fn expire_workflow(&self, id: WorkflowId) -> StoreResult<()> {
        let mut command = redis::cmd("PEXPIRE");
        command.arg(keys::workflow(&id)).arg(self.jobs.store.settings.jobs.result_ttl.as_millis().to_string());
        command.exec_async(&mut self.jobs.store.redis.clone()).await?;
        self.unschedule_workflow(id).await
    }

    /// The delay until maintenance checks a running workflow. The older the workflow, the longer its jobs seem to
    /// take, and the less frequent checks achieve.
    fn next_check_delay(&self, record: &WorkflowRecord) -> Duration {
        let age =
            u64::try_from(self.jobs.estimated_now() - record.created_at).map_or(Duration::ZERO, Duration::from_millis);
        self.jobs.store.settings.workflows.check_interval.max((age / 20).min(MAX_CHECK_INTERVAL))
    }

    pub(super) async fn unschedule_workflow(&self, id: WorkflowId) -> StoreResult<()> {
        let mut command = redis::cmd("ZREM");
        Ok(command.arg(keys::WORKFLOWS).arg(id.to_string()).exec_async(&mut self.jobs.store.redis.clone()).await?)
    }

    /// Reschedules a workflow whose check failed.
    pub(crate) async fn reschedule_after_failure(&self, id: WorkflowId) -> StoreResult<()> {
        self.reschedule_workflow(id, self.jobs.store.settings.workflows.check_interval).await
    }

    /// Schedules maintenance's check of a workflow after a delay, by Redis's clock.
    pub(crate) async fn reschedule_workflow(&self, id: WorkflowId, after: Duration) -> StoreResult<()> {
        let mut call = script::RESCHEDULE.key(keys::WORKFLOWS);
        let call = call.arg(id.to_string()).arg(after.as_millis().to_string());
        let _: i64 = call.invoke_async(&mut self.jobs.store.redis.clone()).await?;
        Ok(())
    }

    /// The workflows that maintenance should check now, a bounded number.
    pub(crate) async fn workflows_to_check(&self) -> StoreResult<Vec<WorkflowId>> {
        // A check may come early or late, so the estimate will do, and idle services ask Redis nothing for it
        let now = self.jobs.estimated_now();
        let ids = self.jobs.store.redis.due_members(keys::WORKFLOWS, now, MAX_WORKFLOWS_PER_TICK).await?;
        for stranger in ids.iter().filter(|id| id.parse::<WorkflowId>().is_err()) {
            tracing::error!(member = common::name::quoted(stranger), "not a workflow among the workflows, removed");
            redis::cmd("ZREM")
                .arg(keys::WORKFLOWS)
                .arg(stranger)
                .exec_async(&mut self.jobs.store.redis.clone())
                .await?;
        }
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Resumes a workflow that may have been interrupted: records missed ends, then advances it. Returns how many jobs
    /// it checked.
    ///
    /// # Errors
    /// As [`Workflows::advance`].
    pub async fn check_workflow(&self, id: WorkflowId) -> StoreResult<usize> {
        let mut looked_at = 0;
        if let Some(record) = self.read_workflow(id).await?.filter(|record| record.ended.is_none()) {
            if self.is_outer_cancelled(&record).await? {
                return self.cancel_workflow(id).await.map(|_| 1);
            }
            for some in record.unfinished_indexes().chunks(BATCH) {
                let jobs = self.read_members(&record, some.to_vec()).await?;
                let checks = stream::iter(jobs.into_iter().map(Ok));
                checks.try_for_each_concurrent(MAX_CONCURRENT_COMMANDS, |job| self.check_member(&record, job)).await?;
                looked_at += some.len();
            }
        }
        self.advance(id).await.map(|()| looked_at)
    }

    /// Records how a job ended if it is finished. One that existed and cannot be found counts as failed: its outcome
    /// is unknown, and running it again could be wrong.
    async fn check_member(
        &self,
        record: &WorkflowRecord,
        WorkflowMember { index, work, .. }: WorkflowMember,
    ) -> StoreResult<()> {
        let StoredWork::Job(new) = work else { return self.check_nested(record, index).await };
        let id = record.job_id(index, &new.queue);
        let membership = record.membership(index);
        match self.jobs.locate_in_queue(id, &new.queue).await? {
            Some(LocatedJob::Finished(json)) => {
                tracing::info!(workflow = %record.id, %id, "recorded an end that the workflow missed");
                self.record_end(MemberEnd { membership, job: id, json: &json, span: None }).await?;
            }
            None if record.started.contains(index) => {
                tracing::warn!(workflow = %record.id, %id, "a job of a workflow cannot be found: it counts as failed");
                self.record_end_as(membership, id, TerminalState::Discarded).await?;
            }
            Some(_) | None => {}
        }
        Ok(())
    }
}

/// The members whose ends lead to a job: those that a job of a DAG depends on, those that did not succeed for `on_failure`,
/// and all for the other callbacks.
fn causes_of(record: &WorkflowRecord, index: usize) -> Vec<usize> {
    let progress = &record.progress;
    if progress.kind == WorkflowKind::Dag {
        return progress.depends_on.get(index).cloned().unwrap_or_default();
    }
    let Some(callback) = record.callback_at(index) else { return Vec::new() };
    let is_cause = |end: Option<TerminalState>| {
        callback != BatchCallback::Failure || end.is_some_and(|end| end != TerminalState::Completed)
    };
    (0..).zip(&progress.members).filter(|(_, end)| is_cause(**end)).map(|(index, _)| index).collect()
}
