//! How a job ended, as an event made from the job itself: for those who did not hear of it, because events are dropped
//! under pressure and kept for a limited time.

use common::{
    id::JobId,
    json::ObjectWriter,
    time::{self, Millis},
};
use serde::Deserialize;
use store::{events::terminal_kind, jobs::LocatedJob};

/// The end of a job.
pub(crate) struct TerminalJobEvent {
    /// The type of the event.
    pub(crate) kind: &'static str,
    /// The event, without a position of its own.
    pub(crate) json: String,
}

/// What is needed of a job, as clients see it.
#[derive(Deserialize)]
struct JobViewFields {
    id: String,
    #[serde(rename = "type")]
    job_type: String,
    queue: String,
    attempt: u32,
    created_at: String,
    completed_at: Option<String>,
    cancelled_at: Option<String>,
    discarded_at: Option<String>,
}

impl TerminalJobEvent {
    /// The end of that job; none if it is not over.
    pub(crate) fn for_job(located: &LocatedJob) -> Option<Self> {
        let state = located.state();
        if !state.is_terminal() {
            return None;
        }
        let shown: JobViewFields = serde_json::from_str(&located.to_json()).ok()?;
        let at = shown.completed_at.or(shown.cancelled_at).or(shown.discarded_at).unwrap_or(shown.created_at);
        let mut data = ObjectWriter::default();
        data.text("job_id", &shown.id).text("job_type", &shown.job_type).text("queue", &shown.queue);
        data.number("attempt", shown.attempt);
        Some(Self::new(terminal_kind(state), &shown.id, &at, &data.finish()))
    }

    /// A job of which nothing is known any more.
    pub(crate) fn forgotten(id: JobId) -> Self {
        let id = id.to_string();
        let mut data = ObjectWriter::default();
        data.text("job_id", &id);
        let now = time::format(store::local_now());
        Self::new("job.forgotten", &id, &now, &data.finish())
    }

    fn new(kind: &'static str, id: &str, at: &str, data: &str) -> Self {
        let mut json = ObjectWriter::default();
        json.text("specversion", "1.0").text("source", "ojs://galley").text("subject", id);
        json.text("type", kind).text("time", at).raw("data", data);
        Self { kind, json: json.finish() }
    }
}

/// When a job was made: no event of it is older.
pub(crate) fn created_at(located: &LocatedJob) -> Millis {
    let shown = serde_json::from_str::<JobViewFields>(&located.to_json()).ok();
    shown.and_then(|shown| time::parse_time(&shown.created_at, 0).ok()).map_or(0, |given| given.at)
}
