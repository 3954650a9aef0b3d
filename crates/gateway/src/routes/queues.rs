//! Queues: how they are doing.

use actix_web::{http::StatusCode, web};
use common::name::QueueName;
use serde_json::json;

use super::{Answer, ojs};
use crate::startup::Services;

/// A queue that does not exist yet is an empty one: it comes to be with its first job.
pub(super) async fn stats(services: web::Data<Services>, queue: web::Path<String>) -> Answer {
    let queue: QueueName = queue.parse()?;
    let stats = services.jobs.stats(&queue).await?;
    let queue = json!({
        "name": queue, "available": stats.available, "active": stats.active, "waiting": stats.waiting, "dead": stats.dead,
        "completed": stats.completed, "discarded": stats.discarded, "cancelled": stats.cancelled,
    });
    Ok(ojs(StatusCode::OK, json!({ "queue": queue }).to_string()))
}
