//! Channels that are delivered in order, by one worker at a time, and broadcasts, in which every worker is somewhere else.

use std::{collections::BTreeMap, time::Duration};

use model::{
    message::{Position, continuity::Gap},
    subscription::{Subscription, SubscriptionStart, SubscriptionState},
};
use store::subscriptions::{ChannelFence, Checkpoint, ClaimedChannel, MessageDisposition};

use crate::{
    channels::channel,
    subscriptions::{SubscriptionKit, subscription_name, worker_id},
};

/// Longer than any test.
const LEASE: Duration = Duration::from_hours(1);
const CURSOR: &str = "galley:{ch:c}:sub:s";
const IN_ORDER: &str = r#"{"channels":["c"],"deliver":{"log":{}},"ordering":"channel"}"#;
const BROADCAST: &str = r#"{"channels":["c*"],"deliver":{"log":{}},"mode":"broadcast"}"#;

async fn take(desk: &SubscriptionKit, subscription: &Subscription, worker: &str) -> ClaimedChannel {
    for _ in 0..2 {
        let taken = desk.store.claim_channel(subscription, &channel("c"), &worker_id(worker), LEASE).await;
        match taken.expect("redis runs") {
            ClaimedChannel::NotOpened => {
                desk.store
                    .open_channel(subscription, &channel("c"))
                    .await
                    .expect("redis runs")
                    .expect("it has a history");
            }
            other => return other,
        }
    }
    panic!("it stays closed");
}

async fn advance(
    desk: &SubscriptionKit,
    s: &Subscription,
    worker: &str,
    held: &ChannelFence,
    to: Position,
    more: bool,
) -> ClaimedChannel {
    let done = (held, to, MessageDisposition::Delivered, more);
    desk.store.advance_channel(s, &channel("c"), &worker_id(worker), LEASE, done).await.expect("redis runs")
}

/// The hold and the messages as texts.
fn next(in_order: ClaimedChannel) -> (ChannelFence, Vec<String>, u32) {
    let ClaimedChannel::Messages { fence: held, messages, failures, .. } = in_order else {
        panic!("nothing to deliver: {in_order:?}")
    };
    let texts = messages.into_iter().map(|message| String::from_utf8(message.body).expect("text"));
    (held, texts.collect(), failures)
}

/// Lets the lease of a client that has the channel be over.
async fn expire_lease(desk: &SubscriptionKit) {
    desk.kit.redis_command(&["HSET", CURSOR, "u", "1"]).await;
}

async fn block_channel(
    desk: &SubscriptionKit,
    s: &Subscription,
    worker: &str,
    held: &ChannelFence,
    problem: Option<&str>,
) -> Option<u32> {
    let how = (held, LEASE, problem);
    desk.store.block_channel(s, &channel("c"), &worker_id(worker), how).await.expect("redis runs")
}

#[tokio::test]
async fn one_worker_has_a_channel_until_there_is_nothing_left() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(IN_ORDER).await;
    let positions = desk.publish(&c, &["0", "1", "2"]).await;
    let (held, texts, failures) = next(take(&desk, &subscription, "w").await);
    assert_eq!((texts, failures), (vec!["0".to_owned(), "1".to_owned(), "2".to_owned()], 0));
    let ClaimedChannel::OwnedElsewhere(left) = take(&desk, &subscription, "v").await else { panic!("it is taken") };
    assert!(left <= LEASE && left > LEASE / 2, "{left:?}");
    // As it goes on it is still the only one
    let (_, texts, _) = next(advance(&desk, &subscription, "w", &held, positions[0], true).await);
    assert_eq!(texts, ["1", "2"]);
    let (_, texts, _) = next(advance(&desk, &subscription, "w", &held, positions[1], false).await);
    assert!(texts.is_empty(), "it did not ask for more");
    assert!(matches!(take(&desk, &subscription, "v").await, ClaimedChannel::OwnedElsewhere(_)));
    assert_eq!(desk.store.cursor_position(&subscription, &c).await.expect("redis runs"), Some(positions[1]));
    assert_eq!(desk.progress(&subscription, &c).await, (1, 0));
    // When nothing is left it is nobody's
    assert!(matches!(advance(&desk, &subscription, "w", &held, positions[2], true).await, ClaimedChannel::Empty));
    assert!(matches!(take(&desk, &subscription, "v").await, ClaimedChannel::Empty));
    desk.publish(&c, &["3"]).await;
    assert_eq!(next(take(&desk, &subscription, "v").await).1, ["3"]);
    assert!(matches!(advance(&desk, &subscription, "w", &held, positions[2], true).await, ClaimedChannel::Lost));
    let counters = desk.store.counters(&subscription).await.expect("redis runs");
    assert_eq!(counters.delivered, 3, "what was lost does not count");
}

#[tokio::test]
async fn a_worker_whose_lease_expired_moves_nothing_once_another_has_the_channel() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(IN_ORDER).await;
    let positions = desk.publish(&c, &["0", "1", "2"]).await;
    let (zombie, ..) = next(take(&desk, &subscription, "zombie").await);
    expire_lease(&desk).await;
    // Nobody else wanted it: it goes on, and has it again
    let (_, texts, _) = next(advance(&desk, &subscription, "zombie", &zombie, positions[0], true).await);
    assert_eq!(texts, ["1", "2"]);
    assert!(matches!(take(&desk, &subscription, "w").await, ClaimedChannel::OwnedElsewhere(_)));
    expire_lease(&desk).await;
    let (held, texts, _) = next(take(&desk, &subscription, "w").await);
    assert_eq!(texts, ["1", "2"]);
    assert!(matches!(advance(&desk, &subscription, "zombie", &zombie, positions[2], true).await, ClaimedChannel::Lost));
    assert_eq!(block_channel(&desk, &subscription, "zombie", &zombie, Some("late")).await, None);
    // Nor with the hold of an earlier life of the same name
    expire_lease(&desk).await;
    let (again, ..) = next(take(&desk, &subscription, "zombie").await);
    assert!(matches!(advance(&desk, &subscription, "zombie", &zombie, positions[2], true).await, ClaimedChannel::Lost));
    assert!(matches!(advance(&desk, &subscription, "w", &held, positions[2], true).await, ClaimedChannel::Lost));
    assert_eq!(desk.store.cursor_position(&subscription, &c).await.expect("redis runs"), Some(positions[0]));
    assert_eq!(next(advance(&desk, &subscription, "zombie", &again, positions[1], true).await).1, ["2"]);
}

#[tokio::test]
async fn a_message_that_fails_holds_its_channel_up_until_it_passes() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(IN_ORDER).await;
    let positions = desk.publish(&c, &["0", "1"]).await;
    for failures in 1..=3 {
        let (held, texts, before) = next(take(&desk, &subscription, "w").await);
        assert_eq!((texts[0].as_str(), before), ("0", failures - 1));
        let problem = "é".repeat(1000);
        assert_eq!(block_channel(&desk, &subscription, "w", &held, Some(&problem)).await, Some(failures));
        assert_eq!(block_channel(&desk, &subscription, "w", &held, Some("again")).await, None, "it is nobody's now");
        assert!(matches!(advance(&desk, &subscription, "w", &held, positions[0], true).await, ClaimedChannel::Lost));
        let ClaimedChannel::Blocked(wait) = take(&desk, &subscription, "v").await else { panic!("it waits") };
        assert!(wait <= LEASE && wait > LEASE / 2, "{wait:?}");
        let progress = desk.store.channel_progress(&subscription, &c).await.expect("redis runs");
        let held_up = progress.blocked.expect("it is held up");
        assert_eq!((held_up.failures, held_up.last_error.chars().count()), (failures, 500));
        assert!(held_up.next_attempt_at > subscription.created_at);
        // The time has come
        desk.kit.redis_command(&["HSET", CURSOR, "w", "1"]).await;
    }
    // Not tried at all: that is no failure
    let (held, _, failures) = next(take(&desk, &subscription, "w").await);
    assert_eq!((failures, block_channel(&desk, &subscription, "w", &held, None).await), (3, Some(0)));
    desk.kit.redis_command(&["HSET", CURSOR, "w", "1"]).await;
    let (held, texts, failures) = next(take(&desk, &subscription, "v").await);
    assert_eq!((texts.len(), failures), (2, 3));
    let (_, texts, failures) = next(advance(&desk, &subscription, "v", &held, positions[0], true).await);
    assert_eq!((texts, failures), (vec!["1".to_owned()], 0), "the next one has not failed");
    assert_eq!(desk.store.channel_progress(&subscription, &c).await.expect("redis runs").blocked, None);
}

#[tokio::test]
async fn what_waits_does_not_wait_for_a_target_that_was_changed_or_mended() {
    let desk = SubscriptionKit::start();
    let subscription = desk.put(IN_ORDER).await;
    desk.publish(&channel("c"), &["0"]).await;
    let fail = async || {
        let (held, ..) = next(take(&desk, &subscription, "w").await);
        block_channel(&desk, &subscription, "w", &held, Some("no")).await.expect("it was held");
        assert!(matches!(take(&desk, &subscription, "w").await, ClaimedChannel::Blocked(_)));
    };
    fail().await;
    desk.put(&IN_ORDER.replace(r#""c""#, r#""c","d""#)).await;
    assert!(matches!(take(&desk, &subscription, "w").await, ClaimedChannel::Blocked(_)), "the target is the same");
    desk.put(&IN_ORDER.replace(r#"{"log":{}}"#, r#"{"command":"index"}"#)).await;
    fail().await;
    for state in [SubscriptionState::Paused, SubscriptionState::Active] {
        desk.store.set_state(&subscription_name(), state, None).await.expect("redis runs").expect("it is there");
    }
    let (_, texts, failures) = next(take(&desk, &subscription, "w").await);
    assert_eq!((texts, failures), (vec!["0".to_owned()], 2), "it is shown what went wrong before");
}

#[tokio::test]
async fn what_is_missing_in_order_is_told_and_a_lost_cursor_begins_again() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(IN_ORDER).await;
    let positions = desk.publish(&c, &["0", "1", "2", "3"]).await;
    let (held, ..) = next(take(&desk, &subscription, "w").await);
    desk.kit.redis_command(&["XTRIM", "galley:{ch:c}:m", "MAXLEN", "1"]).await;
    let after = advance(&desk, &subscription, "w", &held, positions[0], true).await;
    let ClaimedChannel::Messages { gap, messages, .. } = after else { panic!("there is one: {after:?}") };
    assert_eq!(gap, Some(Gap { from: positions[0], to: Some(positions[3]), count: Some(2) }));
    assert_eq!(messages[0].position, positions[3]);
    desk.kit.redis_command(&["DEL", CURSOR]).await;
    let lost = advance(&desk, &subscription, "w", &held, positions[3], true).await;
    assert!(matches!(lost, ClaimedChannel::NotOpened), "{lost:?}");
    assert_eq!(next(take(&desk, &subscription, "w").await).1, ["3"], "nothing that is kept is left out");
}

#[tokio::test]
async fn going_somewhere_else_takes_the_channel_away() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(IN_ORDER).await;
    let positions = desk.publish(&c, &["0", "1", "2"]).await;
    let (held, ..) = next(take(&desk, &subscription, "w").await);
    block_channel(&desk, &subscription, "w", &held, Some("it failed")).await;
    for (start, expected) in [
        (SubscriptionStart::After(positions[0]), vec!["1", "2"]),
        (SubscriptionStart::Earliest, vec!["0", "1", "2"]),
        (SubscriptionStart::After(positions[1]), vec!["2"]),
    ] {
        desk.store.seek(&subscription_name(), start, None).await.expect("redis runs").expect("it is there");
        assert!(matches!(advance(&desk, &subscription, "w", &held, positions[2], true).await, ClaimedChannel::Lost));
        let (_, texts, failures) = next(take(&desk, &subscription, "v").await);
        assert_eq!((texts, failures), (expected.into_iter().map(ToOwned::to_owned).collect(), 0));
    }
    desk.store
        .seek(&subscription_name(), SubscriptionStart::New, None)
        .await
        .expect("redis runs")
        .expect("it is there");
    assert!(matches!(take(&desk, &subscription, "v").await, ClaimedChannel::Empty));
}

fn checkpoint(positions: &[(&str, Position)], delivered: u64, filtered: u64) -> Checkpoint {
    let positions = positions.iter().map(|(name, position)| (channel(name), *position));
    Checkpoint {
        positions: positions.collect(),
        first_seen_at: Some(7),
        delivered,
        filtered,
        is_complete: false,
        process: String::new(),
    }
}

#[tokio::test]
async fn every_worker_of_a_broadcast_goes_on_where_it_was() {
    let desk = SubscriptionKit::start();
    let subscription = desk.put(BROADCAST).await;
    let (c1, c2) = (channel("c1"), channel("c2"));
    let (one, two) = (desk.publish(&c1, &["0", "1", "2"]).await, desk.publish(&c2, &["0"]).await);
    let at =
        async |worker: &str| desk.store.load_checkpoint(&subscription, &worker_id(worker)).await.expect("redis runs");
    let note = async |worker: &str, checkpoint: Checkpoint| {
        desk.store.save_checkpoint(&subscription, &worker_id(worker), &checkpoint).await.expect("redis runs");
    };
    assert_eq!(at("w").await, None);
    note("w", checkpoint(&[("c1", one[0]), ("c2", two[0])], 2, 1)).await;
    note("w", checkpoint(&[("c1", one[1])], 1, 0)).await;
    note("v", checkpoint(&[("c1", one[2])], 3, 0)).await;
    assert_eq!(at("w").await, Some(checkpoint(&[("c1", one[1]), ("c2", two[0])], 0, 0)));
    let counters = desk.store.counters(&subscription).await.expect("redis runs");
    assert_eq!((counters.delivered, counters.filtered), (6, 1));
    let lags = async |of: &[&common::name::ChannelName]| -> BTreeMap<String, u64> {
        let workers = desk.store.broadcast_lag(&subscription, of).await.expect("redis runs");
        workers.into_iter().map(|lagging| (lagging.worker.to_string(), lagging.lag)).collect()
    };
    let expected = |w, v| BTreeMap::from([("w".to_owned(), w), ("v".to_owned(), v)]);
    assert_eq!(lags(&[&c1, &c2]).await, expected(1, 1), "v has not begun in the second channel");
    assert_eq!(lags(&[&c1]).await, expected(1, 0));
    assert!(matches!(desk.kit.redis_command(&["PTTL", "galley:sub:s:at:w"]).await, redis::Value::Int(ms) if ms > 0));
}

#[tokio::test]
async fn workers_of_a_broadcast_that_goes_somewhere_else_begin_anew() {
    let desk = SubscriptionKit::start();
    let subscription = desk.put(BROADCAST).await;
    let one = desk.publish(&channel("c1"), &["0", "1"]).await;
    let worker = worker_id("w");
    let here = checkpoint(&[("c1", one[1])], 2, 0);
    desk.store.save_checkpoint(&subscription, &worker, &here).await.expect("redis runs");
    let sought = desk
        .store
        .seek(&subscription_name(), SubscriptionStart::Earliest, None)
        .await
        .expect("redis runs")
        .expect("it is there");
    assert_eq!(desk.store.load_checkpoint(&sought, &worker).await.expect("redis runs"), None);
    let begin = desk.store.broadcast_start_position(&sought, &channel("c1"), 0).await.expect("redis runs");
    assert_eq!(begin, Position::START);
    // What it notes from then on is of the new start, and nothing of the old one stays
    desk.store.save_checkpoint(&sought, &worker, &checkpoint(&[], 0, 0)).await.expect("redis runs");
    let now = desk.store.load_checkpoint(&sought, &worker).await.expect("redis runs");
    assert_eq!(now, Some(checkpoint(&[], 0, 0)));
    // One that has not heard of it yet does not bring the old place back
    desk.store.save_checkpoint(&subscription, &worker, &here).await.expect("redis runs");
    assert_eq!(desk.store.load_checkpoint(&sought, &worker).await.expect("redis runs"), None);
}

#[tokio::test]
async fn a_worker_that_joins_a_broadcast_begins_with_what_is_published_from_then_on_unless_told_otherwise() {
    let desk = SubscriptionKit::start();
    let subscription = desk.put(BROADCAST).await;
    let key = "galley:{ch:c1}:m";
    let created = subscription.created_at;
    for (number, at) in [created + 1000, created + 2000, created + 3000].into_iter().enumerate() {
        let id = format!("1-{number}");
        desk.kit.redis_command(&["XADD", key, &id, "b", "x", "a", &at.to_string()]).await;
    }
    let begin = async |subscription: &Subscription, since| {
        desk.store.broadcast_start_position(subscription, &channel("c1"), since).await.expect("redis runs").to_string()
    };
    assert_eq!(begin(&subscription, created + 2000).await, "1-0", "it gets the second and the third");
    assert_eq!(begin(&subscription, 0).await, "0-0", "it was there before the subscription");
    let earliest = desk
        .store
        .seek(&subscription_name(), SubscriptionStart::Earliest, None)
        .await
        .expect("redis runs")
        .expect("it is there");
    assert_eq!(begin(&earliest, created + 2000).await, "0-0");
    desk.kit.redis_command(&["XTRIM", key, "MAXLEN", "1"]).await;
    assert_eq!(begin(&earliest, 0).await, "1-1", "it asked for what there is, so nothing is missing in front of it");
}

#[tokio::test]
async fn a_worker_of_a_broadcast_may_be_in_thousands_of_channels() {
    let desk = SubscriptionKit::start();
    let subscription = desk.put(BROADCAST).await;
    let position = Position { epoch: 1, sequence: 2 };
    let names: Vec<String> = (0..5_000).map(|number| format!("c{number}")).collect();
    let everywhere: Vec<(&str, Position)> = names.iter().map(|name| (name.as_str(), position)).collect();
    let everywhere = checkpoint(&everywhere, 0, 0);
    desk.store.save_checkpoint(&subscription, &worker_id("w"), &everywhere).await.expect("redis runs");
    let noted = desk.store.load_checkpoint(&subscription, &worker_id("w")).await.expect("redis runs");
    assert_eq!(noted, Some(everywhere));
}

#[tokio::test]
async fn a_claim_tells_how_many_workers_vanished_with_the_next_message() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(IN_ORDER).await;
    let positions = desk.publish(&c, &["0", "1"]).await;
    let crashes = |claimed: ClaimedChannel| match claimed {
        ClaimedChannel::Messages { fence, crashes, .. } => (fence, crashes),
        other => panic!("{other:?}"),
    };
    for (worker, vanished) in [("a", 0), ("b", 1), ("b", 1), ("c", 2)] {
        assert_eq!(crashes(take(&desk, &subscription, worker).await).1, vanished, "{worker}");
        expire_lease(&desk).await;
    }
    let (held, _) = crashes(take(&desk, &subscription, "c").await);
    // One that lets go has not vanished
    let release = (&held, Duration::ZERO, None);
    desk.store.block_channel(&subscription, &c, &worker_id("c"), release).await.expect("redis runs");
    let (held, vanished) = crashes(take(&desk, &subscription, "d").await);
    assert_eq!(vanished, 0);
    expire_lease(&desk).await;
    assert_eq!(crashes(take(&desk, &subscription, "e").await).1, 1);
    assert!(matches!(advance(&desk, &subscription, "d", &held, positions[0], true).await, ClaimedChannel::Lost));
    let (held, _) = crashes(take(&desk, &subscription, "e").await);
    let next = crashes(advance(&desk, &subscription, "e", &held, positions[0], true).await);
    assert_eq!(next.1, 0, "nobody had the next one");
}
