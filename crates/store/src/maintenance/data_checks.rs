//! Checks of all stored data, a slice with each sweep.

use std::time::Duration;

use super::{consistency_checker::CheckRound, index_checker::IndexChecker, pause_on_error, worker_reaper, workflows};
use crate::{StoreError, StoreResult, jobs::Jobs, workflows::Workflows};
use common::{name::QueueName, rotation::Rotation};

/// Number of a queue's items whose consistency one sweep checks.
const CHECKED_PER_SLICE: usize = 200;

/// Where the checks are.
#[derive(Default)]
pub(super) struct DataChecks {
    prune_rotation: Rotation,
    index_checker: IndexChecker,
    check_round: CheckRound,
}

impl DataChecks {
    pub(super) async fn check_slice(
        &mut self,
        jobs: &Jobs,
        queues: &[QueueName],
        worker_queues: &[QueueName],
    ) -> StoreResult<()> {
        for queue in self.prune_rotation.next(queues, 1) {
            let pruned = worker_reaper::prune_queue(jobs, &queue).await;
            pause_on_error(&queue, pruned.map(|()| Duration::ZERO))?;
        }
        match self.index_checker.check_slice(jobs, queues, worker_queues.iter()).await {
            Err(error @ StoreError::Unavailable(_)) => return Err(error),
            Err(error) => tracing::error!(%error, "the check of lists failed"),
            Ok(()) => {}
        }
        match self.check_round.check_slice(jobs, queues, CHECKED_PER_SLICE).await {
            Err(error @ StoreError::Unavailable(_)) => return Err(error),
            Err(error) => tracing::error!(%error, "consistency check failed"),
            Ok(()) => {}
        }
        let mut looked_at = 0;
        let stored = Workflows::new(jobs);
        for id in stored.workflows_to_check().await? {
            if looked_at >= workflows::MAX_JOBS_PER_TICK {
                break;
            }
            looked_at += workflows::check_or_reschedule(&stored, id).await?;
        }
        Ok(())
    }
}
