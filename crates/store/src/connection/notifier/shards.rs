//! Sharded topics of a cluster: a connection to each primary that has the slot of a wanted one. What is published there reaches
//! these subscribers and the replicas of the node, and not every node of the cluster.
//!
//! When a slot moves away, its node ends the subscriptions of that slot. A node answers `MOVED` to a subscription of another node's
//! slot, and its connections break when it dies. After each of these the topic is subscribed to again where its slot is then, after a moment that
//! differs from process to process, and its subscribers are told: what was published meanwhile they missed.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{Msg, PushInfo, PushKind, RedisResult, Value, aio::MultiplexedConnection};
use tokio::{sync::Notify, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    NotifierInner,
    pubsub::{STABLE_TIME, closed, route},
};
use crate::{
    ReconnectDelays,
    connection::client::{
        Redis,
        cluster::{Cluster, NodeAddress, Redirect},
    },
    next_reconnect_delay, reconnect_delays,
};

/// Maximum number of subscriptions in one pipeline.
const TOPICS_PER_PIPELINE: usize = 1000;
/// The shortest and the longest pause before topics follow their slots.
const PAUSES: std::ops::Range<u64> = 5..50;

/// Maintains the connections until `stop` is cancelled. Each sends `PING` every `interval`.
pub(super) async fn run(
    cluster: Arc<Cluster>,
    notifier: Arc<NotifierInner>,
    interval: Duration,
    stop: CancellationToken,
) {
    let (mut connected, mut tasks) = (HashMap::new(), JoinSet::new());
    let (mut changes, mut delays) = (notifier.shards_changed.subscribe(), reconnect_delays());
    while !stop.is_cancelled() {
        changes.borrow_and_update();
        let slots = notifier.registry().sharded.missing_slots();
        let mut retry = None;
        for slot in slots {
            match cluster.owner(slot).await {
                Ok(node) => {
                    let Some((address, _)) = node.node_of_cluster() else { continue };
                    if !connected.values().any(|known| known == address) {
                        let keeping = keep_connected(cluster.clone(), address.clone(), notifier.clone(), interval);
                        connected.insert(tasks.spawn(keeping).id(), address.clone());
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, slot, "no node is known for sharded topics");
                    retry = Some(next_reconnect_delay(&mut delays));
                    break;
                }
            }
        }
        if retry.is_none() {
            delays = reconnect_delays();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = changes.changed() => {}
            Some(ended) = tasks.join_next_with_id() => {
                let id = ended.map_or_else(
                    |error| {
                        tracing::error!(%error, "a task that hears sharded topics failed");
                        error.id()
                    },
                    |(id, ())| id,
                );
                connected.remove(&id);
            }
            () = sleep(retry.unwrap_or(interval)) => {}
        }
    }
}

/// Connects to one node for as long as it has slots of wanted topics.
async fn keep_connected(cluster: Arc<Cluster>, address: NodeAddress, notifier: Arc<NotifierInner>, interval: Duration) {
    let mut delays = reconnect_delays();
    loop {
        let begin = Instant::now();
        let number = notifier.registry().sharded.open();
        // Also when this task is aborted
        let open = OpenConnection { notifier: notifier.clone(), number };
        let ended = match cluster.node(&address) {
            Ok(node) => listen(&node, &cluster, &address, &open, interval).await,
            Err(error) => Err(error),
        };
        drop(open);
        if begin.elapsed() >= STABLE_TIME {
            delays = reconnect_delays();
        }
        if let Err(error) = ended {
            tracing::debug!(%error, %address, "connection for sharded topics lost");
            // Before anybody asks whether the node still has the slots
            cluster.demand_refresh();
            sleep(next_reconnect_delay(&mut delays)).await;
        }
        let is_here = |slot| cluster.has_slot(&address, slot);
        if !notifier.registry().sharded.missing_slots().into_iter().any(is_here) {
            return;
        }
    }
}

/// A connection whose topics are missing when it is dropped.
struct OpenConnection {
    notifier: Arc<NotifierInner>,
    number: u64,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.notifier.registry().shard_connection_lost(self.number);
        self.notifier.shards_changed.send_replace(());
    }
}

/// One connection's life: an error when it breaks, or nothing when it is not used any more.
async fn listen(
    node: &Redis,
    cluster: &Arc<Cluster>,
    address: &NodeAddress,
    open: &OpenConnection,
    interval: Duration,
) -> RedisResult<()> {
    let signals = Signals::default();
    let config = node.config().set_push_sender(push_handler(open.notifier.clone(), open.number, signals.clone()));
    let (connection, known_at) = node.connect_separately(&config).await?;
    let mut server_left = node.server_left();
    if node.left_server_since(known_at) {
        return Err(closed());
    }
    let notifier = &open.notifier;
    let mut changes = notifier.shards_changed.subscribe();
    let mut connection = ShardConnection { connection, cluster, address, open, delays: reconnect_delays() };
    let mut check = tokio::time::interval(interval);
    check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        changes.borrow_and_update();
        let retry = connection.update_topics().await?;
        tokio::select! {
            () = signals.gone.notified() => return Err(closed()),
            Ok(()) = server_left.changed() => return Err(closed()),
            () = signals.ended.notified() => {
                cluster.demand_refresh();
                pause().await;
                notifier.shards_changed.send_replace(());
            }
            Ok(()) = changes.changed() => {}
            _ = check.tick() => {
                let is_here = |slot| cluster.has_slot(address, slot);
                if notifier.registry().leave_misplaced(open.number, is_here) {
                    notifier.shards_changed.send_replace(());
                }
                if !notifier.registry().sharded.is_used(open.number, is_here) {
                    return Ok(());
                }
                // A connection may be open and lead nowhere
                connection.connection.send_packed_command(&redis::cmd("PING")).await?;
            }
            () = sleep(retry.unwrap_or_default()), if retry.is_some() => {}
        }
    }
}

/// What a connection is told beside messages.
#[derive(Clone, Default)]
struct Signals {
    gone: Arc<Notify>,
    /// The node has ended a subscription.
    ended: Arc<Notify>,
}

fn push_handler(
    notifier: Arc<NotifierInner>,
    number: u64,
    signals: Signals,
) -> impl Fn(PushInfo) -> Result<(), redis::aio::SendError> + Send + Sync + 'static {
    move |push: PushInfo| {
        match push.kind {
            PushKind::Disconnection => signals.gone.notify_one(),
            PushKind::SSubscribe => {
                if let Some(topic) = topic_of(&push.data) {
                    notifier.registry().shard_subscribed(number, topic);
                }
            }
            PushKind::SUnsubscribe => {
                if let Some(topic) = topic_of(&push.data)
                    && notifier.registry().shard_unsubscribed(number, topic)
                {
                    signals.ended.notify_one();
                }
            }
            _ => {
                if let Some(message) = Msg::from_push_info(push) {
                    route(&notifier, message.get_channel_name(), message.get_payload_bytes());
                }
            }
        }
        Ok(())
    }
}

/// The topic that a node confirms or ends.
fn topic_of(confirmation: &[Value]) -> Option<&str> {
    let Some(Value::BulkString(topic)) = confirmation.first() else { return None };
    std::str::from_utf8(topic).ok()
}

async fn pause() {
    sleep(Duration::from_millis(rand::random_range(PAUSES))).await;
}

struct ShardConnection<'a> {
    connection: MultiplexedConnection,
    cluster: &'a Arc<Cluster>,
    address: &'a NodeAddress,
    open: &'a OpenConnection,
    delays: ReconnectDelays,
}

/// What a node answered to one subscription.
enum Answer {
    Done,
    Redirected,
    Refused,
}

impl ShardConnection<'_> {
    /// Subscribes to exactly the wanted topics of the node's slots. Returns after how long to try again what was refused.
    async fn update_topics(&mut self) -> RedisResult<Option<Duration>> {
        let is_here = |slot| self.cluster.has_slot(self.address, slot);
        let (unwanted, wanted) = self.open.notifier.registry().sharded.changes(self.open.number, is_here);
        // One command for each topic, so that each has an answer of its own
        let unwanted = unwanted.into_iter().map(|topic| (redis::cmd("SUNSUBSCRIBE"), topic));
        let wanted = wanted.into_iter().map(|topic| (redis::cmd("SSUBSCRIBE"), topic));
        let commands: Vec<_> = unwanted.chain(wanted).collect();
        let (mut is_redirected, mut is_refused) = (false, false);
        for commands in commands.chunks(TOPICS_PER_PIPELINE) {
            let mut pipeline = redis::Pipeline::with_capacity(commands.len());
            for (command, topic) in commands {
                let mut command = command.clone();
                command.arg(topic);
                pipeline.add_command(command);
            }
            let answers = self.connection.send_packed_commands(&pipeline, 0, commands.len()).await?;
            for ((_, topic), answer) in commands.iter().zip(answers) {
                match self.judge(topic, answer)? {
                    Answer::Done => {}
                    Answer::Redirected => is_redirected = true,
                    Answer::Refused => is_refused = true,
                }
            }
        }
        if is_redirected {
            pause().await;
            self.open.notifier.shards_changed.send_replace(());
        }
        if is_refused {
            return Ok(Some(next_reconnect_delay(&mut self.delays)));
        }
        self.delays = reconnect_delays();
        Ok(None)
    }

    /// What a node answered. An answer to something else is an error: when it ends a subscription by itself, the connection takes
    /// that for the answer to what was just sent.
    fn judge(&self, topic: &str, answer: Value) -> RedisResult<Answer> {
        if let Value::Push { data, .. } = &answer {
            return if topic_of(data) == Some(topic) { Ok(Answer::Done) } else { Err(closed()) };
        }
        let answer = Ok(answer);
        if let Some(redirect) = Redirect::of_answer(&answer, self.address) {
            self.cluster.note(&redirect);
            let is_moved = matches!(redirect, Redirect::Moved(..));
            return Ok(if is_moved { Answer::Redirected } else { Answer::Refused });
        }
        let Ok(Value::ServerError(error)) = answer else { return Err(closed()) };
        tracing::debug!(?error, topic, "a node refuses a sharded subscription");
        self.cluster.demand_refresh();
        Ok(Answer::Refused)
    }
}
