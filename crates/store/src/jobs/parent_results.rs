//! The results of earlier jobs of a workflow, as an ended job shows them. The workflow has one copy of each result, which
//! its completed jobs refer to: with a copy in each, a chain would need memory that grows with the square of its length.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Jobs, LocatedJob};
use crate::{StoreResult, keys};
use common::id::WorkflowId;
use model::workflow::WorkflowKind;

#[derive(Deserialize)]
struct WorkflowJobFields<'a> {
    workflow_id: Option<WorkflowId>,
    workflow_index: Option<usize>,
    #[serde(borrow)]
    parent_results: Option<&'a RawValue>,
}

impl Jobs {
    /// Adds the parent results to an ended job that does not have them itself.
    pub(super) async fn with_parent_results(&self, located: LocatedJob) -> StoreResult<LocatedJob> {
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
        let results: Vec<String> = results.into_iter().map(|result| result.unwrap_or_else(|| "null".into())).collect();
        Ok(LocatedJob::Finished(format!("{head},\"parent_results\":[{}]}}", results.join(","))))
    }

    /// The results that a job of a workflow got: those before a step of a chain, those of all members for a callback.
    async fn results_before(&self, workflow: WorkflowId, index: usize) -> StoreResult<Vec<Option<String>>> {
        let (key, mut redis) = (keys::workflow(&workflow), self.store.redis.clone());
        let (kind, members): (Option<String>, Option<usize>) =
            redis::cmd("HMGET").arg(&key).arg(&["y", "t"]).query_async(&mut redis).await?;
        let before = match (kind.as_deref().and_then(WorkflowKind::from_name), members) {
            (Some(WorkflowKind::Chain), _) => index,
            (Some(WorkflowKind::Batch), Some(members)) if index >= members => members,
            _ => 0,
        };
        if before == 0 {
            return Ok(Vec::new());
        }
        let fields: Vec<String> = (0..before).map(|index| format!("r{index}")).collect();
        Ok(redis::cmd("HMGET").arg(&key).arg(fields).query_async(&mut redis).await?)
    }
}
