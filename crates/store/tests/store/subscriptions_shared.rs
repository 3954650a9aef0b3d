//! Messages of shared subscriptions: handing them out, taking them over, what is missing, and groups that Redis lost.

use std::{collections::BTreeSet, time::Duration};

use common::name::ChannelName;
use model::{
    message::{Position, continuity::Gap},
    subscription::Subscription,
};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use store::subscriptions::{MessageDisposition, ReclaimFilter, ReclaimedMessages};

use crate::{
    channels::channel,
    subscriptions::{SubscriptionKit, subscription_body, subscription_name, worker_id},
};

pub(crate) const GROUP: &str = "sub:s";
pub(crate) const HISTORY: &str = "galley:{ch:c}:m";
pub(crate) const CURSOR: &str = "galley:{ch:c}:sub:s";

async fn reclaim(
    desk: &SubscriptionKit,
    subscription: &Subscription,
    of: Option<&str>,
    worker: &str,
    silent: Duration,
) -> ReclaimedMessages {
    let of = of.map(worker_id);
    let how = ReclaimFilter { min_idle: silent, worker: of.as_ref(), after: None };
    desk.store.reclaim(subscription, &channel("c"), &worker_id(worker), how, 100).await.expect("redis runs")
}

fn reclaimed_positions(over: &ReclaimedMessages) -> Vec<(Position, u32)> {
    over.messages.iter().map(|(message, times)| (message.position, *times)).collect()
}

/// Lets a worker have been silent for an hour.
async fn make_idle(desk: &SubscriptionKit, worker: &str, positions: &[Position]) {
    for position in positions {
        let position = position.to_string();
        let words = ["XCLAIM", HISTORY, GROUP, worker, "0", &position, "IDLE", "3600000", "JUSTID"];
        desk.kit.redis_command(&words).await;
    }
}

#[tokio::test]
async fn each_message_goes_to_one_worker_and_counts_until_it_is_done_with() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "new")).await;
    let positions = desk.publish(&c, &["0", "1", "2", "3"]).await;
    assert_eq!(desk.progress(&subscription, &c).await, (4, 0));
    let some = desk.read_some(&subscription, &c, "v", 3).await;
    assert_eq!((some.messages.len(), some.gap), (3, None));
    assert_eq!(desk.progress(&subscription, &c).await, (1, 3));
    assert_eq!(desk.texts(&subscription, &c, "w").await, ["3"]);
    assert_eq!(desk.texts(&subscription, &c, "w").await, Vec::<String>::new());
    let done = [
        (positions[0], MessageDisposition::Delivered),
        (positions[1], MessageDisposition::Filtered),
        (positions[2], MessageDisposition::RetriedAsJob),
    ];
    for _ in 0..2 {
        desk.store.ack_messages(&subscription, &c, &done).await.expect("redis runs");
    }
    assert_eq!(desk.progress(&subscription, &c).await, (0, 1));
    let counters = desk.store.counters(&subscription).await.expect("redis runs");
    assert_eq!((counters.delivered, counters.filtered), (1, 1), "what is acknowledged twice counts once");
    assert!(counters.last_delivered_at.is_some());
}

#[tokio::test]
async fn channels_are_read_up_to_a_bound_that_they_share() {
    let desk = SubscriptionKit::start();
    let subscription = desk.put(&subscription_body("c*", "new")).await;
    let channels: Vec<ChannelName> = (0..3).map(|number| channel(&format!("c{number}"))).collect();
    for of in &channels {
        desk.publish(of, &["x"; 20]).await;
        desk.store.open_channel(&subscription, of).await.expect("redis runs").expect("it has a history");
    }
    let read = async |max| {
        let given = desk.store.read_messages(&subscription, &channels, &worker_id("w"), max).await.expect("redis runs");
        given.iter().map(|given| (given.channel_index, given.messages.len(), given.has_more)).collect::<Vec<_>>()
    };
    assert_eq!(read(2).await, [(0, 1, true), (1, 1, true)], "the third was not looked at");
    assert_eq!(read(31).await, [(0, 11, true), (1, 10, true), (2, 10, true)], "each gets its share");
    assert_eq!(read(100).await, [(0, 8, false), (1, 9, false), (2, 10, false)]);
}

#[tokio::test]
async fn what_was_trimmed_under_a_group_is_told_as_a_gap_before_what_is_read() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "new")).await;
    let positions = desk.publish(&c, &["0", "1", "2", "3", "4"]).await;
    assert_eq!(desk.read_some(&subscription, &c, "w", 1).await.messages[0].position, positions[0]);
    desk.kit.redis_command(&["XTRIM", HISTORY, "MAXLEN", "2"]).await;
    let given = desk.read(&subscription, &c, "w").await;
    assert_eq!(given.gap, Some(Gap { from: positions[0], to: Some(positions[3]), count: Some(2) }));
    assert_eq!(given.messages.len(), 2);
    desk.publish(&c, &["5"]).await;
    let next = desk.read(&subscription, &c, "w").await;
    assert_eq!((next.messages.len(), next.gap), (1, None), "it is told once");
    // Everything that came meanwhile is gone
    desk.publish(&c, &["6", "7"]).await;
    desk.kit.redis_command(&["XTRIM", HISTORY, "MAXLEN", "0"]).await;
    assert_eq!(desk.read(&subscription, &c, "w").await.messages.len(), 0);
    let eighth = desk.publish(&c, &["8"]).await[0];
    let given = desk.read(&subscription, &c, "w").await;
    assert_eq!(given.gap.map(|gap| (gap.to, gap.count)), Some((Some(eighth), Some(2))));
}

#[tokio::test]
async fn a_history_that_begins_again_is_read_from_its_beginning_with_a_gap() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "new")).await;
    let old = desk.publish(&c, &["0", "1"]).await;
    assert_eq!(desk.read(&subscription, &c, "w").await.messages.len(), 2);
    desk.kit.redis_command(&["DEL", HISTORY]).await;
    let new = desk.publish(&c, &["2"]).await[0];
    let given = desk.read(&subscription, &c, "w").await;
    assert_eq!(given.messages.first().map(|message| message.position), Some(new));
    assert_eq!(given.gap, Some(Gap { from: old[1], to: Some(new), count: None }));
}

#[tokio::test]
async fn a_group_or_a_cursor_that_redis_lost_loses_no_message_that_was_not_handed_out() {
    for (lost, expected, is_told) in [
        (vec![vec!["XGROUP", "DESTROY", HISTORY, GROUP]], vec!["2", "3"], true),
        (vec![vec!["DEL", CURSOR]], vec!["2", "3"], false),
        (vec![vec!["XGROUP", "DESTROY", HISTORY, GROUP], vec!["DEL", CURSOR]], vec!["0", "1", "2", "3"], false),
        (vec![vec!["XGROUP", "SETID", HISTORY, GROUP, "$"]], vec!["2", "3"], false),
    ] {
        let desk = SubscriptionKit::start();
        let c = channel("c");
        let subscription = desk.put(&subscription_body("c", "new")).await;
        let positions = desk.publish(&c, &["0", "1"]).await;
        assert_eq!(desk.texts(&subscription, &c, "w").await, ["0", "1"]);
        desk.ack(&subscription, &c, &positions).await;
        desk.publish(&c, &["2", "3"]).await;
        for words in &lost {
            desk.kit.redis_command(words).await;
        }
        let first = desk.store.read_messages(&subscription, std::slice::from_ref(&c), &worker_id("w"), 100).await;
        if first.expect("redis runs")[0].needs_open {
            let opened =
                desk.store.open_channel(&subscription, &c).await.expect("redis runs").expect("it has a history");
            assert_eq!(opened.was_recreated, is_told, "{lost:?}");
        }
        assert_eq!(desk.texts(&subscription, &c, "w").await, expected, "{lost:?}");
        desk.publish(&c, &["4"]).await;
        assert_eq!(desk.texts(&subscription, &c, "w").await, ["4"], "{lost:?}");
    }
}

#[tokio::test]
async fn messages_of_a_silent_worker_are_taken_over_and_it_is_told_how_often_and_what_is_lost() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "new")).await;
    let positions = desk.publish(&c, &["0", "1", "2"]).await;
    assert_eq!(desk.read(&subscription, &c, "dead").await.messages.len(), 3);
    let minute = Duration::from_mins(1);
    let over = reclaim(&desk, &subscription, None, "w", minute).await;
    assert!(over.messages.is_empty() && over.lost.is_empty(), "it was not silent for so long: {over:?}");
    make_idle(&desk, "dead", &positions).await;
    assert_eq!(
        reclaimed_positions(&reclaim(&desk, &subscription, Some("w"), "w", minute).await),
        [],
        "they are not its own"
    );
    let over = reclaim(&desk, &subscription, None, "w", minute).await;
    assert_eq!(reclaimed_positions(&over), [(positions[0], 1), (positions[1], 1), (positions[2], 1)]);
    assert_eq!(over.messages[2].0.body, b"2");
    assert!(reclaim(&desk, &subscription, None, "v", minute).await.messages.is_empty(), "they are taken");
    // One is done with, one is not kept any more
    desk.ack(&subscription, &c, &positions[2..]).await;
    desk.kit.redis_command(&["XDEL", HISTORY, &positions[0].to_string()]).await;
    make_idle(&desk, "w", &positions[1..2]).await;
    // What is deleted cannot be claimed by hand, so it is as old as it is
    let over = reclaim(&desk, &subscription, None, "v", Duration::ZERO).await;
    assert_eq!((reclaimed_positions(&over), over.lost), (vec![(positions[1], 2)], vec![positions[0]]));
    assert_eq!(desk.progress(&subscription, &c).await, (0, 1), "what is lost is not in flight");
}

#[tokio::test]
async fn a_worker_finds_what_it_was_handed_without_hearing_of_it() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "new")).await;
    let positions = desk.publish(&c, &["0", "1"]).await;
    for worker in ["w", "v"] {
        assert_eq!(desk.read_some(&subscription, &c, worker, 1).await.messages.len(), 1, "the answer is lost");
    }
    for _ in 0..3 {
        let own = reclaim(&desk, &subscription, Some("w"), "w", Duration::ZERO).await;
        assert_eq!(reclaimed_positions(&own), [(positions[0], 1)], "only its own, and nobody has vanished");
    }
}

#[tokio::test]
async fn what_is_given_back_is_taken_over_at_once_as_if_it_had_never_been_handed_out() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "new")).await;
    let positions = desk.publish(&c, &["0", "1", "2"]).await;
    assert_eq!(desk.read(&subscription, &c, "w").await.messages.len(), 3);
    desk.ack(&subscription, &c, &positions[..1]).await;
    let back: Vec<_> = positions[..2].iter().map(|position| (c.clone(), *position)).collect();
    desk.store.release_messages(&subscription, &worker_id("w"), &back).await.expect("redis runs");
    let over = reclaim(&desk, &subscription, None, "v", Duration::from_hours(1)).await;
    assert_eq!(
        reclaimed_positions(&over),
        [(positions[1], 0)],
        "neither what is done with nor what is kept, and nobody vanished"
    );
}

#[tokio::test]
async fn a_worker_that_holds_nothing_is_forgotten_and_one_that_does_is_not() {
    let desk = SubscriptionKit::start();
    let c = channel("c");
    let subscription = desk.put(&subscription_body("c", "new")).await;
    desk.publish(&c, &["0", "1"]).await;
    let given = desk.read_some(&subscription, &c, "done", 1).await;
    desk.ack(&subscription, &c, &[given.messages[0].position]).await;
    assert_eq!(desk.texts(&subscription, &c, "busy").await, ["1"]);
    desk.store.prune_consumers(&subscription, &c, Duration::ZERO).await.expect("redis runs");
    let consumers = format!("{:?}", desk.kit.redis_command(&["XINFO", "CONSUMERS", HISTORY, GROUP]).await);
    assert!(consumers.contains("busy") && !consumers.contains("done"), "{consumers}");
}

/// What happens to a subscription with three workers.
#[derive(Debug, Clone, Copy)]
enum SharedStep {
    Publish(usize),
    Read(usize, usize),
    /// A worker is done with that many of the messages that it knows of.
    Ack(usize, usize),
    /// A worker forgets what it was handed, and stays silent.
    WorkerLost(usize),
    Reclaim(usize),
    /// The group is lost while nothing is in flight.
    LoseGroup,
}

fn step_strategy() -> impl Strategy<Value = SharedStep> {
    prop_oneof![
        3 => (1..4_usize).prop_map(SharedStep::Publish),
        3 => (0..3_usize, 1..12_usize).prop_map(|(worker, most)| SharedStep::Read(worker, most)),
        3 => (0..3_usize, 1..6_usize).prop_map(|(worker, most)| SharedStep::Ack(worker, most)),
        1 => (0..3_usize).prop_map(SharedStep::WorkerLost),
        1 => (0..3_usize).prop_map(SharedStep::Reclaim),
        1 => Just(SharedStep::LoseGroup),
    ]
}

/// A subscription, what its workers know of, and what has become of each message.
struct SharedRun<'a> {
    desk: &'a SubscriptionKit,
    subscription: Subscription,
    in_flight: [Vec<Position>; 3],
    published: Vec<Position>,
    delivered: BTreeSet<Position>,
    acked: BTreeSet<Position>,
}

const WORKERS: [&str; 3] = ["w0", "w1", "w2"];

impl SharedRun<'_> {
    async fn step(&mut self, step: SharedStep) {
        let c = channel("c");
        match step {
            SharedStep::Publish(count) => self.published.extend(self.desk.publish(&c, &vec!["x"; count]).await),
            SharedStep::Read(worker, most) => {
                if self.published.is_empty() {
                    return;
                }
                self.desk
                    .store
                    .open_channel(&self.subscription, &c)
                    .await
                    .expect("redis runs")
                    .expect("it has a history");
                let channels = std::slice::from_ref(&c);
                let given = self
                    .desk
                    .store
                    .read_messages(&self.subscription, channels, &worker_id(WORKERS[worker]), most)
                    .await;
                let given = given.expect("redis runs").remove(0);
                assert!(!given.needs_open && given.gap.is_none() && given.messages.len() <= most, "{given:?}");
                let positions: Vec<Position> = given.messages.iter().map(|message| message.position).collect();
                assert!(positions.iter().all(|position| !self.delivered.contains(position)), "handed out twice");
                self.record_delivery(worker, &positions);
            }
            SharedStep::Ack(worker, most) => {
                let most = most.min(self.in_flight[worker].len());
                let done: Vec<Position> = self.in_flight[worker].drain(..most).collect();
                self.desk.ack(&self.subscription, &c, &done).await;
                self.acked.extend(done);
            }
            SharedStep::WorkerLost(worker) => self.in_flight[worker].clear(),
            SharedStep::Reclaim(worker) => {
                // Others may still be at it: a client that takes over cannot know
                let over = reclaim(self.desk, &self.subscription, None, WORKERS[worker], Duration::ZERO).await;
                assert!(over.lost.is_empty(), "{over:?}");
                let positions: Vec<Position> = over.messages.iter().map(|(message, _)| message.position).collect();
                self.in_flight[worker].retain(|position| !positions.contains(position));
                self.record_delivery(worker, &positions);
            }
            SharedStep::LoseGroup => {
                if self.delivered == self.acked && !self.published.is_empty() {
                    self.desk.kit.redis_command(&["XGROUP", "DESTROY", HISTORY, GROUP]).await;
                }
            }
        }
        let unread = self.published.len() - self.delivered.len();
        let progress = self.desk.progress(&self.subscription, &c).await;
        assert_eq!(progress, (unread as u64, (self.delivered.len() - self.acked.len()) as u64), "after {step:?}");
    }

    fn record_delivery(&mut self, worker: usize, positions: &[Position]) {
        let again: Vec<_> = positions.iter().filter(|position| self.acked.contains(position)).collect();
        assert!(again.is_empty(), "{again:?} were done with");
        self.delivered.extend(positions);
        self.in_flight[worker].extend(positions);
    }
}

#[test]
fn every_message_is_delivered_and_none_that_is_done_with_comes_again() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let desk = runtime.block_on(async { SubscriptionKit::start() });
    let config = Config { cases: 60, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let outcome = TestRunner::new(config).run(&vec(step_strategy(), 30..60), |steps| {
        runtime.block_on(async {
            desk.kit.redis_command(&["FLUSHALL"]).await;
            let subscription = desk.put(&subscription_body("c", "new")).await;
            let mut play = SharedRun {
                desk: &desk,
                subscription,
                in_flight: Default::default(),
                published: Vec::new(),
                delivered: BTreeSet::new(),
                acked: BTreeSet::new(),
            };
            for step in steps {
                play.step(step).await;
            }
            // All crash but one, who works off what there is
            for step in [
                SharedStep::WorkerLost(0),
                SharedStep::WorkerLost(1),
                SharedStep::WorkerLost(2),
                SharedStep::Reclaim(0),
                SharedStep::Read(0, 1000),
            ] {
                play.step(step).await;
            }
            assert_eq!(play.delivered.len(), play.published.len(), "some were never delivered");
            play.step(SharedStep::Ack(0, 1000)).await;
            assert_eq!(play.acked.len(), play.published.len());
            assert!(desk.store.delete(&subscription_name()).await.expect("redis runs"));
        });
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
