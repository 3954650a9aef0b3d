//! Cancelling what waits in a queue, a bounded number of jobs at a time. Each is cancelled like any other: it can be looked
//! up, and what waits for its end is told.

use futures_util::{StreamExt, TryStreamExt, stream};
use redis::{FromRedisValue, Value};

use super::{Jobs, Stored, claim::last_delivered, enqueue::parse_entry};
use crate::{StoreResult, keys::QueueKeys};
use common::{
    id::JobId,
    name::{LimitKey, Priority, QueueName},
};
use model::job::State;

/// Jobs under way at once: their scripts pipeline on the shared connection.
const AT_ONCE: usize = 32;
/// Entries read in one go: each may be as large as a request body.
const ENTRIES: usize = 20;
/// Jobs that wait for their time: their states are looked up so many in one go.
const PAGE: usize = 200;
/// Pages looked through for one request.
const MOST_PAGES: usize = 500;

/// Which jobs to cancel.
#[derive(Debug, Clone)]
pub struct Purge {
    /// In which states: available, scheduled, retryable or pending.
    pub states: Vec<State>,
    /// How many at most.
    pub limit: usize,
}

/// How many jobs were cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purged {
    /// How many.
    pub count: usize,
    /// Whether there may be more.
    pub more: bool,
}

impl Jobs {
    /// Cancels jobs that wait in a queue.
    ///
    /// # Errors
    /// Redis is unavailable: some may have been cancelled.
    pub async fn purge(&self, queue: &QueueName, purge: &Purge) -> StoreResult<Purged> {
        let Waiting { ids, more } = self.waiting(queue, purge).await?;
        let cancelled: Vec<bool> = stream::iter(ids.iter().copied())
            .map(|id| async move { self.cancel(id).await.map(|outcome| outcome.is_ok()) })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(Purged { count: cancelled.into_iter().filter(|done| *done).count(), more })
    }

    async fn waiting(&self, queue: &QueueName, purge: &Purge) -> StoreResult<Waiting> {
        let keys = QueueKeys::new(queue);
        let mut scan = Scan { keys: &keys, purge, redis: self.redis.pooled().await?, ids: Vec::new() };
        if purge.states.contains(&State::Available) {
            for priority in self.priorities(queue).await? {
                scan.undelivered(queue, priority).await?;
            }
            scan.lanes().await?;
        }
        let mut is_whole = true;
        if purge.states.contains(&State::Scheduled) || purge.states.contains(&State::Retryable) {
            is_whole = scan.due().await?;
        }
        if purge.states.contains(&State::Pending) {
            scan.members(&keys.pending()).await?;
        }
        Ok(Waiting { more: !is_whole || scan.left() == 0, ids: scan.ids })
    }
}

/// Jobs to cancel, and whether there may be more.
struct Waiting {
    ids: Vec<JobId>,
    more: bool,
}

/// Looking for jobs to cancel. It may read much, so it has a connection of its own.
struct Scan<'a> {
    keys: &'a QueueKeys,
    purge: &'a Purge,
    redis: deadpool_redis::Connection,
    ids: Vec<JobId>,
}

impl Scan<'_> {
    /// How many more are to be found.
    fn left(&self) -> usize {
        self.purge.limit.saturating_sub(self.ids.len())
    }

    /// Jobs of a stream that were handed to nobody yet.
    async fn undelivered(&mut self, queue: &QueueName, priority: Priority) -> StoreResult<()> {
        if self.left() == 0 {
            return Ok(());
        }
        let stream = self.keys.stream(priority);
        let mut last = last_delivered(&mut self.redis, &stream).await?;
        while self.left() > 0 {
            let mut command = redis::cmd("XRANGE");
            command.arg(&stream).arg(format!("({last}")).arg("+").arg("COUNT").arg(ENTRIES.min(self.left()));
            let entries: Vec<(String, Value)> = command.query_async(&mut self.redis).await?;
            let Some((newest, _)) = entries.last() else { break };
            last.clone_from(newest);
            let id = |(entry, fields): (String, Value)| {
                let fields = super::record::Fields::from_redis_value(fields).ok()?;
                Stored::from_entry(queue, priority, parse_entry(&entry).ok()?, fields).ok().map(|job| job.id)
            };
            self.ids.extend(entries.into_iter().filter_map(id));
        }
        Ok(())
    }

    /// Jobs that wait for others with the same key. There may be as many keys as jobs.
    async fn lanes(&mut self) -> StoreResult<()> {
        let mut cursor = 0_u64;
        while self.left() > 0 {
            let mut command = redis::cmd("SSCAN");
            command.arg(self.keys.lanes()).arg(cursor).arg("COUNT").arg(PAGE);
            let (next, lanes): (u64, Vec<String>) = command.query_async(&mut self.redis).await?;
            for key in lanes.iter().filter_map(|key| key.parse::<LimitKey>().ok()) {
                self.members(&self.keys.lane(&key)).await?;
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Jobs that wait for their time, in the wanted states; false when there are so many that not all were looked at.
    async fn due(&mut self) -> StoreResult<bool> {
        for page in 0..MOST_PAGES {
            if self.left() == 0 {
                return Ok(false);
            }
            let mut command = redis::cmd("ZRANGE");
            command.arg(self.keys.due()).arg(page * PAGE).arg((page + 1) * PAGE - 1);
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
                let state = state.as_deref().and_then(State::from_name);
                state.is_some_and(|state| self.purge.states.contains(&state))
            };
            let wanted = ids.into_iter().zip(&states).filter(|(_, state)| is_wanted(state)).map(|(id, _)| id);
            let wanted: Vec<JobId> = wanted.take(self.left()).collect();
            self.ids.extend(wanted);
        }
        Ok(false)
    }

    async fn members(&mut self, set: &str) -> StoreResult<()> {
        if self.left() > 0 {
            let mut command = redis::cmd("ZRANGE");
            command.arg(set).arg(0).arg(self.left() - 1);
            let ids: Vec<String> = command.query_async(&mut self.redis).await?;
            self.ids.extend(ids.iter().filter_map(|id| id.parse::<JobId>().ok()));
        }
        Ok(())
    }
}
