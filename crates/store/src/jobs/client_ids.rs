//! Job ids chosen by clients. A generated id has a tag that identifies its queue; for a chosen one the queue is
//! stored.

use std::time::Duration;

use super::{JobRecord, Jobs, LocatedJob};
use crate::{
    StoreResult,
    keys::{self, QueueKeys},
};
use common::{
    id::{JobId, queue_tag},
    name::QueueName,
    time::Millis,
};

/// How long a reservation of a job (its id, its uniqueness) outlives the job's start, unless the job ends before.
pub(super) const RESERVATION_TTL_MS: i64 = 90 * 86_400_000;

/// How long the reservation of a job lasts that starts at that time, or now.
pub(super) fn reservation_ttl(start_at: Option<Millis>, now: Millis) -> Millis {
    RESERVATION_TTL_MS + start_at.map_or(0, |start| (start - now).max(0))
}

/// Whether a job's id does not tell its queue, so that the queue is stored by the id.
pub(super) fn has_stored_queue(job: &JobRecord) -> bool {
    job.has_chosen_id() && job.id.queue_tag() != queue_tag(&job.queue)
}

impl Jobs {
    /// Stores the queue of a client-chosen id, and clears the timer at which maintenance would do it.
    pub(super) async fn save_client_job_id(&self, id: JobId, queue: &QueueName, ttl: Millis) -> StoreResult<()> {
        let mut command = redis::cmd("SET");
        command.arg(keys::client_job_id(&id)).arg(&*queue.stored()).arg("PX").arg(ttl);
        command.exec_async(&mut self.store.redis.clone()).await?;
        self.clear_client_job_id_timer(id, queue).await
    }

    /// Stores the queue of a chosen id that the process which created the job may not have stored.
    pub(crate) async fn save_missed_client_job_id(&self, id: JobId, queue: &QueueName) -> StoreResult<()> {
        let ttl = match self.locate_in_queue(id, queue).await? {
            None => return self.clear_client_job_id_timer(id, queue).await,
            Some(LocatedJob::Finished(_)) => {
                i64::try_from(self.store.settings.jobs.result_ttl.as_millis()).unwrap_or(RESERVATION_TTL_MS)
            }
            Some(LocatedJob::InRecord { due, .. }) => reservation_ttl(due, self.now().await?),
            Some(LocatedJob::InStream { .. }) => RESERVATION_TTL_MS,
        };
        self.save_client_job_id(id, queue, ttl).await
    }

    async fn clear_client_job_id_timer(&self, id: JobId, queue: &QueueName) -> StoreResult<()> {
        let mut command = redis::cmd("ZREM");
        command.arg(QueueKeys::new(queue).timers()).arg(format!("chosen_id {id}"));
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
        if has_stored_queue(job) {
            let mut command = redis::cmd("PEXPIRE");
            command.arg(keys::client_job_id(&job.id)).arg(ttl.as_millis().to_string());
            if let Err(error) = command.exec_async(&mut self.store.redis.clone()).await {
                tracing::debug!(%error, id = %job.id, "a chosen id keeps its long TTL");
            }
        }
    }
}
