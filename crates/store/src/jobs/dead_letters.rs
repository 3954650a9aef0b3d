//! Many dead letters at once: filters, redrives and deletes them.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;

use super::{Jobs, record::FinishedJob};
use crate::{
    StoreResult,
    connection::clock::{first_due_at, score_to_millis},
    keys::QueueKeys,
};
use common::{id::JobId, name::QueueName, time::Millis};

/// Maximum number of dead letters scanned for one page.
const MAX_SCANNED: usize = 10_000;
/// Approximate maximum of their bytes.
const MAX_SCANNED_BYTES: usize = 32 << 20;
/// Maximum number of queues in one read.
const QUEUE_PAGE_SIZE: usize = 500;
/// Maximum number of dead letters in one read: each may be as large as a request body.
const READ_PAGE_SIZE: usize = 20;
/// A page that is this large gets no more dead letters.
const SOFT_MAX_PAGE_BYTES: usize = 8 << 20;
/// Dead letters redriven or deleted concurrently.
const CONCURRENCY: usize = 16;

/// Which dead letters; an absent condition matches all.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterFilter {
    /// Their queue.
    pub queue: Option<QueueName>,
    /// Their type, or a prefix of it that ends in `.*`.
    pub job_type: Option<String>,
    /// The type of their last error, or a prefix of it that ends in `.*`.
    pub error_type: Option<String>,
    /// They died at this time or later.
    pub since: Option<Millis>,
    /// They died before this time.
    pub until: Option<Millis>,
}

/// Where a list continues: after that dead letter of that queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterCursor {
    queue: QueueName,
    died_at: Millis,
    id: JobId,
}

/// A page of dead letters.
#[derive(Debug, Default)]
pub struct DeadLetterPage {
    /// Their ids and JSON: by queue, newest first.
    pub jobs: Vec<(JobId, String)>,
    /// Where the next page starts, if there may be one.
    pub next: Option<DeadLetterCursor>,
}

/// Statistics of dead letters.
#[derive(Debug, Default)]
pub struct DeadLetterStats {
    /// Their number in each queue that has some.
    pub by_queue: BTreeMap<QueueName, u64>,
    /// When the oldest died.
    pub oldest_at: Option<Millis>,
    /// When the newest died.
    pub newest_at: Option<Millis>,
}

#[derive(Deserialize)]
struct DeadLetterMatchFields<'a> {
    #[serde(rename = "type")]
    job_type: &'a str,
    #[serde(default, borrow)]
    error: Option<DeadLetterMatchError<'a>>,
}

#[derive(Deserialize)]
struct DeadLetterMatchError<'a> {
    #[serde(rename = "type", borrow)]
    error_type: std::borrow::Cow<'a, str>,
}

impl DeadLetterFilter {
    fn matches(&self, json: &str) -> bool {
        let Ok(seen) = serde_json::from_str::<DeadLetterMatchFields>(json) else { return false };
        let error_type = seen.error.map(|error| error.error_type).unwrap_or_default();
        matches_pattern(self.job_type.as_deref(), seen.job_type)
            && matches_pattern(self.error_type.as_deref(), &error_type)
    }
}

fn matches_pattern(pattern: Option<&str>, text: &str) -> bool {
    pattern.is_none_or(|pattern| match pattern.strip_suffix(".*") {
        Some(prefix) => text.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')),
        None => pattern == text,
    })
}

impl std::fmt::Display for DeadLetterCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.queue, self.died_at, self.id)
    }
}

impl std::str::FromStr for DeadLetterCursor {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('/');
        let (queue, died_at, id) = (parts.next(), parts.next(), parts.next());
        Ok(Self {
            queue: queue.and_then(|queue| queue.parse().ok()).ok_or(())?,
            died_at: died_at.and_then(|at| at.parse().ok()).ok_or(())?,
            id: id.filter(|_| parts.next().is_none()).and_then(|id| id.parse().ok()).ok_or(())?,
        })
    }
}

impl Jobs {
    /// Dead letters that match the filter: by queue, newest first, at most `limit` and about eight mebibytes.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn list_dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<&DeadLetterCursor>,
        limit: usize,
    ) -> StoreResult<DeadLetterPage> {
        let mut queues = match &filter.queue {
            Some(queue) => vec![queue.clone()],
            None => self.list_queues().await?,
        };
        queues.sort_unstable();
        queues.retain(|queue| after.is_none_or(|after| *queue >= after.queue));
        let connection = self.store.redis.pooled_connection().await?;
        let mut scan = DeadLetterScan {
            filter,
            limit,
            connection,
            page: DeadLetterPage::default(),
            scanned: 0,
            scanned_bytes: 0,
            matched_bytes: 0,
        };
        for some in queues.chunks(QUEUE_PAGE_SIZE) {
            for queue in scan.queues_with_dead_letters(some).await? {
                let from = after.filter(|after| after.queue == *queue);
                if !scan.scan_queue(queue, from).await? {
                    return Ok(scan.page);
                }
            }
        }
        scan.page.next = None;
        Ok(scan.page)
    }

    /// Makes dead letters available again; returns how many.
    ///
    /// # Errors
    /// Redis is unavailable: some may be available nevertheless.
    pub async fn redrive_all(&self, ids: &[JobId]) -> StoreResult<usize> {
        let done: Vec<bool> = stream::iter(ids.iter().copied())
            .map(|id| async move { self.redrive(id).await.map(|job| job.is_ok()) })
            .buffered(CONCURRENCY)
            .try_collect()
            .await?;
        Ok(done.into_iter().filter(|done| *done).count())
    }

    /// Deletes dead letters; returns how many.
    ///
    /// # Errors
    /// Redis is unavailable: some may have been deleted.
    pub async fn delete_dead_letters(&self, ids: &[JobId]) -> StoreResult<usize> {
        let done: Vec<bool> = stream::iter(ids.iter().copied())
            .map(|id| self.delete_dead_letter(id))
            .buffered(CONCURRENCY)
            .try_collect()
            .await?;
        Ok(done.into_iter().filter(|done| *done).count())
    }

    /// The statistics of all dead letters.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn dead_letter_stats(&self) -> StoreResult<DeadLetterStats> {
        let queues = self.list_queues().await?;
        let mut stats = DeadLetterStats::default();
        for some in queues.chunks(QUEUE_PAGE_SIZE) {
            let mut pipeline = redis::pipe();
            for keys in some.iter().map(QueueKeys::new) {
                pipeline.cmd("ZCARD").arg(keys.dead_letters());
                pipeline.cmd("ZRANGE").arg(keys.dead_letters()).arg(0).arg(0).arg("WITHSCORES");
                pipeline.cmd("ZREVRANGE").arg(keys.dead_letters()).arg(0).arg(0).arg("WITHSCORES");
            }
            let replies: Vec<redis::Value> =
                pipeline.query_async(&mut self.store.redis.pooled_connection().await?).await?;
            for (queue, replies) in some.iter().zip(replies.chunks(3)) {
                let [count, oldest, newest] = replies else { continue };
                let count: u64 = redis::from_redis_value(count.clone()).map_err(super::claim::malformed_reply)?;
                if count > 0 {
                    stats.by_queue.insert(queue.clone(), count);
                    stats.oldest_at = stats.oldest_at.into_iter().chain(died_at(oldest)).min();
                    stats.newest_at = stats.newest_at.into_iter().chain(died_at(newest)).max();
                }
            }
        }
        Ok(stats)
    }
}

/// A scan of dead letters.
struct DeadLetterScan<'a> {
    filter: &'a DeadLetterFilter,
    limit: usize,
    connection: crate::connection::pool::PooledConnection,
    page: DeadLetterPage,
    /// Number and bytes of scanned dead letters.
    scanned: usize,
    scanned_bytes: usize,
    /// Bytes of the matching ones.
    matched_bytes: usize,
}

impl DeadLetterScan<'_> {
    /// The queues that have dead letters.
    async fn queues_with_dead_letters<'q>(&mut self, queues: &'q [QueueName]) -> StoreResult<Vec<&'q QueueName>> {
        let mut pipeline = redis::pipe();
        for queue in queues {
            pipeline.cmd("ZCARD").arg(QueueKeys::new(queue).dead_letters());
        }
        let counts: Vec<u64> = pipeline.query_async(&mut self.connection).await?;
        Ok(queues.iter().zip(counts).filter(|(_, count)| *count > 0).map(|(queue, _)| queue).collect())
    }

    fn is_full(&self) -> bool {
        self.page.jobs.len() >= self.limit
            || self.matched_bytes >= SOFT_MAX_PAGE_BYTES
            || self.scanned >= MAX_SCANNED
            || self.scanned_bytes >= MAX_SCANNED_BYTES
    }

    /// Adds the dead letters of one queue; false when the page is full.
    async fn scan_queue(&mut self, queue: &QueueName, after: Option<&DeadLetterCursor>) -> StoreResult<bool> {
        let keys = QueueKeys::new(queue);
        let mut rank = self.rank_after(&keys, after).await?;
        loop {
            let mut command = redis::cmd("ZREVRANGE");
            command.arg(keys.dead_letters()).arg(rank).arg(rank + READ_PAGE_SIZE - 1).arg("WITHSCORES");
            let mut page: Vec<(String, f64)> = command.query_async(&mut self.connection).await?;
            rank += page.len();
            if let Some(since) = self.filter.since {
                page.retain(|(_, died_at)| score_to_millis(*died_at) >= since);
            }
            if page.is_empty() {
                return Ok(true);
            }
            if self.is_full() {
                return Ok(false);
            }
            let page: Vec<(JobId, Millis)> =
                page.into_iter().filter_map(|(id, at)| Some((id.parse().ok()?, score_to_millis(at)))).collect();
            if page.is_empty() {
                continue;
            }
            let results: Vec<String> = page.iter().map(|(id, _)| keys.result(id)).collect();
            let texts: Vec<Option<String>> = redis::cmd("MGET").arg(results).query_async(&mut self.connection).await?;
            for ((id, died_at), text) in page.into_iter().zip(texts) {
                if self.is_full() {
                    return Ok(false);
                }
                self.page.next = Some(DeadLetterCursor { queue: queue.clone(), died_at, id });
                self.scan_one(id, queue, text.as_deref())?;
            }
        }
    }

    fn scan_one(&mut self, id: JobId, queue: &QueueName, text: Option<&str>) -> StoreResult<()> {
        self.scanned += 1;
        let Some(text) = text else { return Ok(()) };
        self.scanned_bytes += text.len();
        let Some(json) = FinishedJob::json_of(text, id, queue)? else { return Ok(()) };
        if self.filter.matches(&json) {
            self.matched_bytes += json.len();
            self.page.jobs.push((id, json));
        }
        Ok(())
    }

    /// The rank, newest first, of the first dead letter behind the cursor that the filter's range includes.
    async fn rank_after(&mut self, keys: &QueueKeys, after: Option<&DeadLetterCursor>) -> StoreResult<usize> {
        let redis = &mut self.connection;
        let newer_than_range: usize = match self.filter.until {
            Some(until) => {
                redis::cmd("ZCOUNT").arg(keys.dead_letters()).arg(until).arg("+inf").query_async(redis).await?
            }
            None => 0,
        };
        let Some(after) = after else { return Ok(newer_than_range) };
        let rank: Option<usize> =
            redis::cmd("ZREVRANK").arg(keys.dead_letters()).arg(after.id.to_string()).query_async(redis).await?;
        let behind_cursor = if let Some(rank) = rank {
            rank + 1
        } else {
            // The cursor's dead letter is gone: continue with those that died before it
            let newer = format!("({}", after.died_at);
            let newer: usize =
                redis::cmd("ZCOUNT").arg(keys.dead_letters()).arg(newer).arg("+inf").query_async(redis).await?;
            // Those that died in the same millisecond are in the order of their ids, as in the list
            let mut same = redis::cmd("ZRANGEBYSCORE");
            same.arg(keys.dead_letters()).arg(after.died_at).arg(after.died_at);
            let same: Vec<String> = same.query_async(redis).await?;
            let id = after.id.to_string();
            newer + same.iter().filter(|other| **other > id).count()
        };
        Ok(behind_cursor.max(newer_than_range))
    }
}

fn died_at(head: &redis::Value) -> Option<Millis> {
    let head: Vec<(redis::Value, f64)> = redis::from_redis_value(head.clone()).ok()?;
    first_due_at(&head)
}
