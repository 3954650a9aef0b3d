//! Builds the events of jobs.

use super::{claimed_job::ClaimedJob, record::JobRecord, wait::WaitRequest};
use crate::events::{JobEvent, terminal_kind};
use common::{json::ObjectWriter, name::WorkerId, time::Millis};
use model::job::{AttemptError, JobSignal, JobState};

impl JobEvent {
    /// A job was stored.
    #[must_use]
    pub fn enqueued(job: &JobRecord, state: JobState) -> Self {
        about("job.enqueued", job, None, |data| {
            data.text("state", state.as_str());
        })
    }

    /// A job that waits became the one of a newer request, which put it off.
    #[must_use]
    pub fn debounced(job: &JobRecord, scheduled_at: &str) -> Self {
        about("job.debounced", job, None, |data| {
            data.text("scheduled_at", scheduled_at);
        })
    }

    /// An attempt started.
    #[must_use]
    pub fn started(claimed: &ClaimedJob, worker: Option<&WorkerId>) -> Self {
        about("job.started", &claimed.job, None, |data| {
            data.number("attempt", claimed.job.history.current_attempt());
            if let Some(worker) = worker {
                data.text("worker_id", worker.as_str());
            }
        })
    }

    /// A job succeeded.
    #[must_use]
    pub fn completed(job: &JobRecord, started_at: Millis, ended_at: Millis) -> Self {
        about("job.completed", job, Some(ended_at), |data| {
            data.number("attempt", job.history.current_attempt()).number("duration_ms", (ended_at - started_at).max(0));
        })
    }

    /// An attempt failed and another follows. The failure is in the job's history already.
    #[must_use]
    pub fn failed(job: &JobRecord) -> Self {
        about("job.failed", job, None, |data| write_failure(data, job))
    }

    /// The last attempt failed. The failure is in the job's history already.
    #[must_use]
    pub fn discarded(job: &JobRecord, at: Millis) -> Self {
        about("job.discarded", job, Some(at), |data| write_failure(data, job))
    }

    /// An attempt reported progress: a JSON object of members to show.
    #[must_use]
    pub fn progress(job: &JobRecord, shown: &str) -> Self {
        about("job.progress", job, None, |data| {
            data.splice(shown);
        })
    }

    /// An attempt logged lines: a JSON object of members to show.
    #[must_use]
    pub fn logged(job: &JobRecord, shown: &str) -> Self {
        about("job.log", job, None, |data| {
            data.splice(shown);
        })
    }

    /// An attempt saved a checkpoint.
    #[must_use]
    pub fn checkpointed(job: &JobRecord, sequence: u64, bytes: usize) -> Self {
        about("job.checkpointed", job, None, |data| {
            data.number("attempt", job.history.current_attempt()).number("sequence", sequence);
            data.number("bytes", bytes as u64);
        })
    }

    /// An attempt ended, and the job waits for a signal or a time.
    #[must_use]
    pub fn waiting(job: &JobRecord, request: &WaitRequest) -> Self {
        about("job.waiting", job, None, |data| {
            data.text("step", &request.step);
            if let Some(signal) = &request.signal {
                data.text("signal", signal.as_str());
            }
        })
    }

    /// A signal came for a job.
    #[must_use]
    pub fn signalled(job: &JobRecord, signal: &JobSignal, resumed: bool) -> Self {
        about("job.signalled", job, None, |data| {
            data.text("signal", signal.name.as_str()).text("signal_id", &signal.id);
            data.number("sequence", signal.sequence).raw("resumed", if resumed { "true" } else { "false" });
        })
    }

    /// A job ended, but not by an attempt.
    #[must_use]
    pub fn ended(job: &JobRecord, state: JobState, at: Millis) -> Self {
        about(terminal_kind(state), job, Some(at), |data| {
            data.number("attempt", job.history.attempts);
        })
    }
}

fn about(kind: &'static str, job: &JobRecord, at: Option<Millis>, more: impl FnOnce(&mut ObjectWriter)) -> JobEvent {
    let mut data = ObjectWriter::with_capacity(192);
    data.text("job_id", &job.id.to_string())
        .text("job_type", job.summary.job_type.as_str())
        .text("queue", job.queue.as_str());
    more(&mut data);
    JobEvent::of_job(kind, &job.queue, at, data.finish())
}

fn write_failure(data: &mut ObjectWriter, job: &JobRecord) {
    data.number("attempt", job.history.attempts);
    let Some(last) = job.history.errors.last() else { return };
    // The job has the rest: a stack may be as large as a request, and events are read by the thousand
    let shown = AttemptError { stack: None, output: None, details: None, ..last.clone() };
    if let Ok(json) = serde_json::to_string(&shown) {
        data.raw("error", &json);
    }
}
