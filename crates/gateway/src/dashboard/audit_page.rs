//! The audit: who did what here.

use actix_web::{HttpRequest, web};
use askama::Template;
use serde::Deserialize;
use store::audit::AuditPosition;

use super::page::Page;
use crate::{request_check::query_pairs, routes::ApiResult, services::Services};

/// Entries on a page.
const PAGE_SIZE: usize = 100;

#[derive(Template)]
#[template(path = "audit.html")]
struct AuditPage {
    page: Page,
    rows: Vec<AuditRow>,
    next: Option<String>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct AuditRow {
    at: String,
    key: String,
    name: String,
    action: String,
    target: String,
    outcome: String,
    status: u64,
    from: String,
}

pub(crate) async fn page(request: HttpRequest, services: web::Data<Services>) -> ApiResult {
    let pairs = query_pairs(request.query_string());
    let before = pairs.iter().find(|(name, _)| name == "before").map(|(_, value)| value.parse::<AuditPosition>());
    let entries = services.redis.read_audit(before.transpose()?, PAGE_SIZE).await?;
    let next = entries.last().filter(|_| entries.len() == PAGE_SIZE).map(|entry| entry.position.to_string());
    let rows = entries.iter().filter_map(|entry| serde_json::from_str(&entry.json).ok()).collect();
    let page = Page::open(&request, "/ui/audit").await;
    let template = AuditPage { page, rows, next };
    template.page.render(&template)
}
