//! A job as clients see it: the members that Galley manages, then the envelope, in one JSON object.

use super::{envelope::Envelope, history::JobHistory, state::JobState};
use crate::workflow::Membership;
use common::{
    id::JobId,
    json::ObjectWriter,
    name::{Priority, QueueName},
    time::{self, Millis},
    trace_context::TraceContext,
};

/// All members of a job's view.
#[derive(Debug)]
pub struct JobView<'a> {
    /// Its id.
    pub id: JobId,
    /// Its state.
    pub state: JobState,
    /// Its queue.
    pub queue: &'a QueueName,
    /// Its priority in the queue.
    pub priority: Priority,
    /// The envelope that the client sent.
    pub envelope: &'a Envelope,
    /// Its attempts and failures.
    pub history: &'a JobHistory,
    /// The current or last attempt; 0 before the first.
    pub attempt: u32,
    /// Most attempts.
    pub max_attempts: u32,
    /// When it became available.
    pub enqueued_at: Option<Millis>,
    /// When the current or last attempt started.
    pub started_at: Option<Millis>,
    /// When the next attempt is due.
    pub next_attempt_at: Option<Millis>,
    /// When it finished, for terminal states.
    pub ended_at: Option<Millis>,
    /// Whether a finished job ran to its end: an expired job has no `completed_at`.
    pub has_run: bool,
    /// The result, as JSON.
    pub result: Option<&'a str>,
    /// Why there is no result although it had one, for people.
    pub result_dropped: Option<&'a str>,
    /// The workflow that it belongs to.
    pub workflow: Option<Membership>,
    /// Results of the jobs before it in its workflow, as JSON.
    pub parent_results: Option<&'a str>,
    /// The worker that runs it.
    pub worker_id: Option<&'a str>,
    /// Progress of the attempt: a JSON object of members to show.
    pub progress: Option<&'a str>,
    /// What an earlier attempt saved for this one, as JSON; shown only to the worker that claimed the job.
    pub checkpoint: Option<&'a str>,
    /// What the job waits for, or its attempt goes on from, as JSON.
    pub waiting: Option<&'a str>,
    /// The signals that came for it: a JSON array, shown only to the worker that claimed the job.
    pub signals: Option<&'a str>,
    /// The fencing token, shown only to the worker that claimed the job.
    pub token: Option<&'a str>,
    /// The trace that it belongs to.
    pub trace: TraceContext,
}

impl<'a> JobView<'a> {
    /// A view with the members that every job has; the others are absent.
    #[must_use]
    pub fn new(
        id: JobId,
        state: JobState,
        queue: &'a QueueName,
        priority: Priority,
        envelope: &'a Envelope,
        history: &'a JobHistory,
        max_attempts: u32,
    ) -> Self {
        Self {
            id,
            state,
            queue,
            priority,
            envelope,
            history,
            attempt: history.attempts,
            max_attempts,
            enqueued_at: None,
            started_at: history.started_at,
            next_attempt_at: None,
            ended_at: None,
            has_run: true,
            result: None,
            result_dropped: None,
            workflow: None,
            parent_results: None,
            worker_id: None,
            progress: None,
            checkpoint: None,
            waiting: None,
            signals: None,
            token: None,
            trace: TraceContext::default(),
        }
    }

    /// The JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        let created_at =
            self.history.created_at.unwrap_or_else(|| i64::try_from(self.id.milliseconds()).unwrap_or_default());
        let mut out = ObjectWriter::with_capacity(self.envelope.as_str().len() + 320);
        out.text("id", &self.id.to_string())
            .text("state", self.state.as_str())
            .text("queue", self.queue.as_str())
            .number("priority", self.priority.get())
            .number("attempt", self.attempt)
            .number("max_attempts", self.max_attempts)
            .text("created_at", &time::format(created_at));
        self.write_times(&mut out);
        if let Some(worker_id) = self.worker_id {
            out.text("worker_id", worker_id);
        }
        if let Some(token) = self.token {
            out.text("token", token);
        }
        for (name, value) in self.trace.headers() {
            out.text(name, value);
        }
        if let Some(progress) = self.progress {
            out.splice(progress);
        }
        if let Some(checkpoint) = self.checkpoint {
            out.raw("checkpoint", checkpoint);
        }
        if let Some(waiting) = self.waiting {
            out.raw("waiting", waiting);
        }
        if let Some(signals) = self.signals {
            out.raw("signals", signals);
        }
        if let Some(result) = self.result {
            out.raw("result", result);
        }
        if let Some(why) = self.result_dropped {
            out.text("result_dropped", why);
        }
        if let Some(membership) = self.workflow {
            out.text("workflow_id", &membership.workflow.to_string()).number("workflow_index", membership.index);
        }
        if let Some(results) = self.parent_results {
            out.raw("parent_results", results);
        }
        self.write_errors(&mut out);
        out.splice(self.envelope.as_str());
        out.finish()
    }

    fn write_times(&self, out: &mut ObjectWriter) {
        let (completed, cancelled, discarded) = match self.state {
            JobState::Completed => (self.ended_at, None, None),
            JobState::Cancelled => (None, self.ended_at, None),
            JobState::Discarded => (self.ended_at.filter(|_| self.has_run), None, self.ended_at),
            _ => (None, None, None),
        };
        for (name, at) in [
            ("enqueued_at", self.enqueued_at),
            ("started_at", self.started_at),
            ("next_attempt_at", self.next_attempt_at),
            ("completed_at", completed),
            ("cancelled_at", cancelled),
            ("discarded_at", discarded),
        ] {
            if let Some(at) = at {
                out.text(name, &time::format(at));
            }
        }
        if let Some(delay) = self.history.retry_delay_ms {
            out.number("retry_delay_ms", delay);
        }
    }

    /// `error` is the last failure of a job that has not succeeded since; `errors` is all failures.
    fn write_errors(&self, out: &mut ObjectWriter) {
        let Some(last) = self.history.errors.last() else { return };
        if self.state != JobState::Completed
            && let Ok(json) = serde_json::to_string(last)
        {
            out.raw("error", &json);
        }
        if let Ok(json) = serde_json::to_string(&self.history.errors) {
            out.raw("errors", &json);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::history::AttemptError;

    fn shown(state: JobState, history: &JobHistory, change: impl FnOnce(&mut JobView)) -> serde_json::Value {
        let envelope = Envelope::from_json(r#"{"type":"a","args":[],"x":1}"#.to_owned());
        let queue = "q".parse().expect("a name");
        let id = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
        let mut view = JobView::new(id, state, &queue, Priority::default(), &envelope, history, 3);
        change(&mut view);
        serde_json::from_str(&view.to_json()).expect("JSON")
    }

    #[test]
    fn a_job_is_one_flat_object() {
        let job = shown(JobState::Available, &JobHistory::default(), |_| {});
        assert_eq!(job["x"], 1);
        assert_eq!((job["attempt"].as_u64(), job["max_attempts"].as_u64()), (Some(0), Some(3)));
        assert!(job.get("error").is_none() && job.get("completed_at").is_none());
    }

    #[test]
    fn an_expired_job_was_discarded_but_never_completed() {
        let job =
            shown(JobState::Discarded, &JobHistory::default(), |view| (view.ended_at, view.has_run) = (Some(5), false));
        assert!(job.get("completed_at").is_none() && job.get("discarded_at").is_some());
        let job = shown(JobState::Discarded, &JobHistory::default(), |view| view.ended_at = Some(5));
        assert!(job.get("completed_at").is_some() && job.get("discarded_at").is_some());
    }

    #[test]
    fn a_success_clears_the_error_and_keeps_the_history() {
        let mut history = JobHistory::default();
        history.record_failure(AttemptError::new("c", "t", "m", 1, 0), None);
        let job = shown(JobState::Completed, &history, |_| {});
        assert!(job.get("error").is_none());
        assert_eq!(job["errors"][0]["type"], "t");
        assert_eq!(shown(JobState::Retryable, &history, |_| {})["error"]["message"], "m");
    }
}
