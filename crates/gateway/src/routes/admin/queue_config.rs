//! One queue with its configuration: its limits, its partitions, and how long its jobs are kept.

use std::time::Duration;

use actix_web::{http::StatusCode, web};
use common::{
    json::Object,
    name::{MAX_PARTITIONS, QueueName},
    settings::{JobSettings, QueueLimits},
    time,
};
use model::job::limit;
use serde_json::{Value, json, value::RawValue};
use store::jobs::{PartitionRefusal, QueueControl, RunTimeLimits};

use super::{
    ApiResult, ojs_response,
    queues::{recent_json, summary_json},
};
use crate::{auth::Caller, body::JsonBody, error::ApiError, routes::queues::known_queue, services::Services};

/// The configuration as it is shown. It can be sent back.
pub(super) fn configuration_json(settings: &JobSettings, control: &QueueControl) -> Value {
    let rate = control.rate.map(|rate| {
        let period = time::format_duration(Duration::from_millis(rate.period_ms));
        json!({ "limit": rate.limit, "period": period, "burst": rate.burst, "strict": rate.is_strict })
    });
    json!({
        "concurrency": control.concurrency, "rate_limit": rate,
        "priority_aging": control.priority_aging.map(time::format_duration), "max_depth": control.max_depth,
        "retention": retention_json(settings),
        "partitions": control.partitions.count, "key_partitions": control.partitions.key_count,
    })
}

fn retention_json(settings: &JobSettings) -> Value {
    json!({
        "completed": time::format_duration(settings.result_ttl),
        "discarded": time::format_duration(settings.result_ttl),
        "dead_letter": time::format_duration(settings.dead_letter_ttl),
    })
}

/// One queue with its configuration.
pub(in crate::routes) async fn show(
    caller: Caller,
    services: web::Data<Services>,
    queue: web::Path<String>,
) -> ApiResult {
    let queue = known_queue(&caller, &services, &queue).await?;
    Ok(ojs_response(StatusCode::OK, detail_json(&services, &queue).await?.to_string()))
}

async fn detail_json(services: &Services, queue: &QueueName) -> Result<Value, ApiError> {
    let (stats, control) = (services.jobs.queue_stats(queue).await?, services.jobs.queue_control(queue).await?);
    let recent = recent_json(services, std::slice::from_ref(queue)).await?.pop().unwrap_or_default();
    let mut detail = summary_json(queue, &stats, &control, recent);
    let oldest = services.jobs.oldest_waiting_at(queue).await?;
    detail["configuration"] = configuration_json(&services.settings.jobs, &control);
    detail["oldest_available_at"] = json!(oldest.map(time::format));
    Ok(detail)
}

/// Changes the limits of a queue, and raises the number of its partitions. Limits that are left out get the values of the
/// settings; partitions that are left out stay as many.
pub(in crate::routes) async fn update(
    caller: Caller,
    services: web::Data<Services>,
    queue: web::Path<String>,
    body: JsonBody,
) -> ApiResult {
    let config: Object<'_> = body.parse()?;
    let names =
        ["concurrency", "rate_limit", "priority_aging", "retention", "max_depth", "partitions", "key_partitions"];
    config.check_names(&names).map_err(ApiError::invalid)?;
    let given = |name: &str| config.get(name).filter(|raw| raw.get() != "null");
    let concurrency = given("concurrency").map(|raw| limit::parse_concurrency(raw, "concurrency")).transpose();
    let rate = given("rate_limit").map(|raw| limit::parse_rate(raw, "rate_limit")).transpose();
    let aging = given("priority_aging").map(limit::parse_priority_aging).transpose();
    let run_time = RunTimeLimits {
        concurrency: concurrency.map_err(ApiError::invalid)?,
        rate: rate.map_err(ApiError::invalid)?,
        priority_aging: aging.map_err(ApiError::invalid)?,
    };
    let partitions = given("partitions").map(parse_partitions).transpose()?;
    let queue = known_queue(&caller, &services, &queue).await?;
    let shown = configuration_json(&services.settings.jobs, &services.jobs.queue_control(&queue).await?);
    for (name, source) in [
        ("retention", "comes from the settings (jobs.result_ttl_ms and jobs.dead_letter_ttl_ms)"),
        ("max_depth", "comes from the settings (queues.<queue>.max_depth)"),
        ("key_partitions", "was settled with the first partitions of the queue"),
    ] {
        let Some(raw) = given(name) else { continue };
        let wanted: Value = serde_json::from_str(raw.get()).unwrap_or_default();
        if !is_part_of(&wanted, &shown[name]) {
            return Err(ApiError::invalid(format!("{name} {source}: leave it out or send it as it is shown")));
        }
    }
    let limits = QueueLimits { concurrency: run_time.concurrency, rate: run_time.rate, ..QueueLimits::default() };
    if partitions.is_some_and(|partitions| !limits.have_shares(partitions)) {
        return Err(PartitionRefusal::LimitTooSmall.into());
    }
    services.jobs.set_queue_limits(&queue, run_time).await??;
    if let Some(partitions) = partitions {
        services.jobs.raise_partitions(&queue, partitions).await??;
    }
    Ok(ojs_response(StatusCode::OK, detail_json(&services, &queue).await?.to_string()))
}

fn parse_partitions(raw: &RawValue) -> Result<u16, ApiError> {
    let count = raw.get().parse().ok().filter(|count| (1..=MAX_PARTITIONS).contains(count));
    count.ok_or_else(|| PartitionRefusal::OutOfBounds.into())
}

/// Whether a value says nothing else than what is shown.
fn is_part_of(wanted: &Value, shown: &Value) -> bool {
    match (wanted, shown) {
        (Value::Object(wanted), Value::Object(shown)) => {
            wanted.iter().all(|(name, value)| shown.get(name).is_some_and(|shown| is_part_of(value, shown)))
        }
        (Value::String(wanted), Value::String(shown)) => {
            wanted == shown
                || time::parse_duration(wanted).ok().is_some_and(|length| time::parse_duration(shown) == Ok(length))
        }
        (wanted, shown) => wanted == shown,
    }
}
