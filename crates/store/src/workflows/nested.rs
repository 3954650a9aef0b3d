//! Workflows that are members of another one: each has a hash of its own, and an id derived from the outer one's. What is
//! written to two of them takes steps that may run twice, in this order: the inner one is scheduled for maintenance, stored,
//! advanced, and noted as started in the outer one; when it has ended, the outer one records that and goes on, and only then
//! the inner one is forgotten by maintenance.

use std::collections::BTreeMap;

use super::{
    Workflows, advance,
    member_ends::{MemberRecord, continues},
    record::{WorkflowRecord, damaged},
    record_fields,
};
use crate::{StoreResult, jobs::Jobs, keys, script};
use common::{id::WorkflowId, json::ObjectWriter, time::Millis};
use model::workflow::{
    NestedView, NewWorkflow, ParentStep, StoredStep, TerminalState, WorkflowJobView, WorkflowMemberId, WorkflowState,
    elements_of, gather_results,
};

/// Arrays make at most this many times `workflows.max_jobs` jobs in a workflow and in all that are nested in it.
const MAX_JOBS_OF_ARRAYS: usize = 10;

/// Where a workflow is nested.
pub(super) struct Nesting {
    /// The member that it is.
    pub(super) step: ParentStep,
    /// The outermost workflow.
    pub(super) root: WorkflowId,
    /// About how many bytes the results have that it gets as a step.
    pub(super) inherited_bytes: Option<usize>,
}

/// Why a step could not start: a code and a message.
type StepError = (&'static str, String);

impl Workflows {
    /// Starts the workflow that a member is; true if it ended instead, or at once. `bytes` is the size of all results.
    pub(super) async fn start_nested(
        &self,
        record: &WorkflowRecord,
        index: usize,
        (stored, now): (&StoredStep, Millis),
        bytes: usize,
    ) -> StoreResult<bool> {
        let (new, inherited_bytes) = match stored.for_each {
            None => {
                let new = stored.parse_workflow(now).map_err(|error| damaged(record.id, &error.to_string()))?;
                (new, record.parent_results_size(bytes, index))
            }
            Some(source) => match self.group_of_elements(record, index, stored, (source, now)).await? {
                Ok(Some((new, array))) => {
                    let count = record.parent_count(index).saturating_sub(1);
                    (new, Jobs::parent_results_size(bytes.saturating_sub(array), count))
                }
                Ok(None) => {
                    self.record_step_end(record, index, TerminalState::Completed, "[]".to_owned()).await?;
                    return Ok(true);
                }
                Err(error) => {
                    self.fail_step(record, index, error).await?;
                    return Ok(true);
                }
            },
        };
        let step = ParentStep { membership: record.membership(index), source: stored.for_each };
        let nesting = Nesting { step, root: record.root, inherited_bytes };
        let id = record.nested_id(index);
        if !self.store_nested(id, &new, &nesting, record, now).await? {
            self.fail_step(record, index, ("duplicate", format!("there is another workflow with the id {id}"))).await?;
            return Ok(true);
        }
        let outer = self.advance_alone(id).await?;
        if outer.is_some() {
            self.expire_workflow(id).await?;
        }
        Ok(outer.is_some())
    }

    /// Stores a workflow that is a member; false if its id belongs to another one.
    async fn store_nested(
        &self,
        id: WorkflowId,
        new: &NewWorkflow,
        nesting: &Nesting,
        record: &WorkflowRecord,
        now: Millis,
    ) -> StoreResult<bool> {
        // Schedule its check first, so that no workflow is invisible
        let soon = advance::CHECK_SOON.min(self.jobs.store.settings.workflows.check_interval);
        self.reschedule_workflow(id, soon).await?;
        let mut call = script::CREATE_WORKFLOW.key(keys::workflow(&id));
        let fields = record_fields(self.jobs.sealer(), id, (new, Some(nesting)), &record.trace, now);
        let call = call.arg(nesting.step.to_string()).arg(fields);
        let is_stored: i64 = call.invoke_async(&mut self.jobs.store.redis.clone()).await?;
        if is_stored == 1 {
            metrics::counter!("galley_workflows_created_total", "type" => new.kind.as_str()).increment(1);
        }
        Ok(is_stored > 0)
    }

    /// The group with a job for each element of a result, and the bytes of that; none if it has no elements.
    async fn group_of_elements(
        &self,
        record: &WorkflowRecord,
        index: usize,
        stored: &StoredStep,
        (source, now): (usize, Millis),
    ) -> StoreResult<Result<Option<(NewWorkflow, usize)>, StepError>> {
        let settings = &self.jobs.store.settings.workflows;
        let result = self.read_results(record.id, source + 1).await?.pop().flatten();
        let elements = match elements_of(result.as_deref(), source, settings.max_jobs) {
            Ok(elements) => elements,
            Err(error) => return Ok(Err(error)),
        };
        if elements.is_empty() {
            return Ok(Ok(None));
        }
        let array = result.as_ref().map_or(0, String::len);
        let (bytes, limit) =
            (elements.len().saturating_mul(stored.bytes()).saturating_add(array), settings.results_limit_bytes);
        if u64::try_from(bytes).unwrap_or(u64::MAX) > limit {
            let message = format!(
                "for_each makes jobs of at most {limit} bytes together (workflows.results_limit_bytes), and {} copies of the \
                 step would have about {bytes}",
                elements.len()
            );
            return Ok(Err(("too_large", message)));
        }
        let new = match stored.group_of(&elements, now) {
            Ok(new) => new,
            Err(error) => return Ok(Err(("invalid_job", error.to_string()))),
        };
        let max_jobs = settings.max_jobs.saturating_mul(MAX_JOBS_OF_ARRAYS);
        let mut call = script::RESERVE_JOBS.key(keys::workflow(&record.root));
        call.arg(record.nested_id(index).to_string()).arg(new.job_count()).arg(max_jobs);
        let is_reserved: i64 = call.invoke_async(&mut self.jobs.store.redis.clone()).await?;
        if is_reserved == 0 {
            let message = format!(
                "all for_each in a workflow make at most {max_jobs} jobs together (ten times workflows.max_jobs), and {} more \
                 would pass that",
                new.job_count()
            );
            return Ok(Err(("too_many_jobs", message)));
        }
        Ok(Ok(Some((new, array))))
    }

    /// Ends a member that cannot start.
    async fn fail_step(&self, record: &WorkflowRecord, index: usize, (code, message): StepError) -> StoreResult<()> {
        let (field, mut error) = (format!("z{index}"), ObjectWriter::default());
        error.text("code", code).text("message", &message);
        let stored =
            self.jobs.sealer().seal(&["workflow", &record.id.to_string(), &field], &error.finish()).into_owned();
        let mut command = redis::cmd("HSET");
        command.arg(keys::workflow(&record.id)).arg(field).arg(stored);
        command.exec_async(&mut self.jobs.store.redis.clone()).await?;
        tracing::info!(workflow = %record.id, index, code, "a step of a workflow cannot start");
        self.record_step_end(record, index, TerminalState::Discarded, String::new()).await
    }

    /// Why members could not start, as JSON objects, by their indexes.
    pub(super) async fn read_errors(&self, record: &WorkflowRecord) -> StoreResult<BTreeMap<usize, String>> {
        let mut errors = BTreeMap::new();
        if record.nested.is_empty() {
            return Ok(errors);
        }
        let id = record.id.to_string();
        for (index, stored) in self.read_indexed(record.id, 'z', record.member_count()).await?.into_iter().enumerate() {
            if let Some(stored) = stored {
                let field = format!("z{index}");
                errors.insert(index, self.jobs.sealer().open(&["workflow", &id, &field], stored)?);
            }
        }
        Ok(errors)
    }

    /// Records the end of a member that has no workflow of its own, or none any more.
    async fn record_step_end(
        &self,
        record: &WorkflowRecord,
        index: usize,
        end: TerminalState,
        result: String,
    ) -> StoreResult<()> {
        let ended = MemberRecord::of_nested(record.membership(index), record.nested_id(index), end, result);
        self.record_members(&[ended]).await.into_iter().try_for_each(|recorded| recorded.map(drop))
    }

    /// Tells the workflow that an ended one is a member of. Returns it if it continues now; then it must be advanced before
    /// the ended one is forgotten.
    pub(super) async fn end_step(
        &self,
        record: &WorkflowRecord,
        state: WorkflowState,
    ) -> StoreResult<Option<WorkflowId>> {
        let Some(ParentStep { membership, .. }) = record.step else { return Ok(None) };
        // In case this is interrupted
        self.reschedule_workflow(record.id, advance::CHECK_SOON).await?;
        let (end, result) = match state {
            WorkflowState::Running => return Ok(None),
            WorkflowState::Completed => {
                let results = self.read_results(record.id, record.member_count()).await?;
                let result = gather_results(record.progress.kind, &record.name_and_meta, results);
                (TerminalState::Completed, result)
            }
            WorkflowState::Failed => (TerminalState::Discarded, String::new()),
            WorkflowState::Cancelled => (TerminalState::Cancelled, String::new()),
        };
        let ended = MemberRecord::of_nested(membership, record.id, end, result);
        match self.record_members(&[ended]).await.pop() {
            Some(recorded) => Ok(recorded?.filter(continues).map(|_| membership.workflow)),
            None => Ok(None),
        }
    }

    /// The state of the workflow that a member is; none if it does not exist.
    pub(super) async fn nested_state(
        &self,
        record: &WorkflowRecord,
        index: usize,
    ) -> StoreResult<Option<WorkflowState>> {
        let mut command = redis::cmd("HMGET");
        command.arg(keys::workflow(&record.nested_id(index))).arg(&["m", "s"]);
        let (step, state): (Option<String>, Option<String>) =
            command.query_async(&mut self.jobs.store.redis.clone()).await?;
        let (step, state) = (step.unwrap_or_default(), state.unwrap_or_default());
        let step = step.parse::<ParentStep>().ok().filter(|step| step.membership == record.membership(index));
        Ok(step.map(|_| WorkflowState::from_name(&state).unwrap_or(WorkflowState::Running)))
    }

    /// Records how a member ended that is a workflow, if it has. One that was started and is gone counts as failed.
    pub(super) async fn check_nested(&self, record: &WorkflowRecord, index: usize) -> StoreResult<()> {
        let id = record.nested_id(index);
        match self.nested_state(record, index).await? {
            None if record.started.contains(index) => {
                tracing::warn!(workflow = %record.id, nested = %id, "a nested workflow cannot be found: it counts as failed");
                self.record_step_end(record, index, TerminalState::Discarded, String::new()).await
            }
            None | Some(WorkflowState::Running) => Ok(()),
            Some(state) => {
                let Some(nested) = self.read_workflow(id).await? else { return Ok(()) };
                tracing::info!(workflow = %record.id, nested = %id, "recorded an end that the workflow missed");
                self.end_step(&nested, state).await.map(drop)
            }
        }
    }

    /// Whether a workflow is a member of one that was cancelled: what created it may have died before it saw that.
    pub(super) async fn is_outer_cancelled(&self, record: &WorkflowRecord) -> StoreResult<bool> {
        let Some(ParentStep { membership, .. }) = record.step else { return Ok(false) };
        let mut command = redis::cmd("HGET");
        command.arg(keys::workflow(&membership.workflow)).arg("s");
        let state: Option<String> = command.query_async(&mut self.jobs.store.redis.clone()).await?;
        Ok(state.as_deref() == Some(WorkflowState::Cancelled.as_str()))
    }

    /// A member that is a workflow, as it is shown.
    pub(super) async fn nested_status(
        &self,
        record: &WorkflowRecord,
        index: usize,
        step: &StoredStep,
        result: Option<String>,
    ) -> StoreResult<WorkflowJobView> {
        let state = self.nested_state(record, index).await?;
        let ended = record.progress.terminal_state(index).map(|end| match end {
            TerminalState::Completed => WorkflowState::Completed,
            TerminalState::Discarded => WorkflowState::Failed,
            TerminalState::Cancelled => WorkflowState::Cancelled,
        });
        Ok(WorkflowJobView {
            index,
            callback: None,
            id: WorkflowMemberId::Workflow(record.nested_id(index)),
            job_type: step.kind().as_str().to_owned(),
            queue: String::new(),
            state: ended.or(state).map(WorkflowState::as_str),
            result,
            blocked_by: None,
            nested: Some(NestedView { for_each: step.for_each, exists: state.is_some(), error: None }),
        })
    }
}
