//! Statistics of jobs: now, and by minute, hour or day, as the admin API of the Open Job Spec has them.

use actix_web::{http::StatusCode, web};
use common::{
    json::ObjectWriter,
    name::{QueueName, quoted},
    time::{self, Millis},
};
use model::statistics::Tally;
use serde::Deserialize;
use serde_json::{Value, json};
use store::statistics::{Series, Statistics, StatisticsPoint};

use super::{ApiResult, ojs_response, queues::known_queue};
use crate::{auth::Caller, error::ApiError, services::Services};

const MINUTE_MS: Millis = 60_000;
/// The periods of a history, by name.
const PERIODS: [(&str, Millis); 4] =
    [("1m", MINUTE_MS), ("5m", 5 * MINUTE_MS), ("1h", 60 * MINUTE_MS), ("1d", 1440 * MINUTE_MS)];
/// The default period, and how far back a history begins by default.
const DEFAULT_PERIOD: &str = "5m";
const DEFAULT_RANGE_MS: Millis = 60 * MINUTE_MS;
/// Minutes over which rates are taken, the current one among them.
const RATE_MINUTES: Millis = 5;

/// What all queues of the caller hold now, and what happens in a minute.
pub(super) async fn show(caller: Caller, services: web::Data<Services>) -> ApiResult {
    let mut queues = services.jobs.list_queues().await?;
    let is_all = caller.has_every_queue();
    let (totals, series) = if is_all {
        (services.totals.all(&services.jobs, &queues).await?, Series::All)
    } else {
        queues.retain(|queue| caller.has_queue(queue));
        (services.jobs.job_totals(&queues).await?, visible(&caller, &services).await?)
    };
    // Workers are of the whole installation
    let workers = if is_all { Some(services.workers.worker_keys().await?.len()) } else { None };
    let now = services.jobs.now().await?;
    let recent = Statistics::new(&services.jobs).history(&series, MINUTE_MS, rates_since(now), now).await?;
    let mut sum = Tally::default();
    for point in &recent {
        sum.merge(&point.tally);
    }
    let mut answer = json!({
        "queues": queues.len(),
        "jobs": {
            "available": totals.available, "active": totals.active, "scheduled": totals.scheduled,
            "retryable": totals.retryable, "pending": totals.pending, "completed": totals.completed,
            "discarded": totals.discarded, "cancelled": totals.cancelled,
        },
        "throughput": throughput_json(&sum, now),
        "uptime_seconds": services.reporter.uptime().as_secs(),
    });
    if let Some(workers) = workers {
        answer["workers"] = workers.into();
    }
    Ok(ojs_response(StatusCode::OK, answer.to_string()))
}

/// Where the minutes begin over which rates are taken.
pub(super) fn rates_since(now: Millis) -> Millis {
    now - (RATE_MINUTES - 1) * MINUTE_MS
}

/// What happens in a minute, from what happened since [`rates_since`].
pub(super) fn throughput_json(recent: &Tally, now: Millis) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "times and counts of five minutes are far below 2^52")]
    let rate = |count: u64| {
        let minutes = (RATE_MINUTES - 1) as f64 + (now.rem_euclid(MINUTE_MS) as f64 / MINUTE_MS as f64);
        (count as f64 / minutes * 10.0).round() / 10.0
    };
    json!({
        "processed_per_minute": rate(recent.processed()), "failed_per_minute": rate(recent.failed),
        "enqueued_per_minute": rate(recent.enqueued),
    })
}

#[derive(Deserialize)]
pub(super) struct HistoryQuery {
    period: Option<String>,
    since: Option<String>,
    until: Option<String>,
    queue: Option<String>,
}

/// What happened in each period, also where nothing happened.
pub(super) async fn history(
    caller: Caller,
    services: web::Data<Services>,
    query: web::Query<HistoryQuery>,
) -> ApiResult {
    let name = query.period.as_deref().unwrap_or(DEFAULT_PERIOD);
    let (name, period) = *PERIODS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| ApiError::invalid(format!("period must be 1m, 5m, 1h or 1d, got {}", quoted(name))))?;
    let now = services.jobs.now().await?;
    let until = parse_at("until", query.until.as_deref(), now)?.unwrap_or(now);
    let since = parse_at("since", query.since.as_deref(), now)?;
    let since = since.unwrap_or_else(|| until.saturating_sub(DEFAULT_RANGE_MS.max(period)));
    if since > until {
        return Err(ApiError::invalid("since must not be later than until"));
    }
    let statistics = Statistics::new(&services.jobs);
    let (series, is_covered) = match &query.queue {
        Some(queue) => {
            let queue: QueueName = queue.parse()?;
            caller.check_queue(model::access::Scope::AdminRead, &queue)?;
            let queue = known_queue(&caller, &services, queue.as_str()).await?;
            let known = statistics.queues().await?;
            let has_room = known.len() < services.settings.statistics.max_queues;
            let is_covered = has_room || known.binary_search(&queue).is_ok();
            (Series::Queues(vec![queue]), is_covered)
        }
        None if caller.has_every_queue() => (Series::All, true),
        None => (visible(&caller, &services).await?, true),
    };
    let points = statistics.history(&series, period, since, until).await?;
    let data: Vec<String> = points.iter().map(point_json).collect();
    let mut answer = ObjectWriter::default();
    answer.text("period", name);
    if let (Some(first), Some(last)) = (points.first(), points.last()) {
        answer.text("since", &time::format(first.at)).text("until", &time::format(last.at + period));
    }
    answer.raw("covered", if is_covered { "true" } else { "false" });
    answer.raw("data", &format!("[{}]", data.join(",")));
    Ok(ojs_response(StatusCode::OK, answer.finish()))
}

/// The queues with a history that the caller sees.
async fn visible(caller: &Caller, services: &Services) -> Result<Series, ApiError> {
    let mut queues = Statistics::new(&services.jobs).queues().await?;
    queues.retain(|queue| caller.has_queue(queue));
    Ok(Series::Queues(queues))
}

fn parse_at(name: &str, given: Option<&str>, now: Millis) -> Result<Option<Millis>, ApiError> {
    let parse = |text: &str| time::parse_time(text, now).map(|time| time.at);
    given.map(parse).transpose().map_err(|error| ApiError::invalid(format!("{name} {error}")))
}

fn point_json(point: &StatisticsPoint) -> String {
    let tally = &point.tally;
    let mut json = ObjectWriter::with_capacity(256);
    json.text("timestamp", &time::format(point.at));
    json.number("processed", tally.processed()).number("failed", tally.failed).number("enqueued", tally.enqueued);
    json.number("completed", tally.completed).number("discarded", tally.discarded);
    json.number("cancelled", tally.cancelled);
    let percentiles = [
        ("latency_p50_ms", &tally.run, 50),
        ("latency_p99_ms", &tally.run, 99),
        ("wait_p50_ms", &tally.wait, 50),
        ("wait_p99_ms", &tally.wait, 99),
    ];
    for (name, histogram, percent) in percentiles {
        if let Some(millis) = histogram.percentile(percent) {
            json.number(name, millis);
        }
    }
    json.finish()
}
