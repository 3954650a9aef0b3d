//! Notifications from other processes: one pub/sub connection per process, shared by everything that waits for one.
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
//! | `subscriber` | the bounded queue of one subscriber |
//! | `probe` | publishes a number and waits for it to come back |

mod probe;
mod pubsub;
mod subscriber;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use self::{
    probe::Probe,
    subscriber::{EventSender, bounded_channel},
};
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
    /// Notified when the connection must be replaced.
    reconnects: watch::Sender<()>,
    probe: Probe,
    topic_names: TopicNames,
}

#[derive(Default)]
struct Registry {
    next_id: u64,
    subscribers: HashMap<u64, Subscriber>,
    routes: HashMap<String, Arc<[Route]>>,
    is_stopped: bool,
}

struct Subscriber {
    route: Route,
    topics: BTreeSet<String>,
    /// Topics for which `Subscribed` was not sent yet.
    unconfirmed: BTreeSet<String>,
}

/// The receivers of a topic.
#[derive(Clone)]
struct Route {
    id: u64,
    sender: EventSender,
    tagger: Option<TopicTagger>,
}

impl Notifier {
    /// Starts the connection. It lasts until `stop` is cancelled; then every subscriber's queue ends. The probe runs
    /// every `probe_interval`.
    #[must_use]
    pub fn start(redis: &Redis, probe_interval: Duration, stop: CancellationToken) -> Self {
        let inner = Arc::new(NotifierInner {
            registry: Mutex::default(),
            changed: Notify::new(),
            reconnects: watch::Sender::new(()),
            probe: Probe::new(redis.topics()),
            topic_names: redis.topics().clone(),
        });
        tokio::spawn(pubsub::run(redis.clone(), inner.clone(), stop.clone()));
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
        let mut registry = self.0.registry();
        let id = registry.next_id;
        registry.next_id += 1;
        // After a stop the sender is dropped at once: the queue ends
        if !registry.is_stopped {
            let route = Route { id, sender, tagger };
            let subscriber = Subscriber { route, topics: BTreeSet::new(), unconfirmed: BTreeSet::new() };
            registry.subscribers.insert(id, subscriber);
        }
        drop(registry);
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
        self.change(|registry, id| {
            let mut is_changed = false;
            for topic in topics {
                is_changed |= registry.add(id, topic);
            }
            is_changed
        });
    }

    /// Removes a topic.
    pub fn remove(&self, topic: &str) {
        self.change(|registry, id| registry.remove(id, topic));
    }

    fn change(&self, change: impl FnOnce(&mut Registry, u64) -> bool) {
        let Some(notifier) = self.notifier.upgrade() else { return };
        let is_changed = change(&mut notifier.registry(), self.id);
        if is_changed {
            notifier.changed.notify_one();
        }
    }
}

/// Ends the subscription when its queue is dropped.
struct Registration(Topics);

impl Drop for Registration {
    fn drop(&mut self) {
        self.0.change(|registry, id| {
            let topics = registry.subscribers.get(&id).map(|subscriber| subscriber.topics.clone()).unwrap_or_default();
            for topic in &topics {
                registry.remove(id, topic);
            }
            registry.subscribers.remove(&id);
            !topics.is_empty()
        });
    }
}

impl Registry {
    fn add(&mut self, id: u64, topic: String) -> bool {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return false };
        if !subscriber.topics.insert(topic.clone()) {
            return false;
        }
        subscriber.unconfirmed.insert(topic.clone());
        let route = subscriber.route.clone();
        let routes = self.routes.entry(topic).or_insert_with(|| Arc::new([]));
        *routes = routes.iter().cloned().chain([route]).collect();
        true
    }

    fn remove(&mut self, id: u64, topic: &str) -> bool {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return false };
        if !subscriber.topics.remove(topic) {
            return false;
        }
        subscriber.unconfirmed.remove(topic);
        if let Some(routes) = self.routes.get_mut(topic) {
            *routes = routes.iter().filter(|route| route.id != id).cloned().collect();
            if routes.is_empty() {
                self.routes.remove(topic);
            }
        }
        true
    }

    /// Reports to each subscriber which of its topics arrive from now on.
    fn confirm(&mut self, subscribed: &BTreeSet<String>) {
        for subscriber in self.subscribers.values_mut() {
            let confirmed: Vec<String> =
                subscriber.unconfirmed.iter().filter(|topic| subscribed.contains(*topic)).cloned().collect();
            if !confirmed.is_empty() {
                subscriber.unconfirmed.retain(|topic| !subscribed.contains(topic));
                subscriber.route.sender.send_subscribed(confirmed);
            }
        }
    }

    /// Reports the lost connection to each subscriber that had a `Subscribed`.
    fn connection_lost(&mut self) {
        for subscriber in self.subscribers.values_mut() {
            if subscriber.unconfirmed.len() < subscriber.topics.len() {
                subscriber.unconfirmed.clone_from(&subscriber.topics);
                subscriber.route.sender.send_connection_lost();
            }
        }
    }

    fn take_dropped_count(&self) -> u64 {
        self.subscribers.values().map(|subscriber| subscriber.route.sender.take_dropped_count()).sum()
    }

    /// Ends the queues of all subscribers.
    fn stop(&mut self) {
        *self = Self { is_stopped: true, ..Self::default() };
    }
}
