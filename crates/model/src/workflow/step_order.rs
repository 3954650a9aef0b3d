//! Which kind of workflow steps describe that say which others they depend on: a chain, a group or a batch if that is what
//! they are, otherwise a DAG.

use std::collections::{BTreeMap, BTreeSet};

use super::{BatchCallback, WorkflowKind, request_checks::invalid, steps::RequestedStep};
use crate::job::RequestError;
use common::name::quoted;

/// Ids of a circle that an error names.
const MAX_NAMED_STEPS: usize = 10;

/// The workflow that steps describe. Numbers are positions of steps.
#[derive(Debug)]
pub(super) struct StepOrder {
    pub(super) kind: WorkflowKind,
    /// A step that depends on others comes after them.
    pub(super) members: Vec<usize>,
    pub(super) callbacks: Vec<(BatchCallback, usize)>,
}

/// The kind of workflow that runs the steps in the order that they ask for.
pub(super) fn find_order(steps: &[RequestedStep]) -> Result<StepOrder, RequestError> {
    let has_callbacks = steps.iter().any(|step| step.callback.is_some());
    if has_callbacks {
        return as_group_or_batch(steps).ok_or_else(|| {
            invalid(
                "steps with options.callback_type must be a batch: steps that depend on nothing, and up to three that depend \
                 on all of these, with different callback_type",
            )
        });
    }
    as_chain(steps).or_else(|| as_group_or_batch(steps)).map_or_else(|| as_dag(steps), Ok)
}

/// A DAG, whatever else the steps could be.
pub(super) fn as_dag(steps: &[RequestedStep]) -> Result<StepOrder, RequestError> {
    if let Some(position) = steps.iter().position(|step| step.callback.is_some()) {
        return Err(invalid(format!(
            "steps[{position}].options.callback_type is for batches: a step of a DAG starts when all that it depends on have \
             succeeded"
        )));
    }
    let mut open: Vec<usize> = steps.iter().map(|step| step.depends_on.len()).collect();
    let mut dependants: Vec<Vec<usize>> = vec![Vec::new(); steps.len()];
    for (position, step) in steps.iter().enumerate() {
        step.depends_on.iter().for_each(|before| dependants[*before].push(position));
    }
    // Of those that could be next, the first of the request
    let mut next: BTreeSet<usize> = (0..steps.len()).filter(|position| open[*position] == 0).collect();
    let mut members = Vec::with_capacity(steps.len());
    while let Some(position) = next.pop_first() {
        members.push(position);
        for dependant in &dependants[position] {
            open[*dependant] -= 1;
            if open[*dependant] == 0 {
                next.insert(*dependant);
            }
        }
    }
    match open.iter().position(|count| *count > 0) {
        None => Ok(StepOrder { kind: WorkflowKind::Dag, members, callbacks: Vec::new() }),
        Some(stuck) => {
            Err(invalid(format!("steps must not depend on each other in a circle: {}", circle(steps, &open, stuck))))
        }
    }
}

/// The ids of a circle, from a step that is in one or depends on one.
fn circle(steps: &[RequestedStep], open: &[usize], stuck: usize) -> String {
    let mut path = vec![stuck];
    loop {
        let last = &steps[path[path.len() - 1]];
        // Of a step that is stuck, one that it depends on is stuck too
        let Some(before) = last.depends_on.iter().copied().find(|before| open[*before] > 0) else { break };
        let met = path.iter().position(|known| *known == before);
        path.push(before);
        if let Some(first) = met {
            path.drain(..first);
            break;
        }
    }
    let more = if path.len() > MAX_NAMED_STEPS { " -> ..." } else { "" };
    let named: Vec<String> = path.iter().take(MAX_NAMED_STEPS).map(|position| quoted(&steps[*position].id)).collect();
    named.join(" -> ") + more
}

fn as_chain(steps: &[RequestedStep]) -> Option<StepOrder> {
    let next: BTreeMap<Option<usize>, usize> = steps
        .iter()
        .enumerate()
        .filter(|(_, step)| step.depends_on.len() <= 1)
        .map(|(position, step)| (step.depends_on.first().copied(), position))
        .collect();
    // Each follows another one, and no two the same
    if next.len() < steps.len() {
        return None;
    }
    let members: Vec<usize> =
        std::iter::successors(next.get(&None).copied(), |last| next.get(&Some(*last)).copied()).collect();
    (members.len() == steps.len()).then_some(StepOrder { kind: WorkflowKind::Chain, members, callbacks: Vec::new() })
}

fn as_group_or_batch(steps: &[RequestedStep]) -> Option<StepOrder> {
    let members: BTreeSet<usize> = (0..steps.len()).filter(|position| steps[*position].depends_on.is_empty()).collect();
    let mut callbacks: BTreeMap<usize, (BatchCallback, usize)> = BTreeMap::new();
    for (position, step) in steps.iter().enumerate().filter(|(position, _)| !members.contains(position)) {
        let callback = step.callback.unwrap_or(BatchCallback::Success);
        let is_first = callbacks.insert(callback.offset(), (callback, position)).is_none();
        // A callback is a job
        if !is_first || !step.is_job() || !step.depends_on.iter().copied().collect::<BTreeSet<_>>().eq(&members) {
            return None;
        }
    }
    let kind = if callbacks.is_empty() { WorkflowKind::Group } else { WorkflowKind::Batch };
    let members: Vec<usize> = members.into_iter().collect();
    (!members.is_empty()).then(|| StepOrder { kind, members, callbacks: callbacks.into_values().collect() })
}
