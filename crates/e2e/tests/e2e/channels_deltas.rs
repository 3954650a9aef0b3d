//! Readers that get the difference from the message before: the client sees the same messages as everybody, in fewer bytes.

use std::collections::HashMap;

use galley_client::apply_delta;
use proptest::prelude::*;
use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess};

use crate::{
    channels_ws::TestWebSocket,
    kit::{GalleyKit, TestFolder},
    metrics, sealing,
    sse::ChannelEventsClient,
};

const STREAM: &str = "/v1/channels/board/stream?delta=fossil";

/// A document of about ten kilobytes that changes a bit each time.
fn document(number: usize) -> Value {
    let field = |field: usize| {
        let value = if field == number { 1000 } else { field };
        json!({ "name": format!("Сенсор №{field}"), "value": value })
    };
    json!({ "number": number, "fields": (0..240).map(field).collect::<Vec<_>>() })
}

async fn publish(kit: &GalleyKit, channel: &str, data: &Value) -> String {
    let url = kit.gateway.url(&format!("/v1/channels/{channel}/messages"));
    let request = kit.http.post(url).header("content-type", "application/json").body(data.to_string());
    let answer: Value = request.send().await.expect("an answer").json().await.expect("JSON");
    answer["id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

async fn gateway(kit: &GalleyKit) -> ServiceProcess {
    let gateway = ServiceProcess::start("gateway", &kit.redis, &[]).await;
    gateway.wait_until_ready().await;
    gateway
}

/// Whole messages out of what came: what a client keeps, and nothing else.
#[derive(Default)]
struct WholeMessages(HashMap<String, String>);

struct Received {
    kind: String,
    /// What came for it, in bytes.
    len: usize,
    message: Value,
}

impl WholeMessages {
    /// Takes a message or a difference, as its JSON came.
    fn take(&mut self, kind: &str, json: &str) -> Received {
        let told: Value = serde_json::from_str(json).expect("JSON");
        let channel = told["channel"].as_str().expect("a channel").to_owned();
        let text = match kind {
            "message" => json.to_owned(),
            "delta" => {
                let base = self.0.get(&channel).unwrap_or_else(|| panic!("a whole message comes first: {json}"));
                let id: Value = serde_json::from_str(base).expect("JSON");
                assert_eq!(told["from"], id["id"], "it says from which message");
                let text = apply_delta(base, told["delta"].as_str().expect("text")).expect("it fits");
                assert!(json.len() < text.len(), "{json} for {text}");
                text
            }
            other => panic!("{other}: {json}"),
        };
        let message: Value = serde_json::from_str(&text).expect("JSON");
        // One without a position is no base
        if !message["id"].is_null() {
            self.0.insert(channel, text);
        }
        Received { kind: kind.to_owned(), len: json.len(), message }
    }
}

struct DeltaStream {
    stream: ChannelEventsClient,
    whole: WholeMessages,
}

impl DeltaStream {
    async fn open(gateway: &ServiceProcess, path: &str, last: Option<&str>) -> Self {
        Self { stream: ChannelEventsClient::open(gateway.url(path), last).await, whole: WholeMessages::default() }
    }

    async fn next(&mut self) -> Received {
        let block = self.stream.block().await.expect("it goes on");
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        self.whole.take(field("event: "), field("data: "))
    }

    /// The kinds of the next events, whose messages have these numbers.
    async fn kinds(&mut self, numbers: &[usize]) -> Vec<String> {
        let mut kinds = Vec::new();
        for number in numbers {
            let shown = self.next().await;
            assert_eq!(shown.message["data"]["number"], *number);
            kinds.push(shown.kind);
        }
        kinds
    }
}

#[tokio::test]
async fn a_reader_that_asks_gets_short_differences_and_no_other_reader_notices() {
    let kit = GalleyKit::start().await;
    let mut deltas = DeltaStream::open(&kit.gateway, STREAM, None).await;
    let mut several = DeltaStream::open(&kit.gateway, "/v1/stream?channel=board&channel=x.*&delta=fossil", None).await;
    let mut plain = ChannelEventsClient::open(kit.gateway.url("/v1/channels/board/stream"), None).await;
    let (mut socket, mut plain_socket) =
        (TestWebSocket::open(&kit.gateway).await, TestWebSocket::open(&kit.gateway).await);
    let asked = json!({ "type": "subscribe", "channel": "board", "delta": "fossil" });
    assert_eq!(socket.ask(&asked).await["type"], "subscribed");
    plain_socket.ask(&json!({ "type": "subscribe", "channel": "board", "delta": null })).await;
    let mut of_socket = WholeMessages::default();
    for number in 0..5 {
        let id = publish(&kit, "board", &document(number)).await;
        let expected = plain.expect("message").await;
        assert_eq!((&expected["id"], &expected["data"]), (&json!(id), &document(number)));
        let kind = if number == 0 { "message" } else { "delta" };
        for stream in [&mut deltas, &mut several] {
            let shown = stream.next().await;
            assert_eq!((shown.kind.as_str(), &shown.message), (kind, &expected));
            assert!(number == 0 || shown.len < 600, "{} bytes for one of {}", shown.len, expected.to_string().len());
        }
        assert_eq!(deltas.stream.last_id, id, "the id is that of the message");
        let frame = socket.text().await.expect("it goes on");
        let shown = of_socket.take(kind, &frame);
        let mut framed = expected;
        framed["type"] = "message".into();
        assert_eq!(shown.message, framed, "a difference gives the frame that would have come");
        assert!(frame.starts_with(&format!(r#"{{"type":"{kind}","#)), "{frame}");
        assert_eq!(plain_socket.next().await, Some(framed));
    }
    // Two streams and a socket got four each
    metrics::value_of(&kit.gateway, "galley_message_deltas_total ", metrics::is(12.0)).await;
    metrics::value_of(&kit.gateway, "galley_message_delta_saved_bytes_total ", |saved| saved > 12.0 * 8000.0).await;
}

#[tokio::test]
async fn what_is_too_long_comes_as_a_whole_and_the_next_one_goes_on_from_there() {
    let kit = GalleyKit::start().await;
    let mut deltas = DeltaStream::open(&kit.gateway, STREAM, None).await;
    let long = |number: usize| json!({ "number": number, "text": "0123456789abcdef".repeat(10_000) });
    let sent = [document(1), document(2), long(3), long(4), document(5), document(6)];
    for data in &sent {
        publish(&kit, "board", data).await;
    }
    let mut kinds = Vec::new();
    for data in &sent {
        let shown = deltas.next().await;
        assert_eq!(&shown.message["data"], data);
        kinds.push((data["number"].as_u64().expect("a number"), shown.kind));
    }
    let whole: Vec<u64> = kinds.iter().filter(|(_, kind)| kind == "message").map(|(number, _)| *number).collect();
    assert_eq!(whole, [1, 3, 4, 5], "{kinds:?}");
    // Bytes, and text
    let url = kit.gateway.url("/v1/channels/board/messages");
    for body in
        [vec![0xff_u8; 3000], vec![0xff; 3003], "ab\n\u{2028}".repeat(500).into(), "ab\n\u{2028}".repeat(501).into()]
    {
        kit.http.post(&url).body(body.clone()).send().await.expect("an answer");
        let shown = deltas.next().await;
        assert!(shown.kind == "delta" || shown.message["data_base64"].is_null() || body.len() == 3000);
        if let Ok(text) = String::from_utf8(body) {
            assert_eq!(shown.message["data"], text);
        }
    }
}

#[tokio::test]
async fn a_client_that_comes_back_to_another_gateway_gets_a_whole_message_first_and_then_differences() {
    let kit = GalleyKit::start().await;
    let other = gateway(&kit).await;
    for path in [STREAM, "/v1/stream?channel=board&delta=fossil"] {
        let mut before = DeltaStream::open(&kit.gateway, path, None).await;
        for number in 0..2 {
            publish(&kit, "board", &document(number)).await;
        }
        assert_eq!(before.kinds(&[0, 1]).await, ["message", "delta"]);
        let last = before.stream.last_id.clone();
        drop(before);
        // What it missed is read from the history
        for number in 2..5 {
            publish(&kit, "board", &document(number)).await;
        }
        let mut back = DeltaStream::open(&other, path, Some(&last)).await;
        assert_eq!(back.kinds(&[2, 3, 4]).await, ["message", "delta", "delta"]);
        publish(&kit, "board", &document(5)).await;
        back.kinds(&[5]).await;
        publish(&kit, "board", &document(6)).await;
        assert_eq!(back.kinds(&[6]).await, ["delta"]);
    }
    let mut since = DeltaStream::open(&other, &format!("{STREAM}&since=-PT1H"), None).await;
    assert_eq!(since.kinds(&[0, 1]).await, ["message", "delta"]);
}

#[tokio::test]
async fn a_whole_message_follows_a_gap() {
    let kit = GalleyKit::start().await;
    let other = gateway(&kit).await;
    let mut before = DeltaStream::open(&kit.gateway, STREAM, None).await;
    for number in 0..3 {
        publish(&kit, "board", &document(number)).await;
    }
    before.kinds(&[0, 1, 2]).await;
    let last = before.stream.last_id.clone();
    for number in 3..6 {
        publish(&kit, "board", &document(number)).await;
    }
    kit.redis_command(&["XTRIM", "galley:{ch:board}:m", "MAXLEN", "2"]).await;
    let mut back = DeltaStream::open(&other, STREAM, Some(&last)).await;
    assert_eq!(back.stream.expect("gap").await["count"], 1);
    assert_eq!(back.kinds(&[4, 5]).await, ["message", "delta"]);
}

#[tokio::test]
async fn a_filter_leaves_out_messages_and_the_difference_is_from_the_last_one_that_came() {
    let kit = GalleyKit::start().await;
    let filter = |digit: usize| {
        let numbers: Vec<usize> = (0..10).map(|number| 2 * number + digit).collect();
        let filter = json!({ "data": { "/number": { "any_of": numbers } } }).to_string();
        let filter: String = url::form_urlencoded::byte_serialize(filter.as_bytes()).collect();
        format!("{STREAM}&filter={filter}")
    };
    let mut even = DeltaStream::open(&kit.gateway, &filter(0), None).await;
    let mut odd = DeltaStream::open(&kit.gateway, &filter(1), None).await;
    for number in 0..8 {
        publish(&kit, "board", &document(number)).await;
    }
    assert_eq!(even.kinds(&[0, 2, 4, 6]).await, ["message", "delta", "delta", "delta"]);
    assert_eq!(odd.kinds(&[1, 3, 5, 7]).await, ["message", "delta", "delta", "delta"]);
    // Out of the history as well
    let other = gateway(&kit).await;
    let mut later = DeltaStream::open(&other, &format!("{}&since=-PT1H", filter(1)), None).await;
    assert_eq!(later.kinds(&[1, 3, 5, 7]).await, ["message", "delta", "delta", "delta"]);
}

#[tokio::test]
async fn each_subscription_of_a_websocket_says_whether_it_wants_differences() {
    let kit = GalleyKit::start().await;
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    let mut whole = WholeMessages::default();
    let mut number = 0;
    let mut kinds = async |socket: &mut TestWebSocket, channel: &str, count: usize| {
        let mut kinds = Vec::new();
        for _ in 0..count {
            number += 1;
            publish(&kit, channel, &document(number)).await;
            let frame = socket.text().await.expect("it goes on");
            let kind = serde_json::from_str::<Value>(&frame).expect("JSON")["type"].as_str().expect("text").to_owned();
            assert_eq!(whole.take(&kind, &frame).message["data"], document(number));
            kinds.push(kind);
        }
        kinds
    };
    let subscribe = |channel: &str, delta: Value| json!({ "type": "subscribe", "channel": channel, "delta": delta });
    for (channel, delta) in [("board", json!("fossil")), ("eu.*", json!("fossil")), ("plain", Value::Null)] {
        assert_eq!(socket.ask(&subscribe(channel, delta)).await["type"], "subscribed");
    }
    assert_eq!(kinds(&mut socket, "board", 2).await, ["message", "delta"]);
    assert_eq!(kinds(&mut socket, "plain", 2).await, ["message", "message"]);
    assert_eq!(kinds(&mut socket, "eu.x", 2).await, ["message", "delta"]);
    // Subscribing again begins with a whole one
    socket.ask(&subscribe("board", json!("fossil"))).await;
    assert_eq!(kinds(&mut socket, "board", 2).await, ["message", "delta"]);
    socket.ask(&subscribe("board", Value::Null)).await;
    assert_eq!(kinds(&mut socket, "board", 2).await, ["message", "message"]);
    // One of the subscriptions that cover a channel is enough
    socket.ask(&subscribe("eu.x", Value::Null)).await;
    assert_eq!(kinds(&mut socket, "eu.x", 2).await, ["message", "delta"]);
    socket.ask(&json!({ "type": "unsubscribe", "channel": "eu.*" })).await;
    assert_eq!(kinds(&mut socket, "eu.x", 2).await, ["message", "message"]);
}

#[tokio::test]
async fn another_format_is_refused_with_the_one_that_there_is() {
    let kit = GalleyKit::start().await;
    for path in ["/v1/channels/board/stream?", "/v1/stream?channel=board&"] {
        for wrong in ["true", "vcdiff", ""] {
            let url = kit.gateway.url(&format!("{path}delta={wrong}"));
            let answer = kit.http.get(url).send().await.expect("an answer");
            assert_eq!(answer.status(), 400);
            let answer: Value = answer.json().await.expect("JSON");
            let message = answer["detail"].as_str().expect("text");
            assert!(message.contains("delta must be fossil"), "{message}");
        }
    }
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    for wrong in [json!(true), json!("vcdiff")] {
        let answer = socket.ask(&json!({ "type": "subscribe", "channel": "board", "delta": wrong })).await;
        let message = answer["error"]["message"].as_str().expect("text");
        assert!(message.contains("delta must be fossil"), "{message}");
    }
    assert_eq!(socket.ask(&json!({ "type": "unsubscribe", "channel": "board" })).await["error"]["code"], "not_found");
}

#[tokio::test]
async fn messages_of_plain_publishers_are_whole_and_nothing_is_a_difference_from_them() {
    let kit = GalleyKit::start().await;
    // The one that channels.plain names
    let channel = "task:pubsub:channel";
    let path = STREAM.replace("board", channel);
    let mut deltas = DeltaStream::open(&kit.gateway, &path, None).await;
    for number in 0..3 {
        publish(&kit, channel, &document(number)).await;
        let expected = if number == 0 { "message" } else { "delta" };
        assert_eq!(deltas.kinds(&[number]).await, [expected]);
        kit.redis_command(&["PUBLISH", channel, &document(number).to_string()]).await;
        let plain = deltas.next().await;
        assert_eq!((plain.kind.as_str(), &plain.message["id"]), ("message", &Value::Null));
    }
}

#[tokio::test]
async fn what_is_sealed_in_redis_comes_as_differences_too() {
    let folder = TestFolder::new();
    let keys = sealing::write_keys(&folder, "keys.toml", "new", &[sealing::NEW]);
    let kit = GalleyKit::start_with(RedisServer::start(), &[(sealing::KEYS_FILE, &keys)]).await;
    let mut deltas = DeltaStream::open(&kit.gateway, STREAM, None).await;
    for number in 0..2 {
        publish(&kit, "board", &document(number)).await;
    }
    assert_eq!(deltas.kinds(&[0, 1]).await, ["message", "delta"]);
}

/// A text that is like another one: pieces of it, and new ones between.
fn alike() -> impl Strategy<Value = (String, String)> {
    let piece = prop_oneof!["[a-c]{0,40}", "[а-я]{0,40}", r#"[{}:,"0-9]{0,40}"#, "\\PC{0,20}", Just("饭🦀é".repeat(7))];
    let pieces = proptest::collection::vec(piece, 0..12);
    (pieces.clone(), pieces, proptest::collection::vec(any::<(bool, prop::sample::Index)>(), 0..30)).prop_map(
        |(base, new, order)| {
            let pick = |(is_old, index): &(bool, prop::sample::Index)| {
                let from = if *is_old { &base } else { &new };
                if from.is_empty() { "" } else { index.get(from).as_str() }
            };
            (base.concat(), order.iter().map(pick).collect())
        },
    )
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        "\\PC{0,30}".prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            proptest::collection::hash_map("[a-d]{1,3}", inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn check(base: &str, text: &str) {
    let delta = model::message::delta::encode(base, text, usize::MAX).expect("there is no limit");
    assert_eq!(apply_delta(base, &delta).as_deref(), Ok(text), "{delta:?}");
    assert!(delta.len() <= text.len() + 40, "{} bytes for {}", delta.len(), text.len());
    assert_eq!(model::message::delta::encode(base, text, delta.len()), None);
    assert_eq!(model::message::delta::encode(base, text, delta.len() + text.len() + 1), Some(delta));
}

proptest! {
    #[test]
    fn a_text_is_what_its_difference_makes_of_the_base((base, text) in alike()) {
        check(&base, &text);
        check(&text, &base);
    }

    #[test]
    fn json_is_what_its_difference_makes_of_the_base(base in json_value(), text in json_value()) {
        check(&base.to_string(), &text.to_string());
        check(&json!([base, text]).to_string(), &json!([text, base, 1]).to_string());
    }

    #[test]
    fn bytes_are_what_their_difference_makes_of_the_base(base: Vec<u8>, text: Vec<u8>) {
        // As a message shows them: any letters
        let letters = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect::<String>();
        check(&letters(&base), &letters(&text));
        check(&letters(&[base.clone(), text.clone()].concat()), &letters(&[text, base].concat()));
    }
}
