//! The calls that the admin UI of the Open Job Spec makes (its `src/api/client.ts`), and the members that its types name
//! (`src/api/types.ts`), for queues, jobs, workers and dead letters. `deploy/dev/ojs-admin-ui.sh` opens the pages themselves.

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use crate::kit::GalleyKit;

/// Members that a type demands, with the JSON type of each.
type Members = [(&'static str, &'static str)];

const PAGINATION: &Members = &[("total", "number"), ("page", "number"), ("per_page", "number")];
const COUNTS: &Members = &[
    ("available", "number"),
    ("active", "number"),
    ("scheduled", "number"),
    ("retryable", "number"),
    ("completed", "number"),
    ("discarded", "number"),
    ("cancelled", "number"),
];
const JOB_SUMMARY: &Members = &[
    ("id", "string"),
    ("type", "string"),
    ("queue", "string"),
    ("state", "string"),
    ("priority", "number"),
    ("attempt", "number"),
    ("created_at", "string"),
];
const WORKER: &Members = &[
    ("id", "string"),
    ("state", "string"),
    ("queues", "array"),
    ("active_jobs", "number"),
    ("started_at", "string"),
    ("last_heartbeat_at", "string"),
];
const BULK_RESULT: &Members =
    &[("action", "string"), ("matched", "number"), ("succeeded", "number"), ("failed", "number"), ("errors", "array")];

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn check(what: &str, value: &Value, members: &Members) {
    for (name, wanted) in members {
        assert_eq!(kind(&value[*name]), *wanted, "{what}: {name} of {value}");
    }
}

/// Sends a request as the client of the UI does.
async fn call(kit: &GalleyKit, method: Method, path: &str, body: Option<Value>) -> Value {
    let request = kit.http.request(method, kit.gateway.url(path)).header("content-type", "application/json");
    let request = match body {
        Some(body) => request.body(body.to_string()),
        None => request,
    };
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 200, "{path}");
    response.json().await.expect("JSON")
}

async fn get(kit: &GalleyKit, path: &str) -> Value {
    call(kit, Method::GET, path, None).await
}

async fn dead_letter(kit: &GalleyKit) -> String {
    let retry = json!({ "max_attempts": 1, "on_exhaustion": "dead_letter" });
    let id = kit.enqueue(&json!({ "type": "test.fail_always", "args": [], "queue": "default", "retry": retry })).await;
    kit.wait_for_state(&id, "discarded").await;
    id
}

async fn check_queues(kit: &GalleyKit) {
    let queues = get(kit, "/ojs/v1/admin/queues?page=1&per_page=50").await;
    check("queues", &queues["pagination"], PAGINATION);
    let queue = &queues["items"][0];
    check("queue", queue, &[("name", "string"), ("counts", "object"), ("paused", "boolean")]);
    check("counts", &queue["counts"], COUNTS);
    let detail = get(kit, "/ojs/v1/admin/queues/other").await;
    check("queue", &detail["configuration"]["retention"], &[("completed", "string"), ("discarded", "string")]);
    call(kit, Method::POST, "/ojs/v1/admin/queues/other/pause", None).await;
    call(kit, Method::POST, "/ojs/v1/admin/queues/other/resume", None).await;
    let config = json!({ "concurrency": 3, "rate_limit": { "limit": 5, "period": "PT1S" } });
    call(kit, Method::PUT, "/ojs/v1/admin/queues/other/config", Some(config)).await;
}

#[tokio::test]
async fn the_calls_of_the_admin_ui_are_answered_with_what_its_types_name() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    let (first, second, third) = (dead_letter(&kit).await, dead_letter(&kit).await, dead_letter(&kit).await);
    let waiting = kit.enqueue(&json!({ "type": "a", "args": [1], "queue": "other" })).await;

    let manifest = get(&kit, "/ojs/manifest").await;
    assert_eq!(manifest["extensions"]["official"][0]["name"], "admin-api");
    check_queues(&kit).await;

    let jobs =
        get(&kit, "/ojs/v1/admin/jobs?state=discarded&queue=default&page=1&per_page=20&sort=created_at&order=desc")
            .await;
    check("jobs", &jobs["pagination"], PAGINATION);
    jobs["items"].as_array().expect("jobs").iter().for_each(|job| check("job", job, JOB_SUMMARY));
    let job = get(&kit, &format!("/ojs/v1/admin/jobs/{first}")).await;
    check("job", &job, JOB_SUMMARY);
    check("job", &job, &[("args", "array"), ("meta", "object"), ("errors", "array"), ("metadata", "object")]);
    check(
        "error",
        &job["errors"][0],
        &[("code", "string"), ("message", "string"), ("attempt", "number"), ("occurred_at", "string")],
    );
    call(&kit, Method::PATCH, &format!("/ojs/v1/admin/jobs/{waiting}"), Some(json!({ "priority": 5 }))).await;
    call(&kit, Method::POST, &format!("/ojs/v1/admin/jobs/{waiting}/cancel"), None).await;
    call(&kit, Method::POST, &format!("/ojs/v1/admin/jobs/{waiting}/retry"), None).await;
    for (action, filter) in
        [("cancel", json!({ "queue": "other" })), ("retry", json!({ "queue": "other", "state": "cancelled" }))]
    {
        let body = json!({ "filter": filter, "confirm": true });
        let result = call(&kit, Method::POST, &format!("/ojs/v1/admin/jobs/bulk/{action}"), Some(body)).await;
        check(action, &result, BULK_RESULT);
    }
    let purge = json!({ "states": ["available"], "confirm": true });
    let purged = call(&kit, Method::DELETE, "/ojs/v1/admin/queues/other/jobs", Some(purge)).await;
    check("purge", &purged, &[("purged_count", "number")]);

    let workers = get(&kit, "/ojs/v1/admin/workers?page=1&per_page=50").await;
    check("workers", &workers["pagination"], PAGINATION);
    let summary = [("total", "number"), ("running", "number"), ("quiet", "number"), ("stale", "number")];
    check("workers", &workers["summary"], &summary);
    check("worker", &workers["items"][0], WORKER);
    let worker = workers["items"][0]["id"].as_str().expect("an id").to_owned();

    let dead = get(&kit, "/ojs/v1/admin/dead-letter?page=1&per_page=20").await;
    check("dead letters", &dead["pagination"], PAGINATION);
    check("dead letter", &dead["items"][0], JOB_SUMMARY);
    check(
        "dead letters",
        &get(&kit, "/ojs/v1/admin/dead-letter/stats").await,
        &[("total", "number"), ("by_queue", "object")],
    );
    show_pages(&kit, "default", &first, &second, &worker);
    call(&kit, Method::POST, &format!("/ojs/v1/admin/dead-letter/{first}/retry"), None).await;
    call(&kit, Method::DELETE, &format!("/ojs/v1/admin/dead-letter/{second}"), None).await;
    let body = json!({ "filter": { "queue": "default" }, "confirm": true });
    check("retry", &call(&kit, Method::POST, "/ojs/v1/admin/dead-letter/retry", Some(body)).await, BULK_RESULT);
    kit.wait_for_state(&third, "discarded").await;
    call(&kit, Method::POST, &format!("/ojs/v1/admin/workers/{worker}/quiet"), None).await;
}

/// Opens the pages, if the sources of the UI were built here before.
fn show_pages(kit: &GalleyKit, queue: &str, job: &str, dead_letter: &str, worker: &str) {
    let Some(folder) = std::env::var_os("OJS_ADMIN_UI_FOLDER") else {
        eprintln!("the pages are not opened: OJS_ADMIN_UI_FOLDER names no folder for the sources of the admin UI");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/dev/ojs-admin-ui.sh");
    let mut command = std::process::Command::new(script);
    command.args([&kit.gateway.url(""), queue, job, dead_letter, &worker[..worker.len().min(16)]]);
    let output = command.env("OJS_ADMIN_UI_FOLDER", folder).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
