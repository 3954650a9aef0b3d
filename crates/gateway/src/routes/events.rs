//! What happened to jobs lately.

use actix_web::{http::StatusCode, web};
use common::redis::events::EventFilter;
use serde::Deserialize;
use serde_json::json;

use super::{Answer, bounded, ojs};
use crate::startup::Services;

#[derive(Deserialize)]
pub(super) struct Query {
    types: Option<String>,
    queues: Option<String>,
    limit: Option<String>,
}

pub(super) async fn list(services: web::Data<Services>, query: web::Query<Query>) -> Answer {
    let list = |text: &Option<String>| -> Vec<String> {
        text.iter()
            .flat_map(|text| text.split(','))
            .filter(|part| !part.is_empty())
            .take(100)
            .map(ToOwned::to_owned)
            .collect()
    };
    let filter = EventFilter {
        types: list(&query.types),
        queues: list(&query.queues),
        limit: bounded("limit", query.limit.as_deref(), 100, 1000)?,
    };
    let events = services.redis.events(&filter).await?;
    Ok(ojs(StatusCode::OK, json!({ "events": events }).to_string()))
}
