//! A stored workflow; `docs/redis.md` describes the fields.

use std::collections::BTreeSet;

use super::{TRACE_REST, Workflows};
use crate::{
    StoreError, StoreResult,
    jobs::{RequestClock, open_results, parse_dependencies},
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
    workflow::{BatchCallback, Membership, TerminalState, WorkflowKind, WorkflowProgress, WorkflowState, parents_of},
};

type MemberTexts = Vec<Option<String>>;

/// A workflow at one moment.
pub(super) struct WorkflowRecord {
    pub(super) id: WorkflowId,
    /// `name` and `meta` as a JSON object.
    pub(super) name_and_meta: String,
    pub(super) created_at: Millis,
    pub(super) trace: TraceContext,
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

/// A job of a workflow, as it would start at that time.
pub(super) struct WorkflowMember {
    pub(super) index: usize,
    pub(super) new_job: NewJob,
    pub(super) now: Millis,
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

    /// How many results a job gets from those before it.
    pub(super) fn parent_count(&self, index: usize) -> usize {
        let depends_on = self.progress.depends_on.get(index).map_or(&[][..], Vec::as_slice);
        parents_of(self.progress.kind, self.member_count(), depends_on, index).len()
    }

    pub(super) fn job_id(&self, index: usize, queue: &QueueName) -> JobId {
        self.id.job_id(self.membership(index).index, queue)
    }

    /// Which callback the job with that index is; none for a member.
    pub(super) fn callback_at(&self, index: usize) -> Option<BatchCallback> {
        BatchCallback::ALL.into_iter().find(|callback| self.member_count() + callback.offset() == index)
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
        let mut command = redis::cmd("HMGET");
        let fixed: MemberTexts =
            command.arg(&key).arg(&["y", "t", "o", "a", "g", "c", TRACE_REST]).query_async(&mut redis).await?;
        let [Some(kind), Some(total), Some(callbacks), Some(created_at), Some(about), traceparent, trace_rest] =
            &fixed[..]
        else {
            return if fixed.iter().all(Option::is_none) { Ok(None) } else { Err(damaged(id, "lacks fields")) };
        };
        let kind = WorkflowKind::from_name(kind).ok_or_else(|| damaged(id, "is of no known kind"))?;
        let total: usize = total
            .parse()
            .ok()
            .filter(|total| (1..=MAX_WORKFLOW_JOBS).contains(&(*total as u64)))
            .ok_or_else(|| damaged(id, "has a bad number of jobs"))?;
        let present: Vec<BatchCallback> = BatchCallback::ALL
            .into_iter()
            .zip(callbacks.bytes())
            .filter(|(_, digit)| *digit == b'1')
            .map(|(c, _)| c)
            .collect();
        let mut progress = WorkflowProgress::new(kind, total, &present);
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

    /// Reads jobs of a workflow.
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
            let (new_job, now) = self.parse_member(record.id, index, text, &mut clock).await?;
            jobs.push(WorkflowMember { index, new_job, now });
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
        let text = self.jobs.sealer().open(&["workflow", &id.to_string(), &format!("j{index}")], stored)?;
        let body = Object::of_stored(&text).map_err(|error| damaged(id, &error.to_string()))?;
        let now = clock.now_for(&body).await?;
        let new = NewJob::parse(&body, now).map_err(|error| damaged(id, &error.to_string()))?;
        Ok((new, now))
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

    async fn read_indexed(&self, id: WorkflowId, field: char, before: usize) -> StoreResult<Vec<Option<String>>> {
        let mut command = redis::cmd("HMGET");
        command.arg(keys::workflow(&id));
        for index in 0..before {
            command.arg(format!("{field}{index}"));
        }
        Ok(command.query_async(&mut self.jobs.store.redis.clone()).await?)
    }
}

fn damaged(id: WorkflowId, what: &str) -> StoreError {
    StoreError::damaged(format!("workflow {id}: {what}"))
}
