//! Job ids chosen by clients. A generated id has a tag that identifies its queue; for a chosen one the queue is
//! stored.

use std::time::Duration;

use super::{JobRecord, Jobs};
use crate::{StoreResult, keys};
use common::{
    id::{JobId, queue_tag},
    name::QueueName,
    time::Millis,
};

/// How long a reservation of a job (its id, its uniqueness) outlives the job's start, unless the job ends before.
pub(super) const RESERVATION_TTL_MS: i64 = 90 * 86_400_000;

impl Jobs {
    /// Stores the queue of a client-chosen id, unless it is stored already or the id itself has the queue's tag.
    pub(super) async fn save_client_job_id(&self, id: JobId, queue: &QueueName, ttl: Millis) -> StoreResult<()> {
        if id.queue_tag() == queue_tag(queue) {
            return Ok(());
        }
        let mut command = redis::cmd("SET");
        command.arg(keys::client_job_id(&id)).arg(queue.as_str()).arg("NX").arg("PX").arg(ttl);
        Ok(command.exec_async(&mut self.store.redis.clone()).await?)
    }

    /// Extends the TTL of a chosen id for a job that is revived.
    pub(super) async fn extend_client_job_id(&self, id: JobId) -> StoreResult<()> {
        let mut command = redis::cmd("PEXPIRE");
        command.arg(keys::client_job_id(&id)).arg(RESERVATION_TTL_MS);
        Ok(command.exec_async(&mut self.store.redis.clone()).await?)
    }

    /// Shortens the TTL of a chosen id to that of its finished job. If that fails, the longer TTL applies.
    pub(super) async fn shorten_client_job_id(&self, job: &JobRecord, ttl: Duration) {
        if job.has_record && job.history.created_at.is_some() && job.id.queue_tag() != queue_tag(&job.queue) {
            let mut command = redis::cmd("PEXPIRE");
            command.arg(keys::client_job_id(&job.id)).arg(ttl.as_millis().to_string());
            if let Err(error) = command.exec_async(&mut self.store.redis.clone()).await {
                tracing::debug!(%error, id = %job.id, "a chosen id keeps its long TTL");
            }
        }
    }
}
