//! The pages of queues: how full each is, and its controls.

use std::time::Duration;

use actix_web::{HttpRequest, web};
use askama::Template;
use common::{
    name::QueueName,
    rate::Rate,
    time::{self, Millis},
};
use model::access::Scope;
use serde_json::value::RawValue;
use store::{
    jobs::{PurgeRequest, QueueControl, QueueStats, RunTimeLimits},
    statistics::{Series, Statistics},
};

use super::{
    live::{history_plots, sparkline},
    page::{Page, redirect},
    session::Form,
    unknown_action,
};
use crate::{
    auth::Caller,
    error::{ApiError, ErrorCode},
    request_check::query_pairs,
    routes::{ApiResult, delete_empty, known_queue},
    services::Services,
};

/// Queues on a page.
const PAGE_SIZE: usize = 50;
/// Minutes of a sparkline.
const SPARKLINE_MINUTES: usize = 60;
const MINUTE_MS: Millis = 60_000;
/// Workers that are looked through for those of a queue.
const MAX_WORKERS: usize = 500;
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

/// A queue as a page shows it.
pub(super) struct QueueRow {
    pub(super) name: QueueName,
    pub(super) stats: QueueStats,
    pub(super) control: QueueControl,
    /// Jobs that ended in each minute of the last hour.
    sparkline: String,
    pub(super) rate: Option<RateText>,
    /// The upper end of its gauge: how many may wait, or else what the fullest of the page has.
    gauge_max: u64,
}

pub(super) struct RateText {
    pub(super) limit: u32,
    /// As the field has it, such as `PT1S`.
    pub(super) period: String,
    period_ms: Millis,
}

impl QueueRow {
    pub(super) fn new(name: QueueName, (stats, control): (QueueStats, QueueControl), ended: &[u64]) -> Self {
        let rate = control.rate.map(|rate: Rate| RateText {
            limit: rate.limit,
            period: time::format_duration(Duration::from_millis(rate.period_ms)),
            period_ms: Millis::try_from(rate.period_ms).unwrap_or(Millis::MAX),
        });
        let gauge_max = control.max_depth.unwrap_or(0);
        Self { name, stats, control, sparkline: sparkline(ended), rate, gauge_max }
    }

    /// Its limits, in words; empty without any.
    pub(super) fn limits(&self, page: &Page) -> String {
        let concurrency = self.control.concurrency.map(|number| page.n("queue.at_a_time", number));
        let rate =
            self.rate.as_ref().map(|rate| page.f2("queue.rate_of", page.num(rate.limit), page.period(rate.period_ms)));
        let depth = self.control.max_depth.map(|depth| page.n("queue.at_most", depth));
        concurrency.into_iter().chain(rate).chain(depth).collect::<Vec<_>>().join(", ")
    }

    fn path(&self) -> String {
        format!("/ui/queues/{}", self.name)
    }

    pub(super) fn scheduled(&self) -> u64 {
        self.stats.delayed.saturating_sub(self.stats.retryable)
    }

    /// Jobs that a purge cancels.
    pub(super) fn purgeable(&self) -> u64 {
        self.stats.available + self.stats.delayed + self.stats.pending
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
    let overviews = services.jobs.queue_overviews(&names).await?;
    let ended = Statistics::new(&services.jobs).ended_by_minute(&names, SPARKLINE_MINUTES).await?;
    let mut rows: Vec<QueueRow> = names
        .into_iter()
        .zip(overviews)
        .zip(&ended)
        .map(|((name, look), ended)| QueueRow::new(name, look, ended))
        .collect();
    let fullest = rows.iter().map(|row| row.stats.available).max().unwrap_or(0).max(10);
    for row in rows.iter_mut().filter(|row| row.gauge_max == 0) {
        row.gauge_max = fullest;
    }
    let next = rows.last().filter(|_| has_more).map(|row| row.name.to_string());
    let page = Page::open(&request, "/ui/queues").await;
    let template = QueuesPage { page, rows, filter, total, next };
    template.page.render(&template)
}

#[derive(Template)]
#[template(path = "queue.html")]
struct QueuePage {
    page: Page,
    row: QueueRow,
    oldest_at: Option<Millis>,
    workers: Vec<String>,
    plots: [String; 4],
}

/// One queue: its numbers, limits, workers, and the last hour and day.
pub(crate) async fn show(
    request: HttpRequest,
    caller: Caller,
    services: web::Data<Services>,
    queue: web::Path<String>,
) -> ApiResult {
    let queue = known_queue(&caller, &services, &queue).await?;
    let names = [queue.clone()];
    let look = services.jobs.queue_overviews(&names).await?.pop().unwrap_or_default();
    let oldest_at = services.jobs.oldest_waiting_at(&queue).await?;
    let (statistics, now) = (Statistics::new(&services.jobs), services.redis.estimated_now());
    let series = Series::Queues(names.to_vec());
    let hour = statistics.history(&series, MINUTE_MS, now - 60 * MINUTE_MS, now).await?;
    let day = statistics.history(&series, 10 * MINUTE_MS, now - 1440 * MINUTE_MS, now).await?;
    let ((hour_rates, hour_latency), (day_rates, day_latency)) = (history_plots(&hour), history_plots(&day));
    let mut keys = services.workers.worker_keys().await?;
    keys.truncate(MAX_WORKERS);
    let workers = services.workers.workers(&keys).await?.into_iter().map(|worker| worker.record);
    let workers = workers.filter(|record| record.queues.iter().any(|served| *served == *queue.as_str()));
    let workers = workers.map(|record| record.name).collect();
    let template = QueuePage {
        page: Page::open(&request, "/ui/queues").await,
        row: QueueRow::new(queue, look, &[]),
        oldest_at,
        workers,
        plots: [hour_rates, hour_latency, day_rates, day_latency],
    };
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
            delete_empty(&services, &queue).await?;
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
    // What the form does not show stays: aging, how much may start at once, and whether it is strict
    let known = services.jobs.queue_control(queue).await?;
    let rate = match (rate, known.rate) {
        (Some(rate), Some(known)) if (rate.limit, rate.period_ms) == (known.limit, known.period_ms) => Some(known),
        (rate, _) => rate,
    };
    let limits = RunTimeLimits { concurrency, rate, priority_aging: known.priority_aging };
    Ok(services.jobs.set_queue_limits(queue, limits).await??)
}
