//! Messages that are taken over, more of them than one call takes.

use std::time::Duration;

use model::message::Position;
use store::subscriptions::ReclaimFilter;

use crate::{
    channels::channel,
    subscriptions::{SubscriptionKit, subscription_body, worker_id},
};

#[tokio::test]
async fn a_worker_finds_all_that_it_was_handed_however_much_of_it_is_under_way() {
    let desk = SubscriptionKit::start();
    let (c, w) = (channel("c"), worker_id("w"));
    let subscription = desk.put(&subscription_body("c", "new")).await;
    let positions = desk.publish(&c, &["x"; 25]).await;
    assert_eq!(desk.read(&subscription, &c, "w").await.messages.len(), 25);
    // All of them stay its own while it looks: page by page they are found once each
    let (mut found, mut sizes, mut behind) = (Vec::new(), Vec::new(), None);
    loop {
        let how = ReclaimFilter { min_idle: Duration::ZERO, worker: Some(&w), after: behind };
        let over = desk.store.reclaim(&subscription, &c, &w, how, 10).await.expect("redis runs");
        sizes.push(over.messages.len());
        found.extend(over.messages.iter().map(|(message, _)| message.position));
        behind = over.resume_after;
        if behind.is_none() {
            break;
        }
    }
    assert_eq!((found, sizes), (positions, vec![10, 10, 5]));
}

#[tokio::test]
async fn a_client_that_takes_over_is_told_that_there_is_more_when_bytes_were_the_limit() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "new")).await;
    let body = "x".repeat(1 << 20);
    let positions = desk.publish(&c, &[body.as_str(); 6]).await;
    for _ in 0..2 {
        desk.read(&subscription, &c, "dead").await;
    }
    assert_eq!(desk.progress(&subscription, &c).await, (0, 6));
    let take = async |behind| {
        let how = ReclaimFilter { min_idle: Duration::ZERO, worker: None, after: behind };
        let over = desk.store.reclaim(&subscription, &c, &worker_id("w"), how, 100).await.expect("redis runs");
        let taken: Vec<Position> = over.messages.iter().map(|(message, _)| message.position).collect();
        (taken, over.resume_after)
    };
    let (first, more) = take(None).await;
    assert_eq!((first.as_slice(), more), (&positions[..4], Some(positions[3])));
    assert_eq!(take(more).await, (positions[4..].to_vec(), None));
}
