//! Many readers of channels on one subscription: what it loses, what rings cannot hold, and channels that come later.

use std::{collections::BTreeSet, time::Duration};

use common::settings::Settings;
use futures_util::FutureExt;
use model::message::{Position, ResumeToken};
use store::{
    Redis,
    channels::{ChannelHub, ChannelReader, MAX_CHANNELS, ReaderEvent, ReaderStart},
    connection::notifier::Notifier,
};
use testkit::MessageDropProxy;
use tokio_util::sync::CancellationToken;

use crate::{
    channel_patterns::pattern,
    channels::{channel, publish},
    kit::StoreKit,
};

pub(crate) fn hub(kit: &StoreKit) -> (ChannelHub, CancellationToken) {
    let stop = CancellationToken::new();
    (ChannelHub::start(&kit.channels, &kit.notifier, stop.clone()).0, stop)
}

pub(crate) async fn next(reader: &mut ChannelReader) -> ReaderEvent {
    tokio::time::timeout(testkit::TEST_TIMEOUT, reader.next()).await.expect("something comes in time")
}

async fn position(reader: &mut ChannelReader) -> Position {
    match next(reader).await {
        ReaderEvent::Message(message) => message.position.expect("a position"),
        other => panic!("{other:?}"),
    }
}

async fn reading(hub: &ChannelHub, name: &str, start: ReaderStart) -> ChannelReader {
    let mut reader = hub.open_reader().expect("room for a reader");
    reader.add_channel(&channel(name), start).await.expect("redis runs").expect("few");
    reader
}

/// Publishes at once, and keeps this thread, which the hub runs on, until Redis has sent everything: so it comes faster than
/// anybody can look at it.
fn flood(kit: &StoreKit, count: u64, epoch: u64) {
    let script = "for i = 1, ARGV[1] do
        local id = redis.call('XADD', KEYS[1], ARGV[2] .. '-*', 'b', 'x', 'a', '1')
        redis.call('PUBLISH', 'galley:5:{ch:c}:live', id)
    end";
    let mut redis =
        redis::Client::open(kit.server.url()).and_then(|client| client.get_connection()).expect("redis runs");
    let mut call = redis::cmd("EVAL");
    call.arg(script).arg(1).arg("galley:{ch:c}:m").arg(count).arg(epoch).exec(&mut redis).expect("redis runs");
    let deadline = std::time::Instant::now() + testkit::TEST_TIMEOUT;
    let mut list = redis::cmd("CLIENT");
    list.arg("LIST").arg("TYPE").arg("PUBSUB");
    loop {
        let subscribers: String = list.query(&mut redis).expect("redis runs");
        if subscribers.contains(" omem=0 ") {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "it is not sent: {subscribers}");
    }
}

/// A message that is in the history and that nobody is sent.
async fn add_silently(kit: &StoreKit, position: Position) {
    kit.redis_command(&["XADD", "galley:{ch:c}:m", &position.to_string(), "b", "x", "a", "1"]).await;
}

#[tokio::test]
async fn what_pub_sub_loses_is_read_in_the_history() {
    let kit = StoreKit::start();
    let (hub, _stop) = hub(&kit);
    let mut readers = [reading(&hub, "c", ReaderStart::Now).await, reading(&hub, "c", ReaderStart::Now).await];
    let first = publish(&kit, &channel("c"), b"1").await.position;
    let mut expected = vec![first];
    for _ in 0..300 {
        expected.push(expected.last().expect("one").next());
        add_silently(&kit, expected[expected.len() - 1]).await;
    }
    expected.push(publish(&kit, &channel("c"), b"2").await.position);
    for reader in &mut readers {
        for position_of in &expected {
            assert_eq!(position(reader).await, *position_of);
        }
    }
}

#[tokio::test]
async fn the_last_message_of_all_is_found_by_looking_if_nobody_heard_it() {
    let kit = StoreKit::with_variables(&[("GALLEY__CHANNELS__SWEEP_MS", "100")]);
    let (hub, _stop) = hub(&kit);
    let mut readers = [reading(&hub, "c", ReaderStart::Now).await, reading(&hub, "c", ReaderStart::Now).await];
    let mut last = publish(&kit, &channel("c"), b"heard").await.position;
    for _ in 0..3 {
        for reader in &mut readers {
            assert_eq!(position(reader).await, last);
        }
        last = last.next();
        add_silently(&kit, last).await;
    }
}

#[tokio::test]
async fn readers_that_a_small_ring_leaves_behind_miss_nothing() {
    let kit = StoreKit::with_variables(&[("GALLEY__CHANNELS__RING_BYTES", "1000")]);
    let (hub, _stop) = hub(&kit);
    let mut reader = reading(&hub, "c", ReaderStart::After(Position::START)).await;
    let mut expected = Vec::new();
    for _ in 0..200 {
        expected.push(publish(&kit, &channel("c"), b"x").await.position);
    }
    let mut late = reading(&hub, "c", ReaderStart::After(expected[99])).await;
    for position_of in &expected {
        assert_eq!(position(&mut reader).await, *position_of);
    }
    expected.push(publish(&kit, &channel("c"), b"x").await.position);
    for (index, position_of) in expected[100..].iter().enumerate() {
        // What it had read and not told is read again
        if index % 7 == 0 {
            late.discard_pending();
        }
        assert_eq!(position(&mut late).await, *position_of);
    }
    assert_eq!(position(&mut reader).await, expected[200]);
}

#[tokio::test]
async fn a_history_that_is_gone_is_a_gap_for_all_readers_once() {
    let kit = StoreKit::start();
    let (hub, _stop) = hub(&kit);
    let mut readers = [reading(&hub, "c", ReaderStart::Now).await, reading(&hub, "c", ReaderStart::Now).await];
    let seen = publish(&kit, &channel("c"), b"1").await.position;
    for reader in &mut readers {
        assert_eq!(position(reader).await, seen);
    }
    kit.redis_command(&["FLUSHALL"]).await;
    let new = [publish(&kit, &channel("c"), b"2").await.position, publish(&kit, &channel("c"), b"3").await.position];
    for reader in &mut readers {
        let ReaderEvent::Gap { gap, .. } = next(reader).await else { panic!("a gap") };
        assert_eq!(gap.from, seen);
        assert_eq!([position(reader).await, position(reader).await], new);
    }
}

#[tokio::test]
async fn a_client_that_comes_back_to_more_channels_than_it_may_read_has_those_that_it_had() {
    let kit = StoreKit::start();
    let (hub, _stop) = hub(&kit);
    let mut had = Vec::new();
    for number in 0..MAX_CHANNELS + 20 {
        let name = channel(&format!("c.{number}"));
        let position = publish(&kit, &name, b"x").await.position;
        // The last ones of the list
        if number >= 30 {
            had.push((name, position));
        }
    }
    let id = ResumeToken::encode(had.iter().map(|(name, position)| (name, *position)), None);
    let mut reader = hub.open_reader().expect("room for a reader");
    reader.resume_patterns(vec![pattern("c.*")], id.parse().expect("an id"));
    assert_eq!(
        reader.resume_id().parse::<ResumeToken>(),
        id.parse(),
        "a client that leaves at once comes back to the same"
    );
    let mut left_out = BTreeSet::new();
    while left_out.len() < 20 {
        match next(&mut reader).await {
            ReaderEvent::ChannelSkipped(name) => drop(left_out.insert(name)),
            other => panic!("{other:?}"),
        }
    }
    assert!(had.iter().all(|(name, position)| reader.position(name) == Some(*position)));
    assert_eq!(reader.positions().count(), MAX_CHANNELS);
}

#[tokio::test]
async fn a_client_that_was_there_before_the_first_message_is_told_what_is_not_kept_any_more() {
    let kit = StoreKit::start();
    let (hub, _stop) = hub(&kit);
    let mut positions = Vec::new();
    for _ in 0..5 {
        positions.push(publish(&kit, &channel("c"), b"x").await.position);
    }
    kit.redis_command(&["XTRIM", "galley:{ch:c}:m", "MAXLEN", "2"]).await;
    let mut back = reading(&hub, "c", ReaderStart::After(Position::START)).await;
    let ReaderEvent::Gap { gap, .. } = next(&mut back).await else { panic!("a gap") };
    assert_eq!((gap.from, gap.to, gap.count), (Position::START, Some(positions[3]), Some(3)));
    assert_eq!([position(&mut back).await, position(&mut back).await], positions[3..]);
    let mut since = reading(&hub, "c", ReaderStart::Since(0)).await;
    assert_eq!([position(&mut since).await, position(&mut since).await], positions[3..], "it asked for what is kept");
}

#[tokio::test]
async fn there_are_no_more_readers_than_there_may_be_and_all_end_with_the_hub() {
    let kit = StoreKit::with_variables(&[("GALLEY__CHANNELS__MAX_READERS", "2")]);
    let (hub, stop) = hub(&kit);
    let mut readers = vec![reading(&hub, "c", ReaderStart::Now).await, reading(&hub, "c", ReaderStart::Now).await];
    assert!(hub.open_reader().is_err());
    drop(readers.pop());
    readers.push(hub.open_reader().expect("room again"));
    assert_eq!(hub.count_readers(&[channel("c")]).await.expect("redis runs"), [1]);
    let still = tokio::time::timeout(Duration::ZERO, readers[0].next()).await;
    assert!(still.is_err(), "there is nothing to read");
    stop.cancel();
    for reader in &mut readers {
        assert!(matches!(next(reader).await, ReaderEvent::Stopped));
    }
}

#[tokio::test]
async fn what_finds_no_room_is_read_in_the_history_without_waiting_for_a_look() {
    // A ring that leaves nobody behind: who is behind reads the history anyway
    let kit = StoreKit::with_variables(&[
        ("GALLEY__CHANNELS__SWEEP_MS", "3600000"),
        ("GALLEY__CHANNELS__RING_BYTES", "16777216"),
    ]);
    let (hub, _stop) = hub(&kit);
    let mut reader = reading(&hub, "c", ReaderStart::Now).await;
    let first = publish(&kit, &channel("c"), b"x").await.position;
    assert_eq!(position(&mut reader).await, first);
    let count = 2000;
    flood(&kit, count, first.epoch);
    let mut expected = first;
    for _ in 0..count {
        expected = expected.next();
        assert_eq!(position(&mut reader).await, expected);
    }
}

#[tokio::test]
async fn a_subscription_that_went_deaf_is_noticed_and_made_anew_also_when_nobody_reads() {
    let mut kit = StoreKit::with_variables(&[("GALLEY__CHANNELS__SWEEP_MS", "3600000")]);
    let way = MessageDropProxy::start(&kit.server).await;
    // Only what listens gives answers little time: what publishes and reads must not fail on a slow machine
    let variables = [("URL", way.url()), ("RESPONSE_TIMEOUT_MS", "500".to_owned())];
    let variables = variables.map(|(name, value)| (format!("GALLEY__REDIS__{name}"), value));
    let hasty = Settings::from_sources(None, variables.into_iter().collect()).expect("allowed settings");
    let hasty = Redis::new(&hasty.redis).expect("a URL");
    kit.notifier = Notifier::start(&hasty, Duration::from_millis(100), CancellationToken::new());
    let (hub, _stop) = hub(&kit);
    let is_heard = async |wanted: bool| {
        testkit::eventually("it is known", || async { (kit.notifier.problem().is_none() == wanted).then_some(()) })
            .await;
    };
    is_heard(true).await;
    way.drop_messages();
    is_heard(false).await;
    way.deliver_on_new_connections();
    is_heard(true).await;
    let mut reader = reading(&hub, "c", ReaderStart::Now).await;
    let mut expected = vec![publish(&kit, &channel("c"), b"x").await.position];
    assert_eq!(position(&mut reader).await, expected[0]);
    way.drop_messages();
    for _ in 0..3 {
        expected.push(publish(&kit, &channel("c"), b"x").await.position);
    }
    is_heard(false).await;
    way.deliver_on_new_connections();
    is_heard(true).await;
    expected.push(publish(&kit, &channel("c"), b"x").await.position);
    for position_of in &expected[1..] {
        assert_eq!(position(&mut reader).await, *position_of);
    }
}

#[tokio::test]
async fn readers_that_are_not_polled_keep_no_page_from_others() {
    let kit = StoreKit::start();
    let (hub, _stop) = hub(&kit);
    let names: Vec<String> = (0..40).map(|number| format!("c{number}")).collect();
    for name in &names {
        publish(&kit, &channel(name), b"x").await;
    }
    // Their clients take nothing: each is asked once
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut reader = hub.open_reader().expect("room for a reader");
        for name in &names {
            reader
                .add_channel(&channel(name), ReaderStart::After(Position::START))
                .await
                .expect("redis runs")
                .expect("few");
        }
        assert!(Box::pin(reader.next()).now_or_never().is_none(), "nothing is read yet");
        slow.push(reader);
    }
    let mut other = reading(&hub, "c0", ReaderStart::After(Position::START)).await;
    position(&mut other).await;
    // Nor do they miss anything when they go on
    for reader in &mut slow {
        let mut heard = BTreeSet::new();
        while heard.len() < names.len() {
            match next(reader).await {
                ReaderEvent::Message(message) => assert!(heard.insert(message.channel.clone()), "twice"),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// How many commands Redis has executed that read histories.
async fn history_reads(kit: &StoreKit) -> u64 {
    let reply = kit.redis_command(&["INFO", "commandstats"]).await;
    let stats: String = redis::from_redis_value(reply).expect("text");
    let calls = |line: &str| line.split_once("calls=")?.1.split(',').next()?.parse::<u64>().ok();
    let reads = ["cmdstat_xrange:", "cmdstat_evalsha:"];
    stats.lines().filter(|line| reads.iter().any(|read| line.starts_with(read))).filter_map(calls).sum()
}

#[tokio::test]
async fn what_others_publish_reaches_no_reader_and_costs_a_few_reads() {
    let kit = StoreKit::with_variables(&[("GALLEY__CHANNELS__SWEEP_MS", "3600000")]);
    let (hub, _stop) = hub(&kit);
    let mut reader = reading(&hub, "c", ReaderStart::Now).await;
    let first = publish(&kit, &channel("c"), b"1").await.position;
    assert_eq!(position(&mut reader).await, first);
    let (before, begin) = (history_reads(&kit).await, std::time::Instant::now());
    let next = first.next();
    let huge = "9".repeat(1 << 20);
    let forged = [
        next.to_string(),
        format!("{next} 1 0 0\nforged"),
        first.to_string(),
        Position::MAX.to_string(),
        "not a position".to_owned(),
        String::new(),
        huge,
    ];
    let mut connection = kit.server.connection().await;
    for round in 0..400 {
        let mut pipeline = redis::pipe();
        for payload in &forged {
            if payload.len() < 1000 || round == 0 {
                pipeline.cmd("PUBLISH").arg("galley:5:{ch:c}:live").arg(payload).ignore();
            }
        }
        let () = pipeline.query_async(&mut connection).await.expect("redis runs");
    }
    let second = publish(&kit, &channel("c"), b"2").await.position;
    assert_eq!((position(&mut reader).await, second), (next, next), "the first thing that comes is true");
    // Ten at once and five a second at most, and the reads of this test
    let allowed = 10 + 5 * (begin.elapsed().as_secs() + 1) + 10;
    let reads = history_reads(&kit).await - before;
    assert!(reads <= allowed, "{reads} of {allowed}");
}

#[tokio::test]
async fn a_channel_that_is_only_announced_is_followed_by_nobody() {
    let kit = StoreKit::with_variables(&[("GALLEY__CHANNELS__SWEEP_MS", "3600000")]);
    let (hub, _stop) = hub(&kit);
    let mut reader = hub.open_reader().expect("room for a reader");
    reader.add_pattern(pattern("c*"), ReaderStart::Now).await.expect("redis runs").expect("few");
    testkit::eventually("it listens", || async {
        let heard = kit.redis_command(&["PUBLISH", "galley:5:channels", "c-false"]).await;
        (heard == redis::Value::Int(1)).then_some(())
    })
    .await;
    for number in 0..2 * MAX_CHANNELS {
        kit.redis_command(&["PUBLISH", "galley:5:channels", &format!("c-false-{number}")]).await;
    }
    let made = publish(&kit, &channel("c-true"), b"1").await.position;
    assert_eq!(position(&mut reader).await, made);
    // The message may come out of the history before Redis has the subscription
    testkit::eventually("only that channel is followed", || async {
        let followed = kit.redis_command(&["PUBSUB", "CHANNELS", "*{ch:*"]).await;
        let followed: Vec<String> = redis::from_redis_value(followed).expect("names");
        (followed == ["galley:5:{ch:c-true}:live"]).then_some(())
    })
    .await;
}
