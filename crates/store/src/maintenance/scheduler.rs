//! Makes scheduled and retryable jobs available when they are due.

use super::reschedule_on_error;
use crate::{StoreError, StoreResult, jobs::Jobs, keys::QueueKeys, rate_limits::WaitSet};
use common::{
    id::JobId,
    name::{QueueName, quoted},
    time::Millis,
};

/// Maximum number of jobs of a queue in one turn.
const BATCH: usize = 200;

/// Moves due jobs into their streams, at most a batch. `now` may be behind Redis's clock but not ahead of it.
pub(super) async fn promote(jobs: &Jobs, queue: &QueueName, now: Millis) -> StoreResult<()> {
    let keys = QueueKeys::new(queue);
    let members = jobs.store.redis.due_members_with_times(&keys.due(), now, BATCH).await?;
    let (mut ids, mut due_times) = (Vec::with_capacity(members.len()), Vec::with_capacity(members.len()));
    for (member, due_at) in members {
        if let Ok(id) = member.parse::<JobId>() {
            ids.push(id);
            due_times.push(due_at);
        } else {
            // Not Galley's, and it would be due for ever
            tracing::error!(%queue, member = quoted(&member), "not a job id among the due jobs, removed");
            redis::cmd("ZREM").arg(keys.due()).arg(member).exec_async(&mut jobs.store.redis.clone()).await?;
        }
    }
    let moved = match jobs.make_available(queue, &ids, WaitSet::Due).await {
        // One of them is the cause
        Err(StoreError::Damaged(_) | StoreError::Refused(_)) => promote_each(jobs, queue, &ids).await?,
        moved => moved?,
    };
    metrics::counter!("galley_jobs_promoted_total", "queue" => queue.to_string()).increment(moved);
    record_lateness(&due_times, jobs.estimated_now());
    Ok(())
}

fn record_lateness(due_times: &[Millis], now: Millis) {
    let lateness = metrics::histogram!("galley_schedule_lateness_seconds");
    for due_at in due_times {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds are far below 2^52")]
        lateness.record((now - due_at).max(0) as f64 / 1000.0);
    }
}

async fn promote_each(jobs: &Jobs, queue: &QueueName, ids: &[JobId]) -> StoreResult<u64> {
    let (due, mut all) = (QueueKeys::new(queue).due(), 0);
    for id in ids {
        let moved = jobs.make_available(queue, &[*id], WaitSet::Due).await;
        all += moved.as_ref().copied().unwrap_or(0);
        reschedule_on_error(jobs, queue, (&due, id.to_string()), moved.map(drop)).await?;
    }
    Ok(all)
}
