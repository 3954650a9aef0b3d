//! Publishing over a WebSocket.

use serde_json::{Value, json};
use testkit::RedisServer;

use crate::{channels_ws::TestWebSocket, keyed::KeyRing, kit::GalleyKit};

/// A frame that publishes, with a reference.
fn frame(channel: &str, message: &Value, reference: &str) -> Value {
    json!({ "type": "publish", "channel": channel, "message": message, "ref": reference })
}

/// The code of an error, which must repeat the reference.
async fn code(socket: &mut TestWebSocket, frame: &Value) -> String {
    let answer = socket.ask(frame).await;
    assert_eq!((&answer["type"], &answer["ref"]), (&json!("error"), &frame["ref"]), "{answer}");
    answer["error"]["code"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn what_is_published_over_one_is_a_message_as_any_other() {
    let kit = GalleyKit::start().await;
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    for (number, message, data, content_type) in [
        (1, json!({ "data": { "n": 1 } }), json!({ "n": 1 }), "application/json"),
        (2, json!({ "data": "text" }), json!("text"), ""),
        (3, json!({ "data": "<a/>", "content_type": "text/xml" }), json!("<a/>"), "text/xml"),
    ] {
        let reference = number.to_string();
        let answer = socket.ask(&frame("a", &message, &reference)).await;
        assert_eq!((&answer["type"], &answer["ref"]), (&json!("published"), &json!(reference)), "{answer}");
        assert_eq!((&answer["channel"], &answer["plain_subscribers"]), (&json!("a"), &json!(0)));
        let history: Value = kit.get("/v1/channels/a/messages?limit=100").await.json().await.expect("JSON");
        let newest = history["items"].as_array().and_then(|items| items.last()).expect("a message");
        assert_eq!((&newest["id"], &newest["data"]), (&answer["id"], &data));
        assert_eq!(newest["content_type"].as_str().unwrap_or_default(), content_type);
    }
    // One who subscribes on the same connection hears it too
    socket.ask(&json!({ "type": "subscribe", "channel": "b", "ref": "s" })).await;
    socket.send(&frame("b", &json!({ "data": "heard" }), "4").to_string()).await;
    let mut kinds = [socket.next().await.expect("a frame"), socket.next().await.expect("a frame")];
    kinds.sort_by_key(|frame| frame["type"].to_string());
    assert_eq!((&kinds[0]["type"], &kinds[0]["data"]), (&json!("message"), &json!("heard")));
    assert_eq!((&kinds[1]["type"], &kinds[1]["id"]), (&json!("published"), &kinds[0]["id"]));
}

#[tokio::test]
async fn a_message_that_is_sent_again_with_its_key_is_published_once() {
    let kit = GalleyKit::start().await;
    let mut ids = Vec::new();
    let with_key = |data: &str, key: &str| {
        let mut frame = frame("a", &json!({ "data": data }), "r");
        frame["idempotency_key"] = json!(key);
        frame
    };
    for (data, key) in [("1", "k"), ("1", "k"), ("1", "other"), ("2", "k")] {
        // As a client does whose connection was cut before the answer came
        let mut socket = TestWebSocket::open(&kit.gateway).await;
        ids.push(socket.ask(&with_key(data, key)).await["id"].as_str().expect("an id").to_owned());
    }
    assert_eq!(ids[0], ids[1]);
    let different: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(different.len(), 3, "another key or another message is another one: {ids:?}");
    let history: Value = kit.get("/v1/channels/a/messages?limit=100").await.json().await.expect("JSON");
    assert_eq!(history["items"].as_array().map(Vec::len), Some(3));
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    for key in [String::new(), "k".repeat(256)] {
        assert_eq!(code(&mut socket, &with_key("1", &key)).await, "invalid_request");
    }
}

#[tokio::test]
async fn what_cannot_be_published_is_an_error_with_its_reference_and_nothing_is_written() {
    let kit = GalleyKit::start().await;
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    for (message, said) in [
        (json!(null), "must have a message"),
        (json!("text"), "object"),
        (json!({}), "either data or data_base64"),
        (json!({ "data": 1, "data_base64": "AA==" }), "either data or data_base64"),
        (json!({ "dta": 1 }), "did you mean \"data\""),
        (json!({ "data": 1, "content_type": "text/plain" }), "must be a string"),
        (json!({ "data_base64": "%" }), "base64"),
    ] {
        let answer = socket.ask(&frame("a", &message, "r")).await;
        let text = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(answer["ref"] == "r" && text.contains(said), "{message}: {answer}");
    }
    let answer = socket.ask(&frame("a", &json!({ "data": deep }), "r")).await;
    assert_eq!(answer["type"], "error", "{answer}");
    assert_eq!(code(&mut socket, &frame("a b", &json!({ "data": 1 }), "r")).await, "invalid_request");
    assert_eq!(kit.get("/v1/channels/a/messages").await.status(), 404, "no such channel");
    assert_eq!(socket.ask(&frame("a", &json!({ "data": 1 }), "r")).await["type"], "published");
}

#[tokio::test]
async fn a_key_publishes_on_its_channels_and_as_many_bytes_as_it_may() {
    let mut ring = KeyRing::new();
    let reader = ring.add("scopes = [\"channels:subscribe\"]");
    let both = "scopes = [\"channels:subscribe\", \"channels:publish\"]";
    let own = ring.add(&format!("{both}\nchannels = [\"chat.*\"]"));
    let limited = ring.add(&format!("{both}\nbytes_per_second = 1"));
    let keyed = ring.start(&[]).await;
    let open =
        async |key: &str| TestWebSocket::open_with(&keyed.kit.gateway, "authorization", &format!("Bearer {key}")).await;
    let message = json!({ "data": "a message that is longer than what the limited key may send in a minute or more" });
    assert_eq!(code(&mut open(&reader).await, &frame("chat.a", &message, "1")).await, "scope_required");
    let mut socket = open(&own).await;
    assert_eq!(code(&mut socket, &frame("other", &message, "1")).await, "name_not_allowed");
    assert_eq!(socket.ask(&frame("chat.a", &message, "2")).await["type"], "published");
    let mut socket = open(&limited).await;
    assert_eq!(socket.ask(&frame("a", &message, "1")).await["type"], "published", "let in, and paid for later");
    assert_eq!(code(&mut socket, &frame("a", &message, "2")).await, "key_limit_exceeded");
}

#[tokio::test]
async fn a_page_of_another_site_publishes_with_a_key_only() {
    let origin = "https://app.example.com";
    let allowed = [("GALLEY__GATEWAY__ALLOWED_ORIGINS", origin)];
    let message = json!({ "data": 1 });
    let kit = GalleyKit::start_with(RedisServer::start(), &allowed).await;
    let mut page = TestWebSocket::open_with(&kit.gateway, "origin", origin).await;
    assert_eq!(code(&mut page, &frame("a", &message, "1")).await, "cross_site_request");
    assert_eq!(page.ask(&json!({ "type": "subscribe", "channel": "a" })).await["type"], "subscribed");
    let mut own = TestWebSocket::open_with(&kit.gateway, "origin", &kit.gateway.url("")).await;
    assert_eq!(own.ask(&frame("a", &message, "1")).await["type"], "published");

    let keyed = KeyRing::new().start(&allowed).await;
    let token =
        json!({ "scopes": ["channels:subscribe", "channels:publish"], "channels": ["a"], "lifetime_ms": 600_000 });
    let made = keyed.post(&keyed.admin, "/v1/tokens", &token).await;
    let made: Value = made.json().await.expect("JSON");
    let token = made["token"].as_str().unwrap_or_else(|| panic!("{made}"));
    let mut page = TestWebSocket::open_as_page(&keyed.kit.gateway, token, origin).await;
    assert_eq!(page.ask(&frame("a", &message, "1")).await["type"], "published");
}
