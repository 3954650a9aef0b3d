//! 'Try it': enqueues any job. The page of the job then shows how it ends.

use std::{borrow::Cow, collections::HashMap};

use actix_web::{HttpRequest, web};
use askama::Template;
use common::json::{Object, ObjectWriter};
use serde::de::IgnoredAny;
use serde_json::{json, value::RawValue};
use store::jobs::RequestClock;

use super::{
    json_text,
    page::{Page, redirect},
    session::Form,
};
use crate::{
    auth::Caller,
    context::RequestTrace,
    error::ApiError,
    request_check::query_pairs,
    routes::{ApiResult, enqueue_parsed, parse_job, parse_job_id},
    services::Services,
};

/// The largest arguments that the form is filled with.
const MAX_FILLED_BYTES: usize = 256 << 10;

#[derive(Template)]
#[template(path = "try.html")]
struct TryPage {
    page: Page,
    queues: Vec<String>,
    job_type: String,
    queue: String,
    args: String,
    meta: String,
    problem: Option<String>,
}

/// An empty form, or one that is filled with what another job has (`from`).
pub(crate) async fn page(request: HttpRequest, caller: Caller, services: web::Data<Services>) -> ApiResult {
    let pairs = query_pairs(request.query_string());
    let from = pairs.into_iter().find(|(name, _)| name == "from").and_then(|(_, id)| parse_job_id(&id).ok());
    let mut json = "{}".to_owned();
    if let Some(id) = from
        && let Some((located, queue)) = services.jobs.locate_with_queue(id).await?
        && caller.has_queue(&queue)
    {
        json = located.to_json();
    }
    let job: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(&json).unwrap_or_default();
    let raw = |name: &str| job.get(name).map(|raw| raw.get()).filter(|raw| raw.len() <= MAX_FILLED_BYTES);
    let filled = |name: &str, default: &str| raw(name).map_or_else(|| default.to_owned(), json_text::pretty);
    let text = |name: &str, default: &str| {
        raw(name).and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_else(|| default.to_owned())
    };
    let template = TryPage {
        page: Page::open(&request, "/ui/try").await,
        queues: known_queues(&caller, &services).await?,
        job_type: text("type", ""),
        queue: text("queue", "default"),
        args: filled("args", "[]"),
        meta: filled("meta", ""),
        problem: None,
    };
    template.page.render(&template)
}

async fn known_queues(caller: &Caller, services: &Services) -> Result<Vec<String>, ApiError> {
    let mut queues = services.jobs.list_some_queues(200).await?;
    queues.retain(|queue| caller.has_queue(queue));
    Ok(queues.iter().map(ToString::to_string).collect())
}

/// The request that the form stands for. What was typed goes into it as it is: numbers keep their digits.
fn job_body(form: &Form) -> Result<String, ApiError> {
    let check = |name: &str, text: &str| {
        let parsed: Result<IgnoredAny, _> = serde_json::from_str(text);
        parsed.map_err(|error| ApiError::invalid(format!("{name} is not valid JSON: {error}")))
    };
    let args = form.given("args").unwrap_or("[]");
    check("args", args)?;
    let mut options = json!({ "queue": form.given("queue").unwrap_or("default") });
    if let Some(priority) = form.number::<i64>("priority")? {
        options["priority"] = priority.into();
    }
    if let Some(at) = form.given("scheduled_at") {
        options["scheduled_at"] = at.into();
    }
    let mut body = ObjectWriter::default();
    body.text("type", form.get("type").trim())
        .raw("args", &json_text::compact(args))
        .raw("options", &options.to_string());
    if let Some(meta) = form.given("meta") {
        check("meta", meta)?;
        body.raw("meta", &json_text::compact(meta));
    }
    Ok(body.finish())
}

pub(crate) async fn enqueue(
    request: HttpRequest,
    caller: Caller,
    services: web::Data<Services>,
    form: Form,
) -> ApiResult {
    match try_to_enqueue(&request, &caller, &services, &form).await {
        Ok(id) => Ok(redirect(&format!("/ui/jobs/{id}"), "job_enqueued", &id)),
        // What was typed stays on the page, with what is wrong
        Err(error) if error.code() == crate::error::ErrorCode::InvalidRequest => {
            let field = |name: &str| form.get(name).to_owned();
            let template = TryPage {
                page: Page::open(&request, "/ui/try").await,
                queues: known_queues(&caller, &services).await?,
                job_type: field("type"),
                queue: field("queue"),
                args: field("args"),
                meta: field("meta"),
                problem: Some(error.message().to_owned()),
            };
            template.page.render_with(actix_web::http::StatusCode::BAD_REQUEST, &template)
        }
        Err(error) => Err(error),
    }
}

async fn try_to_enqueue(
    request: &HttpRequest,
    caller: &Caller,
    services: &Services,
    form: &Form,
) -> Result<String, ApiError> {
    let body = job_body(form)?;
    let members: Object = common::json::parse(body.as_bytes(), services.settings.gateway.json_depth_limit)?;
    let mut clock = RequestClock::new(&services.jobs);
    let parsed = parse_job(caller, &mut clock, &members, None).await?;
    let accepted = enqueue_parsed(services, parsed, RequestTrace::from_request(request)).await?;
    Ok(accepted.id.to_string())
}
