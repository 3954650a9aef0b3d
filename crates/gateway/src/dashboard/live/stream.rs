//! The stream that pages follow: parts of the page that changed, as HTML.

use actix_web::{HttpRequest, web, web::Bytes};
use model::access::Scope;

use super::{Watcher, known::Parts};
use crate::{
    auth::StreamSession,
    dashboard::{overview::live_parts, page::Page},
    error::ApiError,
    request_check::query_pairs,
    routes::ApiResult,
    services::Services,
    sse::{self, SseFrames, SseSource},
};

/// Follows the overview.
struct OverviewSource {
    page: Page,
    watcher: Watcher,
    services: Services,
    /// What the page has: only what changed is sent.
    sent: Parts,
}

/// Follows what `page` names.
pub(crate) async fn follow(request: HttpRequest, services: web::Data<Services>) -> ApiResult {
    let pairs = query_pairs(request.query_string());
    let value = |name: &str| pairs.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str());
    let keep_alive = services.settings.gateway.event_keep_alive;
    if value("page") != "overview" {
        return Err(ApiError::invalid("page must be overview"));
    }
    let page = Page::of(&request, "/");
    if !page.sees_all() {
        return Err(ApiError::scope_required(Scope::AdminRead));
    }
    let session = StreamSession::open(&request)?;
    let watcher = services.dashboard.watch(&services);
    let source = OverviewSource { page, watcher, services: services.get_ref().clone(), sent: Parts::new() };
    Ok(sse::stream_response(source, session, keep_alive))
}

/// An event with those parts that differ from what was sent.
pub(in crate::dashboard) fn changed_parts(sent: &mut Parts, parts: Parts) -> Bytes {
    let mut changed = serde_json::Map::new();
    for (name, html) in parts {
        if sent.get(name) != Some(&html) {
            changed.insert(name.to_owned(), html.clone().into());
            sent.insert(name, html);
        }
    }
    let mut frames = String::new();
    if !changed.is_empty() {
        sse::push_event(&mut frames, None, "parts", &serde_json::Value::Object(changed).to_string());
    }
    frames.into()
}

impl SseSource for OverviewSource {
    fn first_id(&self) -> String {
        "0".to_owned()
    }

    async fn next(&mut self) -> SseFrames {
        tokio::select! {
            () = self.services.stopping.cancelled() => return SseFrames::Last(Bytes::new()),
            () = self.watcher.changed() => {}
        }
        let overview = self.watcher.overview();
        self.page.now = overview.at;
        match live_parts(&self.page, &overview) {
            Ok(parts) => SseFrames::More(changed_parts(&mut self.sent, parts)),
            Err(_) => SseFrames::Last(Bytes::new()),
        }
    }
}
