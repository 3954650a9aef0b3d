//! What all processes log, changed while they run.

use actix_web::web;
use common::{
    telemetry::log_level::{self, LogFilter},
    time::{self, parse_duration},
};
use serde::Deserialize;
use serde_json::{Value, json};
use store::log_level::LogLevelOverride;

use super::ApiResult;
use crate::{body::JsonBody, error::ApiError, services::Services};

#[derive(Deserialize)]
struct LogLevelRequest {
    level: String,
    duration: Option<String>,
}

/// What this process logs, and what is set for all.
pub(super) async fn show(services: web::Data<Services>) -> ApiResult {
    let set = services.redis.log_level().await?;
    Ok(answer(set.as_ref()))
}

/// Sets the level of all processes. Each learns of it at once, and those that start later read it.
pub(super) async fn set(services: web::Data<Services>, body: JsonBody) -> ApiResult {
    let LogLevelRequest { level, duration } = body.parse()?;
    let set = set_log_level(&services, &level, duration.as_deref()).await?;
    Ok(answer(Some(&set)))
}

/// Sets the level of all processes, as somebody wrote it.
pub(crate) async fn set_log_level(
    services: &Services,
    level: &str,
    duration: Option<&str>,
) -> Result<LogLevelOverride, ApiError> {
    let filter: LogFilter =
        level.parse().map_err(|error| ApiError::invalid(format!("{error}, got {}", quoted(level))))?;
    let length = duration.map(parse_duration).transpose();
    let length = length.map_err(|error| ApiError::invalid(format!("duration {error}")))?;
    if length.is_some_and(|length| length.is_zero()) {
        return Err(ApiError::invalid("duration must be longer than PT0S".to_owned()));
    }
    Ok(services.redis.set_log_level(filter, length).await?)
}

/// Lets all processes return to the level of their settings.
pub(super) async fn reset(services: web::Data<Services>) -> ApiResult {
    services.redis.reset_log_level().await?;
    Ok(answer(None))
}

fn quoted(text: &str) -> String {
    common::name::quoted(text)
}

fn answer(set: Option<&LogLevelOverride>) -> actix_web::HttpResponse {
    actix_web::HttpResponse::Ok().content_type("application/json").body(log_level_json(set).to_string())
}

/// The level that is set for all, and that of this process's settings.
pub(super) fn log_level_json(set: Option<&LogLevelOverride>) -> Value {
    let (_, configured) = log_level::in_effect();
    let level = set.map_or_else(|| configured.clone(), |set| set.level.to_string());
    json!({
        "level": level, "is_set": set.is_some(), "until": set.and_then(|set| set.until).map(time::format),
        "configured": configured,
    })
}
