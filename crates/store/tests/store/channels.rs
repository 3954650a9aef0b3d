use std::time::Duration;

use common::name::ChannelName;
use model::message::{NewMessage, Position};
use store::{
    Redis,
    channels::{MessageDedup, PublishedMessage, TooManyChannels},
    connection::notifier::SubscriberEvent,
    keys,
};
use testkit::{RedisPersistence, RedisServer};

use crate::kit::StoreKit;

async fn try_publish(kit: &StoreKit, channel: &ChannelName, body: &[u8]) -> Result<PublishedMessage, TooManyChannels> {
    let message = NewMessage { content_type: Some("text/plain".into()), ..NewMessage::plain(body) };
    kit.channels.publish(channel, &message).await.expect("redis runs")
}

pub(crate) async fn publish(kit: &StoreKit, channel: &ChannelName, body: &[u8]) -> PublishedMessage {
    try_publish(kit, channel, body).await.expect("a channel that may be")
}

pub(crate) fn channel(name: &str) -> ChannelName {
    name.parse().expect("a name")
}

#[tokio::test]
async fn positions_are_contiguous_and_a_subscriber_hears_the_bytes_as_they_are() {
    let kit = StoreKit::start();
    let channel: ChannelName = "task:pubsub:channel".parse().expect("a name");
    let (_topics, mut heard) = kit.subscribe(&[channel.as_str()]);
    assert_eq!(heard.recv().await, Some(SubscriberEvent::Subscribed(vec![channel.to_string()])));
    let bodies: [&[u8]; 4] = [b"7", b"", b"\x00\xff\r\n", "饭".as_bytes()];
    let mut positions = Vec::new();
    for body in bodies {
        let published = publish(&kit, &channel, body).await;
        assert_eq!(published.plain_subscribers, 1);
        positions.push(published.position);
        assert_eq!(
            heard.recv().await,
            Some(SubscriberEvent::Message { channel: channel.to_string(), payload: body.to_vec() })
        );
    }
    let epoch = positions[0].epoch;
    let expected: Vec<Position> = (0..4).map(|sequence| Position { epoch, sequence }).collect();
    assert_eq!(positions, expected);
}

#[tokio::test]
async fn a_history_is_capped() {
    let kit = StoreKit::with_variables(&[("GALLEY__CHANNELS__HISTORY_MAX", "100")]);
    let channel: ChannelName = "c".parse().expect("a name");
    for _ in 0..1000 {
        publish(&kit, &channel, b"x").await;
    }
    let kept = kit.redis_command(&["XLEN", "galley:{ch:c}:m"]).await;
    // "About": Redis drops whole nodes of a hundred entries
    assert!(matches!(kept, redis::Value::Int(n) if (100..=300).contains(&n)), "{kept:?}");
}

/// How long the history and the state of the channel `c` are there, in ms.
async fn ttls(kit: &StoreKit) -> [i64; 2] {
    let ttl = async |key| match kit.redis_command(&["PTTL", key]).await {
        redis::Value::Int(ms) => ms,
        other => panic!("{other:?}"),
    };
    [ttl("galley:{ch:c}:m").await, ttl("galley:{ch:c}:state").await]
}

#[tokio::test]
async fn a_history_outlives_its_last_message_by_its_ttl_and_not_by_much_more() {
    let mut kit = StoreKit::start();
    let channel = channel("c");
    let is_kept = async |kit: &StoreKit, least: i64| {
        publish(kit, &channel, b"x").await;
        // What the test itself takes is not more than this
        let (least, most) = (least - 60_000, least + least / 4);
        let [history, state] = ttls(kit).await;
        assert!((least..=most).contains(&history), "{history}, not {least} to {most}");
        assert!((2 * least..=2 * most).contains(&state), "{state}: it tells the next history where this one ended");
    };
    let week = 604_800_000;
    is_kept(&kit, week).await;
    // As if a part of it had passed
    let (left, state) = ((week - 120_000).to_string(), "galley:{ch:c}:state");
    let goes = (store::local_now() + week - 120_000).to_string();
    for command in [["PEXPIRE", "galley:{ch:c}:m", &left], ["PEXPIRE", state, &left]] {
        kit.redis_command(&command).await;
    }
    kit.redis_command(&["HSET", state, "x", &goes]).await;
    // A process that has not published just now
    kit.channels = store::channels::Channels::new(&kit.redis, &kit.settings.channels);
    is_kept(&kit, week).await;
    for ttl in [2 * week, week] {
        kit.settings.channels.history_ttl = std::time::Duration::from_millis(ttl.unsigned_abs());
        kit.channels = store::channels::Channels::new(&kit.redis, &kit.settings.channels);
        is_kept(&kit, ttl).await;
    }
    // One that begins again though the state is as it was
    kit.redis_command(&["DEL", "galley:{ch:c}:m"]).await;
    is_kept(&kit, week).await;
    kit.redis_command(&["DEL", state]).await;
    kit.channels = store::channels::Channels::new(&kit.redis, &kit.settings.channels);
    is_kept(&kit, week).await;
}

#[tokio::test]
async fn a_subscriber_says_that_it_lost_its_connection_and_that_it_hears_again() {
    let kit = StoreKit::start();
    let (_topics, mut heard) = kit.subscribe(&["c"]);
    assert_eq!(heard.recv().await, Some(SubscriberEvent::Subscribed(vec!["c".to_owned()])));
    kit.redis_command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert_eq!(heard.recv().await, Some(SubscriberEvent::ConnectionLost));
    assert_eq!(heard.recv().await, Some(SubscriberEvent::Subscribed(vec!["c".to_owned()])));
    kit.redis_command(&["PUBLISH", "c", "after"]).await;
    assert_eq!(
        heard.recv().await,
        Some(SubscriberEvent::Message { channel: "c".to_owned(), payload: b"after".to_vec() })
    );
}

#[tokio::test]
async fn a_subscriber_says_which_channels_it_hears_anew() {
    let kit = StoreKit::start();
    let (channels, mut heard) = kit.subscribe(&[]);
    for name in ["a", "b"] {
        channels.add(name.to_owned());
        assert_eq!(heard.recv().await, Some(SubscriberEvent::Subscribed(vec![name.to_owned()])));
    }
    kit.redis_command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert_eq!(heard.recv().await, Some(SubscriberEvent::ConnectionLost));
    assert_eq!(heard.recv().await, Some(SubscriberEvent::Subscribed(vec!["a".to_owned(), "b".to_owned()])));
}

#[tokio::test]
async fn all_subscribers_share_one_connection_and_a_slow_one_delays_nobody() {
    let kit = StoreKit::start();
    let subscribed = |topic: &str| Some(SubscriberEvent::Subscribed(vec![topic.to_owned()]));
    let (_first_topics, mut first) = kit.subscribe(&["a"]);
    assert_eq!(first.recv().await, subscribed("a"));
    // A topic that arrives already is confirmed to a new subscriber all the same
    let (slow_topics, mut slow) = kit.notifier.subscribe(1);
    slow_topics.add("a".to_owned());
    assert_eq!(slow.recv().await, subscribed("a"));
    let (second_topics, mut second) = kit.subscribe(&["a", "b"]);
    assert_eq!(second.recv().await, Some(SubscriberEvent::Subscribed(vec!["a".to_owned(), "b".to_owned()])));
    let connections = kit.redis_command(&["CLIENT", "LIST", "TYPE", "pubsub"]).await;
    let connections: String = redis::from_redis_value(connections).expect("text");
    assert_eq!(connections.lines().count(), 1, "{connections}");
    for number in ["1", "2", "3"] {
        kit.redis_command(&["PUBLISH", "a", number]).await;
        let message = SubscriberEvent::Message { channel: "a".to_owned(), payload: number.into() };
        assert_eq!(first.recv().await, Some(message.clone()));
        assert_eq!(second.recv().await, Some(message));
    }
    assert_eq!(slow.take_dropped_channels(), ["a"], "it has room for one message and read none");
    // What one subscriber does not want any more another still gets
    second_topics.remove("a");
    drop(slow);
    kit.redis_command(&["PUBLISH", "b", "x"]).await;
    kit.redis_command(&["PUBLISH", "a", "4"]).await;
    assert!(matches!(second.recv().await, Some(SubscriberEvent::Message { channel, .. }) if channel == "b"));
    assert!(matches!(first.recv().await, Some(SubscriberEvent::Message { payload, .. }) if payload == b"4"));
}

#[tokio::test]
async fn gateways_hear_the_position_before_plain_subscribers_hear_the_bytes() {
    let kit = StoreKit::start();
    let channel = channel("c");
    let (_topics, mut heard) = kit.subscribe(&["galley:5:{ch:c}:live", "c"]);
    assert!(matches!(heard.recv().await, Some(SubscriberEvent::Subscribed(channels)) if channels.len() == 2));
    let position = publish(&kit, &channel, b"\x00\n").await.position;
    for (channel, payload) in [("galley:5:{ch:c}:live", position.to_string().into_bytes()), ("c", b"\x00\n".to_vec())] {
        assert_eq!(heard.recv().await, Some(SubscriberEvent::Message { channel: channel.to_owned(), payload }));
    }
}

#[tokio::test]
async fn a_history_that_begins_again_goes_on_in_a_later_epoch() {
    let kit = StoreKit::start();
    let channel = channel("c");
    let first = publish(&kit, &channel, b"1").await.position;
    assert_eq!(publish(&kit, &channel, b"2").await.position, first.next());
    // Also within the same millisecond: positions are never made twice
    kit.redis_command(&["DEL", "galley:{ch:c}:m"]).await;
    let again = publish(&kit, &channel, b"3").await.position;
    assert!(again.epoch > first.epoch && again.sequence == 0, "{again} after {first}");
    // The state is gone while the history is there, as after an upgrade
    kit.redis_command(&["DEL", "galley:{ch:c}:state"]).await;
    assert_eq!(publish(&kit, &channel, b"4").await.position, again.next());
}

#[tokio::test]
async fn after_a_restart_of_redis_messages_are_numbered_in_a_later_epoch_and_what_was_kept_is_kept() {
    let mut kit = StoreKit::with_server(RedisServer::start_with(RedisPersistence::Always), &[]);
    let channel = channel("c");
    let before = publish(&kit, &channel, b"1").await.position;
    kit.server.kill();
    kit.server.restart();
    let after = testkit::eventually("a message is taken again", || async {
        kit.channels.publish(&channel, &NewMessage::plain(b"2")).await.ok()?.ok()
    })
    .await
    .position;
    assert!(after.epoch > before.epoch, "{after} after {before}: redis may have lost what came behind");
    assert_eq!(after.sequence, 0);
    let kept = kit.redis_command(&["XLEN", "galley:{ch:c}:m"]).await;
    assert_eq!(kept, redis::Value::Int(2));
    // A client that connects to the same run numbers in the same epoch
    let other = Redis::new(&kit.settings.redis).expect("a URL");
    let sent = store::channels::Channels::new(&other, &kit.settings.channels)
        .publish(&channel, &NewMessage::plain(b"3"))
        .await
        .expect("redis runs");
    assert_eq!(sent.expect("a channel that may be").position, after.next());
    assert_eq!(publish(&kit, &channel, b"4").await.position, after.next().next());
}

#[tokio::test]
async fn a_message_that_is_published_once_is_found_by_a_client_that_repeats_it() {
    let kit = StoreKit::start();
    let channel = channel("c");
    let (_topics, mut heard) = kit.subscribe(&[channel.as_str()]);
    assert_eq!(heard.recv().await, Some(SubscriberEvent::Subscribed(vec![channel.to_string()])));
    let ttl = Duration::from_mins(1);
    let publish_as = async |nth| {
        let once = Some(MessageDedup { seed: 7, nth, ttl });
        let sent = kit.channels.publish_deduplicated(&channel, &NewMessage::plain(b"x"), once).await;
        sent.expect("redis runs").expect("a channel that may be")
    };
    let first = publish_as(0).await;
    assert_eq!((publish_as(0).await, first.plain_subscribers), (first, 1));
    assert_eq!(publish_as(1).await.position, first.position.next());
    // Also when the history is gone meanwhile
    kit.redis_command(&["DEL", "galley:{ch:c}:m", "galley:{ch:c}:state"]).await;
    assert_eq!(publish_as(0).await, first);
    assert_eq!(kit.redis_command(&["EXISTS", "galley:{ch:c}:m"]).await, redis::Value::Int(0));
    let redis::Value::Int(left) = kit.redis_command(&["PTTL", &keys::published_message(&channel, 7, 0)]).await else {
        panic!("a TTL")
    };
    assert!((1..=60_000).contains(&left), "{left}");
}

#[tokio::test]
async fn there_are_no_more_channels_than_there_may_be_and_idle_ones_make_room() {
    let kit = StoreKit::with_variables(&[("GALLEY__CHANNELS__MAX_CHANNELS", "2")]);
    for name in ["a", "b"] {
        publish(&kit, &channel(name), b"x").await;
    }
    assert_eq!(try_publish(&kit, &channel("c"), b"x").await, Err(TooManyChannels { max: 2 }));
    assert_eq!(kit.redis_command(&["EXISTS", "galley:{ch:c}:m", "galley:{ch:c}:state"]).await, redis::Value::Int(0));
    publish(&kit, &channel("a"), b"x").await;
    // As if it had not been in use for years
    kit.redis_command(&["ZADD", "galley:channels", "1", "b"]).await;
    publish(&kit, &channel("c"), b"x").await;
    let names = kit.redis_command(&["ZRANGE", "galley:channels", "0", "-1"]).await;
    assert_eq!(format!("{names:?}").matches("bulk-string").count(), 2, "{names:?}");
}
