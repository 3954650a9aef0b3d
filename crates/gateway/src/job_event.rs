//! The last event of a job, made from the job itself: for clients that missed it, because events are dropped under
//! pressure and kept for a limited time.

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
    /// The event, without a position.
    pub(crate) json: String,
}

/// The members of a job that the event needs.
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
    /// The end of that job; none if it has not ended.
    pub(crate) fn for_job(located: &LocatedJob) -> Option<Self> {
        let state = located.state();
        if !state.is_terminal() {
            return None;
        }
        let view: JobViewFields = serde_json::from_str(&located.to_json()).ok()?;
        let at = view.completed_at.or(view.cancelled_at).or(view.discarded_at).unwrap_or(view.created_at);
        let mut data = ObjectWriter::default();
        data.text("job_id", &view.id).text("job_type", &view.job_type).text("queue", &view.queue);
        data.number("attempt", view.attempt);
        Some(Self::new(terminal_kind(state), &view.id, &at, &data.finish()))
    }

    /// The end of a job that is no longer stored.
    pub(crate) fn forgotten(id: JobId, now: Millis) -> Self {
        let id = id.to_string();
        let mut data = ObjectWriter::default();
        data.text("job_id", &id);
        Self::new("job.forgotten", &id, &time::format(now), &data.finish())
    }

    fn new(kind: &'static str, id: &str, at: &str, data: &str) -> Self {
        let mut json = ObjectWriter::default();
        json.text("specversion", "1.0").text("source", "ojs://galley").text("subject", id);
        json.text("type", kind).text("time", at).raw("data", data);
        Self { kind, json: json.finish() }
    }
}

/// When a job was created: none of its events is older.
pub(crate) fn created_at(located: &LocatedJob) -> Millis {
    let view = serde_json::from_str::<JobViewFields>(&located.to_json()).ok();
    view.and_then(|view| time::parse_time(&view.created_at, 0).ok()).map_or(0, |given| given.at)
}
