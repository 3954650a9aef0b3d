//! A stored job, and what remains of it when it is finished.

use std::sync::OnceLock;

use redis::{FromRedisValue, ParsingError, Value};

use super::compact_result::{CompactResult, JobResult};
use crate::{StoreError, StoreResult, sealing::Sealer};
use common::{
    id::{EntryId, JobId},
    name::{LimitKey, Priority, QueueName},
    telemetry::WorkScope,
    time::Millis,
    trace_context::{SpanReference, TraceContext},
};
use model::{
    job::{
        Envelope, EnvelopeSummary, JobHistory, JobState, JobWait, KeyLimit, RetryPolicy, retry::OnExhaustion,
        view::JobView,
    },
    workflow::Membership,
};

/// The field that holds `tracestate` and `baggage`, beside `c` with the `traceparent`.
pub(crate) const TRACE_REST: &str = "b";
/// The field that holds what the job waits for.
pub(super) const WAIT: &str = "g";

/// A job from a stream entry or a record.
#[derive(Debug, Clone)]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// Its queue.
    pub queue: QueueName,
    /// Its priority.
    pub priority: Priority,
    /// What the client asked for.
    pub envelope: Envelope,
    /// Frequently used parts of the envelope.
    pub summary: EnvelopeSummary,
    /// Its attempts and errors.
    pub history: JobHistory,
    /// Its own lease in milliseconds.
    pub lease_ms: Option<u64>,
    /// Time limit of an attempt in milliseconds.
    pub timeout_ms: Option<u64>,
    /// The trace it belongs to.
    pub trace: TraceContext,
    /// The span of the attempt before, if it is recorded.
    pub previous_span: Option<Box<SpanReference>>,
    /// The span of the current attempt, if it is recorded.
    pub(super) span: OnceLock<Box<SpanReference>>,
    /// The workflow it belongs to.
    pub workflow: Option<Membership>,
    /// Results of the jobs before it in its workflow: a JSON array. The workflow has them: what claims or shows the job
    /// reads them there.
    pub parent_results: Option<String>,
    /// About how many bytes those are, if the workflow has them.
    pub parent_results_bytes: Option<usize>,
    /// What it waits for, or waited for last.
    pub wait: Option<Box<JobWait>>,
    /// Whether it has a record.
    pub has_record: bool,
    /// When it became available, if it is: the time of its stream entry.
    pub enqueued_at: Option<Millis>,
}

/// Fields of a stream entry or record, as Redis returns them. They are few: a list is faster than a map.
#[derive(Debug, Default)]
pub(super) struct JobFields(Vec<(String, String)>);

impl JobFields {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<String> {
        let position = self.0.iter().position(|(field, _)| field == name)?;
        Some(self.0.swap_remove(position).1)
    }
}

impl FromRedisValue for JobFields {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        Vec::from_redis_value(value).map(Self)
    }
}

impl JobRecord {
    /// Parses a stream entry. That of an ordinary job has only the salt of its id.
    pub(super) fn from_entry(
        sealer: &Sealer,
        queue: &QueueName,
        priority: Priority,
        entry: EntryId,
        mut fields: JobFields,
    ) -> StoreResult<Self> {
        let marker =
            fields.remove("i").ok_or_else(|| StoreError::damaged(format!("entry {entry} of {queue} has no id")))?;
        let (id, has_record) = parse_id_field(queue, priority, entry, &marker)
            .ok_or_else(|| StoreError::damaged(format!("entry {entry} of {queue} has a bad id")))?;
        let mut job = Self::from_fields((sealer, &marker), id, queue, priority, fields, has_record)?;
        job.enqueued_at = i64::try_from(entry.milliseconds).ok();
        Ok(job)
    }

    /// Parses a record. What is sealed belongs to `owner`: the id of the job, or for an ordinary job in its stream its salt.
    pub(super) fn from_fields(
        (sealer, owner): (&Sealer, &str),
        id: JobId,
        queue: &QueueName,
        priority: Priority,
        mut fields: JobFields,
        has_record: bool,
    ) -> StoreResult<Self> {
        let open = |field: &str, text: String| sealer.open(&[field, queue.as_str(), owner], text);
        let envelope = fields.remove("e").ok_or_else(|| StoreError::damaged(format!("job {id} has no envelope")))?;
        let envelope = open("e", envelope)?;
        let history = match fields.remove("h") {
            Some(text) => JobHistory::parse(&open("h", text)?)
                .map_err(|error| StoreError::damaged(format!("history of {id}: {error}")))?,
            None => JobHistory::default(),
        };
        let envelope = Envelope::from_json(envelope);
        let summary = envelope.fields().map_err(|error| StoreError::damaged(format!("job {id}: {error}")))?.summary();
        let trace_rest = fields.remove(TRACE_REST).map(|text| open(TRACE_REST, text)).transpose()?;
        let parse_trace = if has_record { TraceContext::from_job } else { TraceContext::from_entry };
        // `=<bytes>` stands for results that the workflow has
        let parent_results = fields.remove("r");
        let number = |name: &str| fields.get(name).and_then(|text| text.parse().ok());
        let reference = parent_results.as_deref().and_then(|text| text.strip_prefix('='));
        let parent_results_bytes = reference.and_then(|bytes| bytes.parse().ok());
        Ok(Self {
            id,
            queue: queue.clone(),
            priority,
            envelope,
            summary,
            history,
            lease_ms: number("v"),
            timeout_ms: number("t"),
            previous_span: fields.remove("n").and_then(|text| SpanReference::parse(&text)).map(Box::new),
            span: OnceLock::new(),
            trace: parse_trace(id, fields.remove("c").as_deref(), trace_rest.as_deref()),
            workflow: fields.remove("w").and_then(|text| text.parse().ok()),
            parent_results: parent_results
                .filter(|text| !text.starts_with('='))
                .map(|text| open("r", text))
                .transpose()?,
            parent_results_bytes,
            wait: fields.remove(WAIT).and_then(|text| JobWait::parse(&text)).map(Box::new),
            has_record,
            enqueued_at: None,
        })
    }

    /// Parses the fields of a record: what fuzz targets read.
    ///
    /// # Errors
    /// They are not those of a job.
    pub fn parse(id: JobId, queue: &QueueName, fields: Vec<(String, String)>) -> StoreResult<Self> {
        Self::from_fields((&Sealer::default(), ""), id, queue, Priority::default(), JobFields(fields), true)
    }

    /// Fields and values for storage, without its id.
    pub(super) fn to_fields(&self, sealer: &Sealer) -> Vec<String> {
        let id = if sealer.is_on() { self.id.to_string() } else { String::new() };
        let seal = |field: &str, text: &str| sealer.seal(&[field, self.queue.as_str(), &id], text).into_owned();
        let mut fields = vec!["e".to_owned(), seal("e", self.envelope.as_str())];
        let mut push = |name: &str, value: String| fields.extend([name.to_owned(), value]);
        if !self.history.is_empty() {
            push("h", seal("h", &self.history.to_json()));
        }
        if let Some(ms) = self.lease_ms {
            push("v", ms.to_string());
        }
        if let Some(ms) = self.timeout_ms {
            push("t", ms.to_string());
        }
        if let Some(text) = self.trace.stored_with_job(self.id) {
            push("c", text.to_owned());
        }
        if let Some(span) = self.span.get().or(self.previous_span.as_ref()) {
            push("n", span.to_string());
        }
        if let Some(text) = self.trace.stored_rest() {
            push(TRACE_REST, seal(TRACE_REST, &text));
        }
        if let Some(limit) = self.key_limit() {
            push("l", limit.to_field());
        }
        if let Some(membership) = &self.workflow {
            push("w", membership.to_string());
        }
        if let Some(wait) = &self.wait {
            push(WAIT, wait.to_field());
        }
        match (self.parent_results_bytes, &self.parent_results) {
            (Some(bytes), _) => push("r", format!("={bytes}")),
            (None, Some(results)) => push("r", seal("r", results)),
            (None, None) => {}
        }
        fields
    }

    /// What a task works on that is about this job: for lines of the log.
    #[must_use]
    pub fn work_scope(&self) -> WorkScope {
        WorkScope::of_job(self.id, self.trace.clone())
    }

    /// Notes the span of its attempt, to which later ones have a link. The first note counts.
    pub fn note_span(&self, span: Option<SpanReference>) {
        if let Some(span) = span {
            let _ = self.span.set(Box::new(span));
        }
    }

    /// The span of its attempt, if it is recorded.
    #[must_use]
    pub fn span(&self) -> Option<SpanReference> {
        self.span.get().map(|span| **span)
    }

    /// Its key's limit, if it has one.
    pub(super) fn key_limit(&self) -> Option<&KeyLimit> {
        self.summary.limit.as_ref()
    }

    /// The key of its limit, if it has one.
    #[must_use]
    pub fn limit_key(&self) -> Option<&LimitKey> {
        self.key_limit().map(|limit| &limit.key)
    }

    /// When it was created.
    #[must_use]
    pub fn created_at(&self) -> Millis {
        self.history.created_at.unwrap_or_else(|| i64::try_from(self.id.milliseconds()).unwrap_or_default())
    }

    /// When it must be finished, if it has a deadline.
    #[must_use]
    pub fn deadline(&self) -> Option<Millis> {
        let limit = i64::try_from(self.summary.total_timeout?.as_millis()).unwrap_or(i64::MAX);
        Some(self.created_at().saturating_add(limit))
    }

    /// When maintenance must check whether it is expired.
    pub(super) fn expiry_timer(&self) -> Option<Millis> {
        self.summary.expires_at.into_iter().chain(self.deadline()).min()
    }

    /// Since when it has waited for its current attempt: since it became available, and its first attempt also while the
    /// limit of its key was in the way.
    pub(super) fn waits_since(&self) -> Millis {
        let created_at = self.created_at();
        // Text of a client may have the word too: then the wait for the limit does not count
        let waited_for_limit = self.limit_key().is_some()
            && self.history.is_empty()
            && !self.envelope.as_str().contains("\"scheduled_at\"");
        self.enqueued_at.filter(|_| !waited_for_limit).unwrap_or(created_at)
    }

    /// Its retry policy; `on_exhaustion` counts unless the policy has its own.
    pub(super) fn retry_policy(&self, on_exhaustion: OnExhaustion) -> RetryPolicy {
        let standard = |_| RetryPolicy { on_exhaustion, ..RetryPolicy::default() };
        self.envelope.fields().map_or_else(standard, |parts| parts.retry_policy(on_exhaustion))
    }

    /// Whether its envelope is needed when it has succeeded: it asks for it, it failed before, or its follow-up reads it.
    pub(super) fn needs_envelope(&self) -> bool {
        self.summary.keeps_envelope || !self.history.errors.is_empty() || self.has_follow_up()
    }

    /// What is kept of it without its envelope.
    pub(super) fn compact<'a>(
        &'a self,
        result: JobResult<'a>,
        started_at: Option<Millis>,
        ended_at: Millis,
    ) -> CompactResult<'a> {
        CompactResult {
            state: JobState::Completed,
            job_type: self.summary.job_type.clone(),
            priority: self.priority,
            attempt: self.history.current_attempt(),
            max_attempts: self.summary.max_attempts,
            created_at: self.history.created_at,
            enqueued_at: self.enqueued_at,
            started_at,
            ended_at,
            result,
            traceparent: self.trace.stored_with_job(self.id),
        }
    }

    /// Whether its id was there before the job: the client chose it, or it follows from what made the job. What makes it again
    /// uses the same id, and finds by it that the job is there, or was.
    pub(super) fn has_chosen_id(&self) -> bool {
        // A workflow knows itself which of its jobs were there
        self.has_record && self.history.created_at.is_some() && self.workflow.is_none()
    }

    /// Whether its end has a follow-up: others may wait for it.
    pub(super) fn has_follow_up(&self) -> bool {
        self.summary.is_unique || self.limit_key().is_some() || self.workflow.is_some()
    }

    /// A view of it in that state; see [`JobView`].
    #[must_use]
    pub fn view(&self, state: JobState) -> JobView<'_> {
        let max_attempts = self.summary.max_attempts;
        let mut view =
            JobView::new(self.id, state, &self.queue, self.priority, &self.envelope, &self.history, max_attempts);
        view.enqueued_at = self.enqueued_at;
        view.workflow = self.workflow;
        view.parent_results = self.parent_results.as_deref();
        view.trace = self.trace.clone();
        view
    }

    /// Whether its `expires_at` is over.
    #[must_use]
    pub fn is_expired(&self, now: Millis) -> bool {
        self.summary.expires_at.is_some_and(|at| at <= now)
    }
}

/// Parses the id field of an entry. A job with a record has its whole id there, others only the salt.
pub(crate) fn parse_id_field(
    queue: &QueueName,
    priority: Priority,
    entry: EntryId,
    marker: &str,
) -> Option<(JobId, bool)> {
    if marker.len() == 36 {
        return Some((marker.parse().ok()?, true));
    }
    Some((JobId::from_entry(entry, queue, priority, u32::from_str_radix(marker, 16).ok()?)?, false))
}
