//! Health and metrics over HTTP: `/health/live`, `/health/ready`, `/health/startup` and `/metrics`, the same in every
//! service.
//!
//! Live means that the process answers. Started means that its parts run, whether or not Redis is there yet. Ready means
//! that it can do its work now: it has just done it. A service has parts; trouble with one that is not essential
//! leaves it ready, and the answer says `degraded` and why. An orchestrator restarts a process that is not live and sends
//! no requests to one that is not ready.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use actix_server::ServerBuilder;
use actix_web::{
    App, FromRequest, Handler, HttpResponse, Resource, Responder, dev::Server, http::header, middleware, web,
};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::{
    http_server::{ConnectionLimits, HttpListener, follow_exchange},
    prometheus::MetricsHandle,
};

/// Looks at every part of a service.
pub type ReadinessCheck = Arc<dyn Fn() -> BoxFuture<'static, Vec<HealthPart>> + Send + Sync>;

/// A part of a service.
#[derive(Debug, Clone)]
pub struct HealthPart {
    /// What users know it as: `jobs`.
    pub name: &'static str,
    /// How it is.
    pub state: PartState,
}

/// How a part is. The texts are for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartState {
    /// It does its work.
    Working,
    /// Why it does not do all of it. The service is worth its requests nevertheless.
    Degraded(String),
    /// Why the service cannot do its work.
    Failed(String),
}

impl PartState {
    /// The state of a part without which the service does the rest of its work.
    #[must_use]
    pub fn degraded_by(problem: Option<String>) -> Self {
        problem.map_or(Self::Working, Self::Degraded)
    }

    fn as_str(&self) -> &'static str {
        match self {
            Self::Working => "ok",
            Self::Degraded(_) => "degraded",
            Self::Failed(_) => "unavailable",
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Working => None,
            Self::Degraded(reason) | Self::Failed(reason) => Some(reason),
        }
    }
}

/// The health of a service. Cheap to clone.
#[derive(Clone)]
pub struct ServiceHealth {
    check: ReadinessCheck,
    is_started: Arc<AtomicBool>,
    /// In place of reasons, if not everybody may read them.
    hidden_reason: Option<&'static str>,
}

impl ServiceHealth {
    /// The health of a service that is starting.
    #[must_use]
    pub fn new(check: ReadinessCheck) -> Self {
        Self { check, is_started: Arc::default(), hidden_reason: None }
    }

    /// Answers everybody with this text in place of reasons.
    #[must_use]
    pub fn with_hidden_reasons(self, text: &'static str) -> Self {
        Self { hidden_reason: Some(text), ..self }
    }

    /// All parts of the service run.
    pub fn set_started(&self) {
        self.is_started.store(true, Relaxed);
    }

    /// Looks at every part.
    pub async fn parts(&self) -> Vec<HealthPart> {
        (self.check)().await
    }
}

/// The gravest state of the parts, in the words of `/health/ready`.
#[must_use]
pub fn overall_status(parts: &[HealthPart]) -> &'static str {
    gravest(parts).map_or("ok", |part| part.state.as_str())
}

/// The parts as members of an object: how each is, and why.
#[must_use]
pub fn parts_json(parts: &[HealthPart]) -> Value {
    let shown = parts.iter().map(|part| {
        let mut shown = json!({ "status": part.state.as_str() });
        if let Some(reason) = part.state.reason() {
            shown["reason"] = reason.into();
        }
        (part.name.to_owned(), shown)
    });
    Value::Object(shown.collect())
}

fn gravest(parts: &[HealthPart]) -> Option<&HealthPart> {
    let of_kind = |is_it: fn(&PartState) -> bool| parts.iter().find(|part| is_it(&part.state));
    of_kind(|state| matches!(state, PartState::Failed(_)))
        .or_else(|| of_kind(|state| matches!(state, PartState::Degraded(_))))
}

/// Adds the four routes to an application.
pub fn routes(config: &mut web::ServiceConfig, health: &ServiceHealth, metrics: &MetricsHandle) {
    config
        .app_data(web::Data::new(health.clone()))
        .app_data(web::Data::new(metrics.clone()))
        .service(read_only_resource("/health/live", live))
        .service(read_only_resource("/health/ready", ready))
        .service(read_only_resource("/health/startup", startup))
        .service(read_only_resource("/metrics", render));
}

/// Whether a path is that of a probe. Probes come from orchestrators, which name any host and send what they like.
#[must_use]
pub fn is_probe(path: &str) -> bool {
    path.starts_with("/health/")
}

/// A read-only resource: GET and HEAD.
pub fn read_only_resource<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args> + Copy,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    web::resource(path).route(web::get().to(handler)).route(web::head().to(handler))
}

async fn live() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "status": "ok" }))
}

async fn startup(health: web::Data<ServiceHealth>) -> HttpResponse {
    if health.is_started.load(Relaxed) {
        return HttpResponse::Ok().json(json!({ "status": "ok" }));
    }
    unavailable(&json!({ "status": "starting" }))
}

async fn ready(health: web::Data<ServiceHealth>) -> HttpResponse {
    let mut parts = health.parts().await;
    if let Some(text) = health.hidden_reason {
        for part in &mut parts {
            if let PartState::Degraded(reason) | PartState::Failed(reason) = &mut part.state {
                text.clone_into(reason);
            }
        }
    }
    let mut answer = json!({ "status": overall_status(&parts), "parts": parts_json(&parts) });
    let Some(gravest) = gravest(&parts) else { return HttpResponse::Ok().json(answer) };
    answer["reason"] = gravest.state.reason().into();
    if matches!(gravest.state, PartState::Failed(_)) { unavailable(&answer) } else { HttpResponse::Ok().json(answer) }
}

fn unavailable(answer: &Value) -> HttpResponse {
    HttpResponse::ServiceUnavailable().insert_header((header::RETRY_AFTER, "1")).json(answer)
}

async fn render(metrics: web::Data<MetricsHandle>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(metrics.render())
}

/// The server of a worker, which serves only health and metrics. Port 0 picks a free port; the bound address is
/// returned.
///
/// # Errors
/// The address is taken.
pub fn serve(
    listen: SocketAddr,
    health: ServiceHealth,
    metrics: MetricsHandle,
) -> std::io::Result<(Server, SocketAddr)> {
    let listener = HttpListener::bind(listen)?;
    let address = listener.address();
    let app = move || {
        App::new().configure(|config| routes(config, &health, &metrics)).wrap(middleware::from_fn(follow_exchange))
    };
    let builder = ServerBuilder::new().workers(1);
    Ok((listener.serve(builder, ConnectionLimits::default(), |_| None, app)?, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_part_decides_and_each_says_why() {
        let part = |name, state| HealthPart { name, state };
        let working = part("jobs", PartState::Working);
        let degraded = part("channels", PartState::Degraded("not heard".to_owned()));
        let failed = part("redis", PartState::Failed("gone".to_owned()));
        assert_eq!(overall_status(std::slice::from_ref(&working)), "ok");
        assert_eq!(overall_status(&[working.clone(), degraded.clone()]), "degraded");
        let all = [degraded, working, failed];
        assert_eq!(overall_status(&all), "unavailable");
        let shown = json!({
            "channels": { "status": "degraded", "reason": "not heard" }, "jobs": { "status": "ok" },
            "redis": { "status": "unavailable", "reason": "gone" },
        });
        assert_eq!(parts_json(&all), shown);
    }
}
