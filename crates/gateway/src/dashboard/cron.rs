//! The page of cron entries: when each runs in plain words, its next runs, run now, pause.

use actix_web::{HttpRequest, web};
use askama::Template;
use common::time::Millis;
use model::{access::Scope, cron::CronEntry};
use store::cron::CronPage;

use super::{
    cron_words,
    page::{Page, redirect},
    plain::{encode, parse_moment},
    session::Form,
    unknown_action,
};
use crate::{
    auth::Caller,
    context::RequestTrace,
    error::ApiError,
    request_check::query_pairs,
    routes::{ApiResult, cron_not_found, parse_cron_name},
    services::Services,
};

/// Entries on a page.
const PAGE_SIZE: usize = 50;
/// Next runs that are shown.
const NEXT_RUNS: usize = 5;

#[derive(Template)]
#[template(path = "cron.html")]
struct CronListPage {
    page: Page,
    rows: Vec<CronRow>,
    next: Option<String>,
}

struct CronRow {
    entry: CronEntry,
    job_type: String,
    queue: String,
    /// When it runs, in words.
    words: String,
    next_runs: Vec<Millis>,
}

impl CronRow {
    fn new(page: &Page, entry: CronEntry) -> Self {
        let job = entry.template.new_job(&entry.name, page.now, page.now).ok();
        let queue = job.map(|job| job.queue.to_string()).unwrap_or_default();
        let words = cron_words::describe(page.language, entry.expression());
        let runs = entry.next_runs(page.now, NEXT_RUNS).unwrap_or_default();
        let next_runs = runs.iter().filter_map(|text| parse_moment(text)).collect();
        let job_type = entry.template.member("type").and_then(|raw| serde_json::from_str(raw.get()).ok());
        Self { words, next_runs, queue, job_type: job_type.unwrap_or_default(), entry }
    }

    fn path(&self) -> String {
        format!("/ui/cron/{}", encode(self.entry.name.as_str()))
    }

    /// What its runs made, as a search.
    fn history(&self) -> String {
        format!("/ui/jobs?q={}", encode(&format!("type:{} queue:{}", self.job_type, self.queue)))
    }
}

pub(crate) async fn page(request: HttpRequest, caller: Caller, services: web::Data<Services>) -> ApiResult {
    let pairs = query_pairs(request.query_string());
    let after = pairs.iter().find(|(name, _)| name == "after").map(|(_, value)| value.as_str());
    let cron = services.jobs.cron();
    let stored: CronPage = cron.page(after, PAGE_SIZE, |entry| caller.has_cron_entry(entry)).await?;
    let page = Page::open(&request, "/ui/cron").await;
    let rows = stored.entries.into_iter().map(|entry| CronRow::new(&page, entry)).collect();
    let template = CronListPage { page, rows, next: stored.next };
    template.page.render(&template)
}

/// Runs an entry now, pauses, resumes or deletes it.
pub(crate) async fn act(
    request: HttpRequest,
    caller: Caller,
    services: web::Data<Services>,
    path: web::Path<(String, String)>,
    form: Form,
) -> ApiResult {
    let (name, action) = path.into_inner();
    let parsed = parse_cron_name(&name)?;
    let cron = services.jobs.cron();
    let entry = cron.get(&parsed).await?.filter(|entry| caller.has_cron_entry(entry));
    let entry = entry.ok_or_else(|| cron_not_found(&name))?;
    let note = match action.as_str() {
        "run" => {
            let made = cron.new_manual_job(&parsed).await?.ok_or_else(|| cron_not_found(&name))?;
            let (new, now) = made;
            caller.check_queue(Scope::JobsWrite, &new.queue)?;
            let enqueued = services.jobs.enqueue(new, RequestTrace::from_request(&request), now).await?;
            let enqueued = enqueued.map_err(ApiError::from)?;
            return Ok(redirect(&format!("/ui/jobs/{}", enqueued.job.id), "cron_run", entry.name.as_str()));
        }
        "pause" => {
            cron.set_enabled(&parsed, false).await?;
            "cron_paused"
        }
        "resume" => {
            cron.set_enabled(&parsed, true).await?;
            "cron_resumed"
        }
        "delete" => {
            if form.get("confirm") != entry.name.as_str() {
                return Err(ApiError::invalid("confirm must be the name of the entry"));
            }
            cron.remove(&parsed).await?;
            "cron_deleted"
        }
        other => return Err(unknown_action(other)),
    };
    Ok(redirect("/ui/cron", note, entry.name.as_str()))
}
