//! The page of one job: what happened to it, what it got and gave, and what can be done with it.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use askama::Template;
use common::{id::JobId, name::QueueName};
use model::access::Scope;
use serde_json::Value;
use store::jobs::LocatedJob;

use super::{
    live::known::Parts,
    page::{Page, redirect},
    plain::parse_moment,
    session::Form,
    unknown_action,
};
use crate::{
    auth::Caller,
    error::ApiError,
    routes::{ApiResult, job_not_found, parse_job_id, state_change_response},
    services::Services,
};

/// How much of a value is shown.
const MAX_SHOWN_BYTES: usize = 4096;
/// Log lines that are shown.
const MAX_LOG_LINES: usize = 500;

#[derive(Template)]
#[template(path = "job.html")]
struct JobPage {
    page: Page,
    view: JobSheet,
    body: String,
    /// Where the trace of the job is shown.
    trace_url: Option<String>,
}

#[derive(Template)]
#[template(path = "job_body.html")]
struct JobBody<'a> {
    page: &'a Page,
    view: &'a JobSheet,
}

/// A job as its page shows it.
pub(super) struct JobSheet {
    id: String,
    state: String,
    queue: String,
    job_type: String,
    attempt: u64,
    max_attempts: u64,
    priority: i64,
    worker: String,
    tags: Vec<String>,
    workflow: Option<String>,
    progress: Option<f64>,
    progress_data: Option<ShownValue>,
    args: ShownValue,
    result: Option<ShownValue>,
    meta: Option<ShownValue>,
    errors: Vec<FailedAttempt>,
    steps: Vec<TimelineStep>,
    curl: String,
    logs: Vec<LogRow>,
    pub(super) is_over: bool,
}

/// A value as JSON, as much of it as is shown.
pub(super) struct ShownValue {
    pub(super) text: String,
    pub(super) is_cut: bool,
}

/// A line that a handler logged.
#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct LogRow {
    #[serde(alias = "time", alias = "timestamp")]
    at: String,
    level: String,
    message: String,
}

struct FailedAttempt {
    attempt: u64,
    at: String,
    kind: String,
    message: String,
    more: Option<ShownValue>,
}

struct TimelineStep {
    /// The key of its text.
    text: &'static str,
    attempt: u64,
    at: String,
    message: String,
    class: &'static str,
}

impl ShownValue {
    pub(super) fn of(value: &Value) -> Self {
        let text = match value {
            Value::String(text) if text.contains('\n') => text.clone(),
            other => serde_json::to_string_pretty(other).unwrap_or_default(),
        };
        Self::of_text(text)
    }

    pub(super) fn of_text(mut text: String) -> Self {
        let is_cut = text.len() > MAX_SHOWN_BYTES;
        if is_cut {
            let end = (0..=MAX_SHOWN_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
            text.truncate(end);
        }
        Self { text, is_cut }
    }
}

fn text(job: &Value, name: &str) -> String {
    job[name].as_str().unwrap_or_default().to_owned()
}

impl JobSheet {
    fn of(located: &LocatedJob) -> Self {
        let job: Value = serde_json::from_str(&located.to_json()).unwrap_or_default();
        let optional = |name: &str| job.get(name).filter(|value| !value.is_null()).map(ShownValue::of);
        let errors: Vec<FailedAttempt> = job["errors"].as_array().into_iter().flatten().map(failed_attempt).collect();
        let tags = job["tags"].as_array().into_iter().flatten().filter_map(|tag| tag.as_str());
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
            args: ShownValue::of(&job["args"]),
            result: optional("result"),
            meta: optional("meta"),
            steps: steps(&job, &errors),
            errors,
            curl: curl(&job),
            logs: Vec::new(),
            is_over: located.state().is_terminal(),
        }
    }

    /// A job with what its handlers logged.
    pub(super) async fn read(
        services: &Services,
        located: &LocatedJob,
        queue: &QueueName,
        id: JobId,
    ) -> Result<Self, ApiError> {
        let mut view = Self::of(located);
        let page = services.jobs.read_log(queue, id, None, MAX_LOG_LINES).await?;
        view.logs = page.lines.iter().filter_map(|(_, line)| serde_json::from_str(line).ok()).collect();
        Ok(view)
    }

    fn may_retry(&self) -> bool {
        ["discarded", "cancelled", "retryable", "scheduled"].contains(&self.state.as_str())
    }

    /// Progress in percent.
    fn percent(&self) -> Option<String> {
        self.progress.map(|progress| format!("{:.0}", if progress <= 1.0 { progress * 100.0 } else { progress }))
    }

    fn has_cut(&self) -> bool {
        let shown = [Some(&self.args), self.result.as_ref(), self.meta.as_ref()];
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
    let mut add = |name: &str, text: &'static str, class: &'static str| {
        if let Some(at) = job[name].as_str() {
            steps.push(TimelineStep { text, attempt: 0, at: at.to_owned(), message: String::new(), class });
        }
    };
    add("created_at", "step.created", "");
    if job["enqueued_at"] != job["created_at"] {
        add("enqueued_at", "step.enqueued", "");
    }
    add("started_at", "step.started", "");
    let end = match job["state"].as_str() {
        Some("completed") => ("completed_at", "step.completed", ""),
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
    steps.sort_by_key(|step| (parse_moment(&step.at), step.text == "step.discarded"));
    steps
}

/// The request that makes the same job again, for a shell.
fn curl(job: &Value) -> String {
    let mut body =
        serde_json::json!({ "type": job["type"], "args": job["args"], "options": { "queue": job["queue"] } });
    if let Some(meta) = job.get("meta") {
        body["meta"] = meta.clone();
    }
    let quoted = body.to_string().replace('\'', r"'\''");
    format!(
        "curl -s \"$GALLEY_URL/ojs/v1/jobs\" -H \"Authorization: Bearer $GALLEY_KEY\" -H 'Content-Type: application/json' -d '{quoted}'"
    )
}

pub(crate) async fn page(request: HttpRequest, services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    let parsed = parse_job_id(&id)?;
    let (located, queue) = services.jobs.locate_with_queue(parsed).await?.ok_or_else(|| job_not_found(&id))?;
    let page = Page::of(&request, "/ui/jobs");
    let view = JobSheet::read(&services, &located, &queue, parsed).await?;
    let body = render_body(&page, &view)?;
    let trace_url = trace_url(&services, &located);
    let template = JobPage { page, view, body, trace_url };
    template.page.render(&template)
}

/// Where the trace is shown that a job belongs to. A finished job keeps none.
fn trace_url(services: &Services, located: &LocatedJob) -> Option<String> {
    let template = services.settings.dashboard.trace_url.as_ref()?;
    let (LocatedJob::InRecord { job, .. } | LocatedJob::InStream { job, .. }) = located else { return None };
    let trace = job.traceparent.as_deref()?.split('-').nth(1)?.to_owned();
    Some(template.replace("{trace_id}", &trace))
}

fn render_body(page: &Page, view: &JobSheet) -> Result<String, ApiError> {
    JobBody { page, view }.render().map_err(ApiError::internal)
}

/// The part of the page that moves.
pub(super) fn live_parts(page: &Page, view: &JobSheet) -> Result<Parts, ApiError> {
    Ok(Parts::from([("job", render_body(page, view)?), ("said", page.state(&view.state).to_owned())]))
}

/// The job as it is stored, however large.
pub(crate) async fn raw(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    let located = services.jobs.locate(parse_job_id(&id)?).await?.ok_or_else(|| job_not_found(&id))?;
    let mut response = HttpResponse::Ok();
    response.content_type("application/json").insert_header((header::CACHE_CONTROL, "no-store"));
    Ok(response.body(located.to_json()))
}

/// Cancels, retries or deletes a job.
pub(crate) async fn act(
    caller: Caller,
    services: web::Data<Services>,
    path: web::Path<(String, String)>,
    _: Form,
) -> ApiResult {
    let (id, action) = path.into_inner();
    let parsed = parse_job_id(&id)?;
    let (_, queue) = services.jobs.locate_with_queue(parsed).await?.ok_or_else(|| job_not_found(&id))?;
    caller.check_queue(Scope::JobsWrite, &queue)?;
    let note = match action.as_str() {
        "cancel" => {
            state_change_response(&id, services.jobs.cancel(parsed).await?)?;
            "job_cancelled"
        }
        "retry" => {
            state_change_response(&id, services.jobs.retry_now(parsed).await?)?;
            "job_retried"
        }
        "delete" => {
            if !services.jobs.delete_dead_letter(parsed).await? {
                return Err(ApiError::not_found(format_args!("dead letter {parsed}")));
            }
            return Ok(redirect("/ui/dead-letters", "letters_deleted", "1"));
        }
        other => return Err(unknown_action(other)),
    };
    Ok(redirect(&format!("/ui/jobs/{parsed}"), note, &id))
}
