//! Channels as event streams: nothing is lost or doubled, whatever breaks.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{MessageDropProxy, RedisServer, ServiceProcess, eventually};

use crate::{http_client, kit::GalleyKit, sse::ChannelEventsClient};

const STREAM: &str = "/v1/channels/orders/stream";

async fn try_publish(kit: &GalleyKit, gateway: &ServiceProcess, channel: &str, body: &str) -> Option<String> {
    let url = gateway.url(&format!("/v1/channels/{channel}/messages"));
    let response = kit.http.post(url).body(body.to_owned()).send().await.ok()?;
    let answer: Value = response.json().await.ok()?;
    answer["id"].as_str().map(ToOwned::to_owned)
}

async fn publish(kit: &GalleyKit, channel: &str, body: &str) -> String {
    try_publish(kit, &kit.gateway, channel, body).await.expect("it is published")
}

async fn publish_all(kit: &GalleyKit, numbers: std::ops::Range<usize>) -> Vec<String> {
    for number in numbers.clone() {
        publish(kit, "orders", &number.to_string()).await;
    }
    numbers.map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn a_client_that_comes_back_to_another_gateway_gets_every_message_once_and_in_order() {
    let kit = GalleyKit::start().await;
    let other = ServiceProcess::start("gateway", &kit.redis, &[]).await;
    other.wait_until_ready().await;
    let doomed = ServiceProcess::start("gateway", &kit.redis, &[]).await;
    doomed.wait_until_ready().await;
    let mut stream = ChannelEventsClient::open(doomed.url(STREAM), None).await;
    let mut expected = publish_all(&kit, 0..20).await;
    let mut heard = stream.messages(7).await;
    doomed.kill();
    // What had reached us before is ours
    while let Some(event) = stream.next().await {
        heard.push(event.data["data"].as_str().expect("text").to_owned());
    }
    expected.extend(publish_all(&kit, 20..40).await);
    let mut stream = ChannelEventsClient::open(other.url(STREAM), Some(&stream.last_id)).await;
    expected.extend(publish_all(&kit, 40..60).await);
    heard.extend(stream.messages(60 - heard.len()).await);
    assert_eq!(heard, expected);
    let by_query = format!("{STREAM}?last_event_id={}", stream.last_id);
    let mut stream = ChannelEventsClient::open(kit.gateway.url(&by_query), None).await;
    assert_eq!(publish_all(&kit, 60..61).await, stream.messages(1).await);
}

#[tokio::test]
async fn a_stream_begins_now_or_at_a_time_and_an_id_is_there_before_the_first_message() {
    let kit = GalleyKit::start().await;
    publish_all(&kit, 0..3).await;
    let id = ChannelEventsClient::open(kit.gateway.url(STREAM), None).await.last_id;
    publish_all(&kit, 3..5).await;
    let mut back = ChannelEventsClient::open(kit.gateway.url(STREAM), Some(&id)).await;
    assert_eq!(back.messages(2).await, ["3", "4"]);
    let mut all = ChannelEventsClient::open(kit.gateway.url(&format!("{STREAM}?since=-PT1H")), None).await;
    assert_eq!(all.messages(5).await, ["0", "1", "2", "3", "4"]);
    // Of a channel that does not exist yet everything is new
    let early = ChannelEventsClient::open(kit.gateway.url("/v1/channels/new/stream"), None).await;
    publish(&kit, "new", "first").await;
    let mut back = ChannelEventsClient::open(kit.gateway.url("/v1/channels/new/stream"), Some(&early.last_id)).await;
    assert_eq!(back.messages(1).await, ["first"]);
}

#[tokio::test]
async fn streams_go_on_whatever_happens_to_the_subscription_or_to_redis() {
    let mut kit = GalleyKit::start_durable(&[]).await;
    let mut stream = ChannelEventsClient::open(kit.gateway.url(STREAM), None).await;
    let mut expected = publish_all(&kit, 0..5).await;
    for round in 0..3 {
        kit.redis_command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        expected.extend(publish_all(&kit, 100 * round + 10..100 * round + 20).await);
    }
    assert_eq!(stream.messages(35).await, expected);
    kit.redis.kill();
    kit.redis.restart();
    eventually("a message is taken again", || try_publish(&kit, &kit.gateway, "orders", "after")).await;
    let rest = stream.messages(1).await;
    assert_eq!(rest, ["after"], "what was acknowledged was kept, so there is no gap");
}

#[tokio::test]
async fn a_client_that_comes_back_while_redis_is_away_is_let_in_and_goes_on_where_it_was() {
    let mut kit = GalleyKit::start_durable(&[("GALLEY__CHANNELS__SWEEP_MS", "100")]).await;
    let paths = [&format!("{STREAM}?since=-PT1H"), "/v1/stream?channel=orders&channel=in.*&since=-PT1H"];
    let mut ids = Vec::new();
    for path in paths {
        let mut stream = ChannelEventsClient::open(kit.gateway.url(path), None).await;
        for channel in ["orders", "in.a"].into_iter().take(1 + ids.len()) {
            publish(&kit, channel, "seen").await;
        }
        // The second stream has what the first one has seen too; the order of two channels is anyone's
        stream.messages(1 + 2 * ids.len()).await;
        ids.push(stream.last_id);
    }
    // The first stream has not seen the second one's
    kit.redis.kill();
    let mut streams = Vec::new();
    for (path, id) in paths.into_iter().zip(&ids) {
        let stream = ChannelEventsClient::open(kit.gateway.url(path), Some(id)).await;
        // In what order its channels are in it means nothing
        assert_eq!(stream.last_id.len(), id.len(), "a client that leaves at once comes back to the same");
        streams.push(stream);
    }
    kit.redis.restart();
    eventually("a message is taken again", || try_publish(&kit, &kit.gateway, "orders", "1")).await;
    eventually("a message is taken again", || try_publish(&kit, &kit.gateway, "in.a", "2")).await;
    assert_eq!(streams[0].messages(2).await, ["seen", "1"]);
    // One that was stored though its answer was lost is published again
    let mut heard = BTreeSet::new();
    while heard.len() < 2 {
        heard.extend(streams[1].messages(1).await);
    }
    assert_eq!(heard, BTreeSet::from(["1", "2"].map(str::to_owned)));
}

#[tokio::test]
async fn readers_are_told_of_the_gap_when_redis_comes_back_empty() {
    let mut kit = GalleyKit::start().await;
    let mut stream = ChannelEventsClient::open(kit.gateway.url(STREAM), None).await;
    let seen = publish(&kit, "orders", "lost").await;
    stream.messages(1).await;
    kit.redis.kill();
    kit.redis.restart();
    eventually("a message is taken again", || try_publish(&kit, &kit.gateway, "orders", "new")).await;
    assert_eq!(stream.expect("gap").await["from"], json!(seen));
    assert_eq!(stream.messages(1).await, ["new"]);
    let mut back = ChannelEventsClient::open(kit.gateway.url(STREAM), Some(&seen)).await;
    let gap = back.expect("gap").await;
    assert_eq!((&gap["channel"], &gap["from"], &gap["count"]), (&json!("orders"), &json!(seen), &Value::Null));
    assert_eq!(back.messages(1).await, ["new"]);
    // A position of nowhere is told in the same way: a browser would not come back after an error
    let mut odd = ChannelEventsClient::open(kit.gateway.url(STREAM), Some("9999999999999-7")).await;
    assert_eq!(odd.expect("gap").await["from"], json!("9999999999999-7"));
    publish(&kit, "orders", "more").await;
    assert_eq!(odd.messages(1).await, ["more"]);
}

#[tokio::test]
async fn two_hundred_readers_of_a_channel_cost_one_subscription() {
    let kit = GalleyKit::start().await;
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(ChannelEventsClient::open(kit.gateway.url(STREAM), None).await);
    }
    publish(&kit, "orders", "7").await;
    for stream in &mut streams {
        assert_eq!(stream.messages(1).await, ["7"]);
    }
    // Until it is there messages come out of the history
    eventually("one subscription", || async {
        let counts = kit.redis_command(&["PUBSUB", "NUMSUB", "galley:5:{ch:orders}:live"]).await;
        format!("{counts:?}").contains("int(1)").then_some(())
    })
    .await;
    kit.wait_for_readers("orders", 200).await;
    drop(streams);
    kit.wait_for_readers("orders", 0).await;
}

#[tokio::test]
async fn many_channels_and_those_that_come_later_are_in_one_stream_with_one_id() {
    let kit = GalleyKit::start().await;
    let other = ServiceProcess::start("gateway", &kit.redis, &[]).await;
    other.wait_until_ready().await;
    publish(&kit, "eu.a", "old").await;
    let path = "/v1/stream?channel=eu.*&channel=us";
    let mut stream = ChannelEventsClient::open(kit.gateway.url(path), None).await;
    let mut heard = Vec::new();
    for (channel, body) in [("eu.a", "1"), ("us", "2"), ("asia", "no"), ("eu.b", "3"), ("eu.b", "4")] {
        publish(&kit, channel, body).await;
        if channel != "asia" {
            let data = stream.expect("message").await;
            heard.push((data["channel"].as_str().expect("a name").to_owned(), data["data"].clone()));
        }
    }
    let expected = [("eu.a", "1"), ("us", "2"), ("eu.b", "3"), ("eu.b", "4")];
    assert_eq!(heard, expected.map(|(channel, body)| (channel.to_owned(), json!(body))));
    let id = stream.last_id.clone();
    drop(stream);
    for (channel, body) in [("us", "5"), ("eu.b", "6"), ("eu.c", "7"), ("eu.c", "8")] {
        publish(&kit, channel, body).await;
    }
    let mut stream = ChannelEventsClient::open(other.url(path), Some(&id)).await;
    let mut heard = stream.messages(4).await;
    heard.sort();
    assert_eq!(heard, ["5", "6", "7", "8"], "each once, those of the channel that came meanwhile too");
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_with_what_is_allowed() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__CHANNELS__MAX_READERS", "1")]).await;
    publish(&kit, "orders", "1").await;
    let many = "channel=a&".repeat(101);
    let of_others = ChannelEventsClient::open(kit.gateway.url("/v1/stream?channel=others"), None).await;
    for (path, status, said) in [
        ("/v1/channels/a%20b/stream", 400, "channel must match"),
        ("/v1/channels/a/stream?last_event_id=x", 400, "position must be"),
        ("/v1/channels/a/stream?since=x", 400, "since must be"),
        ("/v1/stream", 400, "1 to 100 channels"),
        (&format!("/v1/stream?{many}"), 400, "1 to 100 channels, got 101"),
        ("/v1/stream?channel=a&last_event_id=1-1", 400, "stream of several channels"),
        (&format!("/v1/stream?channel=a&last_event_id={}", of_others.last_id), 400, "is of another channel"),
        ("/v1/stream?channel=a%3F*", 400, "channel pattern must"),
        (STREAM, 503, "channels.max_readers"),
    ] {
        let response = kit.get(path).await;
        let got = response.status();
        let problem: Value = response.json().await.expect("JSON");
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(got == status && detail.contains(said), "{path}: {problem}");
    }
}

#[tokio::test]
async fn the_readers_of_all_gateways_are_counted_also_after_redis_has_lost_everything() {
    let kit = GalleyKit::start().await;
    let other = ServiceProcess::start("gateway", &kit.redis, &[]).await;
    let here = ChannelEventsClient::open(kit.gateway.url(STREAM), None).await;
    let there = [
        ChannelEventsClient::open(other.wait_until_ready().await.url(STREAM), None).await,
        ChannelEventsClient::open(other.url(STREAM), None).await,
    ];
    let counted = async |readers: u64| {
        publish(&kit, "orders", "it").await;
        eventually(&format!("{readers} readers"), || async {
            let shown: Value = kit.get("/v1/channels/orders").await.json().await.ok()?;
            let listed: Value = kit.get("/v1/channels").await.json().await.ok()?;
            (shown["channel"]["readers"] == readers && listed["items"][0]["readers"] == readers).then_some(())
        })
        .await;
    };
    counted(3).await;
    kit.redis_command(&["FLUSHALL"]).await;
    counted(3).await;
    drop(here);
    counted(2).await;
    drop(there);
    counted(0).await;
    let _last = ChannelEventsClient::open(other.url(STREAM), None).await;
    counted(1).await;
    assert!(other.terminate().await.success());
    counted(0).await;
}

#[tokio::test]
async fn a_history_waits_for_the_next_message() {
    let kit = GalleyKit::start().await;
    let id = publish(&kit, "orders", "1").await;
    let url = kit.gateway.url(&format!("/v1/channels/orders/messages?after={id}&wait_ms=60000"));
    let waiting = tokio::spawn(kit.http.get(url).send());
    kit.wait_for_readers("orders", 1).await;
    publish(&kit, "orders", "2").await;
    let answer: Value = waiting.await.expect("no panic").expect("an answer").json().await.expect("JSON");
    assert_eq!(answer["items"][0]["data"], "2");
    let last = answer["last_id"].as_str().expect("an id");
    let path = format!("/v1/channels/orders/messages?after={last}&wait_ms=10");
    let nothing: Value = kit.get(&path).await.json().await.expect("JSON");
    assert_eq!((&nothing["items"], &nothing["last_id"]), (&json!([]), &answer["last_id"]));
    assert_eq!(kit.get("/v1/channels/orders/messages?wait_ms=600001").await.status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_takes_nothing_holds_up_nobody_and_is_cut_off() {
    // Longer than a machine that is busy keeps the quick reader from reading
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__CHANNELS__STALL_MS", "10000")]).await;
    let mut slow = TcpStream::connect(kit.gateway.address()).expect("it listens");
    slow.write_all(format!("GET {STREAM} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).expect("sent");
    slow.read_exact(&mut [0; 12]).expect("an answer begins");
    let mut quick = ChannelEventsClient::open(kit.gateway.url(STREAM), None).await;
    // More than all buffers on the way hold
    let body = "x".repeat(1_000_000);
    for _ in 0..30 {
        publish(&kit, "orders", &body).await;
        assert_eq!(quick.messages(1).await, [body.as_str()]);
    }
    kit.wait_for_readers("orders", 1).await;
    drop(slow);
}

#[tokio::test]
async fn a_gateway_that_stops_ends_its_streams_and_says_when_to_come_back() {
    let variables =
        [("GALLEY__GATEWAY__SHUTDOWN_GRACE_MS", "600000"), ("GALLEY__GATEWAY__EVENT_KEEP_ALIVE_MS", "600000")];
    let mut kit = GalleyKit::start_with(RedisServer::start(), &variables).await;
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(ChannelEventsClient::open(kit.gateway.url(STREAM), None).await);
    }
    kit.gateway.signal(Signal::SIGTERM);
    let mut pauses = BTreeSet::new();
    for stream in &mut streams {
        let last = stream.rest().await;
        let retry: u64 = last.trim_end().strip_prefix("retry: ").and_then(|text| text.parse().ok()).expect("a pause");
        assert!((500..=5000).contains(&retry));
        pauses.insert(retry);
    }
    assert!(pauses.len() > 1, "all would come back at once: {pauses:?}");
    assert!(kit.gateway.wait_for_exit().await.success());
}

#[tokio::test]
async fn plain_publishers_are_heard_once_beside_messages_with_positions() {
    let kit = GalleyKit::start().await;
    let mut stream = ChannelEventsClient::open(kit.gateway.url("/v1/channels/task:pubsub:channel/stream"), None).await;
    // Until then what is published comes out of the history, and what is not kept does not come
    eventually("both are heard", || async {
        let live = "galley:5:{ch:task:pubsub:channel}:live";
        let counts = kit.redis_command(&["PUBSUB", "NUMSUB", "task:pubsub:channel", live]).await;
        (format!("{counts:?}").matches("int(1)").count() == 2).then_some(())
    })
    .await;
    for round in 0..5 {
        publish(&kit, "task:pubsub:channel", &format!("ours {round}")).await;
        kit.redis_command(&["PUBLISH", "task:pubsub:channel", &format!("theirs {round}")]).await;
        let ours = stream.expect("message").await;
        assert!(ours["id"].is_string() && ours["data"] == json!(format!("ours {round}")), "{ours}");
        let theirs = stream.expect("message").await;
        assert!(theirs["id"].is_null() && theirs["data"] == json!(format!("theirs {round}")), "{theirs}");
    }
    let quick = [("GALLEY__GATEWAY__EVENT_KEEP_ALIVE_MS", "100")];
    let other = ServiceProcess::start("gateway", &kit.redis, &quick).await;
    // A channel that has no history fits a pattern all the same
    kit.redis_command(&["FLUSHALL"]).await;
    let mut fitting = ChannelEventsClient::open(other.url("/v1/stream?channel=task:*"), None).await;
    eventually("a plain message is heard", || async {
        let heard = kit.redis_command(&["PUBLISH", "task:pubsub:channel", "theirs"]).await;
        (format!("{heard:?}") == "int(2)").then_some(())
    })
    .await;
    assert_eq!(fitting.expect("message").await["data"], "theirs");
    let mut silent = ChannelEventsClient::open(other.url(STREAM), None).await;
    silent.keep_alive().await;
}

#[tokio::test]
async fn a_gateway_that_hears_nothing_says_so_makes_its_subscription_anew_and_readers_miss_nothing() {
    let kit = GalleyKit::start().await;
    let way = MessageDropProxy::start(&kit.redis).await;
    let quick = [("GALLEY__CHANNELS__PROBE_MS", "100"), ("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "2000")];
    let deaf = ServiceProcess::start_with_redis_url("gateway", &way.url(), &quick).await;
    let mut stream = ChannelEventsClient::open(deaf.wait_until_ready().await.url(STREAM), None).await;
    let mut expected = publish_all(&kit, 0..3).await;
    assert_eq!(stream.messages(3).await, expected);
    way.drop_messages();
    let (status, reason) = eventually("it says that it hears nothing", || async {
        let response = http_client::get(deaf.url("/health/ready")).await.ok()?;
        let status = response.status();
        let reason = response.json::<Value>().await.ok()?["reason"].as_str()?.to_owned();
        reason.contains("channels are not heard").then_some((status, reason))
    })
    .await;
    assert!(status == 200 && reason.contains("2000 ms"), "the jobs API works: {status} {reason}");
    expected = publish_all(&kit, 3..6).await;
    way.deliver_on_new_connections();
    crate::health::wait_until_well(&deaf).await;
    expected.extend(publish_all(&kit, 6..9).await);
    assert_eq!(stream.messages(6).await, expected);
    let metrics = http_client::get(deaf.url("/metrics")).await.expect("an answer").text().await.expect("text");
    assert!(metrics.contains("galley_probe_seconds") && metrics.contains("galley_probes_lost_total"), "{metrics}");
}

#[tokio::test]
async fn a_client_that_has_received_nothing_comes_back_with_the_id_of_the_beginning() {
    let kit = GalleyKit::start().await;
    for url in [STREAM, "/v1/stream?channel=orders", "/v1/stream?channel=orders&channel=new.*"] {
        let url = kit.gateway.url(url);
        let stream = ChannelEventsClient::open(url.clone(), None).await;
        let last = stream.last_id.clone();
        drop(stream);
        publish(&kit, "orders", "missed").await;
        let mut stream = ChannelEventsClient::open(url, Some(&last)).await;
        assert_eq!(stream.messages(1).await, ["missed"]);
    }
}

#[tokio::test]
async fn no_character_of_a_message_ends_a_line_for_any_reader() {
    let kit = GalleyKit::start().await;
    let mut stream = ChannelEventsClient::open(kit.gateway.url(STREAM), None).await;
    let body = "a\u{85}b\u{2028}c\u{2029}d";
    publish(&kit, "orders", body).await;
    let block = stream.block().await.expect("it goes on");
    assert!(block.contains(r"a\u0085b\u2028c\u2029d") && !block.contains(['\u{85}', '\u{2028}', '\u{2029}']));
    let data = block.lines().find_map(|line| line.strip_prefix("data: ")).expect("data");
    let message: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(message["data"], body);
}
