//! Channels over a WebSocket.

use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess, TEST_TIMEOUT};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest, protocol::frame::coding::CloseCode},
};

use crate::kit::GalleyKit;

pub(crate) struct TestWebSocket(WebSocketStream<MaybeTlsStream<TcpStream>>);

fn url(gateway: &ServiceProcess) -> String {
    gateway.url("/v1/ws").replacen("http", "ws", 1)
}

impl TestWebSocket {
    pub(crate) async fn open(gateway: &ServiceProcess) -> Self {
        Self::open_at(url(gateway)).await
    }

    /// With a header that a browser or a program sends.
    pub(crate) async fn open_with(gateway: &ServiceProcess, name: &'static str, value: &str) -> Self {
        Self::open_at_with(&url(gateway), name, value).await
    }

    /// As a page opens one that has a token.
    pub(crate) async fn open_as_page(gateway: &ServiceProcess, token: &str, origin: &str) -> Self {
        Self::open_at_with(&format!("{}?token={token}", url(gateway)), "origin", origin).await
    }

    async fn open_at_with(url: &str, name: &'static str, value: &str) -> Self {
        let mut request = url.into_client_request().expect("a request");
        request.headers_mut().insert(name, value.parse().expect("a header"));
        Self(connect_async(request).await.expect("a websocket").0)
    }

    async fn open_at(url: String) -> Self {
        Self(connect_async(url).await.expect("a websocket").0)
    }

    pub(crate) async fn send(&mut self, frame: &str) {
        self.0.send(Message::text(frame)).await.expect("sent");
    }

    /// The next frame that says something; none when the server closes.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        self.text().await.map(|text| serde_json::from_str(&text).expect("JSON"))
    }

    /// The same as it came.
    pub(crate) async fn text(&mut self) -> Option<String> {
        let next = async {
            loop {
                match self.0.next().await?.expect("no broken connection") {
                    Message::Text(text) => return Some(text.to_string()),
                    Message::Close(_) => return None,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(TEST_TIMEOUT, next).await.expect("in time")
    }

    /// Why the server closes.
    async fn close_code(&mut self) -> Option<CloseCode> {
        loop {
            let frame = tokio::time::timeout(TEST_TIMEOUT, self.0.next()).await.expect("in time")?;
            if let Message::Close(frame) = frame.expect("no broken connection") {
                return frame.map(|frame| frame.code);
            }
        }
    }

    pub(crate) async fn expect(&mut self, kind: &str) -> Value {
        let frame = self.next().await.expect("it goes on");
        assert_eq!(frame["type"], kind, "{frame}");
        frame
    }

    pub(crate) async fn ask(&mut self, frame: &Value) -> Value {
        self.send(&frame.to_string()).await;
        self.next().await.expect("an answer")
    }
}

async fn publish(kit: &GalleyKit, channel: &str, body: &str) -> String {
    let url = kit.gateway.url(&format!("/v1/channels/{channel}/messages"));
    let response = kit.http.post(url).body(body.to_owned()).send().await.expect("an answer");
    let answer: Value = response.json().await.expect("JSON");
    answer["id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn channels_are_subscribed_and_left_while_it_is_open() {
    let kit = GalleyKit::start().await;
    let old = publish(&kit, "a", "old").await;
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    let answer = socket.ask(&json!({ "type": "subscribe", "channel": "a" })).await;
    assert_eq!(answer, json!({ "type": "subscribed", "channel": "a", "after": old }));
    socket.ask(&json!({ "type": "subscribe", "channel": "eu.*" })).await;
    for (channel, body) in [("a", "1"), ("other", "no"), ("eu.x", "2")] {
        let id = publish(&kit, channel, body).await;
        if channel != "other" {
            let message = socket.expect("message").await;
            assert_eq!((&message["id"], &message["data"]), (&json!(id), &json!(body)));
        }
    }
    publish(&kit, "eu.y", "3").await;
    socket.expect("message").await;
    for channel in ["eu.x", "a", "eu.*"] {
        let answer = socket.ask(&json!({ "type": "unsubscribe", "channel": channel })).await;
        assert_eq!(answer, json!({ "type": "unsubscribed", "channel": channel }));
    }
    publish(&kit, "a", "unheard").await;
    publish(&kit, "eu.x", "unheard").await;
    let answer = socket.ask(&json!({ "type": "subscribe", "channel": "b", "since": "-PT1H" })).await;
    assert_eq!(answer["type"], "subscribed");
    publish(&kit, "b", "3").await;
    assert_eq!(socket.expect("message").await["data"], "3");
}

#[tokio::test]
async fn a_client_that_comes_back_elsewhere_goes_on_where_it_was() {
    let kit = GalleyKit::start().await;
    let other = ServiceProcess::start("gateway", &kit.redis, &[]).await;
    other.wait_until_ready().await;
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    socket.ask(&json!({ "type": "subscribe", "channel": "a" })).await;
    let id = publish(&kit, "a", "1").await;
    socket.expect("message").await;
    drop(socket);
    publish(&kit, "a", "2").await;
    let mut socket = TestWebSocket::open(&other).await;
    socket.ask(&json!({ "type": "subscribe", "channel": "a", "after": id })).await;
    publish(&kit, "a", "3").await;
    assert_eq!(socket.expect("message").await["data"], "2");
    assert_eq!(socket.expect("message").await["data"], "3");
    kit.redis_command(&["XTRIM", "galley:{ch:a}:m", "MAXLEN", "1"]).await;
    let mut late = TestWebSocket::open(&other).await;
    late.ask(&json!({ "type": "subscribe", "channel": "a", "after": id })).await;
    let gap = late.expect("gap").await;
    assert_eq!((&gap["channel"], &gap["from"], &gap["count"]), (&json!("a"), &json!(id), &json!(1)));
    assert_eq!(late.expect("message").await["data"], "3");
}

#[tokio::test]
async fn a_client_with_a_window_gets_no_more_than_it_has_acknowledged_room_for() {
    let mut kit = GalleyKit::start().await;
    for window in ["0", "1001", "x"] {
        assert_eq!(kit.get(&format!("/v1/ws?window={window}")).await.status(), 400);
    }
    let mut socket = TestWebSocket::open_at(format!("{}?window=2", url(&kit.gateway))).await;
    for channel in ["a", "b"] {
        socket.ask(&json!({ "type": "subscribe", "channel": channel })).await;
    }
    let mut ids = Vec::new();
    for (channel, body) in [("a", "1"), ("a", "2"), ("a", "3"), ("a", "4")] {
        ids.push(publish(&kit, channel, body).await);
    }
    let ack = |id: &str| json!({ "type": "ack", "channel": "a", "id": id });
    for expected in ["1", "2"] {
        assert_eq!(socket.expect("message").await["data"], expected);
    }
    // Answers come though messages do not
    let refused = socket.ask(&ack(&ids[2])).await;
    assert!(refused["error"]["message"].as_str().is_some_and(|text| text.contains("was not sent here")), "{refused}");
    assert_eq!(socket.ask(&json!({ "type": "unsubscribe", "channel": "b" })).await["type"], "unsubscribed");
    socket.send(&ack(&ids[0]).to_string()).await;
    assert_eq!(socket.expect("message").await["data"], "3");
    // Once more changes nothing, and one stands for those before it
    socket.send(&ack(&ids[0]).to_string()).await;
    assert_eq!(socket.ask(&json!({ "type": "subscribe", "channel": "b" })).await["type"], "subscribed");
    socket.send(&ack(&ids[2]).to_string()).await;
    assert_eq!(socket.expect("message").await["data"], "4");
    publish(&kit, "b", "5").await;
    assert_eq!(socket.expect("message").await["data"], "5");
    // It is full, and told all the same
    kit.gateway.signal(Signal::SIGTERM);
    socket.expect("closing").await;
    assert!(socket.next().await.is_none());
    assert!(kit.gateway.wait_for_exit().await.success());
}

#[tokio::test]
async fn a_client_who_takes_nothing_is_cut_off_and_few_bytes_wait_for_it() {
    // Longer than a machine that is busy keeps the quick client from reading
    let variables = [("GALLEY__CHANNELS__STALL_MS", "10000"), ("GALLEY__CHANNELS__RING_BYTES", "1000000")];
    let kit = GalleyKit::start_with(RedisServer::start(), &variables).await;
    let mut slow = TestWebSocket::open(&kit.gateway).await;
    slow.ask(&json!({ "type": "subscribe", "channel": "a" })).await;
    let mut quick = TestWebSocket::open(&kit.gateway).await;
    quick.ask(&json!({ "type": "subscribe", "channel": "a" })).await;
    // More than all buffers on the way hold
    let body = "x".repeat(1_000_000);
    for _ in 0..30 {
        publish(&kit, "a", &body).await;
        assert_eq!(quick.expect("message").await["data"], json!(body));
    }
    kit.wait_for_readers("a", 1).await;
    // What was on its way, and no more: the kernel's buffers and a few messages
    let mut taken = 0;
    while let Ok(Some(Ok(Message::Text(_)))) = tokio::time::timeout(TEST_TIMEOUT, slow.0.next()).await {
        taken += 1;
    }
    assert!(taken < 20, "{taken} messages were gathered for it");
}

#[tokio::test]
async fn a_client_who_leaves_pings_unanswered_is_told_so_and_left() {
    // It is left after three of these: not before it has subscribed
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__EVENT_KEEP_ALIVE_MS", "3000")]).await;
    publish(&kit, "a", "x").await;
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    assert_eq!(socket.ask(&json!({ "type": "subscribe", "channel": "a" })).await["type"], "subscribed");
    // Past the library, which would answer the pings
    let MaybeTlsStream::Plain(stream) = socket.0.get_mut() else { panic!("plain") };
    let (mut bytes, code) = (Vec::<u8>::new(), u16::from(CloseCode::Policy).to_be_bytes());
    while !bytes.windows(4).any(|part| part[0] == 0x88 && part[2..] == code) {
        let read = tokio::time::timeout(TEST_TIMEOUT, stream.read_buf(&mut bytes)).await.expect("in time");
        assert_ne!(read.expect("no broken connection"), 0, "it ends without a reason: {bytes:02x?}");
    }
    kit.wait_for_readers("a", 0).await;
}

#[tokio::test]
async fn a_position_that_is_not_known_is_told_as_a_gap_as_in_event_streams() {
    let kit = GalleyKit::start().await;
    publish(&kit, "a", "1").await;
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    let asked = json!({ "type": "subscribe", "channel": "a", "after": "9999999999999-0" });
    assert_eq!(socket.ask(&asked).await["type"], "subscribed");
    let gap = socket.expect("gap").await;
    assert_eq!((&gap["channel"], &gap["from"]), (&json!("a"), &json!("9999999999999-0")));
    publish(&kit, "a", "2").await;
    assert_eq!(socket.expect("message").await["data"], "2");
}

#[tokio::test]
async fn what_is_not_understood_is_an_error_and_the_connection_stays_open() {
    let kit = GalleyKit::start().await;
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    for (frame, said) in [
        ("no", "not valid JSON"),
        (r#"{"type":"subscribe"}"#, "type and channel"),
        (r#"{"type":"shout","channel":"a"}"#, "subscribe, unsubscribe, ack or publish"),
        (r#"{"type":"ack","channel":"a","id":"1-0"}"#, "not subscribed"),
        (r#"{"type":"ack","channel":"a"}"#, "id of a message"),
        (r#"{"type":"subscribe","channel":"a b"}"#, "channel must match"),
        (r#"{"type":"subscribe","channel":"a","after":"x"}"#, "position must"),
        (r#"{"type":"subscribe","channel":"a","since":"x"}"#, "since must"),
        (r#"{"type":"subscribe","channel":"a*","after":"1-1"}"#, "after is for one channel"),
        (r#"{"type":"unsubscribe","channel":"a"}"#, "not subscribed"),
    ] {
        socket.send(frame).await;
        let answer = socket.expect("error").await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(said), "{frame}: {answer}");
    }
    let answer = socket.ask(&json!({ "type": "subscribe", "channel": "a" })).await;
    assert_eq!(answer["type"], "subscribed");
    let answer = socket.ask(&json!({ "type": "ack", "channel": "a", "id": "1-0" })).await;
    assert!(answer["error"]["message"].as_str().is_some_and(|text| text.contains("/v1/ws?window")), "{answer}");
    socket.send(&"x".repeat(20_000)).await;
    assert_eq!(socket.close_code().await, Some(CloseCode::Size));
}

#[tokio::test]
async fn a_page_of_another_site_and_more_readers_than_there_may_be_are_refused() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__CHANNELS__MAX_READERS", "1")]).await;
    let status = async |origin: Option<&'static str>| {
        let mut request = url(&kit.gateway).into_client_request().expect("a request");
        if let Some(origin) = origin {
            request.headers_mut().insert("origin", origin.parse().expect("a header"));
        }
        match connect_async(request).await {
            Err(Error::Http(response)) => response.status().as_u16(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(status(Some("https://elsewhere.example")).await, 403);
    let _first = TestWebSocket::open(&kit.gateway).await;
    assert_eq!(status(None).await, 503);
}

#[tokio::test]
async fn a_page_of_a_site_that_is_allowed_may_open_one() {
    let allowed = [("GALLEY__GATEWAY__ALLOWED_ORIGINS", "https://app.example.com,http://localhost:3000")];
    let kit = GalleyKit::start_with(RedisServer::start(), &allowed).await;
    for (origin, may) in
        [("http://localhost:3000", true), ("https://app.example.com", true), ("http://app.example.com", false)]
    {
        let mut request = url(&kit.gateway).into_client_request().expect("a request");
        request.headers_mut().insert("origin", origin.parse().expect("a header"));
        request.headers_mut().insert("sec-fetch-site", "cross-site".parse().expect("a header"));
        assert_eq!(connect_async(request).await.is_ok(), may, "{origin}");
    }
}

#[tokio::test]
async fn a_client_that_asks_for_our_subprotocol_gets_it() {
    let kit = GalleyKit::start().await;
    let chosen = async |asked: &'static str| {
        let mut request = url(&kit.gateway).into_client_request().expect("a request");
        request.headers_mut().insert("sec-websocket-protocol", asked.parse().expect("a header"));
        let (_socket, response) = connect_async(request).await.expect("a websocket");
        response.headers().get("sec-websocket-protocol").map(|value| value.to_str().expect("text").to_owned())
    };
    for asked in ["galley.v1", "other, galley.v1", "galley.v1,galley.v2"] {
        assert_eq!(chosen(asked).await.as_deref(), Some("galley.v1"), "{asked}");
    }
}

#[tokio::test]
async fn a_frame_that_breaks_the_protocol_closes_the_connection_with_its_reason() {
    let kit = GalleyKit::start().await;
    let longest = [&[0x81, 0xff][..], &(1_u64 << 40).to_be_bytes(), &[0; 4]].concat();
    let cases: [(&[u8], CloseCode); 8] = [
        (&[0xc1, 0x81, 0, 0, 0, 0, b'x'], CloseCode::Protocol), // RSV1
        (&[0xa1, 0x81, 0, 0, 0, 0, b'x'], CloseCode::Protocol), // RSV2
        (&[0x91, 0x81, 0, 0, 0, 0, b'x'], CloseCode::Protocol), // RSV3
        (&[0x81, 0x01, b'x'], CloseCode::Protocol),             // not masked
        (&[0x83, 0x80, 0, 0, 0, 0], CloseCode::Protocol),       // no such frame
        (&[0x09, 0x80, 0, 0, 0, 0], CloseCode::Protocol),       // half a ping
        (&[0x81, 0x81, 0, 0, 0, 0, 0xff], CloseCode::Invalid),  // not UTF-8
        (&longest, CloseCode::Size),                            // longer than all memory, and only its head came
    ];
    for (bytes, code) in cases {
        let mut socket = TestWebSocket::open(&kit.gateway).await;
        let MaybeTlsStream::Plain(stream) = socket.0.get_mut() else { panic!("plain") };
        stream.write_all(bytes).await.expect("sent");
        assert_eq!(socket.close_code().await, Some(code), "{bytes:02x?}");
    }
}

#[tokio::test]
async fn a_gateway_that_stops_says_so() {
    let mut kit =
        GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__SHUTDOWN_GRACE_MS", "600000")]).await;
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    socket.ask(&json!({ "type": "subscribe", "channel": "a" })).await;
    kit.gateway.signal(Signal::SIGTERM);
    assert!(socket.expect("closing").await["retry_ms"].is_number());
    assert!(socket.next().await.is_none());
    drop(socket);
    assert!(kit.gateway.wait_for_exit().await.success());
}
