//! Who is present on a channel: over event streams and `WebSocket`, at several gateways, with tokens.

use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess, eventually, redis};

use crate::{channels_ws::TestWebSocket, dashboard::Visitor, kit::GalleyKit, metrics, sse::ChannelEventsClient};

const STREAM: &str = "/v1/channels/room/stream";
const KEY: &str = "glk_presence1_0123456789012345678901234567890123456789012";
/// The shortest lease, and members that leave at once.
const SOON: [(&str, &str); 2] =
    [("GALLEY__CHANNELS__PRESENCE_TTL_MS", "3000"), ("GALLEY__CHANNELS__PRESENCE_GRACE_MS", "0")];

async fn gateway(kit: &GalleyKit, variables: &[(&str, &str)]) -> ServiceProcess {
    let gateway = ServiceProcess::start("gateway", &kit.redis, variables).await;
    gateway.wait_until_ready().await;
    gateway
}

async fn open(gateway: &ServiceProcess, query: &str) -> ChannelEventsClient {
    ChannelEventsClient::open(gateway.url(&format!("{STREAM}?{query}")), None).await
}

/// Somebody who watches and takes no part.
async fn watch(gateway: &ServiceProcess) -> ChannelEventsClient {
    open(gateway, "presence=true").await
}

async fn expect(stream: &mut ChannelEventsClient, kind: &str, member: &str) -> Value {
    let event = stream.expect(kind).await;
    assert_eq!((&event["channel"], &event["member"]), (&json!("room"), &json!(member)), "{event}");
    event
}

/// Waits until ada is at one gateway only.
async fn wait_until_at_one_gateway(kit: &GalleyKit) {
    eventually("it is at one gateway only", async || {
        let count = kit.redis_command(&["HGET", "galley:{ch:room}:members", "c:ada"]).await;
        (count == redis::Value::BulkString(b"1".to_vec())).then_some(())
    })
    .await;
}

fn names(members: &Value) -> Vec<&str> {
    members.as_array().expect("a list").iter().map(|member| member["member"].as_str().expect("text")).collect()
}

async fn members(kit: &GalleyKit) -> Value {
    members_of(kit, "room").await
}

async fn members_of(kit: &GalleyKit, channel: &str) -> Value {
    let path = format!("/v1/channels/{channel}/members");
    let answer = kit.http.get(kit.gateway.url(&path)).send().await.expect("an answer");
    let answer: Value = answer.json().await.expect("JSON");
    answer["items"].clone()
}

/// A client takes part in a channel for a moment, with that info.
pub(crate) async fn take_part(kit: &GalleyKit, channel: &str, info: &Value) {
    let path = kit.gateway.url(&format!("/v1/channels/{channel}/stream"));
    let address = url::Url::parse_with_params(&path, [("member", "ada"), ("info", &info.to_string())]);
    let stream = kit.http.get(address.expect("an address")).send().await.expect("an answer");
    assert_eq!(stream.status(), 200);
    let shown = members_of(kit, channel).await;
    assert_eq!(shown[0]["info"], *info, "{shown}");
    drop(stream);
}

#[tokio::test]
async fn members_join_change_and_leave_and_several_connections_are_one() {
    let kit = GalleyKit::start_with(RedisServer::start(), &SOON).await;
    let other = gateway(&kit, &SOON).await;
    assert_eq!(members(&kit).await, json!([]));
    let mut watcher = watch(&kit.gateway).await;
    assert_eq!(watcher.expect("members").await, json!({ "channel": "room", "members": [] }));
    let info = "%7B%22name%22:%22Ada%22%7D";
    let first = open(&other, &format!("member=ada&info={info}")).await;
    let joined = expect(&mut watcher, "join", "ada").await;
    assert_eq!(joined["info"], json!({ "name": "Ada" }));
    // Once more, over a WebSocket at another gateway; it gets those who are there first
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    let mut frame = json!({ "type": "subscribe", "channel": "room", "presence": true });
    frame["join"] = json!({ "member": "ada", "info": { "name": "Ada" } });
    socket.send(&frame.to_string()).await;
    let (mut all, mut is_subscribed) = (Value::Null, false);
    while all.is_null() || !is_subscribed {
        let frame = socket.next().await.expect("it goes on");
        is_subscribed |= frame["type"] == "subscribed";
        if frame["type"] == "members" {
            all = frame["members"].clone();
        }
    }
    assert_eq!(all, json!([{ "member": "ada", "since": joined["since"], "info": { "name": "Ada" } }]));
    assert_eq!(members(&kit).await, all);
    let _bob = open(&other, "member=bob&presence=true").await;
    expect(&mut watcher, "join", "bob").await;
    assert_eq!(socket.expect("join").await["member"], "bob");
    frame["join"] = json!({ "member": "ada", "info": "away" });
    socket.send(&frame.to_string()).await;
    assert_eq!(expect(&mut watcher, "update", "ada").await["info"], "away");
    // One connection goes, the other stays; then that leaves too, and watches on
    drop(first);
    wait_until_at_one_gateway(&kit).await;
    frame["join"] = Value::Null;
    socket.send(&frame.to_string()).await;
    expect(&mut watcher, "leave", "ada").await;
    loop {
        let frame = socket.next().await.expect("it goes on");
        if frame["type"] == "leave" {
            assert_eq!((&frame["member"], &frame["info"]), (&json!("ada"), &json!("away")));
            break;
        }
    }
    assert_eq!(names(&members(&kit).await), ["bob"]);
    // A member that leaves the channel leaves at once
    frame["join"] = json!({ "member": "cy" });
    socket.send(&frame.to_string()).await;
    expect(&mut watcher, "join", "cy").await;
    socket.send(r#"{"type":"unsubscribe","channel":"room"}"#).await;
    expect(&mut watcher, "leave", "cy").await;
    // Messages come as ever
    kit.http.post(kit.gateway.url("/v1/channels/room/messages")).body("hello").send().await.expect("an answer");
    assert_eq!(watcher.messages(1).await, ["hello"]);
}

#[tokio::test]
async fn members_are_counted_at_their_gateway_and_shown_on_the_page_of_the_channel() {
    let kit = GalleyKit::start_with(RedisServer::start(), &SOON).await;
    let mut visitor = Visitor::new(&kit.gateway);
    let (status, page) = visitor.page("/ui/channels/room").await;
    assert_eq!((status, page.contains("Members")), (200, false), "{page}");
    let info = "%7B%22name%22:%22%3Cb%3EAda%22%7D";
    let streams = [
        open(&kit.gateway, &format!("member=ada&info={info}")).await,
        open(&kit.gateway, "member=ada").await,
        open(&kit.gateway, "member=bob").await,
    ];
    let hall = kit.gateway.url("/v1/channels/hall/stream?member=bob");
    let hall = ChannelEventsClient::open(hall, None).await;
    metrics::value_of(&kit.gateway, "galley_channel_members ", metrics::is(3.0)).await;
    drop(hall);
    metrics::value_of(&kit.gateway, "galley_channel_members ", metrics::is(2.0)).await;
    let (status, page) = visitor.page("/ui/channels/room").await;
    assert_eq!(status, 200);
    assert!(page.contains("2 members present") && page.contains("ada") && page.contains("bob"), "{page}");
    assert!(!page.contains("<b>Ada"), "what members say is text");
    drop(streams);
    metrics::value_of(&kit.gateway, "galley_channel_members ", metrics::is(0.0)).await;
}

#[tokio::test]
async fn members_of_a_killed_gateway_leave_after_its_lease_and_others_stay() {
    let kit = GalleyKit::start_with(RedisServer::start(), &SOON).await;
    let doomed = gateway(&kit, &SOON).await;
    let mut watcher = watch(&kit.gateway).await;
    watcher.expect("members").await;
    let _lost = [open(&doomed, "member=ada").await, open(&doomed, "member=bob").await];
    expect(&mut watcher, "join", "ada").await;
    expect(&mut watcher, "join", "bob").await;
    doomed.kill();
    // One comes back elsewhere in time: nobody notices
    let _back = open(&kit.gateway, "member=bob").await;
    expect(&mut watcher, "leave", "ada").await;
    let _next = open(&kit.gateway, "member=cy").await;
    expect(&mut watcher, "join", "cy").await;
    assert_eq!(names(&members(&kit).await), ["bob", "cy"]);
    for (query, items, next) in [("limit=1", ["bob"], json!("bob")), ("limit=1&after=bob", ["cy"], Value::Null)] {
        let url = kit.gateway.url(&format!("/v1/channels/room/members?{query}"));
        let page: Value = kit.http.get(url).send().await.expect("an answer").json().await.expect("JSON");
        assert_eq!((names(&page["items"]), &page["next"]), (items.to_vec(), &next));
    }
}

#[tokio::test]
async fn a_client_that_reconnects_in_the_grace_does_not_leave_and_gets_all_members_first() {
    let grace = [("GALLEY__CHANNELS__PRESENCE_GRACE_MS", "500")];
    let kit = GalleyKit::start_with(RedisServer::start(), &grace).await;
    let other = gateway(&kit, &grace).await;
    let mut watcher = watch(&kit.gateway).await;
    watcher.expect("members").await;
    let stream = open(&other, "member=ada&presence=true").await;
    expect(&mut watcher, "join", "ada").await;
    let last_id = stream.last_id.clone();
    drop(stream);
    let url = kit.gateway.url(&format!("{STREAM}?member=ada&presence=true"));
    let mut back = ChannelEventsClient::open(url, Some(&last_id)).await;
    assert_eq!(names(&back.expect("members").await["members"]), ["ada"]);
    // The grace at the other gateway ends, and nobody is told
    wait_until_at_one_gateway(&kit).await;
    let _next = open(&other, "member=bob").await;
    expect(&mut watcher, "join", "bob").await;
    expect(&mut back, "join", "bob").await;
    drop(back);
    expect(&mut watcher, "leave", "ada").await;
}

#[tokio::test]
async fn members_stay_while_redis_is_away_and_who_comes_back_then_joins_later() {
    let mut kit = GalleyKit::start_durable(&SOON).await;
    let mut watcher = watch(&kit.gateway).await;
    watcher.expect("members").await;
    let _ada = open(&kit.gateway, "member=ada").await;
    expect(&mut watcher, "join", "ada").await;
    let last_id = watcher.last_id.clone();
    kit.redis.kill();
    let url = kit.gateway.url(&format!("{STREAM}?member=bob"));
    let _bob = ChannelEventsClient::open(url, Some(&last_id)).await;
    kit.redis.restart();
    expect(&mut watcher, "join", "bob").await;
    assert_eq!(names(&members(&kit).await), ["ada", "bob"]);
}

#[tokio::test]
async fn a_token_takes_part_as_its_subject_and_as_nobody_else() {
    let variables =
        [("GALLEY__AUTH__FIRST_KEY", KEY), ("GALLEY__AUTH__TOKENS__SECRET", "0123456789abcdef0123456789abcdef")];
    let kit = GalleyKit::start_with(RedisServer::start(), &variables).await;
    let make = async |credential: &str, subject: &str| {
        let body = json!({ "subject": subject, "scopes": ["channels:subscribe"], "channels": ["room"] });
        let request = kit.http.post(kit.gateway.url("/v1/tokens")).header("content-type", "application/json");
        let request = request.header("authorization", format!("Bearer {credential}")).body(body.to_string());
        let answer: Value = request.send().await.expect("an answer").json().await.expect("JSON");
        answer["token"].as_str().expect("a token").to_owned()
    };
    let ada = make(KEY, "ada").await;
    let forged = make(&ada, "bob").await;
    let twice = make(&forged, "bob").await;
    let get = async |credential: &str, path: &str| {
        let request = kit.http.get(kit.gateway.url(path)).header("authorization", format!("Bearer {credential}"));
        let answer = request.send().await.expect("an answer");
        let status = answer.status().as_u16();
        (status, if status == 200 { String::new() } else { answer.text().await.expect("text") })
    };
    for (token, query) in [(&ada, "member=bob"), (&forged, "join=true"), (&forged, "member=bob"), (&twice, "join=true")]
    {
        let (status, text) = get(token, &format!("{STREAM}?{query}")).await;
        assert!(status == 403 && text.contains("name_not_allowed"), "{query}: {text}");
    }
    let url = |token: &str, query: &str| kit.gateway.url(&format!("{STREAM}?token={token}&{query}"));
    let mut watcher = ChannelEventsClient::open(url(&forged, "presence=true"), None).await;
    watcher.expect("members").await;
    let _ada = ChannelEventsClient::open(url(&ada, "join=true"), None).await;
    expect(&mut watcher, "join", "ada").await;
    let _same = ChannelEventsClient::open(url(&ada, "member=ada"), None).await;
    let mut socket = TestWebSocket::open_with(&kit.gateway, "authorization", &format!("Bearer {ada}")).await;
    let frame = |join: Value| json!({ "type": "subscribe", "channel": "room", "join": join });
    let refused = socket.ask(&frame(json!({ "member": "bob" }))).await;
    assert_eq!(refused["error"]["code"], "name_not_allowed", "{refused}");
    assert_eq!(socket.ask(&frame(json!(true))).await["type"], "subscribed");
    // A key speaks for anybody
    let request = kit.gateway.url(&format!("{STREAM}?member=zoe"));
    let request = reqwest::Client::new().get(request).header("authorization", format!("Bearer {KEY}"));
    let _zoe = request.send().await.expect("an answer");
    expect(&mut watcher, "join", "zoe").await;
    let (status, _) = get(&ada, "/v1/channels/room/members").await;
    assert_eq!(status, 200);
    let (status, _) = get(&ada, "/v1/channels/other/members").await;
    assert_eq!(status, 403, "it is not one of its channels");
}

#[tokio::test]
async fn what_cannot_take_part_is_refused() {
    let variables = [("GALLEY__CHANNELS__PRESENCE_MAX_MEMBERS", "1")];
    let kit = GalleyKit::start_with(RedisServer::start(), &variables).await;
    let long = format!("member=a&info=%22{}%22", "x".repeat(1023));
    for (query, said) in [
        ("presence=yes", "presence must be true or false"),
        ("join=true", "name the member"),
        ("join=false&member=a", "give join=true"),
        ("info=1", "give join=true"),
        ("member=", "printable ASCII"),
        ("member=a%20b", "printable ASCII"),
        ("member=a&info=%7B", "info must be JSON"),
        (&long, "at most 1024 bytes"),
        ("member=a&member=b", "must be given once"),
    ] {
        let answer = kit.http.get(kit.gateway.url(&format!("{STREAM}?{query}"))).send().await.expect("an answer");
        let (status, text) = (answer.status(), answer.text().await.expect("text"));
        assert!(status == 400 && text.contains(said), "{query:.99}: {status} {text}");
    }
    let pattern = kit.gateway.url("/v1/stream?channel=room&channel=a.*&presence=true");
    assert_eq!(kit.http.get(pattern).send().await.expect("an answer").status(), 400);
    let mut stream =
        ChannelEventsClient::open(kit.gateway.url("/v1/stream?channel=room&channel=hall&member=ada"), None).await;
    assert_eq!(names(&members(&kit).await), ["ada"], "in each channel that it names");
    for bad in ["limit=0", "limit=1001", "after=a%20b", "after="] {
        let url = kit.gateway.url(&format!("/v1/channels/room/members?{bad}"));
        assert_eq!(kit.http.get(url).send().await.expect("an answer").status(), 400, "{bad}");
    }
    let full = kit.http.get(kit.gateway.url(&format!("{STREAM}?member=bob"))).send().await.expect("an answer");
    let (status, text) = (full.status(), full.text().await.expect("text"));
    assert!(status == 503 && text.contains("too_many_members"), "{text}");
    let mut socket = TestWebSocket::open(&kit.gateway).await;
    let frame = |channel: &str, join: Value| json!({ "type": "subscribe", "channel": channel, "join": join });
    for (frame, code) in [
        (frame("room", json!({ "member": "bob" })), "too_many_members"),
        (frame("room.*", json!({ "member": "bob" })), "invalid_request"),
        (frame("hall", json!("bob")), "invalid_request"),
        (frame("hall", json!({ "name": "bob" })), "invalid_request"),
        (frame("hall", json!({ "member": 7 })), "invalid_request"),
        (frame("hall", json!(true)), "invalid_request"),
        (json!({ "type": "subscribe", "channel": "hall", "presence": "yes" }), "invalid_request"),
        (json!({ "type": "unsubscribe", "channel": "room" }), "not_found"),
    ] {
        let refused = socket.ask(&frame).await;
        assert_eq!(refused["error"]["code"], code, "{frame}: {refused}");
    }
    kit.http.post(kit.gateway.url("/v1/channels/room/messages")).body("1").send().await.expect("an answer");
    assert_eq!(stream.messages(1).await, ["1"]);
}
