//! Settles attempts whose lease or time limit is over: pulled ones, and jobs with their own lease.
//!
//! An expired lease means that the worker died: the job is available again at once. An exceeded `timeout_ms` is an
//! ordinary failure, and the retry policy applies.

use std::time::Duration;

use super::{OutageGrace, reschedule_on_error};
use crate::{
    StoreResult,
    connection::clock::MoveDue,
    jobs::{ActiveAttempt, ClaimedJob, Fence, JobStreamEntry, Jobs, record_lost},
    keys::{self, QueueKeys},
};
use common::{name::QueueName, time::Millis};
use model::job::{AttemptError, RetryAdvice};

/// Maximum number of attempts of a queue in one turn.
const BATCH: usize = 100;
/// When the lease of a job that cannot be read is looked at again.
const UNREADABLE_PAUSE_MS: Millis = 60_000;

/// Settles attempts whose lease expired, a batch at most. Answers with the time until it makes sense to look again, if
/// some were spared because Redis was away or its clock was set.
pub(super) async fn reap_expired(
    jobs: &Jobs,
    queue: &QueueName,
    outage_grace: &mut OutageGrace,
) -> StoreResult<Duration> {
    let keys = QueueKeys::new(queue);
    let now = outage_grace.observe(jobs.now()).await?;
    let mut spared = 0;
    for member in jobs.store.redis.due_members(&keys.leases(), now, BATCH).await? {
        let (claimed, attempt) = match read_attempt(jobs, queue, &keys, &member).await? {
            LeasedAttempt::Found(claimed, attempt) => (*claimed, attempt),
            LeasedAttempt::Gone => {
                remove_member(jobs, &keys, &member).await?;
                continue;
            }
            // A process that can read it settles it: one with the key, if it is sealed
            LeasedAttempt::Unreadable => {
                jobs.move_due(queue, &keys.leases(), &[member], (now + UNREADABLE_PAUSE_MS, MoveDue::Always)).await?;
                continue;
            }
        };
        match outage_grace.remaining_grace(now - attempt.started_at) {
            0 => {
                let settled = reap_one(jobs, &claimed, &attempt, now).await;
                reschedule_on_error(jobs, queue, (&keys.leases(), member), settled).await?;
            }
            wait => spared = spared.max(wait),
        }
    }
    Ok(Duration::from_millis(spared.unsigned_abs()))
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

/// What a lease is of.
enum LeasedAttempt {
    Found(Box<ClaimedJob>, ActiveAttempt),
    /// The job or the attempt does not exist.
    Gone,
    /// The job cannot be read here, which was logged.
    Unreadable,
}

/// The job and the attempt of a lease.
async fn read_attempt(jobs: &Jobs, queue: &QueueName, keys: &QueueKeys, member: &str) -> StoreResult<LeasedAttempt> {
    let Some((priority, entry)) = keys::parse_attempt_name(member) else { return Ok(LeasedAttempt::Gone) };
    let text: Option<String> =
        redis::cmd("HGET").arg(keys.active()).arg(member).query_async(&mut jobs.store.redis.clone()).await?;
    let Some(attempt) = text.as_deref().and_then(ActiveAttempt::parse) else {
        return Ok(LeasedAttempt::Gone);
    };
    let job = match jobs.read_entry(queue, priority, entry).await? {
        JobStreamEntry::Job(job) => job,
        JobStreamEntry::Missing => return Ok(LeasedAttempt::Gone),
        JobStreamEntry::Unreadable => return Ok(LeasedAttempt::Unreadable),
    };
    let claimed = ClaimedJob::new(*job, entry, None, attempt.started_at);
    Ok(LeasedAttempt::Found(Box::new(claimed), attempt))
}

/// A lease without an attempt: its job ended, or somebody changed the data.
async fn remove_member(jobs: &Jobs, keys: &QueueKeys, member: &str) -> StoreResult<()> {
    let mut pipeline = redis::pipe();
    pipeline.cmd("ZREM").arg(keys.leases()).arg(member).cmd("HDEL").arg(keys.active()).arg(member);
    Ok(pipeline.exec_async(&mut jobs.store.redis.clone()).await?)
}
