//! What operators read: logs without forgeries, metrics that explain themselves.

use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess, eventually};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::{
    kit::{GalleyKit, job_body},
    subscriptions_delivery::PRIVATE,
};

async fn metrics(kit: &GalleyKit, service: &ServiceProcess) -> String {
    let response = kit.http.get(service.url("/metrics")).send().await.expect("the service answers");
    response.text().await.expect("text")
}

#[tokio::test]
async fn a_request_that_is_no_http_is_counted_and_no_error_in_the_log() {
    let kit = GalleyKit::start().await;
    let requests =
        ["GET / HTTP/9.9\r\n\r\n", "\u{16}\u{3}\u{1}hello\r\n\r\n", "POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"];
    let large = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(200_000));
    for request in requests.into_iter().chain([large.as_str()]) {
        let mut stream = TcpStream::connect(kit.gateway.address()).await.expect("the gateway listens");
        // The gateway may close before everything is sent
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
    }
    eventually("all are counted", || async {
        let shown = metrics(&kit, &kit.gateway).await;
        shown.contains("\ngalley_http_malformed_requests_total 4\n").then_some(())
    })
    .await;
    let errors: Vec<Value> = kit
        .gateway
        .log_entries()
        .into_iter()
        .filter(|line| line["level"] == "ERROR" || line["level"] == "WARN")
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
}

#[tokio::test]
async fn text_from_outside_turns_no_log_line_around_and_names_no_member_twice() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[PRIVATE]).await;
    let listener = ServiceProcess::start("pubsub-worker", &kit.redis, &[PRIVATE]).await;
    listener.wait_until_ready().await;
    let text = "a\u{202e}b\u{2028}c";
    kit.post("/v1/channels/task:pubsub:channel/messages", &json!(text)).await;
    listener.wait_for_task("\"a\\u{202e}b\\u{2028}c\"").await;
    assert!(!listener.raw_log().contains(['\u{202e}', '\u{2028}']));
    // A delivery that fails logs the endpoint's problem; reading the log refuses members that are there twice
    // Nobody listens there, and nobody else can
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let closed = socket.local_addr().expect("an address");
    let subscription = json!({ "channels": ["orders"], "deliver": { "http": { "url": format!("http://{closed}/") } } });
    let url = kit.gateway.url("/v1/subscriptions/billing");
    let put = kit.http.put(url).header("content-type", "application/json").body(subscription.to_string());
    assert!(put.send().await.expect("the gateway answers").status().is_success());
    kit.post("/v1/channels/orders/messages", &json!("paid")).await;
    listener.wait_for_event("message.not_delivered").await;
    drop(socket);
}

#[tokio::test]
async fn attempts_of_all_outcomes_are_timed_and_every_metric_has_a_help_text() {
    let kit = GalleyKit::start().await;
    let (worker, listener) = (kit.start_worker(&[]).await, kit.start_pubsub_worker().await);
    let id =
        kit.enqueue(&json!({ "type": "test.fail_once", "args": [], "retry": { "initial_interval": "PT0.1S" } })).await;
    kit.wait_for_state(&id, "completed").await;
    let failing = json!({ "type": "no.such.handler", "args": [], "retry": { "max_attempts": 1 } });
    let id = kit.enqueue(&failing).await;
    kit.wait_for_state(&id, "discarded").await;
    let id = kit.enqueue(&job_body("test.slow", &json!([600_000]))).await;
    kit.wait_for_state(&id, "active").await;
    kit.cancel(&id).await;
    for outcome in ["completed", "retryable", "discarded", "stale"] {
        let line = format!("galley_attempt_seconds_count{{queue=\"default\",outcome=\"{outcome}\"}} 1");
        eventually(&line, || async { metrics(&kit, &worker).await.contains(&line).then_some(()) }).await;
    }
    kit.post("/v1/channels/task:pubsub:channel/messages", &json!("a")).await;
    for service in [&kit.gateway, &worker, &listener] {
        let shown = metrics(&kit, service).await;
        let lines: Vec<&str> = shown.lines().collect();
        let names = lines.iter().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let without: Vec<&str> =
            names.filter(|name| !lines.iter().any(|line| line.starts_with(&format!("# HELP {name} ")))).collect();
        assert!(without.is_empty(), "{without:?}");
        assert!(shown.contains("# HELP galley_"), "{shown}");
    }
}
