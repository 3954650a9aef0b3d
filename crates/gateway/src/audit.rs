//! One line in the log and one entry in Redis for each admin action: who, what, when, and how it ended.
//!
//! An action is a request to a route that needs `admin:write`, or one that makes rights: keys and tokens. A client that lacks the
//! scope gets a line in the log but no entry: the entries are bounded, and refusals would push the actions out.

use actix_web::{HttpMessage, HttpRequest, body::BoxBody, dev::ServiceResponse, http::Method, web::Data};
use common::{
    json::ObjectWriter,
    time::{self, Millis},
};
use model::access::Scope;

use crate::{
    auth::{Caller, Credentials},
    routes::table::{Need, RouteRule},
    services::Services,
};

/// What a request without a key is called, where none is needed.
const ANYBODY: &str = "-";
/// The longest target: names are shorter, and a path may be anything.
const MAX_TARGET_BYTES: usize = 300;

/// An admin action, as it is known before its answer.
pub(crate) struct AdminAction {
    action: String,
    target: String,
    from: String,
}

impl AdminAction {
    /// The action that a request is, if it is one.
    pub(crate) fn of(request: &HttpRequest, rule: &RouteRule) -> Option<Self> {
        let is_read = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
        let makes_rights = rule.path == "/v1/tokens";
        let needs_admin = match rule.need {
            Need::Has(scope) => scope == Scope::AdminWrite,
            Need::Both(one, other) => [one, other].contains(&Scope::AdminWrite),
            _ => false,
        };
        if is_read || !(needs_admin || makes_rights) {
            return None;
        }
        let from = request.peer_addr().map(|address| address.ip().to_string()).unwrap_or_default();
        let mut target: String = request.path().to_owned();
        if target.len() > MAX_TARGET_BYTES {
            let end = (0..=MAX_TARGET_BYTES).rev().find(|end| target.is_char_boundary(*end)).unwrap_or_default();
            target.truncate(end);
        }
        Some(Self { action: format!("{} {}", rule.method, rule.path), target, from })
    }

    /// Records how it ended.
    pub(crate) async fn record(self, response: &ServiceResponse<BoxBody>, request_id: &str) {
        let (request, status) = (response.request(), response.status().as_u16());
        let sender = request.extensions().get::<Credentials>().and_then(|credentials| credentials.sender.clone());
        let was_admitted = request.extensions().get::<Caller>().is_some();
        let (key, name) =
            sender.map_or((ANYBODY.to_owned(), ANYBODY.to_owned()), |sender| (sender.id.clone(), sender.name.clone()));
        let outcome = if (200..400).contains(&status) { "done" } else { "refused" };
        let Self { action, target, from } = &self;
        tracing::info!(
            event = "admin.action",
            key,
            name,
            action,
            path = target,
            outcome,
            status,
            from,
            request_id,
            "admin action"
        );
        let services = request.app_data::<Data<Services>>().filter(|_| was_admitted);
        let Some(services) = services else { return };
        let json = entry(&self, store::local_now(), (&key, &name), (outcome, status), request_id);
        if let Err(error) = services.redis.add_to_audit(&json, services.settings.auth.audit_max).await {
            metrics::counter!("galley_audit_failed_total").increment(1);
            tracing::error!(event = "audit.failed", %error, request_id, "an admin action is missing in the audit");
        }
    }
}

fn entry(
    action: &AdminAction,
    at: Millis,
    (key, name): (&str, &str),
    (outcome, status): (&str, u16),
    request_id: &str,
) -> String {
    let mut json = ObjectWriter::default();
    json.text("at", &time::format(at)).text("key", key).text("name", name);
    json.text("action", &action.action).text("target", &action.target).text("outcome", outcome);
    json.number("status", status).text("from", &action.from).text("request_id", request_id);
    json.finish()
}
