//! What follows from the end of a job, once it is recorded.

use super::{Jobs, Stored};
use crate::redis::note_interruption;

impl Jobs {
    /// Tells a job's workflow that the job is over; `ended_json` is what was recorded. May be called more than once. What
    /// is cut off here the upkeep of workflows finds out, so nothing that goes wrong concerns whoever ended the job.
    pub(super) async fn after_end(&self, job: &Stored, ended_json: &str) {
        let Some(membership) = job.workflow else { return };
        if let Err(error) = self.member_ended(membership, job.id, ended_json).await {
            note_interruption("the workflow of a job that ended", &error);
        }
    }
}
