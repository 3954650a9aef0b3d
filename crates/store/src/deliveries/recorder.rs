//! Collects attempts and writes them twice a second. A delivery only adds to a short list in memory: of each owner and
//! outcome no more than are kept in Redis anyway, so thousands of deliveries in a second cost Redis as much as a hundred.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{DeliveryOutcome, DeliveryOwner, DeliveryRecord};
use crate::{Redis, StoreResult, keys};

/// How long attempts collect before they are written.
const LINGER: Duration = Duration::from_millis(500);
/// Owners whose attempts a process holds; those of others are dropped and counted.
const MAX_OWNERS: usize = 10_000;
/// Commands in one round trip.
const MAX_PIPELINE: usize = 500;
/// How long a log is kept after its last attempt.
const LOG_TTL_MS: u64 = 30 * 86_400_000;
/// Rules that are listed: those with the newest attempts.
const MAX_LISTED_RULES: i64 = 1000;

type Waiting = BTreeMap<(DeliveryOwner, DeliveryOutcome), VecDeque<DeliveryRecord>>;

/// Records attempts. Cheap to clone.
#[derive(Clone)]
pub struct DeliveryRecorder(Arc<Collected>);

struct Collected {
    /// Attempts that are kept of each owner and outcome.
    max: usize,
    waiting: Mutex<Waiting>,
    has_some: Notify,
}

impl DeliveryRecorder {
    /// A recorder that keeps that many attempts of each owner and outcome; zero keeps none.
    pub(crate) fn new(max: usize) -> Self {
        Self(Arc::new(Collected { max, waiting: Mutex::default(), has_some: Notify::new() }))
    }

    /// Whether attempts are kept at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.max > 0
    }

    /// Records an attempt, without waiting.
    pub fn record(&self, owner: DeliveryOwner, record: DeliveryRecord) {
        if !self.is_on() {
            return;
        }
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = waiting.is_empty();
        let key = (owner, record.outcome);
        if waiting.len() >= MAX_OWNERS && !waiting.contains_key(&key) {
            count_dropped(1);
            return;
        }
        let records = waiting.entry(key).or_default();
        if records.len() >= self.0.max {
            // It would be trimmed at once
            records.pop_front();
        }
        records.push_back(record);
        drop(waiting);
        if is_first {
            self.0.has_some.notify_one();
        }
    }

    /// Writes attempts until `stop` is cancelled and the last ones are written.
    pub(crate) async fn write_until(self, redis: Redis, stop: CancellationToken) {
        let mut is_last = false;
        while !is_last {
            let some = async {
                self.0.has_some.notified().await;
                tokio::time::sleep(LINGER).await;
            };
            is_last = stop.run_until_cancelled(some).await.is_none();
            let waiting = std::mem::take(&mut *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if let Err(error) = self.write(&redis, &waiting).await {
                let lost = waiting.values().map(VecDeque::len).sum();
                tracing::debug!(%error, lost, "attempts are missing in the log of deliveries");
                count_dropped(lost);
            }
        }
    }

    /// In the order in which they ended, which is the order of the log.
    async fn write(&self, redis: &Redis, waiting: &Waiting) -> StoreResult<()> {
        let mut all: Vec<(String, &DeliveryOwner, &DeliveryRecord)> = Vec::new();
        let mut pipeline = redis::pipe();
        for ((owner, outcome), records) in waiting {
            let key = owner.key(*outcome);
            all.extend(records.iter().map(|record| (key.clone(), owner, record)));
        }
        all.sort_by_key(|(_, _, record)| record.at.saturating_add_unsigned(record.duration_ms));
        for (key, owner, record) in all {
            let stored = redis.sealer().seal_owned(&["delivery", owner.kind(), owner.name()], record.to_json());
            pipeline.cmd("XADD").arg(&key).arg("MAXLEN").arg(self.0.max).arg("*").arg("d").arg(stored).ignore();
            if pipeline.len() >= MAX_PIPELINE {
                pipeline.exec_async(&mut redis.clone()).await?;
                pipeline.clear();
            }
        }
        for (owner, outcome) in waiting.keys() {
            pipeline.cmd("PEXPIRE").arg(owner.key(*outcome)).arg(LOG_TTL_MS).ignore();
        }
        list_rules(&mut pipeline, waiting);
        if pipeline.is_empty() {
            return Ok(());
        }
        Ok(pipeline.exec_async(&mut redis.clone()).await?)
    }
}

/// Adds the rules that have attempts to their list, and removes those whose log has expired.
fn list_rules(pipeline: &mut redis::Pipeline, waiting: &Waiting) {
    let mut newest = None;
    for ((owner, _), records) in waiting {
        let (DeliveryOwner::Rule(pattern), Some(last)) = (owner, records.back()) else { continue };
        pipeline.cmd("ZADD").arg(keys::PUSH_RULES).arg("GT").arg(last.at).arg(pattern).ignore();
        newest = newest.max(Some(last.at));
    }
    if let Some(newest) = newest {
        let expired = newest.saturating_sub_unsigned(LOG_TTL_MS);
        pipeline.cmd("ZREMRANGEBYSCORE").arg(keys::PUSH_RULES).arg("-inf").arg(format!("({expired}")).ignore();
        pipeline.cmd("ZREMRANGEBYRANK").arg(keys::PUSH_RULES).arg(0).arg(-1 - MAX_LISTED_RULES).ignore();
        pipeline.cmd("PEXPIRE").arg(keys::PUSH_RULES).arg(LOG_TTL_MS).ignore();
    }
}

fn count_dropped(records: usize) {
    metrics::counter!("galley_delivery_records_dropped_total").increment(records as u64);
}
