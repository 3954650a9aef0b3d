//! A request for a workflow, checked job by job.

use serde_json::value::RawValue;

use super::{
    BatchCallback, WorkflowKind,
    request_checks::{
        MAX_WORKFLOW_DEPTH, ParseLimits, check_names, invalid, is_workflow, parse_id, parse_kind, parse_name_and_meta,
        parse_nested_id, parse_previous,
    },
    step_order::{self, StepOrder},
    steps::{self, RequestedStep},
    stored_step::StoredStep,
};
use crate::job::{NewJob, RequestError};
use common::{
    id::WorkflowId,
    json::{Object, ObjectWriter},
    name::quoted,
    time::Millis,
};

/// The most warnings of one request.
const MAX_WARNINGS: usize = 100;
/// A checked workflow, ready to store.
#[derive(Debug, Clone)]
pub struct NewWorkflow {
    /// The id that the client chose, if any.
    pub id: Option<WorkflowId>,
    /// Its kind.
    pub kind: WorkflowKind,
    /// `name` and `meta` as a JSON object, shown as they were sent; of a request by steps also their ids and order.
    pub name_and_meta: String,
    /// Its members, in order.
    pub members: Vec<NewWorkflowMember>,
    /// Of each member of a DAG, those that it depends on: all of them come before it. Empty for the other kinds.
    pub depends_on: Vec<Vec<usize>>,
    /// Its callbacks.
    pub callbacks: Vec<(BatchCallback, NewWorkflowMember)>,
    /// What the jobs have and nothing acts on, for the answer.
    pub warnings: Vec<String>,
    name: Option<String>,
}

/// A member of a workflow.
#[derive(Debug, Clone)]
pub struct NewWorkflowMember {
    /// The job or the workflow as the client sent it. It is read again at its start, so relative times count from then.
    pub json: String,
    /// What runs, as it would start now.
    pub work: MemberWork,
}

/// What a member of a workflow runs.
#[derive(Debug, Clone)]
pub enum MemberWork {
    /// A job.
    Job(Box<NewJob>),
    /// A workflow.
    Workflow(Box<NewWorkflow>),
    /// A job or a workflow for each element of a result.
    ForEach {
        /// The index of the member whose result it is.
        source: usize,
        /// What runs for each element.
        each: Box<NewWorkflowMember>,
    },
}

impl NewWorkflow {
    /// Checks a request body.
    ///
    /// # Errors
    /// The first member that is missing or wrong.
    pub fn parse(body: &Object<'_>, max_jobs: usize, now: Millis) -> Result<Self, RequestError> {
        let workflow = Self::parse_level(body, ParseLimits { now, max_jobs, levels: MAX_WORKFLOW_DEPTH }, false)?;
        let jobs = workflow.job_count();
        if jobs > max_jobs {
            return Err(invalid(format!(
                "a workflow can have at most {max_jobs} jobs, those of workflows in it among them, got {jobs}"
            )));
        }
        Ok(workflow)
    }

    /// Checks a workflow, which may be nested in another one.
    pub(super) fn parse_level(body: &Object<'_>, limits: ParseLimits, is_nested: bool) -> Result<Self, RequestError> {
        if limits.levels == 0 {
            return Err(invalid(format!("workflows can be nested at most {MAX_WORKFLOW_DEPTH} levels deep")));
        }
        let mut warnings = Vec::new();
        let id = if is_nested { parse_nested_id(body, &mut warnings).map(|()| None) } else { parse_id(body) }?;
        let mut workflow = Self::parse_members(body, limits)?;
        warnings.append(&mut workflow.warnings);
        warnings.truncate(MAX_WARNINGS);
        Ok(Self { id, warnings, ..workflow })
    }

    fn parse_members(body: &Object<'_>, limits: ParseLimits) -> Result<Self, RequestError> {
        if body.get("type").is_none() && body.get("steps").is_some() {
            return Self::parse_steps(body, limits, step_order::find_order);
        }
        let kind = parse_kind(body)?;
        if kind == WorkflowKind::Dag {
            return Self::parse_steps(body, limits, step_order::as_dag);
        }
        let list = kind.members_key();
        let callbacks_allowed = kind == WorkflowKind::Batch;
        let mut known = vec!["id", "type", "name", "meta", list];
        known.extend(callbacks_allowed.then_some("callbacks"));
        check_names(body, &known).map_err(|unknown| invalid(format!("a {}: {unknown}", kind.as_str())))?;
        let members = parse_list(body, list, kind, limits)?;
        let callbacks = if callbacks_allowed { parse_callbacks(body, limits)? } else { Vec::new() };
        let numbered = members.iter().enumerate().map(|(index, member)| (format!("{list}[{index}]"), member));
        let named = callbacks.iter().map(|(callback, member)| (format!("callbacks.{}", callback.as_str()), member));
        let warnings = collect_warnings(numbered.chain(named));
        let (name, about) = parse_name_and_meta(body)?;
        let name_and_meta = about.finish();
        Ok(Self { id: None, kind, name_and_meta, members, depends_on: Vec::new(), callbacks, warnings, name })
    }

    /// A request whose steps say which others they depend on.
    fn parse_steps(
        body: &Object<'_>,
        limits: ParseLimits,
        find_order: impl Fn(&[RequestedStep]) -> Result<StepOrder, RequestError>,
    ) -> Result<Self, RequestError> {
        let known = ["id", "type", "name", "meta", "steps", "options"];
        check_names(body, &known).map_err(|unknown| invalid(format!("a workflow by steps: {unknown}")))?;
        let max_jobs = limits.max_jobs;
        let given = steps::parse(body, max_jobs + BatchCallback::ALL.len())?;
        let StepOrder { kind, members, callbacks } = find_order(&given)?;
        let depends_on = if kind == WorkflowKind::Dag { dependencies(&given, &members) } else { Vec::new() };
        if members.len() > max_jobs {
            return Err(invalid(format!("steps must be at most {max_jobs} jobs, got {}", members.len())));
        }
        let mut indexes = vec![0; given.len()];
        members.iter().enumerate().for_each(|(index, position)| indexes[*position] = index);
        let read = |position: usize| {
            let step = &given[position];
            let raw = RawValue::from_string(step.json.clone()).map_err(|error| invalid(error.to_string()))?;
            let for_each = step.for_each.map(|source| indexes[source]);
            NewWorkflowMember::parse(&raw, &format!("steps[{position}]"), limits, for_each)
        };
        let in_order: Vec<usize> = members.iter().chain(callbacks.iter().map(|(_, index)| index)).copied().collect();
        let members: Vec<NewWorkflowMember> = members.into_iter().map(read).collect::<Result<_, _>>()?;
        let callbacks: Vec<(BatchCallback, NewWorkflowMember)> = callbacks
            .into_iter()
            .map(|(callback, index)| Ok((callback, read(index)?)))
            .collect::<Result<_, RequestError>>()?;
        let jobs = members.iter().chain(callbacks.iter().map(|(_, member)| member));
        let places = in_order.iter().map(|index| format!("steps[{index}]"));
        let warnings = collect_warnings(places.zip(jobs));
        let shown: Vec<&RequestedStep> = in_order.iter().map(|index| &given[*index]).collect();
        let (name, mut about) = parse_name_and_meta(body)?;
        about.raw("steps", &steps::to_json(&shown));
        Ok(Self { id: None, kind, name_and_meta: about.finish(), members, depends_on, callbacks, warnings, name })
    }

    /// Its members and callbacks.
    pub fn all_members(&self) -> impl Iterator<Item = &NewWorkflowMember> {
        self.members.iter().chain(self.callbacks.iter().map(|(_, member)| member))
    }

    /// Its jobs and those of workflows in it. What runs for each element of a result is there once.
    #[must_use]
    pub fn jobs(&self) -> Vec<&NewJob> {
        let mut jobs = Vec::new();
        self.all_members().for_each(|member| member.collect_jobs(&mut jobs));
        jobs
    }

    /// The same without callbacks, as a number.
    #[must_use]
    pub fn job_count(&self) -> usize {
        self.members.iter().map(NewWorkflowMember::job_count).sum()
    }

    /// Its name and those of workflows in it.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let nested = self.members.iter().flat_map(NewWorkflowMember::names);
        self.name.as_deref().into_iter().chain(nested).collect()
    }

    /// The indexes of members that are workflows.
    #[must_use]
    pub fn nested_indexes(&self) -> Vec<usize> {
        let nested = self.members.iter().enumerate().filter(|(_, member)| member.job().is_none());
        nested.map(|(index, _)| index).collect()
    }

    /// Whether a request contains a time, so that `now` must come from Redis's clock.
    #[must_use]
    pub fn mentions_time(body: &Object<'_>) -> bool {
        let lists = ["steps", "jobs"].into_iter().filter_map(|name| body.get(name));
        let mut jobs = lists.filter_map(|raw| serde_json::from_str::<Vec<Object>>(raw.get()).ok()).flatten();
        // The options of a workflow by steps hold for all of them, and each of them may be a workflow
        NewJob::mentions_time(body) || jobs.any(|job| Self::mentions_time(&job))
    }
}

impl NewWorkflowMember {
    /// Checks a step that runs after another one, or for each element of what that returns.
    pub(super) fn parse(
        raw: &RawValue,
        place: &str,
        limits: ParseLimits,
        for_each: Option<usize>,
    ) -> Result<Self, RequestError> {
        let inside = |error: RequestError| RequestError::Nested { path: place.to_owned(), error: Box::new(error) };
        let Some(source) = for_each else { return Self::parse_one(raw, limits).map_err(inside) };
        if limits.levels < 2 {
            let why =
                format!("for_each makes a group, and workflows can be nested at most {MAX_WORKFLOW_DEPTH} levels deep");
            return Err(inside(invalid(why)));
        }
        let each = Self::parse_one(raw, ParseLimits { levels: limits.levels - 1, ..limits }).map_err(inside)?;
        Ok(Self { json: each.json.clone(), work: MemberWork::ForEach { source, each: Box::new(each) } })
    }

    /// Checks a job or a workflow.
    fn parse_one(raw: &RawValue, limits: ParseLimits) -> Result<Self, RequestError> {
        let body = parse_member_object(raw)?;
        if body.get("depends_on").is_some() {
            return Err(invalid(
                "must be a job without depends_on: the order of the array is the order of a chain; a \"dag\" has steps with it",
            ));
        }
        if body.get("for_each").is_some() {
            return Err(invalid("for_each is for the steps of a \"chain\" or a \"dag\" that another step precedes"));
        }
        if !is_workflow(&body) {
            return Self::parse_job(raw, &body, limits.now);
        }
        let inner = NewWorkflow::parse_level(&body, ParseLimits { levels: limits.levels - 1, ..limits }, true)?;
        Ok(Self { json: raw.get().to_owned(), work: MemberWork::Workflow(Box::new(inner)) })
    }

    /// Checks a callback.
    fn parse_callback(raw: &RawValue, place: &str, limits: ParseLimits) -> Result<Self, RequestError> {
        let inside = |error: RequestError| RequestError::Nested { path: place.to_owned(), error: Box::new(error) };
        let body = parse_member_object(raw).map_err(inside)?;
        if is_workflow(&body) {
            return Err(inside(invalid("must be a job, a callback cannot be a workflow")));
        }
        Self::parse_one(raw, limits).map_err(inside)
    }

    fn parse_job(raw: &RawValue, body: &Object<'_>, now: Millis) -> Result<Self, RequestError> {
        if body.get("id").is_some() {
            return Err(invalid("must be a job without id: the ids in a workflow follow from the workflow's"));
        }
        let job = NewJob::parse(body, now)?;
        if job.is_debounced() {
            return Err(invalid("must be a job whose unique does not debounce: a workflow waits for its own jobs"));
        }
        Ok(Self { json: raw.get().to_owned(), work: MemberWork::Job(Box::new(job)) })
    }

    /// The job, unless it is a workflow.
    #[must_use]
    pub fn job(&self) -> Option<&NewJob> {
        if let MemberWork::Job(job) = &self.work { Some(job) } else { None }
    }

    /// What its workflow stores of it.
    #[must_use]
    pub fn stored_text(&self) -> String {
        match &self.work {
            MemberWork::Job(_) => self.json.clone(),
            MemberWork::Workflow(_) => StoredStep::new(None, &self.json).to_text(),
            MemberWork::ForEach { source, .. } => StoredStep::new(Some(*source), &self.json).to_text(),
        }
    }

    /// Its jobs.
    pub fn collect_jobs<'a>(&'a self, jobs: &mut Vec<&'a NewJob>) {
        match &self.work {
            MemberWork::Job(job) => jobs.push(job),
            MemberWork::Workflow(inner) => inner.all_members().for_each(|member| member.collect_jobs(jobs)),
            MemberWork::ForEach { each, .. } => each.collect_jobs(jobs),
        }
    }

    /// How many jobs it has, without callbacks.
    #[must_use]
    pub fn job_count(&self) -> usize {
        match &self.work {
            MemberWork::Job(_) => 1,
            MemberWork::Workflow(inner) => inner.job_count(),
            MemberWork::ForEach { each, .. } => each.job_count(),
        }
    }

    fn names(&self) -> Vec<&str> {
        match &self.work {
            MemberWork::Job(_) => Vec::new(),
            MemberWork::Workflow(inner) => inner.names(),
            MemberWork::ForEach { each, .. } => each.names(),
        }
    }

    fn warnings(&self) -> &[String] {
        match &self.work {
            MemberWork::Job(job) => &job.warnings,
            MemberWork::Workflow(inner) => &inner.warnings,
            MemberWork::ForEach { each, .. } => each.warnings(),
        }
    }
}

fn parse_member_object(raw: &RawValue) -> Result<Object<'_>, RequestError> {
    if !raw.get().starts_with('{') {
        return Err(invalid(format!("must be a job, which is a JSON object, got {}", quoted(raw.get()))));
    }
    serde_json::from_str(raw.get()).map_err(|error| invalid(error.to_string()))
}

/// Of each member the indexes of those that it depends on, in the order that was sent.
fn dependencies(steps: &[RequestedStep], members: &[usize]) -> Vec<Vec<usize>> {
    let mut indexes = vec![0; steps.len()];
    members.iter().enumerate().for_each(|(index, position)| indexes[*position] = index);
    let of_step = |position: &usize| steps[*position].depends_on.iter().map(|before| indexes[*before]).collect();
    members.iter().map(of_step).collect()
}

/// What the jobs have and nothing acts on.
fn collect_warnings<'a>(jobs: impl Iterator<Item = (String, &'a NewWorkflowMember)>) -> Vec<String> {
    let warned = jobs.flat_map(|(place, member)| {
        // Those of a workflow begin with a place in it
        member.warnings().iter().map(move |warning| format!("{place}: {warning}"))
    });
    warned.take(MAX_WARNINGS).collect()
}

fn parse_list(
    body: &Object<'_>,
    list: &str,
    kind: WorkflowKind,
    limits: ParseLimits,
) -> Result<Vec<NewWorkflowMember>, RequestError> {
    let max_jobs = limits.max_jobs;
    let wanted = format!("{list} must be a JSON array of 1 to {max_jobs} jobs");
    let raw =
        body.get(list).ok_or_else(|| invalid(format!("{list} is required: a JSON array of 1 to {max_jobs} jobs")))?;
    let jobs: Vec<&RawValue> =
        serde_json::from_str(raw.get()).map_err(|_| invalid(format!("{wanted}, got {}", quoted(raw.get()))))?;
    if !(1..=max_jobs).contains(&jobs.len()) {
        return Err(invalid(format!("{wanted}, got {}", jobs.len())));
    }
    let parse_one = |(index, raw): (usize, &RawValue)| {
        let place = format!("{list}[{index}]");
        // Most steps are jobs that only say what they run
        let body = Some(raw).filter(|raw| kind == WorkflowKind::Chain && raw.get().contains("for_each"));
        let body: Option<Object> = body.and_then(|raw| serde_json::from_str(raw.get()).ok());
        let Some((body, given)) = body.and_then(|body| body.get("for_each").map(|given| (body.clone(), given))) else {
            return NewWorkflowMember::parse(raw, &place, limits, None);
        };
        let source = parse_previous(given, &place, index)?;
        let mut each = ObjectWriter::with_capacity(raw.get().len());
        for (name, value) in body.iter().filter(|(name, _)| *name != "for_each") {
            each.raw(name, value.get());
        }
        let each = RawValue::from_string(each.finish()).map_err(|error| invalid(error.to_string()))?;
        NewWorkflowMember::parse(&each, &place, limits, Some(source))
    };
    jobs.into_iter().enumerate().map(parse_one).collect()
}

fn parse_callbacks(
    body: &Object<'_>,
    limits: ParseLimits,
) -> Result<Vec<(BatchCallback, NewWorkflowMember)>, RequestError> {
    let allowed = "a JSON object with on_complete, on_success, on_failure or several of them";
    let raw = body.get("callbacks").ok_or_else(|| invalid(format!("callbacks is required: {allowed}")))?;
    let given: Option<Object> = serde_json::from_str(raw.get()).ok();
    let given = given.ok_or_else(|| invalid(format!("callbacks must be {allowed}, got {}", quoted(raw.get()))))?;
    given
        .check_names(&BatchCallback::ALL.map(BatchCallback::as_str))
        .map_err(|unknown| invalid(format!("callbacks: {unknown}")))?;
    let mut found = Vec::new();
    for callback in BatchCallback::ALL {
        if let Some(raw) = given.get(callback.as_str()) {
            let place = format!("callbacks.{}", callback.as_str());
            found.push((callback, NewWorkflowMember::parse_callback(raw, &place, limits)?));
        }
    }
    if found.is_empty() {
        return Err(invalid(format!("callbacks must be {allowed}; without any, make it a group")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
