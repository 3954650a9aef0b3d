//! Nothing in a body, a query or an option is ignored silently, on any route.

use reqwest::Method;
use serde_json::{Value, json};
use testkit::eventually;

use crate::{
    kit::GalleyKit,
    openapi::{DescribedOperation, described_operations},
    sse::ChannelEventsClient,
};

async fn send(kit: &GalleyKit, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
    let mut request = kit.http.request(method, kit.gateway.url(path));
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    (status, serde_json::from_str(&response.text().await.expect("text")).unwrap_or_default())
}

/// The message of an error in either shape.
fn message(answer: &Value) -> &str {
    answer["error"]["message"].as_str().or(answer["detail"].as_str()).unwrap_or_default()
}

/// A path with something in place of each parameter.
fn filled(operation: &DescribedOperation) -> String {
    operation.path.replace(['{', '}'], "")
}

/// Probes send what they like.
fn is_probe(operation: &DescribedOperation) -> bool {
    operation.path.starts_with("/health/")
}

#[tokio::test]
async fn every_route_refuses_query_parameters_that_it_does_not_have_or_has_once() {
    let kit = GalleyKit::start().await;
    let (mut unknown, mut repeated) = (0, 0);
    let is_checked = |operation: &&DescribedOperation| operation.method != "head" && !is_probe(operation);
    for operation in described_operations().iter().filter(is_checked) {
        let path = filled(operation);
        if !operation.is_event_stream {
            let (status, answer) = send(&kit, &operation.method, &format!("{path}?nonsense=1"), None).await;
            assert_eq!(status, 400, "{} {path}: {answer}", operation.method);
            assert!(message(&answer).contains("unknown query parameter \"nonsense\""), "{path}: {answer}");
            unknown += 1;
        }
        for name in &operation.single_query_parameters {
            let query = format!("{path}?{name}=1&{name}=2");
            let (status, answer) = send(&kit, &operation.method, &query, None).await;
            assert_eq!(status, 400, "{} {query}: {answer}", operation.method);
            assert!(
                message(&answer).contains(&format!("query parameter {name} must be given once")),
                "{query}: {answer}"
            );
            repeated += 1;
        }
    }
    assert!(unknown > 60 && repeated > 30, "{unknown} {repeated}");
    let (_, answer) = send(&kit, "get", "/ojs/v1/queues?limt=1", None).await;
    assert_eq!(message(&answer), r#"unknown query parameter "limt", did you mean "limit"? known are after, limit"#);
    for list in ["/ojs/v1/events?job_type=a", "/ojs/v1/dead-letter?job_type=a"] {
        let (status, answer) = send(&kit, "get", list, None).await;
        assert_eq!(status, 400, "{list}: {answer}");
        assert!(message(&answer).contains("did you mean \"type"), "{list}: {answer}");
    }
}

#[tokio::test]
async fn every_route_without_a_body_refuses_one_that_says_something() {
    let kit = GalleyKit::start().await;
    let mut looked_at = 0;
    let bodyless = described_operations().into_iter().filter(|operation| !operation.has_body && !is_probe(operation));
    for operation in bodyless.filter(|operation| operation.method != "head" && operation.path != "/v1/ws") {
        let path = filled(&operation);
        let (status, answer) = send(&kit, &operation.method, &path, Some(&json!({ "until": 1 }))).await;
        assert_eq!(status, 400, "{} {path}: {answer}", operation.method);
        assert!(message(&answer).contains("takes no body"), "{path}: {answer}");
        looked_at += 1;
    }
    assert!(looked_at > 40, "{looked_at}");
    let (status, answer) = send(&kit, "get", "/ojs/v1/queues", Some(&json!({}))).await;
    assert_eq!(status, 200, "an empty object says nothing: {answer}");
}

#[tokio::test]
async fn a_request_with_a_member_that_nothing_reads_changes_nothing() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&json!({ "type": "a", "args": [], "queue": "billing" })).await;
    let held = kit.enqueue(&json!({ "type": "a", "args": [], "queue": "pulled" })).await;
    let token = kit.fetch("pulled").await.expect("a job")["token"].clone();
    let nack = |error: Value| json!({ "job_id": held, "token": token, "error": error });
    let cases = [
        ("delete", "/ojs/v1/queues/billing/jobs", json!({ "confirm": "billing", "type": "report.make" }), "type"),
        ("delete", "/ojs/v1/queues/billing/jobs", json!({ "confirm": "billing", "dry_run": true }), "dry_run"),
        ("delete", "/ojs/v1/queues/billing", json!({ "confirm": "billing", "states": ["available"] }), "states"),
        ("put", "/ojs/v1/queues/billing/limits", json!({ "concurency": 1 }), "concurency"),
        ("post", "/ojs/v1/dead-letter/retry", json!({ "confirm": true, "filter": { "queu": "a" } }), "queu"),
        ("delete", "/ojs/v1/dead-letter", json!({ "confirm": true, "queue": "a" }), "queue"),
        ("post", "/ojs/v1/jobs/batch", json!({ "jobs": [{ "type": "a", "args": [] }], "mod": "per_item" }), "mod"),
        ("post", "/ojs/v1/workers/fetch", json!({ "queues": ["billing"], "cuont": 5 }), "cuont"),
        ("post", "/ojs/v1/workers/fetch", json!({ "queue": "billing" }), "queue"),
        ("post", "/ojs/v1/workers/ack", json!({ "job_id": held, "token": token, "reslt": 1 }), "reslt"),
        ("post", "/ojs/v1/workers/nack", nack(json!({ "message": "no", "retriable": false })), "retriable"),
        ("post", "/ojs/v1/workers/heartbeat", json!({ "worker_id": "w", "activ_jobs": [] }), "activ_jobs"),
        ("post", "/ojs/v1/workers/heartbeat", json!({ "worker_id": "w", "state": "runing" }), "runing"),
        (
            "post",
            &format!("/ojs/v1/jobs/{held}/progress"),
            json!({ "progress": 0.5, "token": token, "percent": 5 }),
            "percent",
        ),
        ("post", "/ojs/v1/workflows", json!({ "type": "group", "jobs": [], "callbacks": {} }), "callbacks"),
        ("post", "/ojs/v1/cron", json!({ "name": "n", "cron": "@daily", "type": "a", "overlap": "skip" }), "overlap"),
        ("post", "/ojs/v1/admin/fsck", json!({ "queue": "billing", "repiar": true }), "repiar"),
        (
            "put",
            "/v1/subscriptions/s",
            json!({ "channels": ["a"], "deliver": { "log": {} }, "name": "t" }),
            "name must be",
        ),
        ("post", "/v1/subscriptions/s/seek", json!({ "to": "new", "channels": ["a"] }), "channels"),
    ];
    for (method, path, body, name) in &cases {
        let (status, answer) = send(&kit, method, path, Some(body)).await;
        assert_eq!(status, 400, "{method} {path} {body}: {answer}");
        assert!(message(&answer).contains(name), "{method} {path} {body}: {answer}");
    }
    let (_, settled) = send(
        &kit,
        "post",
        "/ojs/v1/workers/ack",
        Some(&json!({ "acks": [{ "job_id": held, "token": token, "reslt": 1 }] })),
    )
    .await;
    let refused = settled["results"][0]["error"]["message"].as_str().unwrap_or_default();
    assert!(refused.contains(r#"unknown member "reslt", did you mean "result"?"#), "{settled}");
    assert_eq!(kit.job(&id).await["state"], "available");
    assert_eq!(kit.job(&held).await["state"], "active");
    assert!(kit.job(&held).await["progress"].is_null());
}

#[tokio::test]
async fn unknown_options_of_a_job_are_refused_and_members_beside_them_are_kept_with_a_warning() {
    let kit = GalleyKit::start().await;
    for (option, meant) in [
        (json!({ "priorty": 1 }), "priority"),
        (json!({ "max_atempts": 1 }), "retry.max_attempts"),
        (json!({ "delay": "+PT1S" }), "delay_until"),
        (json!({ "que": "q" }), "queue"),
        (json!({ "retry": { "max_atempts": 1 } }), "max_attempts"),
        (json!({ "rate_limit": { "key": "a", "concurrency": 1, "rate": { "limit": 1, "perod": "PT1S" } } }), "period"),
    ] {
        let body = json!({ "type": "a", "args": [], "options": option });
        let (status, answer) = send(&kit, "post", "/ojs/v1/jobs", Some(&body)).await;
        assert!([400, 422].contains(&status), "{body}: {answer}");
        assert!(message(&answer).contains(&format!("did you mean {meant:?}?")), "{body}: {answer}");
    }
    let odd = json!({ "type": "a", "args": [], "priorty": 1, "x_tenant": 7, "state": "completed" });
    let warnings = json!([
        r#"unknown member "priorty", did you mean "priority"? it is kept with the job and changes nothing"#,
        r#"member "state" is managed by galley and was ignored"#,
        r#"unknown member "x_tenant": it is kept with the job and changes nothing"#,
    ]);
    let sorted = |value: &Value, place: &str| {
        let mut texts: Vec<String> = value.as_array().expect("warnings").iter().map(Value::to_string).collect();
        texts.sort();
        texts.iter().map(|text| text.replace(place, "")).collect::<Vec<_>>()
    };
    let expected = sorted(&warnings, "");
    let (_, one) = send(&kit, "post", "/ojs/v1/jobs", Some(&odd)).await;
    assert_eq!((&one["job"]["x_tenant"], &one["job"]["state"]), (&json!(7), &json!("available")), "{one}");
    assert_eq!(sorted(&one["warnings"], ""), expected);
    let (_, batch) = send(&kit, "post", "/ojs/v1/jobs/batch", Some(&json!({ "jobs": [odd] }))).await;
    assert_eq!(sorted(&batch["warnings"], "jobs[0]: "), expected);
    let per_item = json!({ "jobs": [odd], "mode": "per_item" });
    let (_, items) = send(&kit, "post", "/ojs/v1/jobs/batch", Some(&per_item)).await;
    assert_eq!(sorted(&items["results"][0]["warnings"], ""), expected);
    let chain = json!({ "type": "chain", "steps": [odd] });
    let (_, workflow) = send(&kit, "post", "/ojs/v1/workflows", Some(&chain)).await;
    assert_eq!(sorted(&workflow["warnings"], "steps[0]: "), expected);
    let entry = json!({ "name": "n", "cron": "@yearly", "job_template": odd });
    let (_, cron) = send(&kit, "post", "/ojs/v1/cron", Some(&entry)).await;
    assert_eq!(sorted(&cron["warnings"], "job_template: "), expected);
    let (_, plain) = send(&kit, "post", "/ojs/v1/jobs", Some(&json!({ "type": "a", "args": [], "meta": {} }))).await;
    assert!(plain.get("warnings").is_none(), "{plain}");
}

#[tokio::test]
async fn event_streams_ignore_what_client_libraries_add_and_take_the_last_id_from_the_query() {
    let kit = GalleyKit::start().await;
    let publish = async |text: &str| {
        let request = kit.http.post(kit.gateway.url("/v1/channels/a/messages")).body(text.to_owned());
        let answer: Value = request.send().await.expect("an answer").json().await.expect("JSON");
        answer["id"].as_str().expect("an id").to_owned()
    };
    let first = publish("one").await;
    let second = publish("two").await;
    publish("three").await;
    for (query, expected) in [
        (format!("cache=1&cache=2&lastEventId={first}"), "two"),
        (format!("_=1&last_event_id={second}"), "three"),
        (format!("last_event_id={first}&lastEventId={second}"), "three"),
        (format!("lastEventId={first}&lastEventId={second}"), "three"),
    ] {
        let url = kit.gateway.url(&format!("/v1/channels/a/stream?{query}"));
        let mut stream = ChannelEventsClient::open(url, None).await;
        assert_eq!(stream.expect("message").await["data"], expected, "{query}");
    }
    let id = kit.enqueue(&json!({ "type": "a", "args": [] })).await;
    kit.cancel(&id).await;
    let first = eventually("both events are written", || async {
        let all = kit.get(&format!("/ojs/v1/jobs/{id}/events?x=1")).await.text().await.ok()?;
        let mut blocks = all.split("\n\n").filter(|block| block.contains("event: "));
        let (first, _) = (blocks.next()?, blocks.next()?);
        first.lines().find_map(|line| line.strip_prefix("id: ")).map(ToOwned::to_owned)
    })
    .await;
    for name in ["lastEventId", "last_event_id", "after"] {
        let rest = kit.get(&format!("/ojs/v1/jobs/{id}/events?x=1&{name}={first}")).await;
        let rest = rest.text().await.expect("text");
        assert!(!rest.contains(&first) && rest.contains("job.cancelled"), "{name}: {rest}");
    }
}
