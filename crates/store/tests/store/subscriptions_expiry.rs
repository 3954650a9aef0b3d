//! What expires by itself raises no alarm: neither lag nor a gap, unless messages went with it.

use std::time::Duration;

use common::name::ChannelName;
use model::{
    message::{Position, continuity::Gap},
    subscription::Subscription,
};
use store::subscriptions::{Checkpoint, ClaimedChannel, MessageDisposition};

use crate::{
    channels::channel,
    subscriptions::{SubscriptionKit, bodies, subscription_body, worker_id},
};

const HISTORY: &str = "galley:{ch:c}:m";
const CURSOR: &str = "galley:{ch:c}:sub:s";
const IN_ORDER: &str = r#"{"channels":["c"],"deliver":{"log":{}},"ordering":"channel"}"#;
const BROADCAST: &str = r#"{"channels":["c"],"deliver":{"log":{}},"mode":"broadcast"}"#;
const LEASE: Duration = Duration::from_hours(1);

/// Delivers everything that waits: the bodies, and the gaps before them.
async fn deliver_all(desk: &SubscriptionKit, subscription: &Subscription, c: &ChannelName) -> (Vec<String>, Vec<Gap>) {
    let (mut texts, mut gaps) = (Vec::new(), Vec::new());
    if subscription.ordering == model::subscription::DeliveryOrdering::None {
        let read = desk.read(subscription, c, "w").await;
        gaps.extend(read.gap);
        texts.extend(bodies(&read));
        let positions: Vec<Position> = read.messages.iter().map(|message| message.position).collect();
        desk.ack(subscription, c, &positions).await;
        return (texts, gaps);
    }
    let worker = worker_id("w");
    let mut claimed = desk.store.claim_channel(subscription, c, &worker, LEASE).await.expect("redis runs");
    loop {
        match claimed {
            ClaimedChannel::Messages { fence, messages, gap, .. } => {
                gaps.extend(gap);
                let message = messages.first().expect("a message");
                texts.push(String::from_utf8_lossy(&message.body).into_owned());
                let done = (&fence, message.position, MessageDisposition::Delivered, true);
                claimed = desk.store.advance_channel(subscription, c, &worker, LEASE, done).await.expect("redis runs");
            }
            ClaimedChannel::NotOpened => {
                let opened = desk.store.open_channel(subscription, c).await.expect("redis runs").expect("a history");
                assert!(!opened.was_recreated, "no alarm");
                claimed = desk.store.claim_channel(subscription, c, &worker, LEASE).await.expect("redis runs");
            }
            ClaimedChannel::Empty => return (texts, gaps),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_history_that_expires_after_all_was_delivered_is_no_gap_and_one_with_unread_messages_is() {
    for body in [subscription_body("c", "new"), IN_ORDER.to_owned()] {
        let desk = SubscriptionKit::start();
        let c = channel("c");
        let subscription = desk.put(&body).await;
        let positions = desk.publish(&c, &["0", "1"]).await;
        assert_eq!(deliver_all(&desk, &subscription, &c).await, (vec!["0".to_owned(), "1".to_owned()], vec![]));
        desk.kit.channels.trim_channel(&c).await.expect("redis runs");
        desk.kit.redis_command(&["DEL", HISTORY]).await;
        let page = async |after| desk.kit.channels.read_channel_page(&c, after, 10).await.expect("redis runs");
        assert_eq!(page(positions[1]).await.gap(positions[1]), None, "nothing was published since");
        assert!(page(positions[0]).await.gap(positions[0]).is_some(), "a reader missed the last one");
        let next = desk.publish(&c, &["2"]).await[0];
        assert!(next.epoch > positions[1].epoch);
        assert_eq!(page(positions[1]).await.gap(positions[1]), None);
        assert!(page(positions[0]).await.gap(positions[0]).is_some());
        assert_eq!(desk.progress(&subscription, &c).await.0, 1);
        assert_eq!(deliver_all(&desk, &subscription, &c).await, (vec!["2".to_owned()], vec![]), "{body}");
        // This time a message is lost with the history
        desk.publish(&c, &["3"]).await;
        desk.kit.channels.trim_channel(&c).await.expect("redis runs");
        desk.kit.redis_command(&["DEL", HISTORY]).await;
        let later = desk.publish(&c, &["4"]).await[0];
        let (texts, gaps) = deliver_all(&desk, &subscription, &c).await;
        assert_eq!(texts, ["4"]);
        assert_eq!(gaps, [Gap { from: next, to: Some(later), count: None }], "{body}");
        // And the trimming that follows reports no loss
        assert_eq!(desk.kit.channels.trim_channel(&c).await.expect("redis runs").losses, []);
    }
}

#[tokio::test]
async fn lag_rises_with_a_publish_and_with_nothing_else() {
    for body in [subscription_body("c", "new"), IN_ORDER.to_owned()] {
        let desk = SubscriptionKit::start();
        let c = channel("c");
        desk.publish(&c, &["before"]).await;
        let subscription = desk.put(&body).await;
        desk.publish(&c, &["0", "1"]).await;
        deliver_all(&desk, &subscription, &c).await;
        assert_eq!(desk.progress(&subscription, &c).await, (0, 0));
        // Nobody read the channel for so long that the cursor expired, and the history lives on
        desk.kit.redis_command(&["DEL", CURSOR]).await;
        assert_eq!(desk.progress(&subscription, &c).await, (0, 0), "{body}");
        desk.publish(&c, &["2"]).await;
        assert_eq!(desk.progress(&subscription, &c).await, (1, 0), "{body}");
    }
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(BROADCAST).await;
    desk.publish(&c, &["0", "1"]).await;
    // Later than both, whatever the publisher knows of Redis's clock
    let now = desk.kit.jobs.now().await.expect("redis runs") + 1000;
    let joined = Checkpoint { first_seen_at: Some(now), is_complete: true, ..Checkpoint::default() };
    desk.store.save_checkpoint(&subscription, &worker_id("new"), &joined).await.expect("redis runs");
    let lag = desk.store.broadcast_lag(&subscription, &[&c]).await.expect("redis runs");
    assert_eq!(lag.iter().map(|worker| worker.lag).collect::<Vec<_>>(), [0], "it begins with what comes");
}
