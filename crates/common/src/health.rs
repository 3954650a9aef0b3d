//! Health and metrics over HTTP: `/health/live`, `/health/ready` and `/metrics`, the same in every service.
//!
//! Live means that the process answers. Ready means that it can do its work now: Redis answers, and the service's own
//! checks pass. An orchestrator restarts a process that is not live and sends no requests to one that is not ready.

use std::{net::SocketAddr, sync::Arc};

use actix_server::ServerBuilder;
use actix_web::{
    App, FromRequest, Handler, HttpResponse, Resource, Responder, dev::Server, http::header, middleware, web,
};
use futures_util::future::BoxFuture;
use serde_json::json;

use crate::{
    http_server::{ConnectionLimits, HttpListener, follow_exchange},
    prometheus::MetricsHandle,
};

/// Answers whether the service can work; the error says why not, for people.
pub type ReadinessCheck = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Adds the three routes to an application.
pub fn routes(config: &mut web::ServiceConfig, readiness: &ReadinessCheck, metrics: &MetricsHandle) {
    config
        .app_data(web::Data::new(readiness.clone()))
        .app_data(web::Data::new(metrics.clone()))
        .service(read_only_resource("/health/live", live))
        .service(read_only_resource("/health/ready", ready))
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

async fn ready(readiness: web::Data<ReadinessCheck>) -> HttpResponse {
    match (readiness.as_ref())().await {
        Ok(()) => HttpResponse::Ok().json(json!({ "status": "ok" })),
        Err(reason) => HttpResponse::ServiceUnavailable()
            .insert_header((header::RETRY_AFTER, "1"))
            .json(json!({ "status": "unavailable", "reason": reason })),
    }
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
    readiness: ReadinessCheck,
    metrics: MetricsHandle,
) -> std::io::Result<(Server, SocketAddr)> {
    let listener = HttpListener::bind(listen)?;
    let address = listener.address();
    let app = move || {
        App::new().configure(|config| routes(config, &readiness, &metrics)).wrap(middleware::from_fn(follow_exchange))
    };
    let builder = ServerBuilder::new().workers(1);
    Ok((listener.serve(builder, ConnectionLimits::default(), |_| None, app)?, address))
}
