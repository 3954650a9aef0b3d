//! The checkpoint of a job, as it is stored.

use crate::{StoreError, StoreResult, sealing::Sealer};
use common::{
    id::JobId,
    json::ObjectWriter,
    name::QueueName,
    time::{self, Millis},
};

/// What an attempt saved for the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobCheckpoint {
    /// Its number: greater with each save.
    pub sequence: u64,
    /// When it was saved.
    pub created_at: Millis,
    /// The state, as JSON.
    pub state: String,
}

impl JobCheckpoint {
    /// As a job shows it to the attempt that goes on from it.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut out = ObjectWriter::with_capacity(self.state.len() + 80);
        out.raw("state", &self.state)
            .number("sequence", self.sequence)
            .text("created_at", &time::format(self.created_at));
        out.finish()
    }

    /// Parses `<sequence> <ms> <state>`.
    pub(super) fn parse(sealer: &Sealer, queue: &QueueName, id: JobId, text: &str) -> StoreResult<Self> {
        let damaged = || StoreError::damaged(format!("the checkpoint of job {id} has another shape"));
        let mut parts = text.splitn(3, ' ');
        let mut next = || parts.next().ok_or_else(damaged);
        let (sequence, created_at, state) = (next()?, next()?, next()?.to_owned());
        Ok(Self {
            sequence: sequence.parse().map_err(|_| damaged())?,
            created_at: created_at.parse().map_err(|_| damaged())?,
            state: sealer.open(&["checkpoint", queue.as_str(), &id.to_string()], state)?,
        })
    }
}
