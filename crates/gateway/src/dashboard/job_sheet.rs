//! A job as its page shows it: facts, timeline, values, errors, log.

use std::{borrow::Cow, collections::HashMap};

use common::{id::JobId, name::QueueName, time::Millis};
use serde_json::{Value, value::RawValue};
use store::jobs::{LocatedJob, LogPosition};

use super::{job_waits::JobWaits, json_text, plain::parse_moment, shown_value::ShownValue};
use crate::{error::ApiError, services::Services};

/// Log lines on a page.
const LOG_PAGE_SIZE: usize = 200;

/// A job as its page shows it.
pub(super) struct JobSheet {
    pub(super) id: String,
    pub(super) state: String,
    pub(super) queue: String,
    pub(super) job_type: String,
    pub(super) attempt: u64,
    pub(super) max_attempts: u64,
    pub(super) priority: i64,
    pub(super) worker: String,
    pub(super) tags: Vec<String>,
    pub(super) workflow: Option<String>,
    pub(super) progress: Option<f64>,
    pub(super) progress_data: Option<ShownValue>,
    /// None: a job that succeeded is kept without what its client sent.
    pub(super) args: Option<ShownValue>,
    /// The whole of them, unless that is too long for a field.
    pub(super) editable_args: Option<String>,
    pub(super) result: Option<ShownValue>,
    /// Why its result is not kept.
    pub(super) result_dropped: String,
    pub(super) meta: Option<ShownValue>,
    pub(super) errors: Vec<FailedAttempt>,
    pub(super) steps: Vec<TimelineStep>,
    pub(super) curl: String,
    pub(super) log: LogSheet,
    pub(super) waits: JobWaits,
    pub(super) scheduled_at: String,
    /// How long it waited for its last attempt, and how long that took, in ms.
    pub(super) waited: Option<Millis>,
    pub(super) ran: Option<Millis>,
    /// The trace that it belongs to.
    pub(super) trace_id: Option<String>,
    pub(super) is_over: bool,
}

/// A page of a log, the newest line first.
#[derive(Default)]
pub(super) struct LogSheet {
    pub(super) lines: Vec<LogRow>,
    /// Where the next page begins.
    pub(super) older: Option<String>,
    /// Whether newer lines are on another page.
    pub(super) is_older: bool,
    /// Lines that are not kept any more.
    pub(super) dropped: u64,
}

/// A line that a handler logged.
#[derive(serde::Deserialize, Default)]
#[serde(default)]
pub(super) struct LogRow {
    #[serde(alias = "time", alias = "timestamp")]
    at: String,
    pub(super) level: String,
    pub(super) message: String,
}

impl LogRow {
    /// The time without its day, which the hover text has.
    pub(super) fn clock(&self) -> &str {
        self.at.get(11..23).unwrap_or(&self.at)
    }

    pub(super) fn at(&self) -> &str {
        &self.at
    }

    /// The level as a class of the style sheet.
    pub(super) fn class(&self) -> &'static str {
        match self.level.as_str() {
            "error" | "fatal" | "critical" => "bad",
            "warn" | "warning" => "warn",
            _ => "faint",
        }
    }
}

pub(super) struct FailedAttempt {
    pub(super) attempt: u64,
    pub(super) at: String,
    pub(super) kind: String,
    pub(super) message: String,
    pub(super) more: Option<ShownValue>,
}

pub(super) struct TimelineStep {
    /// The key of its text.
    pub(super) text: &'static str,
    pub(super) attempt: u64,
    pub(super) at: String,
    pub(super) message: String,
    pub(super) class: &'static str,
}

fn text(job: &Value, name: &str) -> String {
    job[name].as_str().unwrap_or_default().to_owned()
}

impl JobSheet {
    fn of(located: &LocatedJob, now: Millis) -> Self {
        let json = located.to_json();
        let job: Value = serde_json::from_str(&json).unwrap_or_default();
        let members: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(&json).unwrap_or_default();
        let raw = |name: &str| members.get(name).map(|raw| raw.get()).filter(|raw| *raw != "null");
        let optional = |name: &str| raw(name).map(ShownValue::of_json);
        let errors: Vec<FailedAttempt> = job["errors"].as_array().into_iter().flatten().map(failed_attempt).collect();
        let tags = job["tags"].as_array().into_iter().flatten().filter_map(|tag| tag.as_str());
        let at = |name: &str| job[name].as_str().and_then(parse_moment);
        let started = at("started_at");
        let ended = ["completed_at", "discarded_at", "cancelled_at"].into_iter().find_map(at);
        let is_running = job["state"] == "active";
        Self {
            id: text(&job, "id"),
            state: text(&job, "state"),
            queue: text(&job, "queue"),
            job_type: text(&job, "type"),
            attempt: job["attempt"].as_u64().unwrap_or_default(),
            max_attempts: job["max_attempts"].as_u64().unwrap_or_default(),
            priority: job["priority"].as_i64().unwrap_or_default(),
            worker: text(&job, "worker_id"),
            tags: tags.map(ToOwned::to_owned).collect(),
            workflow: job["workflow_id"].as_str().map(ToOwned::to_owned),
            progress: job["progress"].as_f64(),
            progress_data: optional("progress_data").or_else(|| optional("data")),
            args: optional("args"),
            editable_args: raw("args").filter(|args| args.len() <= ShownValue::MAX_PRETTY_BYTES).map(json_text::pretty),
            result: optional("result"),
            result_dropped: text(&job, "result_dropped"),
            meta: optional("meta"),
            steps: steps(&job, &errors),
            errors,
            curl: curl(&job, &raw),
            log: LogSheet::default(),
            waits: JobWaits::default(),
            scheduled_at: text(&job, if job["state"] == "retryable" { "next_attempt_at" } else { "scheduled_at" }),
            waited: at("enqueued_at").or_else(|| at("created_at")).zip(started).map(|(from, to)| (to - from).max(0)),
            ran: started.zip(if is_running { Some(now) } else { ended }).map(|(from, to)| (to - from).max(0)),
            trace_id: job["traceparent"].as_str().and_then(|text| text.split('-').nth(1)).map(ToOwned::to_owned),
            is_over: located.state().is_terminal(),
        }
    }

    /// A job with what its handlers logged, before a place of the log if one is given.
    pub(super) async fn read(
        services: &Services,
        located: &LocatedJob,
        queue: &QueueName,
        id: JobId,
        before: Option<LogPosition>,
    ) -> Result<Self, ApiError> {
        let mut view = Self::of(located, services.redis.estimated_now());
        let is_older = before.is_some();
        view.waits = JobWaits::read(services, located, queue, id).await?;
        let page = services.jobs.read_newest_log(queue, id, before, LOG_PAGE_SIZE).await?;
        let older = page.lines.last().filter(|_| page.lines.len() == LOG_PAGE_SIZE).map(|(place, _)| place.clone());
        let lines = page.lines.iter().filter_map(|(_, line)| serde_json::from_str(line).ok()).collect();
        view.log = LogSheet { lines, older, is_older, dropped: page.dropped };
        Ok(view)
    }

    pub(super) fn may_retry(&self) -> bool {
        ["discarded", "cancelled", "retryable", "scheduled"].contains(&self.state.as_str())
    }

    /// Whether its arguments and priority can be changed.
    pub(super) fn may_change(&self) -> bool {
        ["available", "scheduled", "retryable", "pending", "discarded", "cancelled"].contains(&self.state.as_str())
    }

    /// Whether it can be made due at another time.
    pub(super) fn may_reschedule(&self) -> bool {
        ["available", "scheduled", "retryable"].contains(&self.state.as_str())
    }

    /// Progress in percent.
    pub(super) fn percent(&self) -> Option<String> {
        self.progress.map(|progress| format!("{:.0}", if progress <= 1.0 { progress * 100.0 } else { progress }))
    }

    pub(super) fn has_cut(&self) -> bool {
        let shown = [self.args.as_ref(), self.result.as_ref(), self.meta.as_ref()];
        shown.into_iter().flatten().any(|value| value.is_cut)
    }
}

fn failed_attempt(error: &Value) -> FailedAttempt {
    let more: Vec<String> =
        ["stack", "output"].iter().filter_map(|name| error[*name].as_str().map(ToOwned::to_owned)).collect();
    let details = error.get("details").filter(|details| !details.is_null()).map(ToString::to_string);
    let more = more.into_iter().chain(details).collect::<Vec<_>>().join("\n\n");
    FailedAttempt {
        attempt: error["attempt"].as_u64().unwrap_or_default(),
        at: text(error, "occurred_at"),
        kind: text(error, "type"),
        message: text(error, "message"),
        more: Some(more).filter(|more| !more.is_empty()).map(ShownValue::of_text),
    }
}

/// What happened, in the order of time.
fn steps(job: &Value, errors: &[FailedAttempt]) -> Vec<TimelineStep> {
    let mut steps = Vec::new();
    let attempt = job["attempt"].as_u64().unwrap_or_default();
    let mut add = |name: &str, text: &'static str, class: &'static str| {
        if let Some(at) = job[name].as_str() {
            steps.push(TimelineStep { text, attempt, at: at.to_owned(), message: String::new(), class });
        }
    };
    add("created_at", "step.created", "");
    if job["enqueued_at"] != job["created_at"] {
        add("enqueued_at", "step.enqueued", "");
    }
    add("started_at", "step.started", "");
    let end = match job["state"].as_str() {
        Some("completed") => ("completed_at", "step.completed", "done"),
        Some("cancelled") => ("cancelled_at", "step.cancelled", "failed"),
        Some("discarded") => ("discarded_at", "step.discarded", "failed"),
        Some("scheduled") => ("scheduled_at", "step.scheduled", "later"),
        _ => ("next_attempt_at", "step.next", "later"),
    };
    add(end.0, end.1, end.2);
    steps.extend(errors.iter().map(|error| TimelineStep {
        text: "step.failed",
        attempt: error.attempt,
        at: error.at.clone(),
        message: error.message.clone(),
        class: "failed",
    }));
    // Several clocks are involved: a job is never there before it was created
    steps.sort_by_key(|step| {
        let at = parse_moment(&step.at).filter(|_| step.text != "step.created");
        (at, step.text != "step.enqueued", step.text == "step.discarded")
    });
    steps
}

/// The request that makes the same job again, for a shell; empty if its arguments are not kept.
fn curl<'j>(job: &Value, raw: &impl Fn(&str) -> Option<&'j str>) -> String {
    let Some(args) = raw("args") else { return String::new() };
    let meta = raw("meta").map(|meta| format!(",\"meta\":{meta}")).unwrap_or_default();
    let options = serde_json::json!({ "queue": job["queue"] });
    let body = format!("{{\"type\":{},\"args\":{args},\"options\":{options}{meta}}}", job["type"]);
    format!(
        "curl -s \"$GALLEY_URL/ojs/v1/jobs\" -H \"Authorization: Bearer $GALLEY_KEY\" -H 'Content-Type: application/json' -d '{}'",
        body.replace('\'', r"'\''")
    )
}
