//! A stored workflow; `docs/redis.md` describes the fields.

use std::collections::BTreeSet;

use super::{TRACE_REST, Workflows};
use crate::{
    StoreError, StoreResult,
    jobs::{Jobs, RequestClock, open_results, parse_dependencies},
    keys,
};
use common::settings::MAX_WORKFLOW_JOBS;
use common::{
    id::{JobId, WorkflowId},
    json::Object,
    name::QueueName,
    time::Millis,
    trace_context::TraceContext,
};
use model::{
    job::{JobState, NewJob},
    workflow::{
        BatchCallback, Membership, ParentStep, StoredStep, TerminalState, WorkflowKind, WorkflowProgress,
        WorkflowState, parents_of,
    },
};

type MemberTexts = Vec<Option<String>>;

/// The fields that never change and that every reader needs: kind, members, callbacks, creation, `name` and `meta`, trace,
/// then of nested workflows the step that it is, members that are workflows, bytes of what it inherits, the outermost one.
const FIXED_FIELDS: &[&str] = &["y", "t", "o", "a", "g", "c", TRACE_REST, "m", "w", "h", "q"];

/// A workflow at one moment.
pub(super) struct WorkflowRecord {
    pub(super) id: WorkflowId,
    /// `name` and `meta` as a JSON object.
    pub(super) name_and_meta: String,
    pub(super) created_at: Millis,
    pub(super) trace: TraceContext,
    /// The member of another workflow that it is, if it is one.
    pub(super) step: Option<ParentStep>,
    /// The members that are workflows.
    pub(super) nested: BTreeSet<usize>,
    /// About how many bytes the results have that it gets as a step; none if it gets none.
    pub(super) inherited_bytes: Option<usize>,
    /// The outermost workflow that it is in; itself if it is in none.
    pub(super) root: WorkflowId,
    /// The jobs that exist, or did.
    pub(super) started: StartedMembers,
    /// How and when it ended, if it did.
    pub(super) ended: Option<(WorkflowState, Millis)>,
    pub(super) progress: WorkflowProgress,
}

/// Which jobs of a workflow were started.
pub(super) enum StartedMembers {
    /// All before this index that must exist.
    Before(usize),
    /// These, of a DAG.
    Each(BTreeSet<usize>),
}

impl StartedMembers {
    pub(super) fn contains(&self, index: usize) -> bool {
        match self {
            Self::Before(end) => index < *end,
            Self::Each(indexes) => indexes.contains(&index),
        }
    }
}

/// A member of a workflow, as it would start at that time.
pub(super) struct WorkflowMember {
    pub(super) index: usize,
    pub(super) work: StoredWork,
    pub(super) now: Millis,
}

/// What a member of a workflow runs.
pub(super) enum StoredWork {
    Job(Box<NewJob>),
    Nested(StoredStep),
}

impl WorkflowRecord {
    /// The number of members.
    pub(super) fn member_count(&self) -> usize {
        self.progress.members.len()
    }

    /// One more than the highest possible index.
    pub(super) fn index_limit(&self) -> usize {
        self.member_count() + BatchCallback::ALL.len()
    }

    /// The indexes that have a job.
    pub(super) fn job_indexes(&self) -> Vec<usize> {
        let callbacks = BatchCallback::ALL.iter().map(|callback| callback.offset());
        let callbacks = callbacks.filter(|offset| self.progress.callbacks[*offset].is_some());
        (0..self.member_count()).chain(callbacks.map(|offset| self.member_count() + offset)).collect()
    }

    /// The indexes of jobs that must exist and have no recorded end, in the order in which they start.
    pub(super) fn unfinished_indexes(&self) -> Vec<usize> {
        let plan = self.progress.plan();
        plan.indexes(self.member_count()).filter(|index| self.progress.terminal_state(*index).is_none()).collect()
    }

    /// How many results a member gets from those before it.
    pub(super) fn parent_count(&self, index: usize) -> usize {
        let depends_on = self.progress.depends_on.get(index).map_or(&[][..], Vec::as_slice);
        parents_of(self.progress.kind, self.member_count(), depends_on, index).len()
    }

    /// About how many bytes the results have that a member gets, of a workflow whose results have that many. One with nothing
    /// before it gets what the workflow got as a step.
    pub(super) fn parent_results_size(&self, bytes: usize, index: usize) -> Option<usize> {
        Jobs::parent_results_size(bytes, self.parent_count(index)).or(self.inherited_bytes)
    }

    pub(super) fn job_id(&self, index: usize, queue: &QueueName) -> JobId {
        self.id.job_id(self.membership(index).index, queue)
    }

    /// Which callback the job with that index is; none for a member.
    pub(super) fn callback_at(&self, index: usize) -> Option<BatchCallback> {
        BatchCallback::ALL.into_iter().find(|callback| self.member_count() + callback.offset() == index)
    }

    /// The id of the workflow that the member with that index is.
    pub(super) fn nested_id(&self, index: usize) -> WorkflowId {
        self.id.nested(self.membership(index).index)
    }

    /// What the job with that index knows of the workflow.
    pub(super) fn membership(&self, index: usize) -> Membership {
        Membership { workflow: self.id, index: u32::try_from(index).unwrap_or(u32::MAX) }
    }
}

impl Workflows {
    /// Reads a workflow; none if it does not exist.
    pub(super) async fn read_workflow(&self, id: WorkflowId) -> StoreResult<Option<WorkflowRecord>> {
        let (key, mut redis) = (keys::workflow(&id), self.jobs.store.redis.clone());
        let fixed: MemberTexts = redis::cmd("HMGET").arg(&key).arg(FIXED_FIELDS).query_async(&mut redis).await?;
        let [
            Some(kind),
            Some(total),
            Some(callbacks),
            Some(created_at),
            Some(about),
            traceparent,
            trace_rest,
            nesting @ ..,
        ] = &fixed[..]
        else {
            return if fixed.iter().all(Option::is_none) { Ok(None) } else { Err(damaged(id, "lacks fields")) };
        };
        let mut progress = parse_progress(id, kind, total, callbacks)?;
        let (kind, total) = (progress.kind, progress.members.len());
        let (step, nested, inherited_bytes, root) = parse_nesting(id, nesting)?;
        if kind == WorkflowKind::Dag {
            progress.depends_on = self.read_dependencies(id, total).await?;
        }
        // Reads all that changes at one moment: if the workflow is not finished, all ends before that are visible
        let mut command = redis::cmd("HMGET");
        command.arg(&key).arg(&["n", "s", "f", "y"]);
        for index in 0..total + BatchCallback::ALL.len() {
            command.arg(format!("e{index}"));
        }
        if kind == WorkflowKind::Dag {
            command.arg((0..total).map(|index| format!("i{index}")).collect::<Vec<_>>());
        }
        let mut changing: MemberTexts = command.query_async(&mut redis).await?;
        let exist = changing.split_off(changing.len().min(4 + total + BatchCallback::ALL.len()));
        if changing.get(3).is_none_or(Option::is_none) {
            // Redis was emptied between the two reads: do not mistake this for a workflow without ends
            return Ok(None);
        }
        let number = |index: usize| changing.get(index)?.as_ref()?.parse::<i64>().ok();
        let state = changing.get(1).cloned().flatten().and_then(|name| WorkflowState::from_name(&name));
        for (index, end) in changing.iter().skip(4).enumerate() {
            if let Some(end) = end.as_deref().and_then(JobState::from_name).and_then(TerminalState::from_state) {
                progress.record_end(index, end);
            }
        }
        Ok(Some(WorkflowRecord {
            id,
            step,
            nested,
            inherited_bytes,
            root,
            name_and_meta: self.jobs.sealer().open(&["workflow", &id.to_string(), "g"], about.clone())?,
            created_at: created_at.parse().unwrap_or_default(),
            trace: self.open_trace(id, traceparent.as_deref(), trace_rest.clone())?,
            started: if kind == WorkflowKind::Dag {
                StartedMembers::Each((0..).zip(exist).filter_map(|(index, exists)| exists.map(|_| index)).collect())
            } else {
                StartedMembers::Before(number(0).and_then(|number| usize::try_from(number).ok()).unwrap_or(0))
            },
            ended: state.map(|state| (state, number(2).unwrap_or_default())),
            progress,
        }))
    }

    /// Of each member of a DAG, those that it depends on.
    async fn read_dependencies(&self, id: WorkflowId, total: usize) -> StoreResult<Vec<Vec<usize>>> {
        let mut command = redis::cmd("HMGET");
        command.arg(keys::workflow(&id)).arg((0..total).map(|index| format!("u{index}")).collect::<Vec<_>>());
        let texts: MemberTexts = command.query_async(&mut self.jobs.store.redis.clone()).await?;
        let parse = |text: Option<String>| parse_dependencies(text.as_deref().unwrap_or_default());
        texts.into_iter().map(parse).collect::<Option<_>>().ok_or_else(|| damaged(id, "has bad dependencies"))
    }

    /// The trace of a workflow, from what is stored of it.
    pub(super) fn open_trace(
        &self,
        id: WorkflowId,
        traceparent: Option<&str>,
        rest: Option<String>,
    ) -> StoreResult<TraceContext> {
        let open = |text| self.jobs.sealer().open(&["workflow", &id.to_string(), TRACE_REST], text);
        Ok(TraceContext::from_stored(traceparent, rest.map(open).transpose()?.as_deref()))
    }

    /// Reads members of a workflow.
    pub(super) async fn read_members(
        &self,
        record: &WorkflowRecord,
        indexes: Vec<usize>,
    ) -> StoreResult<Vec<WorkflowMember>> {
        if indexes.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(keys::workflow(&record.id));
        for index in &indexes {
            command.arg(format!("j{index}"));
        }
        let texts: MemberTexts = command.query_async(&mut self.jobs.store.redis.clone()).await?;
        let mut jobs = Vec::with_capacity(indexes.len());
        let mut clock = RequestClock::new(&self.jobs);
        for (index, text) in indexes.into_iter().zip(texts) {
            let text = text.ok_or_else(|| damaged(record.id, "lacks a job"))?;
            if record.nested.contains(&index) {
                let text = self.open_member(record.id, index, text)?;
                let step = StoredStep::parse(&text).map_err(|error| damaged(record.id, &error))?;
                jobs.push(WorkflowMember { index, work: StoredWork::Nested(step), now: self.jobs.estimated_now() });
                continue;
            }
            let (job, now) = self.parse_member(record.id, index, text, &mut clock).await?;
            jobs.push(WorkflowMember { index, work: StoredWork::Job(Box::new(job)), now });
        }
        Ok(jobs)
    }

    /// Parses a stored job of a workflow, as it would start now.
    pub(super) async fn parse_member(
        &self,
        id: WorkflowId,
        index: usize,
        stored: String,
        clock: &mut RequestClock<'_>,
    ) -> StoreResult<(NewJob, Millis)> {
        let text = self.open_member(id, index, stored)?;
        let body = Object::of_stored(&text).map_err(|error| damaged(id, &error.to_string()))?;
        let now = clock.now_for(&body).await?;
        let new = NewJob::parse(&body, now).map_err(|error| damaged(id, &error.to_string()))?;
        Ok((new, now))
    }

    fn open_member(&self, id: WorkflowId, index: usize, stored: String) -> StoreResult<String> {
        self.jobs.sealer().open(&["workflow", &id.to_string(), &format!("j{index}")], stored)
    }

    /// The results of the jobs before an index; none for jobs without one.
    pub(super) async fn read_results(&self, id: WorkflowId, before: usize) -> StoreResult<Vec<Option<String>>> {
        let stored = self.read_indexed(id, 'r', before).await?;
        open_results(self.jobs.sealer(), id, stored)
    }

    /// The jobs that were in the way of those before an index.
    pub(super) async fn read_duplicates(&self, id: WorkflowId, before: usize) -> StoreResult<Vec<Option<String>>> {
        self.read_indexed(id, 'd', before).await
    }

    pub(super) async fn read_indexed(
        &self,
        id: WorkflowId,
        field: char,
        before: usize,
    ) -> StoreResult<Vec<Option<String>>> {
        let mut command = redis::cmd("HMGET");
        command.arg(keys::workflow(&id));
        for index in 0..before {
            command.arg(format!("{field}{index}"));
        }
        Ok(command.query_async(&mut self.jobs.store.redis.clone()).await?)
    }
}

/// The progress of a workflow with these fields, before anything in it has ended.
fn parse_progress(id: WorkflowId, kind: &str, total: &str, callbacks: &str) -> StoreResult<WorkflowProgress> {
    let kind = WorkflowKind::from_name(kind).ok_or_else(|| damaged(id, "is of no known kind"))?;
    let total: usize = total
        .parse()
        .ok()
        .filter(|total| (1..=MAX_WORKFLOW_JOBS).contains(&(*total as u64)))
        .ok_or_else(|| damaged(id, "has a bad number of jobs"))?;
    let callbacks = BatchCallback::ALL.into_iter().zip(callbacks.bytes()).filter(|(_, digit)| *digit == b'1');
    let present: Vec<BatchCallback> = callbacks.map(|(callback, _)| callback).collect();
    Ok(WorkflowProgress::new(kind, total, &present))
}

/// The member that a workflow is, the members of it that are workflows, what it inherits, and the outermost one.
type NestingFields = (Option<ParentStep>, BTreeSet<usize>, Option<usize>, WorkflowId);

fn parse_nesting(id: WorkflowId, fields: &[Option<String>]) -> StoreResult<NestingFields> {
    let [step, nested, inherited, root] = fields else { return Err(damaged(id, "lacks fields")) };
    let step = step.as_deref().map(str::parse::<ParentStep>).transpose();
    let nested = parse_dependencies(nested.as_deref().unwrap_or_default());
    let nested = nested.ok_or_else(|| damaged(id, "has bad nested workflows"))?;
    let inherited_bytes = inherited.as_deref().and_then(|text| text.parse().ok());
    let root = root.as_deref().and_then(|text| text.parse().ok()).unwrap_or(id);
    Ok((step.map_err(|_| damaged(id, "has a bad parent"))?, nested.into_iter().collect(), inherited_bytes, root))
}

pub(super) fn damaged(id: WorkflowId, what: &str) -> StoreError {
    StoreError::damaged(format!("workflow {id}: {what}"))
}
