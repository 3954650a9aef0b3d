//! Attacks that have no better place: `docs/security.md#abuse` lists all, with their tests.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use serde_json::{Value, json};
use testkit::RedisServer;

use crate::{
    kit::GalleyKit,
    sse::ChannelEventsClient,
    subscriptions_delivery::{publish, put},
};

const SCRIPT: &str = "<script>alert(1)</script>";

#[tokio::test]
async fn script_tags_in_every_field_come_back_as_data_and_no_page_may_be_framed() {
    let kit = GalleyKit::start().await;
    let error = json!({ "code": SCRIPT, "message": SCRIPT, "details": { SCRIPT: SCRIPT }, "retryable": false });
    let job = json!({ "type": "x", "args": [SCRIPT], "meta": { SCRIPT: SCRIPT }, "tags": [SCRIPT], SCRIPT: SCRIPT });
    let id = kit.enqueue(&job).await;
    let claimed = kit.fetch("default").await.expect("the job");
    let nack = json!({ "job_id": id, "token": claimed["token"], "error": error });
    assert_eq!(kit.post("/ojs/v1/workers/nack", &nack).await.status(), 200);
    let steps = json!([{ "type": "x", "args": [SCRIPT] }]);
    let flow = json!({ "type": "chain", "name": SCRIPT, "meta": { "m": SCRIPT }, "steps": steps });
    assert_eq!(kit.post("/ojs/v1/workflows", &flow).await.status(), 201);
    let target = json!({ "queue": { "queue": "from-messages", "type": "m" } });
    put(&kit, "s", &json!({ "channels": ["news"], "deliver": target, "description": SCRIPT })).await;
    publish(&kit, "news", "text/html", SCRIPT).await;
    for path in [
        format!("/ojs/v1/jobs/{id}"),
        "/ojs/v1/admin/jobs?state=discarded".to_owned(),
        "/ojs/v1/workflows".to_owned(),
        "/ojs/v1/events".to_owned(),
        "/v1/channels/news/messages".to_owned(),
        "/v1/subscriptions".to_owned(),
        format!("/ojs/v1/{SCRIPT}"),
        format!("/v1/{SCRIPT}"),
        format!("/ojs/v1/queues/default?{SCRIPT}=1"),
        "/".to_owned(),
        "/ojs/errors".to_owned(),
        "/docs".to_owned(),
    ] {
        let response = kit.get(&path).await;
        let headers = response.headers().clone();
        let text = response.text().await.expect("text");
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        if headers["content-type"].to_str().expect("text").starts_with("text/html") {
            assert!(!text.contains("<script"), "{path}: {text}");
            assert_eq!(headers["x-frame-options"], "DENY", "{path}");
            let policy = headers["content-security-policy"].to_str().expect("text");
            assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        } else {
            serde_json::from_str::<Value>(&text).unwrap_or_else(|_| panic!("{path} is no JSON: {text}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_a_byte_at_a_time_holds_up_nobody() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[]).await;
    let path = "/v1/channels/orders/stream";
    let mut slow = TcpStream::connect(kit.gateway.address()).expect("it listens");
    slow.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).expect("sent");
    let mut byte = [0];
    slow.read_exact(&mut byte).expect("an answer begins");
    let mut quick = ChannelEventsClient::open(kit.gateway.url(path), None).await;
    // More than all buffers on the way hold
    let body = "x".repeat(1_000_000);
    for _ in 0..30 {
        publish(&kit, "orders", "text/plain", &body).await;
        assert_eq!(quick.messages(1).await, [body.as_str()]);
        // It takes a byte for a message, or was cut off because it is too far behind
        let _ = slow.read(&mut byte);
    }
}
