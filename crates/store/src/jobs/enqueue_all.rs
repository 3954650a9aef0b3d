//! Enqueues many jobs, all or none.
//!
//! Ordinary jobs are added in a transaction for each queue. Others are created one by one after a check of each. If one is
//! refused after all, because of a concurrent request or because Redis is full, the created ones are cancelled, unless
//! another call with the same ids may store the rest.

use super::{
    EnqueueRefusal, EnqueuedJob, Jobs, LocatedJob,
    enqueue::{add_command, needs_record, new_job_record},
    enqueue_span::batch_span,
    new_entry::NewEntry,
};
use crate::{StoreError, StoreResult, keys::QueueKeys};
use common::{
    id::JobId,
    name::{Priority, QueueName},
    time::Millis,
    trace_context::TraceContext,
};
use model::job::{JobState, NewJob};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// The entry of a job that was added to a stream, none if the stream does not exist, and the salt of its id.
type AddedEntry = (Option<String>, u32);

/// A batch that was refused because of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRefusal {
    /// The index of that job.
    pub index: usize,
    /// The reason.
    pub refusal: EnqueueRefusal,
    /// Whether jobs of the batch with ids of its own are stored nevertheless: by an earlier call, or by this one if the
    /// reason passes by itself. Another call with these ids stores the rest.
    pub is_incomplete: bool,
}

impl BatchRefusal {
    fn new(index: usize, refusal: EnqueueRefusal) -> Self {
        Self { index, refusal, is_incomplete: false }
    }
}

impl Jobs {
    /// Whether [`Self::enqueue_all`] stores these jobs in one step: those of several queues may be on several servers.
    #[must_use]
    pub fn is_one_step(new: &[NewJob]) -> bool {
        !new.iter().any(needs_record) && new.windows(2).all(|two| two[0].queue == two[1].queue)
    }

    /// Stores all jobs, in their order, or none. A job with one of `own_ids`, which no other request can have, counts
    /// as stored if it exists: an earlier call created it.
    ///
    /// # Errors
    /// After [`StoreError::Unavailable`] some may have been stored.
    pub async fn enqueue_all(
        &self,
        mut new: Vec<NewJob>,
        trace: TraceContext,
        now: Millis,
        own_ids: &HashSet<JobId>,
    ) -> StoreResult<Result<Vec<EnqueuedJob>, BatchRefusal>> {
        self.place_all(&mut new).await?;
        // They are stored in their order: if any is, the first is
        let first_own = new.iter().filter_map(|job| job.id).find(|id| own_ids.contains(id));
        let stored = self.enqueue_checked(new, trace, now, own_ids).await?;
        let Err(mut refused) = stored else { return Ok(stored) };
        let first = self.find_own_job(first_own, own_ids).await?;
        refused.is_incomplete = first.is_some_and(|located| located.state() != JobState::Cancelled);
        Ok(Err(refused))
    }

    /// Chooses the partitions of the jobs.
    async fn place_all(&self, new: &mut [NewJob]) -> StoreResult<()> {
        let mut last = None;
        for job in new.iter() {
            if last != Some(&job.queue) {
                // It tells how many partitions the queue has
                self.is_closed(&job.queue).await?;
                last = Some(&job.queue);
            }
        }
        self.place_batch(new);
        Ok(())
    }

    async fn enqueue_checked(
        &self,
        new: Vec<NewJob>,
        trace: TraceContext,
        now: Millis,
        own_ids: &HashSet<JobId>,
    ) -> StoreResult<Result<Vec<EnqueuedJob>, BatchRefusal>> {
        if let Err(refused) = self.check_batch(&new, own_ids).await? {
            return Ok(Err(refused));
        }
        if new.iter().any(needs_record) {
            return self.enqueue_one_by_one(new, trace, now, own_ids).await;
        }
        let span = batch_span(&new, &trace);
        self.add_all_to_streams(new, span.context().clone()).await
    }

    /// Checks each job, as far as that is possible beforehand.
    async fn check_batch(&self, new: &[NewJob], own_ids: &HashSet<JobId>) -> StoreResult<Result<(), BatchRefusal>> {
        let Err(refused) = self.check_jobs(new, own_ids, &HashSet::new()).await? else { return Ok(Ok(())) };
        // What blocks a job that an earlier call created is perhaps the job itself, and it needs no room in its queue
        let mut stored = HashSet::new();
        for id in new.iter().filter_map(|job| job.id) {
            if self.find_own_job(Some(id), own_ids).await?.is_some() {
                stored.insert(id);
            }
        }
        if stored.is_empty() { Ok(Err(refused)) } else { self.check_jobs(new, own_ids, &stored).await }
    }

    /// Checks each job but those that an earlier call `stored`.
    async fn check_jobs(
        &self,
        new: &[NewJob],
        own_ids: &HashSet<JobId>,
        stored: &HashSet<JobId>,
    ) -> StoreResult<Result<(), BatchRefusal>> {
        let (mut ids, mut fingerprints, mut per_queue) = (HashSet::new(), HashSet::new(), BTreeMap::new());
        let mut open_queue = None;
        for (index, job) in new.iter().enumerate() {
            // Most jobs of most batches are ordinary ones for one queue
            if open_queue == Some(&job.queue) && !needs_record(job) && self.max_depth(&job.queue).is_none() {
                continue;
            }
            open_queue = None;
            if let Some(id) = job.id.filter(|id| !ids.insert(*id)) {
                return Ok(Err(BatchRefusal::new(index, EnqueueRefusal::Duplicate(id))));
            }
            if let Some(unique) = &job.unique
                && !fingerprints.insert((job.queue.clone(), unique.fingerprint.clone()))
            {
                return Ok(Err(BatchRefusal::new(index, EnqueueRefusal::DuplicateInBatch)));
            }
            if job.id.is_some_and(|id| stored.contains(&id)) {
                continue;
            }
            if let Err(refused) = self.check_new_job(job, &mut per_queue, own_ids).await? {
                return Ok(Err(BatchRefusal::new(index, refused)));
            }
            open_queue = Some(&job.queue);
        }
        Ok(Ok(()))
    }

    async fn check_new_job(
        &self,
        job: &NewJob,
        per_queue: &mut BTreeMap<QueueName, u64>,
        own_ids: &HashSet<JobId>,
    ) -> StoreResult<Result<(), EnqueueRefusal>> {
        if self.is_closed(&job.queue).await? {
            return Ok(Err(EnqueueRefusal::QueueClosed));
        }
        if !job.id.is_some_and(|id| own_ids.contains(&id)) {
            self.check_room(job)?;
        }
        if let Some(id) = job.id
            && !own_ids.contains(&id)
            && self.locate(id).await?.is_some()
        {
            return Ok(Err(EnqueueRefusal::Duplicate(id)));
        }
        if job.unique.is_some()
            && let Err(conflict) = self.check_uniqueness(job).await?
        {
            return Ok(Err(conflict));
        }
        if job.start_at.is_none() && !job.is_pending {
            let Some(max_depth) = self.store.settings.max_depth(&job.queue) else { return Ok(Ok(())) };
            let queue = &*job.queue.base();
            if !per_queue.contains_key(queue) {
                per_queue.insert(queue.clone(), self.queue_stats(queue).await?.available);
            }
            let depth = per_queue.entry(queue.clone()).or_default();
            *depth += 1;
            if *depth > max_depth {
                return Ok(Err(EnqueueRefusal::QueueFull { max_depth }));
            }
        }
        Ok(Ok(()))
    }

    async fn find_own_job(&self, id: Option<JobId>, own_ids: &HashSet<JobId>) -> StoreResult<Option<LocatedJob>> {
        match id.filter(|id| own_ids.contains(id)) {
            Some(id) => self.locate(id).await,
            None => Ok(None),
        }
    }

    async fn enqueue_one_by_one(
        &self,
        new: Vec<NewJob>,
        trace: TraceContext,
        now: Millis,
        own_ids: &HashSet<JobId>,
    ) -> StoreResult<Result<Vec<EnqueuedJob>, BatchRefusal>> {
        let (mut stored, mut made) = (Vec::with_capacity(new.len()), Vec::new());
        for (index, job) in new.into_iter().enumerate() {
            let copy = job.clone();
            match self.enqueue(job, trace.clone(), now).await {
                Ok(Ok(enqueued)) => {
                    // A job that was put off is not this call's to cancel
                    made.extend(enqueued.is_new.then_some(enqueued.job.id));
                    stored.push(enqueued);
                }
                Ok(Err(refused)) => {
                    if let Some(id) = copy.id
                        && let Some(located) = self.find_own_job(Some(id), own_ids).await?
                    {
                        let state = located.state();
                        stored.push(EnqueuedJob { job: new_job_record(id, copy), state, is_new: true });
                        continue;
                    }
                    if refused.passes() {
                        // A repetition with the same ids stores the rest: it would count a cancelled job as stored
                        made.retain(|id| !own_ids.contains(id));
                    }
                    self.roll_back(&made).await?;
                    return Ok(Err(BatchRefusal::new(index, refused)));
                }
                Err(error) => {
                    let has_made = !made.is_empty();
                    // A repetition with the same key has the same ids: it would count a cancelled job as stored
                    made.retain(|id| !own_ids.contains(id));
                    // A full Redis accepts no more jobs, but allows to cancel the created ones
                    let _ = self.roll_back(&made).await;
                    return Err(if has_made { error.after_write() } else { error });
                }
            }
        }
        Ok(Ok(stored))
    }

    /// Cancels what this call created before it found that it cannot create all.
    async fn roll_back(&self, made: &[JobId]) -> StoreResult<()> {
        for id in made {
            let _ = self.cancel(*id).await?;
        }
        Ok(())
    }

    /// Adds ordinary jobs, those of a queue in one transaction.
    async fn add_all_to_streams(
        &self,
        new: Vec<NewJob>,
        trace: TraceContext,
    ) -> StoreResult<Result<Vec<EnqueuedJob>, BatchRefusal>> {
        let streams: BTreeSet<(&QueueName, Priority)> = new.iter().map(|job| (&job.queue, job.priority)).collect();
        // A transaction that finds one of several streams missing adds to the others. If it has only one stream it adds
        // all jobs or none, and asking first would cost a round trip of every batch
        if streams.len() > 1 {
            for (queue, priority) in self.missing_streams(&streams).await? {
                if let Err(refusal) = self.open_stream_for(&new, queue, priority).await? {
                    return Ok(Err(refusal));
                }
            }
        }
        let mut added = self.add_by_queue(&new, &trace).await?;
        if let [(queue, priority)] = streams.into_iter().collect::<Vec<_>>()[..]
            && added.iter().all(|(entry, _)| entry.is_none())
        {
            if let Err(refusal) = self.open_stream_for(&new, queue, priority).await? {
                return Ok(Err(refusal));
            }
            added = self.add_by_queue(&new, &trace).await?;
        }
        let mut stored = Vec::with_capacity(new.len());
        for (job, (entry, salt)) in new.into_iter().zip(added) {
            let entry = entry.ok_or_else(|| StoreError::damaged("redis was emptied in the middle of a batch"))?;
            stored.push(self.record_enqueued(job, trace.clone(), &entry, salt).await?);
        }
        Ok(Ok(stored))
    }

    /// The streams that may not exist; an error if one of the keys is no stream.
    async fn missing_streams<'a>(
        &self,
        streams: &BTreeSet<(&'a QueueName, Priority)>,
    ) -> StoreResult<Vec<(&'a QueueName, Priority)>> {
        let mut pipeline = redis::pipe();
        for (queue, priority) in streams {
            pipeline.cmd("XLEN").arg(QueueKeys::new(queue).stream(*priority));
        }
        let lengths: Vec<u64> = pipeline.query_async(&mut self.store.redis.clone()).await?;
        Ok(streams.iter().zip(lengths).filter(|(_, length)| *length == 0).map(|(stream, _)| *stream).collect())
    }

    async fn open_stream_for(
        &self,
        new: &[NewJob],
        queue: &QueueName,
        priority: Priority,
    ) -> StoreResult<Result<(), BatchRefusal>> {
        let opened = self.open_stream(queue, priority).await?;
        let index = || new.iter().position(|job| job.queue == *queue).unwrap_or_default();
        Ok(opened.map_err(|refusal| BatchRefusal::new(index(), refusal)))
    }

    /// Adds each to its stream, the jobs of each queue in a transaction. Returns the entries, none where the stream does not
    /// exist, and the salts of the ids, in the order of the jobs.
    async fn add_by_queue(&self, new: &[NewJob], trace: &TraceContext) -> StoreResult<Vec<AddedEntry>> {
        let mut queues: BTreeMap<&QueueName, Vec<usize>> = BTreeMap::new();
        for (index, job) in new.iter().enumerate() {
            queues.entry(&job.queue).or_default().push(index);
        }
        let mut all: Vec<AddedEntry> = vec![(None, 0); new.len()];
        for (queue, indexes) in queues {
            let jobs: Vec<&NewJob> = indexes.iter().map(|index| &new[*index]).collect();
            match self.add_in_transaction(&jobs, trace).await {
                Ok(added) => indexes.into_iter().zip(added).for_each(|(index, added)| all[index] = added),
                Err(error) => {
                    tracing::debug!(%error, %queue, "a batch is taken back");
                    let made: Vec<JobId> = new.iter().zip(&all).filter_map(|(job, added)| id_of(job, added)).collect();
                    // A full Redis accepts no more jobs, but allows to cancel the added ones
                    let _ = self.roll_back(&made).await;
                    return Err(if made.is_empty() { error } else { error.after_write() });
                }
            }
        }
        Ok(all)
    }

    async fn add_in_transaction(&self, new: &[&NewJob], trace: &TraceContext) -> StoreResult<Vec<AddedEntry>> {
        let mut pipeline = redis::Pipeline::with_capacity(new.len());
        pipeline.atomic();
        let mut salts = Vec::with_capacity(new.len());
        for job in new {
            let fields = NewEntry::new(self.sealer(), job, trace);
            salts.push(fields.salt);
            pipeline.add_command(add_command(&fields));
        }
        let entries: Vec<Option<String>> = pipeline.query_async(&mut self.store.redis.clone()).await?;
        Ok(entries.into_iter().zip(salts).collect())
    }
}

/// The id of a job that was added.
fn id_of(job: &NewJob, (entry, salt): &AddedEntry) -> Option<JobId> {
    JobId::from_entry(entry.as_deref()?.parse().ok()?, &job.queue, job.priority, *salt)
}
