//! Workflows by steps, as the HTTP binding of the Open Job Spec has them: each step has an id and names those that it
//! depends on.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::value::RawValue;

use super::{
    BatchCallback,
    request_checks::{invalid, is_workflow, parse_text},
};
use crate::job::RequestError;
use common::{
    json::{Object, ObjectWriter},
    name::quoted,
};

/// Longest id of a step, in bytes.
const MAX_STEP_ID_BYTES: usize = 255;
/// Largest `options` of a workflow by steps, in bytes: every step gets a copy.
const MAX_SHARED_OPTIONS_BYTES: usize = 4096;

/// A step of a request.
#[derive(Debug)]
pub(super) struct RequestedStep {
    pub(super) id: String,
    /// Positions of other steps, each once, in the order that was sent.
    pub(super) depends_on: Vec<usize>,
    /// The ids of those, as they were sent.
    depends_on_json: String,
    /// When it runs after those that it depends on; none if the step does not say.
    pub(super) callback: Option<BatchCallback>,
    /// The position of the step for each element of whose result it runs, and its id as it was sent.
    pub(super) for_each: Option<usize>,
    for_each_json: Option<String>,
    /// Whether it is a workflow.
    is_workflow: bool,
    /// Its job as a JSON object, with the options of the workflow; or the workflow that it is.
    pub(super) json: String,
}

impl RequestedStep {
    /// Whether it is one job, which a callback must be.
    pub(super) fn is_job(&self) -> bool {
        !self.is_workflow && self.for_each.is_none()
    }
}

/// Reads the steps.
pub(super) fn parse(body: &Object<'_>, max_steps: usize) -> Result<Vec<RequestedStep>, RequestError> {
    let raw = body.get("steps").ok_or_else(|| invalid("steps is required"))?;
    let wanted = format!("steps must be a JSON array of 1 to {max_steps} jobs");
    let list: Vec<&RawValue> =
        serde_json::from_str(raw.get()).map_err(|_| invalid(format!("{wanted}, got {}", quoted(raw.get()))))?;
    if !(1..=max_steps).contains(&list.len()) {
        return Err(invalid(format!("{wanted}, got {}", list.len())));
    }
    let defaults = body.get("options").map(parse_shared_options).transpose()?;
    let mut bodies: Vec<(String, Object)> = Vec::with_capacity(list.len());
    let mut positions: BTreeMap<String, usize> = BTreeMap::new();
    for (position, raw) in list.iter().enumerate() {
        let place = format!("steps[{position}]");
        let step = parse_object(raw, &place)?;
        let id =
            step.get("id").ok_or_else(|| invalid(format!("{place}.id is required, because depends_on names it")))?;
        let id = parse_text(id, &format!("{place}.id"))?;
        if id.is_empty() || id.len() > MAX_STEP_ID_BYTES {
            return Err(invalid(format!("{place}.id must have 1 to {MAX_STEP_ID_BYTES} bytes")));
        }
        if positions.insert(id.clone(), position).is_some() {
            return Err(invalid(format!("{place}.id must be that of no other step, got {}", quoted(&id))));
        }
        bodies.push((id, step));
    }
    let parse_one = |(position, (id, step)): (usize, (String, Object))| {
        parse_step(id, &step, &format!("steps[{position}]"), (&positions, position), defaults.as_ref())
    };
    bodies.into_iter().enumerate().map(parse_one).collect()
}

fn parse_shared_options(raw: &RawValue) -> Result<Object<'_>, RequestError> {
    let bytes = raw.get().len();
    if bytes > MAX_SHARED_OPTIONS_BYTES {
        return Err(invalid(format!(
            "options of a workflow by steps must have at most {MAX_SHARED_OPTIONS_BYTES} bytes, because every step gets \
             them, got {bytes}; larger options can be set on the steps that need them"
        )));
    }
    parse_object(raw, "options")
}

fn parse_step(
    id: String,
    step: &Object<'_>,
    place: &str,
    (positions, own): (&BTreeMap<String, usize>, usize),
    defaults: Option<&Object<'_>>,
) -> Result<RequestedStep, RequestError> {
    let raw = step.get("depends_on").ok_or_else(|| {
        invalid(format!("{place}.depends_on is required: an array of ids of steps, empty for one that starts at once"))
    })?;
    let names: Vec<String> = serde_json::from_str(raw.get()).map_err(|_| {
        invalid(format!("{place}.depends_on must be an array of ids of steps, got {}", quoted(raw.get())))
    })?;
    let (mut depends_on, mut known) = (Vec::new(), BTreeSet::new());
    for name in &names {
        match positions.get(name).filter(|position| **position != own) {
            Some(position) if known.insert(*position) => depends_on.push(*position),
            Some(_) => {}
            None => return Err(invalid(format!("{place}.depends_on must name other steps, got {}", quoted(name)))),
        }
    }
    let for_each = step.get("for_each").map(|given| parse_for_each(given, place, &names, positions)).transpose()?;
    let options = step.get("options").map(|raw| parse_object(raw, &format!("{place}.options"))).transpose()?;
    let callback = options.as_ref().and_then(|options| options.get("callback_type"));
    let callback = callback.map(|raw| parse_callback(raw, place)).transpose()?;
    if callback.is_some() && depends_on.is_empty() {
        return Err(invalid(format!("{place}: a step with callback_type must depend on others")));
    }
    let is_workflow = is_workflow(step);
    let json = if is_workflow { write_workflow(step) } else { write_job(step, options.as_ref(), defaults) };
    let for_each_json = step.get("for_each").map(|given| given.get().to_owned());
    let depends_on_json = raw.get().to_owned();
    let found = RequestedStep { id, depends_on, depends_on_json, callback, for_each, for_each_json, is_workflow, json };
    if found.callback.is_some() && !found.is_job() {
        return Err(invalid(format!("{place}: a step with callback_type must be a job, and no workflow or for_each")));
    }
    Ok(found)
}

/// The step for each element of whose result another one runs.
fn parse_for_each(
    raw: &RawValue,
    place: &str,
    depends_on: &[String],
    positions: &BTreeMap<String, usize>,
) -> Result<usize, RequestError> {
    let name = parse_text(raw, &format!("{place}.for_each"))?;
    let known = depends_on.iter().find(|before| **before == name).and_then(|before| positions.get(before));
    known.copied().ok_or_else(|| {
        invalid(format!(
            "{place}.for_each must be one of its depends_on, the step that returns the array, got {}",
            quoted(&name)
        ))
    })
}

/// The workflow that a step is, without what is about the order.
fn write_workflow(step: &Object<'_>) -> String {
    let mut out = ObjectWriter::default();
    for (name, value) in step.iter().filter(|(name, _)| !["id", "depends_on", "for_each"].contains(name)) {
        out.raw(name, value.get());
    }
    out.finish()
}

fn parse_callback(raw: &RawValue, place: &str) -> Result<BatchCallback, RequestError> {
    let name: Option<String> = serde_json::from_str(raw.get()).ok();
    let found = BatchCallback::ALL.into_iter().find(|callback| name.as_deref() == Some(callback.as_str()));
    found.ok_or_else(|| {
        let got = quoted(raw.get());
        invalid(format!("{place}.options.callback_type must be on_complete, on_success or on_failure, got {got}"))
    })
}

/// The job of a step: without what is about the order, and with the options of the workflow that it does not set
/// itself. An option that is null is not set.
fn write_job(step: &Object<'_>, options: Option<&Object<'_>>, defaults: Option<&Object<'_>>) -> String {
    let mut out = ObjectWriter::default();
    for (name, value) in step.iter().filter(|(name, _)| !["id", "depends_on", "for_each", "options"].contains(name)) {
        out.raw(name, value.get());
    }
    let mut merged = ObjectWriter::default();
    for (name, value) in options.iter().flat_map(|options| options.iter()) {
        if name != "callback_type" && value.get() != "null" {
            merged.raw(name, value.get());
        }
    }
    let is_set = |name: &str| step.get(name).is_some() || options.is_some_and(|options| options.get(name).is_some());
    for (name, value) in defaults.iter().flat_map(|defaults| defaults.iter()) {
        if !is_set(name) && value.get() != "null" {
            merged.raw(name, value.get());
        }
    }
    let merged = merged.finish();
    if merged != "{}" {
        out.raw("options", &merged);
    }
    out.finish()
}

fn parse_object<'a>(raw: &'a RawValue, place: &str) -> Result<Object<'a>, RequestError> {
    if !raw.get().starts_with('{') {
        return Err(invalid(format!("{place} must be a JSON object, got {}", quoted(raw.get()))));
    }
    serde_json::from_str(raw.get()).map_err(|error| invalid(format!("{place}: {error}")))
}

/// The ids of steps and what they depend on, as a JSON array.
pub(super) fn to_json(steps: &[&RequestedStep]) -> String {
    let each = steps.iter().map(|step| {
        let mut out = ObjectWriter::default();
        out.text("id", &step.id).raw("depends_on", &step.depends_on_json);
        if let Some(for_each) = &step.for_each_json {
            out.raw("for_each", for_each);
        }
        out.finish()
    });
    format!("[{}]", each.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use crate::workflow::{BatchCallback, NewWorkflow, WorkflowKind};

    fn parse(steps: &[(&str, &str, &str)], rest: &str) -> Result<NewWorkflow, String> {
        let steps: Vec<String> = steps
            .iter()
            .map(|(id, depends_on, more)| {
                format!(r#"{{"id":"{id}","type":"{id}","args":["{id}"],"depends_on":[{depends_on}]{more}}}"#)
            })
            .collect();
        let json = format!(r#"{{"steps":[{}]{rest}}}"#, steps.join(","));
        NewWorkflow::parse(&serde_json::from_str(&json).expect("an object"), 4, 1_000)
            .map_err(|error| error.to_string())
    }

    fn types(workflow: &NewWorkflow) -> Vec<String> {
        workflow.jobs().iter().map(|job| job.summary.job_type.to_string()).take(workflow.members.len()).collect()
    }

    #[test]
    fn steps_are_stored_as_the_chain_the_group_or_the_batch_that_they_describe() {
        let chain =
            parse(&[("c", r#""b""#, ""), ("a", "", ""), ("b", r#""a""#, "")], r#","name":"n""#).expect("a chain");
        assert_eq!((chain.kind, types(&chain)), (WorkflowKind::Chain, vec!["a".into(), "b".into(), "c".into()]));
        assert_eq!(
            chain.name_and_meta,
            r#"{"name":"n","steps":[{"id":"a","depends_on":[]},{"id":"b","depends_on":["a"]},{"id":"c","depends_on":["b"]}]}"#
        );
        let group = parse(&[("a", "", ""), ("b", "", "")], "").expect("a group");
        assert_eq!((group.kind, types(&group)), (WorkflowKind::Group, vec!["a".into(), "b".into()]));
        let batch = parse(&[("z", r#""b","a""#, ""), ("a", "", ""), ("b", "", "")], "").expect("a batch");
        assert_eq!((batch.kind, types(&batch)), (WorkflowKind::Batch, vec!["a".into(), "b".into()]));
        assert_eq!(
            (batch.callbacks[0].0, &*batch.callbacks[0].1.json),
            (BatchCallback::Success, r#"{"type":"z","args":["z"]}"#)
        );
        let after = |callback: &str| format!(r#","options":{{"callback_type":"{callback}"}}"#);
        let (failed, ended) = (after("on_failure"), after("on_complete"));
        let batch = parse(&[("a", "", ""), ("f", r#""a""#, &failed), ("e", r#""a""#, &ended)], "").expect("a batch");
        let callbacks: Vec<BatchCallback> = batch.callbacks.iter().map(|(callback, _)| *callback).collect();
        assert_eq!(
            (batch.kind, callbacks),
            (WorkflowKind::Batch, vec![BatchCallback::Complete, BatchCallback::Failure])
        );
    }

    #[test]
    fn steps_in_any_other_order_are_a_dag_whose_members_come_after_those_that_they_depend_on() {
        let dag = parse(&[("d", r#""c","b","c""#, ""), ("b", r#""a""#, ""), ("a", "", ""), ("c", r#""a""#, "")], "");
        let dag = dag.expect("a DAG");
        assert_eq!((dag.kind, types(&dag)), (WorkflowKind::Dag, ["a", "b", "c", "d"].map(String::from).into()));
        assert_eq!(dag.depends_on, [vec![], vec![0], vec![0], vec![2, 1]]);
        assert!(
            dag.name_and_meta.ends_with(r#"{"id":"d","depends_on":["c","b","c"]}]}"#),
            "shown as sent: {}",
            dag.name_and_meta
        );
        let half = parse(&[("a", "", ""), ("b", "", ""), ("c", r#""a""#, "")], "").expect("a DAG");
        assert_eq!((half.kind, half.depends_on), (WorkflowKind::Dag, vec![vec![], vec![], vec![0]]));
        let asked = parse(&[("b", r#""a""#, ""), ("a", "", "")], r#","type":"dag""#).expect("a DAG");
        assert_eq!((asked.kind, types(&asked)), (WorkflowKind::Dag, ["a", "b"].map(String::from).into()));
        let after = r#","options":{"callback_type":"on_failure"}"#;
        let error = parse(&[("a", "", ""), ("b", r#""a""#, after)], r#","type":"dag""#).expect_err("no batch");
        assert!(error.starts_with("steps[1].options.callback_type is for batches"), "{error}");
    }

    #[test]
    fn options_of_the_workflow_hold_for_steps_that_do_not_set_them() {
        let own = r#","options":{"priority":7}"#;
        let workflow =
            parse(&[("a", "", own), ("b", "", r#","queue":"own""#)], r#","options":{"queue":"all","priority":1}"#);
        let workflow = workflow.expect("a group");
        let jobs = workflow.jobs();
        let jobs: Vec<(&str, i64)> =
            jobs.iter().map(|job| (job.queue.as_str(), i64::from(job.priority.get()))).collect();
        assert_eq!(jobs, [("all", 7), ("own", 1)]);
        assert_eq!(workflow.members[0].json, r#"{"type":"a","args":["a"],"options":{"priority":7,"queue":"all"}}"#);
    }

    #[test]
    fn null_is_as_if_it_were_absent() {
        let own = r#","options":{"queue":null,"priority":null,"callback_type":null}"#;
        let rest = r#","options":{"queue":"all","priority":null},"type":null,"jobs":null,"callbacks":null"#;
        let workflow = parse(&[("a", "", own), ("b", "", r#","queue":null,"options":null"#)], rest).expect("a group");
        for member in &workflow.members {
            let job = member.job().expect("a job");
            assert_eq!((job.queue.as_str(), job.priority.get()), ("all", 0), "{}", member.json);
        }
        assert_eq!(workflow.members[0].json, r#"{"type":"a","args":["a"],"options":{"queue":"all"}}"#);
        let error = parse(&[("a", "", "")], r#","job":1"#).expect_err("unknown");
        assert!(error.starts_with("a workflow by steps: unknown member \"job\""), "{error}");
    }

    #[test]
    fn options_that_every_step_would_copy_are_refused_if_they_are_large() {
        let of_length = |length: usize| {
            let options = r#"{"metadata":{"k":""}}"#;
            let padding = "x".repeat(length - options.len());
            format!(r#","options":{{"metadata":{{"k":"{padding}"}}}}"#)
        };
        let largest = parse(&[("a", "", ""), ("b", "", "")], &of_length(4096)).expect("as large as allowed");
        assert!(largest.members.iter().all(|member| member.json.len() > 4096), "each step has them");
        let error = parse(&[("a", "", "")], &of_length(4097)).expect_err("too large");
        assert!(error.contains("must have at most 4096 bytes, because every step gets them, got 4097"), "{error}");
        let invalid = format!(r#","options":{{"{}":1}}"#, "x".repeat(5000));
        let error = parse(&[("a", "", "")], &invalid).expect_err("too large and invalid");
        assert!(error.contains("must have at most 4096 bytes"), "{error}");
    }

    #[test]
    fn steps_in_no_order_are_refused() {
        let with_callback = "steps with options.callback_type must be a batch";
        let twice = r#","options":{"callback_type":"on_success"}"#;
        for (steps, expected) in [
            (
                &[("a", r#""b""#, ""), ("b", r#""a""#, "")][..],
                r#"steps must not depend on each other in a circle: "a" -> "b" -> "a""#,
            ),
            (
                &[("d", r#""c""#, ""), ("a", "", ""), ("b", r#""a","c""#, ""), ("c", r#""b""#, "")],
                r#"steps must not depend on each other in a circle: "c" -> "b" -> "c""#,
            ),
            (&[("a", "", ""), ("b", r#""a""#, twice), ("c", r#""a""#, "")], with_callback),
            (&[("a", "", ""), ("b", "", ""), ("c", r#""a""#, twice)], with_callback),
            (&[("a", "", ""), ("a", "", "")], "steps[1].id must be that of no other step"),
            (&[("a", r#""a""#, "")], "steps[0].depends_on must name other steps"),
            (&[("a", r#""x""#, "")], "steps[0].depends_on must name other steps, got \"x\""),
            (&[("a", "7", "")], "steps[0].depends_on must be an array"),
            (&[("a", "", twice)], "steps[0]: a step with callback_type must depend on others"),
            (
                &[("a", "", ""), ("b", r#""a""#, r#","options":{"callback_type":"x"}"#)],
                "steps[1].options.callback_type must",
            ),
            (&[("a", "", r#","options":[]"#)], "steps[0].options must be a JSON object"),
            (&[("a", "", r#","priority":1000"#)], "steps[0]: priority"),
            (
                &[("a", "", ""), ("b", "", ""), ("c", "", ""), ("d", "", ""), ("e", "", "")],
                "steps must be at most 4 jobs",
            ),
        ] {
            let error = parse(steps, "").expect_err(expected);
            assert!(error.starts_with(expected), "{steps:?}: {error}");
        }
        let refused = |json: &str| {
            NewWorkflow::parse(&serde_json::from_str(json).expect("an object"), 4, 0).expect_err(json).to_string()
        };
        let error = refused(r#"{"steps":[{"type":"a","args":[]}]}"#);
        assert!(error.starts_with("steps[0].id is required, because depends_on names it"), "{error}");
        let error = refused(r#"{"steps":[{"id":"a","type":"a","args":[]}]}"#);
        assert!(error.starts_with("steps[0].depends_on is required: an array of ids of steps"), "{error}");
        let error = refused(r#"{"steps":[],"jobs":[]}"#);
        assert!(error.starts_with("a workflow by steps: unknown member \"jobs\""), "{error}");
    }
}
