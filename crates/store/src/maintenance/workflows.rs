//! Continues workflows that may have been interrupted, and records ends that they missed.

use crate::{StoreError, StoreResult, workflows::Workflows};
use common::id::WorkflowId;

/// A turn that has checked this many jobs of workflows checks no further workflow.
pub(super) const MAX_JOBS_PER_TICK: usize = 1000;

/// Checks one workflow and returns how many jobs that took. An error reschedules the workflow and must not block the
/// others.
pub(super) async fn check_or_reschedule(workflows: &Workflows, id: WorkflowId) -> StoreResult<usize> {
    match workflows.check_workflow(id).await {
        Ok(looked_at) => Ok(looked_at),
        Err(error @ StoreError::Unavailable(_)) => Err(error),
        Err(error) => {
            tracing::error!(workflow = %id, %error, "maintenance of a workflow failed");
            workflows.reschedule_after_failure(id).await.map(|()| 0)
        }
    }
}
