//! Workflows whose progress may have been cut off, and ends that they did not hear of.

use crate::{
    id::WorkflowId,
    redis::{StoreError, StoreResult, jobs::Jobs},
};

/// Looks at one workflow. Trouble of one must not keep the others from being looked after: it gets a pause.
pub(super) async fn check(jobs: &Jobs, id: WorkflowId) -> StoreResult<()> {
    match jobs.check_workflow(id).await {
        Ok(()) => Ok(()),
        Err(error @ StoreError::Unavailable(_)) => Err(error),
        Err(error) => {
            tracing::error!(workflow = %id, %error, "upkeep of a workflow failed");
            jobs.look_again(id, jobs.workflows.check).await
        }
    }
}
