//! Creates jobs of workflows, many in one script call. Only those that start now and hold nothing but their records; all
//! others are created one by one.

use std::collections::BTreeMap;

use super::{
    EnqueuedJob, JobRecord, Jobs,
    enqueue::{build_job_record, needs_other_keys},
    enqueue_span::EnqueueSpan,
};
use crate::{StoreResult, connection::notification::Notification, keys::QueueKeys, script};
use common::{
    id::EntryId,
    name::{Priority, QueueName},
    time::Millis,
    trace_context::{SpanReference, TraceContext},
};
use model::job::{JobHistory, JobState, NewJob};

/// A job that is about to be stored, and its span.
type UnstoredJob = (JobRecord, EnqueueSpan);

/// A job of a workflow that starts now.
#[derive(Debug)]
pub(crate) struct NewMember {
    /// The job, with the id that its workflow gives it.
    pub(crate) job: NewJob,
    /// The trace that its workflow belongs to.
    pub(crate) trace: TraceContext,
    /// The span of the attempt that it follows, if that is recorded.
    pub(crate) cause: Option<SpanReference>,
    /// When it is created.
    pub(crate) now: Millis,
}

impl NewMember {
    /// A job that was refused before it was made has failures, which its history gets elsewhere.
    fn holds_only_its_record(&self) -> bool {
        !needs_other_keys(&self.job) && self.job.failures.is_empty()
    }

    fn to_record(&self) -> Option<UnstoredJob> {
        let history = JobHistory { created_at: Some(self.now), ..JobHistory::default() };
        let id = self.job.id?;
        let span = EnqueueSpan::start(&self.job, &self.trace, self.cause);
        Some((build_job_record(id, self.job.clone(), span.context().clone(), history, true), span))
    }
}

impl Jobs {
    /// Creates jobs of workflows. Returns for each whether it exists now: whatever is in the way of the others,
    /// [`Jobs::enqueue`] says it.
    pub(crate) async fn create_members(&self, new: &[NewMember]) -> Vec<bool> {
        let mut exists = vec![false; new.len()];
        let mut streams: BTreeMap<(QueueName, Priority), Vec<(usize, UnstoredJob)>> = BTreeMap::new();
        for (number, member) in new.iter().enumerate() {
            if member.holds_only_its_record()
                && let Some(record) = member.to_record()
            {
                let stream = (record.0.queue.clone(), record.0.priority);
                streams.entry(stream).or_default().push((number, record));
            }
        }
        for ((queue, priority), members) in streams {
            let (numbers, jobs): (Vec<usize>, Vec<UnstoredJob>) = members.into_iter().unzip();
            match self.create_in_stream(&queue, priority, jobs).await {
                Ok(true) => numbers.into_iter().for_each(|number| exists[number] = true),
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, %queue, "jobs of workflows not created together"),
            }
        }
        exists
    }

    /// Creates jobs of one stream; false if their queue is refused.
    async fn create_in_stream(
        &self,
        queue: &QueueName,
        priority: Priority,
        jobs: Vec<UnstoredJob>,
    ) -> StoreResult<bool> {
        if self.register_queue(queue).await?.is_err() {
            return Ok(false);
        }
        let keys = QueueKeys::new(queue);
        let mut call = script::CREATE_MEMBERS.prepare_invoke();
        call.key(keys.priorities()).key(keys.stream(priority));
        call.arg(priority.get()).arg(self.store.redis.topics().notifications());
        call.arg(Notification::StreamCreated(queue.clone()).encode());
        for (job, _) in &jobs {
            let fields = job.to_fields(self.sealer());
            call.key(keys.record(&job.id)).key(keys.result(&job.id));
            call.arg(job.id.to_string()).arg(fields.len()).arg(fields);
        }
        let answers: Vec<String> = match call.invoke_async(&mut self.store.redis.clone()).await {
            Ok(answers) => answers,
            Err(error) => {
                for (_, span) in jobs {
                    span.record_failed();
                }
                return Err(error.into());
            }
        };
        let mut answers = answers.into_iter();
        // The queue may have been deleted between the registration and this
        if answers.next().is_some_and(|new| new == "new") {
            self.add_to_registry(queue).await?;
        }
        for ((job, span), entry) in jobs.into_iter().zip(answers) {
            // Another process made it, or something is in its way
            let Ok(entry) = entry.parse::<EntryId>() else { continue };
            span.record_enqueued(job.id);
            let enqueued_at = i64::try_from(entry.milliseconds).ok();
            self.report_enqueued(&EnqueuedJob {
                job: JobRecord { enqueued_at, ..job },
                state: JobState::Available,
                is_new: true,
            });
        }
        Ok(true)
    }
}
