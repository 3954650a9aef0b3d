//! Enqueues many jobs, each on its own.
//!
//! Ordinary jobs, which most are, are added in one pipeline and in their order. Jobs with a record need several
//! commands each: consecutive ones run concurrently and may overtake one another.

use futures_util::{StreamExt, stream};

use super::{
    EnqueueRefusal, EnqueuedJob, Jobs,
    enqueue::{add_command, build_enqueued, needs_record, parse_entry_id},
    new_entry::NewEntry,
};
use crate::{StoreError, StoreResult};
use common::{
    id::JobId,
    telemetry::spans::{ActiveSpan, Operation, SpanDescription},
    time::Millis,
    trace_context::TraceContext,
};
use model::job::NewJob;

/// Jobs with a record that are created concurrently.
const CONCURRENCY: usize = 64;

/// The outcome for one job.
type EnqueueOutcome = StoreResult<Result<EnqueuedJob, EnqueueRefusal>>;

impl Jobs {
    /// Stores each job that is not refused. Each comes with the time that its start time was computed from. Returns
    /// the outcomes in the same order.
    pub async fn enqueue_each(&self, new: Vec<(NewJob, Millis)>, trace: TraceContext) -> Vec<EnqueueOutcome> {
        let mut outcomes = Vec::with_capacity(new.len());
        let (mut ordinary, mut others) = (Vec::new(), Vec::new());
        for (mut job, now) in new {
            if job.is_debounced() {
                // The last of several that put off the same job decides what it is
                outcomes.extend(self.enqueue_concurrently(std::mem::take(&mut others), &trace).await);
                outcomes.extend(self.enqueue_pipelined(std::mem::take(&mut ordinary), &trace).await);
                outcomes.push(self.enqueue(job, trace.clone(), now).await);
            } else if self.can_pipeline(&job).await {
                outcomes.extend(self.enqueue_concurrently(std::mem::take(&mut others), &trace).await);
                self.place(&mut job);
                ordinary.push((job, now));
            } else {
                outcomes.extend(self.enqueue_pipelined(std::mem::take(&mut ordinary), &trace).await);
                others.push((job, now));
            }
        }
        outcomes.extend(self.enqueue_concurrently(others, &trace).await);
        outcomes.extend(self.enqueue_pipelined(ordinary, &trace).await);
        outcomes
    }

    async fn can_pipeline(&self, job: &NewJob) -> bool {
        let is_plain = !needs_record(job)
            && self.check_room(job).is_ok()
            && job.summary.limit.is_none()
            && self.max_depth(&job.queue).is_none();
        is_plain && self.is_closed(&job.queue).await.is_ok_and(|is_closed| !is_closed)
    }

    async fn enqueue_concurrently(&self, new: Vec<(NewJob, Millis)>, trace: &TraceContext) -> Vec<EnqueueOutcome> {
        let stored = stream::iter(new).map(|(job, now)| self.enqueue(job, trace.clone(), now));
        stored.buffered(CONCURRENCY).collect().await
    }

    async fn enqueue_pipelined(&self, new: Vec<(NewJob, Millis)>, trace: &TraceContext) -> Vec<EnqueueOutcome> {
        if new.is_empty() {
            return Vec::new();
        }
        let span = ActiveSpan::start(trace, || {
            let queue = new.first().map_or("", |(job, _)| job.queue.as_str());
            SpanDescription::messaging(Operation::Enqueue, queue).with_batch(new.len())
        });
        let trace = span.context();
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        let mut salts = Vec::with_capacity(new.len());
        for (job, _) in &new {
            let fields = NewEntry::new(self.sealer(), job, trace);
            salts.push(fields.salt);
            pipeline.add_command(add_command(&fields));
        }
        let answers = pipeline.query_async(&mut self.store.redis.clone()).await;
        let answers: Vec<redis::RedisResult<Option<String>>> = match answers {
            Ok(answers) => answers,
            Err(error) => vec![Err(error); new.len()],
        };
        let mut outcomes = Vec::with_capacity(new.len());
        for (((job, now), salt), answer) in new.into_iter().zip(salts).zip(answers) {
            outcomes.push(match answer {
                Ok(Some(entry)) => self.record_enqueued(job, trace.clone(), &entry, salt).await.map(Ok),
                // The first job of a stream creates it; the following ones take the same path, one after the other
                Ok(None) => self.enqueue(job, trace.clone(), now).await,
                Err(error) => Err(StoreError::from(error)),
            });
        }
        outcomes
    }

    /// Records an ordinary job that is in its stream.
    pub(super) async fn record_enqueued(
        &self,
        job: NewJob,
        trace: TraceContext,
        entry: &str,
        salt: u32,
    ) -> StoreResult<EnqueuedJob> {
        let entry = parse_entry_id(entry)?;
        let Some(id) = JobId::from_entry(entry, &job.queue, job.priority, salt) else {
            return Err(self.undo_without_id(&job, entry).await);
        };
        let enqueued = build_enqueued(id, entry, job, trace);
        self.report_enqueued(&enqueued);
        Ok(enqueued)
    }
}
