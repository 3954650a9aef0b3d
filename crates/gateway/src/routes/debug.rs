//! What an operator asks of one process: its tasks, its connections, who leads, what went wrong last, and which settings
//! differ from their defaults. Without payloads and secrets.

use actix_web::{HttpResponse, web};
use common::{
    health::{overall_status, parts_json},
    prometheus::MetricsHandle,
    settings::hostname,
    telemetry::{log_level, recent_problems},
    time,
};
use serde_json::{Map, Value, json};
use store::maintenance::leadership::LeaderDetails;

use super::{ApiResult, log_level::log_level_json};
use crate::services::Services;

/// The gauges that say what is open, by the names that they have here.
const CONNECTIONS: [(&str, &str); 8] = [
    ("http", "galley_http_connections"),
    ("event_streams", "galley_event_streams"),
    ("channel_readers", "galley_channel_readers"),
    ("waiting_requests", "galley_waiters"),
    ("redis_pool_idle", "galley_redis_pool_connections{state=\"idle\"}"),
    ("redis_pool_used", "galley_redis_pool_connections{state=\"used\"}"),
    ("redis_pool_waiters", "galley_redis_pool_waiters"),
    ("open_files", "process_open_fds"),
];

pub(super) async fn show(services: web::Data<Services>, metrics: web::Data<MetricsHandle>) -> ApiResult {
    let (parts, leader, level) =
        tokio::join!(services.health.parts(), services.redis.leader(), services.redis.log_level());
    let (in_effect, _) = log_level::in_effect();
    let mut level = log_level_json(level.ok().flatten().as_ref());
    level["in_effect"] = in_effect.into();
    let uptime = services.started.elapsed();
    let started_at = i64::try_from(uptime.as_millis()).map_or(0, |millis| store::local_now().saturating_sub(millis));
    let answer = json!({
        "service": "gateway",
        "version": env!("CARGO_PKG_VERSION"),
        "host": hostname(),
        "process_id": std::process::id(),
        "started_at": time::format(started_at),
        "uptime_seconds": uptime.as_secs(),
        "health": { "status": overall_status(&parts), "parts": parts_json(&parts) },
        "tasks": tasks(&services),
        "connections": connections(&services, &metrics.render()),
        "leader": leader.map_or_else(|error| json!({ "problem": error.to_string() }), leader_json),
        "log_level": level,
        "last_problems": recent_problems(),
        "settings": *services.facts.changed_settings,
    });
    Ok(HttpResponse::Ok().content_type("application/json").body(answer.to_string()))
}

/// Of the runtime that everything but the handling of requests runs on.
fn tasks(services: &Services) -> Value {
    let metrics = services.facts.runtime.metrics();
    let workers = metrics.num_workers();
    let busy: f64 = (0..workers).map(|worker| metrics.worker_total_busy_duration(worker).as_secs_f64()).sum();
    json!({
        "threads": workers, "alive": metrics.num_alive_tasks(), "queued": metrics.global_queue_depth(),
        "busy_seconds": (busy * 1000.0).round() / 1000.0,
    })
}

fn connections(services: &Services, metrics: &str) -> Value {
    let value = |name: &str| {
        let text = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        text.parse::<f64>().ok()
    };
    let mut shown: Map<String, Value> =
        CONNECTIONS.iter().map(|(name, metric)| ((*name).to_owned(), json!(value(metric)))).collect();
    shown.insert("redis".to_owned(), redis_json(services));
    Value::Object(shown)
}

fn redis_json(services: &Services) -> Value {
    let shared = services.redis.shared_connection_state();
    json!({
        "is_open": shared.is_open, "opened": shared.opened, "open_seconds": shared.open_for.map(|time| time.as_secs()),
        "problem": shared.problem,
    })
}

fn leader_json(leader: Option<LeaderDetails>) -> Value {
    let Some(LeaderDetails { service, host, process_id, version, since }) = leader else { return Value::Null };
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    json!({
        "service": text(service), "host": text(host), "process_id": process_id.parse::<u32>().ok(),
        "version": text(version), "since": since.map(time::format),
    })
}
