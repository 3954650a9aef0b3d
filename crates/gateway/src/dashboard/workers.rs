//! The page of workers: what each does, directives for them, and what all processes log.

use actix_web::{HttpRequest, web};
use askama::Template;
use store::workers::{Directive, ListedWorker, RunningJob, WorkerKey, WorkerState};

use super::{
    log_level::LogLevelPart,
    page::{Page, redirect},
    plain::encode,
    session::Form,
    unknown_action,
};
use crate::{
    auth::Caller,
    request_check::query_pairs,
    routes::{ApiResult, find_worker},
    services::Services,
};

/// Workers on a page.
const PAGE_SIZE: usize = 100;
/// Queues and jobs of a worker that are shown.
const MAX_QUEUES: usize = 8;
const MAX_JOBS: usize = 5;

#[derive(Template)]
#[template(path = "workers.html")]
struct WorkersPage {
    page: Page,
    rows: Vec<WorkerRow>,
    total: usize,
    next: Option<String>,
    log_level: LogLevelPart,
}

struct WorkerRow {
    listed: ListedWorker,
    /// Running, quiet or terminating, as it is told or says.
    state: &'static str,
    queues: Vec<String>,
    more_queues: usize,
}

impl WorkerRow {
    fn new(listed: ListedWorker) -> Self {
        let reported = listed.record.state;
        let state = match listed.directive.map(|issued| issued.directive) {
            Some(Directive::Terminate) => "terminating",
            Some(Directive::Quiet) => "quiet",
            _ if reported == WorkerState::Terminating => "terminating",
            _ if reported == WorkerState::Quiet => "quiet",
            _ => "running",
        };
        let mut queues = listed.record.queues.clone();
        let more_queues = queues.len().saturating_sub(MAX_QUEUES);
        queues.truncate(MAX_QUEUES);
        Self { listed, state, queues, more_queues }
    }

    /// Whether it fetches its jobs, and does not say which it has.
    fn is_pull(&self) -> bool {
        self.listed.key.is_pull()
    }

    fn id(&self) -> &str {
        self.listed.key.as_str()
    }

    /// The jobs that it reported, and how many it has beside.
    fn jobs(&self) -> &[RunningJob] {
        let jobs = &self.listed.record.jobs;
        &jobs[..jobs.len().min(MAX_JOBS)]
    }

    fn more_jobs(&self) -> usize {
        self.listed.record.active_jobs.saturating_sub(self.jobs().len())
    }

    /// Its running jobs, as a search.
    fn search(&self) -> String {
        format!("/ui/jobs?q={}", encode(&format!("state:active worker:{}", quoted(&self.listed.record.name))))
    }

    fn path(&self) -> String {
        format!("/ui/workers/{}", encode(self.id()))
    }
}

pub(crate) async fn page(request: HttpRequest, _: Caller, services: web::Data<Services>) -> ApiResult {
    let pairs = query_pairs(request.query_string());
    let after = pairs.iter().find(|(name, _)| name == "after").and_then(|(_, value)| value.parse::<WorkerKey>().ok());
    let all = services.workers.worker_keys().await?;
    let mut keys = all.iter().filter(|key| after.as_ref().is_none_or(|after| *key > after)).cloned();
    let shown: Vec<WorkerKey> = keys.by_ref().take(PAGE_SIZE).collect();
    let next = keys.next().and(shown.last()).map(|key| key.as_str().to_owned());
    let rows = services.workers.workers(&shown).await?.into_iter().map(WorkerRow::new).collect();
    let page = Page::open(&request, "/ui/workers").await;
    let log_level = LogLevelPart::read(&services).await?;
    let template = WorkersPage { page, rows, total: all.len(), next, log_level };
    template.page.render(&template)
}

pub(crate) async fn act(services: web::Data<Services>, path: web::Path<(String, String)>, _: Form) -> ApiResult {
    let (id, action) = path.into_inner();
    let (directive, note) = match action.as_str() {
        "quiet" => (Directive::Quiet, "worker_quiet"),
        "resume" => (Directive::Running, "worker_resumed"),
        "stop" => (Directive::Terminate, "worker_stopped"),
        other => return Err(unknown_action(other)),
    };
    let listed = find_worker(&services, &id).await?;
    services.workers.set_directive(&listed.key, directive).await?;
    Ok(redirect("/ui/workers", note, &listed.record.name))
}

/// A name as a search has it.
fn quoted(name: &str) -> String {
    if name.contains([' ', '"']) { format!("\"{}\"", name.replace('"', "")) } else { name.to_owned() }
}
