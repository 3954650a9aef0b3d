//! The page of one job: what happened to it, what it got and gave, and what can be done with it.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use askama::Template;
use common::{
    id::JobId,
    name::Priority,
    time::{self, ParsedTime},
};
use model::{access::Scope, job::wait::is_approval};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use store::jobs::{JobChanges, LocatedJob, LogPosition, NewSignal};

use super::{
    job_sheet::JobSheet,
    json_text,
    live::known::Parts,
    page::{Page, fingerprint, redirect},
    session::Form,
    unknown_action, workflows,
};
use crate::{
    auth::Caller,
    error::{ApiError, ErrorCode},
    request_check::query_pairs,
    routes::{ApiResult, edit_refusal, job_not_found, parse_job_id, send_signal, state_change_response},
    services::Services,
};

#[derive(Template)]
#[template(path = "job.html")]
struct JobPage {
    page: Page,
    view: JobSheet,
    /// The parts that move.
    parts: Parts,
    /// Where the trace of the job is shown.
    trace_url: Option<String>,
    /// The workflow that it belongs to, as SVG.
    graph: Option<String>,
    /// What its log is before, if not the newest lines.
    log: String,
}

impl JobPage {
    fn part(&self, name: &str) -> &str {
        self.parts.get(name).map_or("", String::as_str)
    }

    fn follow(&self) -> String {
        format!("/ui/live?page=job&id={}&have={}", self.view.id, fingerprint(&self.parts))
    }
}

#[derive(Template)]
#[template(path = "job_head.html")]
struct JobHead<'a> {
    page: &'a Page,
    view: &'a JobSheet,
}

#[derive(Template)]
#[template(path = "job_body.html")]
struct JobBody<'a> {
    page: &'a Page,
    view: &'a JobSheet,
}

#[derive(Template)]
#[template(path = "job_side.html")]
struct JobSide<'a> {
    page: &'a Page,
    view: &'a JobSheet,
}

#[derive(Template)]
#[template(path = "job_log.html")]
struct JobLog<'a> {
    page: &'a Page,
    view: &'a JobSheet,
}

pub(crate) async fn page(request: HttpRequest, services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    let parsed = parse_job_id(&id)?;
    let (located, queue) = services.jobs.locate_with_queue(parsed).await?.ok_or_else(|| job_not_found(&id))?;
    let pairs = query_pairs(request.query_string());
    let before = pairs.iter().find(|(name, _)| name == "log_before").map(|(_, value)| value.parse::<LogPosition>());
    let before = before.transpose()?;
    let page = Page::open(&request, "/ui/jobs").await;
    let view = JobSheet::read(&services, &located, &queue, parsed, before).await?;
    let trace_url = trace_url(&services, &view);
    let graph = match view.workflow.as_deref().and_then(|workflow| workflow.parse().ok()) {
        Some(workflow) => {
            services.workflows.workflow(workflow).await?.map(|view| workflows::graph(&view, Some(parsed)))
        }
        None => None,
    };
    let log = render(JobLog { page: &page, view: &view }.render())?;
    let parts = live_parts(&page, &view)?;
    let template = JobPage { page, view, parts, trace_url, graph, log };
    template.page.render(&template)
}

/// Where the trace is shown that a job belongs to.
fn trace_url(services: &Services, view: &JobSheet) -> Option<String> {
    let template = services.settings.dashboard.trace_url.as_ref()?;
    Some(template.replace("{trace_id}", view.trace_id.as_ref()?))
}

fn render(html: Result<String, askama::Error>) -> Result<String, ApiError> {
    html.map_err(ApiError::internal)
}

/// The parts of the page that move.
pub(super) fn live_parts(page: &Page, view: &JobSheet) -> Result<Parts, ApiError> {
    let mut parts = Parts::from([
        ("head", render(JobHead { page, view }.render())?),
        ("job", render(JobBody { page, view }.render())?),
        ("side", render(JobSide { page, view }.render())?),
        ("said", page.state(&view.state).to_owned()),
    ]);
    // A page with older lines stays as it is
    if !view.log.is_older {
        parts.insert("log", render(JobLog { page, view }.render())?);
    }
    Ok(parts)
}

/// The job as it is stored, however large.
pub(crate) async fn raw(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    let located = services.jobs.locate(parse_job_id(&id)?).await?.ok_or_else(|| job_not_found(&id))?;
    let mut response = HttpResponse::Ok();
    response.content_type("application/json").insert_header((header::CACHE_CONTROL, "no-store"));
    Ok(response.body(located.to_json()))
}

/// Cancels, retries, changes or deletes a job.
pub(crate) async fn act(
    caller: Caller,
    services: web::Data<Services>,
    path: web::Path<(String, String)>,
    form: Form,
) -> ApiResult {
    let (id, action) = path.into_inner();
    let parsed = parse_job_id(&id)?;
    let (located, queue) = services.jobs.locate_with_queue(parsed).await?.ok_or_else(|| job_not_found(&id))?;
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
        "change" => {
            change(&services, &located, parsed, &form).await?;
            if form.given("then").is_some() {
                state_change_response(&id, services.jobs.retry_now(parsed).await?)?;
                "job_retried"
            } else {
                "job_changed"
            }
        }
        "decide" => {
            decide(&services, &caller, &located, parsed, &form).await?;
            "job_decided"
        }
        "delete" => {
            services.jobs.delete_ended(parsed).await?.map_err(|refused| edit_refusal(parsed, refused, "deleted"))?;
            return Ok(redirect("/ui/jobs", "job_deleted", &id));
        }
        other => return Err(unknown_action(other)),
    };
    Ok(redirect(&format!("/ui/jobs/{parsed}"), note, &id))
}

/// Approves or rejects what a job waits for. The form names it: a job that waits for something else by now is left alone.
async fn decide(
    services: &Services,
    caller: &Caller,
    located: &LocatedJob,
    id: JobId,
    form: &Form,
) -> Result<(), ApiError> {
    let approved = match form.get("decision") {
        "approve" => true,
        "reject" => false,
        _ => return Err(ApiError::invalid("decision must be approve or reject")),
    };
    let awaited = located.wait().and_then(|wait| wait.signal.as_ref());
    let Some(name) = awaited.filter(|name| is_approval(name.as_str()) && name.as_str() == form.get("signal")) else {
        return Err(ApiError::new(ErrorCode::Conflict, format!("job {id} does not wait for this approval any more")));
    };
    let mut data = json!({ "approved": approved });
    if !caller.name.is_empty() {
        data["by"] = caller.name.as_str().into();
    }
    if let Some(comment) = form.given("comment") {
        data["comment"] = comment.into();
    }
    let (data, signal_id) = (data.to_string(), uuid::Uuid::new_v4().to_string());
    send_signal(services, id, &NewSignal { name, id: &signal_id, data: &data }).await.map(drop)
}

/// Changes the arguments, the priority or the time of a job. Fields that the form does not have stay as they are.
async fn change(services: &Services, located: &LocatedJob, id: JobId, form: &Form) -> Result<(), ApiError> {
    let mut args = form.given("args").map(ToOwned::to_owned);
    if let Some(given) = &args {
        let parsed: Result<Vec<serde::de::IgnoredAny>, _> = serde_json::from_str(given);
        parsed.map_err(|error| ApiError::invalid(format!("args must be a JSON array: {error}")))?;
    }
    // As its client sent them, without the blanks that the field shows
    args = args.map(|args| json_text::compact(&args)).filter(|args| !has_args(located, args));
    let priority = form.number::<i64>("priority")?.map(Priority::try_from).transpose();
    let priority = priority.map_err(|error| ApiError::invalid(error.to_string()))?;
    let scheduled_at: Option<ParsedTime> = match form.given("scheduled_at") {
        Some(text) => {
            let now = services.jobs.now().await?;
            Some(time::parse_time(text, now).map_err(|error| ApiError::invalid(format!("scheduled_at {error}")))?)
        }
        None => None,
    };
    if args.is_none() && priority.is_none() && scheduled_at.is_none() {
        return Ok(());
    }
    let changes = JobChanges { args, priority, scheduled_at };
    services.jobs.edit(id, &changes).await?.map_err(|refused| edit_refusal(id, refused, "changed so"))?;
    Ok(())
}

/// Whether a job has these arguments already.
fn has_args(located: &LocatedJob, args: &str) -> bool {
    #[derive(Deserialize)]
    struct Known<'j> {
        #[serde(borrow)]
        args: &'j RawValue,
    }
    let json = located.to_json();
    serde_json::from_str::<Known<'_>>(&json).is_ok_and(|known| json_text::compact(known.args.get()) == args)
}
