//! Cancels the waiting jobs of a queue, a bounded number at a time. Each is cancelled like any other: it can be looked
//! up, and its follow-up runs.
//!
//! Jobs are taken from the tail, page by page: workers and the leader take from the head meanwhile, and a purge that
//! raced them there would cancel nothing and never end.

use std::{fmt, str::FromStr};

use futures_util::{StreamExt, TryStreamExt, stream};
use redis::{FromRedisValue, Value};

use super::{JobRecord, Jobs, claim::last_delivered_id, enqueue::parse_entry_id};
use crate::{StoreError, StoreResult, connection::clock::score_to_millis, keys::QueueKeys};
use common::{
    id::JobId,
    name::{LimitKey, Priority, QueueName},
    time::Millis,
};
use model::job::JobState;

/// Jobs cancelled concurrently: their scripts pipeline on the shared connection.
const CONCURRENCY: usize = 32;
/// Maximum number of entries in one read: each may be as large as a request body.
const ENTRY_PAGE_SIZE: usize = 20;
/// Maximum number of scheduled, retryable or pending jobs whose states are read at once.
const SET_PAGE_SIZE: usize = 200;
/// Maximum number of scheduled and retryable jobs that one request looks at.
const MAX_SCANNED: usize = 100_000;

/// Which jobs to cancel.
#[derive(Debug, Clone)]
pub struct PurgeRequest {
    /// Their states: available, scheduled, retryable or pending.
    pub states: Vec<JobState>,
    /// Maximum number of jobs.
    pub limit: usize,
    /// Where an earlier request ended, if it had more to do.
    pub after: Option<PurgeCursor>,
}

/// Where a purge goes on: behind that scheduled or retryable job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PurgeCursor {
    due_at: Millis,
    id: JobId,
    partition: u16,
}

/// The result of a purge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PurgeResult {
    /// Number of cancelled jobs.
    pub count: usize,
    /// Whether there may be more.
    pub has_more: bool,
    /// Where the next request should go on, if not at the start.
    pub next: Option<PurgeCursor>,
}

impl fmt::Display for PurgeCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.due_at, self.id)?;
        if self.partition > 0 { write!(f, "/{}", self.partition) } else { Ok(()) }
    }
}

impl FromStr for PurgeCursor {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (due_at, id) = text.split_once('/').ok_or(())?;
        let (id, partition) = id.split_once('/').unwrap_or((id, "0"));
        let partition = partition.parse().map_err(drop)?;
        Ok(Self { due_at: due_at.parse().map_err(drop)?, id: id.parse().map_err(drop)?, partition })
    }
}

impl Jobs {
    /// Cancels waiting jobs of a queue, one partition after the other.
    ///
    /// # Errors
    /// Redis is unavailable: some may have been cancelled.
    pub async fn purge(&self, queue: &QueueName, request: &PurgeRequest) -> StoreResult<PurgeResult> {
        let first = request.after.as_ref().map_or(0, |after| after.partition);
        let left = self.read_partitions(queue).await?.into_iter().filter(|one| one.partition_number() >= first);
        let mut purged = PurgeResult { count: 0, has_more: false, next: None };
        let mut request = request.clone();
        for partition in left {
            let some = self.purge_partition(&partition, &request).await?;
            purged.count += some.count;
            (request.limit, request.after) = (request.limit - some.count.min(request.limit), None);
            if some.has_more {
                let next = some.next.map(|next| PurgeCursor { partition: partition.partition_number(), ..next });
                // From the start, unless what is before was done: the next request finds nothing there
                return Ok(PurgeResult { has_more: true, next, ..purged });
            }
        }
        Ok(purged)
    }

    async fn purge_partition(&self, queue: &QueueName, request: &PurgeRequest) -> StoreResult<PurgeResult> {
        let keys = QueueKeys::new(queue);
        let redis = self.store.redis.pooled_connection().await?;
        let mut purge = Purge { jobs: self, keys: &keys, request, redis, count: 0, next: None };
        // A request that goes on is done with the others
        if request.states.contains(&JobState::Available) && request.after.is_none() {
            // First: the end of a job in a stream admits the next one of its key
            purge.cancel_key_queues().await?;
            for priority in self.priorities(queue).await? {
                purge.cancel_stream(queue, priority).await?;
            }
        }
        if request.states.contains(&JobState::Pending) && request.after.is_none() {
            purge.cancel_members(&keys.pending()).await?;
        }
        if request.states.contains(&JobState::Scheduled) || request.states.contains(&JobState::Retryable) {
            purge.cancel_due().await?;
        }
        Ok(PurgeResult {
            count: purge.count,
            has_more: purge.next.is_some() || purge.remaining() == 0,
            next: purge.next,
        })
    }
}

/// A purge under way. It may read much, so it uses a separate connection.
struct Purge<'a> {
    jobs: &'a Jobs,
    keys: &'a QueueKeys,
    request: &'a PurgeRequest,
    redis: crate::connection::pool::PooledConnection,
    count: usize,
    next: Option<PurgeCursor>,
}

impl Purge<'_> {
    /// How many more to cancel.
    fn remaining(&self) -> usize {
        self.request.limit.saturating_sub(self.count)
    }

    /// Cancels jobs, at most as many as remain; returns how many are gone. Others ended or started meanwhile.
    async fn cancel(&mut self, ids: &[JobId]) -> StoreResult<usize> {
        let jobs = self.jobs;
        let cancelled: Vec<bool> = stream::iter(ids.iter().copied().take(self.remaining()))
            .map(|id| async move { jobs.cancel(id).await.map(|outcome| outcome.is_ok()) })
            .buffer_unordered(CONCURRENCY)
            .try_collect()
            .await?;
        let count = cancelled.into_iter().filter(|done| *done).count();
        self.count += count;
        Ok(count)
    }

    /// Cancels the jobs of a stream that were never claimed.
    async fn cancel_stream(&mut self, queue: &QueueName, priority: Priority) -> StoreResult<()> {
        let stream = self.keys.stream(priority);
        let mut newest = String::from("+");
        while self.remaining() > 0 {
            let claimed = match last_delivered_id(&mut self.redis, &stream).await {
                // The stream is gone, or no stream
                Err(StoreError::Refused(_)) => break,
                claimed => claimed?,
            };
            let mut command = redis::cmd("XREVRANGE");
            command.arg(&stream).arg(newest).arg(format!("({claimed}")).arg("COUNT").arg(ENTRY_PAGE_SIZE);
            let entries: Vec<(String, Value)> = command.query_async(&mut self.redis).await?;
            let Some((oldest, _)) = entries.last() else { break };
            newest = format!("({oldest}");
            let id = |(entry, fields): (String, Value)| {
                let fields = super::record::JobFields::from_redis_value(fields).ok()?;
                let entry = parse_entry_id(&entry).ok()?;
                JobRecord::from_entry(self.jobs.sealer(), queue, priority, entry, fields).ok().map(|job| job.id)
            };
            let ids: Vec<JobId> = entries.into_iter().filter_map(id).collect();
            self.cancel(&ids).await?;
        }
        Ok(())
    }

    /// Cancels jobs in key queues. There may be as many keys as jobs.
    async fn cancel_key_queues(&mut self) -> StoreResult<()> {
        let mut cursor = 0_u64;
        while self.remaining() > 0 {
            let mut command = redis::cmd("SSCAN");
            command.arg(self.keys.waiting_keys()).arg(cursor).arg("COUNT").arg(SET_PAGE_SIZE);
            let (next, waiting_keys): (u64, Vec<String>) = command.query_async(&mut self.redis).await?;
            for key in waiting_keys.iter().filter_map(|key| key.parse::<LimitKey>().ok()) {
                self.cancel_members(&self.keys.key_queue(&key)).await?;
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        Ok(())
    }

    async fn cancel_members(&mut self, set: &str) -> StoreResult<()> {
        let mut kept = 0;
        while self.remaining() > 0 {
            let page = self.page(set, kept).await?;
            if page.is_empty() {
                break;
            }
            let ids: Vec<JobId> = page.iter().filter_map(|(id, _)| id.parse().ok()).collect();
            kept += page.len().min(self.remaining()) - self.cancel(&ids).await?;
        }
        Ok(())
    }

    /// Cancels the jobs of the due set that are in the wanted states.
    async fn cancel_due(&mut self) -> StoreResult<()> {
        let due = self.keys.due();
        let mut kept = self.rank_after(&due, self.request.after.as_ref()).await?;
        let mut scanned = 0;
        loop {
            let page = self.page(&due, kept).await?;
            let page: Vec<PurgeCursor> = page.into_iter().filter_map(PurgeCursor::from_member).collect();
            let Some(last) = page.last().cloned() else {
                self.next = None;
                return Ok(());
            };
            if self.remaining() == 0 || scanned >= MAX_SCANNED {
                return Ok(());
            }
            let states = self.states(&page).await?;
            let wanted: Vec<JobId> = page.iter().zip(&states).filter(|(_, is)| **is).map(|(at, _)| at.id).collect();
            // All wanted ones fit, or the limit ends the purge in this page
            let is_last = wanted.len() > self.remaining();
            kept += page.len() - self.cancel(&wanted).await?;
            scanned += page.len();
            if is_last {
                return Ok(());
            }
            self.next = Some(last);
        }
    }

    /// Whether each of these jobs is in a wanted state.
    async fn states(&mut self, page: &[PurgeCursor]) -> StoreResult<Vec<bool>> {
        let mut pipeline = redis::pipe();
        for at in page {
            pipeline.cmd("HGET").arg(self.keys.record(&at.id)).arg("s");
        }
        let states: Vec<Option<String>> = pipeline.query_async(&mut self.redis).await?;
        let is_wanted = |state: Option<String>| {
            let state = state.as_deref().and_then(JobState::from_name);
            state.is_some_and(|state| self.request.states.contains(&state))
        };
        Ok(states.into_iter().map(is_wanted).collect())
    }

    /// Members of a sorted set behind the last `rank`.
    async fn page(&mut self, set: &str, rank: usize) -> StoreResult<Vec<(String, f64)>> {
        let mut command = redis::cmd("ZREVRANGE");
        command.arg(set).arg(rank).arg(rank + SET_PAGE_SIZE - 1).arg("WITHSCORES");
        Ok(command.query_async(&mut self.redis).await?)
    }

    async fn rank_after(&mut self, set: &str, after: Option<&PurgeCursor>) -> StoreResult<usize> {
        let Some(after) = after else { return Ok(0) };
        let (rank, later): (Option<usize>, usize) = redis::pipe()
            .cmd("ZREVRANK")
            .arg(set)
            .arg(after.id.to_string())
            .cmd("ZCOUNT")
            .arg(set)
            .arg(format!("({}", after.due_at))
            .arg("+inf")
            .query_async(&mut self.redis)
            .await?;
        Ok(rank.map_or(later, |rank| rank + 1))
    }
}

impl PurgeCursor {
    fn from_member((id, score): (String, f64)) -> Option<Self> {
        Some(Self { due_at: score_to_millis(score), id: id.parse().ok()?, partition: 0 })
    }
}
