//! The history of a channel: pages, times, and what is missing.

use model::message::{NewMessage, Position, continuity::Continuity};
use store::channels::MAX_PAGE_BYTES;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::{
    channels::{channel, publish},
    kit::StoreKit,
};

#[tokio::test]
async fn pages_follow_one_another_and_a_page_of_long_messages_ends_early() {
    let kit = StoreKit::start();
    let orders = channel("orders");
    let mut expected = Vec::new();
    for number in 0..25 {
        expected.push(publish(&kit, &orders, number.to_string().as_bytes()).await.position);
    }
    let (mut after, mut found) = (Position::START, Vec::new());
    for (most, is_more) in [(10, true), (10, true), (10, false)] {
        let page = kit.channels.read_channel_page(&orders, after, most).await.expect("redis runs");
        assert_eq!((page.continuity, page.has_more), (Continuity::Contiguous, is_more));
        after = page.read_up_to;
        found.extend(page.messages.into_iter().map(|message| (message.position, message.body)));
    }
    let bodies: Vec<_> = (0..25).map(|number| number.to_string().into_bytes()).collect();
    assert_eq!(found, expected.into_iter().zip(bodies).collect::<Vec<_>>());

    let long = channel("long");
    for _ in 0..5 {
        publish(&kit, &long, &vec![b'x'; MAX_PAGE_BYTES / 2]).await;
    }
    let page = kit.channels.read_channel_page(&long, Position::START, 100).await.expect("redis runs");
    assert_eq!((page.messages.len(), page.has_more), (2, true));
    let page = kit.channels.read_channel_page(&long, page.read_up_to, 100).await.expect("redis runs");
    assert_eq!((page.messages.len(), page.has_more), (2, true));
}

/// Hears what scripts ask a Redis for.
struct RedisMonitor(BufReader<TcpStream>);

impl RedisMonitor {
    async fn start(kit: &StoreKit) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", kit.server.port())).await.expect("redis runs");
        stream.write_all(b"MONITOR\r\n").await.expect("redis runs");
        let mut monitor = Self(BufReader::new(stream));
        assert_eq!(monitor.line().await, "+OK\r\n");
        monitor
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).await.expect("redis runs");
        line
    }

    /// How many entries each XRANGE of a script has asked for until now.
    async fn counts(&mut self, kit: &StoreKit) -> Vec<usize> {
        kit.redis_command(&["ECHO", "until now"]).await;
        let mut counts = Vec::new();
        loop {
            let line = self.line().await;
            if line.contains("until now") {
                return counts;
            }
            let asked = line.trim_end().to_uppercase();
            if let Some((_, count)) = asked.split_once("\"XRANGE\"").and_then(|(_, rest)| rest.split_once("\"COUNT\" "))
            {
                counts.push(count.trim_matches('"').parse().expect("a number"));
            }
        }
    }
}

#[tokio::test]
async fn a_page_of_messages_of_any_length_has_as_many_as_fit_and_reads_few_in_vain() {
    let kit = StoreKit::start();
    let c = channel("c");
    // Long ones, short ones, and long ones again
    let lengths: Vec<usize> = [400_000; 4].into_iter().chain([10; 300]).chain([400_000; 4]).collect();
    let mut positions = Vec::new();
    for length in &lengths {
        positions.push(publish(&kit, &c, &vec![b'x'; *length]).await.position);
    }
    let mut monitor = RedisMonitor::start(&kit).await;
    let (mut after, mut read) = (Position::START, 0);
    while read < lengths.len() {
        let page = kit.channels.read_channel_page(&c, after, 1000).await.expect("redis runs");
        let found: Vec<Position> = page.messages.iter().map(|message| message.position).collect();
        assert_eq!(found, positions[read..read + found.len()]);
        let bytes: usize = page.messages.iter().map(|message| message.body.len()).sum();
        assert!(found.len() == lengths.len() - read || bytes >= MAX_PAGE_BYTES, "{} {bytes}", found.len());
        (after, read) = (page.read_up_to, read + found.len());
        assert_eq!(page.has_more, read < lengths.len());
    }
    // What the script asked for of the long ones at the beginning: how many at once
    let asked = monitor.counts(&kit).await;
    assert_eq!(asked[..2], [1, 2], "{asked:?}");
    assert!(asked.len() < 30, "and the short ones many at a time: {asked:?}");
}

#[tokio::test]
async fn what_a_message_was_said_to_be_is_kept_with_it() {
    let kit = StoreKit::start();
    let message = NewMessage {
        body: b"\x00\xff".as_slice().into(),
        content_type: Some("a/b".into()),
        attributes: Some(r#"{"id":"1"}"#.to_owned()),
        trace: common::trace_context::TraceContext::new(
            Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            Some("a=1"),
            Some("k=v"),
        ),
    };
    let before = kit.channels.server_time().await.expect("redis runs");
    let sent = kit.channels.publish(&channel("c"), &message).await.expect("redis runs");
    let page = kit.channels.read_channel_page(&channel("c"), Position::START, 1).await.expect("redis runs");
    let kept = &page.messages[0];
    assert_eq!(kept.position, sent.expect("a channel that may be").position);
    assert_eq!((kept.content_type.as_deref(), kept.attributes.as_deref()), (Some("a/b"), Some(r#"{"id":"1"}"#)));
    assert_eq!(kept.body, b"\x00\xff");
    assert!((before..=kit.channels.server_time().await.expect("redis runs")).contains(&kept.published_at));
}

#[tokio::test]
async fn what_is_missing_behind_a_position_is_seen_in_redis_itself() {
    let kit = StoreKit::start();
    let c = channel("c");
    let mut positions = Vec::new();
    for _ in 0..5 {
        positions.push(publish(&kit, &c, b"x").await.position);
    }
    let behind = async |after: Position| kit.channels.read_channel_page(&c, after, 10).await.expect("redis runs");
    let gap = |page: &store::channels::ChannelPage, after| page.gap(after).map(|gap| (gap.from, gap.to, gap.count));
    kit.redis_command(&["XTRIM", "galley:{ch:c}:m", "MAXLEN", "2"]).await;
    for (index, expected) in [(0, Some(2)), (1, Some(1)), (2, None), (3, None), (4, None)] {
        let page = behind(positions[index]).await;
        let expected = expected.map(|count| (positions[index], Some(positions[3]), Some(count)));
        assert_eq!(gap(&page, positions[index]), expected, "behind message {index}");
    }
    let unknown = Position { epoch: positions[0].epoch + 1_000_000, sequence: 0 };
    assert_eq!(behind(unknown).await.continuity, Continuity::Unknown);
    kit.redis_command(&["XTRIM", "galley:{ch:c}:m", "MAXLEN", "0"]).await;
    assert_eq!(behind(positions[4]).await.continuity, Continuity::Contiguous, "it had seen everything");
    let page = behind(positions[2]).await;
    assert_eq!(gap(&page, positions[2]), Some((positions[2], None, Some(2))));
    assert_eq!(behind(page.read_up_to).await.continuity, Continuity::Contiguous, "a gap is told once");
    kit.redis_command(&["FLUSHALL"]).await;
    let page = behind(positions[4]).await;
    assert_eq!(gap(&page, positions[4]), Some((positions[4], None, None)));
    let again = publish(&kit, &c, b"y").await.position;
    let page = behind(page.read_up_to).await;
    assert_eq!((page.continuity, page.messages[0].position), (Continuity::Contiguous, again));
    assert_eq!(gap(&behind(positions[4]).await, positions[4]), Some((positions[4], Some(again), None)));
}

#[tokio::test]
async fn a_time_leads_to_the_first_message_that_is_not_older_also_across_epochs() {
    let kit = StoreKit::start();
    let c = channel("c");
    let none = kit.channels.channel_position_at(&c, 0).await.expect("redis runs");
    assert_eq!(none, Position::START);
    // Three epochs with times that are known
    let mut all = Vec::new();
    for epoch in [1_u64, 5, 9] {
        for sequence in 0..7_u64 {
            let (id, at) = (format!("{epoch}-{sequence}"), (epoch * 100 + sequence * 10).to_string());
            kit.redis_command(&["XADD", "galley:{ch:c}:m", &id, "b", "x", "a", &at]).await;
            all.push((Position { epoch, sequence }, epoch * 100 + sequence * 10));
        }
    }
    for time in (0..1000).step_by(5) {
        let since = kit.channels.channel_position_at(&c, time).await.expect("redis runs");
        let page = kit.channels.read_channel_page(&c, since, 100).await.expect("redis runs");
        let found: Vec<_> = page.messages.iter().map(|message| message.position).collect();
        let expected: Vec<_> = all
            .iter()
            .filter(|(_, at)| i64::try_from(*at).expect("small") >= time)
            .map(|(position, _)| *position)
            .collect();
        assert_eq!(found, expected, "since {time}");
    }
}

#[tokio::test]
async fn channels_are_listed_by_name_with_what_is_known_of_them() {
    let kit = StoreKit::start();
    for name in ["b", "a", "c:1"] {
        publish(&kit, &channel(name), b"x").await;
    }
    let last = publish(&kit, &channel("a"), b"x").await.position;
    let names = async |after: Option<&str>, most| {
        let names = kit.channels.list_channels(after.map(channel).as_ref(), most).await.expect("redis runs");
        names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(None, 2).await, ["a", "b"]);
    assert_eq!(names(Some("b"), 2).await, ["c:1"]);
    let info = kit.channels.channel_info(&channel("a")).await.expect("redis runs").expect("a channel");
    assert_eq!((info.head, info.length, info.per_minute), (last, 2, 2));
    assert_eq!(info.oldest, Some(Position { sequence: 0, ..last }));
    assert!(info.bytes > 0 && info.last_published_at.is_some());
    kit.redis_command(&["XTRIM", "galley:{ch:a}:m", "MAXLEN", "0"]).await;
    let info = kit.channels.channel_info(&channel("a")).await.expect("redis runs").expect("a channel");
    assert_eq!((info.head, info.oldest, info.length, info.per_minute), (last, None, 0, 0));
    assert!(kit.channels.channel_info(&channel("none")).await.expect("redis runs").is_none());
}
