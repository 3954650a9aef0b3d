//! Following the events: what a slow reader gets.

use common::id::EntryId;
use store::{
    TooManyReaders,
    events::{EventCursor, EventHub, EventPosition, EventReader, EventReaderItem, EventStart},
};
use testkit::{TEST_TIMEOUT, eventually};
use tokio_util::sync::CancellationToken;

use crate::kit::StoreKit;

/// More entries than wait for readers.
const MANY: u64 = 500;

fn hub(kit: &StoreKit, max_readers: usize) -> EventHub {
    EventHub::start(&kit.redis, max_readers, CancellationToken::new()).0
}

async fn reader(hub: &EventHub, start: EventStart) -> EventReader {
    hub.read(start).await.expect("redis runs").expect("there is room")
}

/// Writes entries of two events each.
async fn write(kit: &StoreKit, numbers: impl Iterator<Item = u64>) {
    for number in numbers {
        let event = |half: u64| format!(r#"{{"type":"job.enqueued","time":"","data":{{"n":{}}}}}"#, number * 2 + half);
        let entry = format!("{}-0", number + 1);
        kit.redis_command(&["XADD", "galley:events", &entry, "d", &format!("[{},{}]", event(0), event(1))]).await;
    }
}

async fn numbers(reader: &mut EventReader, how_many: u64) -> Vec<u64> {
    let mut found = Vec::new();
    while (found.len() as u64) < how_many {
        let told = tokio::time::timeout(TEST_TIMEOUT, reader.next()).await.expect("something in time");
        assert!(matches!(told, EventReaderItem::Events(..)), "{told:?}");
        for event in told.events() {
            let json: serde_json::Value = serde_json::from_str(&event.json).expect("JSON");
            found.push(json["data"]["n"].as_u64().expect("a number"));
        }
    }
    found
}

fn position(entry: u64, index: usize) -> EventPosition {
    EventPosition { entry: EntryId { milliseconds: entry, sequence: 0 }, index }
}

fn cursor(entry: u64, index: usize) -> EventCursor {
    position(entry, index).to_string().parse().expect("a cursor")
}

#[tokio::test]
async fn a_reader_that_fell_far_behind_still_gets_every_event_in_order() {
    let kit = StoreKit::start();
    let hub = hub(&kit, 10);
    let mut slow = reader(&hub, EventStart::Now).await;
    let mut quick = reader(&hub, EventStart::Now).await;
    write(&kit, 0..MANY).await;
    assert_eq!(numbers(&mut quick, MANY * 2).await, (0..MANY * 2).collect::<Vec<_>>());
    assert_eq!(numbers(&mut slow, MANY * 2).await, (0..MANY * 2).collect::<Vec<_>>());
    // And then it is at the end like the others
    write(&kit, MANY..=MANY).await;
    assert_eq!(numbers(&mut slow, 2).await, [MANY * 2, MANY * 2 + 1]);
}

#[tokio::test]
async fn a_reader_that_fell_behind_what_is_kept_is_told_of_the_gap() {
    let kit = StoreKit::start();
    let hub = hub(&kit, 10);
    let mut slow = reader(&hub, EventStart::Now).await;
    let mut quick = reader(&hub, EventStart::Now).await;
    write(&kit, 0..1).await;
    assert_eq!(numbers(&mut slow, 2).await, [0, 1]);
    write(&kit, 1..MANY).await;
    numbers(&mut quick, MANY * 2).await;
    kit.redis_command(&["XTRIM", "galley:events", "MAXLEN", "=", "10"]).await;
    assert!(matches!(slow.next().await, EventReaderItem::Gap(after) if after.entry == position(1, 0).entry));
    let first_kept = (MANY - 10) * 2;
    assert_eq!(numbers(&mut slow, 20).await, (first_kept..MANY * 2).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_reader_goes_on_in_the_middle_of_an_entry() {
    let kit = StoreKit::start();
    let hub = hub(&kit, 10);
    write(&kit, 0..200).await;
    let mut resumed = reader(&hub, EventStart::After(cursor(2, 0))).await;
    assert_eq!(numbers(&mut resumed, 397).await, (3..400).collect::<Vec<_>>());
    // Between two entries that are kept nothing is missing, a client that made up that position
    kit.redis_command(&["XADD", "galley:events", "900-0", "d", r#"[{"type":"a","data":{"n":900}}]"#]).await;
    let mut made_up = reader(&hub, EventStart::After(cursor(500, 7))).await;
    assert_eq!(numbers(&mut made_up, 1).await, [900]);
    let mut since = reader(&hub, EventStart::Since(200)).await;
    assert_eq!(numbers(&mut since, 3).await, [398, 399, 900]);
    for (gone, expected) in [(cursor(1000, 0), position(1000, 0)), (EventCursor::END, EventPosition::END)] {
        let said = reader(&hub, EventStart::After(gone)).await.next().await;
        assert!(matches!(said, EventReaderItem::Gap(after) if after == expected), "{said:?}");
    }
}

#[tokio::test]
async fn another_stream_with_a_clock_that_is_behind_is_a_gap_and_then_followed() {
    let kit = StoreKit::start();
    let hub = hub(&kit, 10);
    let mut reader = reader(&hub, EventStart::Now).await;
    write(&kit, 100..101).await;
    assert_eq!(numbers(&mut reader, 2).await, [200, 201]);
    kit.redis_command(&["FLUSHALL"]).await;
    write(&kit, 0..1).await;
    assert!(matches!(reader.next().await, EventReaderItem::Gap(_)));
    assert_eq!(numbers(&mut reader, 2).await, [0, 1]);
}

#[tokio::test]
async fn there_is_a_place_again_when_a_reader_leaves_and_none_beyond_the_limit() {
    let kit = StoreKit::start();
    let hub = hub(&kit, 2);
    let (first, _second) = (reader(&hub, EventStart::Now).await, reader(&hub, EventStart::Now).await);
    assert_eq!(hub.read(EventStart::Now).await.expect("redis runs").err(), Some(TooManyReaders { max: 2 }));
    drop(first);
    reader(&hub, EventStart::Now).await;
}

#[tokio::test]
async fn readers_that_come_and_go_miss_nothing_of_their_time() {
    let kit = StoreKit::start();
    let hub = hub(&kit, 10);
    for round in 0..50 {
        let mut reader = reader(&hub, EventStart::Now).await;
        write(&kit, round..=round).await;
        assert_eq!(numbers(&mut reader, 2).await, [round * 2, round * 2 + 1]);
    }
}

#[tokio::test]
async fn a_stopped_hub_ends_its_readers() {
    let kit = StoreKit::start();
    let stop = CancellationToken::new();
    let (hub, task) = EventHub::start(&kit.redis, 10, stop.clone());
    let mut one = reader(&hub, EventStart::Now).await;
    stop.cancel();
    assert!(matches!(one.next().await, EventReaderItem::Stopped));
    eventually("it has stopped", || async { task.is_finished().then_some(()) }).await;
    assert!(matches!(reader(&hub, EventStart::Now).await.next().await, EventReaderItem::Stopped));
}
