//! Settles attempts whose lease or time limit is over: pulled ones, and jobs with their own lease.
//!
//! An expired lease means that the worker died: the job is available again at once. An exceeded `timeout_ms` is an
//! ordinary failure, and the retry policy applies.

use std::time::Duration;

use super::{OutageGrace, maintenance_store::MaintenanceStore, reschedule_on_error};
use crate::{
    StoreResult,
    connection::clock::MoveDue,
    jobs::{ActiveAttempt, ClaimedJob, Fence, JobStreamEntry, Jobs, record_lost},
    keys::{self, QueueKeys},
};
use common::{name::QueueName, time::Millis};
use model::job::{AttemptError, RetryAdvice};

/// Maximum number of attempts of a queue in one turn.
pub(super) const BATCH: usize = 100;
/// When the lease of a job that cannot be read is looked at again.
const UNREADABLE_PAUSE_MS: Millis = 60_000;

/// Settles attempts whose lease expired, a batch at most. Answers with the time until it makes sense to look again, if
/// some were spared because Redis was away or its clock was set.
pub(super) async fn reap_expired(
    store: &impl MaintenanceStore,
    queue: &QueueName,
    outage_grace: &mut OutageGrace,
) -> StoreResult<Duration> {
    let now = outage_grace.observe(store.now()).await?;
    let mut spared = 0;
    for lease in store.expired_leases(queue, now).await? {
        let Some((started_at, attempt)) = store.leased_attempt(queue, &lease, now).await? else { continue };
        match outage_grace.remaining_grace(now - started_at, store.clock_steps()) {
            0 => store.settle_expired(queue, lease, attempt, now).await?,
            wait => spared = spared.max(wait),
        }
    }
    Ok(Duration::from_millis(spared.unsigned_abs()))
}

/// Settles an attempt whose lease or time limit is over, or reschedules that after an error.
pub(super) async fn settle(
    jobs: &Jobs,
    queue: &QueueName,
    lease: String,
    attempt: ReadAttempt,
    now: Millis,
) -> StoreResult<()> {
    let settled = reap_one(jobs, &attempt.claimed, &attempt.attempt, now).await;
    reschedule_on_error(jobs, queue, (&QueueKeys::new(queue).leases(), lease), settled).await
}

async fn reap_one(jobs: &Jobs, claimed: &ClaimedJob, attempt: &ActiveAttempt, now: Millis) -> StoreResult<()> {
    let fence = Fence::ExpiredLease { token: attempt.token.clone() };
    let (queue, id) = (&claimed.job.queue, claimed.job.id);
    if attempt.deadline > 0 && attempt.deadline <= now {
        let limit = attempt.deadline - attempt.started_at;
        let message = format!("the attempt took longer than its timeout of {limit} ms");
        let failure = AttemptError::new("timeout", "timeout", &message, claimed.job.history.current_attempt(), now);
        record_lost(claimed, "timeout");
        let recorded = jobs.fail(claimed, &fence, failure, RetryAdvice::ByPolicy).await?;
        claimed.job.work_scope().within(|| {
            tracing::info!(event = "attempt.timed_out", %queue, %id, outcome = recorded.as_str(), "attempt timed out");
        });
    } else {
        let settled = jobs.worker_lost(claimed, &fence).await?;
        let worker = &attempt.worker;
        claimed.job.work_scope().within(|| {
            tracing::warn!(event = "lease.expired", %queue, %id, worker, ?settled, "lease expired");
        });
        metrics::counter!("galley_leases_lost_total", "queue" => queue.to_string()).increment(1);
    }
    Ok(())
}

/// An attempt and its job.
pub(super) struct ReadAttempt {
    claimed: Box<ClaimedJob>,
    attempt: ActiveAttempt,
}

/// The attempt of a lease, and when it started; none if it does not exist any more or cannot be read here.
pub(super) async fn read_attempt(
    jobs: &Jobs,
    queue: &QueueName,
    lease: &str,
    now: Millis,
) -> StoreResult<Option<(Millis, ReadAttempt)>> {
    let keys = QueueKeys::new(queue);
    let Some((priority, entry)) = keys::parse_attempt_name(lease) else {
        return remove_lease(jobs, &keys, lease).await.map(|()| None);
    };
    let text: Option<String> =
        redis::cmd("HGET").arg(keys.active()).arg(lease).query_async(&mut jobs.store.redis.clone()).await?;
    let Some(attempt) = text.as_deref().and_then(ActiveAttempt::parse) else {
        return remove_lease(jobs, &keys, lease).await.map(|()| None);
    };
    match jobs.read_entry(queue, priority, entry).await? {
        JobStreamEntry::Job(job) => {
            let claimed = Box::new(ClaimedJob::new(*job, entry, None, attempt.started_at));
            Ok(Some((attempt.started_at, ReadAttempt { claimed, attempt })))
        }
        JobStreamEntry::Missing => remove_lease(jobs, &keys, lease).await.map(|()| None),
        // A process that can read it settles it: one with the key, if it is sealed
        JobStreamEntry::Unreadable => {
            let at = (now + UNREADABLE_PAUSE_MS, MoveDue::Always);
            jobs.move_due(queue, &keys.leases(), &[lease.to_owned()], at).await.map(|()| None)
        }
    }
}

/// A lease without an attempt: its job ended, or somebody changed the data.
async fn remove_lease(jobs: &Jobs, keys: &QueueKeys, member: &str) -> StoreResult<()> {
    let mut pipeline = redis::pipe();
    pipeline.cmd("ZREM").arg(keys.leases()).arg(member).cmd("HDEL").arg(keys.active()).arg(member);
    Ok(pipeline.exec_async(&mut jobs.store.redis.clone()).await?)
}
