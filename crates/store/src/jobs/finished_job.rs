//! What remains of a finished job, and how that is stored.

use std::borrow::Cow;

use super::{
    JobRecord,
    compact_result::{CompactResult, JobResult, NO_MEMORY},
};
use crate::{StoreError, StoreResult, keys, sealing::Sealer};
use common::{
    id::{EntryId, JobId},
    name::QueueName,
    time::Millis,
};
use model::job::{AttemptError, JobState, view::JobView};

/// What remains of a finished job.
#[derive(Debug, Clone)]
pub struct FinishedJob {
    /// How it ended.
    pub state: JobState,
    /// The JSON of the whole job, or a [`CompactResult`].
    text: String,
}

/// The stored text of one finished job.
pub(super) struct FinishedText<'a> {
    pub(super) sealer: &'a Sealer,
    pub(super) id: JobId,
    pub(super) queue: &'a QueueName,
}

impl FinishedText<'_> {
    /// The text with another JSON of the whole job.
    pub(super) fn with_json(&self, text: &str, json: &str) -> String {
        let first_line = text.split('\n').next().unwrap_or_default();
        let place = ["result", self.queue.as_str(), &self.id.to_string()];
        let sealed = if self.sealer.is_on() { self.sealer.seal(&place, json) } else { Cow::Borrowed(json) };
        format!("{first_line}\n{sealed}")
    }
}

impl FinishedJob {
    /// It succeeded. Its envelope is kept if the job needs it.
    #[must_use]
    pub fn completed(job: &JobRecord, result: Option<&str>, started_at: Option<Millis>, now: Millis) -> Self {
        Self::succeeded(job, result.map_or(JobResult::None, JobResult::Json), started_at, now, false)
    }

    /// It succeeded. Its envelope is kept if the job needs it, or if `keeps_envelope`.
    pub(super) fn succeeded<'a>(
        job: &'a JobRecord,
        result: JobResult<'a>,
        started_at: Option<Millis>,
        now: Millis,
        keeps_envelope: bool,
    ) -> Self {
        if !keeps_envelope && !job.needs_envelope() {
            // Two clocks are involved: the shown times must not run backwards
            let ended_at = started_at.map_or(now, |started| started.max(now));
            return Self { state: JobState::Completed, text: job.compact(result, started_at, ended_at).to_text() };
        }
        Self::build(job, JobState::Completed, now, |view| {
            view.attempt = job.history.current_attempt();
            view.started_at = started_at;
            match result {
                JobResult::None => {}
                JobResult::Json(json) => view.result = Some(json),
                JobResult::Dropped(why) => view.result_dropped = Some(why),
            }
            // Its workflow has them: see with_parent_results
            view.parent_results = None;
        })
    }

    /// Its last attempt failed; the failure is in its history already.
    #[must_use]
    pub fn discarded(job: &JobRecord, now: Millis) -> Self {
        Self::build(job, JobState::Discarded, now, |_| {})
    }

    /// It did not start in time.
    #[must_use]
    pub fn expired(job: &JobRecord, now: Millis) -> Self {
        let mut job = job.clone();
        job.history.errors.push(AttemptError::new(
            "expired",
            "expired",
            "not started before expires_at",
            job.history.attempts,
            now,
        ));
        Self::build(&job, JobState::Discarded, now, |view| view.has_run = false)
    }

    /// It did not finish in time.
    #[must_use]
    pub fn overdue(job: &JobRecord, running_since: Option<Millis>, now: Millis) -> Self {
        let mut job = job.clone();
        let limit = job.summary.total_timeout.unwrap_or_default().as_millis();
        let message = format!("not over within its total_timeout_ms of {limit} ms");
        if running_since.is_some() {
            job.history.attempts += 1;
        }
        job.history.errors.push(AttemptError::new(
            "total_timeout",
            "total_timeout",
            &message,
            job.history.attempts,
            now,
        ));
        Self::build(&job, JobState::Discarded, now, |view| {
            if running_since.is_some() {
                view.started_at = running_since;
            }
        })
    }

    /// It was cancelled, maybe during an attempt.
    #[must_use]
    pub fn cancelled(job: &JobRecord, running_since: Option<Millis>, now: Millis) -> Self {
        Self::build(job, JobState::Cancelled, now, |view| {
            if running_since.is_some() {
                view.attempt = job.history.current_attempt();
                view.started_at = running_since;
            }
        })
    }

    fn build<'a>(job: &'a JobRecord, state: JobState, now: Millis, change: impl FnOnce(&mut JobView<'a>)) -> Self {
        let mut view = job.view(state);
        if job.parent_results_bytes.is_some() {
            // Its workflow has them: see with_parent_results
            view.parent_results = None;
        }
        change(&mut view);
        // Two clocks are involved: the shown times must not run backwards
        view.ended_at = Some(view.started_at.map_or(now, |started| started.max(now)));
        Self { state, text: view.to_json() }
    }

    /// The JSON of the whole job, which is there unless it is a plain success.
    pub(super) fn json(&self) -> &str {
        &self.text
    }

    /// How many bytes it has.
    #[must_use]
    pub fn size(&self) -> usize {
        self.text.len()
    }

    /// As stored: which attempt of the job ended it, then the rest.
    pub(super) fn to_text(&self, sealer: &Sealer, job: &JobRecord, entry: EntryId) -> String {
        format!("{}\n{}", keys::attempt_name(job.priority, entry), self.sealed(sealer, job))
    }

    /// As stored when no attempt ended it.
    pub(crate) fn to_text_without_attempt(&self, sealer: &Sealer, job: &JobRecord) -> String {
        format!("-\n{}", self.sealed(sealer, job))
    }

    /// A line that says only how it ended, as stored behind the first line.
    pub(super) fn note(&self, sealer: &Sealer, job: &JobRecord, now: Millis) -> String {
        let no_memory = JobResult::Dropped(NO_MEMORY);
        let mut note = CompactResult { state: self.state, ..job.compact(no_memory, None, now) };
        (note.enqueued_at, note.traceparent) = (None, None);
        if self.state != JobState::Completed {
            note.attempt = job.history.attempts;
        }
        seal(sealer, job, &note.to_text()).into_owned()
    }

    fn sealed(&self, sealer: &Sealer, job: &JobRecord) -> Cow<'_, str> {
        seal(sealer, job, &self.text)
    }

    /// The JSON of the whole job from the stored text; none if only its end is noted.
    pub(super) fn json_of(sealer: &Sealer, text: &str, id: JobId, queue: &QueueName) -> StoreResult<Option<String>> {
        let (_, rest) = text.split_once('\n').ok_or_else(|| StoreError::damaged("a result without its first line"))?;
        if rest.is_empty() {
            return Ok(None);
        }
        let rest = sealer.open(&["result", queue.as_str(), &id.to_string()], rest.to_owned())?;
        let compact = CompactResult::parse(&rest)?.map(|compact| compact.to_json(id, queue));
        Ok(Some(compact.unwrap_or(rest)))
    }
}

fn seal<'a>(sealer: &Sealer, job: &JobRecord, text: &'a str) -> Cow<'a, str> {
    if !sealer.is_on() {
        return Cow::Borrowed(text);
    }
    sealer.seal(&["result", job.queue.as_str(), &job.id.to_string()], text)
}
