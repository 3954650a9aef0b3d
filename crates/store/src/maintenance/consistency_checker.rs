//! Searches stored data for contradictions: a job in two states or in none, a lease without an attempt.
//!
//! A queue is checked in slices of a bounded number of items. An item that looks wrong is checked again a moment later
//! by a script that also repairs it: a job may just be moving. Only repairs that neither lose nor duplicate a job are
//! made; other violations are reported.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{candidates::Candidate, check_cursor::CheckCursor};
use crate::{StoreResult, jobs::Jobs, keys::QueueKeys, script};
use common::{name::QueueName, rotation::Rotation};

/// How long an item must look wrong.
pub(super) const RECHECK_DELAY: Duration = Duration::from_millis(100);
/// Concurrent checks: their scripts pipeline on the shared connection.
const MAX_CONCURRENT_CHECKS: usize = 32;
/// A step that finds little costs a command too: it counts as that many items, so that empty queues cost little.
const MIN_STEP_COST: usize = 70;
/// Maximum number of key queues whose jobs are counted: one script would take too long for more.
const MAX_KEY_QUEUES: usize = 1000;

/// A contradiction in the stored data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its kind, as in the metric.
    pub kind: String,
    /// Where it is: the set and the job's id, or what else is known.
    pub location: String,
    /// Whether it was repaired.
    pub is_repaired: bool,
}

/// The result of a slice.
#[derive(Debug, Clone, Default)]
pub struct ConsistencyReport {
    /// The violations.
    pub violations: Vec<Violation>,
    /// The number of checked items.
    pub checked_count: usize,
    /// Where the next slice starts; none when the queue is done.
    pub next: Option<CheckCursor>,
}

impl Jobs {
    /// Checks about `limit` items of a queue from `cursor` on, and repairs what it can if `repair` is set.
    ///
    /// # Errors
    /// Redis is unavailable: some may be repaired.
    pub async fn check_queue(
        &self,
        queue: &QueueName,
        repair: bool,
        cursor: CheckCursor,
        limit: usize,
    ) -> StoreResult<ConsistencyReport> {
        let mut report = ConsistencyReport::default();
        let cursor = cursor.in_partition(0);
        if cursor == CheckCursor::start() {
            report.violations.extend(self.check_queues_listed(std::slice::from_ref(queue), repair).await?);
            report.violations.extend(self.check_key_waiting_count(queue, repair).await?);
        }
        let mut cursor = Some(cursor);
        let (mut found, mut cost) = (Vec::new(), 0);
        while let Some(from) = cursor.take() {
            let (some, next) = self.read_candidates(queue, &from, limit - cost.min(limit - 1)).await?;
            cost += some.len().max(MIN_STEP_COST);
            report.checked_count += some.len();
            found.extend(some);
            cursor = next;
            if cost >= limit {
                break;
            }
        }
        let wrong = self.check_page(queue, found, false).await?;
        if !wrong.is_empty() {
            tokio::time::sleep(RECHECK_DELAY).await;
            let again = wrong.into_iter().map(|(candidate, _)| candidate).collect();
            let confirmed = self.check_page(queue, again, repair).await?;
            report.violations.extend(confirmed.into_iter().map(|(_, violation)| violation));
        }
        report.next = cursor;
        log_violations(queue, &report.violations);
        Ok(report)
    }

    async fn check_page(
        &self,
        queue: &QueueName,
        candidates: Vec<Candidate>,
        repair: bool,
    ) -> StoreResult<Vec<(Candidate, Violation)>> {
        let looks = candidates.into_iter().map(|candidate| async move {
            let seen = self.check_one(queue, &candidate, repair).await?;
            let violation =
                seen.map(|(kind, is_repaired)| Violation { kind, location: candidate.to_string(), is_repaired });
            StoreResult::Ok(violation.map(|violation| (candidate, violation)))
        });
        // In order: a later repair may depend on an earlier one
        let seen: Vec<Option<(Candidate, Violation)>> =
            stream::iter(looks).buffered(MAX_CONCURRENT_CHECKS).try_collect().await?;
        Ok(seen.into_iter().flatten().collect())
    }

    /// The counter of jobs that wait for their key.
    async fn check_key_waiting_count(&self, queue: &QueueName, repair: bool) -> StoreResult<Option<Violation>> {
        let keys = QueueKeys::new(queue);
        let mut redis = self.store.redis.clone();
        let number: usize = redis::cmd("SCARD").arg(keys.waiting_keys()).query_async(&mut redis).await?;
        if number > MAX_KEY_QUEUES {
            return Ok(None);
        }
        let waiting_keys: Vec<String> = redis::cmd("SMEMBERS").arg(keys.waiting_keys()).query_async(&mut redis).await?;
        let mut call = script::RECOUNT.prepare_invoke();
        call.key(keys.stats()).key(keys.waiting_keys());
        for key in waiting_keys.iter().filter_map(|key| key.parse().ok()) {
            call.key(keys.key_queue(&key));
        }
        // Key queues and their counter change in the same scripts: one look is enough
        let is_right: i64 = call.arg(u8::from(repair)).invoke_async(&mut redis).await?;
        let location = "jobs in key queues".to_owned();
        Ok((is_right == 0).then(|| Violation { kind: "key_waiting_counter".into(), location, is_repaired: repair }))
    }
}

/// Counts and logs the violations.
fn log_violations(queue: &QueueName, violations: &[Violation]) {
    for violation in violations {
        log_violation(queue.as_str(), violation);
    }
}

/// Counts and logs a violation, of a queue or of none.
pub(super) fn log_violation(queue: &str, Violation { kind, location: what, is_repaired }: &Violation) {
    tracing::warn!(queue, kind, what, is_repaired, "stored data is inconsistent");
    metrics::counter!("galley_invariant_violations_total", "queue" => queue.to_owned(), "kind" => kind.clone())
        .increment(1);
    if *is_repaired {
        metrics::counter!("galley_invariant_repairs_total").increment(1);
    }
}

/// The position of maintenance's round over all queues: one slice at a time.
#[derive(Default)]
pub(super) struct CheckRound {
    rotation: Rotation,
    /// The queue whose check is not done, and where it goes on.
    under_way: Option<(QueueName, CheckCursor)>,
}

impl CheckRound {
    /// Checks one slice of one queue.
    pub(super) async fn check_slice(&mut self, jobs: &Jobs, queues: &[QueueName], limit: usize) -> StoreResult<()> {
        // Taken: if the check fails, the queue starts again on the next round
        let under_way = self.under_way.take().filter(|(queue, _)| queues.contains(queue));
        let next = || self.rotation.next(queues, 1).pop().map(|queue| (queue, CheckCursor::start()));
        let Some((queue, cursor)) = under_way.or_else(next) else { return Ok(()) };
        let rest = jobs.check_queue(&queue, true, cursor, limit).await?.next;
        self.under_way = rest.map(|cursor| (queue, cursor));
        Ok(())
    }
}
