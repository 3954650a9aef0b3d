//! Lists discarded jobs by what they have in common: all, or the dead letters among them.

use serde::Deserialize;

use super::{
    Jobs,
    claim::duration_millis,
    finished_job::FinishedJob,
    partitions::{parse_partition, write_partition},
};
use crate::{StoreResult, connection::clock::score_to_millis, keys::QueueKeys, sealing::Sealer};
use common::{id::JobId, name::QueueName, time::Millis};
use model::access::Access;

/// Maximum number of discarded jobs scanned for one page, those that an offset passes over among them.
const MAX_SCANNED: usize = 10_000;
/// Approximate maximum of their bytes.
const MAX_SCANNED_BYTES: usize = 32 << 20;
/// Maximum number of queues in one read.
const QUEUE_PAGE_SIZE: usize = 500;
/// Maximum number of discarded jobs in one read: each may be as large as a request body.
const READ_PAGE_SIZE: usize = 20;
/// A page that is this large gets no more jobs.
const SOFT_MAX_PAGE_BYTES: usize = 8 << 20;

/// Which list of discarded jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscardedList {
    /// The newest of every queue, dead letters among them.
    All,
    /// Those that their policy keeps as dead letters.
    DeadLetters,
}

/// Which discarded jobs; an absent condition matches all.
#[derive(Debug, Clone, Default)]
pub struct DiscardedFilter {
    /// Only those of the queues that this has.
    pub access: Option<Access>,
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

/// Where a list continues: after that job of that queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscardedCursor {
    queue: QueueName,
    died_at: Millis,
    id: JobId,
}

/// A page of discarded jobs.
#[derive(Debug, Default)]
pub struct DiscardedPage {
    /// Their ids and JSON: by queue, newest first.
    pub jobs: Vec<(JobId, String)>,
    /// Where the next page starts, if there may be one.
    pub next: Option<DiscardedCursor>,
}

impl DiscardedPage {
    /// Whether the scan ended before its first job, though there may be more jobs.
    #[must_use]
    pub fn ended_early(&self) -> bool {
        self.jobs.is_empty() && self.next.is_some()
    }
}

#[derive(Deserialize)]
struct DiscardedMatchFields<'a> {
    #[serde(rename = "type")]
    job_type: &'a str,
    #[serde(default, borrow)]
    error: Option<DiscardedMatchError<'a>>,
}

#[derive(Deserialize)]
struct DiscardedMatchError<'a> {
    #[serde(rename = "type", borrow)]
    error_type: std::borrow::Cow<'a, str>,
}

impl DiscardedFilter {
    fn matches(&self, json: &str) -> bool {
        let Ok(seen) = serde_json::from_str::<DiscardedMatchFields>(json) else { return false };
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

impl std::fmt::Display for DiscardedCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.queue, self.died_at, self.id)?;
        write_partition(f, &self.queue)
    }
}

impl std::str::FromStr for DiscardedCursor {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('/');
        let (queue, died_at, id, partition) = (parts.next(), parts.next(), parts.next(), parts.next());
        Ok(Self {
            queue: parse_partition(queue, partition)?,
            died_at: died_at.and_then(|at| at.parse().ok()).ok_or(())?,
            id: id.filter(|_| parts.next().is_none()).and_then(|id| id.parse().ok()).ok_or(())?,
        })
    }
}

impl DiscardedList {
    fn key(self, keys: &QueueKeys) -> String {
        match self {
            Self::All => keys.discarded(),
            Self::DeadLetters => keys.dead_letters(),
        }
    }
}

impl Jobs {
    /// Discarded jobs of a list that match the filter: by queue, newest first, at most `limit` and about eight mebibytes.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn list_discarded(
        &self,
        list: DiscardedList,
        filter: &DiscardedFilter,
        after: Option<&DiscardedCursor>,
        limit: usize,
    ) -> StoreResult<DiscardedPage> {
        self.list_discarded_from(list, filter, after, 0, limit).await
    }

    /// As [`Self::list_discarded`], without the first `offset` jobs that match. Those count as scanned too, so one
    /// request reads no more with an offset than without.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn list_discarded_from(
        &self,
        list: DiscardedList,
        filter: &DiscardedFilter,
        after: Option<&DiscardedCursor>,
        offset: usize,
        limit: usize,
    ) -> StoreResult<DiscardedPage> {
        let mut queues = match &filter.queue {
            Some(queue) => self.read_partitions(queue).await?,
            None => self.list_partitions().await?,
        };
        queues.sort_unstable();
        let is_seen = |queue: &QueueName| filter.access.as_ref().is_none_or(|access| access.has_queue(queue));
        queues.retain(|queue| is_seen(queue) && after.is_none_or(|after| *queue >= after.queue));
        let connection = self.store.redis.pooled_connection().await?;
        let mut scan = DiscardedScan {
            list,
            filter,
            offset,
            limit,
            sealer: self.sealer(),
            connection,
            page: DiscardedPage::default(),
            scanned: 0,
            scanned_bytes: 0,
            matched_bytes: 0,
        };
        for some in queues.chunks(QUEUE_PAGE_SIZE) {
            for queue in scan.queues_with_jobs(some).await? {
                let from = after.filter(|after| after.queue == *queue);
                if !scan.scan_queue(queue, from).await? {
                    return Ok(scan.page);
                }
            }
        }
        scan.page.next = None;
        Ok(scan.page)
    }

    /// How long the list of a queue's discarded jobs is kept after the last one: as long as any of them may be.
    pub(super) fn discarded_list_ttl_ms(&self) -> u64 {
        let settings = &self.store.settings.jobs;
        duration_millis(settings.dead_letter_ttl.max(settings.result_ttl))
    }
}

/// A scan of discarded jobs.
struct DiscardedScan<'a> {
    list: DiscardedList,
    filter: &'a DiscardedFilter,
    /// How many that match are still passed over.
    offset: usize,
    limit: usize,
    sealer: &'a Sealer,
    connection: crate::connection::pool::PooledConnection,
    page: DiscardedPage,
    /// Number and bytes of scanned jobs.
    scanned: usize,
    scanned_bytes: usize,
    /// Bytes of the matching ones.
    matched_bytes: usize,
}

impl DiscardedScan<'_> {
    /// The queues that have some.
    async fn queues_with_jobs<'q>(&mut self, queues: &'q [QueueName]) -> StoreResult<Vec<&'q QueueName>> {
        let mut pipeline = redis::pipe();
        for queue in queues {
            pipeline.cmd("ZCARD").arg(self.list.key(&QueueKeys::new(queue)));
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

    /// Adds the discarded jobs of one queue; false when the page is full.
    async fn scan_queue(&mut self, queue: &QueueName, after: Option<&DiscardedCursor>) -> StoreResult<bool> {
        let keys = QueueKeys::new(queue);
        let list = self.list.key(&keys);
        let mut rank = self.rank_after(&list, after).await?;
        loop {
            let mut command = redis::cmd("ZREVRANGE");
            command.arg(&list).arg(rank).arg(rank + READ_PAGE_SIZE - 1).arg("WITHSCORES");
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
                self.page.next = Some(DiscardedCursor { queue: queue.clone(), died_at, id });
                self.scan_one(id, queue, text.as_deref())?;
            }
        }
    }

    fn scan_one(&mut self, id: JobId, queue: &QueueName, text: Option<&str>) -> StoreResult<()> {
        self.scanned += 1;
        let Some(text) = text else { return Ok(()) };
        self.scanned_bytes += text.len();
        let Some(json) = FinishedJob::json_of(self.sealer, text, id, queue)? else { return Ok(()) };
        if self.filter.matches(&json) {
            if self.offset > 0 {
                self.offset -= 1;
                return Ok(());
            }
            self.matched_bytes += json.len();
            self.page.jobs.push((id, json));
        }
        Ok(())
    }

    /// The rank, newest first, of the first job behind the cursor that the filter's range includes.
    async fn rank_after(&mut self, list: &str, after: Option<&DiscardedCursor>) -> StoreResult<usize> {
        let redis = &mut self.connection;
        let newer_than_range: usize = match self.filter.until {
            Some(until) => redis::cmd("ZCOUNT").arg(list).arg(until).arg("+inf").query_async(redis).await?,
            None => 0,
        };
        let Some(after) = after else { return Ok(newer_than_range) };
        let rank: Option<usize> = redis::cmd("ZREVRANK").arg(list).arg(after.id.to_string()).query_async(redis).await?;
        let behind_cursor = if let Some(rank) = rank {
            rank + 1
        } else {
            // The cursor's job is gone: continue with those that died before it
            let newer = format!("({}", after.died_at);
            let newer: usize = redis::cmd("ZCOUNT").arg(list).arg(newer).arg("+inf").query_async(redis).await?;
            // Those that died in the same millisecond are in the order of their ids, as in the list
            let mut same = redis::cmd("ZRANGEBYSCORE");
            same.arg(list).arg(after.died_at).arg(after.died_at);
            let same: Vec<String> = same.query_async(redis).await?;
            let id = after.id.to_string();
            newer + same.iter().filter(|other| **other > id).count()
        };
        Ok(behind_cursor.max(newer_than_range))
    }
}
