//! Workflows whose progress may have been cut off, and ends that they did not hear of.

use crate::{StoreError, StoreResult, workflows::Workflows};
use common::id::WorkflowId;

/// Jobs of workflows after which a turn looks at no further workflow.
pub(super) const MAX_JOBS_PER_TICK: usize = 1000;

/// Looks at one workflow and answers with how many jobs that took. Trouble of one must not keep the others from being
/// looked after: it gets a pause.
pub(super) async fn check_or_reschedule(workflows: &Workflows, id: WorkflowId) -> StoreResult<usize> {
    match workflows.check_workflow(id).await {
        Ok(looked_at) => Ok(looked_at),
        Err(error @ StoreError::Unavailable(_)) => Err(error),
        Err(error) => {
            tracing::error!(workflow = %id, %error, "upkeep of a workflow failed");
            workflows.reschedule_after_failure(id).await.map(|()| 0)
        }
    }
}
