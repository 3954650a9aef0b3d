//! A job in an attempt.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, UNIX_EPOCH},
};

use super::{checkpoint::JobCheckpoint, record::JobRecord};
use common::{
    id::EntryId,
    name::{QueueName, WorkerId},
    telemetry::spans::{self, ActiveSpan, Operation, SpanDescription, attribute},
    time::Millis,
};
use model::job::JobSignal;

/// A claimed job.
#[derive(Debug, Clone)]
pub struct ClaimedJob {
    /// The job.
    pub job: JobRecord,
    /// Its stream entry, which is part of every fence.
    pub entry: EntryId,
    /// The token of a pulled attempt.
    pub token: Option<String>,
    /// When it was claimed, by Redis's clock.
    pub started_at: Millis,
    /// What an earlier attempt saved for this one.
    pub checkpoint: Option<Box<JobCheckpoint>>,
    /// The signals that came, if it waited.
    pub signals: Vec<JobSignal>,
    /// Whether its handler logged something.
    pub(crate) has_log: Mark,
    /// Whether there may be a checkpoint.
    pub(crate) has_checkpoint: Mark,
}

/// Records the span of a claim, in the trace of its jobs. Nothing if none of them is recorded.
pub fn record_claim(queue: &QueueName, jobs: &[ClaimedJob], worker: Option<&WorkerId>, now: Millis) {
    let Some(first) = jobs.first().filter(|_| spans::is_exporting()) else { return };
    let took = Duration::from_millis(u64::try_from(now - first.started_at).unwrap_or_default());
    spans::record_batch(jobs.iter().filter_map(|claimed| claimed.job.trace.span()), took, || {
        let span = SpanDescription::messaging(Operation::Receive, queue.as_str())
            .with_some(attribute::MESSAGING_CLIENT_ID, worker.map(ToString::to_string));
        if jobs.len() == 1 { span.with_message_id(&first.job.id) } else { span.with_batch(jobs.len()) }
    });
}

/// Records the span of the end of attempts, which took that long to be recorded itself.
pub fn record_settlement<'a>(
    queue: &QueueName,
    jobs: &(impl ExactSizeIterator<Item = &'a ClaimedJob> + Clone),
    outcome: &'static str,
    took: Duration,
) {
    if !spans::is_exporting() {
        return;
    }
    spans::record_batch(jobs.clone().filter_map(|claimed| claimed.job.span()), took, || {
        let span = SpanDescription::messaging(Operation::Settle, queue.as_str()).with("galley.outcome", outcome);
        match (jobs.len(), jobs.clone().next()) {
            (1, Some(claimed)) => span.with_message_id(&claimed.job.id),
            (count, _) => span.with_batch(count),
        }
    });
}

/// What the span of an attempt says.
#[must_use]
pub fn describe_attempt(claimed: &ClaimedJob) -> SpanDescription {
    let job = &claimed.job;
    SpanDescription::messaging(Operation::Process, job.queue.as_str())
        .with_message_id(&job.id)
        .with("galley.job.type", job.summary.job_type.to_string())
        .with("galley.job.attempt", i64::from(job.history.current_attempt()))
        .with_links(job.previous_span.as_deref().copied())
}

/// Records an attempt that nobody ended: its worker is gone, or went on for too long.
pub(crate) fn record_lost(claimed: &ClaimedJob, code: &str) {
    let job = &claimed.job;
    let began = UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(claimed.started_at).unwrap_or_default()));
    let mut span = ActiveSpan::start_at(&job.trace, began, || describe_attempt(claimed));
    span.record_failed(code, None, || describe_attempt(claimed));
    job.note_span(span.recorded());
}

/// A mark that is set while many share the job.
#[derive(Debug, Default)]
pub(crate) struct Mark(AtomicBool);

impl Clone for Mark {
    fn clone(&self) -> Self {
        Self(AtomicBool::new(self.0.load(Relaxed)))
    }
}

impl ClaimedJob {
    /// An attempt that was claimed earlier.
    #[must_use]
    pub fn new(job: JobRecord, entry: EntryId, token: Option<String>, started_at: Millis) -> Self {
        Self {
            job,
            entry,
            token,
            started_at,
            checkpoint: None,
            signals: Vec::new(),
            has_log: Mark::default(),
            has_checkpoint: Mark::default(),
        }
    }

    /// Whether its handler logged something.
    #[must_use]
    pub fn has_log(&self) -> bool {
        self.has_log.0.load(Relaxed)
    }

    /// Notes that its handler logs something.
    pub fn mark_log(&self) {
        self.has_log.0.store(true, Relaxed);
    }

    /// Whether there may be a checkpoint of the job: an attempt saved one, or another program may have.
    #[must_use]
    pub fn may_have_checkpoint(&self) -> bool {
        self.has_checkpoint.0.load(Relaxed)
    }

    /// Notes that there may be a checkpoint of the job.
    pub fn mark_checkpoint(&self) {
        self.has_checkpoint.0.store(true, Relaxed);
    }

    /// What it waited for, for the attempt that goes on from there: JSON.
    #[must_use]
    pub fn waiting_json(&self) -> Option<String> {
        self.job.wait.as_ref().map(|wait| wait.to_json(Some(self.started_at)))
    }

    /// The signals that came for it: a JSON array, if it waited.
    #[must_use]
    pub fn signals_json(&self) -> Option<String> {
        self.job.wait.as_ref()?;
        let signals: Vec<String> = self.signals.iter().map(JobSignal::to_json).collect();
        Some(format!("[{}]", signals.join(",")))
    }

    /// How long the job waited for this attempt, in milliseconds.
    #[must_use]
    pub fn waited_ms(&self) -> Millis {
        self.started_at - self.job.waits_since()
    }
}
