//! Enqueues one job.

use std::{cell::RefCell, collections::HashMap, sync::OnceLock};

use redis::{Cmd, ScriptInvocation, ToRedisArgs};

use super::{Jobs, enqueue_span::EnqueueSpan, new_entry::NewEntry, record::JobRecord};
use crate::{StoreError, StoreResult, connection::budgets::DataKind, events::JobEvent, keys::QueueKeys, script};
use common::{
    id::{EntryId, JobId},
    name::{Priority, QueueName},
    prometheus::handles_epoch,
    time::Millis,
    trace_context::{SpanReference, TraceContext},
};
use model::job::{JobHistory, JobState, NewJob};

/// A queue can vanish between its creation and its use only if somebody empties Redis at that moment.
const MAX_STREAM_ATTEMPTS: usize = 3;
/// How many counters a thread keeps.
const MAX_KEPT_COUNTERS: usize = 1024;

/// About what Redis adds to a job in a stream, with its attempt.
const ENTRY_BYTES: usize = 130;
/// About what Redis adds to a job with a record.
pub(super) const RECORD_BYTES: usize = 1000;

/// A stored job.
#[derive(Debug, Clone)]
pub struct EnqueuedJob {
    /// The job.
    pub job: JobRecord,
    /// Available or scheduled.
    pub state: JobState,
    /// Whether it was created, and not an equal job put off.
    pub is_new: bool,
}

/// Why a job was refused; nothing was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnqueueRefusal {
    /// A job with that id exists, or one that is equal by the job's uniqueness policy.
    Duplicate(JobId),
    /// An equal job exists, and the policy accepts that as success.
    Ignored {
        /// The existing job.
        id: JobId,
        /// Its JSON.
        json: String,
    },
    /// Another job of the same batch is equal by its uniqueness policy.
    DuplicateInBatch,
    /// The queue accepts no new jobs.
    QueueClosed,
    /// The queue has the maximum number of waiting jobs.
    QueueFull {
        /// The maximum.
        max_depth: u64,
    },
    /// The maximum number of queues is reached.
    TooManyQueues {
        /// The maximum.
        max_queues: u64,
    },
    /// A limit of the queue would leave partitions without a share.
    LimitBelowPartitions {
        /// How many partitions it has.
        partitions: u16,
    },
    /// Jobs of workflows are in partition 0, and those with a key or a uniqueness where it belongs.
    WorkflowJobWithHome,
}

impl EnqueueRefusal {
    /// Whether the same request may be accepted later though nobody changes anything.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(self, Self::QueueFull { .. })
    }
}

/// Whether a job needs more than a stream entry.
pub(super) fn needs_record(new: &NewJob) -> bool {
    new.id.is_some() || needs_other_keys(new)
}

/// Whether a job is not in its stream from the start, or something beside it and its record is stored for it.
pub(super) fn needs_other_keys(new: &NewJob) -> bool {
    let summary = &new.summary;
    let has_timer = summary.expires_at.is_some() || summary.total_timeout.is_some();
    let has_key = summary.limit.is_some();
    new.start_at.is_some() || new.is_pending || new.unique.is_some() || has_timer || has_key
}

enum AddResult {
    Entry(EntryId),
    Full,
    NoStream,
}

impl Jobs {
    /// Stores a job. `now` is the time that its start time was computed from.
    ///
    /// # Errors
    /// After [`StoreError::Unavailable`] the job may have been stored nevertheless.
    pub fn enqueue(
        &self,
        new: impl Into<Box<NewJob>>,
        trace: TraceContext,
        now: Millis,
    ) -> impl Future<Output = StoreResult<Result<EnqueuedJob, EnqueueRefusal>>> {
        self.enqueue_after(new.into(), (trace, Vec::new()), now)
    }

    /// Stores a job that follows from attempts, or from another trace: its span has links there.
    ///
    /// # Errors
    /// As [`Jobs::enqueue`].
    pub(crate) async fn enqueue_after(
        &self,
        new: Box<NewJob>,
        (trace, causes): (TraceContext, Vec<SpanReference>),
        now: Millis,
    ) -> StoreResult<Result<EnqueuedJob, EnqueueRefusal>> {
        let (span, member_id) = (EnqueueSpan::start(&new, &trace, causes), new.id.filter(|_| new.workflow.is_some()));
        let outcome = self.enqueue_in(new, span.context().clone(), now).await;
        match &outcome {
            Ok(Ok(enqueued)) => span.record_enqueued(enqueued.job.id),
            // Another process made this very job of the workflow, and its span is that of the job
            Ok(Err(EnqueueRefusal::Duplicate(known))) if Some(*known) == member_id => {}
            Ok(Err(_)) => span.record_refused(),
            Err(_) => span.record_failed(),
        }
        outcome
    }

    // Every job passes here: a future holds each argument twice and its largest branch whole, and is moved and allocated as
    // such. So the job is in a box, and so is what few jobs need
    async fn enqueue_in(
        &self,
        mut new: Box<NewJob>,
        trace: TraceContext,
        now: Millis,
    ) -> StoreResult<Result<EnqueuedJob, EnqueueRefusal>> {
        if new.workflow.is_none() && self.is_closed(&new.queue).await? {
            return Ok(Err(EnqueueRefusal::QueueClosed));
        }
        if new.workflow.is_none() {
            self.check_room(&new)?;
            self.place(&mut new);
        }
        let outcome = if needs_record(&new) {
            Box::pin(self.create_with_record(*new, trace, now)).await?
        } else {
            self.add_to_stream(new, trace).await?
        };
        if let Ok(enqueued) = &outcome {
            self.report_enqueued(enqueued);
        }
        Ok(outcome)
    }

    /// Whether Redis has room for a new job.
    ///
    /// # Errors
    /// Jobs like it have used up their share of the memory.
    pub(crate) fn check_room(&self, new: &NewJob) -> StoreResult<()> {
        let memory = self.store.redis.memory();
        if needs_record(new) {
            memory.check_room(DataKind::JobRecords)?;
        }
        memory.check_room(DataKind::WaitingJobs)
    }

    /// Counts the memory of a new job.
    pub(super) fn note_enqueued(&self, job: &JobRecord) {
        let (kind, overhead) =
            if job.has_record { (DataKind::JobRecords, RECORD_BYTES) } else { (DataKind::WaitingJobs, ENTRY_BYTES) };
        self.store.redis.memory().note_stored(kind, job.envelope.as_str().len() + overhead);
    }

    /// An ordinary job: one entry in a stream.
    async fn add_to_stream(
        &self,
        new: Box<NewJob>,
        trace: TraceContext,
    ) -> StoreResult<Result<EnqueuedJob, EnqueueRefusal>> {
        let fields = NewEntry::new(self.sealer(), &new, &trace);
        let salt = fields.salt;
        for _ in 0..MAX_STREAM_ATTEMPTS {
            let added = match self.max_depth(&new.queue) {
                Some(max_depth) => Box::pin(self.add_bounded(max_depth, &fields)).await?,
                None => self.add_unbounded(&fields).await?,
            };
            match added {
                AddResult::Entry(entry) => {
                    let Some(id) = JobId::from_entry(entry, &new.queue, new.priority, salt) else {
                        return Err(Box::pin(self.undo_without_id(&new, entry)).await);
                    };
                    return Ok(Ok(build_enqueued(id, entry, *new, trace)));
                }
                AddResult::Full => {
                    let max_depth = self.store.settings.max_depth(&new.queue).unwrap_or(0);
                    return Ok(Err(EnqueueRefusal::QueueFull { max_depth }));
                }
                AddResult::NoStream => {
                    if let Err(refused) = Box::pin(self.open_stream(&new.queue, new.priority)).await? {
                        return Ok(Err(refused));
                    }
                }
            }
        }
        Err(StoreError::damaged(format!("the stream of {} keeps vanishing", new.queue)))
    }

    async fn add_unbounded(&self, fields: &NewEntry<'_>) -> StoreResult<AddResult> {
        let entry: Option<String> = add_command(fields).query_async(&mut self.store.redis.clone()).await?;
        entry.map_or(Ok(AddResult::NoStream), |entry| parse_entry_id(&entry).map(AddResult::Entry))
    }

    async fn add_bounded(&self, max_depth: u64, fields: &NewEntry<'_>) -> StoreResult<AddResult> {
        let new = fields.job;
        let keys = QueueKeys::new(&new.queue);
        let mut call = script::ENQUEUE_BOUNDED.prepare_invoke();
        call.key(keys.stats()).key(keys.stream(new.priority));
        self.add_other_streams(&mut call, &new.queue, new.priority).await?;
        let answer: Option<String> =
            call.arg(max_depth).arg(fields).invoke_async(&mut self.store.redis.clone()).await?;
        match answer.as_deref() {
            None => Ok(AddResult::NoStream),
            Some("full") => Ok(AddResult::Full),
            Some(entry) => parse_entry_id(entry).map(AddResult::Entry),
        }
    }

    /// Counts a stored job and its memory, and records its event.
    pub(super) fn report_enqueued(&self, enqueued: &EnqueuedJob) {
        if !enqueued.is_new {
            return;
        }
        self.note_enqueued(&enqueued.job);
        count_enqueued(&enqueued.job.queue);
        self.store.events.statistics().count_enqueued(&enqueued.job.queue);
        self.store.events.record(JobEvent::enqueued(&enqueued.job, enqueued.state));
    }

    /// Removes an entry without an id, by which nobody could find its job: Redis's clock stood still for 268 million jobs.
    pub(super) async fn undo_without_id(&self, new: &NewJob, entry: EntryId) -> StoreError {
        let stream = QueueKeys::new(&new.queue).stream(new.priority);
        let mut command = redis::cmd("XDEL");
        command.arg(stream).arg(entry.to_string());
        let removed = command.exec_async(&mut self.store.redis.clone()).await;
        removed.err().map_or_else(|| StoreError::damaged("redis's clock stands still"), StoreError::from)
    }

    /// Adds the streams of a queue's other priorities: its depth limit counts them all.
    pub(super) async fn add_other_streams(
        &self,
        call: &mut ScriptInvocation<'_>,
        queue: &QueueName,
        priority: Priority,
    ) -> StoreResult<()> {
        let keys = QueueKeys::new(queue);
        for other in self.priorities(queue).await?.into_iter().filter(|other| *other != priority) {
            call.key(keys.stream(other));
        }
        Ok(())
    }
}

/// Counts a stored job. Each thread keeps the counters that it used: looking one up by its labels costs more than counting.
fn count_enqueued(queue: &QueueName) {
    thread_local! {
        static COUNTERS: RefCell<(u64, HashMap<QueueName, metrics::Counter>)> = RefCell::default();
    }
    COUNTERS.with_borrow_mut(|(epoch, counters)| {
        let current = handles_epoch();
        if std::mem::replace(epoch, current) != current {
            counters.clear();
        }
        if let Some(counter) = counters.get(queue) {
            return counter.increment(1);
        }
        if counters.len() >= MAX_KEPT_COUNTERS {
            counters.clear();
        }
        let counter = metrics::counter!("galley_jobs_enqueued_total", "queue" => queue.to_string());
        counter.increment(1);
        counters.insert(queue.clone(), counter);
    });
}

/// An ordinary job that is in its stream.
pub(super) fn build_enqueued(id: JobId, entry: EntryId, new: NewJob, trace: TraceContext) -> EnqueuedJob {
    let enqueued_at = i64::try_from(entry.milliseconds).ok();
    let job = JobRecord { enqueued_at, ..build_job_record(id, new, trace, JobHistory::default(), false) };
    EnqueuedJob { job, state: JobState::Available, is_new: true }
}

/// Adds an ordinary job to its stream; nil if the stream does not exist.
pub(super) fn add_command(fields: &NewEntry<'_>) -> Cmd {
    let new = fields.job;
    // NOMKSTREAM: a stream is created with its group and its registry entry, or not at all
    let mut command = Cmd::with_capacity(8 + fields.num_of_args(), fields.envelope.len() + 128);
    command.arg("XADD").arg(QueueKeys::new(&new.queue).stream(new.priority)).arg("NOMKSTREAM").arg("*").arg(fields);
    command
}

pub(super) fn parse_entry_id(text: &str) -> StoreResult<EntryId> {
    text.parse().map_err(|error: common::id::EntryIdError| StoreError::damaged(error.to_string()))
}

/// The record of a new, ordinary job.
pub(crate) fn new_job_record(id: JobId, new: NewJob) -> JobRecord {
    let mut history = JobHistory::default();
    for failure in new.failures.iter().cloned() {
        history.record_failure(failure, None);
    }
    build_job_record(id, new, TraceContext::default(), history, false)
}

pub(super) fn build_job_record(
    id: JobId,
    new: NewJob,
    trace: TraceContext,
    history: JobHistory,
    has_record: bool,
) -> JobRecord {
    JobRecord {
        id,
        queue: new.queue,
        priority: new.priority,
        envelope: new.envelope,
        summary: new.summary,
        history,
        lease_ms: new.visibility_timeout_ms,
        timeout_ms: new.timeout_ms,
        trace: trace.named_after(id),
        previous_span: None,
        span: OnceLock::new(),
        workflow: new.workflow,
        parent_results: None,
        parent_results_bytes: new.parent_results_bytes,
        wait: None,
        has_record,
        enqueued_at: None,
    }
}
