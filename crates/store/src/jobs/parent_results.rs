//! The results of earlier jobs of a workflow, as its jobs get and show them. The workflow has one copy of each result, which
//! its jobs refer to: with a copy in each, a chain would need memory that grows with the square of its length. Only a dead
//! letter has a copy, because it outlives its workflow.

use futures_util::future::try_join_all;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{ClaimedJob, JobRecord, Jobs, LocatedJob, claim_sizes::count_claimed};
use crate::{StoreResult, keys, sealing::Sealer};
use common::{id::WorkflowId, settings::MAX_WORKFLOW_JOBS};
use model::workflow::{BatchCallback, MAX_WORKFLOW_DEPTH, Membership, ParentStep, WorkflowKind, parents_of};

/// Results that a job of a workflow can have before it, callbacks among them.
#[expect(clippy::cast_possible_truncation, reason = "a thousand fits")]
const MAX_RESULTS: usize = MAX_WORKFLOW_JOBS as usize + BatchCallback::ALL.len();

/// The fields of a workflow that tell, with `u<index>`, whose results a job gets: kind and number of members.
const PARENT_FIELDS: &[&str] = &["y", "t"];

#[derive(Deserialize)]
struct WorkflowJobFields<'a> {
    workflow_id: Option<WorkflowId>,
    workflow_index: Option<usize>,
    #[serde(borrow)]
    parent_results: Option<&'a RawValue>,
}

impl Jobs {
    /// Reads the parent results of jobs that were claimed.
    pub(super) async fn load_claimed_parents(&self, claimed: &mut [ClaimedJob]) -> StoreResult<()> {
        count_claimed(claimed.len());
        let referring = claimed.iter_mut().map(|claimed| &mut claimed.job);
        let loads = referring.filter(|job| job.parent_results_bytes.is_some()).map(|job| self.load_parent_results(job));
        // All at once: the jobs of a batch would wait for one another otherwise
        try_join_all(loads).await.map(drop)
    }

    /// Reads the parent results of a job that refers to its workflow's.
    pub(super) async fn load_parent_results(&self, job: &mut JobRecord) -> StoreResult<()> {
        let (Some(Membership { workflow, index }), Some(_)) = (job.workflow, job.parent_results_bytes) else {
            return Ok(());
        };
        let results = self.results_before(workflow, usize::try_from(index).unwrap_or(usize::MAX)).await?;
        job.parent_results = Some(to_array(results)).filter(|results| results != "[]");
        Ok(())
    }

    /// Puts a copy of the parent results into a dead letter, which outlives its workflow.
    pub(super) async fn keep_parents(&self, job: &mut JobRecord, is_dead_letter: bool) -> StoreResult<()> {
        if is_dead_letter {
            if job.parent_results.is_none() {
                self.load_parent_results(job).await?;
            }
            job.parent_results_bytes = None;
        }
        Ok(())
    }

    /// About how many bytes the results have that a job of a workflow gets; none if it gets none.
    pub(super) async fn parent_results_bytes(&self, membership: Option<Membership>) -> StoreResult<Option<usize>> {
        let Some(Membership { workflow, index }) = membership else { return Ok(None) };
        let mut command = redis::cmd("HMGET");
        command.arg(keys::workflow(&workflow)).arg(PARENT_FIELDS).arg(format!("u{index}")).arg(&["b", "h"]);
        let fields: Vec<Option<String>> = command.query_async(&mut self.store.redis.clone()).await?;
        let count = stored_parents(&fields, usize::try_from(index).unwrap_or(usize::MAX)).len();
        let number = |at: usize| fields.get(at).and_then(Option::as_deref).and_then(|text| text.parse().ok());
        // A job with nothing before it gets what the step gets that its workflow is
        Ok(Self::parent_results_size(number(3).unwrap_or(0), count).or_else(|| number(4)))
    }

    /// About how many bytes that number of results have, with the commas, and `null` where there is none.
    pub(crate) fn parent_results_size(bytes: usize, count: usize) -> Option<usize> {
        (count > 0).then(|| bytes.saturating_add(count.saturating_mul(5)).saturating_add(2))
    }

    /// Adds the parent results to a job that does not have them itself.
    pub(super) async fn with_parent_results(&self, mut located: LocatedJob) -> StoreResult<LocatedJob> {
        if let LocatedJob::InRecord { job, .. } | LocatedJob::InStream { job, .. } = &mut located {
            self.load_parent_results(job).await?;
        }
        let LocatedJob::Finished(json) = located else { return Ok(located) };
        // Most jobs belong to no workflow
        let fields = json.contains("\"workflow_id\"").then(|| serde_json::from_str::<WorkflowJobFields<'_>>(&json));
        let Some(Ok(WorkflowJobFields {
            workflow_id: Some(workflow),
            workflow_index: Some(index),
            parent_results: None,
        })) = fields
        else {
            return Ok(LocatedJob::Finished(json));
        };
        let results = self.results_before(workflow, index).await?;
        let Some(head) = json.strip_suffix('}').filter(|_| !results.is_empty()) else {
            return Ok(LocatedJob::Finished(json));
        };
        Ok(LocatedJob::Finished(format!("{head},\"parent_results\":{}}}", to_array(results))))
    }

    /// The results that a job of a workflow got: those before a step of a chain, those that a step of a DAG depends on, those
    /// of all members for a callback. One with nothing before it got those of the step that its workflow is, if it is one.
    async fn results_before(&self, workflow: WorkflowId, index: usize) -> StoreResult<Vec<Option<String>>> {
        let (mut workflow, mut index, mut left_out) = (workflow, index, None);
        // A workflow that is made for each element of a result is a level that the request does not have
        for _ in 0..=2 * MAX_WORKFLOW_DEPTH {
            let (key, mut redis) = (keys::workflow(&workflow), self.store.redis.clone());
            // One read for all kinds: a callback also reads the results of callbacks before it, and leaves them out
            let mut command = redis::cmd("HMGET");
            command.arg(&key).arg(PARENT_FIELDS).arg(format!("u{index}")).arg("m");
            for number in 0..index.min(MAX_RESULTS) {
                command.arg(format!("r{number}"));
            }
            let mut fields: Vec<Option<String>> = command.query_async(&mut redis).await?;
            let stored = fields.split_off(fields.len().min(4));
            let parents = stored_parents(&fields, index);
            let step = fields.get(3).and_then(Option::as_deref).and_then(|text| text.parse::<ParentStep>().ok());
            if let Some(ParentStep { membership, source }) = step.filter(|_| parents.is_empty()) {
                (workflow, left_out) = (membership.workflow, source);
                index = usize::try_from(membership.index).unwrap_or(usize::MAX);
                continue;
            }
            let results = open_results(self.sealer(), workflow, stored)?;
            // Each job has its element of that one
            let parents = parents.into_iter().filter(|parent| Some(*parent) != left_out);
            return Ok(parents.map(|parent| results.get(parent).cloned().flatten()).collect());
        }
        Ok(Vec::new())
    }
}

/// The results of a workflow's jobs, by their index, as they were before they were stored.
pub(crate) fn open_results(
    sealer: &Sealer,
    workflow: WorkflowId,
    stored: Vec<Option<String>>,
) -> StoreResult<Vec<Option<String>>> {
    if !sealer.is_on() && !stored.iter().flatten().any(|text| Sealer::is_sealed(text)) {
        return Ok(stored);
    }
    let workflow = workflow.to_string();
    let opened = stored.into_iter().enumerate().map(|(index, text)| {
        text.map(|text| sealer.open(&["workflow", &workflow, &format!("r{index}")], text)).transpose()
    });
    opened.collect()
}

/// The parents of a job, from the fields [`PARENT_FIELDS`] and its `u<index>`.
fn stored_parents(fields: &[Option<String>], index: usize) -> Vec<usize> {
    let [kind, members, depends_on] = [0, 1, 2].map(|at| fields.get(at).and_then(Option::as_deref));
    let members = members.and_then(|text| text.parse().ok());
    let (Some(kind), Some(members)) = (kind.and_then(WorkflowKind::from_name), members) else { return Vec::new() };
    let depends_on = parse_dependencies(depends_on.unwrap_or_default()).unwrap_or_default();
    parents_of(kind, members, &depends_on, index)
}

/// What a member of a DAG depends on, as it is stored: indexes with commas between.
pub(crate) fn write_dependencies(depends_on: &[usize]) -> String {
    depends_on.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// Reads what [`write_dependencies`] wrote; none if it is damaged.
pub(crate) fn parse_dependencies(text: &str) -> Option<Vec<usize>> {
    text.split(',').filter(|part| !part.is_empty()).map(|part| part.parse().ok()).collect()
}

/// A JSON array of results, `null` for jobs without one.
fn to_array(results: Vec<Option<String>>) -> String {
    let results: Vec<String> = results.into_iter().map(|result| result.unwrap_or_else(|| "null".into())).collect();
    format!("[{}]", results.join(","))
}
