//! Cancelling what waits in a queue, a bounded number of jobs at a time. Each is cancelled like any other: it can be looked
//! up, and what waits for its end is told.

use futures_util::{StreamExt, TryStreamExt, stream};
use redis::{FromRedisValue, Value};

use super::{Jobs, Stored, claim::parsing, enqueue::parse_entry};
use crate::{
    id::JobId,
    job::State,
    name::{LimitKey, Priority, QueueName},
    redis::{StoreResult, keys::QueueKeys},
};

/// Jobs under way at once: their scripts pipeline on the shared connection.
const AT_ONCE: usize = 32;
/// Parked jobs looked at in one go.
const PAGE: usize = 500;

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
        let ids = self.waiting(queue, purge).await?;
        let cancelled: Vec<bool> = stream::iter(ids.iter().copied())
            .map(|id| async move { self.cancel(id).await.map(|outcome| outcome.is_ok()) })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(Purged { count: cancelled.into_iter().filter(|done| *done).count(), more: ids.len() >= purge.limit })
    }

    async fn waiting(&self, queue: &QueueName, purge: &Purge) -> StoreResult<Vec<JobId>> {
        let keys = QueueKeys::new(queue);
        let mut ids: Vec<JobId> = Vec::new();
        if purge.states.contains(&State::Available) {
            for priority in self.priorities(queue).await? {
                ids.extend(self.undelivered(queue, priority, purge.limit - ids.len()).await?);
            }
            let lanes: Vec<String> =
                redis::cmd("SMEMBERS").arg(keys.lanes()).query_async(&mut self.redis.clone()).await?;
            for key in lanes.iter().filter_map(|key| key.parse::<LimitKey>().ok()) {
                ids.extend(self.members(&keys.lane(&key), purge.limit - ids.len()).await?);
            }
        }
        if purge.states.contains(&State::Scheduled) || purge.states.contains(&State::Retryable) {
            ids.extend(self.parked(&keys, purge, purge.limit - ids.len()).await?);
        }
        if purge.states.contains(&State::Pending) {
            ids.extend(self.members(&keys.pending(), purge.limit - ids.len()).await?);
        }
        Ok(ids)
    }

    /// Scheduled or retryable jobs, as they are asked for: the set has both.
    async fn parked(&self, keys: &QueueKeys, purge: &Purge, most: usize) -> StoreResult<Vec<JobId>> {
        let (mut found, mut from) = (Vec::new(), 0);
        while found.len() < most {
            let mut command = redis::cmd("ZRANGE");
            command.arg(keys.due()).arg(from).arg(from + PAGE - 1);
            let page: Vec<String> = command.query_async(&mut self.redis.clone()).await?;
            let ids: Vec<JobId> = page.iter().filter_map(|id| id.parse().ok()).collect();
            if page.is_empty() {
                break;
            }
            let mut pipeline = redis::pipe();
            for id in &ids {
                pipeline.cmd("HGET").arg(keys.record(id)).arg("s");
            }
            // A pipeline of nothing is an error
            let states: Vec<Option<String>> =
                if ids.is_empty() { Vec::new() } else { pipeline.query_async(&mut self.redis.clone()).await? };
            let is_wanted = |name: &Option<String>| {
                name.as_deref().and_then(State::from_name).is_some_and(|state| purge.states.contains(&state))
            };
            found.extend(ids.into_iter().zip(&states).filter(|(_, state)| is_wanted(state)).map(|(id, _)| id));
            if page.len() < PAGE {
                break;
            }
            from += PAGE;
        }
        found.truncate(most);
        Ok(found)
    }

    async fn members(&self, set: &str, most: usize) -> StoreResult<Vec<JobId>> {
        if most == 0 {
            return Ok(Vec::new());
        }
        let ids: Vec<String> =
            redis::cmd("ZRANGE").arg(set).arg(0).arg(most - 1).query_async(&mut self.redis.clone()).await?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Jobs of a stream that were handed to nobody yet.
    async fn undelivered(&self, queue: &QueueName, priority: Priority, most: usize) -> StoreResult<Vec<JobId>> {
        let stream = QueueKeys::new(queue).stream(priority);
        let mut redis = self.redis.clone();
        let groups: Vec<std::collections::HashMap<String, Value>> =
            redis::cmd("XINFO").arg("GROUPS").arg(&stream).query_async(&mut redis).await?;
        let last = groups.into_iter().find_map(|mut group| group.remove("last-delivered-id"));
        let last = last.map_or(Ok("0-0".to_owned()), String::from_redis_value).map_err(parsing)?;
        if most == 0 {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("XRANGE");
        command.arg(stream).arg(format!("({last}")).arg("+").arg("COUNT").arg(most);
        let entries: Vec<(String, Value)> = command.query_async(&mut redis).await?;
        let id = |(entry, fields): (String, Value)| {
            let fields = super::stored::Fields::from_redis_value(fields).ok()?;
            Stored::from_entry(queue, priority, parse_entry(&entry).ok()?, fields).ok().map(|job| job.id)
        };
        Ok(entries.into_iter().filter_map(id).collect())
    }
}
