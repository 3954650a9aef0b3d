//! The page of queues: how full each is, and its controls.

use std::time::Duration;

use actix_web::{HttpRequest, web};
use askama::Template;
use common::{name::QueueName, rate::Rate, time};
use model::access::Scope;
use serde_json::value::RawValue;
use store::jobs::{PurgeRequest, QueueControl, QueueStats};

use super::{
    live::{known::QueueLook, sparkline},
    page::{Page, redirect},
    session::Form,
    unknown_action,
};
use crate::{
    auth::Caller,
    error::{ApiError, ErrorCode},
    request_check::query_pairs,
    routes::{ApiResult, known_queue},
    services::Services,
};

/// Queues on a page.
const PAGE_SIZE: usize = 50;
/// How many waiting jobs one click cancels.
const MAX_PURGED: usize = 10_000;

#[derive(Template)]
#[template(path = "queues.html")]
struct QueuesPage {
    page: Page,
    rows: Vec<QueueRow>,
    filter: String,
    total: usize,
    next: Option<String>,
}

/// A queue as the page shows it.
pub(super) struct QueueRow {
    pub(super) name: QueueName,
    stats: QueueStats,
    control: QueueControl,
    /// Jobs of the kinds that wait, run and failed, to draw their shares.
    sparkline: String,
    rate: Option<RateText>,
}

struct RateText {
    limit: u32,
    period: String,
}

impl QueueRow {
    fn new(name: QueueName, stats: QueueStats, control: QueueControl, look: Option<&QueueLook>) -> Self {
        let rate = control.rate.map(|rate: Rate| RateText {
            limit: rate.limit,
            period: time::format_duration(Duration::from_millis(rate.period_ms)),
        });
        Self { name, stats, control, sparkline: look.map(sparkline).unwrap_or_default(), rate }
    }

    /// How full it is: the upper end of its gauge.
    fn gauge_max(&self) -> u64 {
        self.control.max_depth.unwrap_or_else(|| (self.stats.available + self.stats.active).max(1))
    }
}

/// The queues in the order of their names; `q` is a part of a name.
pub(crate) async fn page(request: HttpRequest, caller: Caller, services: web::Data<Services>) -> ApiResult {
    let pairs = query_pairs(request.query_string());
    let value = |name: &str| pairs.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str());
    let (filter, after) = (value("q").trim().to_owned(), value("after").to_owned());
    let mut names = services.jobs.list_queues().await?;
    names.retain(|name| caller.has_queue(name) && name.as_str().contains(&filter));
    names.sort_unstable();
    let total = names.len();
    names.retain(|name| name.as_str() > after.as_str());
    let has_more = names.len() > PAGE_SIZE;
    names.truncate(PAGE_SIZE);
    let looks = services.dashboard.looks();
    let mut rows = Vec::with_capacity(names.len());
    for name in names {
        let (stats, control) = (services.jobs.queue_stats(&name).await?, services.jobs.queue_control(&name).await?);
        let look = looks.get(&name);
        rows.push(QueueRow::new(name, stats, control, look));
    }
    let next = rows.last().filter(|_| has_more).map(|row| row.name.to_string());
    let page = Page::of(&request, "/ui/queues");
    let template = QueuesPage { page, rows, filter, total, next };
    template.page.render(&template)
}

/// Pauses, drains, resumes, limits, empties or deletes a queue.
pub(crate) async fn act(
    caller: Caller,
    services: web::Data<Services>,
    path: web::Path<(String, String)>,
    form: Form,
) -> ApiResult {
    let (name, action) = path.into_inner();
    let queue = known_queue(&caller, &services, &name).await?;
    caller.check_queue(Scope::AdminWrite, &queue)?;
    let jobs = &services.jobs;
    let note = match action.as_str() {
        "pause" => {
            jobs.set_queue_paused(&queue, true).await??;
            "queue_paused"
        }
        "drain" => {
            jobs.set_queue_closed(&queue, true).await??;
            "queue_drained"
        }
        "resume" => {
            jobs.set_queue_paused(&queue, false).await??;
            jobs.set_queue_closed(&queue, false).await??;
            "queue_resumed"
        }
        "limits" => {
            set_limits(&services, &queue, &form).await?;
            "queue_limited"
        }
        "purge" => {
            check_confirmed(&form, &queue)?;
            let states = ["available", "scheduled", "retryable", "pending"];
            let states = states.into_iter().filter_map(model::job::JobState::from_name).collect();
            jobs.purge(&queue, &PurgeRequest { states, limit: MAX_PURGED, after: None }).await?;
            "queue_purged"
        }
        "delete" => {
            check_confirmed(&form, &queue)?;
            if !jobs.delete_queue(&queue).await? {
                let message = format!("queue {queue} holds jobs or dead letters");
                return Err(ApiError::new(ErrorCode::QueueNotEmpty, message));
            }
            "queue_deleted"
        }
        other => return Err(unknown_action(other)),
    };
    services.dashboard.look_soon(&queue);
    Ok(redirect(form.given("to").unwrap_or("/ui/queues"), note, queue.as_str()))
}

/// What cannot be undone names the queue a second time.
fn check_confirmed(form: &Form, queue: &QueueName) -> Result<(), ApiError> {
    if form.get("confirm") == queue.as_str() {
        return Ok(());
    }
    let message = format!("this cannot be undone: confirm must be {:?}", queue.as_str());
    Err(ApiError::new(ErrorCode::ConfirmationRequired, message))
}

async fn set_limits(services: &Services, queue: &QueueName, form: &Form) -> Result<(), ApiError> {
    let raw = |json: String| RawValue::from_string(json).map_err(|error| ApiError::invalid(error.to_string()));
    let concurrency = match form.number::<u64>("concurrency")? {
        Some(number) => {
            let parsed = model::job::limit::parse_concurrency(&raw(number.to_string())?, "concurrency");
            Some(parsed.map_err(ApiError::invalid)?)
        }
        None => None,
    };
    let rate = match form.number::<u64>("rate")? {
        Some(limit) => {
            let period = form.given("period").unwrap_or("PT1S");
            let json = serde_json::json!({ "limit": limit, "period": period }).to_string();
            Some(model::job::limit::parse_rate(&raw(json)?, "rate").map_err(ApiError::invalid)?)
        }
        None => None,
    };
    Ok(services.jobs.set_queue_limits(queue, concurrency, rate).await??)
}
