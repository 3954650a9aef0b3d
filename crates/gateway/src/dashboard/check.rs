//! The page that checks stored data: a queue, or all one after the other. A request checks for a bounded time; a button goes on.

use actix_web::{HttpRequest, web};
use askama::Template;
use common::name::QueueName;
use model::access::Scope;
use store::maintenance::{CheckCursor, Violation};

use super::{page::Page, plain::encode, session::Form, texts::Language};
use crate::{
    auth::Caller,
    error::ApiError,
    request_check::query_pairs,
    routes::{ApiResult, TimedCheck, known_queue, parse_check_cursor},
    services::Services,
};

/// Queues that the field is completed with.
const MAX_LISTED: usize = 200;

#[derive(Template)]
#[template(path = "check.html")]
struct CheckPage {
    page: Page,
    queues: Vec<QueueName>,
    scope: CheckScope,
    report: Option<CheckReport>,
}

/// What to check.
#[derive(Default)]
struct CheckScope {
    /// All queues, from the named one on.
    is_all: bool,
    queue: String,
    cursor: String,
}

/// What a check found.
struct CheckReport {
    is_repair: bool,
    looked_at: usize,
    rows: Vec<(QueueName, Violation)>,
    /// Where it goes on.
    next: Option<CheckScope>,
}

impl CheckScope {
    fn of<'v>(value: impl Fn(&str) -> &'v str) -> Self {
        Self {
            is_all: !value("all").is_empty(),
            queue: value("queue").trim().to_owned(),
            cursor: value("cursor").to_owned(),
        }
    }

    fn path(&self) -> String {
        let all = if self.is_all { "&all=1" } else { "" };
        format!("/ui/check?queue={}&cursor={}{all}", encode(&self.queue), encode(&self.cursor))
    }
}

impl CheckReport {
    /// Found, and left as it is.
    fn left(&self) -> usize {
        self.rows.iter().filter(|(_, violation)| !violation.is_repaired).count()
    }

    fn repaired(&self) -> usize {
        self.rows.len() - self.left()
    }
}

impl CheckPage {
    /// What a kind means, in words.
    fn meaning(&self, kind: &str) -> &'static str {
        let key = format!("check.kind.{kind}");
        if Language::has(&key) { self.page.t(&key) } else { "" }
    }
}

/// Checks what the address names, and changes nothing.
pub(crate) async fn page(request: HttpRequest, caller: Caller, services: web::Data<Services>) -> ApiResult {
    let pairs = query_pairs(request.query_string());
    let scope =
        CheckScope::of(|name| pairs.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str()));
    show(&request, &caller, &services, scope, false).await
}

/// Checks again and repairs.
pub(crate) async fn repair(
    request: HttpRequest,
    caller: Caller,
    services: web::Data<Services>,
    form: Form,
) -> ApiResult {
    show(&request, &caller, &services, CheckScope::of(|name| form.get(name)), true).await
}

async fn show(
    request: &HttpRequest,
    caller: &Caller,
    services: &Services,
    scope: CheckScope,
    is_repair: bool,
) -> ApiResult {
    let mut queues = services.jobs.list_queues().await?;
    queues.retain(|queue| caller.has_queue(queue));
    queues.sort_unstable();
    let report = match (scope.is_all, scope.queue.is_empty()) {
        (false, true) => None,
        _ => Some(check(caller, services, &scope, &queues, is_repair).await?),
    };
    queues.truncate(MAX_LISTED);
    let page = Page::open(request, "/ui/queues").await;
    let template = CheckPage { page, queues, scope, report };
    template.page.render(&template)
}

async fn check(
    caller: &Caller,
    services: &Services,
    scope: &CheckScope,
    queues: &[QueueName],
    is_repair: bool,
) -> Result<CheckReport, ApiError> {
    let needed = if is_repair { Scope::AdminWrite } else { Scope::AdminRead };
    let mut from = parse_check_cursor(Some(scope.cursor.as_str()).filter(|cursor| !cursor.is_empty()))?;
    let chosen: Vec<QueueName> = if scope.is_all {
        // One that was deleted meanwhile begins with the next
        queues.iter().filter(|queue| queue.as_str() >= scope.queue.as_str()).cloned().collect()
    } else {
        caller.check_queue(needed, &scope.queue.parse()?)?;
        vec![known_queue(caller, services, &scope.queue).await?]
    };
    if chosen.first().is_some_and(|queue| queue.as_str() != scope.queue) {
        from = CheckCursor::start();
    }
    let (mut timed, mut next) = (TimedCheck::begin(), None);
    for queue in chosen {
        let begin = std::mem::replace(&mut from, CheckCursor::start());
        let cursor = if timed.is_over() { Some(begin) } else { timed.run(services, &queue, is_repair, begin).await? };
        if let Some(cursor) = cursor {
            next = Some(CheckScope { is_all: scope.is_all, queue: queue.to_string(), cursor: cursor.to_string() });
            break;
        }
    }
    Ok(CheckReport { is_repair, looked_at: timed.looked_at, rows: timed.violations, next })
}
