//! Readers of channels by pattern: which channels a pattern adds, leaves out and removes.

use std::collections::BTreeSet;

use common::channel_pattern::ChannelPattern;
use store::channels::{
    ChannelReader, MAX_CHANNELS, MAX_PATTERNS, ReaderEvent, ReaderLimitExceeded, ReaderStart, RemoveChannelResult,
};

use crate::{
    channel_hub::{hub, next},
    channels::{channel, publish},
    kit::StoreKit,
};

#[tokio::test]
async fn channels_that_come_later_join_a_pattern_and_one_too_many_is_said_to_be_left_out() {
    let kit = StoreKit::start();
    let (hub, _stop) = hub(&kit);
    let mut reader = hub.open_reader().expect("room for a reader");
    let pattern = "c.*".parse().expect("a pattern");
    reader.add_pattern(pattern, ReaderStart::Now).await.expect("redis runs").expect("few");
    let mut expected = BTreeSet::new();
    for number in 0..MAX_CHANNELS {
        expected.insert(format!("c.{number}"));
        publish(&kit, &channel(&format!("c.{number}")), b"x").await;
        publish(&kit, &channel(&format!("d.{number}")), b"x").await;
    }
    let mut heard = BTreeSet::new();
    for _ in 0..MAX_CHANNELS {
        let ReaderEvent::Message(message) = next(&mut reader).await else { panic!("a message") };
        assert!(heard.insert(message.channel.to_string()), "twice");
    }
    assert_eq!(heard, expected);
    publish(&kit, &channel("c.more"), b"x").await;
    assert!(matches!(next(&mut reader).await, ReaderEvent::ChannelSkipped(name) if name.as_str() == "c.more"));
    assert_eq!(
        reader.add_channel(&channel("other"), ReaderStart::Now).await.expect("redis runs"),
        Err(ReaderLimitExceeded)
    );
    assert_eq!(
        [reader.remove_channel(&channel("c.1")), reader.remove_channel(&channel("c.1"))],
        [RemoveChannelResult::Removed, RemoveChannelResult::NotRead]
    );
    assert!(matches!(next(&mut reader).await, ReaderEvent::Message(message) if message.channel.as_str() == "c.more"));
    assert_eq!(reader.remove_channel(&channel("c.more")), RemoveChannelResult::Removed);
    assert_eq!(reader.add_channel(&channel("other"), ReaderStart::Now).await.expect("redis runs"), Ok(()));
}

pub(crate) fn pattern(text: &str) -> ChannelPattern {
    text.parse().expect("a pattern")
}

#[tokio::test]
async fn a_pattern_that_is_refused_changes_nothing_and_asking_twice_is_asking_once() {
    let kit = StoreKit::start();
    let (hub, _stop) = hub(&kit);
    let mut reader = hub.open_reader().expect("room for a reader");
    for number in 0..=MAX_CHANNELS {
        publish(&kit, &channel(&format!("c.{number}")), b"x").await;
    }
    let refused = reader.add_pattern(pattern("c.*"), ReaderStart::Now).await.expect("redis runs");
    assert_eq!((refused, reader.positions().count()), (Err(ReaderLimitExceeded), 0));
    assert!(!reader.remove_pattern(&pattern("c.*")));
    for _ in 0..2 {
        assert_eq!(reader.add_pattern(pattern("c.1*"), ReaderStart::Now).await.expect("redis runs"), Ok(()));
        assert_eq!(reader.positions().count(), 12);
    }
    for number in 1..MAX_PATTERNS {
        let more = pattern(&format!("d.{number}.*"));
        assert_eq!(reader.add_pattern(more, ReaderStart::Now).await.expect("redis runs"), Ok(()));
    }
    assert_eq!(
        reader.add_pattern(pattern("e.*"), ReaderStart::Now).await.expect("redis runs"),
        Err(ReaderLimitExceeded)
    );
    assert!(reader.remove_pattern(&pattern("c.1*")) && !reader.remove_pattern(&pattern("c.1*")));
    assert!(reader.positions().next().is_none());
}

#[tokio::test]
async fn a_pattern_that_cannot_be_read_to_the_end_is_undone() {
    let kit = StoreKit::start();
    let (hub, _stop) = hub(&kit);
    let mut reader = hub.open_reader().expect("room for a reader");
    publish(&kit, &channel("c.1"), b"x").await;
    publish(&kit, &channel("c.2"), b"x").await;
    kit.redis_command(&["DEL", "galley:{ch:c.2}:m"]).await;
    kit.redis_command(&["SET", "galley:{ch:c.2}:m", "no history"]).await;
    assert!(reader.add_pattern(pattern("c.*"), ReaderStart::Now).await.is_err());
    assert!(reader.positions().next().is_none() && !reader.remove_pattern(&pattern("c.*")));
}

#[tokio::test]
async fn a_channel_that_was_left_stays_away_and_one_that_was_asked_for_by_name_stays() {
    let kit = StoreKit::with_variables(&[("GALLEY__CHANNELS__SWEEP_MS", "100")]);
    let (hub, _stop) = hub(&kit);
    let mut reader = hub.open_reader().expect("room for a reader");
    for name in ["c.1", "c.2", "c.3"] {
        publish(&kit, &channel(name), b"x").await;
    }
    assert_eq!(reader.add_pattern(pattern("c.*"), ReaderStart::Now).await.expect("redis runs"), Ok(()));
    assert_eq!(reader.add_channel(&channel("c.2"), ReaderStart::Now).await.expect("redis runs"), Ok(()));
    assert_eq!(reader.remove_channel(&channel("c.1")), RemoveChannelResult::Removed);
    let names = |reader: &ChannelReader| {
        let mut names: Vec<_> = reader.positions().map(|(name, _)| name.to_string()).collect();
        names.sort_unstable();
        names
    };
    // Only the next sweep, which names all channels, finds these
    for name in ["c.4", "c.5"] {
        kit.redis_command(&["XADD", &format!("galley:{{ch:{name}}}:m"), "5-0", "b", "x", "a", "1"]).await;
        kit.redis_command(&["ZADD", "galley:channels", "1", name]).await;
        assert!(matches!(next(&mut reader).await, ReaderEvent::Message(message) if message.channel.as_str() == name));
        assert!(!names(&reader).contains(&"c.1".to_owned()));
    }
    assert!(reader.remove_pattern(&pattern("c.*")));
    assert_eq!(names(&reader), ["c.2"]);
    // A pattern that is added again has the channel again
    assert_eq!(reader.add_pattern(pattern("c*"), ReaderStart::Now).await.expect("redis runs"), Ok(()));
    assert_eq!(names(&reader), ["c.1", "c.2", "c.3", "c.4", "c.5"]);
}
