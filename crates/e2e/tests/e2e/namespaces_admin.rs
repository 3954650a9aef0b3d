//! What a key of a namespace tries outside of it by the routes of the admin API.

use reqwest::Method;
use serde_json::{Value, json};

/// Attempts by operation, with a waiting job and a dead letter of others: each must be refused.
pub(crate) fn admin_attempts(waiting: &str, dead: &str) -> Vec<(&'static str, Method, String, Value)> {
    let (get, post, put, patch, delete) = (Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE);
    let null = Value::Null;
    let admin_job = |rest: &str| format!("/ojs/v1/admin/jobs/{waiting}{rest}");
    let admin_dead = |rest: &str| format!("/ojs/v1/admin/dead-letter/{dead}{rest}");
    let admin_queue = |rest: &str| format!("/ojs/v1/admin/queues/other.q{rest}");
    let bulk = |queue: &str| json!({ "filter": { "queue": queue }, "confirm": true });
    vec![
        ("jobDetail", get.clone(), admin_job(""), null.clone()),
        ("changeJob", patch.clone(), admin_job(""), json!({ "priority": 5 })),
        ("deleteJob", delete.clone(), format!("/ojs/v1/admin/jobs/{dead}?confirm=true"), null.clone()),
        ("adminRetryJob", post.clone(), format!("/ojs/v1/admin/jobs/{dead}/retry"), null.clone()),
        ("adminCancelJob", post.clone(), admin_job("/cancel"), null.clone()),
        ("rescheduleJob", post.clone(), admin_job("/reschedule"), json!({ "scheduled_at": "+PT1H" })),
        ("bulkRetry", post.clone(), "/ojs/v1/admin/jobs/bulk/retry".into(), bulk("other.dead")),
        ("bulkCancel", post.clone(), "/ojs/v1/admin/jobs/bulk/cancel".into(), bulk("other.q")),
        ("bulkDelete", post.clone(), "/ojs/v1/admin/jobs/bulk/delete".into(), bulk("other.dead")),
        ("adminQueue", get.clone(), admin_queue(""), null.clone()),
        ("adminPauseQueue", post.clone(), admin_queue("/pause"), null.clone()),
        ("adminResumeQueue", post.clone(), admin_queue("/resume"), null.clone()),
        (
            "adminPurgeQueue",
            delete.clone(),
            admin_queue("/jobs"),
            json!({ "states": ["available", "discarded"], "confirm": true }),
        ),
        ("setQueueConfig", put.clone(), admin_queue("/config"), json!({ "concurrency": 1 })),
        ("adminListWorkers", get.clone(), "/ojs/v1/admin/workers".into(), null.clone()),
        ("adminWorker", get.clone(), "/ojs/v1/admin/workers/other-worker".into(), null.clone()),
        ("deregisterWorker", delete.clone(), "/ojs/v1/admin/workers/other-worker".into(), null.clone()),
        ("adminQuietWorker", post.clone(), "/ojs/v1/admin/workers/other-worker/quiet".into(), null.clone()),
        ("purgeDeadLetters", delete.clone(), "/ojs/v1/admin/dead-letter".into(), bulk("other.dead")),
        ("adminRetryDeadLetters", post.clone(), "/ojs/v1/admin/dead-letter/retry".into(), bulk("other.dead")),
        ("adminDeadLetter", get.clone(), admin_dead(""), null.clone()),
        ("adminDeleteDeadLetter", delete.clone(), admin_dead(""), null.clone()),
        ("adminRetryDeadLetter", post.clone(), admin_dead("/retry"), null.clone()),
        ("adminMaintenance", get.clone(), "/ojs/v1/admin/system/maintenance".into(), null.clone()),
        ("adminSetMaintenance", post.clone(), "/ojs/v1/admin/system/maintenance".into(), json!({ "enabled": true })),
        ("adminConfig", get.clone(), "/ojs/v1/admin/system/config".into(), null.clone()),
        ("logLevel", get.clone(), "/v1/admin/log-level".into(), null.clone()),
        ("setLogLevel", put.clone(), "/v1/admin/log-level".into(), json!({ "filter": "trace" })),
        ("resetLogLevel", delete.clone(), "/v1/admin/log-level".into(), null.clone()),
        ("debug", get.clone(), "/v1/admin/debug".into(), null.clone()),
        ("debugProcesses", get.clone(), "/v1/admin/debug/processes".into(), null.clone()),
        ("subscriptionAttempts", get.clone(), "/v1/subscriptions/other.sub/attempts".into(), null.clone()),
        ("resendAttempt", post.clone(), "/v1/subscriptions/other.sub/attempts/1-0-0/resend".into(), null.clone()),
        ("listPushRules", get.clone(), "/v1/push-rules".into(), null.clone()),
        ("pushRule", get.clone(), "/v1/push-rules/other".into(), null.clone()),
        ("pushRuleAttempts", get.clone(), "/v1/push-rules/other/attempts".into(), null.clone()),
        ("resendPushRuleAttempt", post.clone(), "/v1/push-rules/other/attempts/f1-1/resend".into(), null.clone()),
    ]
}
