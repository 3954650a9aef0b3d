//! Messages that follow the script without running it.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use model::message::{NewMessage, Position, continuity::Continuity};
use store::{Redis, channels::Channels, connection::notifier::SubscriberEvent};
use testkit::{TEST_TIMEOUT, eventually};

use crate::{
    channels::{channel, publish},
    kit::StoreKit,
};

/// How often the script of publishing ran, and XADD outside of it.
async fn calls(kit: &StoreKit, command: &str) -> u64 {
    let stats = match kit.redis_command(&["INFO", "commandstats"]).await {
        redis::Value::VerbatimString { text, .. } => text,
        redis::Value::BulkString(bytes) => String::from_utf8(bytes).expect("text"),
        other => panic!("statistics, not {other:?}"),
    };
    let prefix = format!("cmdstat_{command}:calls=");
    let count = stats.lines().find_map(|line| line.strip_prefix(&prefix)?.split(',').next()?.parse().ok());
    count.unwrap_or_default()
}

/// Another process.
fn another(kit: &StoreKit) -> Channels {
    Channels::new(&Redis::new(&kit.settings.redis).expect("a URL"), &kit.settings.channels)
}

#[tokio::test]
async fn most_messages_need_no_script_and_are_stored_and_told_like_those_that_do() {
    let kit = StoreKit::start();
    let c = channel("c");
    let (_topics, mut heard) = kit.subscribe(&["c"]);
    assert_eq!(heard.recv().await, Some(SubscriberEvent::Subscribed(vec!["c".to_owned()])));
    publish(&kit, &c, b"first").await;
    let before = calls(&kit, "evalsha").await;
    let message = NewMessage {
        content_type: Some("application/json".into()),
        attributes: Some(r#"{"a":"b"}"#.to_owned()),
        ..NewMessage::plain(b"\x00\xff")
    };
    for _ in 0..20 {
        let published = kit.channels.publish(&c, &message).await.expect("redis runs").expect("accepted");
        assert_eq!(published.plain_subscribers, 1);
    }
    let scripts = calls(&kit, "evalsha").await - before;
    assert!(scripts < 20, "{scripts} scripts for 20 messages");
    let page = kit.channels.read_channel_page(&c, Position::START, 100).await.expect("redis runs");
    assert_eq!(page.messages.len(), 21);
    let times: Vec<_> = page.messages.iter().map(|message| message.published_at).collect();
    let mut sorted = times.clone();
    sorted.sort_unstable();
    assert!(times[0] > 0 && times == sorted, "{times:?}");
    for (sequence, stored) in (0..).zip(&page.messages) {
        assert_eq!(stored.position, Position { epoch: page.messages[0].position.epoch, sequence });
    }
    let last = &page.messages[20];
    let told = (last.content_type.as_deref(), last.attributes.as_deref(), &last.body[..]);
    assert_eq!(told, (Some("application/json"), Some(r#"{"a":"b"}"#), &b"\x00\xff"[..]));
    for expected in [&b"first"[..], b"\x00\xff", b"\x00\xff"] {
        let message = SubscriberEvent::Message { channel: "c".to_owned(), payload: expected.to_vec() };
        assert_eq!(heard.recv().await, Some(message));
    }
}

#[tokio::test]
async fn a_history_that_vanished_or_went_on_in_a_later_epoch_is_noticed_without_the_script() {
    let kit = StoreKit::start();
    let (c, elsewhere) = (channel("c"), another(&kit));
    let plain = NewMessage::plain(b"x");
    let first = publish(&kit, &c, b"x").await.position;
    kit.redis_command(&["DEL", "galley:{ch:c}:m"]).await;
    let again = publish(&kit, &c, b"x").await.position;
    assert!(again.epoch > first.epoch, "{again} follows {first}");
    kit.redis_command(&["DEL", "galley:{ch:c}:m"]).await;
    let other = elsewhere.publish(&c, &plain).await.expect("redis runs").expect("accepted").position;
    assert!(other.epoch > again.epoch);
    assert_eq!(publish(&kit, &c, b"x").await.position, other.next());
    let page = kit.channels.read_channel_page(&c, Position::START, 100).await.expect("redis runs");
    assert_eq!(page.messages.len(), 2);
    kit.redis_command(&["FLUSHDB"]).await;
    let last = publish(&kit, &c, b"x").await.position;
    let page = kit.channels.read_channel_page(&c, Position::START, 100).await.expect("redis runs");
    assert_eq!((page.messages.len(), page.messages[0].position), (1, last));
}

#[tokio::test]
async fn a_message_whose_publisher_hangs_up_is_told_if_it_is_stored() {
    let kit = StoreKit::start();
    let c = channel("c");
    let (_topics, mut heard) = kit.subscribe(&["c"]);
    assert_eq!(heard.recv().await, Some(SubscriberEvent::Subscribed(vec!["c".to_owned()])));
    publish(&kit, &c, b"0").await;
    assert!(matches!(heard.recv().await, Some(SubscriberEvent::Message { .. })));
    let message = NewMessage::plain(b"1");
    assert!(kit.channels.publish(&c, &message).now_or_never().is_none(), "it waits for redis");
    let told = SubscriberEvent::Message { channel: "c".to_owned(), payload: b"1".to_vec() };
    assert_eq!(heard.recv().await, Some(told));
    let page = kit.channels.read_channel_page(&c, Position::START, 100).await.expect("redis runs");
    assert_eq!((page.messages.len(), page.continuity), (2, Continuity::Contiguous));
}

#[tokio::test]
async fn the_script_runs_again_before_the_ttl_needs_it() {
    // A quarter of it is the time after which the TTL is set again
    let kit = StoreKit::with_variables(&[("GALLEY__CHANNELS__HISTORY_TTL_MS", "60000")]);
    let c = channel("c");
    publish(&kit, &c, b"x").await;
    let ttl = match kit.redis_command(&["PTTL", "galley:{ch:c}:m"]).await {
        redis::Value::Int(ms) => ms,
        other => panic!("a time, not {other:?}"),
    };
    assert!((60_000..=75_000).contains(&ttl), "{ttl}");
    let before = calls(&kit, "evalsha").await;
    eventually("the script ran again", || async {
        publish(&kit, &c, b"x").await;
        (calls(&kit, "evalsha").await > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_time_finds_every_message_that_is_not_older_although_some_are_a_little_out_of_order() {
    let kit = StoreKit::start();
    let c = channel("c");
    let times = [1000, 1020, 1010, 1040, 1030, 1030, 1090, 1080, 1100, 1085];
    for (sequence, at) in times.iter().enumerate() {
        let id = format!("1-{sequence}");
        kit.redis_command(&["XADD", "galley:{ch:c}:m", &id, "b", "x", "a", &at.to_string()]).await;
    }
    for time in (990..1110).step_by(5) {
        let since = kit.channels.channel_position_at(&c, time).await.expect("redis runs");
        let page = kit.channels.read_channel_page(&c, since, 100).await.expect("redis runs");
        let first = times.iter().position(|at| *at >= time).unwrap_or(times.len());
        assert_eq!(page.messages.len(), times.len() - first, "since {time}");
    }
}

#[tokio::test]
async fn publishing_goes_on_at_once_when_redis_comes_back() {
    let mut kit = StoreKit::start();
    let c = channel("c");
    publish(&kit, &c, b"x").await;
    kit.server.kill();
    let message = NewMessage::plain(b"x");
    tokio::time::timeout(TEST_TIMEOUT, kit.channels.publish(&c, &message))
        .await
        .expect("answered at once")
        .expect_err("redis is away");
    kit.server.restart();
    eventually("redis answers again", || async { kit.redis.ping().await.ok() }).await;
    publish(&kit, &c, b"y").await;
}

#[tokio::test]
async fn of_many_messages_at_once_few_run_the_script() {
    let kit = StoreKit::start();
    let c = channel("c");
    publish(&kit, &c, b"first").await;
    let before = calls(&kit, "evalsha").await;
    let (mut slow_rounds, mut last) = (0, Instant::now());
    for _ in 0..20 {
        futures_util::future::join_all((0..30).map(|_| publish(&kit, &c, b"x"))).await;
        slow_rounds += u64::from(last.elapsed() >= Duration::from_millis(25));
        last = Instant::now();
    }
    let scripts = calls(&kit, "evalsha").await - before;
    // A script that takes 25 ms does not tell the time: those of its round and of the next one may all run it
    let allowed = 100 + 60 * slow_rounds;
    assert!(scripts < allowed, "{scripts} scripts for 600 messages, in {slow_rounds} slow rounds");
    let kept = kit.redis_command(&["XLEN", "galley:{ch:c}:m"]).await;
    assert_eq!(kept, redis::Value::Int(601));
}
