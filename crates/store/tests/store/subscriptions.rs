//! Durable subscriptions: where they begin, how they are changed, and what becomes of them when Redis loses them.

use common::name::{ChannelName, SubscriptionName, WorkerId};
use model::{
    message::Position,
    subscription::{Subscription, SubscriptionRequestError, SubscriptionStart, SubscriptionState},
};
use store::subscriptions::{ChannelMessages, MessageDisposition, PutSubscriptionError, Subscriptions};

use crate::{
    channels::{channel, publish},
    kit::StoreKit,
};

/// Subscriptions on a Redis of their own.
pub(crate) struct SubscriptionKit {
    pub(crate) kit: StoreKit,
    pub(crate) store: Subscriptions,
}

impl SubscriptionKit {
    pub(crate) fn start() -> Self {
        Self::with_variables(&[])
    }

    pub(crate) fn with_variables(variables: &[(&str, &str)]) -> Self {
        let kit = StoreKit::with_variables(variables);
        let store = Subscriptions::new(&kit.jobs);
        Self { kit, store }
    }

    /// Publishes texts and gives their positions.
    pub(crate) async fn publish(&self, channel: &ChannelName, bodies: &[&str]) -> Vec<Position> {
        let mut positions = Vec::new();
        for body in bodies {
            positions.push(publish(&self.kit, channel, body.as_bytes()).await.position);
        }
        positions
    }

    pub(crate) async fn put(&self, body: &str) -> Subscription {
        self.store
            .put(&subscription_name(), body.as_bytes(), 64)
            .await
            .expect("redis runs")
            .expect("allowed")
            .subscription
    }

    /// What a channel has for a worker, which opens the channel if that is needed.
    pub(crate) async fn read(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &str,
    ) -> ChannelMessages {
        self.read_some(subscription, channel, worker, 100).await
    }

    /// The same, at most that many messages.
    pub(crate) async fn read_some(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &str,
        most: usize,
    ) -> ChannelMessages {
        for _ in 0..3 {
            let channels = std::slice::from_ref(channel);
            let given =
                self.store.read_messages(subscription, channels, &worker_id(worker), most).await.expect("redis runs");
            let given = given.into_iter().next().expect("it was looked at");
            if !given.needs_open {
                return given;
            }
            self.store.open_channel(subscription, channel).await.expect("redis runs").expect("it has a history");
        }
        panic!("{channel} stays closed");
    }

    /// The same as texts.
    pub(crate) async fn texts(&self, subscription: &Subscription, channel: &ChannelName, worker: &str) -> Vec<String> {
        bodies(&self.read(subscription, channel, worker).await)
    }

    pub(crate) async fn ack(&self, subscription: &Subscription, channel: &ChannelName, positions: &[Position]) {
        let done: Vec<_> = positions.iter().map(|position| (*position, MessageDisposition::Delivered)).collect();
        self.store.ack_messages(subscription, channel, &done).await.expect("redis runs");
    }

    /// Lag and messages in flight.
    pub(crate) async fn progress(&self, subscription: &Subscription, channel: &ChannelName) -> (u64, u64) {
        let progress = self.store.channel_progress(subscription, channel).await.expect("redis runs");
        (progress.lag, progress.in_flight)
    }
}

pub(crate) fn bodies(given: &ChannelMessages) -> Vec<String> {
    given.messages.iter().map(|message| String::from_utf8(message.body.clone()).expect("text")).collect()
}

pub(crate) fn subscription_name() -> SubscriptionName {
    "s".parse().expect("a name")
}

pub(crate) fn worker_id(name: &str) -> WorkerId {
    name.parse().expect("a name")
}

/// A subscription of channels that begins somewhere.
pub(crate) fn subscription_body(channels: &str, start: &str) -> String {
    format!(r#"{{"channels":["{channels}"],"deliver":{{"log":{{}}}},"start":"{start}"}}"#)
}

#[tokio::test]
async fn it_begins_where_it_is_told_to_in_channels_that_are_there() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let positions = desk.publish(&c, &["0", "1", "2"]).await;
    // As if they had been published one second after the other, at the beginning of time
    let key = "galley:{ch:timed}:m";
    for number in 0..3 {
        let (id, at) = (format!("1-{number}"), format!("{}", (number + 1) * 1000));
        desk.kit.redis_command(&["XADD", key, &id, "b", &number.to_string(), "a", &at]).await;
    }
    desk.kit.redis_command(&["ZADD", "galley:channels", "9999999999999", "timed"]).await;
    for (of, start, expected) in [
        ("c", "new", vec!["3"]),
        ("c", "earliest", vec!["0", "1", "2", "3"]),
        ("c", "0-0", vec!["0", "1", "2", "3"]),
        ("c", &positions[1].to_string(), vec!["2", "3"]),
        ("c", &positions[2].to_string(), vec!["3"]),
        ("timed", "1970-01-01T00:00:02Z", vec!["1", "2", "3"]),
        ("timed", "1970-01-01T00:00:02.001Z", vec!["2", "3"]),
        ("timed", "1970-01-01T00:00:03.001Z", vec!["3"]),
    ] {
        let subscription = desk.put(&subscription_body(of, start)).await;
        let newest = desk.publish(&channel(of), &["3"]).await;
        assert_eq!(desk.texts(&subscription, &channel(of), "w").await, expected, "{of} from {start}");
        assert!(desk.store.delete(&subscription_name()).await.expect("redis runs"));
        desk.kit.redis_command(&["XDEL", &format!("galley:{{ch:{of}}}:m"), &newest[0].to_string()]).await;
    }
}

#[tokio::test]
async fn channels_that_come_later_are_read_from_their_first_message_on() {
    let desk = SubscriptionKit::start();
    for (number, start) in ["new", "earliest", "-PT1H", "1970-01-01T00:00:02Z"].into_iter().enumerate() {
        let later = channel(&format!("later{number}"));
        let subscription = desk.put(&subscription_body("later*", start)).await;
        assert_eq!(desk.store.open_channel(&subscription, &later).await.expect("redis runs"), None, "nothing to open");
        desk.publish(&later, &["first", "second"]).await;
        assert_eq!(desk.texts(&subscription, &later, "w").await, ["first", "second"], "{start}");
        assert!(desk.store.delete(&subscription_name()).await.expect("redis runs"));
    }
}

#[tokio::test]
async fn a_position_that_the_channel_does_not_know_is_refused() {
    let desk = SubscriptionKit::start();
    let head = desk.publish(&channel("c"), &["0"]).await[0];
    let unknown = Position { epoch: head.epoch + 1_000_000, sequence: 0 };
    for (of, position) in [("c", unknown), ("c", head.next()), ("not-there", head)] {
        let put =
            desk.store.put(&subscription_name(), subscription_body(of, &position.to_string()).as_bytes(), 64).await;
        let expected = PutSubscriptionError::UnknownPosition { channel: channel(of), position };
        assert_eq!(put.expect("redis runs").err(), Some(expected), "{of} {position}");
    }
    assert!(desk.store.get(&subscription_name()).await.expect("redis runs").is_none());
    assert_eq!(desk.kit.redis_command(&["EXISTS", "galley:subscriptions"]).await, redis::Value::Int(0));
}

#[tokio::test]
async fn a_change_goes_on_where_it_is_and_channels_that_are_new_to_it_begin_now() {
    let desk = SubscriptionKit::start();
    let (a, b) = (channel("a"), channel("b"));
    for of in [&a, &b] {
        desk.publish(of, &["0"]).await;
    }
    let first = desk.put(&subscription_body("a", "earliest")).await;
    let of_both = r#"{"channels":["a","b"],"deliver":{"log":{}},"start":"earliest","max_in_flight":7}"#;
    let put = desk.store.put(&subscription_name(), of_both.as_bytes(), 64).await.expect("redis runs").expect("allowed");
    assert!(!put.is_new);
    assert_eq!((put.subscription.created_at, put.subscription.max_in_flight), (first.created_at, 7));
    for of in [&a, &b] {
        desk.publish(of, &["1"]).await;
    }
    assert_eq!(desk.texts(&put.subscription, &a, "w").await, ["0", "1"]);
    assert_eq!(desk.texts(&put.subscription, &b, "w").await, ["1"]);
    // A channel that it leaves is forgotten, and begins now if it comes back
    desk.put(&subscription_body("a", "new")).await;
    assert_eq!(desk.kit.redis_command(&["EXISTS", "galley:{ch:b}:sub:s"]).await, redis::Value::Int(0));
    desk.publish(&b, &["2"]).await;
    let again = desk.put(of_both).await;
    desk.publish(&b, &["3"]).await;
    assert_eq!(desk.texts(&again, &b, "w").await, ["3"]);
}

#[tokio::test]
async fn a_secret_is_told_when_galley_has_made_it_and_never_again() {
    let desk = SubscriptionKit::start();
    let http = br#"{"channels":["a"],"deliver":{"http":{"url":"https://a.test/"}}}"#;
    let own = br#"{"channels":["a"],"deliver":{"http":{"url":"https://a.test/","secrets":["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]}}}"#;
    let log = br#"{"channels":["a"],"deliver":{"log":{}}}"#;
    let mut made = Vec::new();
    for (body, is_made) in
        [(&http[..], true), (http, false), (log, false), (own, false), (http, false), (log, false), (http, true)]
    {
        let put = desk.store.put(&subscription_name(), body, 64).await.expect("redis runs").expect("allowed");
        assert_eq!(put.secret.is_some(), is_made, "{}", String::from_utf8_lossy(body));
        made.extend(put.secret);
    }
    assert_ne!(made[0], made[1]);
}

#[tokio::test]
async fn going_somewhere_else_gives_up_what_lies_before_and_repeats_what_lies_behind() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "new")).await;
    let positions = desk.publish(&c, &["0", "1", "2", "3"]).await;
    assert_eq!(desk.read(&subscription, &c, "w").await.messages.len(), 4);
    desk.publish(&c, &["4", "5"]).await;
    let seek = async |start| {
        desk.store.seek(&subscription_name(), start, None).await.expect("redis runs").expect("it is there")
    };
    // Forwards, past what is in flight
    let sought = seek(SubscriptionStart::After(positions[2])).await;
    assert!(sought.generation > subscription.generation);
    assert_eq!(desk.progress(&sought, &c).await, (3, 1), "the fourth is in flight and comes again");
    assert_eq!(desk.texts(&sought, &c, "v").await, ["3", "4", "5"]);
    desk.ack(&sought, &c, &positions).await;
    assert_eq!(desk.progress(&sought, &c).await, (0, 2));
    // Backwards, with two in flight
    seek(SubscriptionStart::After(positions[0])).await;
    assert_eq!(desk.progress(&sought, &c).await, (5, 2));
    assert_eq!(desk.texts(&sought, &c, "w").await, ["1", "2", "3", "4", "5"]);
    assert_eq!(desk.progress(&sought, &c).await, (0, 5), "each is in flight once");
    seek(SubscriptionStart::New).await;
    assert_eq!(desk.progress(&sought, &c).await, (0, 0));
    assert_eq!(desk.texts(&sought, &c, "w").await, Vec::<String>::new());
    seek(SubscriptionStart::Earliest).await;
    assert_eq!(desk.read(&sought, &c, "w").await.messages.len(), 6);
}

#[tokio::test]
async fn more_than_is_given_up_in_one_call_is_given_up() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "new")).await;
    let bodies: Vec<String> = (0..450).map(|number| number.to_string()).collect();
    desk.publish(&c, &bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for _ in 0..5 {
        desk.read(&subscription, &c, "w").await;
    }
    assert_eq!(desk.progress(&subscription, &c).await, (0, 450));
    desk.store
        .seek(&subscription_name(), SubscriptionStart::New, Some(&c))
        .await
        .expect("redis runs")
        .expect("it is there");
    assert_eq!(desk.progress(&subscription, &c).await, (0, 0));
}

#[tokio::test]
async fn subscriptions_that_redis_lost_are_restored_and_removed_ones_are_not() {
    let desk = SubscriptionKit::start();
    // More than Lua takes as arguments of one call
    let many = 4_500;
    let subscription = desk.put(&subscription_body("c", "new")).await;
    let raw = |name: &str| {
        serde_json::to_string(&subscription).expect("JSON").replace(r#""name":"s""#, &format!(r#""name":"{name}""#))
    };
    let known: Vec<(Subscription, String)> = (0..many)
        .map(|number| {
            let raw = raw(&format!("s{number}"));
            (serde_json::from_str(&raw).expect("a subscription"), raw)
        })
        .collect();
    assert!(!desk.store.restore(&known).await.expect("redis runs"), "one is there");
    assert!(desk.store.delete(&subscription_name()).await.expect("redis runs"));
    let all = desk.store.list().await.expect("redis runs");
    assert!(all.subscriptions.is_empty() && !all.is_missing, "somebody removed it");
    assert!(!desk.store.restore(&known).await.expect("redis runs"), "all were removed");
    desk.kit.redis_command(&["FLUSHALL"]).await;
    assert!(desk.store.list().await.expect("redis runs").is_missing);
    assert!(!desk.store.restore(&[]).await.expect("redis runs"), "nothing is known");
    assert!(desk.store.restore(&known).await.expect("redis runs"));
    assert!(!desk.store.restore(&known[..1]).await.expect("redis runs"), "somebody was first");
    assert_eq!(desk.store.list().await.expect("redis runs").subscriptions.len(), many);
    // What is published after that is delivered: it has begun before
    desk.publish(&channel("c"), &["after"]).await;
    assert_eq!(desk.texts(&known[7].0, &channel("c"), "w").await, ["after"]);
}

#[tokio::test]
async fn of_two_writers_at_once_none_undoes_what_the_other_did() {
    let desk = SubscriptionKit::start();
    desk.put(&subscription_body("c", "new")).await;
    let name = subscription_name();
    let change = async |body: &str| desk.store.put(&name, body.as_bytes(), 64).await.expect("redis runs").map(drop);
    for _ in 0..20 {
        let body = r#"{"channels":["c"],"deliver":{"log":{}},"max_in_flight":9}"#;
        let (put, paused) = tokio::join!(change(body), desk.store.set_state(&name, SubscriptionState::Paused, None));
        put.expect("allowed");
        paused.expect("redis runs").expect("it is there");
        let now = desk.store.get(&name).await.expect("redis runs").expect("it is there");
        assert_eq!((now.max_in_flight, now.state), (9, SubscriptionState::Paused));
        let body = r#"{"channels":["c"],"deliver":{"log":{}},"max_in_flight":8}"#;
        let (put, resumed) = tokio::join!(change(body), desk.store.set_state(&name, SubscriptionState::Active, None));
        put.expect("allowed");
        resumed.expect("redis runs").expect("it is there");
        let now = desk.store.get(&name).await.expect("redis runs").expect("it is there");
        assert_eq!((now.max_in_flight, now.state), (8, SubscriptionState::Active));
    }
}

#[tokio::test]
async fn there_are_no_more_than_there_may_be_and_one_of_several_makers_is_the_first() {
    let desk = SubscriptionKit::with_variables(&[("GALLEY__SUBSCRIPTIONS__MAX", "2")]);
    let put = async |name: &str| {
        let body = subscription_body("c", "new");
        let name = name.parse().expect("a name");
        desk.store.put(&name, body.as_bytes(), 64).await.expect("redis runs").map(|put| put.is_new)
    };
    let (a, b, c, d) = tokio::join!(put("one"), put("one"), put("one"), put("one"));
    let new = [a, b, c, d].into_iter().filter(|put| *put == Ok(true)).count();
    assert_eq!(new, 1, "one made it, the others changed it");
    let (a, b, c) = tokio::join!(put("two"), put("three"), put("four"));
    let refused =
        [a, b, c].into_iter().filter(|put| *put == Err(PutSubscriptionError::TooManySubscriptions { max: 2 })).count();
    assert_eq!(refused, 2);
    assert_eq!(put("one").await, Ok(false), "changing one is no new one");
    assert_eq!(desk.store.list().await.expect("redis runs").subscriptions.len(), 2);
}

#[tokio::test]
async fn a_removed_one_leaves_nothing_behind() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    desk.publish(&c, &["0"]).await;
    let before = desk.kit.redis_keys().await;
    let subscription = desk.put(&subscription_body("c", "earliest")).await;
    let given = desk.read(&subscription, &c, "w").await;
    desk.ack(&subscription, &c, &[given.messages[0].position]).await;
    desk.store
        .set_state(&subscription_name(), SubscriptionState::Paused, None)
        .await
        .expect("redis runs")
        .expect("it is there");
    assert!(desk.store.delete(&subscription_name()).await.expect("redis runs"));
    assert!(!desk.store.delete(&subscription_name()).await.expect("redis runs"), "it is gone");
    let mut after = desk.kit.redis_keys().await;
    after.retain(|key| key != "galley:subscriptions");
    assert_eq!(after, before, "the list stays, to tell a removed one from a lost one");
    let groups = desk.kit.redis_command(&["XINFO", "GROUPS", "galley:{ch:c}:m"]).await;
    assert_eq!(groups, redis::Value::Array(Vec::new()));
}

#[tokio::test]
async fn what_cannot_be_changed_or_is_not_allowed_writes_nothing() {
    let desk = SubscriptionKit::start();
    let refused =
        async |body: &str| match desk.store.put(&subscription_name(), body.as_bytes(), 64).await.expect("redis runs") {
            Err(PutSubscriptionError::Invalid(refused)) => refused,
            _ => panic!("{body} was accepted"),
        };
    let not_allowed = desk
        .store
        .put_if(&subscription_name(), subscription_body("c", "new").as_bytes(), 64, |_| Err("no".to_owned()))
        .await;
    assert_eq!(
        not_allowed.expect("redis runs").err(),
        Some(PutSubscriptionError::Invalid(SubscriptionRequestError::Invalid("no".to_owned())))
    );
    assert!(matches!(refused(r#"{"channels":[]}"#).await, SubscriptionRequestError::Invalid(_)));
    assert_eq!(desk.kit.redis_command(&["EXISTS", "galley:subscriptions"]).await, redis::Value::Int(0));
    desk.put(&subscription_body("c", "new")).await;
    let before = desk.kit.redis_command(&["HGET", "galley:subscriptions", "s"]).await;
    let in_order = r#"{"channels":["c"],"deliver":{"log":{}},"ordering":"channel"}"#;
    assert_eq!(refused(in_order).await, SubscriptionRequestError::Immutable("ordering"));
    assert_eq!(desk.kit.redis_command(&["HGET", "galley:subscriptions", "s"]).await, before);
}
