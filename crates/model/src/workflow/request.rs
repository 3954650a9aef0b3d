//! A request for a workflow, checked job by job.

use serde_json::value::RawValue;

use super::{
    BatchCallback, WorkflowKind,
    request_checks::{invalid, parse_text},
    step_order::{self, StepOrder},
    steps::{self, RequestedStep},
};
use crate::job::{NewJob, RequestError};
use common::{
    id::WorkflowId,
    json::{Object, ObjectWriter},
    known_names,
    name::quoted,
    time::Millis,
};

/// Longest `name`, in bytes.
const MAX_NAME_BYTES: usize = 255;
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
}

/// A job of a workflow.
#[derive(Debug, Clone)]
pub struct NewWorkflowMember {
    /// The job as the client sent it. It is read again at its start, so relative times count from then.
    pub json: String,
    /// The job as it would start now.
    pub job: NewJob,
}

impl NewWorkflow {
    /// Checks a request body.
    ///
    /// # Errors
    /// The first member that is missing or wrong.
    pub fn parse(body: &Object<'_>, max_jobs: usize, now: Millis) -> Result<Self, RequestError> {
        if body.get("type").is_none() && body.get("steps").is_some() {
            return Self::parse_steps(body, max_jobs, now, step_order::find_order);
        }
        let kind = parse_kind(body)?;
        if kind == WorkflowKind::Dag {
            return Self::parse_steps(body, max_jobs, now, step_order::as_dag);
        }
        let list = kind.members_key();
        let callbacks_allowed = kind == WorkflowKind::Batch;
        let mut known = vec!["id", "type", "name", "meta", list];
        known.extend(callbacks_allowed.then_some("callbacks"));
        check_names(body, &known).map_err(|unknown| invalid(format!("a {}: {unknown}", kind.as_str())))?;
        let id = parse_id(body)?;
        let members = parse_members(body, list, max_jobs, now)?;
        let callbacks = if callbacks_allowed { parse_callbacks(body, now)? } else { Vec::new() };
        let numbered = members.iter().enumerate().map(|(index, member)| (format!("{list}[{index}]"), member));
        let named = callbacks.iter().map(|(callback, member)| (format!("callbacks.{}", callback.as_str()), member));
        let warnings = collect_warnings(numbered.chain(named));
        let name_and_meta = parse_name_and_meta(body)?.finish();
        Ok(Self { id, kind, name_and_meta, members, depends_on: Vec::new(), callbacks, warnings })
    }

    /// A request whose steps say which others they depend on.
    fn parse_steps(
        body: &Object<'_>,
        max_jobs: usize,
        now: Millis,
        find_order: impl Fn(&[RequestedStep]) -> Result<StepOrder, RequestError>,
    ) -> Result<Self, RequestError> {
        let known = ["id", "type", "name", "meta", "steps", "options"];
        check_names(body, &known).map_err(|unknown| invalid(format!("a workflow by steps: {unknown}")))?;
        let id = parse_id(body)?;
        let given = steps::parse(body, max_jobs + BatchCallback::ALL.len())?;
        let StepOrder { kind, members, callbacks } = find_order(&given)?;
        let depends_on = if kind == WorkflowKind::Dag { dependencies(&given, &members) } else { Vec::new() };
        if members.len() > max_jobs {
            return Err(invalid(format!("steps must be at most {max_jobs} jobs, got {}", members.len())));
        }
        let read = |index: usize| {
            let raw = RawValue::from_string(given[index].job.clone()).map_err(|error| invalid(error.to_string()))?;
            NewWorkflowMember::parse(&raw, &format!("steps[{index}]"), now)
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
        let mut about = parse_name_and_meta(body)?;
        about.raw("steps", &steps::to_json(&shown));
        Ok(Self { id, kind, name_and_meta: about.finish(), members, depends_on, callbacks, warnings })
    }

    /// Whether a request contains a time, so that `now` must come from Redis's clock.
    #[must_use]
    pub fn mentions_time(body: &Object<'_>) -> bool {
        let lists = ["steps", "jobs"].into_iter().filter_map(|name| body.get(name));
        let mut jobs = lists.filter_map(|raw| serde_json::from_str::<Vec<Object>>(raw.get()).ok()).flatten();
        // The options of a workflow by steps hold for all of them
        NewJob::mentions_time(body) || jobs.any(|job| NewJob::mentions_time(&job))
    }
}

impl NewWorkflowMember {
    fn parse(raw: &RawValue, place: &str, now: Millis) -> Result<Self, RequestError> {
        let inside = |error: RequestError| RequestError::Nested { path: place.to_owned(), error: Box::new(error) };
        if !raw.get().starts_with('{') {
            return Err(inside(invalid(format!("must be a job, which is a JSON object, got {}", quoted(raw.get())))));
        }
        let body: Object = serde_json::from_str(raw.get()).map_err(|error| inside(invalid(error.to_string())))?;
        if let Some(name) = ["steps", "jobs", "callbacks"].into_iter().find(|name| body.get(name).is_some()) {
            return Err(inside(invalid(format!("must be a job without {name}: workflows cannot be nested"))));
        }
        if body.get("depends_on").is_some() {
            return Err(inside(invalid(
                "must be a job without depends_on: the order of the array is the order of a chain; a \"dag\" has steps with it",
            )));
        }
        if body.get("id").is_some() {
            return Err(inside(invalid("must be a job without id: the ids in a workflow follow from the workflow's")));
        }
        let job = NewJob::parse(&body, now).map_err(inside)?;
        if job.is_debounced() {
            return Err(inside(invalid(
                "must be a job whose unique does not debounce: a workflow waits for its own jobs",
            )));
        }
        Ok(Self { json: raw.get().to_owned(), job })
    }
}

/// Of each member the indexes of those that it depends on, in the order that was sent.
fn dependencies(steps: &[RequestedStep], members: &[usize]) -> Vec<Vec<usize>> {
    let mut indexes = vec![0; steps.len()];
    members.iter().enumerate().for_each(|(index, position)| indexes[*position] = index);
    let of_step = |position: &usize| steps[*position].depends_on.iter().map(|before| indexes[*before]).collect();
    members.iter().map(of_step).collect()
}

/// Refuses members of other names. Those that are null count as absent.
fn check_names(body: &Object<'_>, known: &[&str]) -> Result<(), String> {
    let stranger = body.iter().find(|(name, value)| value.get() != "null" && !known.contains(name));
    stranger.map_or(Ok(()), |(name, _)| Err(known_names::unknown("member", name, known)))
}

fn parse_id(body: &Object<'_>) -> Result<Option<WorkflowId>, RequestError> {
    body.get("id").map(|raw| parse_text(raw, "id")?.parse().map_err(RequestError::from)).transpose()
}

/// What the jobs have and nothing acts on.
fn collect_warnings<'a>(jobs: impl Iterator<Item = (String, &'a NewWorkflowMember)>) -> Vec<String> {
    let warned =
        jobs.flat_map(|(place, member)| member.job.warnings.iter().map(move |warning| format!("{place}: {warning}")));
    warned.take(MAX_WARNINGS).collect()
}

fn parse_kind(body: &Object<'_>) -> Result<WorkflowKind, RequestError> {
    let allowed = "\"chain\", \"group\", \"batch\" or \"dag\"";
    let raw =
        body.get("type").ok_or_else(|| invalid(format!("type is required: {allowed}, or steps with depends_on")))?;
    let name: Option<String> = serde_json::from_str(raw.get()).ok();
    name.as_deref()
        .and_then(WorkflowKind::from_name)
        .ok_or_else(|| invalid(format!("type must be {allowed}, got {}", quoted(raw.get()))))
}

fn parse_members(
    body: &Object<'_>,
    list: &str,
    max_jobs: usize,
    now: Millis,
) -> Result<Vec<NewWorkflowMember>, RequestError> {
    let wanted = format!("{list} must be a JSON array of 1 to {max_jobs} jobs");
    let raw =
        body.get(list).ok_or_else(|| invalid(format!("{list} is required: a JSON array of 1 to {max_jobs} jobs")))?;
    let jobs: Vec<&RawValue> =
        serde_json::from_str(raw.get()).map_err(|_| invalid(format!("{wanted}, got {}", quoted(raw.get()))))?;
    if !(1..=max_jobs).contains(&jobs.len()) {
        return Err(invalid(format!("{wanted}, got {}", jobs.len())));
    }
    jobs.iter()
        .enumerate()
        .map(|(index, raw)| NewWorkflowMember::parse(raw, &format!("{list}[{index}]"), now))
        .collect()
}

fn parse_callbacks(body: &Object<'_>, now: Millis) -> Result<Vec<(BatchCallback, NewWorkflowMember)>, RequestError> {
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
            found.push((callback, NewWorkflowMember::parse(raw, &format!("callbacks.{}", callback.as_str()), now)?));
        }
    }
    if found.is_empty() {
        return Err(invalid(format!("callbacks must be {allowed}; without any, make it a group")));
    }
    Ok(found)
}

fn parse_name_and_meta(body: &Object<'_>) -> Result<ObjectWriter, RequestError> {
    let mut about = ObjectWriter::default();
    if let Some(raw) = body.get("name") {
        let name = parse_text(raw, "name")?;
        if name.len() > MAX_NAME_BYTES {
            return Err(invalid(format!("name must have at most {MAX_NAME_BYTES} bytes, got {}", name.len())));
        }
        about.raw("name", raw.get());
    }
    if let Some(raw) = body.get("meta") {
        if !raw.get().starts_with('{') {
            return Err(invalid(format!("meta must be a JSON object, got {}", quoted(raw.get()))));
        }
        about.raw("meta", raw.get());
    }
    Ok(about)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<NewWorkflow, RequestError> {
        NewWorkflow::parse(&serde_json::from_str(json).expect("an object"), 3, 1_000)
    }

    #[test]
    fn jobs_keep_their_bytes_and_their_own_queues_priorities_and_policies() {
        let body = r#"{"type":"batch","name":"n","meta":{"k":1.0},"jobs":[{"type":"a", "args":[1.0],"priorty":1},
            {"type":"b","args":[],"options":{"queue":"q","priority":7,"retry":{"max_attempts":1}}}],
            "callbacks":{"on_failure":{"type":"c","args":[]},"on_complete":{"type":"d","args":[]}}}"#;
        let workflow = parse(body).expect("a workflow");
        assert_eq!(
            (workflow.kind, workflow.name_and_meta.as_str()),
            (WorkflowKind::Batch, r#"{"name":"n","meta":{"k":1.0}}"#)
        );
        assert_eq!(workflow.members[0].json, r#"{"type":"a", "args":[1.0],"priorty":1}"#);
        let second = &workflow.members[1].job;
        assert_eq!((second.queue.as_str(), second.priority.get(), second.summary.max_attempts), ("q", 7, 1));
        assert_eq!(
            workflow.warnings,
            [
                r#"jobs[0]: unknown member "priorty", did you mean "priority"? it is kept with the job and changes nothing"#
            ]
        );
        let callbacks: Vec<_> = workflow.callbacks.iter().map(|(callback, _)| *callback).collect();
        assert_eq!(callbacks, [BatchCallback::Complete, BatchCallback::Failure]);
    }

    #[test]
    fn times_are_noticed_in_every_job_and_beside_callback_type() {
        for (json, expected) in [
            (r#"{"type":"group","jobs":[{"type":"a","args":[],"delay_until":"PT1S"}]}"#, true),
            (r#"{"type":"chain","steps":[{"type":"a","args":[],"options":{"expires_at":"PT1S"}}]}"#, true),
            (r#"{"steps":[{"id":"a"}],"options":{"scheduled_at":"PT1S"}}"#, true),
            (r#"{"steps":[{"id":"a","options":{"callback_type":"on_failure","delay_until":"PT1S"}}]}"#, true),
            (r#"{"steps":[{"id":"a","options":{"callback_type":"on_failure","\u0064elay_until":"PT1S"}}]}"#, true),
            (r#"{"steps":[{"id":"a","options":{"callback_type":"on_failure","delay_until":null}}]}"#, false),
            (r#"{"steps":[{"id":"a","options":{"callback_type":"on_failure","tags":["delay_until"]}}]}"#, false),
        ] {
            let body = serde_json::from_str(json).expect("an object");
            assert_eq!(NewWorkflow::mentions_time(&body), expected, "{json}");
        }
    }

    #[test]
    fn each_wrong_workflow_is_refused_with_what_is_allowed() {
        let job = r#"{"type":"a","args":[]}"#;
        for (json, expected) in [
            ("{}".to_owned(), r#"type is required: "chain", "group", "batch" or "dag", or steps with depends_on"#),
            (r#"{"type":"tree"}"#.to_owned(), r#"type must be "chain", "group", "batch" or "dag""#),
            (r#"{"type":"dag"}"#.to_owned(), "steps is required"),
            (r#"{"type":"dag","jobs":[]}"#.to_owned(), "a workflow by steps: unknown member \"jobs\""),
            (r#"{"type":1}"#.to_owned(), "type must be"),
            (r#"{"type":"chain"}"#.to_owned(), "steps is required: a JSON array of 1 to 3 jobs"),
            (r#"{"type":"chain","steps":[]}"#.to_owned(), "steps must be a JSON array of 1 to 3 jobs, got 0"),
            (r#"{"type":"group","jobs":{}}"#.to_owned(), "jobs must be a JSON array of 1 to 3 jobs, got"),
            (
                format!(r#"{{"type":"group","jobs":[{job},{job},{job},{job}]}}"#),
                "jobs must be a JSON array of 1 to 3 jobs, got 4",
            ),
            (
                format!(r#"{{"type":"chain","jobs":[{job}]}}"#),
                "a chain: unknown member \"jobs\", known are id, type, name, meta, steps",
            ),
            (format!(r#"{{"type":"group","jobs":[{job}],"callbacks":{{}}}}"#), "a group: unknown member"),
            (format!(r#"{{"type":"group","jobs":[{job},7]}}"#), "jobs[1]: must be a job"),
            (r#"{"type":"chain","steps":[{"type":"A","args":[]}]}"#.to_owned(), "steps[0]: type must match"),
            (
                r#"{"type":"chain","steps":[{"type":"a","args":[],"depends_on":[]}]}"#.to_owned(),
                "steps[0]: must be a job without depends_on",
            ),
            (
                r#"{"type":"chain","steps":[{"type":"group","jobs":[]}]}"#.to_owned(),
                "steps[0]: must be a job without jobs: workflows cannot be nested",
            ),
            (
                r#"{"type":"chain","steps":[{"type":"a","args":[],"id":"x"}]}"#.to_owned(),
                "steps[0]: must be a job without id",
            ),
            (
                r#"{"type":"chain","steps":[{"type":"a","args":[],"retry":{"max_attempts":-1}}]}"#.to_owned(),
                "steps[0]: retry.max_attempts",
            ),
            (format!(r#"{{"type":"batch","jobs":[{job}]}}"#), "callbacks is required: a JSON object with on_complete"),
            (format!(r#"{{"type":"batch","jobs":[{job}],"callbacks":[]}}"#), "callbacks must be"),
            (format!(r#"{{"type":"batch","jobs":[{job}],"callbacks":{{}}}}"#), "callbacks must be"),
            (format!(r#"{{"type":"batch","jobs":[{job}],"callbacks":{{"on_end":{job}}}}}"#), "callbacks: unknown"),
            (
                format!(r#"{{"type":"batch","jobs":[{job}],"callbacks":{{"on_success":{{}}}}}}"#),
                "callbacks.on_success: type is required",
            ),
            (format!(r#"{{"type":"group","id":"x","jobs":[{job}]}}"#), "id must be a lower-case UUIDv7"),
            (format!(r#"{{"type":"group","name":7,"jobs":[{job}]}}"#), "name must be a string"),
            (format!(r#"{{"type":"group","meta":7,"jobs":[{job}]}}"#), "meta must be a JSON object"),
        ] {
            let error = parse(&json).expect_err(&json).to_string();
            assert!(error.starts_with(expected), "{json}: {error}");
        }
    }
}
