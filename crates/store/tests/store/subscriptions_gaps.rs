//! What is missing before messages of subscriptions: it is told until somebody has heard of it, and cursors that are lost hide
//! nothing and repeat nothing.

use std::time::Duration;

use model::{
    message::{Position, continuity::Gap},
    subscription::{Subscription, SubscriptionStart},
};
use redis::Value;
use store::subscriptions::{ClaimedChannel, ReclaimFilter};

use crate::{
    channels::channel,
    subscriptions::{SubscriptionKit, bodies, subscription_body, subscription_name, worker_id},
};

const HISTORY: &str = "galley:{ch:c}:m";
const CURSOR: &str = "galley:{ch:c}:sub:s";
const IN_ORDER: &str = r#"{"channels":["c"],"deliver":{"log":{}},"ordering":"channel"}"#;

async fn trim_to(desk: &SubscriptionKit, messages: usize) {
    desk.kit.redis_command(&["XTRIM", HISTORY, "MAXLEN", &messages.to_string()]).await;
}

/// What is missing before what comes next, in order.
async fn gap_in_order(desk: &SubscriptionKit, subscription: &Subscription) -> Option<Gap> {
    let take = async || {
        let lease = Duration::from_hours(1);
        desk.store.claim_channel(subscription, &channel("c"), &worker_id("w"), lease).await.expect("redis runs")
    };
    let mut taken = take().await;
    if matches!(taken, ClaimedChannel::NotOpened) {
        desk.store.open_channel(subscription, &channel("c")).await.expect("redis runs").expect("it has a history");
        taken = take().await;
    }
    let ClaimedChannel::Messages { gap, .. } = taken else { panic!("{taken:?}") };
    gap
}

#[tokio::test]
async fn what_is_missing_of_a_new_channel_is_a_gap_behind_the_very_beginning() {
    for body in [subscription_body("c", "new"), IN_ORDER.to_owned()] {
        let desk = SubscriptionKit::start();
        let c = channel("c");
        let subscription = desk.put(&body).await;
        let positions = desk.publish(&c, &["0", "1", "2", "3"]).await;
        trim_to(&desk, 2).await;
        let gap = if body == IN_ORDER {
            gap_in_order(&desk, &subscription).await
        } else {
            desk.read(&subscription, &c, "w").await.gap
        };
        assert_eq!(gap, Some(Gap { from: Position::START, to: Some(positions[2]), count: Some(2) }), "{body}");
    }
}

#[tokio::test]
async fn a_client_that_begins_with_what_is_kept_misses_nothing_that_was_not() {
    for ordering in ["none", "channel"] {
        let desk = SubscriptionKit::start();
        let c = channel("c");
        desk.publish(&c, &["0", "1", "2", "3"]).await;
        trim_to(&desk, 2).await;
        let body =
            format!(r#"{{"channels":["c"],"deliver":{{"log":{{}}}},"start":"earliest","ordering":"{ordering}"}}"#);
        let subscription = desk.put(&body).await;
        let gap = async || {
            if ordering == "channel" {
                return gap_in_order(&desk, &subscription).await;
            }
            let given = desk.read_some(&subscription, &c, "w", 1).await;
            assert!(!given.messages.is_empty());
            given.gap
        };
        assert_eq!(gap().await, None);
        desk.store
            .seek(&subscription_name(), SubscriptionStart::Earliest, None)
            .await
            .expect("redis runs")
            .expect("it is there");
        assert_eq!(gap().await, None, "somewhere else");
        // What goes after it has begun is missing
        desk.store
            .seek(&subscription_name(), SubscriptionStart::Earliest, None)
            .await
            .expect("redis runs")
            .expect("it is there");
        trim_to(&desk, 1).await;
        assert_eq!(gap().await.and_then(|gap| gap.count), Some(1));
        // Redis has lost where it was: it begins again with what is kept
        desk.kit.redis_command(&["XGROUP", "DESTROY", HISTORY, "sub:s"]).await;
        desk.kit.redis_command(&["DEL", CURSOR]).await;
        assert_eq!(gap().await, None, "lost");
    }
}

#[tokio::test]
async fn a_cursor_that_is_lost_is_made_again_where_the_group_is() {
    for body in [subscription_body("c", "new"), IN_ORDER.to_owned()] {
        let desk = SubscriptionKit::start();
        let c = channel("c");
        let subscription = desk.put(&body).await;
        let positions = desk.publish(&c, &["0", "1", "2", "3"]).await;
        let seek = async |to| {
            desk.store
                .seek(&subscription_name(), SubscriptionStart::After(to), Some(&c))
                .await
                .expect("redis runs")
                .expect("it is there");
            desk.kit.redis_command(&["DEL", CURSOR]).await;
            let opened =
                desk.store.open_channel(&subscription, &c).await.expect("redis runs").expect("it has a history");
            assert_eq!(opened.position, to);
        };
        seek(positions[2]).await;
        // Back again: what begins later than that is not passed over either
        seek(positions[0]).await;
    }
}

#[tokio::test]
async fn a_cursor_lives_on_as_long_as_somebody_looks() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "new")).await;
    desk.publish(&c, &["0"]).await;
    assert_eq!(bodies(&desk.read(&subscription, &c, "w").await), ["0"]);
    desk.kit.redis_command(&["PEXPIRE", CURSOR, "60000"]).await;
    assert!(desk.read(&subscription, &c, "w").await.messages.is_empty());
    assert!(matches!(desk.kit.redis_command(&["PTTL", CURSOR]).await, Value::Int(left) if left > 60_000));
}

#[tokio::test]
async fn a_gap_that_nobody_may_have_heard_of_is_told_again_with_the_message_behind_it() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "new")).await;
    let reclaim = async |of: Option<&str>, by: &str| {
        let of = of.map(worker_id);
        let silent = ReclaimFilter { min_idle: Duration::ZERO, worker: of.as_ref(), after: None };
        desk.store.reclaim(&subscription, &c, &worker_id(by), silent, 100).await.expect("redis runs")
    };
    let first = desk.publish(&c, &["0", "1", "2", "3"]).await;
    trim_to(&desk, 2).await;
    // The answer is lost; others read on and hear of nothing that is not theirs
    let at_first = desk.read_some(&subscription, &c, "w", 1).await.gap;
    assert_eq!(at_first.map(|gap| gap.count), Some(Some(2)));
    let next = desk.read_some(&subscription, &c, "v", 1).await;
    assert_eq!((next.messages.len(), next.gap), (1, None));
    assert_eq!(reclaim(Some("v"), "v").await.gaps, []);
    assert_eq!(reclaim(Some("w"), "w").await.gaps, at_first.into_iter().collect::<Vec<_>>());
    // Another gap does not hide it, and it is told with a message that is lost, too
    let second = desk.publish(&c, &["4", "5", "6"]).await;
    trim_to(&desk, 1).await;
    let later = desk.read(&subscription, &c, "w").await.gap;
    assert_eq!(later, Some(Gap { from: first[3], to: Some(second[2]), count: Some(2) }));
    let over = reclaim(None, "x").await;
    assert_eq!(
        (over.lost, over.gaps),
        (first[2..].to_vec(), [at_first, later].into_iter().flatten().collect::<Vec<_>>())
    );
    assert_eq!(reclaim(None, "x").await.gaps, later.into_iter().collect::<Vec<_>>(), "the first one is over");
    // A client that is done with the message has heard of what was missing before it
    desk.ack(&subscription, &c, &second[2..]).await;
    assert_eq!(reclaim(None, "x").await.gaps, []);
    // A client that goes somewhere else is told what is missing there
    desk.store
        .seek(&subscription_name(), SubscriptionStart::After(first[3]), None)
        .await
        .expect("redis runs")
        .expect("it is there");
    assert_eq!(desk.kit.redis_command(&["HGET", CURSOR, "g"]).await, Value::Nil);
}

#[tokio::test]
async fn only_so_many_gaps_wait_to_be_heard_of() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "new")).await;
    for _ in 0..30 {
        let positions = desk.publish(&c, &["0", "1"]).await;
        trim_to(&desk, 1).await;
        assert_eq!(desk.read(&subscription, &c, "w").await.gap.and_then(|gap| gap.to), Some(positions[1]));
    }
    let silent = ReclaimFilter { min_idle: Duration::ZERO, worker: None, after: None };
    let over = desk.store.reclaim(&subscription, &c, &worker_id("v"), silent, 100).await.expect("redis runs");
    assert_eq!((over.messages.len(), over.lost.len(), over.gaps.len()), (1, 29, 16));
}

#[tokio::test]
async fn a_worker_of_a_broadcast_that_begins_with_what_is_kept_misses_nothing_that_was_not() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let positions = desk.publish(&c, &["0", "1", "2", "3"]).await;
    let broadcast = r#"{"channels":["c"],"deliver":{"log":{}},"mode":"broadcast","start":"earliest"}"#;
    let subscription = desk.put(broadcast).await;
    let begin = async || desk.store.broadcast_start_position(&subscription, &c, 0).await.expect("redis runs");
    assert_eq!(begin().await, Position::START);
    trim_to(&desk, 2).await;
    assert_eq!(begin().await, positions[1]);
    let page = desk.kit.channels.read_channel_page(&c, positions[1], 10).await.expect("redis runs");
    assert_eq!((page.messages.len(), page.gap(positions[1])), (2, None));
    trim_to(&desk, 0).await;
    assert_eq!(begin().await, positions[3]);
}
