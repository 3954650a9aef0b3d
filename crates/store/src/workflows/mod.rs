//! Workflows in Redis.
//!
//! A workflow is one hash: what the client asked for, and how its jobs ended so far. [`WorkflowProgress::plan`]
//! decides what follows, and [`Workflows::advance`] executes it: it creates the jobs that must exist and do not, and
//! nothing else. It is safe at any time, in any process and in several at once, because a job's id is derived from the
//! workflow's: creating it twice creates it once. It runs when the workflow is created, when one of its jobs has
//! ended, and in maintenance, which also looks for missed ends. So an interrupted workflow always continues.
//!
//! A member may be a workflow itself. It has a hash of its own, in another slot, whose id is derived from the outer one's, and
//! tells the outer one when it ends, as a job does.
//!
//! | file | what it does |
//! |---|---|
//! | `mod` | creates and shows workflows |
//! | `record` | reads a stored workflow |
//! | `advance` | advances a workflow as far as possible |
//! | `nested` | starts workflows that are members, and tells the outer ones how they ended |
//! | `member_ends` | records how jobs ended, and starts what comes next |
//! | `cancel` | cancels workflows |
//! | `list` | lists those that run |

mod advance;
mod cancel;
mod list;
mod member_ends;
mod nested;
mod record;

pub(crate) use member_ends::members_ended;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{TryStreamExt, stream};

use crate::{
    StoreError, StoreResult,
    connection::budgets::DataKind,
    jobs::{EnqueueRefusal, Jobs, LocatedJob, write_dependencies},
    keys, log_interruption, script,
    sealing::Sealer,
};
use common::{id::WorkflowId, name::QueueName, time::Millis, trace_context::TraceContext};
use model::workflow::{
    BatchCallback, MemberWork, NewWorkflow, NewWorkflowMember, TerminalState, WorkflowJobView, WorkflowKind,
    WorkflowMemberId, WorkflowProgress, WorkflowState, WorkflowView,
};

pub use cancel::CancelWorkflowError;
pub use list::{RunningWorkflows, WorkflowCursor};

use nested::Nesting;
use record::{StoredWork, WorkflowMember, WorkflowRecord, damaged};

/// The field that holds `tracestate` and `baggage`, beside `c` with the `traceparent`.
const TRACE_REST: &str = "x";
/// Maximum number of concurrent commands for the jobs of one workflow.
const MAX_CONCURRENT_COMMANDS: usize = 32;

/// Why a workflow was refused; nothing was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateWorkflowError {
    /// A workflow with that id exists.
    Duplicate(WorkflowId),
    /// One of its jobs would be refused.
    Refused(QueueName, EnqueueRefusal),
}

/// The workflows in Redis. Cheap to clone.
#[derive(Clone)]
pub struct Workflows {
    jobs: Jobs,
}

impl Workflows {
    /// The workflows that these jobs belong to.
    #[must_use]
    pub fn new(jobs: &Jobs) -> Self {
        Self { jobs: jobs.clone() }
    }

    /// Stores a workflow and starts its first jobs.
    ///
    /// # Errors
    /// After [`crate::StoreError::Unavailable`] the workflow may have been stored nevertheless, and then runs.
    pub async fn create_workflow(
        &self,
        new: NewWorkflow,
        trace: TraceContext,
        now: Millis,
    ) -> StoreResult<Result<WorkflowId, CreateWorkflowError>> {
        let id = new.id.unwrap_or_default();
        let trace = trace.named_after(id);
        if let Some(refused) = self.find_refusal(&new, id).await? {
            return Ok(Err(refused));
        }
        self.jobs.store.redis.memory().check_room(DataKind::Workflows)?;
        // Schedule its check first, so that no workflow is invisible
        self.reschedule_workflow(id, advance::CHECK_SOON.min(self.jobs.store.settings.workflows.check_interval))
            .await?;
        let mut call = script::CREATE_WORKFLOW.key(keys::workflow(&id));
        let call = call.arg("").arg(record_fields(self.jobs.sealer(), id, (&new, None), &trace, now));
        match call.invoke_async::<i64>(&mut self.jobs.store.redis.clone()).await.map_err(StoreError::from) {
            Ok(0) => return Ok(Err(CreateWorkflowError::Duplicate(id))),
            Ok(_) => {}
            Err(error) => {
                // Redis is full: leave nothing behind
                if matches!(error, StoreError::OutOfMemory) {
                    self.unschedule_workflow(id).await?;
                }
                return Err(error);
            }
        }
        metrics::counter!("galley_workflows_created_total", "type" => new.kind.as_str()).increment(1);
        // It is stored: maintenance starts what fails here
        if let Err(error) = self.advance(id).await {
            log_interruption("beginning a workflow", &error);
        }
        Ok(Ok(id))
    }

    /// Why a workflow is refused, if it is. Its jobs are admitted later whatever the depth of their queues.
    async fn find_refusal(&self, new: &NewWorkflow, id: WorkflowId) -> StoreResult<Option<CreateWorkflowError>> {
        let mut redis = self.jobs.store.redis.clone();
        let exists: bool = redis::cmd("EXISTS").arg(keys::workflow(&id)).query_async(&mut redis).await?;
        if exists {
            return Ok(Some(CreateWorkflowError::Duplicate(id)));
        }
        let jobs = new.jobs();
        let queues: BTreeSet<&QueueName> = jobs.iter().map(|job| &job.queue).collect();
        let names: Vec<&str> = queues.iter().map(|queue| queue.as_str()).collect();
        let (known, count): (Vec<Option<f64>>, u64) = redis::pipe()
            .cmd("ZMSCORE")
            .arg(keys::QUEUES)
            .arg(&names)
            .cmd("ZCARD")
            .arg(keys::QUEUES)
            .query_async(&mut redis)
            .await?;
        let max_queues = self.jobs.store.settings.jobs.max_queues;
        let more = known.iter().filter(|score| score.is_none()).count() as u64;
        if let Some(queue) = queues.first()
            && more > 0
            && count + more > max_queues
        {
            return Ok(Some(CreateWorkflowError::Refused(
                (*queue).clone(),
                EnqueueRefusal::TooManyQueues { max_queues },
            )));
        }
        for job in jobs.iter().filter(|job| job.summary.limit.is_some() || job.unique.is_some()) {
            let queue = &job.queue;
            if self.jobs.has_key_partitions(queue).await? {
                let refused = EnqueueRefusal::WorkflowJobWithHome;
                return Ok(Some(CreateWorkflowError::Refused(queue.clone(), refused)));
            }
        }
        for (queue, wanted) in count_starting_jobs(new) {
            let Some(max_depth) = self.jobs.store.settings.max_depth(queue) else { continue };
            if self.jobs.queue_stats(queue).await?.available + wanted > max_depth {
                return Ok(Some(CreateWorkflowError::Refused(queue.clone(), EnqueueRefusal::QueueFull { max_depth })));
            }
        }
        Ok(None)
    }

    /// A workflow with all its jobs as they are now.
    ///
    /// # Errors
    /// Redis is unavailable or the workflow is damaged.
    pub async fn workflow(&self, id: WorkflowId) -> StoreResult<Option<WorkflowView>> {
        let Some(record) = self.read_workflow(id).await? else { return Ok(None) };
        let jobs = self.read_members(&record, record.job_indexes()).await?;
        let planned: BTreeSet<usize> = record.progress.plan().indexes(record.member_count()).collect();
        let duplicates = self.read_duplicates(id, record.index_limit()).await?;
        let (results, record) = (self.read_results(id, record.index_limit()).await?, &record);
        let errors = self.read_errors(record).await?;
        let shown = stream::iter(jobs.into_iter().map(Ok)).map_ok(|job| {
            let (result, exists) = (results.get(job.index).cloned().flatten(), planned.contains(&job.index));
            let blocked_by = duplicates.get(job.index).cloned().flatten();
            let error = errors.get(&job.index).cloned();
            async move {
                let mut shown = self.member_status(record, job, exists, result).await?;
                if let Some(nested) = &mut shown.nested {
                    nested.error = error;
                }
                StoreResult::Ok(WorkflowJobView { blocked_by, ..shown })
            }
        });
        let jobs: Vec<WorkflowJobView> = shown.try_buffered(MAX_CONCURRENT_COMMANDS).try_collect().await?;
        Ok(Some(to_view(record, jobs)))
    }

    async fn member_status(
        &self,
        record: &WorkflowRecord,
        WorkflowMember { index, work, .. }: WorkflowMember,
        exists: bool,
        result: Option<String>,
    ) -> StoreResult<WorkflowJobView> {
        let new = match work {
            StoredWork::Job(new) => new,
            StoredWork::Nested(step) => return self.nested_status(record, index, &step, result).await,
        };
        let id = record.job_id(index, &new.queue);
        let state = match record.progress.terminal_state(index) {
            Some(end) => Some(end.job_state().as_str()),
            None if exists => {
                self.jobs.locate_in_queue(id, &new.queue).await?.map(|located: LocatedJob| located.state().as_str())
            }
            None => None,
        };
        let callback = record.callback_at(index);
        let (job_type, queue) = (new.summary.job_type.to_string(), new.queue.to_string());
        let id = WorkflowMemberId::Job(id);
        Ok(WorkflowJobView { index, callback, id, job_type, queue, state, result, blocked_by: None, nested: None })
    }
}

impl Workflows {
    /// The queues of a workflow's jobs and of those in nested workflows; none if it does not exist.
    ///
    /// # Errors
    /// Redis is unavailable or the workflow is damaged.
    pub async fn workflow_queues(&self, id: WorkflowId) -> StoreResult<Option<BTreeSet<QueueName>>> {
        let Some(record) = self.read_workflow(id).await? else { return Ok(None) };
        let members = self.read_members(&record, record.job_indexes()).await?;
        let mut queues = BTreeSet::new();
        for member in members {
            match member.work {
                StoredWork::Job(job) => {
                    queues.insert(job.queue);
                }
                StoredWork::Nested(step) => {
                    let nested = step.parse_member(member.now).map_err(|error| damaged(id, &error.to_string()))?;
                    let mut jobs = Vec::new();
                    nested.collect_jobs(&mut jobs);
                    queues.extend(jobs.into_iter().map(|job| job.queue.clone()));
                }
            }
        }
        Ok(Some(queues))
    }
}

/// How many jobs a workflow starts at once in each queue.
fn count_starting_jobs(new: &NewWorkflow) -> BTreeMap<&QueueName, u64> {
    let mut starting = BTreeMap::new();
    collect_starting_jobs(new, &mut starting);
    starting
}

fn collect_starting_jobs<'a>(new: &'a NewWorkflow, starting: &mut BTreeMap<&'a QueueName, u64>) {
    let starts_at_once = |index: usize| match new.kind {
        WorkflowKind::Chain => index == 0,
        WorkflowKind::Dag => new.depends_on.get(index).is_none_or(Vec::is_empty),
        WorkflowKind::Group | WorkflowKind::Batch => true,
    };
    for (_, member) in new.members.iter().enumerate().filter(|(index, _)| starts_at_once(*index)) {
        match &member.work {
            MemberWork::Job(job) if job.start_at.is_none() => *starting.entry(&job.queue).or_default() += 1,
            MemberWork::Workflow(inner) => collect_starting_jobs(inner, starting),
            MemberWork::Job(_) | MemberWork::ForEach { .. } => {}
        }
    }
}

/// The fields of a new workflow, and of one that is a member of another.
fn record_fields(
    sealer: &Sealer,
    id: WorkflowId,
    (new, nesting): (&NewWorkflow, Option<&Nesting>),
    trace: &TraceContext,
    now: Millis,
) -> Vec<String> {
    let id = id.to_string();
    let seal = |field: &str, text: &str| sealer.seal(&["workflow", &id, field], text).into_owned();
    let has = |wanted| new.callbacks.iter().any(|(callback, _)| *callback == wanted);
    let callbacks: String =
        BatchCallback::ALL.map(|callback| if has(callback) { '1' } else { '0' }).into_iter().collect();
    let mut fields: Vec<String> = ["y", new.kind.as_str(), "o", &callbacks].map(str::to_owned).into();
    fields.extend(["g".to_owned(), seal("g", &new.name_and_meta)]);
    fields.extend(["t".to_owned(), new.members.len().to_string(), "a".to_owned(), now.to_string()]);
    if let Some(text) = trace.traceparent() {
        fields.extend(["c".to_owned(), text.to_owned()]);
    }
    if let Some(text) = trace.stored_rest() {
        fields.extend([TRACE_REST.to_owned(), seal(TRACE_REST, &text)]);
    }
    let nested = new.nested_indexes();
    if !nested.is_empty() {
        fields.extend(["w".to_owned(), write_dependencies(&nested)]);
    }
    if let Some(Nesting { step, root, inherited_bytes }) = nesting {
        fields.extend(["m".to_owned(), step.to_string(), "q".to_owned(), root.to_string()]);
        fields.extend(inherited_bytes.iter().flat_map(|bytes| ["h".to_owned(), bytes.to_string()]));
    }
    let mut push = |index: usize, member: &NewWorkflowMember| {
        let name = format!("j{index}");
        let stored = seal(&name, &member.stored_text());
        fields.extend([name, stored]);
    };
    for (index, member) in new.members.iter().enumerate() {
        push(index, member);
    }
    let depends_on = new.depends_on.iter().enumerate().filter(|(_, depends_on)| !depends_on.is_empty());
    let depends_on: Vec<_> =
        depends_on.flat_map(|(index, depends_on)| [format!("u{index}"), write_dependencies(depends_on)]).collect();
    for (callback, member) in &new.callbacks {
        push(new.members.len() + callback.offset(), member);
    }
    fields.extend(depends_on);
    fields
}

fn to_view(record: &WorkflowRecord, jobs: Vec<WorkflowJobView>) -> WorkflowView {
    let state = record.ended.map_or(WorkflowState::Running, |(state, _)| state);
    let WorkflowProgress { kind, members, .. } = &record.progress;
    let ended = |end| members.iter().filter(|member| **member == Some(end)).count();
    let unstarted = if record.ended.is_some() { members.iter().filter(|member| member.is_none()).count() } else { 0 };
    WorkflowView {
        id: record.id,
        kind: *kind,
        state,
        name_and_meta: record.name_and_meta.clone(),
        parent: record.step.map(|step| step.membership),
        created_at: record.created_at,
        ended_at: record.ended.map(|(_, at)| at),
        total: record.member_count(),
        depends_on: record.progress.depends_on.clone(),
        counts: [
            ended(TerminalState::Completed),
            ended(TerminalState::Discarded),
            ended(TerminalState::Cancelled) + unstarted,
        ],
        jobs,
    }
}
