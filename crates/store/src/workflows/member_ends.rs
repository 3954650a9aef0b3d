//! What follows from the ends of jobs of workflows: they are recorded, and what comes next starts. The ends of a batch are
//! recorded together, and so are the next steps of chains created: a job of a chain costs few commands then.

use std::{borrow::Cow, collections::BTreeSet, future::Future, pin::Pin};

use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{MAX_CONCURRENT_COMMANDS, Workflows, advance::CHECK_SOON};
use crate::{
    StoreError, StoreResult,
    jobs::{EnqueueRefusal, Jobs, MemberEnd, NewMember, RequestClock},
    keys, script,
};
use common::{
    id::{JobId, WorkflowId},
    trace_context::SpanReference,
};
use model::{
    job::JobState,
    workflow::{Membership, TerminalState, WorkflowKind, WorkflowMemberId},
};

/// The parts of a finished job's JSON that its workflow needs.
#[derive(Deserialize)]
struct RecordedEnd<'a> {
    state: JobState,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
}

/// The reply of `record_member.lua`: kind, members, those that ended, the state if the workflow ended, and the next step.
pub(super) type MemberCounts = (String, usize, usize, String, Option<NextStep>);

/// What the next step of a chain needs: its job, the bytes of all results, the traceparent, and what is stored beside it.
pub(super) type NextStep = (String, usize, Option<String>, Option<String>);

/// A step that ended, and the span of its last attempt if that is recorded.
type StepBefore = (Membership, Option<SpanReference>);

/// A recorded end: none if the workflow no longer exists.
pub(super) type RecordedMember = StoreResult<Option<MemberCounts>>;

/// How a member ended, and its result, as its workflow stores them.
pub(super) struct MemberRecord {
    membership: Membership,
    id: WorkflowMemberId,
    end: TerminalState,
    result: String,
    /// The attempt that ended it, if that is recorded.
    attempt: Option<SpanReference>,
}

impl MemberRecord {
    /// Of a member that is a workflow.
    pub(super) fn of_nested(membership: Membership, id: WorkflowId, end: TerminalState, result: String) -> Self {
        Self { membership, id: WorkflowMemberId::Workflow(id), end, result, attempt: None }
    }

    /// What is stored in place of a result for which there is no room.
    fn reference(&self) -> String {
        let name = if matches!(self.id, WorkflowMemberId::Job(_)) { "job_id" } else { "workflow_id" };
        format!("{{\"omitted\":true,\"{name}\":\"{}\"}}", self.id)
    }
}

/// Whether more follows from a member's end. Most ends change nothing yet: a group continues when its last member has ended.
pub(super) fn continues((kind, members, ended, state, _): &MemberCounts) -> bool {
    let continues_at_each = matches!(WorkflowKind::from_name(kind), Some(WorkflowKind::Chain | WorkflowKind::Dag));
    state.is_empty() && (continues_at_each || ended >= members)
}

/// None if the job has not ended.
fn parse_end(MemberEnd { membership, job, json, span }: MemberEnd<'_>) -> StoreResult<Option<MemberRecord>> {
    let over: RecordedEnd =
        serde_json::from_str(json).map_err(|error| StoreError::damaged(format!("job {job} of a workflow: {error}")))?;
    let Some(end) = TerminalState::from_state(over.state) else { return Ok(None) };
    let result = over.result.filter(|_| end == TerminalState::Completed).map_or("", RawValue::get).to_owned();
    Ok(Some(MemberRecord {
        membership,
        id: WorkflowMemberId::Job(job),
        end,
        result,
        attempt: span.filter(|span| span.is_sampled()),
    }))
}

/// Records that jobs of workflows ended, and advances the workflows of which something follows.
///
/// Boxed: cancelling a workflow ends jobs, and ending a job continues its workflow.
pub(crate) fn members_ended<'a>(
    jobs: &'a Jobs,
    ends: Vec<MemberEnd<'a>>,
) -> Pin<Box<dyn Future<Output = Vec<StoreResult<()>>> + Send + 'a>> {
    let workflows = Workflows::new(jobs);
    Box::pin(async move { workflows.members_ended(&ends).await })
}

impl Workflows {
    async fn members_ended(&self, ends: &[MemberEnd<'_>]) -> Vec<StoreResult<()>> {
        let mut recorded = self.record_ends(ends).await;
        let steps = recorded.iter_mut().enumerate().filter_map(|(number, recorded)| {
            let step = recorded.as_mut().ok()?.as_mut()?.4.take()?;
            Some((number, (ends[number].membership, ends[number].span), step))
        });
        let started = self.start_next_steps(steps.collect()).await;
        let advances = ends.iter().zip(recorded).enumerate().map(|(number, (end, recorded))| {
            let is_started = started.contains(&number);
            self.advance_after(end.membership, recorded, is_started)
        });
        // Collected first: a closure that borrows from its surroundings makes the stream's future too general to be sent
        let advances: Vec<_> = advances.collect();
        stream::iter(advances).buffered(MAX_CONCURRENT_COMMANDS).collect().await
    }

    async fn advance_after(
        &self,
        Membership { workflow, .. }: Membership,
        recorded: RecordedMember,
        is_next_started: bool,
    ) -> StoreResult<()> {
        let Some(counts) = recorded? else { return Ok(()) };
        if is_next_started || !continues(&counts) {
            return Ok(());
        }
        let advanced = self.advance(workflow).await;
        if advanced.is_err() {
            // Redis may be full. If this fails too, the time set before applies
            let after = CHECK_SOON.min(self.jobs.store.settings.workflows.check_interval);
            let _ = self.reschedule_workflow(workflow, after).await;
        }
        advanced
    }

    /// Records that a job of a workflow ended, without anything that follows.
    pub(super) async fn record_end(&self, end: MemberEnd<'_>) -> StoreResult<()> {
        self.record_ends(&[end]).await.into_iter().try_for_each(|recorded| recorded.map(drop))
    }

    /// The same, with the end that it is known to have.
    pub(super) async fn record_end_as(
        &self,
        membership: Membership,
        job: JobId,
        end: TerminalState,
    ) -> StoreResult<()> {
        let record =
            MemberRecord { membership, id: WorkflowMemberId::Job(job), end, result: String::new(), attempt: None };
        self.record_members(&[record]).await.into_iter().try_for_each(|recorded| recorded.map(drop))
    }

    /// Records that jobs ended.
    async fn record_ends(&self, ends: &[MemberEnd<'_>]) -> Vec<RecordedMember> {
        let mut records = Vec::with_capacity(ends.len());
        let mut take = |record: Option<MemberRecord>| record.map(|record| records.push(record));
        let parsed: Vec<_> = ends.iter().map(|end| parse_end(*end).map(&mut take)).collect();
        let mut recorded = self.record_members(&records).await.into_iter();
        let mut answer = |is_recorded: Option<()>| is_recorded.and_then(|()| recorded.next()).unwrap_or(Ok(None));
        parsed.into_iter().map(|parsed| parsed.and_then(&mut answer)).collect()
    }

    pub(super) async fn record_members(&self, records: &[MemberRecord]) -> Vec<RecordedMember> {
        let limit = self.jobs.store.settings.workflows.results_limit_bytes;
        let calls = records.iter().map(|record| {
            let MemberRecord { membership, end, result, attempt, .. } = record;
            let (workflow, field) = (membership.workflow.to_string(), format!("r{}", membership.index));
            let seal = |text| self.jobs.sealer().seal(&["workflow", &workflow, &field], text);
            let mut call = script::RECORD_MEMBER.prepare_invoke();
            call.key(keys::workflow(&membership.workflow)).arg(membership.index).arg(end.job_state().as_str());
            call.arg(&*if result.is_empty() { Cow::Borrowed("") } else { seal(result) });
            call.arg(&*seal(&record.reference())).arg(limit);
            call.arg(attempt.map_or_else(String::new, |attempt| attempt.to_string()));
            call
        });
        let calls: Vec<_> = calls.collect();
        let answers = script::invoke_each(&mut self.jobs.store.redis.clone(), &calls).await;
        let parse = |answer| match answer {
            redis::Value::Array(parts) if parts.is_empty() => Ok(None),
            counts => redis::from_redis_value(counts).map(Some).map_err(|error| StoreError::damaged(error.to_string())),
        };
        answers.into_iter().map(|answer| answer.map_err(StoreError::from).and_then(parse)).collect()
    }

    /// Starts the next steps of chains without reading the workflows. Returns the numbers of those that run; for the others
    /// the workflow decides what follows.
    async fn start_next_steps(&self, steps: Vec<(usize, StepBefore, NextStep)>) -> BTreeSet<usize> {
        let (mut numbers, mut new) = (Vec::with_capacity(steps.len()), Vec::with_capacity(steps.len()));
        for (number, ended, step) in steps {
            // A damaged one is reported when its workflow is read
            if let Ok(member) = self.parse_next_step(ended, step).await {
                numbers.push((number, ended.0));
                new.push(member);
            }
        }
        let exist = self.create_each(new).await;
        let existing: Vec<(usize, Membership)> =
            numbers.into_iter().zip(exist).filter(|(_, exists)| *exists).map(|(step, _)| step).collect();
        let calls = existing.iter().map(|(_, ended)| {
            let mut call = script::NOTE_STARTED.prepare_invoke();
            call.key(keys::workflow(&ended.workflow)).arg(u64::from(ended.index) + 2);
            call
        });
        let calls: Vec<_> = calls.collect();
        let states = script::invoke_each(&mut self.jobs.store.redis.clone(), &calls).await;
        // It may have been cancelled meanwhile by a process that did not see the new job
        let runs = |state: redis::RedisResult<redis::Value>| {
            state.ok().and_then(|state| redis::from_redis_value::<String>(state).ok()).is_some_and(|s| s.is_empty())
        };
        existing.into_iter().zip(states).filter_map(|((number, _), state)| runs(state).then_some(number)).collect()
    }

    async fn parse_next_step(
        &self,
        (Membership { workflow, index: before }, span): StepBefore,
        (text, bytes, traceparent, trace_rest): NextStep,
    ) -> StoreResult<NewMember> {
        let next = Membership { workflow, index: before + 1 };
        let index = usize::try_from(next.index).unwrap_or(usize::MAX);
        let (mut job, now) = self.parse_member(workflow, index, text, &mut RequestClock::new(&self.jobs)).await?;
        job.id = Some(workflow.job_id(next.index, &job.queue));
        job.parent_results_bytes = Jobs::parent_results_size(bytes, index);
        job.workflow = Some(next);
        let trace = self.open_trace(workflow, traceparent.as_deref(), trace_rest)?;
        Ok(NewMember { job, trace, cause: span, now })
    }

    /// Creates jobs; returns for each whether it exists.
    async fn create_each(&self, new: Vec<NewMember>) -> Vec<bool> {
        let exist = self.jobs.create_members(&new).await;
        let each = new.into_iter().zip(exist).map(async |(NewMember { job, trace, cause, now }, exists)| {
            let id = job.id;
            exists
                || match self.jobs.enqueue_after(Box::new(job), (trace, cause.into_iter().collect()), now).await {
                    Ok(Ok(_)) => true,
                    Ok(Err(EnqueueRefusal::Duplicate(known))) => Some(known) == id,
                    Ok(Err(_)) | Err(_) => false,
                }
        });
        let each: Vec<_> = each.collect();
        stream::iter(each).buffered(MAX_CONCURRENT_COMMANDS).collect().await
    }
}
