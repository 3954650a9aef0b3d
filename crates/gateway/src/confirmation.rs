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
    let mark = confirmer.mark();
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
    use std::collections::BTreeSet;

    use super::*;
    use crate::routes::table;

    #[test]
    fn what_changes_something_is_confirmed_unless_a_worker_reports_it() {
        for (method, path) in [
            (Method::POST, "/ojs/v1/jobs"),
            (Method::DELETE, "/ojs/v1/jobs/1"),
            (Method::PATCH, "/ojs/v1/admin/jobs/1"),
            // Names that somebody chose as reports are called
            (Method::DELETE, "/ojs/v1/cron/progress"),
            (Method::DELETE, "/v1/subscriptions/progress"),
            (Method::DELETE, "/ojs/v1/queues/progress"),
            (Method::POST, "/ojs/v1/workers/1/quiet"),
        ] {
            assert!(is_confirmed(&method, path) && !is_confirmed(&Method::GET, path), "{method} {path}");
        }
        for path in ["/ui/jobs/1/retry", "/"] {
            assert!(!is_confirmed(&Method::POST, path), "{path}");
        }
    }

    #[test]
    fn of_all_routes_that_change_something_only_reports_and_the_stream_are_not_confirmed() {
        let not_confirmed: BTreeSet<&str> = table::rules()
            .filter(|rule| rule.path.starts_with("/ojs/v1/") || rule.path.starts_with("/v1/"))
            .filter(|rule| {
                let method: Method = rule.method.parse().expect("a method");
                !method.is_safe() && !is_confirmed(&method, rule.path)
            })
            .map(|rule| rule.path)
            .collect();
        let expected = ["ack", "fetch", "heartbeat", "log", "nack"].map(|report| format!("/ojs/v1/workers/{report}"));
        let others = ["/ojs/v1/jobs/stream", "/ojs/v1/jobs/{id}/progress"];
        assert_eq!(not_confirmed, expected.iter().map(String::as_str).chain(others).collect());
    }
}
