//! Handles due timers: job expiry, follow-ups of ended jobs and ids of new ones whose process
//! died, and limits that allow more.

use super::reschedule_on_error;
use crate::{StoreResult, jobs::Jobs, keys::QueueKeys};
use common::{
    id::JobId,
    name::{LimitKey, QueueName, quoted},
};

/// Maximum number of timers of a queue in one turn.
const BATCH: usize = 100;

/// A timer.
enum QueueTimer {
    Expire(JobId),
    FollowUp(JobId),
    KeyQueue(LimitKey),
    ChosenId(JobId),
}

impl QueueTimer {
    fn parse(member: &str) -> Option<Self> {
        let (kind, rest) = member.split_once(' ')?;
        match kind {
            "expire" => rest.parse().ok().map(Self::Expire),
            "follow_up" => rest.parse().ok().map(Self::FollowUp),
            "chosen_id" => rest.parse().ok().map(Self::ChosenId),
            "key" => rest.parse().ok().map(Self::KeyQueue),
            _ => None,
        }
    }
}

/// Handles due timers, at most a batch.
pub(super) async fn run(jobs: &Jobs, queue: &QueueName) -> StoreResult<()> {
    let timers = QueueKeys::new(queue).timers();
    let now = jobs.now().await?;
    for member in jobs.store.redis.due_members(&timers, now, BATCH).await? {
        let result = match QueueTimer::parse(&member) {
            Some(QueueTimer::Expire(id)) => jobs.expire_if_due(queue, id, now).await,
            Some(QueueTimer::FollowUp(id)) => jobs.run_missed_follow_up(queue, id).await,
            Some(QueueTimer::ChosenId(id)) => jobs.save_missed_client_job_id(id, queue).await,
            Some(QueueTimer::KeyQueue(key)) => jobs.admit(queue, &key).await,
            None => {
                // Not Galley's, and it would be due for ever
                tracing::error!(%queue, member = quoted(&member), "not a timer among the timers, removed");
                redis::cmd("ZREM").arg(&timers).arg(&member).exec_async(&mut jobs.store.redis.clone()).await?;
                Ok(())
            }
        };
        reschedule_on_error(jobs, queue, (&timers, member), result).await?;
    }
    Ok(())
}
