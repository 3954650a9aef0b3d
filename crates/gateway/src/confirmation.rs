//! Answers requests that change something when the change has reached what `durability` asks for: replicas, the disk. If it
//! has not in time, the answer is 202 with a header that says so.
//!
//! What workers report is answered without that: a result that Redis loses is one of a job that runs again.

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method, StatusCode,
        header::{HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};

use crate::services::Services;

/// Says that a change is stored, and that it has not reached in time what `durability` asks for.
const DURABILITY: HeaderName = HeaderName::from_static("galley-durability");
const UNCONFIRMED: HeaderValue = HeaderValue::from_static("unconfirmed");

/// Wraps every route, if there is anything to confirm.
pub(crate) async fn confirm_writes<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    let services = request.app_data::<web::Data<Services>>().filter(|_| is_confirmed(request.method(), request.path()));
    let Some(confirmer) = services.map(|services| services.confirmer.clone()) else { return next.call(request).await };
    let mark = confirmer.mark().await;
    let mut answered = next.call(request).await?;
    let acknowledges = answered.status().is_success();
    if acknowledges && !confirmer.confirm(mark).await {
        let response = answered.response_mut();
        *response.status_mut() = StatusCode::ACCEPTED;
        response.headers_mut().insert(DURABILITY, UNCONFIRMED);
    }
    Ok(answered)
}

/// What workers report.
const REPORTS: [&str; 5] = ["fetch", "ack", "nack", "heartbeat", "log"];

/// Lines of a stream are confirmed where they are stored.
fn is_confirmed(method: &Method, path: &str) -> bool {
    let is_api = path.starts_with("/ojs/v1/") || path.starts_with("/v1/");
    let is_report = path.strip_prefix("/ojs/v1/workers/").is_some_and(|report| REPORTS.contains(&report))
        || path.starts_with("/ojs/v1/jobs/") && path.ends_with("/progress");
    is_api && !is_report && path != "/ojs/v1/jobs/stream" && !method.is_safe()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_something_is_confirmed_unless_a_worker_reports_it() {
        for path in
            ["/ojs/v1/jobs", "/ojs/v1/jobs/batch", "/ojs/v1/workflows", "/ojs/v1/cron", "/v1/channels/a/messages"]
        {
            assert!(is_confirmed(&Method::POST, path) && !is_confirmed(&Method::GET, path), "{path}");
        }
        assert!(
            is_confirmed(&Method::DELETE, "/ojs/v1/jobs/1") && is_confirmed(&Method::PATCH, "/ojs/v1/admin/jobs/1")
        );
        for path in ["/ojs/v1/workers/ack", "/ojs/v1/jobs/1/progress", "/ojs/v1/jobs/stream", "/ui/jobs/1/retry", "/"] {
            assert!(!is_confirmed(&Method::POST, path), "{path}");
        }
    }
}
