//! What comes late or at the same time: several makers of one subscription, workers that do not know yet that it is gone, and
//! what one of the same name finds afterwards.

use std::time::Duration;

use common::name::{ChannelName, SubscriptionName};
use futures_util::{StreamExt, stream::FuturesUnordered};
use model::{
    job,
    message::Position,
    subscription::{Redelivery, Subscription, SubscriptionStart, SubscriptionState},
};
use store::{
    jobs::{EnqueueRefusal, PurgeRequest},
    subscriptions::{Checkpoint, ClaimedChannel, MessageDisposition, ReclaimFilter},
};

use crate::{
    channels::channel,
    subscriptions::{SubscriptionKit, bodies, subscription_body, subscription_name, worker_id},
};

/// Rounds in which makers meet: most of them show whether one undoes what another has begun.
const ROUNDS: usize = 20;

#[tokio::test]
async fn of_several_makers_at_once_none_hides_what_follows_the_first() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    desk.publish(&c, &["before"]).await;
    for round in 0..ROUNDS {
        let name: SubscriptionName = format!("s{round}").parse().expect("a name");
        let body = subscription_body("c", "new");
        let mut makers: FuturesUnordered<_> = (0..6).map(|_| desk.store.put(&name, body.as_bytes(), 64)).collect();
        let first = makers.next().await.expect("there are six").expect("redis runs").expect("allowed");
        desk.publish(&c, &["after"]).await;
        while let Some(made) = makers.next().await {
            made.expect("redis runs").expect("allowed");
        }
        let given = desk.read(&first.subscription, &c, "w").await;
        assert_eq!(bodies(&given), ["after"], "round {round}");
    }
}

#[tokio::test]
async fn a_worker_that_is_late_opens_nothing_of_one_that_is_removed_or_has_left_the_channel() {
    let desk = SubscriptionKit::start();
    let (c, d) = (channel("c"), channel("d"));
    desk.publish(&c, &["0"]).await;
    desk.publish(&d, &["0"]).await;
    let no_groups = redis::Value::Array(Vec::new());
    let before = desk.put(&subscription_body("*", "new")).await;
    desk.put(&subscription_body("c", "new")).await;
    let groups_of_d = ["XINFO", "GROUPS", "galley:{ch:d}:m"];
    assert_eq!(desk.kit.redis_command(&groups_of_d).await, no_groups);
    assert_eq!(desk.store.open_channel(&before, &d).await.expect("redis runs"), None, "it has left the channel");
    assert_eq!(desk.kit.redis_command(&groups_of_d).await, no_groups);
    assert!(desk.store.open_channel(&before, &c).await.expect("redis runs").is_some());
    assert!(desk.store.delete(&subscription_name()).await.expect("redis runs"));
    let keys = desk.kit.redis_keys().await;
    assert_eq!(desk.store.open_channel(&before, &c).await.expect("redis runs"), None, "it is removed");
    assert_eq!(desk.kit.redis_command(&["XINFO", "GROUPS", "galley:{ch:c}:m"]).await, no_groups);
    assert_eq!(desk.kit.redis_keys().await, keys);
}

#[tokio::test]
async fn what_is_written_late_is_swept_up_and_the_next_of_that_name_inherits_nothing() {
    let desk = SubscriptionKit::start();
    let before = desk.put(&subscription_body("c", "new")).await;
    let keys = desk.kit.redis_keys().await;
    assert!(!desk.store.clear_if_deleted(&before).await.expect("redis runs"), "it is there");
    assert!(desk.store.delete(&subscription_name()).await.expect("redis runs"));
    let late = async || {
        desk.store.record_failure(&before, true, true).await.expect("redis runs");
        desk.kit.jobs.set_queue_paused(&before.queue(), true).await.expect("redis runs").expect("allowed");
    };
    late().await;
    assert!(desk.store.clear_if_deleted(&before).await.expect("redis runs"));
    assert_eq!(desk.kit.redis_keys().await, keys, "nothing but the list");
    late().await;
    let after = desk.put(&subscription_body("c", "new")).await;
    assert_eq!(desk.store.counters(&after).await.expect("redis runs").failing_since, None);
    assert!(!desk.kit.jobs.queue_control(&after.queue()).await.expect("redis runs").is_paused);
}

#[tokio::test]
async fn the_queue_waits_exactly_when_the_subscription_does_a_client_that_was_last() {
    let desk = SubscriptionKit::start();
    let made = desk.put(&subscription_body("c", "new")).await;
    for round in 0..ROUNDS {
        let states = [
            SubscriptionState::Paused,
            SubscriptionState::Active,
            SubscriptionState::Paused,
            SubscriptionState::Active,
        ];
        let mut changes: FuturesUnordered<_> =
            states.into_iter().map(|state| desk.store.set_state(&made.name, state, None)).collect();
        while let Some(changed) = changes.next().await {
            changed.expect("redis runs").expect("it is there");
        }
        let state = desk.store.get(&subscription_name()).await.expect("redis runs").expect("it is there").state;
        let is_paused = desk.kit.jobs.queue_control(&made.queue()).await.expect("redis runs").is_paused;
        assert_eq!(is_paused, state == SubscriptionState::Paused, "round {round}");
    }
}

#[tokio::test]
async fn what_is_no_text_hides_no_other_subscription() {
    let desk = SubscriptionKit::start();
    desk.put(&subscription_body("c", "new")).await;
    let script = r"redis.call('HSET', KEYS[1], 'odd', '\255', '\254', '{}', 'other', redis.call('HGET', KEYS[1], 's'))";
    desk.kit.redis_command(&["EVAL", script, "1", "galley:subscriptions"]).await;
    let known = desk.store.list().await.expect("one that is damaged is left alone").subscriptions;
    let names: Vec<&str> = known.iter().map(|(subscription, _)| subscription.name.as_str()).collect();
    assert_eq!(names, ["s"], "and so is one that is stored under another's name");
}

#[tokio::test]
async fn a_client_that_was_seen_in_the_future_is_gone_when_redis_has_set_its_clock_back() {
    let desk = SubscriptionKit::start();
    let made = desk.put(&subscription_body("c", "new")).await;
    desk.kit.redis_command(&["ZADD", "galley:sub:s:workers", "99999999999999", "ghost"]).await;
    let worker = worker_id("w");
    let members = desk.store.register_worker(&made, &worker, Duration::from_secs(10)).await.expect("redis runs");
    let channels: Vec<ChannelName> = (0..30).map(|number| channel(&format!("c{number}"))).collect();
    assert!(channels.iter().all(|channel| members.is_preferred(&worker, channel)));
}

#[tokio::test]
async fn a_worker_that_has_not_heard_of_a_new_subscription_of_the_name_reads_and_settles_nothing_of_it() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    for ordering in ["none", "channel"] {
        let body = format!(
            r#"{{"channels":["c"],"deliver":{{"log":{{}}}},"ordering":"{ordering}","start":"earliest","max_in_flight":1}}"#
        );
        desk.publish(&c, &["first"]).await;
        let old = desk.put(&body).await;
        assert!(desk.store.open_channel(&old, &c).await.expect("redis runs").is_some());
        assert!(desk.store.delete(&subscription_name()).await.expect("redis runs"));
        assert_eq!(desk.store.open_channel(&old, &c).await.expect("redis runs"), None, "it is deleted");
        let new = desk.put(&body).await;
        assert_ne!(old.created_at, new.created_at);
        let (worker, other) = (worker_id("old"), worker_id("new"));
        let lease = Duration::from_mins(1);
        let reads_nothing = async || {
            let read = desk.store.read_messages(&old, std::slice::from_ref(&c), &worker, 9).await.expect("redis runs");
            assert!(read[0].needs_open && read[0].messages.is_empty());
            let claimed = desk.store.claim_channel(&old, &c, &worker, lease).await.expect("redis runs");
            assert!(matches!(claimed, ClaimedChannel::NotOpened), "{claimed:?}");
            assert_eq!(desk.store.open_channel(&old, &c).await.expect("redis runs"), None);
        };
        reads_nothing().await;
        if ordering == "channel" {
            let claimed = desk.store.claim_channel(&new, &c, &other, lease).await.expect("redis runs");
            assert!(matches!(claimed, ClaimedChannel::Messages { .. }), "{claimed:?}");
        } else {
            let given = desk.read(&new, &c, "new").await;
            assert_eq!(bodies(&given), ["first"]);
            let done = [(given.messages[0].position, MessageDisposition::Delivered)];
            desk.store.ack_messages(&old, &c, &done).await.expect("redis runs");
            let all = ReclaimFilter { min_idle: Duration::ZERO, worker: None, after: None };
            let taken = desk.store.reclaim(&old, &c, &worker, all, 9).await.expect("redis runs");
            assert!(taken.messages.is_empty() && taken.lost.is_empty());
            let taken = desk.store.reclaim(&new, &c, &other, all, 9).await.expect("redis runs");
            assert_eq!(taken.messages.len(), 1, "it is not acknowledged");
        }
        reads_nothing().await;
        assert!(desk.store.delete(&subscription_name()).await.expect("redis runs"));
        desk.kit.redis_command(&["FLUSHDB"]).await;
    }
}

#[tokio::test]
async fn who_saved_a_checkpoint_before_is_told() {
    let desk = SubscriptionKit::start();
    let made = desk.put(r#"{"channels":["c"],"deliver":{"log":{}},"mode":"broadcast"}"#).await;
    for (process, before) in [("a", ""), ("b", "a"), ("b", "b"), ("a", "b")] {
        let checkpoint = Checkpoint { process: process.to_owned(), ..Checkpoint::default() };
        let earlier = desk.store.save_checkpoint(&made, &worker_id("w"), &checkpoint).await.expect("redis runs");
        assert_eq!((earlier.exists, earlier.process.as_str()), (!before.is_empty(), before));
    }
}

#[tokio::test]
async fn a_worker_of_a_broadcast_notes_what_has_changed_and_hears_when_the_rest_is_lost() {
    let desk = SubscriptionKit::start();
    let (c, d) = (channel("c"), channel("d"));
    let (at_c, at_d) = (desk.publish(&c, &["0"]).await[0], desk.publish(&d, &["0"]).await[0]);
    let made = desk.put(r#"{"channels":["c","d"],"deliver":{"log":{}},"mode":"broadcast"}"#).await;
    let worker = worker_id("w");
    let note = async |positions: &[(&ChannelName, _)], is_whole| {
        let positions = positions.iter().map(|(channel, position)| ((*channel).clone(), *position)).collect();
        let checkpoint = Checkpoint { positions, is_complete: is_whole, ..Checkpoint::default() };
        desk.store.save_checkpoint(&made, &worker, &checkpoint).await.expect("redis runs").exists
    };
    let noted = async || {
        let found = desk.store.load_checkpoint(&made, &worker).await.expect("redis runs").expect("it was noted");
        found.positions.len()
    };
    assert!(!note(&[(&c, at_c), (&d, at_d)], true).await, "nothing was noted before");
    assert!(note(&[(&c, at_c)], false).await);
    assert_eq!(noted().await, 2, "what has not changed stays");
    assert!(note(&[(&c, at_c)], true).await);
    assert_eq!(noted().await, 1, "what is whole has no more");
    desk.kit.redis_command(&["FLUSHDB"]).await;
    assert!(!note(&[(&d, at_d)], false).await, "all the rest is lost");
}

#[tokio::test]
async fn channels_with_silent_messages_are_found_among_many() {
    let desk = SubscriptionKit::start();
    let made = desk.put(&subscription_body("c*", "new")).await;
    let channels: Vec<ChannelName> = (0..300).map(|number| channel(&format!("c{number}"))).collect();
    for at in [7, 299] {
        desk.publish(&channels[at], &["x"]).await;
        assert_eq!(desk.read(&made, &channels[at], "w").await.messages.len(), 1);
    }
    let find = async |silent, of: Option<&str>| {
        let of = of.map(worker_id);
        let found = desk.store.find_idle(&made, &channels, silent, of.as_ref()).await.expect("redis runs");
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(find(Duration::ZERO, None).await, ["c7", "c299"]);
    assert_eq!(find(Duration::ZERO, Some("w")).await, ["c7", "c299"]);
    assert!(find(Duration::ZERO, Some("v")).await.is_empty());
    assert!(find(Duration::from_hours(1), None).await.is_empty());
}

/// Lets the first message of `c` go on as a job of a subscription.
async fn retry_as_job(desk: &SubscriptionKit, subscription: &Subscription) -> Result<(), EnqueueRefusal> {
    let page = desk.kit.channels.read_channel_page(&channel("c"), Position::START, 1).await.expect("redis runs");
    let message = page.messages.into_iter().next().expect("there is one");
    let redelivery = Redelivery::new(subscription, &channel("c"), &message, false);
    let now = desk.kit.jobs.now().await.expect("redis runs");
    let job = redelivery.to_job(subscription, now, Vec::new(), now).expect("a job");
    desk.kit.jobs.enqueue(job, common::trace_context::TraceContext::default(), now).await.expect("redis runs").map(drop)
}

#[tokio::test]
async fn a_message_that_comes_again_after_a_seek_or_for_another_of_that_name_becomes_another_job() {
    let desk = SubscriptionKit::start();
    let made = desk.put(&subscription_body("c", "new")).await;
    desk.publish(&channel("c"), &["0"]).await;
    assert_eq!(retry_as_job(&desk, &made).await, Ok(()));
    assert!(matches!(retry_as_job(&desk, &made).await, Err(EnqueueRefusal::Duplicate(_))), "however often it is tried");
    // Its end is kept for a while, and would stand in the way
    let cancel = async || {
        let purge =
            PurgeRequest { states: vec![job::JobState::Scheduled, job::JobState::Available], limit: 10, after: None };
        assert_eq!(desk.kit.jobs.purge(&made.queue(), &purge).await.expect("redis runs").count, 1);
    };
    cancel().await;
    assert!(matches!(retry_as_job(&desk, &made).await, Err(EnqueueRefusal::Duplicate(_))), "it is over");
    let sought = desk
        .store
        .seek(&subscription_name(), SubscriptionStart::Earliest, None)
        .await
        .expect("redis runs")
        .expect("it is there");
    assert_eq!(retry_as_job(&desk, &sought).await, Ok(()));
    assert!(desk.store.delete(&subscription_name()).await.expect("redis runs"));
    let another = desk.put(&subscription_body("c", "earliest")).await;
    assert_eq!(retry_as_job(&desk, &another).await, Ok(()));
    cancel().await;
}

#[tokio::test]
async fn failures_count_by_message_until_a_success_and_only_those_of_the_target() {
    let desk = SubscriptionKit::start();
    let made = desk.put(&subscription_body("c", "new")).await;
    let fail = async |is_target_at_fault, is_first| {
        desk.store.record_failure(&made, is_target_at_fault, is_first).await.expect("redis runs")
    };
    let refused = fail(false, true).await;
    assert_eq!((refused.failures, refused.duration), (0, Duration::ZERO), "the message is at fault");
    assert_eq!(desk.store.counters(&made).await.expect("redis runs").failing_since, None);
    for (is_first, failures) in [(true, 1), (false, 1), (true, 2)] {
        assert_eq!(fail(true, is_first).await.failures, failures);
    }
    assert_eq!(fail(false, true).await.failures, 2);
    desk.store.record_recovery(&made.name).await.expect("redis runs");
    assert_eq!(fail(true, true).await.failures, 1);
    let position = desk.publish(&channel("c"), &["0"]).await[0];
    assert_eq!(desk.read(&made, &channel("c"), "w").await.messages.len(), 1);
    let done = [(position, MessageDisposition::Delivered)];
    desk.store.ack_messages(&made, &channel("c"), &done).await.expect("redis runs");
    assert_eq!(fail(true, true).await.failures, 1, "a delivery is a success, too");
    desk.put(r#"{"channels":["c"],"deliver":{"command":"other"}}"#).await;
    assert_eq!(fail(true, true).await.failures, 1, "another target has not failed yet");
    assert_eq!(desk.store.counters(&made).await.expect("redis runs").failed, 8);
}

#[tokio::test]
async fn only_a_client_that_knows_it_as_it_is_gives_up_on_a_target() {
    let desk = SubscriptionKit::start();
    let old = desk.put(&subscription_body("c", "new")).await;
    let state = async || desk.store.get(&subscription_name()).await.expect("redis runs").expect("it is there").state;
    // Somebody mends it, and an answer of the old target comes late
    let mended = desk.put(&subscription_body("c*", "new")).await;
    desk.store.disable(&old, "gone").await.expect("redis runs");
    assert_eq!(state().await, SubscriptionState::Active);
    desk.store.disable(&mended, "gone").await.expect("redis runs");
    assert_eq!(state().await, SubscriptionState::Disabled);
    let resumed = desk
        .store
        .set_state(&subscription_name(), SubscriptionState::Active, None)
        .await
        .expect("redis runs")
        .expect("it is there");
    desk.store.disable(&mended, "gone").await.expect("redis runs");
    assert_eq!(state().await, SubscriptionState::Active);
    assert!(resumed.updated_at > mended.updated_at, "however fast one change follows another");
}
