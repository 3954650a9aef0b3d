//! What an operator asks of processes: their tasks, their connections, who leads, what went wrong last, and which settings
//! of this gateway differ from their defaults. Without payloads and secrets.

use actix_web::{HttpResponse, web};
use common::time;
use serde_json::{Value, json};
use store::{maintenance::leadership::LeaderDetails, process_reports::ProcessReports};

use super::{ApiResult, log_level::log_level_json};
use crate::services::Services;

/// This gateway.
pub(super) async fn show(services: web::Data<Services>) -> ApiResult {
    let (mut answer, leader, level) =
        tokio::join!(services.reporter.report(), services.redis.leader(), services.redis.log_level());
    answer["leader"] = leader.map_or_else(|error| json!({ "problem": error.to_string() }), leader_json);
    let mut level = log_level_json(level.ok().flatten().as_ref());
    level["in_effect"] = answer["log_level"]["in_effect"].take();
    answer["log_level"] = level;
    answer["settings"] = (*services.facts.changed_settings).clone();
    Ok(HttpResponse::Ok().content_type("application/json").body(answer.to_string()))
}

/// All processes of the installation that answer.
pub(super) async fn show_all(services: web::Data<Services>) -> ApiResult {
    let ProcessReports { asked, reports } = services.redis.ask_processes(services.jobs.store().notifier()).await?;
    let answer = json!({ "asked": asked, "items": reports });
    Ok(HttpResponse::Ok().content_type("application/json").body(answer.to_string()))
}

fn leader_json(leader: Option<LeaderDetails>) -> Value {
    let Some(LeaderDetails { service, host, process_id, version, since }) = leader else { return Value::Null };
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    json!({
        "service": text(service), "host": text(host), "process_id": process_id.parse::<u32>().ok(),
        "version": text(version), "since": since.map(time::format),
    })
}
