//! Discards jobs that did not start by `expires_at` or did not end within `total_timeout_ms`.

use super::{Jobs, LocatedJob, finished_job::FinishedJob};
use crate::{StoreResult, connection::clock::MoveDue, keys::QueueKeys};
use common::{id::JobId, name::QueueName, time::Millis};
use model::job::JobState;

impl Jobs {
    /// Discards a job if it is expired, and schedules the next check if there is one.
    pub(crate) async fn expire_if_due(&self, queue: &QueueName, id: JobId, now: Millis) -> StoreResult<()> {
        // The job may move between the look-up and the script, which then changes nothing
        for _ in 0..8 {
            let located = self.locate_in_queue(id, queue).await?;
            let (job, running_since) = match &located {
                None | Some(LocatedJob::Finished(_)) => return self.set_expiry_timer(queue, id, None).await,
                Some(LocatedJob::InRecord { job, .. } | LocatedJob::InStream { job, holder: None, .. }) => (job, None),
                Some(LocatedJob::InStream { job, holder: Some(holder), .. }) => (job, Some(holder.started_at())),
            };
            let is_overdue = job.deadline().is_some_and(|at| at <= now);
            let is_expired = running_since.is_none() && job.is_expired(now);
            let ended = if is_overdue {
                FinishedJob::overdue(job, running_since, now)
            } else if is_expired {
                FinishedJob::expired(job, now)
            } else {
                let later = job.summary.expires_at.into_iter().chain(job.deadline()).filter(|at| *at > now).min();
                return self.set_expiry_timer(queue, id, later).await;
            };
            let Some(located) = &located else { return Ok(()) };
            if self.end_externally(located, &ended).await? {
                job.work_scope().within(|| {
                    tracing::info!(%queue, %id, is_overdue, "job discarded: its time is over");
                });
                debug_assert_eq!(ended.state, JobState::Discarded);
                return Ok(());
            }
        }
        Ok(())
    }

    async fn set_expiry_timer(&self, queue: &QueueName, id: JobId, at: Option<Millis>) -> StoreResult<()> {
        let member = format!("expire {id}");
        let Some(at) = at else {
            let mut command = redis::cmd("ZREM");
            command.arg(QueueKeys::new(queue).timers()).arg(member);
            return Ok(command.exec_async(&mut self.store.redis.clone()).await?);
        };
        self.move_due(queue, &QueueKeys::new(queue).timers(), &[member], (at, MoveDue::Always)).await
    }
}
