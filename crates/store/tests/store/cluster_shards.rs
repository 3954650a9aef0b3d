//! Sharded pub/sub on a real Redis Cluster: what is published to one node, and subscriptions that follow their slots.

use std::{collections::BTreeSet, time::Duration};

use common::{
    id::JobId,
    name::{ChannelName, QueueName},
    trace_context::TraceContext,
};
use futures_util::StreamExt;
use model::{MemberInfo, job::NewJob, message::NewMessage};
use redis::{InfoDict, aio::PubSub};
use store::{
    channels::ChannelPresence,
    connection::notifier::{EventReceiver, SubscriberEvent, Topics},
    jobs::{Attempt, Claimant, ClaimedJob, Consumer, Fence, FinishedJob, Settled},
    local_now,
};
use testkit::{ClusterProcesses, TEST_TIMEOUT, eventually};
use tokio_util::sync::CancellationToken;

use crate::{
    channels::channel,
    kit::{StoreKit, consumer, fence},
};

/// A part of the slots is served without the others.
const OPTIONS: [&str; 2] = ["--cluster-require-full-coverage", "no"];
/// After how long a node that stands still is replaced, while one is to be, and otherwise.
const SOON: Duration = Duration::from_secs(1);
const NEVER: Duration = Duration::from_mins(5);
/// A node that does not answer is given up soon.
const QUICK: [(&str, &str); 3] = [
    ("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "1000"),
    ("GALLEY__REDIS__CONNECT_TIMEOUT_MS", "1000"),
    ("GALLEY__CHANNELS__PROBE_MS", "500"),
];
/// Queues whose slots are spread over all nodes.
const QUEUES: [&str; 6] = ["mail", "orders", "images", "default", "reports", "q1"];
const CHANNELS: usize = 12;

fn queue(name: &str) -> QueueName {
    name.parse().expect("a name")
}

/// The subscriber of a process.
struct Subscriber {
    events: EventReceiver,
    _topics: Topics,
}

impl Subscriber {
    async fn new(kit: &StoreKit, topics: &[String]) -> Self {
        let (held, events) = kit.subscribe(&topics.iter().map(String::as_str).collect::<Vec<_>>());
        let mut subscriber = Self { events, _topics: held };
        subscriber.subscribed(topics).await;
        subscriber
    }

    async fn next(&mut self) -> SubscriberEvent {
        let event = tokio::time::timeout(TEST_TIMEOUT, self.events.recv()).await.expect("an event in time");
        event.expect("the subscription goes on")
    }

    /// Waits until it has been told of all these; returns all of which it was told.
    async fn subscribed(&mut self, topics: &[String]) -> BTreeSet<String> {
        let mut told = BTreeSet::new();
        while !topics.iter().all(|topic| told.contains(topic)) {
            if let SubscriberEvent::Subscribed(more) = self.next().await {
                told.extend(more);
            }
        }
        told
    }

    async fn lost(&mut self) {
        while self.next().await != SubscriberEvent::ConnectionLost {}
    }

    async fn hears(&mut self, topic: &str, payload: &str) {
        let expected = SubscriberEvent::Message { channel: topic.to_owned(), payload: payload.into() };
        while self.next().await != expected {}
    }
}

/// What a client hears that subscribes to topics as clients of one server do, at any node.
async fn plain_client(cluster: &ClusterProcesses, node: usize, topics: &[String]) -> PubSub {
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", cluster.port(node))).expect("a URL");
    let mut plain = client.get_async_pubsub().await.expect("the node runs");
    plain.subscribe(topics).await.expect("subscribed");
    plain
}

async fn next_payload(plain: &mut PubSub) -> String {
    let mut messages = plain.on_message();
    let message = tokio::time::timeout(TEST_TIMEOUT, messages.next()).await.expect("in time").expect("it goes on");
    message.get_payload().expect("text")
}

async fn publish(kit: &StoreKit, channel: &ChannelName) -> String {
    let published = eventually("the message is accepted", || async {
        kit.channels.publish(channel, &NewMessage::plain(b"one")).await.ok()
    });
    published.await.expect("there is room").position.to_string()
}

/// Publishes until it is heard: connections may still be changing.
async fn publish_until_heard(kit: &StoreKit, subscriber: &mut Subscriber, channel: &ChannelName, topic: &str) {
    let heard = async {
        loop {
            let position = publish(kit, channel).await;
            if tokio::time::timeout(Duration::from_secs(1), subscriber.hears(topic, &position)).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, heard).await.expect("it is heard");
}

async fn claim(kit: &StoreKit, name: &str, consumer: &Consumer, body: &str) -> ClaimedJob {
    let now = kit.jobs.now().await.expect("the nodes run");
    let new = NewJob::parse(&serde_json::from_str(body).expect("JSON"), now).expect("valid");
    let made = kit.jobs.enqueue(new, TraceContext::default(), now).await.expect("the nodes run").expect("accepted");
    let worker = "w".parse().expect("a name");
    let by = Claimant::Worker { consumer, worker: &worker };
    let mut claimed = kit.jobs.claim(&queue(name), &mut Vec::new(), 9, by).await.expect("the nodes run").jobs;
    let claimed = claimed.pop().expect("the job");
    assert_eq!(claimed.job.id, made.job.id);
    claimed
}

fn body(name: &str) -> String {
    format!(r#"{{"type":"test.echo","args":[1],"options":{{"queue":"{name}"}}}}"#)
}

fn unique_body(name: &str) -> String {
    let unique = r#""unique":{"on_conflict":"replace"},"scheduled_at":"+PT1H""#;
    format!(r#"{{"type":"test.unique","args":[],{unique},"options":{{"queue":"{name}"}}}}"#)
}

/// A channel at a node, other than those.
async fn channel_at(cluster: &ClusterProcesses, node: usize, but: &[&ChannelName]) -> ChannelName {
    for number in 0.. {
        let name = channel(&format!("news-{number}"));
        let slot = cluster.slot_of(&format!("{{ch:{name}}}")).await;
        if cluster.primary_of(slot).await == node && !but.contains(&&name) {
            return name;
        }
    }
    unreachable!("every node has some")
}

#[tokio::test]
async fn what_has_a_tag_is_published_at_its_node_and_is_heard() {
    let cluster = ClusterProcesses::start().await;
    let kit = StoreKit::of_cluster(&cluster, &[]);
    let names = kit.redis.topics().clone();
    let finished: Vec<String> = QUEUES.iter().map(|name| names.finished_jobs(&queue(name))).collect();
    let channels: Vec<ChannelName> = (0..CHANNELS).map(|number| channel(&format!("news.{number}"))).collect();
    let live: Vec<String> = channels.iter().map(|name| names.live_messages(name)).collect();
    let presence: Vec<String> = channels.iter().map(|name| names.presence(name)).collect();
    let output = names.output(&queue(QUEUES[0]));
    let topics = [finished.clone(), live.clone(), presence.clone(), vec![output.clone()]].concat();
    let mut plain = plain_client(&cluster, 1, &topics).await;
    let mut subscriber = Subscriber::new(&kit, &topics).await;

    every_end_of_a_job_is_heard(&kit, &mut subscriber, &finished, &output).await;
    for (channel, live) in channels.iter().zip(&live) {
        // The first one takes the script, and the others follow without it
        for _ in 0..3 {
            let position = publish(&kit, channel).await;
            subscriber.hears(live, &position).await;
        }
    }
    who_comes_and_goes_is_heard(&kit, &mut subscriber, &channels, &presence).await;

    // Had any of that been published to every node, the client would have heard it before
    for node in 0..3 {
        let mut connection = cluster.connection(node).await;
        redis::cmd("PUBLISH").arg(&live[0]).arg(node).exec_async(&mut connection).await.expect("the node runs");
        let _: usize =
            redis::cmd("PUBLISH").arg(&live[0]).arg("end").query_async(&mut connection).await.expect("a count");
        assert_eq!(next_payload(&mut plain).await, node.to_string());
        assert_eq!(next_payload(&mut plain).await, "end");
        // So does a process of the version before
        subscriber.hears(&live[0], &node.to_string()).await;
        let info: InfoDict =
            redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.expect("answered");
        let calls: String = info.get("cmdstat_spublish").expect("each node has published some");
        assert!(calls.starts_with("calls="), "{calls}");
    }
}

async fn every_end_of_a_job_is_heard(kit: &StoreKit, subscriber: &mut Subscriber, finished: &[String], output: &str) {
    let consumer = consumer();
    for (name, topic) in QUEUES.iter().zip(finished) {
        let completed = claim(kit, name, &consumer, &body(name)).await;
        if topic == &finished[0] {
            let fence = fence(&consumer);
            let written = kit.jobs.write_output(Attempt::of(&completed, &fence), None, &["1"]).await;
            assert_eq!(written.expect("the node runs"), Some(1));
            subscriber.hears(output, &completed.job.id.to_string()).await;
        }
        assert_eq!(kit.complete(&consumer, &completed, "1").await, Settled::Done);
        subscriber.hears(topic, &completed.job.id.to_string()).await;

        let by_itself = claim(kit, name, &consumer, &body(name)).await;
        let ended = FinishedJob::completed(&by_itself.job, Some("1"), Some(by_itself.started_at), local_now());
        let fence: Fence = fence(&consumer);
        let settled = kit.jobs.finish(Attempt::of(&by_itself, &fence), &ended, false).await.expect("the node runs");
        assert_eq!(settled, Settled::Done);
        subscriber.hears(topic, &by_itself.job.id.to_string()).await;

        let replaced: JobId = kit.enqueue(&unique_body(name)).await;
        let other = kit.enqueue(&unique_body(name)).await;
        subscriber.hears(topic, &replaced.to_string()).await;
        kit.jobs.cancel(other).await.expect("the node runs").expect("it waits");
        subscriber.hears(topic, &other.to_string()).await;
    }
}

async fn who_comes_and_goes_is_heard(
    kit: &StoreKit,
    subscriber: &mut Subscriber,
    channels: &[ChannelName],
    topics: &[String],
) {
    let stop = CancellationToken::new();
    let (presence, _) = ChannelPresence::start(&kit.channels, &kit.notifier, stop.clone());
    for (channel, topic) in channels.iter().zip(topics) {
        let ada = "ada".parse().expect("an id");
        let (guard, joined) = presence.join(channel, ada, MemberInfo::from_stored("{}")).await;
        joined.expect("the node runs").expect("there is room");
        let mut kinds = Vec::new();
        guard.leave();
        while kinds.len() < 2 {
            if let SubscriberEvent::Message { channel, payload } = subscriber.next().await
                && channel == *topic
            {
                kinds.extend(String::from_utf8_lossy(&payload).split(' ').nth(1).map(str::to_owned));
            }
        }
        assert_eq!(kinds, ["join", "leave"]);
    }
    stop.cancel();
}

#[tokio::test]
async fn topics_follow_slots_that_move_and_others_are_not_told() {
    let cluster = ClusterProcesses::start().await;
    let kit = StoreKit::of_cluster(&cluster, &[]);
    let moved = channel_at(&cluster, 0, &[]).await;
    let stays = channel_at(&cluster, 0, &[&moved]).await;
    let [moving_topic, staying_topic] = [&moved, &stays].map(|channel| kit.redis.topics().live_messages(channel));
    let mut subscriber = Subscriber::new(&kit, &[moving_topic.clone(), staying_topic.clone()]).await;
    publish(&kit, &moved).await;
    let slot = cluster.slot_of(&format!("{{ch:{moved}}}")).await;
    for to in [1, 2, 0, 2] {
        let from = cluster.begin_move(slot, to).await;
        publish(&kit, &moved).await;
        cluster.move_keys(slot, from, to).await;
        // Published at the new node, and heard of by nobody before the move ends
        publish(&kit, &moved).await;
        cluster.end_move(slot, from, to).await;
        subscriber.lost().await;
        let told = subscriber.subscribed(std::slice::from_ref(&moving_topic)).await;
        assert!(!told.contains(&staying_topic), "{told:?}");
        for (channel, topic) in [(&moved, &moving_topic), (&stays, &staying_topic)] {
            publish_until_heard(&kit, &mut subscriber, channel, topic).await;
        }
    }
}

#[tokio::test]
async fn topics_follow_to_the_replica_of_a_primary_that_dies_or_is_replaced() {
    let mut cluster = ClusterProcesses::start_with_options(&OPTIONS).await;
    let kit = StoreKit::of_cluster(&cluster, &[]);
    let mut channels = Vec::new();
    for node in 0..3 {
        channels.push(channel_at(&cluster, node, &[]).await);
    }
    let topics: Vec<String> = channels.iter().map(|channel| kit.redis.topics().live_messages(channel)).collect();
    let mut subscriber = Subscriber::new(&kit, &topics).await;
    for channel in &channels {
        publish(&kit, channel).await;
    }
    for primary in 0..3 {
        cluster.wait_until_replicated(primary).await;
    }
    let replica = cluster.replica_of(0).await;
    cluster.kill(0);
    cluster.set_down_after(SOON).await;
    cluster.wait_until_promoted(replica).await;
    cluster.set_down_after(NEVER).await;
    subscriber.lost().await;
    subscriber.subscribed(&topics[..1]).await;
    for (channel, topic) in channels.iter().zip(&topics) {
        publish_until_heard(&kit, &mut subscriber, channel, topic).await;
    }

    // A primary that lives becomes a replica of its replica
    let replica = cluster.replica_of(1).await;
    cluster.fail_over(replica).await;
    for (channel, topic) in channels.iter().zip(&topics) {
        publish_until_heard(&kit, &mut subscriber, channel, topic).await;
    }
}

#[tokio::test]
async fn a_node_that_stands_still_delays_its_own_topics_only() {
    let cluster = ClusterProcesses::start_with_options(&OPTIONS).await;
    let kit = StoreKit::of_cluster(&cluster, &QUICK);
    let [still, other] = [channel_at(&cluster, 0, &[]).await, channel_at(&cluster, 1, &[]).await];
    let topics = [&still, &other].map(|channel| kit.redis.topics().live_messages(channel));
    let mut subscriber = Subscriber::new(&kit, &topics).await;
    cluster.freeze(0);
    subscriber.lost().await;
    for _ in 0..3 {
        publish_until_heard(&kit, &mut subscriber, &other, &topics[1]).await;
    }
    cluster.thaw(0);
    publish_until_heard(&kit, &mut subscriber, &still, &topics[0]).await;
}

#[tokio::test]
async fn without_the_permission_and_for_channels_of_plain_publishers_every_node_learns_of_it() {
    let cluster = ClusterProcesses::start().await;
    let kit = StoreKit::of_cluster(&cluster, &[]);
    let names = kit.redis.topics().clone();
    // The default of channels.plain
    let copied = channel("task:pubsub:channel");
    let mut plain = plain_client(&cluster, 2, &[names.live_messages(&copied)]).await;
    let position = publish(&kit, &copied).await;
    assert_eq!(next_payload(&mut plain).await, position, "what precedes a copy comes as the copy does");

    let [queue_name, news] = [QUEUES[0], "news"];
    let topics = [names.finished_jobs(&queue(queue_name)), names.live_messages(&channel(news))];
    let mut plain = plain_client(&cluster, 2, &topics).await;
    let mut subscriber = Subscriber::new(&kit, &topics).await;
    publish(&kit, &channel(news)).await;
    for node in 0..3 {
        let mut forbid = redis::cmd("ACL");
        cluster.ask::<()>(node, forbid.arg("SETUSER").arg("default").arg("-spublish")).await;
    }
    let consumer = consumer();
    let job = claim(&kit, queue_name, &consumer, &body(queue_name)).await;
    assert_eq!(kit.complete(&consumer, &job, "1").await, Settled::Done);
    subscriber.hears(&topics[0], &job.job.id.to_string()).await;
    assert_eq!(next_payload(&mut plain).await, job.job.id.to_string());
    for _ in 0..3 {
        let position = publish(&kit, &channel(news)).await;
        subscriber.hears(&topics[1], &position).await;
        assert_eq!(next_payload(&mut plain).await, position);
    }
    let refused = kit.redis.check_at_start(&[]).await.expect_err("the permission is missing").to_string();
    assert!(refused.contains("spublish"), "{refused}");
}
