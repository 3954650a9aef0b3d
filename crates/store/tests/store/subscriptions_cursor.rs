//! What becomes of a subscription's place in a channel when its cursor has expired.

use model::subscription::SubscriptionStart;

use crate::{
    channels::channel,
    subscriptions::{SubscriptionKit, subscription_body, subscription_name},
    subscriptions_shared::CURSOR,
};

const IN_ORDER: &str = r#"{"channels":["c"],"deliver":{"log":{}},"ordering":"channel"}"#;

#[tokio::test]
async fn a_cursor_that_has_expired_is_made_again_where_its_group_is() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "new")).await;
    let positions = desk.publish(&c, &["0", "1", "2"]).await;
    desk.ack(&subscription, &c, &positions).await;
    // Going back in one channel is not where the subscription begins
    for (to, expected) in [(0, vec!["1", "2"]), (1, vec!["2"])] {
        let start = SubscriptionStart::After(positions[to]);
        desk.store.seek(&subscription_name(), start, Some(&c)).await.expect("redis runs").expect("it is there");
        desk.kit.redis_command(&["DEL", CURSOR]).await;
        assert_eq!(desk.texts(&subscription, &c, "w").await, expected);
        desk.ack(&subscription, &c, &positions).await;
        desk.kit.redis_command(&["DEL", CURSOR]).await;
        assert_eq!(desk.texts(&subscription, &c, "w").await, Vec::<String>::new(), "what was delivered");
    }
}

#[tokio::test]
async fn in_order_a_cursor_that_has_expired_is_made_again_behind_what_was_delivered() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(IN_ORDER).await;
    let positions = desk.publish(&c, &["0", "1"]).await;
    desk.store.open_channel(&subscription, &c).await.expect("redis runs").expect("it has a history");
    desk.store
        .seek(&subscription_name(), SubscriptionStart::After(positions[0]), Some(&c))
        .await
        .expect("redis runs")
        .expect("it is there");
    desk.kit.redis_command(&["DEL", CURSOR]).await;
    desk.store.open_channel(&subscription, &c).await.expect("redis runs").expect("it has a history");
    assert_eq!(desk.store.cursor_position(&subscription, &c).await.expect("redis runs"), Some(positions[0]));
}

#[tokio::test]
async fn a_cursor_is_kept_for_as_long_as_somebody_looks_for_more() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "earliest")).await;
    desk.publish(&c, &["0"]).await;
    assert_eq!(desk.texts(&subscription, &c, "w").await, ["0"]);
    desk.kit.redis_command(&["PEXPIRE", CURSOR, "1000000"]).await;
    assert_eq!(desk.texts(&subscription, &c, "w").await, Vec::<String>::new());
    let redis::Value::Int(ttl) = desk.kit.redis_command(&["PTTL", CURSOR]).await else { panic!("a number") };
    assert!(ttl > 1_000_000, "{ttl}");
}
