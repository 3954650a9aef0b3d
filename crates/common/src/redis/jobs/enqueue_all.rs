//! Many new jobs at once, all or none.
//!
//! When all of them are ordinary they go into their streams in one transaction. Others are made one by one after a look
//! whether each can be made; if one cannot after all, because somebody was faster, those made before are cancelled.

use super::{
    Enqueued, Jobs, Refused,
    enqueue::{needs_record, parse_entry},
    stored::new_fields,
};
use crate::{
    job::{JobLimit, NewJob},
    name::{Priority, QueueName},
    redis::{StoreError, StoreResult, events::Happened, keys::QueueKeys},
    time::Millis,
};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A batch that was refused because of one of its jobs; nothing was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRefused {
    /// Which one.
    pub index: usize,
    /// Why.
    pub refused: Refused,
}

impl Jobs {
    /// Stores all of the jobs, in their order, or none. With `is_repeated_by_id` a job whose id is there already counts as
    /// stored: an earlier call made it.
    ///
    /// # Errors
    /// After [`StoreError::Unavailable`] some may have been stored.
    pub async fn enqueue_all(
        &self,
        new: Vec<NewJob>,
        traceparent: Option<String>,
        now: Millis,
        is_repeated_by_id: bool,
    ) -> StoreResult<Result<Vec<Enqueued>, BatchRefused>> {
        if let Err(refused) = self.check_all(&new, is_repeated_by_id).await? {
            return Ok(Err(refused));
        }
        if new.iter().any(needs_record) {
            return self.enqueue_in_turn(new, traceparent, now, is_repeated_by_id).await;
        }
        self.add_all(new, traceparent).await
    }

    /// Whether each job can be stored, as far as can be said beforehand.
    async fn check_all(&self, new: &[NewJob], is_repeated_by_id: bool) -> StoreResult<Result<(), BatchRefused>> {
        let (mut ids, mut fingerprints, mut per_queue) = (HashSet::new(), HashSet::new(), BTreeMap::new());
        for (index, job) in new.iter().enumerate() {
            let refused = |refused: Refused| Ok(Err(BatchRefused { index, refused }));
            if self.is_closed(&job.queue).await? {
                return refused(Refused::Closed);
            }
            if let Some(id) = job.id
                && (!ids.insert(id) || (!is_repeated_by_id && self.locate(id).await?.is_some()))
            {
                return refused(Refused::Duplicate(id));
            }
            if let Some(unique) = &job.unique {
                if let Err(conflict) = self.is_alone(job).await? {
                    return refused(conflict);
                }
                if !fingerprints.insert((job.queue.clone(), unique.fingerprint.clone())) {
                    return refused(Refused::SameInBatch);
                }
            }
            if job.start_at.is_none() && !job.is_pending {
                let count: &mut u64 = per_queue.entry(job.queue.clone()).or_insert(0);
                *count += 1;
                if let Some(max_depth) = self.max_depth(&job.queue)
                    && self.stats(&job.queue).await?.available + *count > max_depth
                {
                    return refused(Refused::Full { max_depth });
                }
            }
        }
        Ok(Ok(()))
    }

    async fn enqueue_in_turn(
        &self,
        new: Vec<NewJob>,
        traceparent: Option<String>,
        now: Millis,
        is_repeated_by_id: bool,
    ) -> StoreResult<Result<Vec<Enqueued>, BatchRefused>> {
        let mut stored: Vec<Enqueued> = Vec::with_capacity(new.len());
        for (index, job) in new.into_iter().enumerate() {
            let copy = job.clone();
            match self.enqueue(job, traceparent.clone(), now).await? {
                Ok(enqueued) => stored.push(enqueued),
                Err(Refused::Duplicate(id)) if is_repeated_by_id && copy.id == Some(id) => {
                    let state = self.locate(id).await?.map_or(crate::job::State::Completed, |located| located.state());
                    stored.push(Enqueued { job: super::enqueue::stored_new(id, copy), state });
                }
                Err(refused) => {
                    for enqueued in &stored {
                        let _ = self.cancel(enqueued.job.id).await?;
                    }
                    return Ok(Err(BatchRefused { index, refused }));
                }
            }
        }
        Ok(Ok(stored))
    }

    /// Ordinary jobs: one transaction.
    async fn add_all(
        &self,
        new: Vec<NewJob>,
        traceparent: Option<String>,
    ) -> StoreResult<Result<Vec<Enqueued>, BatchRefused>> {
        let streams: BTreeSet<(QueueName, Priority)> =
            new.iter().map(|job| (job.queue.clone(), job.priority)).collect();
        for (queue, priority) in &streams {
            if let Err(refused) = self.open_stream(queue, *priority).await? {
                let index = new.iter().position(|job| job.queue == *queue).unwrap_or_default();
                return Ok(Err(BatchRefused { index, refused }));
            }
        }
        for (index, job) in new.iter().enumerate() {
            if let Some(JobLimit::Queue(rate)) = &job.summary.limit
                && let Err(refused) = self.limit_queue(&job.queue, *rate).await?
            {
                return Ok(Err(BatchRefused { index, refused }));
            }
        }
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        let mut salts = Vec::with_capacity(new.len());
        for job in &new {
            let (salt, fields) = new_fields(job, traceparent.as_deref());
            salts.push(salt);
            pipeline
                .cmd("XADD")
                .arg(QueueKeys::new(&job.queue).stream(job.priority))
                .arg("NOMKSTREAM")
                .arg("*")
                .arg(fields);
        }
        let entries: Vec<Option<String>> = pipeline.query_async(&mut self.redis.clone()).await?;
        let mut stored = Vec::with_capacity(new.len());
        for ((job, salt), entry) in new.into_iter().zip(salts).zip(entries) {
            let entry = entry.ok_or_else(|| StoreError::damaged("redis was emptied in the middle of a batch"))?;
            let queue = job.queue.clone();
            let enqueued = self.added(job, traceparent.clone(), parse_entry(&entry)?, salt).await?;
            metrics::counter!("galley_jobs_enqueued_total", "queue" => queue.to_string()).increment(1);
            self.events.record(Happened::enqueued(&enqueued.job, enqueued.state));
            stored.push(enqueued);
        }
        Ok(Ok(stored))
    }
}
