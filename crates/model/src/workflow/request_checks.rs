//! Checks that the parts of a request share.

use serde_json::value::RawValue;

use super::WorkflowKind;
use crate::job::RequestError;
use common::{
    id::WorkflowId,
    json::{Object, ObjectWriter},
    known_names,
    name::quoted,
    settings::MAX_WORKFLOW_JOBS,
    time::Millis,
};

/// Longest `name`, in bytes.
const MAX_NAME_BYTES: usize = 255;
/// Longest `id` of a nested workflow, in bytes.
const MAX_NESTED_ID_BYTES: usize = 255;

/// How deep workflows may be nested: the outermost counts, and a step with `for_each` counts as the group that it makes.
pub const MAX_WORKFLOW_DEPTH: usize = 5;

/// The members of a request that make a step a workflow.
const WORKFLOW_MEMBERS: [&str; 3] = ["steps", "jobs", "callbacks"];

/// Whether a step is a workflow.
pub(super) fn is_workflow(step: &Object<'_>) -> bool {
    WORKFLOW_MEMBERS.iter().any(|name| step.get(name).is_some())
}

/// What bounds a workflow and those in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ParseLimits {
    pub(super) now: Millis,
    pub(super) max_jobs: usize,
    /// Levels of workflows from here on, this one among them.
    pub(super) levels: usize,
}

impl ParseLimits {
    /// For what was accepted once.
    pub(super) fn of_stored(now: Millis) -> Self {
        let max_jobs = usize::try_from(MAX_WORKFLOW_JOBS).unwrap_or(usize::MAX);
        Self { now, max_jobs, levels: usize::MAX }
    }
}

pub(super) fn invalid(message: impl Into<String>) -> RequestError {
    RequestError::Invalid(message.into())
}

pub(super) fn parse_text(raw: &RawValue, name: &str) -> Result<String, RequestError> {
    serde_json::from_str(raw.get()).map_err(|_| invalid(format!("{name} must be a string, got {}", quoted(raw.get()))))
}

/// The step of a chain that `for_each` means: the one before.
pub(super) fn parse_previous(raw: &RawValue, place: &str, index: usize) -> Result<usize, RequestError> {
    let name = parse_text(raw, &format!("{place}.for_each"))?;
    if name != "previous" {
        let why = "must be \"previous\" in a chain, the step before it, or the id of a step in a \"dag\"";
        return Err(invalid(format!("{place}.for_each {why}, got {}", quoted(&name))));
    }
    index
        .checked_sub(1)
        .ok_or_else(|| invalid(format!("{place}.for_each: no step is before the first step of a chain")))
}

/// Refuses members of other names. Those that are null count as absent.
pub(super) fn check_names(body: &Object<'_>, known: &[&str]) -> Result<(), String> {
    let stranger = body.iter().find(|(name, value)| value.get() != "null" && !known.contains(name));
    stranger.map_or(Ok(()), |(name, _)| Err(known_names::unknown("member", name, known)))
}

pub(super) fn parse_id(body: &Object<'_>) -> Result<Option<WorkflowId>, RequestError> {
    body.get("id").map(|raw| parse_text(raw, "id")?.parse().map_err(RequestError::from)).transpose()
}

/// The id of a nested workflow follows from the one around it. One in the request is as the Open Job Spec has it.
pub(super) fn parse_nested_id(body: &Object<'_>, warnings: &mut Vec<String>) -> Result<(), RequestError> {
    let Some(raw) = body.get("id") else { return Ok(()) };
    let id = parse_text(raw, "id")?;
    if id.len() > MAX_NESTED_ID_BYTES {
        return Err(invalid(format!("id must have at most {MAX_NESTED_ID_BYTES} bytes, got {}", id.len())));
    }
    warnings.push("id is not used: the id of a workflow in another one follows from that one's".to_owned());
    Ok(())
}

pub(super) fn parse_kind(body: &Object<'_>) -> Result<WorkflowKind, RequestError> {
    let allowed = "\"chain\", \"group\", \"batch\" or \"dag\"";
    let raw =
        body.get("type").ok_or_else(|| invalid(format!("type is required: {allowed}, or steps with depends_on")))?;
    let name: Option<String> = serde_json::from_str(raw.get()).ok();
    name.as_deref()
        .and_then(WorkflowKind::from_name)
        .ok_or_else(|| invalid(format!("type must be {allowed}, got {}", quoted(raw.get()))))
}

/// The name, and `name` and `meta` as they are shown.
pub(super) fn parse_name_and_meta(body: &Object<'_>) -> Result<(Option<String>, ObjectWriter), RequestError> {
    let (mut about, mut given) = (ObjectWriter::default(), None);
    if let Some(raw) = body.get("name") {
        let name = parse_text(raw, "name")?;
        if name.len() > MAX_NAME_BYTES {
            return Err(invalid(format!("name must have at most {MAX_NAME_BYTES} bytes, got {}", name.len())));
        }
        about.raw("name", raw.get());
        given = Some(name);
    }
    if let Some(raw) = body.get("meta") {
        if !raw.get().starts_with('{') {
            return Err(invalid(format!("meta must be a JSON object, got {}", quoted(raw.get()))));
        }
        about.raw("meta", raw.get());
    }
    Ok((given, about))
}
