//! The page of workers: what each does, and directives for them.

use actix_web::{HttpRequest, web};
use askama::Template;
use store::workers::{Directive, ListedWorker, WorkerKey, WorkerState};

use super::{
    page::{Page, redirect},
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
/// Queues of a worker that are shown.
const MAX_QUEUES: usize = 12;

#[derive(Template)]
#[template(path = "workers.html")]
struct WorkersPage {
    page: Page,
    rows: Vec<WorkerRow>,
    total: usize,
    next: Option<String>,
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

    fn id(&self) -> &str {
        self.listed.key.as_str()
    }

    fn path(&self) -> String {
        format!("/ui/workers/{}", super::plain::encode(self.id()))
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
    let page = Page::of(&request, "/ui/workers");
    let template = WorkersPage { page, rows, total: all.len(), next };
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
