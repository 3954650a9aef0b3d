//! Cancelling what waits in a queue, a bounded number of jobs at a time. Each is cancelled like any other: it can be looked
//! up, and what waits for its end is told.

use futures_util::{StreamExt, TryStreamExt, stream};
use redis::{FromRedisValue, Value};

use super::{JobRecord, Jobs, claim::last_delivered_id, enqueue::parse_entry_id};
use crate::{StoreResult, keys::QueueKeys};
use common::{
    id::JobId,
    name::{LimitKey, Priority, QueueName},
};
use model::job::JobState;

/// Jobs under way at once: their scripts pipeline on the shared connection.
const CONCURRENCY: usize = 32;
/// Entries read in one go: each may be as large as a request body.
const ENTRY_PAGE_SIZE: usize = 20;
/// Jobs that wait for their time: their states are looked up so many in one go.
const SET_PAGE_SIZE: usize = 200;
/// Pages looked through for one request.
const MAX_PAGES: usize = 500;

/// Which jobs to cancel.
#[derive(Debug, Clone)]
pub struct PurgeRequest {
    /// In which states: available, scheduled, retryable or pending.
    pub states: Vec<JobState>,
    /// How many at most.
    pub limit: usize,
}

/// How many jobs were cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PurgeResult {
    /// How many.
    pub count: usize,
    /// Whether there may be more.
    pub has_more: bool,
}

impl Jobs {
    /// Cancels jobs that wait in a queue.
    ///
    /// # Errors
    /// Redis is unavailable: some may have been cancelled.
    pub async fn purge(&self, queue: &QueueName, purge: &PurgeRequest) -> StoreResult<PurgeResult> {
        let PurgeCandidates { ids, has_more: more } = self.find_purge_candidates(queue, purge).await?;
        let cancelled: Vec<bool> = stream::iter(ids.iter().copied())
            .map(|id| async move { self.cancel(id).await.map(|outcome| outcome.is_ok()) })
            .buffer_unordered(CONCURRENCY)
            .try_collect()
            .await?;
        Ok(PurgeResult { count: cancelled.into_iter().filter(|done| *done).count(), has_more: more })
    }

    async fn find_purge_candidates(&self, queue: &QueueName, purge: &PurgeRequest) -> StoreResult<PurgeCandidates> {
        let keys = QueueKeys::new(queue);
        let mut scan =
            PurgeScan { keys: &keys, purge, redis: self.store.redis.pooled_connection().await?, ids: Vec::new() };
        if purge.states.contains(&JobState::Available) {
            for priority in self.priorities(queue).await? {
                scan.scan_stream(queue, priority).await?;
            }
            scan.scan_key_queues().await?;
        }
        let mut is_whole = true;
        if purge.states.contains(&JobState::Scheduled) || purge.states.contains(&JobState::Retryable) {
            is_whole = scan.scan_due().await?;
        }
        if purge.states.contains(&JobState::Pending) {
            scan.scan_members(&keys.pending()).await?;
        }
        Ok(PurgeCandidates { has_more: !is_whole || scan.remaining() == 0, ids: scan.ids })
    }
}

/// Jobs to cancel, and whether there may be more.
struct PurgeCandidates {
    ids: Vec<JobId>,
    has_more: bool,
}

/// Looking for jobs to cancel. It may read much, so it has a connection of its own.
struct PurgeScan<'a> {
    keys: &'a QueueKeys,
    purge: &'a PurgeRequest,
    redis: deadpool_redis::Connection,
    ids: Vec<JobId>,
}

impl PurgeScan<'_> {
    /// How many more are to be found.
    fn remaining(&self) -> usize {
        self.purge.limit.saturating_sub(self.ids.len())
    }

    /// Jobs of a stream that were handed to nobody yet.
    async fn scan_stream(&mut self, queue: &QueueName, priority: Priority) -> StoreResult<()> {
        if self.remaining() == 0 {
            return Ok(());
        }
        let stream = self.keys.stream(priority);
        let mut last = last_delivered_id(&mut self.redis, &stream).await?;
        while self.remaining() > 0 {
            let mut command = redis::cmd("XRANGE");
            command
                .arg(&stream)
                .arg(format!("({last}"))
                .arg("+")
                .arg("COUNT")
                .arg(ENTRY_PAGE_SIZE.min(self.remaining()));
            let entries: Vec<(String, Value)> = command.query_async(&mut self.redis).await?;
            let Some((newest, _)) = entries.last() else { break };
            last.clone_from(newest);
            let id = |(entry, fields): (String, Value)| {
                let fields = super::record::JobFields::from_redis_value(fields).ok()?;
                JobRecord::from_entry(queue, priority, parse_entry_id(&entry).ok()?, fields).ok().map(|job| job.id)
            };
            self.ids.extend(entries.into_iter().filter_map(id));
        }
        Ok(())
    }

    /// Jobs that wait for others with the same key. There may be as many keys as jobs.
    async fn scan_key_queues(&mut self) -> StoreResult<()> {
        let mut cursor = 0_u64;
        while self.remaining() > 0 {
            let mut command = redis::cmd("SSCAN");
            command.arg(self.keys.waiting_keys()).arg(cursor).arg("COUNT").arg(SET_PAGE_SIZE);
            let (next, waiting_keys): (u64, Vec<String>) = command.query_async(&mut self.redis).await?;
            for key in waiting_keys.iter().filter_map(|key| key.parse::<LimitKey>().ok()) {
                self.scan_members(&self.keys.key_queue(&key)).await?;
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Jobs that wait for their time, in the wanted states; false when there are so many that not all were looked at.
    async fn scan_due(&mut self) -> StoreResult<bool> {
        for page in 0..MAX_PAGES {
            if self.remaining() == 0 {
                return Ok(false);
            }
            let mut command = redis::cmd("ZRANGE");
            command.arg(self.keys.due()).arg(page * SET_PAGE_SIZE).arg((page + 1) * SET_PAGE_SIZE - 1);
            let ids: Vec<String> = command.query_async(&mut self.redis).await?;
            if ids.is_empty() {
                return Ok(true);
            }
            let ids: Vec<JobId> = ids.iter().filter_map(|id| id.parse().ok()).collect();
            let mut pipeline = redis::pipe();
            for id in &ids {
                pipeline.cmd("HGET").arg(self.keys.record(id)).arg("s");
            }
            let states: Vec<Option<String>> = pipeline.query_async(&mut self.redis).await?;
            let is_wanted = |state: &Option<String>| {
                let state = state.as_deref().and_then(JobState::from_name);
                state.is_some_and(|state| self.purge.states.contains(&state))
            };
            let wanted = ids.into_iter().zip(&states).filter(|(_, state)| is_wanted(state)).map(|(id, _)| id);
            let wanted: Vec<JobId> = wanted.take(self.remaining()).collect();
            self.ids.extend(wanted);
        }
        Ok(false)
    }

    async fn scan_members(&mut self, set: &str) -> StoreResult<()> {
        if self.remaining() > 0 {
            let mut command = redis::cmd("ZRANGE");
            command.arg(set).arg(0).arg(self.remaining() - 1);
            let ids: Vec<String> = command.query_async(&mut self.redis).await?;
            self.ids.extend(ids.iter().filter_map(|id| id.parse::<JobId>().ok()));
        }
        Ok(())
    }
}
