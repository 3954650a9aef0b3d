//! Ids that clients chose. A generated id tells its queue by a tag; a chosen one is written down.

use std::time::Duration;

use super::{JobRecord, Jobs};
use crate::{StoreResult, keys};
use common::{
    id::{JobId, queue_tag},
    name::QueueName,
    time::Millis,
};

/// How long what a job claims for itself (an id, being the only one) is remembered beyond its start, unless it ends before.
pub(super) const RESERVATION_TTL_MS: i64 = 90 * 86_400_000;

impl Jobs {
    /// Notes which queue an id that a client chose went to, unless it is noted already or the id itself tells.
    pub(super) async fn save_client_job_id(&self, id: JobId, queue: &QueueName, ttl: Millis) -> StoreResult<()> {
        if id.queue_tag() == queue_tag(queue) {
            return Ok(());
        }
        let mut command = redis::cmd("SET");
        command.arg(keys::client_job_id(&id)).arg(queue.as_str()).arg("NX").arg("PX").arg(ttl);
        Ok(command.exec_async(&mut self.store.redis.clone()).await?)
    }

    /// Lets a noted id live on with a job that is revived.
    pub(super) async fn extend_client_job_id(&self, id: JobId) -> StoreResult<()> {
        let mut command = redis::cmd("PEXPIRE");
        command.arg(keys::client_job_id(&id)).arg(RESERVATION_TTL_MS);
        Ok(command.exec_async(&mut self.store.redis.clone()).await?)
    }

    /// An id that a client chose is forgotten with the job. If that fails the id stays for its own, longer TTL.
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
