//! Whatever is wrong with a request: a clear error in the standard shape, and nothing written.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::{Value, json};

use crate::kit::GalleyKit;

/// Sends a body as JSON and gives status, error and whether anything was written.
async fn refused(kit: &GalleyKit, path: &str, body: Vec<u8>) -> (u16, Value) {
    let before = kit.redis_keys().await;
    let request = kit.http.post(kit.gateway.url(path)).header("content-type", "application/json").body(body);
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/openjobspec+json");
    assert!(response.headers().contains_key("x-request-id"));
    let answer: Value = response.json().await.expect("JSON");
    let error = answer["error"].clone();
    for member in ["code", "type", "message", "hint", "docs_url", "request_id"] {
        assert!(error[member].is_string(), "{member} of {error}");
    }
    assert_eq!(kit.redis_keys().await, before, "something was written");
    (status, error)
}

#[tokio::test]
async fn a_body_that_is_no_job_is_refused_with_what_is_allowed() {
    let kit = GalleyKit::start().await;
    let deep = format!(r#"{{"type":"a","args":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    let wide = format!("{{{}}}", (0..300).map(|n| format!("\"m{n}\":0")).collect::<Vec<_>>().join(","));
    let cases: Vec<(Vec<u8>, u16, &str, &str)> = vec![
        (b"".to_vec(), 400, "invalid_payload", "empty"),
        (b"{".to_vec(), 400, "invalid_payload", "not valid JSON"),
        (b"{\"type\":\"a\",\"args\":[]} x".to_vec(), 400, "invalid_payload", "not valid JSON"),
        (b"\xff\xfe{}".to_vec(), 400, "invalid_payload", "UTF-8"),
        (b"{\"type\":\"a\",\"args\":[NaN]}".to_vec(), 400, "invalid_payload", "not valid JSON"),
        (b"[]".to_vec(), 400, "invalid_request", "object"),
        (b"\"text\"".to_vec(), 400, "invalid_request", "object"),
        (b"null".to_vec(), 400, "invalid_request", "object"),
        (deep.into_bytes(), 400, "invalid_payload", "at most 64 levels"),
        (format!(r#"{{"type":"a","args":{}"#, "[".repeat(1_000_000)).into_bytes(), 400, "invalid_payload", ""),
        (wide.into_bytes(), 400, "invalid_request", "256 members"),
        (br#"{"type":"a","type":"b","args":[]}"#.to_vec(), 400, "invalid_request", "duplicate member"),
        (br#"{"args":[]}"#.to_vec(), 400, "invalid_request", "type is required"),
        (br#"{"type":5,"args":[]}"#.to_vec(), 400, "invalid_request", "type must be a string"),
        (br#"{"type":"a"}"#.to_vec(), 400, "invalid_request", "args is required"),
        (br#"{"type":"a","args":"x"}"#.to_vec(), 400, "invalid_request", "args must be a JSON array"),
        (br#"{"type":"a","args":[],"queue":"a\r\nDEL x"}"#.to_vec(), 400, "invalid_request", "queue must match"),
        (br#"{"type":"a","args":[],"queue":"{other}"}"#.to_vec(), 400, "invalid_request", "queue must match"),
        (br#"{"type":"a","args":[],"queue":"*"}"#.to_vec(), 400, "invalid_request", "queue must match"),
        (br#"{"type":"a","args":[],"queue":"../etc"}"#.to_vec(), 400, "invalid_request", "queue must match"),
        (br#"{"type":"a\u0000b","args":[]}"#.to_vec(), 400, "invalid_request", "type must match"),
        (br#"{"type":"a","args":[],"id":"1"}"#.to_vec(), 400, "invalid_request", "UUIDv7"),
        (br#"{"type":"a","args":[],"priority":1e9}"#.to_vec(), 400, "invalid_request", "-100 to 100"),
        (br#"{"type":"a","args":[],"scheduled_at":"soon"}"#.to_vec(), 400, "invalid_request", "RFC 3339"),
        (br#"{"type":"a","args":[],"timeout_ms":-1}"#.to_vec(), 400, "invalid_request", "timeout_ms must be"),
        (
            br#"{"type":"a","args":[],"retry":{"max_attempts":-1}}"#.to_vec(),
            422,
            "invalid_request",
            "retry.max_attempts",
        ),
    ];
    for (body, status, code, message) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let (got, error) = refused(&kit, "/ojs/v1/jobs", body).await;
        assert_eq!((got, error["code"].as_str()), (status, Some(code)), "{shown}: {error}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(message)), "{shown}: {error}");
        assert_eq!(error["retryable"], json!(false));
    }
}

#[tokio::test]
async fn worker_calls_with_wrong_bodies_are_refused() {
    let kit = GalleyKit::start().await;
    let id = "019539a4-b68c-7def-8000-1a2b3c4d5e6f";
    let cases = [
        ("fetch", json!({}), 400, "queues"),
        ("fetch", json!({ "queues": "default" }), 400, "queues"),
        ("fetch", json!([["default"], "w", 1, null]), 400, "JSON object"),
        ("nack", json!([id, null, null, true, null]), 400, "JSON object"),
        ("fetch", json!({ "queues": [] }), 400, "queues must be"),
        ("fetch", json!({ "queues": ["{x}"] }), 400, "queue must match"),
        ("fetch", json!({ "queues": vec!["q"; 101] }), 400, "1 to 100"),
        ("fetch", json!({ "queues": ["q"], "count": 0 }), 400, "count must be"),
        ("fetch", json!({ "queues": ["q"], "count": 1_000_000 }), 400, "count must be"),
        ("fetch", json!({ "queues": ["q"], "worker_id": "a b" }), 400, "worker_id must"),
        ("fetch", json!({ "queues": ["q"], "visibility_timeout_ms": 0 }), 400, "visibility_timeout_ms must be"),
        ("ack", json!({}), 400, "job_id"),
        ("ack", json!({ "job_id": "x" }), 400, "UUIDv7"),
        ("ack", json!({ "job_id": id, "token": "short" }), 400, "token must be"),
        ("ack", json!({ "job_id": id }), 404, "does not exist"),
        ("nack", json!({ "job_id": id }), 400, "error is required"),
        ("nack", json!({ "job_id": id, "error": "text" }), 400, "wrong shape"),
        ("nack", json!({ "job_id": id, "error": {} }), 404, "does not exist"),
        ("heartbeat", json!({}), 400, "worker_id is required"),
        ("heartbeat", json!({ "worker_id": "w", "active_jobs": ["x"] }), 400, "UUIDv7"),
        ("heartbeat", json!({ "worker_id": "w", "active_jobs": vec![id; 1001] }), 400, "at most 1000"),
    ];
    for (call, body, status, message) in cases {
        let (got, error) = refused(&kit, &format!("/ojs/v1/workers/{call}"), body.to_string().into_bytes()).await;
        assert_eq!(got, status, "{call} {body}: {error}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(message)), "{call} {body}: {error}");
    }
}

#[tokio::test]
async fn a_fetch_from_a_queue_that_does_not_exist_is_empty_and_writes_nothing() {
    let kit = GalleyKit::start().await;
    let before = kit.redis_keys().await;
    let response = kit.post("/ojs/v1/workers/fetch", &json!({ "queues": ["no-such-queue"] })).await;
    let status = response.status().as_u16();
    let answer: Value = response.json().await.expect("JSON");
    let warning = "queue \"no-such-queue\" does not exist before its first job";
    assert_eq!((status, answer), (200, json!({ "jobs": [], "warnings": [warning] })));
    assert_eq!(kit.redis_keys().await, before);
}

#[tokio::test]
async fn a_body_of_two_mebibytes_is_refused_and_the_client_gets_to_see_why() {
    let kit = GalleyKit::start().await;
    let body = format!(r#"{{"type":"a","args":["{}"]}}"#, "x".repeat(2 << 20));
    let (status, error) = refused(&kit, "/ojs/v1/jobs", body.into_bytes()).await;
    assert_eq!((status, error["code"].as_str()), (413, Some("payload_too_large")), "{error}");
    let exact = format!(r#"{{"type":"a","args":["{}"]}}"#, "x".repeat((1 << 20) - 24));
    assert_eq!(exact.len(), 1 << 20);
    let response =
        kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json").body(exact);
    assert_eq!(response.send().await.expect("an answer").status(), 201, "the limit itself is allowed");
}

#[tokio::test]
async fn what_is_not_declared_as_json_is_refused() {
    let kit = GalleyKit::start().await;
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", content_type);
        let response = request.body(r#"{"type":"a","args":[]}"#).send().await.expect("an answer");
        assert_eq!(response.status(), 415, "{content_type}");
    }
    let request =
        kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json; charset=utf-8");
    let zipped =
        request.try_clone().expect("clones").header("content-encoding", "gzip").body(r#"{"type":"a","args":[]}"#);
    assert_eq!(zipped.send().await.expect("an answer").status(), 415);
    assert_eq!(request.body(r#"{"type":"a","args":[]}"#).send().await.expect("an answer").status(), 201);
}

#[tokio::test]
async fn unknown_paths_methods_and_ids_are_errors_in_the_shape_of_their_part() {
    let kit = GalleyKit::start().await;
    let delete = |path: &str| kit.http.delete(kit.gateway.url(path)).send();
    for path in [
        "/ojs/v1/nothing",
        "/ojs/v1/jobs/x",
        "/ojs/v1/jobs/%0d%0a",
        "/ojs/v1/jobs/019539a4-b68c-7def-8000-1a2b3c4d5e6f",
    ] {
        let response = kit.get(path).await;
        assert_eq!(response.status(), 404, "{path}");
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(answer["error"]["code"], "not_found", "{path}");
    }
    assert_eq!(delete("/ojs/v1/jobs").await.expect("an answer").status(), 405);
    let problem = kit.get("/nothing").await;
    assert_eq!(problem.headers()["content-type"], "application/problem+json");
    let problem: Value = problem.json().await.expect("JSON");
    assert_eq!((&problem["status"], &problem["code"]), (&json!(404), &json!("not_found")));
    for query in ["limit=0", "limit=x", "limit=1001", "limit=-1"] {
        assert_eq!(kit.get(&format!("/ojs/v1/events?{query}")).await.status(), 400, "{query}");
    }
}

#[tokio::test]
async fn methods_are_what_they_should_be() {
    let kit = GalleyKit::start().await;
    let send = |method: &str, path: &str| {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a token");
        kit.http.request(method, kit.gateway.url(path)).send()
    };
    for path in ["/", "/health/live", "/health/ready", "/metrics", "/ojs/manifest", "/ojs/v1/health", "/ojs/v1/events"]
    {
        assert_eq!(send("HEAD", path).await.expect("an answer").status(), 200, "HEAD {path}");
        assert_eq!(send("POST", path).await.expect("an answer").status(), 405, "POST {path}");
    }
    assert_eq!(send("HEAD", "/prodcons").await.expect("an answer").status(), 405, "a visit does something");
    let response = send("DELETE", "/ojs/v1/jobs").await.expect("an answer");
    assert_eq!(response.headers()["allow"], "POST");
    for number in 0..50 {
        send(&format!("X{number}"), "/").await.expect("an answer");
    }
    let metrics = kit.get("/metrics").await.text().await.expect("text");
    assert!(
        metrics.contains(r#"method="other""#) && !metrics.contains(r#"method="X"#),
        "a series for each word: {metrics}"
    );
}

#[tokio::test]
async fn errors_of_the_framework_have_the_standard_shape_too() {
    let kit = GalleyKit::start().await;
    let response = kit.get("/ojs/v1/events?limit=1&limit=2").await;
    assert_eq!(response.status(), 400);
    assert_eq!(response.headers()["content-type"], "application/openjobspec+json");
    let answer: Value = response.json().await.expect("JSON");
    assert_eq!(answer["error"]["code"], "invalid_request");
}

#[tokio::test]
async fn a_channel_that_could_reach_galleys_own_or_break_a_key_is_refused() {
    let kit = GalleyKit::start().await;
    for channel in ["galley:notifications", "a%20b", "%7Bx%7D", "a%0d%0ab", "*", "__keyspace@5__:x", "%00"] {
        let before = kit.redis_keys().await;
        let url = kit.gateway.url(&format!("/v1/channels/{channel}/messages"));
        let response = kit.http.post(url).body("x").send().await.expect("an answer");
        assert_eq!(response.status(), 400, "{channel}");
        let problem: Value = response.json().await.expect("JSON");
        assert!(problem["detail"].as_str().is_some_and(|text| text.contains("channel must match")), "{problem}");
        assert_eq!(kit.redis_keys().await, before);
    }
}

#[tokio::test]
async fn a_request_id_is_taken_over_if_it_is_fit_for_headers_and_logs() {
    let kit = GalleyKit::start().await;
    let with = |id: &'static str| kit.http.get(kit.gateway.url("/")).header("x-request-id", id).send();
    assert_eq!(with("my-id_1.2:3").await.expect("an answer").headers()["x-request-id"], "my-id_1.2:3");
    assert_ne!(with("a b{}").await.expect("an answer").headers()["x-request-id"], "a b{}");
}

/// Talks to the gateway byte by byte and gives what it answers until it closes the connection.
fn raw(kit: &GalleyKit, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(kit.gateway.address()).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    stream.write_all(bytes).expect("sent");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_lying_clients_are_cut_off() {
    let limits = [("GALLEY__GATEWAY__HEAD_TIMEOUT_MS", "1000"), ("GALLEY__GATEWAY__BODY_TIMEOUT_MS", "300")];
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &limits).await;
    let before = kit.redis_keys().await;
    let head = "POST /ojs/v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    assert!(raw(&kit, b"POST /ojs/v1/jobs HTTP/1.1\r\nHos").starts_with("HTTP/1.1 408"), "half a head");
    let half = format!("{head}Content-Length: 100\r\n\r\n{{\"type\":\"a\"");
    let answer = raw(&kit, half.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "half a body: {answer}");
    let answer = raw(&kit, format!("{head}Content-Length: x\r\nConnection: close\r\n\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 400"), "a length that is none: {answer}");
    assert_eq!(kit.redis_keys().await, before);
}
