//! Claims jobs: for queue-workers, which are consumers in the stream's pending list, and over HTTP, where each attempt
//! has its own token and lease.

use std::{collections::HashMap, fmt, time::Duration};

use redis::{Cmd, FromRedisValue, ScriptInvocation, Value, aio::ConnectionLike};

use super::{
    Attempt, ClaimedJob, Fence, Jobs,
    consumer::{Consumer, PULL_CONSUMER},
    enqueue,
    record::{JobFields, JobRecord},
};
use crate::connection::notification::Notification;
use crate::{
    StoreError, StoreResult, connection::dedicated::DedicatedConnection, keys::QueueKeys, script, sealing::Sealer,
};
use common::{
    id::EntryId,
    name::{Priority, QueueName, WorkerId},
    rate::Rate,
    time::Millis,
};

/// Maximum number of its own entries that a consumer lists at once.
const RECOVERY_PAGE_SIZE: usize = 100;

/// About how many bytes of jobs one answer has when Redis is nearly full.
const MAX_BYTES_UNDER_PRESSURE: usize = 512 << 10;

/// Who claims jobs.
#[derive(Debug, Clone, Copy)]
pub enum Claimant<'a> {
    /// A queue-worker.
    Worker {
        /// Its name in pending lists.
        consumer: &'a Consumer,
        /// Its name for people.
        worker: &'a WorkerId,
    },
    /// A program that pulls over HTTP.
    Pull {
        /// Its name, if it gave one.
        worker: Option<&'a WorkerId>,
        /// The requested lease.
        lease: Option<Duration>,
    },
}

/// Claimed jobs, and when more are available.
#[derive(Debug, Default)]
pub struct ClaimBatch {
    /// The jobs.
    pub jobs: Vec<ClaimedJob>,
    /// Whether and when more jobs can be claimed.
    pub availability: ClaimAvailability,
    /// Whether there may be more jobs now, which had no room in this answer.
    pub is_cut: bool,
    /// How many partitions the queue has, if it has several.
    pub partitions: Option<u16>,
}

/// Whether and when a queue has more jobs to claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClaimAvailability {
    /// The queue has no limits: as soon as jobs arrive.
    #[default]
    Unlimited,
    /// The queue has limits, which allow more: claim without blocking, since a blocking read bypasses the limits.
    Limited,
    /// The limits allow no more for this long.
    RetryAfter(Duration),
    /// The queue is paused.
    Paused,
}

impl Jobs {
    /// Claims up to `max` jobs of a queue and about four mebibytes, highest priority first. `priorities` caches the queue's streams; it is read
    /// again when it turns out to be stale.
    ///
    /// # Errors
    /// After [`StoreError::Unavailable`] jobs may have been claimed nevertheless: a queue-worker recovers them with
    /// [`Jobs::recover_claims`], pulled ones are released as soon as Redis answers again.
    pub async fn claim(
        &self,
        queue: &QueueName,
        priorities: &mut Vec<Priority>,
        max: usize,
        by: Claimant<'_>,
    ) -> StoreResult<ClaimBatch> {
        // A queue may get a new priority between reading them and claiming, but hardly twice
        for _ in 0..3 {
            if priorities.is_empty() {
                *priorities = self.priorities(queue).await?;
            }
            if priorities.is_empty() || max == 0 {
                return Ok(ClaimBatch::default());
            }
            let tokens: Vec<String> = match by {
                Claimant::Worker { .. } => Vec::new(),
                Claimant::Pull { .. } => (0..max).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect(),
            };
            let call = self.build_claim_call(queue, priorities, max, by, &tokens);
            let reply = call.invoke_async(&mut self.store.redis.clone()).await.map_err(StoreError::from);
            let reply: Value = match self.claim_budget.observe(reply) {
                Err(error @ StoreError::Unavailable(_)) if !tokens.is_empty() => {
                    self.release_lost_claims(queue, tokens);
                    return Err(error);
                }
                reply => reply?,
            };
            if let Some(mut claimed) = parse_claim_reply(self.sealer(), queue, priorities, reply)? {
                self.load_claimed(&mut claimed.jobs).await?;
                if matches!(by, Claimant::Pull { .. }) {
                    self.release_without_room(&mut claimed).await;
                }
                claimed.partitions = self.note_claimed_partitions(queue, claimed.partitions).await;
                return Ok(claimed);
            }
            priorities.clear();
        }
        Ok(ClaimBatch::default())
    }

    fn build_claim_call(
        &self,
        queue: &QueueName,
        priorities: &[Priority],
        max: usize,
        by: Claimant<'_>,
        tokens: &[String],
    ) -> ScriptInvocation<'static> {
        let keys = QueueKeys::new(queue);
        let mut call = script::CLAIM.prepare_invoke();
        call.key(keys.priorities()).key(keys.active()).key(keys.leases()).key(keys.control()).key(keys.starts());
        for priority in priorities {
            call.key(keys.stream(*priority));
        }
        let (consumer, mode, lease, default, worker) = match by {
            Claimant::Worker { consumer, worker } => (consumer.name(), "worker", None, consumer.lease(), Some(worker)),
            Claimant::Pull { worker, lease } => {
                (PULL_CONSUMER, "pull", lease, self.store.settings.jobs.pull_lease, worker)
            }
        };
        call.arg(consumer).arg(max).arg(mode).arg(lease.map_or(0, duration_millis)).arg(duration_millis(default));
        call.arg(worker.map_or("", WorkerId::as_str))
            .arg(self.store.redis.topics().notifications())
            .arg(Notification::DueChanged(queue.clone()).encode());
        let limits = self.store.settings.queue(queue).copied().unwrap_or_default();
        let rate = limits.rate.unwrap_or(Rate::new(0, 1));
        call.arg(limits.concurrency.map_or(-1, i64::from)).arg(rate.limit).arg(rate.period_ms);
        call.arg(rate.burst).arg(u8::from(rate.is_strict)).arg(limits.priority_aging.map_or(0, duration_millis));
        let (timeout, max_timeout) = self.attempt_timeouts(queue);
        if max_timeout.as_millis() < u128::from(model::job::MAX_TIMEOUT_MS) {
            call.arg(format!("{} {}", duration_millis(timeout), duration_millis(max_timeout)));
        } else {
            call.arg(duration_millis(timeout));
        }
        call.arg(self.claim_bytes()).arg(self.claim_budget.max_read()).arg(self.store.redis.lease_start(keys.prefix()));
        for priority in priorities {
            call.arg(priority.get());
        }
        call.arg(tokens);
        call
    }

    /// Gives pulled jobs back whose checkpoints and signals have no room in one answer, beside a first one. The script that claimed them
    /// knows only the jobs.
    async fn release_without_room(&self, claimed: &mut ClaimBatch) {
        let (budget, mut bytes) = (self.claim_bytes(), 0);
        let has_no_room = |claimed: &ClaimedJob| {
            let size = claimed.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.len())
                + claimed.signals.iter().map(|signal| signal.data.len()).sum::<usize>();
            let is_first = bytes == 0;
            bytes += size;
            size > 0 && !is_first && bytes > budget
        };
        let Some(fitting) = claimed.jobs.iter().position(has_no_room) else { return };
        claimed.is_cut = true;
        for claimed in claimed.jobs.split_off(fitting) {
            let fence = Fence::Pull { token: claimed.token.clone(), worker: None };
            if self.release(Attempt::of(&claimed, &fence)).await.is_err() {
                self.release_lost_claims(&claimed.job.queue, claimed.token.into_iter().collect());
            }
        }
    }

    /// The bytes after which an answer gets no more jobs. Redis holds the answer until it is sent: less when it is
    /// nearly full.
    pub(super) fn claim_bytes(&self) -> usize {
        let bytes = self.claim_budget.bytes();
        if self.store.redis.memory().is_under_pressure() { bytes.min(MAX_BYTES_UNDER_PRESSURE) } else { bytes }
    }

    /// Some of the jobs that Redis holds for a queue-worker on a stream and that `is_new` accepts: those claimed in an
    /// answer that was lost. Call again, when these are known, until there are none.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn recover_claims(
        &self,
        queue: &QueueName,
        priority: Priority,
        consumer: &Consumer,
        is_new: impl Fn(EntryId) -> bool,
    ) -> StoreResult<Vec<ClaimedJob>> {
        let stream = QueueKeys::new(queue).stream(priority);
        let mut after = String::from("-");
        loop {
            let mut command = redis::cmd("XPENDING");
            command.arg(&stream).arg("workers").arg(&after).arg("+").arg(RECOVERY_PAGE_SIZE).arg(consumer.name());
            let page: Vec<(String, Value, Value, Value)> = command.query_async(&mut self.store.redis.clone()).await?;
            let Some((last, ..)) = page.last() else { return Ok(Vec::new()) };
            after = format!("({last}");
            let is_lost = |entry: &String| entry.parse().is_ok_and(&is_new);
            let lost: Vec<String> = page.into_iter().map(|(entry, ..)| entry).filter(is_lost).collect();
            let mut rest = &lost[..];
            while !rest.is_empty() {
                let (looked_at, entries) = self.read_claimed(&stream, consumer, rest).await?;
                // Its result may have been recorded since it was listed, and then only memory lacks it
                let now = self.estimated_now();
                let claimed = parse_claimed_entries(self.sealer(), queue, priority, entries, now);
                let mut claimed: Vec<ClaimedJob> = claimed.filter(|claimed| is_new(claimed.entry)).collect();
                if !claimed.is_empty() {
                    self.load_claimed(&mut claimed).await?;
                    return Ok(claimed);
                }
                rest = &rest[looked_at.clamp(1, rest.len())..];
            }
        }
    }

    /// Reads those of the entries that a consumer still has, within the budget; and how many it looked at.
    async fn read_claimed(
        &self,
        stream: &str,
        consumer: &Consumer,
        entries: &[String],
    ) -> StoreResult<(usize, Vec<(String, Value)>)> {
        let mut call = script::READ_CLAIMED.key(stream);
        call.arg(consumer.name()).arg(self.claim_bytes()).arg(entries);
        self.claim_budget.observe(call.invoke_async(&mut self.store.redis.clone()).await.map_err(StoreError::from))
    }

    /// Waits until a job arrives on one of the streams and claims it. If several arrive between the last claim and
    /// this read, it claims one of each stream.
    ///
    /// # Errors
    /// As [`Jobs::claim`]; `Damaged` also when a stream or its group is gone.
    pub async fn claim_blocking(
        &self,
        connection: &mut DedicatedConnection,
        streams: &[(QueueName, Priority)],
        consumer: &Consumer,
        block: Duration,
    ) -> StoreResult<Vec<ClaimedJob>> {
        let reply: Value = connection.query(&blocking_read_command(streams, consumer, block)).await?;
        let (mut by_stream, started_at) = (parse_streams_reply(reply)?, self.estimated_now());
        let arrived = streams.iter().flat_map(|(queue, priority)| {
            let entries = by_stream.remove(&QueueKeys::new(queue).stream(*priority)).unwrap_or_default();
            parse_claimed_entries(self.sealer(), queue, *priority, entries, started_at)
        });
        let mut arrived: Vec<ClaimedJob> = arrived.collect();
        self.load_claimed(&mut arrived).await?;
        Ok(arrived)
    }
}

/// The last claimed entry of a stream; `0-0` if there is none.
pub(super) async fn last_delivered_id(redis: &mut impl ConnectionLike, stream: &str) -> StoreResult<String> {
    last_delivered_of(redis::cmd("XINFO").arg("GROUPS").arg(stream).query_async(redis).await?)
}

/// The same from what Redis says of the groups of a stream.
pub(super) fn last_delivered_of(groups: Value) -> StoreResult<String> {
    let groups = Vec::<HashMap<String, Value>>::from_redis_value(groups).map_err(malformed_reply)?;
    let last = groups.into_iter().find_map(|mut group| group.remove("last-delivered-id"));
    last.map_or(Ok("0-0".to_owned()), String::from_redis_value).map_err(malformed_reply)
}

pub(crate) fn duration_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn blocking_read_command(streams: &[(QueueName, Priority)], consumer: &Consumer, block: Duration) -> Cmd {
    let mut command = redis::cmd("XREADGROUP");
    command
        .arg("GROUP")
        .arg("workers")
        .arg(consumer.name())
        .arg("COUNT")
        .arg(1)
        .arg("BLOCK")
        .arg(duration_millis(block))
        .arg("STREAMS");
    for (queue, priority) in streams {
        command.arg(QueueKeys::new(queue).stream(*priority));
    }
    for _ in streams {
        command.arg(">");
    }
    command
}

/// Parses the reply of `claim.lua`; none if `priorities` was stale.
fn parse_claim_reply(
    sealer: &Sealer,
    queue: &QueueName,
    priorities: &[Priority],
    reply: Value,
) -> StoreResult<Option<ClaimBatch>> {
    type ClaimReplyEntry = (usize, String, Value, String);
    let mut parts = Vec::<Value>::from_redis_value(reply).map_err(malformed_reply)?.into_iter();
    if i64::from_redis_value(parts.next().unwrap_or_default()).map_err(malformed_reply)? == 0 {
        return Ok(None);
    }
    let started_at = Millis::from_redis_value(parts.next().unwrap_or_default()).map_err(malformed_reply)?;
    let jobs = Vec::<ClaimReplyEntry>::from_redis_value(parts.next().unwrap_or_default()).map_err(malformed_reply)?;
    let claimed = jobs.into_iter().filter_map(|(stream, entry, fields, token)| {
        let priority = *priorities.get(stream.wrapping_sub(1))?;
        let (job, entry) = read_job_entry(sealer, queue, priority, &entry, fields)?;
        let token = Some(token).filter(|token| !token.is_empty() && token != "-");
        Some(ClaimedJob::new(job, entry, token, started_at))
    });
    let jobs = claimed.collect();
    let again = i64::from_redis_value(parts.next().unwrap_or_default()).map_err(malformed_reply)?;
    let more = match again {
        -1 => ClaimAvailability::Paused,
        -2 => ClaimAvailability::Limited,
        0 => ClaimAvailability::Unlimited,
        millis => ClaimAvailability::RetryAfter(Duration::from_millis(u64::try_from(millis).unwrap_or(1000))),
    };
    let is_cut = i64::from_redis_value(parts.next().unwrap_or_default()).map_err(malformed_reply)? == 1;
    let partitions = parts.next().map(u16::from_redis_value).transpose().map_err(malformed_reply)?;
    Ok(Some(ClaimBatch { jobs, availability: more, is_cut, partitions }))
}

/// Parses a job entry. Another program or a later version may have written one that cannot be parsed. It stays where
/// it is and is logged each time, and does not block the others.
pub(crate) fn read_job_entry(
    sealer: &Sealer,
    queue: &QueueName,
    priority: Priority,
    entry: &str,
    fields: Value,
) -> Option<(JobRecord, EntryId)> {
    let read = enqueue::parse_entry_id(entry).and_then(|id| {
        // Parse each entry separately: one that is not UTF-8 must not fail the others
        let fields = JobFields::from_redis_value(fields).map_err(malformed_reply)?;
        Ok((JobRecord::from_entry(sealer, queue, priority, id, fields)?, id))
    });
    read.inspect_err(|error| {
        tracing::error!(%queue, %priority, entry, %error, "a job cannot be read");
        metrics::counter!("galley_damaged_jobs_total", "queue" => queue.to_string()).increment(1);
    })
    .ok()
}

/// Parses the reply of XREADGROUP or XREAD: entries by stream, empty if there were none.
pub(crate) fn parse_streams_reply(reply: Value) -> StoreResult<HashMap<String, Vec<(String, Value)>>> {
    Ok(Option::from_redis_value(reply).map_err(malformed_reply)?.unwrap_or_default())
}

/// The jobs in the entries of a stream. A deleted entry has no fields and is left out.
pub(super) fn parse_claimed_entries(
    sealer: &Sealer,
    queue: &QueueName,
    priority: Priority,
    entries: Vec<(String, Value)>,
    started_at: Millis,
) -> impl Iterator<Item = ClaimedJob> {
    entries.into_iter().filter(|(_, fields)| *fields != Value::Nil).filter_map(move |(entry, fields)| {
        let (job, entry) = read_job_entry(sealer, queue, priority, &entry, fields)?;
        Some(ClaimedJob::new(job, entry, None, started_at))
    })
}

pub(crate) fn malformed_reply(error: impl fmt::Display) -> StoreError {
    StoreError::damaged(format!("an answer of an unexpected shape: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_carries_its_lease() {
        let consumer = Consumer::new(Duration::from_millis(1500));
        assert_eq!(Consumer::parse(consumer.name()), Some(consumer.clone()));
        assert_ne!(Consumer::new(Duration::from_millis(1500)), consumer);
        for other in [PULL_CONSUMER, "", "w-", "w-x-1"] {
            assert_eq!(Consumer::parse(other), None, "{other}");
        }
    }
}
