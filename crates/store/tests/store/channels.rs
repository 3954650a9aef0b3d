use std::time::Duration;

use common::name::ChannelName;
use model::message::{NewMessage, Position};
use store::{
    Redis,
    channels::{Once, Published, TooManyChannels},
    connection::notifier::{Heard, subscribe, subscribe_to_changing},
    keys,
};
use testkit::{Persistence, RedisServer};
use tokio_util::sync::CancellationToken;

use crate::kit::Kit;

async fn try_publish(kit: &Kit, channel: &ChannelName, body: &[u8]) -> Result<Published, TooManyChannels> {
    let message = NewMessage { content_type: Some("text/plain".into()), ..NewMessage::plain(body) };
    kit.redis.publish(&kit.settings.channels, channel, &message).await.expect("redis runs")
}

pub(crate) async fn publish(kit: &Kit, channel: &ChannelName, body: &[u8]) -> Published {
    try_publish(kit, channel, body).await.expect("a channel that may be")
}

pub(crate) fn channel(name: &str) -> ChannelName {
    name.parse().expect("a name")
}

#[tokio::test]
async fn positions_are_contiguous_and_a_subscriber_hears_the_bytes_as_they_are() {
    let kit = Kit::start();
    let channel: ChannelName = "task:pubsub:channel".parse().expect("a name");
    let mut heard = subscribe(&kit.redis, vec![channel.to_string()], 100, CancellationToken::new());
    assert_eq!(heard.recv().await, Some(Heard::Subscribed(vec![channel.to_string()])));
    let bodies: [&[u8]; 4] = [b"7", b"", b"\x00\xff\r\n", "饭".as_bytes()];
    let mut positions = Vec::new();
    for body in bodies {
        let published = publish(&kit, &channel, body).await;
        assert_eq!(published.receivers, 1);
        positions.push(published.position);
        assert_eq!(heard.recv().await, Some(Heard::Message { channel: channel.to_string(), payload: body.to_vec() }));
    }
    let epoch = positions[0].epoch;
    let expected: Vec<Position> = (0..4).map(|sequence| Position { epoch, sequence }).collect();
    assert_eq!(positions, expected);
}

#[tokio::test]
async fn a_history_is_capped() {
    let kit = Kit::with(&[("GALLEY__CHANNELS__HISTORY_MAX", "100")]);
    let channel: ChannelName = "c".parse().expect("a name");
    for _ in 0..1000 {
        publish(&kit, &channel, b"x").await;
    }
    let kept = kit.command(&["XLEN", "galley:{ch:c}:m"]).await;
    // "About": Redis drops whole nodes of a hundred entries
    assert!(matches!(kept, redis::Value::Int(n) if (100..=300).contains(&n)), "{kept:?}");
}

/// How long the history and the state of the channel `c` are there, in ms.
async fn ttls(kit: &Kit) -> [i64; 2] {
    let ttl = async |key| match kit.command(&["PTTL", key]).await {
        redis::Value::Int(ms) => ms,
        other => panic!("{other:?}"),
    };
    [ttl("galley:{ch:c}:m").await, ttl("galley:{ch:c}:state").await]
}

#[tokio::test]
async fn a_history_outlives_its_last_message_by_its_ttl_and_not_by_much_more() {
    let mut kit = Kit::start();
    let channel = channel("c");
    let is_kept = async |kit: &Kit, least: i64| {
        publish(kit, &channel, b"x").await;
        // What the test itself takes is not more than this
        let (least, most) = (least - 60_000, least + least / 4);
        let found = ttls(kit).await;
        assert!(found.iter().all(|ttl| (least..=most).contains(ttl)), "{found:?}, not {least} to {most}");
    };
    let week = 604_800_000;
    is_kept(&kit, week).await;
    // As if a part of it had passed
    let (left, state) = ((week - 120_000).to_string(), "galley:{ch:c}:state");
    let goes = (store::jobs::local_now() + week - 120_000).to_string();
    for command in [["PEXPIRE", "galley:{ch:c}:m", &left], ["PEXPIRE", state, &left]] {
        kit.command(&command).await;
    }
    kit.command(&["HSET", state, "x", &goes]).await;
    is_kept(&kit, week).await;
    for ttl in [2 * week, week] {
        kit.settings.channels.history_ttl = std::time::Duration::from_millis(ttl.unsigned_abs());
        is_kept(&kit, ttl).await;
    }
    // One that begins again though the state is as it was
    kit.command(&["DEL", "galley:{ch:c}:m"]).await;
    is_kept(&kit, week).await;
    kit.command(&["DEL", state]).await;
    is_kept(&kit, week).await;
}

#[tokio::test]
async fn a_subscriber_says_that_it_lost_its_connection_and_that_it_hears_again() {
    let kit = Kit::start();
    let mut heard = subscribe(&kit.redis, vec!["c".to_owned()], 100, CancellationToken::new());
    assert_eq!(heard.recv().await, Some(Heard::Subscribed(vec!["c".to_owned()])));
    kit.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert_eq!(heard.recv().await, Some(Heard::Lost));
    assert_eq!(heard.recv().await, Some(Heard::Subscribed(vec!["c".to_owned()])));
    kit.command(&["PUBLISH", "c", "after"]).await;
    assert_eq!(heard.recv().await, Some(Heard::Message { channel: "c".to_owned(), payload: b"after".to_vec() }));
}

#[tokio::test]
async fn a_subscriber_says_which_channels_it_hears_anew() {
    let kit = Kit::start();
    let (channels, mut heard) = subscribe_to_changing(&kit.redis, 100, CancellationToken::new());
    for name in ["a", "b"] {
        channels.add(name.to_owned());
        assert_eq!(heard.recv().await, Some(Heard::Subscribed(vec![name.to_owned()])));
    }
    kit.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert_eq!(heard.recv().await, Some(Heard::Lost));
    assert_eq!(heard.recv().await, Some(Heard::Subscribed(vec!["a".to_owned(), "b".to_owned()])));
}

#[tokio::test]
async fn gateways_hear_messages_with_their_positions_before_plain_subscribers_hear_the_bytes() {
    let kit = Kit::start();
    let channel = channel("c");
    let both = vec!["galley:{ch:c}:live".to_owned(), "c".to_owned()];
    let mut heard = subscribe(&kit.redis, both, 100, CancellationToken::new());
    assert!(matches!(heard.recv().await, Some(Heard::Subscribed(channels)) if channels.len() == 2));
    let message = NewMessage {
        body: b"\x00\n".as_slice().into(),
        content_type: Some("a/b".into()),
        attributes: Some("{}".to_owned()),
    };
    let sent = kit.redis.publish(&kit.settings.channels, &channel, &message).await.expect("redis runs");
    let position = sent.expect("a channel that may be").position;
    let Some(Heard::Message { channel, payload }) = heard.recv().await else { panic!("a message") };
    assert_eq!(channel, "galley:{ch:c}:live");
    let (head, rest) = payload.split_at(payload.iter().position(|byte| *byte == b'\n').expect("a head"));
    let head = String::from_utf8(head.to_vec()).expect("text");
    let words: Vec<&str> = head.split(' ').collect();
    assert_eq!((words[0], words[2], words[3]), (position.to_string().as_str(), "3", "2"));
    assert_eq!(rest, b"\na/b{}\x00\n");
    assert_eq!(heard.recv().await, Some(Heard::Message { channel: "c".to_owned(), payload: b"\x00\n".to_vec() }));
}

#[tokio::test]
async fn a_history_that_begins_again_goes_on_in_a_later_epoch() {
    let kit = Kit::start();
    let channel = channel("c");
    let first = publish(&kit, &channel, b"1").await.position;
    assert_eq!(publish(&kit, &channel, b"2").await.position, first.next());
    // Also within the same millisecond: positions are never made twice
    kit.command(&["DEL", "galley:{ch:c}:m"]).await;
    let again = publish(&kit, &channel, b"3").await.position;
    assert!(again.epoch > first.epoch && again.sequence == 0, "{again} after {first}");
    // The state is gone while the history is there, as after an upgrade
    kit.command(&["DEL", "galley:{ch:c}:state"]).await;
    assert_eq!(publish(&kit, &channel, b"4").await.position, again.next());
}

#[tokio::test]
async fn after_a_restart_of_redis_messages_are_numbered_in_a_later_epoch_and_what_was_kept_is_kept() {
    let mut kit = Kit::on(RedisServer::start_with(Persistence::Always), &[]);
    let channel = channel("c");
    let before = publish(&kit, &channel, b"1").await.position;
    kit.server.kill();
    kit.server.start_again();
    let after = testkit::eventually("a message is taken again", || async {
        kit.redis.publish(&kit.settings.channels, &channel, &NewMessage::plain(b"2")).await.ok()?.ok()
    })
    .await
    .position;
    assert!(after.epoch > before.epoch, "{after} after {before}: redis may have lost what came behind");
    assert_eq!(after.sequence, 0);
    let kept = kit.command(&["XLEN", "galley:{ch:c}:m"]).await;
    assert_eq!(kept, redis::Value::Int(2));
    // Whoever connects to the same run numbers in the same epoch
    let other = Redis::new(&kit.settings.redis).expect("a URL");
    let sent = other.publish(&kit.settings.channels, &channel, &NewMessage::plain(b"3")).await.expect("redis runs");
    assert_eq!(sent.expect("a channel that may be").position, after.next());
    assert_eq!(publish(&kit, &channel, b"4").await.position, after.next().next());
}

#[tokio::test]
async fn a_message_that_is_published_once_is_found_by_whoever_repeats_it() {
    let kit = Kit::start();
    let channel = channel("c");
    let mut heard = subscribe(&kit.redis, vec![channel.to_string()], 100, CancellationToken::new());
    assert_eq!(heard.recv().await, Some(Heard::Subscribed(vec![channel.to_string()])));
    let ttl = Duration::from_mins(1);
    let publish_as = async |nth| {
        let once = Some(Once { seed: 7, nth, ttl });
        let sent = kit.redis.publish_once(&kit.settings.channels, &channel, &NewMessage::plain(b"x"), once).await;
        sent.expect("redis runs").expect("a channel that may be")
    };
    let first = publish_as(0).await;
    assert_eq!((publish_as(0).await, first.receivers), (first, 1));
    assert_eq!(publish_as(1).await.position, first.position.next());
    // Also when the history is gone meanwhile
    kit.command(&["DEL", "galley:{ch:c}:m", "galley:{ch:c}:state"]).await;
    assert_eq!(publish_as(0).await, first);
    assert_eq!(kit.command(&["EXISTS", "galley:{ch:c}:m"]).await, redis::Value::Int(0));
    let redis::Value::Int(left) = kit.command(&["PTTL", &keys::published(&channel, 7, 0)]).await else {
        panic!("a TTL")
    };
    assert!((1..=60_000).contains(&left), "{left}");
}

#[tokio::test]
async fn there_are_no_more_channels_than_there_may_be_and_idle_ones_make_room() {
    let kit = Kit::with(&[("GALLEY__CHANNELS__MAX_CHANNELS", "2")]);
    for name in ["a", "b"] {
        publish(&kit, &channel(name), b"x").await;
    }
    assert_eq!(try_publish(&kit, &channel("c"), b"x").await, Err(TooManyChannels { most: 2 }));
    assert_eq!(kit.command(&["EXISTS", "galley:{ch:c}:m", "galley:{ch:c}:state"]).await, redis::Value::Int(0));
    publish(&kit, &channel("a"), b"x").await;
    // As if it had not been in use for years
    kit.command(&["ZADD", "galley:channels", "1", "b"]).await;
    publish(&kit, &channel("c"), b"x").await;
    let names = kit.command(&["ZRANGE", "galley:channels", "0", "-1"]).await;
    assert_eq!(format!("{names:?}").matches("bulk-string").count(), 2, "{names:?}");
}
