//! Maintenance mode; the settings in effect, without secrets and addresses.

use actix_web::{HttpResponse, http::StatusCode, web};
use common::time::{self, format_duration};
use serde::Deserialize;
use serde_json::{Value, json};
use store::jobs::MaintenanceMode;

use super::{ApiResult, ojs_response};
use crate::{body::JsonBody, error::ApiError, services::Services};

/// The longest reason, in bytes.
pub(crate) const MAX_REASON_BYTES: usize = 1000;

#[derive(Deserialize)]
struct MaintenanceRequest {
    enabled: bool,
    reason: Option<String>,
    estimated_duration: Option<String>,
    duration: Option<String>,
}

/// Whether maintenance mode is on.
pub(in crate::routes) async fn show_maintenance(services: web::Data<Services>) -> ApiResult {
    let mode = services.jobs.maintenance_mode().await?;
    Ok(ojs_response(StatusCode::OK, mode_json(mode.as_ref()).to_string()))
}

/// Switches maintenance mode on or off. Switching it on again changes the reason and the end.
pub(in crate::routes) async fn set_maintenance(services: web::Data<Services>, body: JsonBody) -> ApiResult {
    let MaintenanceRequest { enabled, reason, estimated_duration, duration } = body.parse()?;
    if reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON_BYTES) {
        return Err(ApiError::invalid(format!("reason must have at most {MAX_REASON_BYTES} bytes")));
    }
    let length = estimated_duration.or(duration).map(|text| time::parse_duration(&text)).transpose();
    let length = length.map_err(|error| ApiError::invalid(format!("estimated_duration {error}")))?;
    let now = services.jobs.now().await?;
    let known = services.jobs.maintenance_mode().await?;
    let mode = enabled.then(|| MaintenanceMode {
        reason,
        enabled_at: known.map_or(now, |known| known.enabled_at),
        estimated_end: length
            .and_then(|length| i64::try_from(length.as_millis()).ok())
            .map(|length| now.saturating_add(length)),
    });
    services.jobs.set_maintenance_mode(mode.as_ref()).await?;
    Ok(ojs_response(StatusCode::OK, mode_json(mode.as_ref()).to_string()))
}

/// The mode in the words of the specification, and in those of its admin UI.
fn mode_json(mode: Option<&MaintenanceMode>) -> Value {
    let enabled_at = mode.map(|mode| time::format(mode.enabled_at));
    let end = mode.and_then(|mode| mode.estimated_end).map(time::format);
    json!({
        "maintenance": mode.is_some(), "enabled": mode.is_some(), "reason": mode.and_then(|mode| mode.reason.as_deref()),
        "enabled_at": enabled_at, "started_at": enabled_at, "estimated_end": end, "ends_at": end,
    })
}

/// What operators ask about: limits, and how long things are kept.
pub(in crate::routes) async fn config(services: web::Data<Services>) -> HttpResponse {
    let settings = &services.settings;
    let (jobs, gateway) = (&settings.jobs, &settings.gateway);
    let queues: serde_json::Map<String, Value> = settings
        .queues
        .iter()
        .map(|(queue, limits)| {
            let shown = json!({ "concurrency": limits.concurrency, "max_depth": limits.max_depth });
            (queue.to_string(), shown)
        })
        .collect();
    let config = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "jobs": {
            "retention": {
                "completed": format_duration(jobs.result_ttl), "discarded": format_duration(jobs.result_ttl),
                "dead_letter": format_duration(jobs.dead_letter_ttl),
            },
            "keep_envelope": jobs.keep_envelope, "dead_letter_max": jobs.dead_letter_max,
            "discarded_max": jobs.discarded_max, "completed_max": jobs.completed_max,
            "result_limit_bytes": jobs.result_limit_bytes, "max_queues": jobs.max_queues, "events_max": jobs.events_max,
            "crash_budget": jobs.crash_budget, "attempt_timeout": format_duration(jobs.attempt_timeout),
            "max_attempt_timeout": format_duration(jobs.max_attempt_timeout),
        },
        "gateway": {
            "body_limit_bytes": gateway.body_limit_bytes, "max_wait": format_duration(gateway.max_wait),
            "batch_max_jobs": gateway.batch_max_jobs, "max_waiters": gateway.max_waiters,
        },
        "queues": queues,
    });
    ojs_response(StatusCode::OK, config.to_string())
}
