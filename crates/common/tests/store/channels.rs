use common::{
    name::ChannelName,
    redis::subscriber::{Heard, subscribe, subscribe_to_changing},
};
use tokio_util::sync::CancellationToken;

use crate::kit::Kit;

#[tokio::test]
async fn positions_are_contiguous_and_a_subscriber_hears_the_bytes_as_they_are() {
    let kit = Kit::start();
    let channel: ChannelName = "task:pubsub:channel".parse().expect("a name");
    let mut heard = subscribe(&kit.redis, vec![channel.to_string()], 100, CancellationToken::new());
    assert_eq!(heard.recv().await, Some(Heard::Subscribed(vec![channel.to_string()])));
    let bodies: [&[u8]; 4] = [b"7", b"", b"\x00\xff\r\n", "饭".as_bytes()];
    let mut positions = Vec::new();
    for body in bodies {
        let published =
            kit.redis.publish(&kit.settings.channels, &channel, body, Some("text/plain")).await.expect("redis runs");
        assert_eq!(published.receivers, 1);
        positions.push(published.position);
        assert_eq!(heard.recv().await, Some(Heard::Message { channel: channel.to_string(), payload: body.to_vec() }));
    }
    let epoch = positions[0].strip_suffix("-0").expect("the first of an epoch").to_owned();
    let expected: Vec<String> = (0..bodies.len()).map(|sequence| format!("{epoch}-{sequence}")).collect();
    assert_eq!(positions, expected);
}

#[tokio::test]
async fn a_history_is_capped_and_has_a_ttl() {
    let kit = Kit::with(&[("GALLEY__CHANNELS__HISTORY_MAX", "100")]);
    let channel: ChannelName = "c".parse().expect("a name");
    for _ in 0..1000 {
        kit.redis.publish(&kit.settings.channels, &channel, b"x", None).await.expect("redis runs");
    }
    let kept = kit.command(&["XLEN", "galley:{ch:c}:m"]).await;
    // "About": Redis drops whole nodes of a hundred entries
    assert!(matches!(kept, redis::Value::Int(n) if (100..=300).contains(&n)), "{kept:?}");
    assert!(matches!(kit.command(&["PTTL", "galley:{ch:c}:m"]).await, redis::Value::Int(ms) if ms > 0));
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
