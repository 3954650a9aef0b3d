//! Consumer groups of subscriptions: which there are, also of channels that come when no worker runs, and which must go because
//! nobody would ever move them.

use common::name::{ChannelName, SubscriptionName};
use model::subscription::{Subscription, SubscriptionStart};
use redis::Value;
use store::subscriptions::PutSubscriptionError;

use crate::{
    channels::channel,
    subscriptions::{SubscriptionKit, bodies, subscription_body, subscription_name},
};

const BROADCAST: &str = r#"{"channels":["c*"],"deliver":{"log":{}},"mode":"broadcast"}"#;
/// Jobs whose purge takes long enough for somebody else to come in between.
const MANY_JOBS: usize = 6000;

/// The groups on the history of a channel.
async fn groups(desk: &SubscriptionKit, channel: &str) -> Vec<String> {
    let mut command = redis::cmd("XINFO");
    command.arg("GROUPS").arg(format!("galley:{{ch:{channel}}}:m"));
    let groups: Vec<std::collections::HashMap<String, Value>> =
        command.query_async(&mut desk.kit.server.connection().await).await.expect("redis runs");
    let mut names: Vec<String> =
        groups.iter().map(|group| redis::from_redis_value(group["name"].clone()).expect("text")).collect();
    names.sort();
    names
}

async fn put_as(desk: &SubscriptionKit, name: &str, body: &str) -> Result<Subscription, PutSubscriptionError> {
    let name: SubscriptionName = name.parse().expect("a name");
    desk.store.put(&name, body.as_bytes(), 64).await.expect("redis runs").map(|put| put.subscription)
}

async fn exists(desk: &SubscriptionKit, key: &str) -> bool {
    desk.kit.redis_command(&["EXISTS", key]).await == Value::Int(1)
}

#[tokio::test]
async fn a_broadcast_has_no_groups_and_those_that_it_had_go() {
    let desk = SubscriptionKit::start();
    desk.publish(&channel("c"), &["0", "1"]).await;
    let broadcast = desk.put(BROADCAST).await;
    assert_eq!(groups(&desk, "c").await, [""; 0], "made");
    desk.store
        .seek(&subscription_name(), SubscriptionStart::Earliest, None)
        .await
        .expect("redis runs")
        .expect("it is there");
    assert_eq!(groups(&desk, "c").await, [""; 0], "somewhere else");
    desk.publish(&channel("c-later"), &["0"]).await;
    assert_eq!(groups(&desk, "c-later").await, [""; 0], "a new channel");
    // An earlier version made them
    for make_again in [true, false] {
        desk.kit.redis_command(&["XGROUP", "CREATE", "galley:{ch:c}:m", &broadcast.group(), "0"]).await;
        desk.kit.redis_command(&["HSET", "galley:{ch:c}:sub:s", "d", "0-0"]).await;
        if make_again {
            desk.put(BROADCAST).await;
        } else {
            desk.store
                .seek(&subscription_name(), SubscriptionStart::New, None)
                .await
                .expect("redis runs")
                .expect("it is there");
        }
        assert_eq!(groups(&desk, "c").await, [""; 0], "made again: {make_again}");
        assert!(!exists(&desk, "galley:{ch:c}:sub:s").await);
    }
}

#[tokio::test]
async fn one_that_finds_no_room_leaves_the_channels_again() {
    let desk = SubscriptionKit::with_variables(&[("GALLEY__SUBSCRIPTIONS__MAX", "1")]);
    desk.publish(&channel("c"), &["0"]).await;
    // All of them see that there is room, and one of them has it
    let names: Vec<String> = (0..8).map(|number| format!("s{number}")).collect();
    let body = subscription_body("c", "earliest");
    let made = futures_util::future::join_all(names.iter().map(|name| put_as(&desk, name, &body))).await;
    let made: Vec<&Subscription> = made.iter().filter_map(|made| made.as_ref().ok()).collect();
    let [made] = made[..] else { panic!("{} were made", made.len()) };
    assert_eq!(groups(&desk, "c").await, [made.group()]);
    assert_eq!(bodies(&desk.read(made, &channel("c"), "w").await), ["0"]);
}

#[tokio::test]
async fn a_subscription_that_is_made_while_the_last_of_that_name_is_cleared_away_keeps_what_it_has() {
    let desk = SubscriptionKit::start();
    let (c, body) = (channel("c"), subscription_body("c", "earliest"));
    desk.publish(&c, &["0"]).await;
    let queue = desk.put(&body).await.queue();
    let job = format!(r#"{{"type":"t","args":[],"options":{{"queue":"{queue}"}}}}"#);
    for _ in 0..MANY_JOBS / 100 {
        futures_util::future::join_all((0..100).map(|_| desk.kit.enqueue(&job))).await;
    }
    let removing = tokio::spawn({
        let store = desk.store.clone();
        async move { store.delete(&subscription_name()).await }
    });
    testkit::eventually("it is off the list", || async {
        desk.store.get(&subscription_name()).await.expect("redis runs").is_none().then_some(())
    })
    .await;
    let again = desk.put(&body).await;
    let its_own = desk.kit.enqueue(&job).await;
    assert!(removing.await.expect("no panic").expect("redis runs"));
    assert_eq!(desk.kit.state(its_own).await, "available");
    assert_eq!(desk.texts(&again, &c, "w").await, ["0"]);
}

#[tokio::test]
async fn a_channel_that_comes_when_no_worker_runs_is_kept_for_its_subscriptions() {
    let desk = SubscriptionKit::with_variables(&[
        ("GALLEY__CHANNELS__HISTORY_MAX", "100"),
        ("GALLEY__CHANNELS__BACKLOG_MAX_MESSAGES", "5000"),
    ]);
    let shared = put_as(&desk, "shared", &subscription_body("c*", "new")).await.expect("allowed");
    let in_order = r#"{"channels":["c1"],"deliver":{"log":{}},"ordering":"channel"}"#;
    let in_order = put_as(&desk, "in-order", in_order).await.expect("allowed");
    put_as(&desk, "other", &subscription_body("d", "new")).await.expect("allowed");
    put_as(&desk, "broadcast", BROADCAST).await.expect("allowed");
    let c: ChannelName = channel("c1");
    for _ in 0..20 {
        desk.publish(&c, &["x"; 50]).await;
    }
    assert_eq!(groups(&desk, "c1").await, [in_order.group(), shared.group()]);
    let given = desk.read_some(&shared, &c, "w", 2000).await;
    assert_eq!((given.messages.len(), given.gap), (1000, None));
    // What was not needed may be gone by then, and begins anew
    desk.kit.redis_command(&["DEL", "galley:{ch:c1}:m", "galley:{ch:c1}:state"]).await;
    let next = desk.publish(&c, &["y"]).await[0];
    assert_eq!(groups(&desk, "c1").await, [in_order.group(), shared.group()]);
    assert!(desk.read(&shared, &c, "w").await.gap.is_some_and(|gap| gap.to == Some(next)));
    assert_eq!(desk.kit.redis_command(&["HGET", "galley:{ch:c1}:state", "s"]).await, Value::BulkString(b"1".to_vec()));
    // None of that for a channel that nobody wants
    desk.publish(&channel("e"), &["z"]).await;
    assert_eq!(desk.kit.redis_command(&["HGET", "galley:{ch:e}:state", "s"]).await, Value::Nil);
}

#[tokio::test]
async fn a_new_channel_finds_its_subscriptions_among_many() {
    let desk = SubscriptionKit::start();
    let subscription = desk.put(&subscription_body("c*", "new")).await;
    let known: Vec<(Subscription, String)> = (0..3000)
        .map(|number| {
            let raw = serde_json::to_string(&subscription).expect("JSON");
            let raw = raw.replace(r#""name":"s""#, &format!(r#""name":"s{number}""#));
            let raw = if number % 10 == 0 { raw } else { raw.replace("c*", "other") };
            (serde_json::from_str(&raw).expect("a subscription"), raw)
        })
        .collect();
    desk.kit.redis_command(&["DEL", "galley:subscriptions"]).await;
    assert!(desk.store.restore(&known).await.expect("redis runs"));
    desk.publish(&channel("c"), &["0"]).await;
    assert_eq!(groups(&desk, "c").await.len(), 300);
    assert_eq!(bodies(&desk.read(&known[10].0, &channel("c"), "w").await), ["0"]);
}

#[tokio::test]
async fn the_maintenance_destroys_groups_of_subscriptions_that_are_not_there() {
    let desk = SubscriptionKit::with_variables(&[("GALLEY__MAINTENANCE__HISTORY_TRIM_MS", "50")]);
    let c = channel("c");
    let shared = desk.put(&subscription_body("c", "new")).await;
    put_as(&desk, "away", &subscription_body("d", "new")).await.expect("allowed");
    put_as(&desk, "broadcast", BROADCAST).await.expect("allowed");
    desk.publish(&c, &["0", "1"]).await;
    for group in ["sub:nobody", "sub:away", "sub:broadcast", "somebody"] {
        desk.kit.redis_command(&["XGROUP", "CREATE", "galley:{ch:c}:m", group, "0"]).await;
    }
    desk.kit.redis_command(&["HSET", "galley:{ch:c}:sub:nobody", "d", "0-0"]).await;
    desk.kit.redis_command(&["HSET", "galley:subscriptions", "damaged", "{"]).await;
    desk.kit.redis_command(&["XGROUP", "CREATE", "galley:{ch:c}:m", "sub:damaged", "0"]).await;
    let maintenance = desk.kit.start_maintenance();
    let left = ["somebody".to_owned(), "sub:damaged".to_owned(), shared.group()];
    testkit::eventually("what nobody has is gone", || async { (groups(&desk, "c").await == left).then_some(()) }).await;
    assert!(!exists(&desk, "galley:{ch:c}:sub:nobody").await);
    maintenance.stop().await;
    assert_eq!(bodies(&desk.read(&shared, &c, "w").await), ["0", "1"]);
}

#[tokio::test]
async fn the_maintenance_destroys_no_groups_when_redis_has_lost_the_list() {
    let desk = SubscriptionKit::with_variables(&[
        ("GALLEY__MAINTENANCE__HISTORY_TRIM_MS", "50"),
        ("GALLEY__CHANNELS__HISTORY_MAX_AGE_MS", "1000"),
    ]);
    let subscription = desk.put(&subscription_body("c", "new")).await;
    desk.publish(&channel("c"), &["0"]).await;
    desk.publish(&channel("z"), &["0"]).await;
    desk.kit.redis_command(&["DEL", "galley:subscriptions"]).await;
    let maintenance = desk.kit.start_maintenance();
    // Rounds go through the channels again and again: of the last one nothing is kept after some of them
    for _ in 0..3 {
        testkit::eventually("a round is over", || async {
            (desk.kit.redis_command(&["XLEN", "galley:{ch:z}:m"]).await == Value::Int(0)).then_some(())
        })
        .await;
        desk.publish(&channel("z"), &["0"]).await;
    }
    maintenance.stop().await;
    assert_eq!(groups(&desk, "c").await, [subscription.group()]);
}
