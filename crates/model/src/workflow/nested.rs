//! Steps that are workflows: one that the request describes, or a group that gets a job for each element of an array which
//! another step returned.

use serde_json::value::RawValue;

use super::{
    NewWorkflow, NewWorkflowMember, WorkflowKind,
    request_checks::{ParseLimits, invalid, is_workflow},
    stored_step::StoredStep,
};
use crate::job::RequestError;
use common::{
    json::{Object, ObjectWriter},
    time::Millis,
};

impl StoredStep {
    /// The kind of the workflow.
    #[must_use]
    pub fn kind(&self) -> WorkflowKind {
        if self.for_each.is_some() {
            return WorkflowKind::Group;
        }
        let parsed = self.parse_workflow(0).map(|workflow| workflow.kind);
        parsed.unwrap_or(WorkflowKind::Group)
    }

    /// The workflow of a step without `for_each`, as it would start now.
    ///
    /// # Errors
    /// It is damaged.
    pub fn parse_workflow(&self, now: Millis) -> Result<NewWorkflow, RequestError> {
        parse_stored(&self.json, now)
    }

    /// What the step runs, or runs for each element, as it would start now.
    ///
    /// # Errors
    /// It is damaged.
    pub fn parse_member(&self, now: Millis) -> Result<NewWorkflowMember, RequestError> {
        let raw: &RawValue = serde_json::from_str(&self.json).map_err(|error| invalid(error.to_string()))?;
        NewWorkflowMember::parse(raw, "step", ParseLimits::of_stored(now), None)
    }

    /// The group that has a job for each of the elements.
    ///
    /// # Errors
    /// It is damaged.
    pub fn group_of(&self, elements: &[&RawValue], now: Millis) -> Result<NewWorkflow, RequestError> {
        let each: Result<Vec<String>, RequestError> =
            elements.iter().map(|element| with_element(&self.json, element.get())).collect();
        let mut group = ObjectWriter::default();
        group.text("type", WorkflowKind::Group.as_str()).raw("jobs", &format!("[{}]", each?.join(",")));
        parse_stored(&group.finish(), now)
    }
}

/// A workflow that was accepted once: its limits may have been others.
fn parse_stored(json: &str, now: Millis) -> Result<NewWorkflow, RequestError> {
    let body = Object::of_stored(json).map_err(|error| invalid(error.to_string()))?;
    NewWorkflow::parse_level(&body, ParseLimits::of_stored(now), true)
}

/// A job with an element behind its own arguments, or a workflow each of whose jobs has it there.
fn with_element(json: &str, element: &str) -> Result<String, RequestError> {
    let malformed = |error: serde_json::Error| invalid(error.to_string());
    let body = Object::of_stored(json).map_err(malformed)?;
    let each_of = |raw: &RawValue| -> Result<String, RequestError> {
        let steps: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(malformed)?;
        let steps: Result<Vec<String>, _> = steps.iter().map(|step| with_element(step.get(), element)).collect();
        Ok(format!("[{}]", steps?.join(",")))
    };
    let is_workflow = is_workflow(&body);
    let mut out = ObjectWriter::with_capacity(json.len() + element.len() + 2);
    for (name, value) in body.iter() {
        match name {
            _ if value.get() == "null" => out.raw(name, "null"),
            "steps" | "jobs" if is_workflow => out.raw(name, &each_of(value)?),
            "callbacks" if is_workflow => {
                let callbacks = Object::of_stored(value.get()).map_err(malformed)?;
                let mut each = ObjectWriter::default();
                for (event, callback) in callbacks.iter().filter(|(_, callback)| callback.get() != "null") {
                    each.raw(event, &with_element(callback.get(), element)?);
                }
                out.raw(name, &each.finish())
            }
            "args" if !is_workflow => {
                let mut args: Vec<&str> = Vec::new();
                let given: Vec<&RawValue> = serde_json::from_str(value.get()).map_err(malformed)?;
                args.extend(given.iter().map(|arg| arg.get()));
                args.push(element);
                out.raw(name, &format!("[{}]", args.join(",")))
            }
            _ => out.raw(name, value.get()),
        };
    }
    Ok(out.finish())
}

/// The elements of a result, for a job for each.
///
/// # Errors
/// What the step with `for_each` fails with: a code and a message.
pub fn elements_of(
    result: Option<&str>,
    source: usize,
    max_elements: usize,
) -> Result<Vec<&RawValue>, (&'static str, String)> {
    let text = result.unwrap_or("null");
    if text.starts_with("{\"omitted\":true,") {
        let message = format!(
            "for_each needs the result of step {source}, which is not kept: it is larger than workflows.results_limit_bytes \
             allows. Return references, such as names of files"
        );
        return Err(("result_omitted", message));
    }
    let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| {
        let kind = match text.trim_start().as_bytes().first() {
            Some(b'{') => "an object",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            _ => "a number",
        };
        ("not_an_array", format!("for_each needs a JSON array as the result of step {source}, which returned {kind}"))
    })?;
    if elements.len() > max_elements {
        let message = format!(
            "for_each makes at most {max_elements} jobs (workflows.max_jobs), and step {source} returned an array of {}",
            elements.len()
        );
        return Err(("too_many_elements", message));
    }
    Ok(elements)
}

/// The result of a workflow that is a step and has completed: of a chain that of its last step, of a DAG an object by the ids
/// of its steps, otherwise an array in the order of its jobs. `null` is that of a job without one.
#[must_use]
pub fn gather_results(kind: WorkflowKind, name_and_meta: &str, results: Vec<Option<String>>) -> String {
    let of = |result: Option<String>| result.unwrap_or_else(|| "null".to_owned());
    match kind {
        WorkflowKind::Chain => of(results.into_iter().next_back().flatten()),
        WorkflowKind::Group | WorkflowKind::Batch => {
            format!("[{}]", results.into_iter().map(of).collect::<Vec<_>>().join(","))
        }
        WorkflowKind::Dag => {
            let about = Object::of_stored(name_and_meta).unwrap_or_default();
            let steps: Vec<Object> =
                about.get("steps").and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
            let mut out = ObjectWriter::default();
            for (step, result) in steps.iter().zip(results) {
                let id = step.get("id").and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
                out.raw(&id.unwrap_or_default(), &of(result));
            }
            out.finish()
        }
    }
}

#[cfg(test)]
mod tests;
