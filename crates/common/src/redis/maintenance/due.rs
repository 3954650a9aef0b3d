//! Scheduled and retryable jobs whose time has come become available.

use crate::{
    id::JobId,
    name::{QueueName, quoted},
    redis::{
        StoreResult,
        jobs::{From, Jobs},
        keys::QueueKeys,
    },
    time::Millis,
};

/// Jobs of a queue in one turn.
const BATCH: usize = 200;

/// Moves jobs that are due into their streams, a batch at most. `now` may be behind Redis's clock but not ahead of it.
pub(super) async fn promote(jobs: &Jobs, queue: &QueueName, now: Millis) -> StoreResult<()> {
    let keys = QueueKeys::new(queue);
    let mut command = redis::cmd("ZRANGEBYSCORE");
    command.arg(keys.due()).arg("-inf").arg(now).arg("LIMIT").arg(0).arg(BATCH);
    let members: Vec<String> = command.query_async(&mut jobs.redis.clone()).await?;
    let mut ids = Vec::with_capacity(members.len());
    for member in members {
        if let Ok(id) = member.parse::<JobId>() {
            ids.push(id);
        } else {
            // Nothing of ours, and it would be due for ever
            tracing::error!(%queue, member = quoted(&member), "not a job id among the due jobs, removed");
            redis::cmd("ZREM").arg(keys.due()).arg(member).exec_async(&mut jobs.redis.clone()).await?;
        }
    }
    let moved = jobs.make_available(queue, &ids, From::Due).await?;
    metrics::counter!("galley_jobs_promoted_total", "queue" => queue.to_string()).increment(moved);
    Ok(())
}
