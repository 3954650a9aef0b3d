//! What is to be seen to at a time: jobs that expire, what follows the end of a job if whoever ended it died, and limits
//! that allow more.

use super::put_off;
use crate::{StoreResult, jobs::Jobs, keys::QueueKeys};
use common::{
    id::JobId,
    name::{LimitKey, QueueName, quoted},
};

/// Timers of a queue in one turn.
const BATCH: usize = 100;

/// A timer.
enum Timer {
    Expire(JobId),
    FollowUp(JobId),
    Lane(LimitKey),
}

impl Timer {
    fn parse(member: &str) -> Option<Self> {
        let (kind, rest) = member.split_once(' ')?;
        match kind {
            "expire" => rest.parse().ok().map(Self::Expire),
            "after" => rest.parse().ok().map(Self::FollowUp),
            "lane" => rest.parse().ok().map(Self::Lane),
            _ => None,
        }
    }
}

/// Sees to what is due, a batch at most.
pub(super) async fn run(jobs: &Jobs, queue: &QueueName) -> StoreResult<()> {
    let timers = QueueKeys::new(queue).timers();
    let now = jobs.now().await?;
    for member in jobs.redis.due_by(&timers, now, BATCH).await? {
        let result = match Timer::parse(&member) {
            Some(Timer::Expire(id)) => jobs.expire_if_due(queue, id, now).await,
            Some(Timer::FollowUp(id)) => jobs.run_missed_follow_up(queue, id).await,
            Some(Timer::Lane(key)) => jobs.admit(queue, &key).await,
            None => {
                // Nothing of ours, and it would be due for ever
                tracing::error!(%queue, member = quoted(&member), "not a timer among the timers, removed");
                redis::cmd("ZREM").arg(&timers).arg(&member).exec_async(&mut jobs.redis.clone()).await?;
                Ok(())
            }
        };
        put_off(jobs, &timers, &member, result).await?;
    }
    Ok(())
}
