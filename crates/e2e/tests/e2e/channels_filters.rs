//! Readers that want some of the messages: they miss none of these, and resume behind all that they were spared.

use serde_json::{Value, json};

use testkit::{RedisServer, ServiceProcess};

use crate::{channels_ws::TestWebSocket, kit::GalleyKit, sse::ChannelEventsClient};

const PAID: &str = r#"{"attributes":{"type":"order.paid"}}"#;

/// Publishes an event about a number, and gives its id.
async fn publish(kit: &GalleyKit, channel: &str, kind: &str, number: usize) -> String {
    let url = kit.gateway.url(&format!("/v1/channels/{channel}/messages"));
    let event = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/shop"), ("ce-type", kind)];
    let request = event.into_iter().fold(kit.http.post(url), |request, (name, value)| request.header(name, value));
    let request = request.header("content-type", "application/json");
    let response = request.body(json!({ "number": number }).to_string()).send().await.expect("an answer");
    let answer: Value = response.json().await.expect("JSON");
    answer["id"].as_str().expect("an id").to_owned()
}

fn stream_url(gateway: &ServiceProcess, path: &str, filter: &str) -> String {
    let separator = if path.contains('?') { '&' } else { '?' };
    let encoded: String = url::form_urlencoded::byte_serialize(filter.as_bytes()).collect();
    gateway.url(&format!("{path}{separator}filter={encoded}"))
}

/// A gateway that has no messages in memory.
async fn fresh_gateway(kit: &GalleyKit) -> ServiceProcess {
    let gateway = ServiceProcess::start("gateway", &kit.redis, &[]).await;
    gateway.wait_until_ready().await;
    gateway
}

async fn numbers(stream: &mut ChannelEventsClient, count: usize) -> Vec<Value> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let event = stream.next().await.expect("it goes on");
        if event.event != "skipped" {
            assert_eq!(event.event, "message", "{event:?}");
            numbers.push(event.data["data"]["number"].clone());
        }
    }
    numbers
}

#[tokio::test]
async fn a_stream_has_the_messages_that_its_filter_lets_pass() {
    let kit = GalleyKit::start().await;
    let of_number = r#"{"data":{"/number":{"gte":10,"lt":20}}}"#;
    let both = r#"{"attributes":{"type":{"prefix":"order."}},"data":{"/number":{"any_of":[3,11]}}}"#;
    let paths = ["/v1/channels/orders/stream", "/v1/stream?channel=orders&channel=other.*"];
    let mut streams = Vec::new();
    for path in paths {
        for filter in [PAID, of_number, both, "{}"] {
            streams.push(ChannelEventsClient::open(stream_url(&kit.gateway, path, filter), None).await);
        }
    }
    for (kind, number) in [("order.paid", 3), ("order.sent", 11), ("x", 11), ("order.paid", 30)] {
        publish(&kit, "orders", kind, number).await;
    }
    let expected = [vec![3, 30], vec![11, 11], vec![3, 11], vec![3, 11, 11, 30]];
    for (stream, expected) in streams.iter_mut().zip(expected.iter().chain(&expected)) {
        let expected: Vec<Value> = expected.iter().map(|number| json!(number)).collect();
        assert_eq!(numbers(stream, expected.len()).await, expected);
    }
}

#[tokio::test]
async fn a_reader_resumes_behind_what_its_filter_did_not_let_pass() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__EVENT_KEEP_ALIVE_MS", "1000")]).await;
    for path in ["/v1/channels/orders/stream", "/v1/stream?channel=orders"] {
        let mut stream = ChannelEventsClient::open(stream_url(&kit.gateway, path, PAID), None).await;
        for number in 0..5 {
            publish(&kit, "orders", "order.sent", number).await;
        }
        let mut skipped = 0;
        while skipped < 5 {
            let event = stream.next().await.expect("it goes on");
            assert_eq!((event.event.as_str(), &event.data["channel"]), ("skipped", &json!("orders")));
            skipped += event.data["count"].as_u64().expect("a number");
        }
        // None of them is kept, and none is missed
        publish(&kit, "orders", "order.paid", 7).await;
        kit.redis_command(&["XTRIM", "galley:{ch:orders}:m", "MAXLEN", "1"]).await;
        let gateway = fresh_gateway(&kit).await;
        let mut back = ChannelEventsClient::open(stream_url(&gateway, path, PAID), Some(&stream.last_id)).await;
        assert_eq!(numbers(&mut back, 1).await, [json!(7)], "no gap");
        // What is not kept and was not read is a gap, whether or not the filter would have let it pass
        publish(&kit, "orders", "order.sent", 8).await;
        publish(&kit, "orders", "order.paid", 9).await;
        kit.redis_command(&["XTRIM", "galley:{ch:orders}:m", "MAXLEN", "1"]).await;
        let gateway = fresh_gateway(&kit).await;
        let mut back = ChannelEventsClient::open(stream_url(&gateway, path, PAID), Some(&back.last_id)).await;
        let gap = back.next().await.expect("a gap");
        assert_eq!((gap.event.as_str(), &gap.data["count"]), ("gap", &json!(1)));
        assert_eq!(numbers(&mut back, 1).await, [json!(9)]);
    }
}

#[tokio::test]
async fn a_stream_of_what_it_does_not_want_tells_now_and_then_how_far_it_is() {
    let kit = GalleyKit::start().await;
    let url = kit.gateway.url("/v1/channels/orders/messages/batch");
    let many = Value::from(vec![json!({ "data": "x" }); 100]).to_string();
    for _ in 0..6 {
        let request = kit.http.post(&url).header("content-type", "application/json").body(many.clone());
        request.send().await.expect("an answer").error_for_status().expect("taken");
    }
    let last = publish(&kit, "orders", "order.paid", 1).await;
    let path = "/v1/channels/orders/stream?last_event_id=0-0";
    let mut stream = ChannelEventsClient::open(stream_url(&kit.gateway, path, PAID), None).await;
    for _ in 0..2 {
        let event = stream.next().await.expect("it goes on");
        assert_eq!((event.event.as_str(), &event.data["count"]), ("skipped", &json!(256)));
    }
    assert_eq!(numbers(&mut stream, 1).await, [json!(1)]);
    assert_eq!(stream.last_id, last);
}

#[tokio::test]
async fn a_subscription_of_a_websocket_has_a_filter_of_its_own() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__EVENT_KEEP_ALIVE_MS", "1000")]).await;
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    let paid: Value = serde_json::from_str(PAID).expect("JSON");
    for (channel, filter) in
        [("a", paid.clone()), ("eu.*", paid.clone()), ("*.x", json!({"data": {"/number": 5}})), ("b", Value::Null)]
    {
        let frame = json!({ "type": "subscribe", "channel": channel, "filter": filter });
        assert_eq!(socket.ask(&frame).await["type"], "subscribed");
    }
    // A message that one of the subscriptions asks for comes, and once
    for (channel, kind, number) in [
        ("a", "no", 1),
        ("a", "order.paid", 2),
        ("b", "no", 3),
        ("eu.x", "no", 4),
        ("eu.x", "no", 5),
        ("eu.x", "order.paid", 5),
        ("eu.y", "no", 5),
        ("eu.y", "order.paid", 6),
    ] {
        publish(&kit, channel, kind, number).await;
        if kind == "order.paid" || channel == "b" || (channel, number) == ("eu.x", 5) {
            let mut frame = socket.next().await.expect("it goes on");
            while frame["type"] == "skipped" {
                frame = socket.next().await.expect("it goes on");
            }
            assert_eq!((&frame["channel"], &frame["data"]["number"]), (&json!(channel), &json!(number)), "{frame}");
        }
    }
    let last = publish(&kit, "a", "no", 7).await;
    loop {
        let frame = socket.expect("skipped").await;
        if frame["channel"] == "a" && frame["id"] == json!(last) {
            break;
        }
    }
    // A later frame changes the filter
    let frame = json!({ "type": "subscribe", "channel": "a" });
    assert_eq!(socket.ask(&frame).await["after"], json!(last));
    publish(&kit, "a", "no", 8).await;
    let mut frame = socket.next().await.expect("it goes on");
    while frame["type"] == "skipped" {
        frame = socket.next().await.expect("it goes on");
    }
    assert_eq!(frame["data"]["number"], 8, "{frame}");
}

#[tokio::test]
async fn a_filter_that_is_none_or_too_long_is_refused() {
    let kit = GalleyKit::start().await;
    let long = format!(r#"{{"data":{{"/a":{{"any_of":["{}"]}}}}}}"#, vec!["x".repeat(200); 45].join("\",\""));
    for (filter, said) in [
        ("", "filter must be an object"),
        ("[]", "filter must be an object"),
        ("{", "filter"),
        (r#"{"header":{}}"#, "unknown member"),
        (r#"{"attributes":{"type":{"suffix":"a"}}}"#, "expected a string"),
        (r#"{"data":{"number":1}}"#, "JSON pointers"),
        (&long, "at most 8192 bytes"),
    ] {
        for path in ["/v1/channels/a/stream", "/v1/stream?channel=a"] {
            let answer = kit.http.get(stream_url(&kit.gateway, path, filter)).send().await.expect("an answer");
            assert_eq!(answer.status(), 400, "{filter:.99}");
            let text = answer.text().await.expect("text");
            assert!(text.contains(said) && text.contains("invalid_request"), "{filter:.99}: {text}");
        }
    }
    let twice = kit.gateway.url("/v1/channels/a/stream?filter={}&filter={}");
    assert_eq!(kit.http.get(twice).send().await.expect("an answer").status(), 400);
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    let refused = socket.ask(&json!({ "type": "subscribe", "channel": "a", "filter": "x" })).await;
    assert_eq!(refused["error"]["code"], "invalid_request", "{refused}");
    let medium = |n: usize| json!({ "data": { "/a": { "any_of": vec!["x".repeat(200 + n); 30] } } });
    for (n, kind) in [(0, "subscribed"), (1, "subscribed"), (2, "error")] {
        let frame = json!({ "type": "subscribe", "channel": format!("c{n}"), "filter": medium(n) });
        assert_eq!(socket.ask(&frame).await["type"], kind, "{n}");
    }
    let left = socket.ask(&json!({ "type": "unsubscribe", "channel": "c2" })).await;
    assert_eq!(left["error"]["code"], "not_found", "a refused subscription changes nothing: {left}");
    let replaced = json!({ "type": "subscribe", "channel": "c1", "filter": medium(2) });
    assert_eq!(socket.ask(&replaced).await["type"], "subscribed");
}
