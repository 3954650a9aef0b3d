//! What of durable subscriptions is refused over HTTP: with what is allowed, and with nothing written.

use reqwest::Method;
use serde_json::{Value, json};
use testkit::redis;
use testkit::{RedisServer, ServiceProcess};

use crate::{
    kit::GalleyKit,
    subscriptions_api::{log_of, put, send},
};

const PRIVATE: (&str, &str) = ("GALLEY__SUBSCRIPTIONS__ALLOW_PRIVATE", "true");

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table: each bad input beside its answer")]
async fn every_kind_of_bad_input_is_refused_with_what_is_allowed_and_writes_nothing() {
    let kit = GalleyKit::start().await;
    let with = |member: &str| format!(r#"{{"channels":["a"],"deliver":{{"log":{{}}}},{member}}}"#);
    let http = |members: &str| format!(r#"{{"channels":["a"],"deliver":{{"http":{{{members}}}}}}}"#);
    let deep = with(&format!(r#""filter":{}1{}"#, "[".repeat(100), "]".repeat(100)));
    let large = with(&format!(r#""description":"{}""#, "x".repeat(2 << 20)));
    let long = with(&format!(r#""description":"{}""#, "x".repeat(1001)));
    let cases = [
        (String::new(), 400, "invalid_payload", "empty"),
        ("{".to_owned(), 400, "invalid_payload", "not valid JSON"),
        ("[]".to_owned(), 400, "invalid_request", "JSON object"),
        (r#"[["a"],{"log":{}}]"#.to_owned(), 400, "invalid_request", "JSON object"),
        ("{}".to_owned(), 400, "invalid_request", "missing field `channels`"),
        (r#"{"channels":["a"]}"#.to_owned(), 400, "invalid_request", "missing field `deliver`"),
        (r#"{"channels":["a b"],"deliver":{"log":{}}}"#.to_owned(), 400, "invalid_request", "channel must match"),
        (r#"{"channels":["galley:x"],"deliver":{"log":{}}}"#.to_owned(), 400, "invalid_request", "galley:"),
        (deep, 400, "invalid_payload", "at most 64 levels"),
        (large, 413, "payload_too_large", "at most"),
        (long, 400, "invalid_request", "at most 1000 characters"),
        (with(r#""mode":"all""#), 400, "invalid_request", "expected `shared` or `broadcast`"),
        (with(r#""moed":"shared""#), 400, "invalid_request", "unknown member \"moed\", did you mean \"mode\"?"),
        (with(r#""mode":"shared","mode":"shared""#), 400, "invalid_request", "duplicate"),
        (with(r#""filter":{"data":{"/a":1,"/a":2}}"#), 400, "invalid_request", "duplicate member"),
        (with(r#""filter":{"data":{"a":1}}"#), 400, "invalid_request", "JSON pointers"),
        (with(r#""filter":{"attributes":{"type":{"suffix":"x"}}}"#), 400, "invalid_request", "any_of"),
        (with(r#""max_in_flight":1001"#), 400, "invalid_request", "from 1 to 1000"),
        (with(r#""retry":{"max_attempts":-1}"#), 400, "invalid_request", "retry.max_attempts"),
        (with(r#""start":"soon""#), 400, "invalid_request", "start must be new, earliest"),
        (with(r#""start":"7-1""#), 400, "unknown_position", "not the id of a message of a"),
        (
            r#"{"channels":["a"],"deliver":{"mail":{}}}"#.to_owned(),
            400,
            "invalid_request",
            "http, queue, command and log",
        ),
        (http(""), 400, "invalid_request", "missing field `url`"),
        (http(r#""url":"ftp://a.test""#), 400, "invalid_request", "http"),
        (http(r#""url":"https://user:word@a.test/""#), 400, "invalid_request", "deliver.http"),
        (http(r#""url":"https://a.test/","secrets":["short"]"#), 400, "invalid_request", "whsec_"),
        (
            http(r#""url":"https://a.test/","secrets":"whsec_geheim""#),
            400,
            "invalid_request",
            "array of 1 to 4 secrets",
        ),
        (http(r#""url":"https://a.test/","secrets":[]"#), 400, "invalid_request", "array of 1 to 4 secrets"),
        (http(r#""url":"https://a.test/","headers":{"a b":"geheim"}"#), 400, "invalid_request", "header"),
        (http(r#""url":"https://a.test/","headers":{"x":"ge\nheim"}"#), 400, "invalid_request", "header"),
        (http(r#""url":"https://a.test/","headers":{"host":"geheim"}"#), 400, "invalid_request", "header"),
        (http(r#""url":"https://a.test/","headers":{"x":["geheim"]}"#), 400, "invalid_request", "object of strings"),
        (http(r#""url":"https://a.test/","headers":{"x":null}"#), 400, "invalid_request", "must have a value"),
        (http(r#""url":"https://a.test/","timeout_ms":0"#), 400, "invalid_request", "timeout_ms"),
        (
            r#"{"channels":["a"],"deliver":{"queue":{"queue":"{q}"}}}"#.to_owned(),
            400,
            "invalid_request",
            "queue must match",
        ),
        (r#"{"channels":["a"],"deliver":{"command":"../x"}}"#.to_owned(), 400, "invalid_request", "must match"),
    ];
    let before = kit.redis_keys().await;
    for (body, status, code, said) in cases {
        let response = send(&kit, Method::PUT, "/s", &body).await;
        let body = &body[..body.len().min(120)];
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{body}");
        let got = response.status().as_u16();
        let problem: Value = response.json().await.expect("JSON");
        assert_eq!((got, &problem["code"]), (status, &json!(code)), "{body}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|text| text.contains(said)), "{body}: {problem}");
        assert!(!problem.to_string().contains("geheim"), "{problem}");
        assert_eq!(kit.redis_keys().await, before, "{body}");
    }
    for name in ["A", "a_b", "%20", "a%0d", &"x".repeat(300)] {
        let (status, problem) = put(&kit, name, &log_of(&["a"])).await;
        assert_eq!((status, &problem["code"]), (400, &json!("invalid_request")), "{name}: {problem}");
    }
    let request = kit.http.put(kit.gateway.url("/v1/subscriptions/s")).body(log_of(&["a"]).to_string());
    assert_eq!(request.send().await.expect("an answer").status(), 415, "a form could send that");
    for query in ["limit=0", "limit=101", "limit=x", "after=A", "page=2"] {
        assert_eq!(kit.get(&format!("/v1/subscriptions?{query}")).await.status(), 400, "{query}");
    }
    assert_eq!(kit.redis_keys().await, before);
}

#[tokio::test]
async fn what_stays_as_it_is_cannot_be_changed() {
    let kit = GalleyKit::start().await;
    put(&kit, "s", &log_of(&["a"])).await;
    for (member, value) in [("mode", "broadcast"), ("ordering", "channel")] {
        let mut body = log_of(&["a"]);
        body[member] = json!(value);
        let (status, problem) = put(&kit, "s", &body).await;
        assert_eq!((status, &problem["code"]), (409, &json!("fixed_member")), "{problem}");
        assert!(problem["detail"].as_str().is_some_and(|text| text.starts_with(member)), "{problem}");
    }
}

#[tokio::test]
async fn private_addresses_are_refused_unless_they_are_allowed() {
    let redis = RedisServer::start();
    let kit = GalleyKit::start_with(redis, &[]).await;
    let allowing = ServiceProcess::start("gateway", &kit.redis, &[PRIVATE]).await;
    allowing.wait_until_ready().await;
    for host in ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "[::1]", "[fd00::1]", "0.0.0.0"] {
        let body = json!({ "channels": ["c"], "deliver": { "http": { "url": format!("http://{host}:9000/x") } } });
        let (status, problem) = put(&kit, "s", &body).await;
        assert_eq!((status, &problem["code"]), (400, &json!("invalid_request")), "{host}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|text| text.contains("deliver.http")), "{problem}");
        assert_eq!(kit.redis_command(&["EXISTS", "galley:subscriptions"]).await, redis::Value::Int(0), "{host}");
    }
    let body = json!({ "channels": ["c"], "deliver": { "http": { "url": "http://127.0.0.1:9000/x" } } });
    let request = kit.http.put(allowing.url("/v1/subscriptions/s")).header("content-type", "application/json");
    assert_eq!(request.body(body.to_string()).send().await.expect("an answer").status(), 201);
}
