//! The audit: who administered what.

use actix_web::web;
use serde::Deserialize;
use store::audit::AuditPosition;

use crate::{
    routes::{ApiResult, json_response, list_answer::list_answer, parse_bounded},
    services::Services,
};

/// The default number of entries on a page.
const DEFAULT_PAGE_SIZE: usize = 100;
/// The most entries on a page.
const MAX_PAGE_SIZE: usize = 1000;

#[derive(Deserialize)]
pub(crate) struct AuditQuery {
    after: Option<String>,
    limit: Option<String>,
}

/// The newest entries first.
pub(crate) async fn list(services: web::Data<Services>, query: web::Query<AuditQuery>) -> ApiResult {
    let limit = parse_bounded("limit", query.limit.as_deref(), DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)?;
    let before: Option<AuditPosition> = query.after.as_deref().map(str::parse).transpose()?;
    let entries = services.redis.read_audit(before, limit).await?;
    let next = entries.last().filter(|_| entries.len() == limit).map(|entry| entry.position.to_string());
    let entries: Vec<String> = entries
        .iter()
        .map(|entry| match entry.json.strip_prefix('{') {
            Some(rest) => format!("{{\"id\":\"{}\",{rest}", entry.position),
            None => entry.json.clone(),
        })
        .collect();
    Ok(json_response(list_answer(&entries, next.as_deref())))
}
