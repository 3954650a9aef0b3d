//! What this process counts, and how it gets to Redis: one entry of a stream for each interval in which anything happened. A
//! count is a few additions to atomics; nothing waits for Redis, and an idle process sends nothing.
//!
//! What a process that dies did not send is lost: one interval at most. An entry whose answer was lost is sent again under its
//! number, so that it counts once.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use common::{name::QueueName, time::Millis};
use model::{
    job::JobState,
    statistics::{BUCKETS, Histogram, Tally, bucket_of, write_varint},
};
use tokio_util::sync::CancellationToken;

use super::{MINUTE_MS, OTHER};
use crate::{Redis, StoreError, StoreResult, keys};

/// Queues that a process tells apart in one interval. The jobs of the others are counted as one.
const MAX_TALLIED_QUEUES: usize = 2000;
/// Entries that wait to be folded, about; the oldest are dropped. A leader folds them long before.
const MAX_ENTRIES: usize = 1024;
/// Tallies that wait for Redis. More are dropped and counted.
const MAX_PENDING: usize = 10_000;

/// What happened to jobs of one queue since the last flush.
pub struct QueueTally {
    enqueued: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    discarded: AtomicU64,
    cancelled: AtomicU64,
    wait: [AtomicU32; BUCKETS],
    run: [AtomicU32; BUCKETS],
}

/// How an attempt ended, for statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptEnd {
    /// It succeeded, and the job with it.
    Completed,
    /// It failed.
    Failed,
}

impl Default for QueueTally {
    fn default() -> Self {
        let counter = AtomicU64::default;
        let buckets = || std::array::from_fn(|_| AtomicU32::default());
        Self {
            enqueued: counter(),
            completed: counter(),
            failed: counter(),
            discarded: counter(),
            cancelled: counter(),
            wait: buckets(),
            run: buckets(),
        }
    }
}

impl QueueTally {
    /// Counts an attempt that ended: how long its job waited for it, and how long it ran, in milliseconds.
    pub fn count_attempt(&self, end: AttemptEnd, wait: Millis, run: Millis) {
        let counter = match end {
            AttemptEnd::Completed => &self.completed,
            AttemptEnd::Failed => &self.failed,
        };
        counter.fetch_add(1, Relaxed);
        self.wait[bucket_of(wait)].fetch_add(1, Relaxed);
        self.run[bucket_of(run)].fetch_add(1, Relaxed);
    }

    /// Counts a job that ended otherwise.
    fn count_end(&self, state: JobState) {
        match state {
            JobState::Discarded => self.discarded.fetch_add(1, Relaxed),
            JobState::Cancelled => self.cancelled.fetch_add(1, Relaxed),
            _ => 0,
        };
    }

    /// Takes what was counted.
    fn take(&self) -> Tally {
        let take = |counter: &AtomicU64| counter.swap(0, Relaxed);
        let histogram = |counts: &[AtomicU32; BUCKETS]| {
            let mut histogram = Histogram::default();
            for (bucket, count) in counts.iter().enumerate() {
                histogram.add(bucket, u64::from(count.swap(0, Relaxed)));
            }
            histogram
        };
        Tally {
            enqueued: take(&self.enqueued),
            completed: take(&self.completed),
            failed: take(&self.failed),
            discarded: take(&self.discarded),
            cancelled: take(&self.cancelled),
            wait: histogram(&self.wait),
            run: histogram(&self.run),
        }
    }
}

/// What this process counts. Cheap to clone.
#[derive(Clone, Default)]
pub struct StatisticsRecorder(Arc<Counted>);

#[derive(Default)]
struct Counted {
    queues: RwLock<HashMap<QueueName, Arc<QueueTally>>>,
    others: Arc<QueueTally>,
}

impl StatisticsRecorder {
    /// Where jobs of a queue are counted. Keep it for a batch, not longer: it is replaced when nothing happens.
    #[must_use]
    pub fn of(&self, queue: &QueueName) -> Arc<QueueTally> {
        let queue = &*queue.base();
        if let Some(tally) = self.0.queues.read().unwrap_or_else(PoisonError::into_inner).get(queue) {
            return tally.clone();
        }
        let mut queues = self.0.queues.write().unwrap_or_else(PoisonError::into_inner);
        if queues.len() >= MAX_TALLIED_QUEUES && !queues.contains_key(queue) {
            return self.0.others.clone();
        }
        queues.entry(queue.clone()).or_default().clone()
    }

    /// Counts a job that was enqueued.
    pub(crate) fn count_enqueued(&self, queue: &QueueName) {
        self.of(queue).enqueued.fetch_add(1, Relaxed);
    }

    /// Counts a job that was discarded or cancelled.
    pub(crate) fn count_end(&self, queue: &QueueName, state: JobState) {
        self.of(queue).count_end(state);
    }

    /// Takes what was counted, by queue, and forgets queues in which nothing happened.
    fn take(&self, retired: &mut Vec<(QueueName, Arc<QueueTally>)>) -> Vec<(String, Tally)> {
        let mut taken = Vec::new();
        // Somebody may have counted there while they were forgotten
        for (queue, tally) in retired.drain(..) {
            taken.push((queue.as_str().to_owned(), tally.take()));
        }
        let mut queues = self.0.queues.write().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|queue, tally| {
            let counted = tally.take();
            let is_idle = counted.is_empty();
            if is_idle {
                retired.push((queue.clone(), tally.clone()));
            }
            taken.push((queue.as_str().to_owned(), counted));
            !is_idle
        });
        taken.push((OTHER.to_owned(), self.0.others.take()));
        taken.retain(|(_, tally)| !tally.is_empty());
        taken
    }

    /// Sends what was counted at the end of each interval, by the clock of Redis, until `stop` is cancelled.
    pub(crate) async fn flush_until(self, redis: Redis, interval: Duration, stop: CancellationToken) {
        let interval_ms = Millis::try_from(interval.as_millis()).unwrap_or(Millis::MAX).max(1);
        let mut flush = Flush::new();
        let mut retired = Vec::new();
        loop {
            let begin = redis.estimated_now();
            // All processes end a minute at the same time: what an entry counts happened in one minute
            let left = Duration::from_millis((interval_ms - begin.rem_euclid(interval_ms)).unsigned_abs());
            let is_last = stop.run_until_cancelled(tokio::time::sleep(left)).await.is_none();
            flush.add(begin.div_euclid(MINUTE_MS).unsigned_abs(), self.take(&mut retired));
            if let Err(error) = flush.send(&redis).await {
                tracing::debug!(%error, "statistics are sent later");
            }
            if is_last {
                return;
            }
        }
    }
}

/// What is on its way to Redis.
struct Flush {
    /// With the number of an entry it tells whether the entry counts already.
    process: String,
    sequence: u64,
    /// An entry whose answer was lost.
    unanswered: Option<Vec<u8>>,
    /// By queue and minute.
    pending: BTreeMap<(String, u64), Tally>,
}

impl Flush {
    fn new() -> Self {
        let process = uuid::Uuid::new_v4().simple().to_string();
        Self { process, sequence: 0, unanswered: None, pending: BTreeMap::new() }
    }

    fn add(&mut self, minute: u64, counted: Vec<(String, Tally)>) {
        for (queue, tally) in counted {
            let is_full = self.pending.len() >= MAX_PENDING;
            match self.pending.entry((queue, minute)) {
                std::collections::btree_map::Entry::Vacant(_) if is_full => {
                    metrics::counter!("galley_statistics_dropped_total").increment(1);
                }
                entry => entry.or_default().merge(&tally),
            }
        }
    }

    async fn send(&mut self, redis: &Redis) -> StoreResult<()> {
        if let Some(entry) = self.unanswered.take() {
            let sent = self.send_entry(redis, &entry).await;
            if sent.is_err() {
                self.unanswered = Some(entry);
                return sent;
            }
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut entry = Vec::new();
        for ((queue, minute), tally) in &self.pending {
            write_varint(&mut entry, queue.len() as u64);
            entry.extend_from_slice(queue.as_bytes());
            write_varint(&mut entry, *minute);
            tally.encode(&mut entry);
        }
        self.sequence += 1;
        let sent = self.send_entry(redis, &entry).await;
        match sent {
            Ok(()) => self.pending.clear(),
            Err(StoreError::Unavailable(_)) => {
                self.unanswered = Some(entry);
                self.pending.clear();
            }
            // Refused, so the counts go into a later entry
            Err(_) => {}
        }
        sent
    }

    async fn send_entry(&self, redis: &Redis, entry: &[u8]) -> StoreResult<()> {
        let mut command = redis::cmd("XADD");
        command.arg(keys::STATISTICS_FLUSHES).arg("MAXLEN").arg("~").arg(MAX_ENTRIES).arg("*");
        command.arg("p").arg(&self.process).arg("n").arg(self.sequence).arg("d").arg(entry);
        Ok(command.exec_async(&mut redis.clone()).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str) -> QueueName {
        name.parse().expect("a name")
    }

    #[test]
    fn what_is_counted_while_an_idle_queue_is_forgotten_is_not_lost() {
        let (recorder, mut retired) = (StatisticsRecorder::default(), Vec::new());
        let kept = recorder.of(&queue("a"));
        kept.count_attempt(AttemptEnd::Completed, 1, 2);
        assert_eq!(recorder.take(&mut retired).len(), 1);
        assert!(recorder.take(&mut retired).is_empty() && retired.len() == 1);
        kept.count_attempt(AttemptEnd::Failed, 1, 2);
        recorder.count_enqueued(&queue("a"));
        let taken = recorder.take(&mut retired);
        let sum = taken.iter().fold(Tally::default(), |mut sum, (_, tally)| {
            sum.merge(tally);
            sum
        });
        assert_eq!((sum.enqueued, sum.failed, sum.wait.percentile(50)), (1, 1, Some(1)));
    }

    #[test]
    fn more_queues_than_are_told_apart_are_counted_as_one() {
        let (recorder, mut retired) = (StatisticsRecorder::default(), Vec::new());
        for number in 0..MAX_TALLIED_QUEUES + 5 {
            recorder.count_enqueued(&queue(&format!("q{number}")));
        }
        let taken = recorder.take(&mut retired);
        assert_eq!(taken.len(), MAX_TALLIED_QUEUES + 1);
        assert_eq!(taken.iter().find(|(name, _)| name == OTHER).map(|(_, tally)| tally.enqueued), Some(5));
    }
}
