//! The manifest and the health of this server.

use std::time::Instant;

use actix_web::{HttpResponse, http::StatusCode, http::header, web};
use common::health;
use serde_json::json;
use store::connection::server::ServerError;

use super::{ojs_response, ojs_response_builder};
use crate::services::Services;

pub(super) async fn manifest() -> HttpResponse {
    let manifest = json!({
        "specversion": "1.0",
        "ojs_version": "1.0",
        "implementation": { "name": "galley", "version": env!("CARGO_PKG_VERSION"), "language": "rust" },
        "conformance_level": 4,
        "protocols": ["http"],
        "backend": "redis",
        "capabilities": {
            "scheduled_jobs": true, "dead_letter": true, "priority_queues": true, "batch_enqueue": true,
            "cron_jobs": true, "workflows": true, "unique_jobs": true, "rate_limiting": true,
            "events": true, "realtime": { "sse": true, "websocket": false }, "worker_management": true,
            "queue_pause": true, "admin_api": true, "queue_limits": true, "job_progress": true, "pending_jobs": true, "job_expiration": true,
            "wait_for_result": true, "idempotency_keys": true, "streaming_enqueue": true,
        },
        "extensions": {
            "official": [{ "name": "admin-api", "uri": "urn:ojs:ext:admin-api", "version": "1.0.0-rc.1" }],
        },
        "endpoints": {
            "admin": "/ojs/v1/admin",
            "manifest": "/ojs/manifest",
            "health": "/ojs/v1/health",
            "openapi": "/openapi.json",
            "jobs": "/ojs/v1/jobs",
            "job": "/ojs/v1/jobs/{id}",
            "jobs_batch": "/ojs/v1/jobs/batch",
            "jobs_stream": "/ojs/v1/jobs/stream",
            "job_progress": "/ojs/v1/jobs/{id}/progress",
            "job_activate": "/ojs/v1/jobs/{id}/activate",
            "job_retry": "/ojs/v1/jobs/{id}/retry",
            "queues": "/ojs/v1/queues",
            "queue": "/ojs/v1/queues/{queue}",
            "queue_stats": "/ojs/v1/queues/{queue}/stats",
            "queue_limits": "/ojs/v1/queues/{queue}/limits",
            "queue_jobs": "/ojs/v1/queues/{queue}/jobs",
            "channel_messages": "/v1/channels/{channel}/messages",
            "workers": "/ojs/v1/workers",
            "dead_letter": "/ojs/v1/dead-letter",
            "workflows": "/ojs/v1/workflows",
            "cron": "/ojs/v1/cron",
            "events": "/ojs/v1/events",
            "event_stream": "/ojs/v1/events/stream",
            "job_events": "/ojs/v1/jobs/{id}/events",
            "queue_events": "/ojs/v1/queues/{queue}/events",
            "worker": "/ojs/v1/workers/{id}",
        },
    });
    ojs_response(StatusCode::OK, manifest.to_string())
}

pub(super) async fn health(services: web::Data<Services>) -> HttpResponse {
    let started = Instant::now();
    match services.redis.check_server().await {
        Ok(server) => {
            let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let memory = services.redis.memory();
            let (used, max) = memory.used_and_max();
            let kinds = memory.usage_of_kinds().map(|(budget, used, share)| {
                json!({
                    "kind": budget.name, "used_bytes": used, "budget_bytes": share, "percent": budget.percent,
                    "when_used_up": budget.when_used_up.as_str(),
                })
            });
            let budgets: Vec<serde_json::Value> = kinds.collect();
            let confirmation = services.confirmer.state().map(|state| {
                let millis = u64::try_from(state.wanted.timeout.as_millis()).unwrap_or(u64::MAX);
                json!({
                    "replicas": state.wanted.replicas, "fsync": state.wanted.fsync, "timeout_ms": millis,
                    "last": state.last_confirmed.map(|is_confirmed| if is_confirmed { "confirmed" } else { "unconfirmed" }),
                })
            });
            let mut backend = json!({
                "type": "redis", "status": "connected", "version": server.version,
                "durability": server.durability.as_str(), "latency_ms": millis,
                "memory": { "used_bytes": used, "max_bytes": max, "results": memory.result_retention().as_str(),
                    "budgets": budgets,
                },
            });
            if let Some(confirmation) = confirmation {
                backend["confirmation"] = confirmation;
            }
            let parts = health::parts_json(&services.health.parts().await);
            let health =
                json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION"), "backend": backend, "parts": parts });
            ojs_response(StatusCode::OK, health.to_string())
        }
        Err(error) => {
            let reason = match error {
                ServerError::Unsuitable(reason) => reason,
                ServerError::Store(error) if error.is_cannot_save() => format!("redis cannot save: {error}"),
                ServerError::Store(_) => "the store cannot be reached at the moment".to_owned(),
            };
            let backend = json!({ "type": "redis", "status": "unavailable", "reason": reason });
            let health = json!({ "status": "unhealthy", "version": env!("CARGO_PKG_VERSION"), "backend": backend });
            ojs_response_builder(StatusCode::SERVICE_UNAVAILABLE)
                .insert_header((header::RETRY_AFTER, "1"))
                .body(health.to_string())
        }
    }
}
