//! Notifications from other processes: one pub/sub connection per process, shared by everything that waits for one, and on a
//! cluster one more to each primary whose sharded topics somebody wants.
//!
//! A subscriber names its topics, which may change at any time, and reads its own bounded queue. Redis forgets a
//! subscriber whose connection breaks, so one rule holds for all: after [`SubscriberEvent::ConnectionLost`]
//! notifications may be missing, from [`SubscriberEvent::Subscribed`] on they arrive again. If you depend on them,
//! check your state after `Subscribed`. A slow subscriber loses only its own messages, which are counted and reported
//! by topic. A probe finds a connection that is open and delivers nothing.
//!
//! | file | what it does |
//! |---|---|
//! | `pubsub` | the connection: subscribes, reconnects, routes messages |
//! | `shards` | the same for sharded topics: to the node that has their slot |
//! | `registry` | who wants which topics |
//! | `sharded_topics` | which connection hears which sharded topic |
//! | `subscriber` | the bounded queue of one subscriber |
//! | `probe` | publishes a number and waits for it to come back |

mod probe;
mod pubsub;
mod registry;
mod sharded_topics;
mod shards;
mod subscriber;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use self::{probe::Probe, registry::Registry, subscriber::bounded_channel};
use crate::{connection::client::Redis, keys::TopicNames};

pub use self::subscriber::{EventReceiver, SubscriberEvent};

/// Sees every message of a topic in the order of arrival, before any is dropped. May return what is queued instead.
pub(crate) type TopicTagger = Arc<dyn Fn(&str, &[u8]) -> Option<Vec<u8>> + Send + Sync>;

/// The notifications of this process. Cheap to clone.
#[derive(Clone)]
pub struct Notifier(Arc<NotifierInner>);

struct NotifierInner {
    registry: Mutex<Registry>,
    /// Notified when the wanted topics change.
    changed: Notify,
    /// Changes when a sharded topic is wanted, or heard no more.
    shards_changed: watch::Sender<()>,
    /// Notified when the connection must be replaced.
    reconnects: watch::Sender<()>,
    probe: Probe,
    topic_names: TopicNames,
}

impl Notifier {
    /// Starts the connection. It lasts until `stop` is cancelled; then every subscriber's queue ends. The probe runs
    /// every `probe_interval`.
    #[must_use]
    pub fn start(redis: &Redis, probe_interval: Duration, stop: CancellationToken) -> Self {
        let inner = Arc::new(NotifierInner {
            registry: Mutex::default(),
            changed: Notify::new(),
            shards_changed: watch::Sender::new(()),
            reconnects: watch::Sender::new(()),
            probe: Probe::new(redis.topics()),
            topic_names: redis.topics().clone(),
        });
        tokio::spawn(pubsub::run(redis.clone(), inner.clone(), stop.clone()));
        if let Some(cluster) = redis.cluster() {
            tokio::spawn(shards::run(cluster.clone(), inner.clone(), probe_interval, stop.clone()));
        }
        let (probe, reconnects) = (inner.probe.clone(), inner.reconnects.clone());
        let reconnect = move || {
            reconnects.send_replace(());
        };
        tokio::spawn(probe.run(redis.clone(), reconnect, probe_interval, stop));
        Self(inner)
    }

    /// Creates a subscriber without topics; its queue holds at most `buffer` unread messages.
    #[must_use]
    pub fn subscribe(&self, buffer: usize) -> (Topics, EventReceiver) {
        self.subscribe_with_tagger(buffer, None)
    }

    pub(crate) fn subscribe_with_tagger(&self, buffer: usize, tagger: Option<TopicTagger>) -> (Topics, EventReceiver) {
        let (sender, queue) = bounded_channel(buffer);
        let id = self.0.registry().add_subscriber(sender, tagger);
        let topics = Topics { notifier: Arc::downgrade(&self.0), id };
        let registration = Registration(topics.clone());
        (topics, queue.registered(registration))
    }

    /// The names of the topics of Galley.
    #[must_use]
    pub fn topic_names(&self) -> &TopicNames {
        &self.0.topic_names
    }

    /// Why notifications do not arrive now; none if they do.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.0.probe.problem()
    }
}

impl NotifierInner {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The topics of one subscriber. Cheap to clone.
#[derive(Clone)]
pub struct Topics {
    notifier: Weak<NotifierInner>,
    id: u64,
}

impl Topics {
    /// Adds a topic; [`SubscriberEvent::Subscribed`] reports when it arrives.
    pub fn add(&self, topic: String) {
        self.add_all([topic]);
    }

    /// Adds topics, which arrive from the same moment on.
    pub fn add_all(&self, topics: impl IntoIterator<Item = String>) {
        self.change(|registry, names, id| {
            let mut is_changed = false;
            for topic in topics {
                let is_sharded = names.is_sharded(&topic);
                is_changed |= registry.add(id, topic, is_sharded);
            }
            is_changed
        });
    }

    /// Removes a topic.
    pub fn remove(&self, topic: &str) {
        self.change(|registry, _, id| registry.remove(id, topic));
    }

    fn change(&self, change: impl FnOnce(&mut Registry, &TopicNames, u64) -> bool) {
        let Some(notifier) = self.notifier.upgrade() else { return };
        let is_changed = change(&mut notifier.registry(), &notifier.topic_names, self.id);
        if is_changed {
            notifier.changed.notify_one();
            notifier.shards_changed.send_replace(());
        }
    }
}

/// Ends the subscription when its queue is dropped.
struct Registration(Topics);

impl Drop for Registration {
    fn drop(&mut self) {
        self.0.change(|registry, _, id| registry.remove_subscriber(id));
    }
}
