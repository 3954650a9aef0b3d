//! Jobs that failed when Redis had no room for their records: they stay in their entries, with a consumer of their own, and
//! maintenance releases them when there is room.

use super::{Attempt, ClaimedJob, Fence, Jobs, enqueue::RECORD_BYTES};
use crate::{StoreResult, connection::budgets::DataKind};

impl Jobs {
    /// Whether jobs that have no record may get one.
    pub(crate) fn has_room_for_records(&self) -> bool {
        self.store.redis.memory().has_room_for_records()
    }

    /// Releases a job that failed when there was no room for its record, if there is room now.
    pub(crate) async fn release_postponed(&self, claimed: &ClaimedJob, fence: &Fence) -> StoreResult<()> {
        if self.has_room_for_records() {
            self.store.redis.memory().note_stored(DataKind::JobRecords, RECORD_BYTES);
            self.release(Attempt::of(claimed, fence)).await?;
        }
        Ok(())
    }
}
