//! Who wants which topics, and which of them arrive.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{TopicTagger, sharded_topics::ShardedTopics, subscriber::EventSender};

#[derive(Default)]
pub(super) struct Registry {
    next_id: u64,
    subscribers: HashMap<u64, Subscriber>,
    routes: HashMap<String, Arc<[Route]>>,
    /// Topics to which the common connection is subscribed: all, so that sharded ones are heard of processes that publish
    /// them to every node.
    subscribed: BTreeSet<String>,
    pub(super) sharded: ShardedTopics,
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
pub(super) struct Route {
    id: u64,
    pub(super) sender: EventSender,
    pub(super) tagger: Option<TopicTagger>,
}

impl Registry {
    /// Adds a subscriber without topics. After a stop its sender is dropped at once, so its queue ends.
    pub(super) fn add_subscriber(&mut self, sender: EventSender, tagger: Option<TopicTagger>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        if !self.is_stopped {
            let route = Route { id, sender, tagger };
            let subscriber = Subscriber { route, topics: BTreeSet::new(), unconfirmed: BTreeSet::new() };
            self.subscribers.insert(id, subscriber);
        }
        id
    }

    /// Removes a subscriber; whether it had topics.
    pub(super) fn remove_subscriber(&mut self, id: u64) -> bool {
        let topics = self.subscribers.get(&id).map(|subscriber| subscriber.topics.clone()).unwrap_or_default();
        for topic in &topics {
            self.remove(id, topic);
        }
        self.subscribers.remove(&id);
        !topics.is_empty()
    }

    pub(super) fn add(&mut self, id: u64, topic: String, is_sharded: bool) -> bool {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return false };
        if !subscriber.topics.insert(topic.clone()) {
            return false;
        }
        subscriber.unconfirmed.insert(topic.clone());
        let route = subscriber.route.clone();
        if is_sharded {
            self.sharded.want(&topic);
        }
        let routes = self.routes.entry(topic).or_insert_with(|| Arc::new([]));
        *routes = routes.iter().cloned().chain([route]).collect();
        true
    }

    pub(super) fn remove(&mut self, id: u64, topic: &str) -> bool {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return false };
        if !subscriber.topics.remove(topic) {
            return false;
        }
        subscriber.unconfirmed.remove(topic);
        if let Some(routes) = self.routes.get_mut(topic) {
            *routes = routes.iter().filter(|route| route.id != id).cloned().collect();
            if routes.is_empty() {
                self.routes.remove(topic);
                self.sharded.leave(topic);
            }
        }
        true
    }

    /// The receivers of a topic.
    pub(super) fn routes(&self, topic: &str) -> Option<Arc<[Route]>> {
        self.routes.get(topic).cloned()
    }

    /// What the common connection has to subscribe to and to leave: there may be very many topics, few of them changed.
    pub(super) fn changed_topics(&self, probe: &str) -> (Vec<String>, Vec<String>) {
        let added = self.routes.keys().map(String::as_str).chain([probe]);
        let added = added.filter(|topic| !self.subscribed.contains(*topic)).map(str::to_owned).collect();
        let removed = self.subscribed.iter().filter(|topic| *topic != probe && !self.routes.contains_key(*topic));
        (added, removed.cloned().collect())
    }

    /// The common connection is subscribed to these, and not to those any more.
    pub(super) fn note_subscribed(&mut self, added: Vec<String>, removed: &[String]) {
        for topic in removed {
            self.subscribed.remove(topic);
        }
        self.subscribed.extend(added);
        let Self { subscribers, subscribed, sharded, .. } = self;
        for subscriber in subscribers.values_mut() {
            let is_heard = |topic: &&String| subscribed.contains(*topic) && !sharded.is_missing(topic);
            let confirmed: Vec<String> = subscriber.unconfirmed.iter().filter(is_heard).cloned().collect();
            if !confirmed.is_empty() {
                for topic in &confirmed {
                    subscriber.unconfirmed.remove(topic);
                }
                subscriber.route.sender.send_subscribed(confirmed);
            }
        }
    }

    /// A connection to a node hears a sharded topic.
    pub(super) fn shard_subscribed(&mut self, connection: u64, topic: &str) {
        if !self.sharded.heard_by(connection, topic) || !self.subscribed.contains(topic) {
            return;
        }
        for route in self.routes.get(topic).into_iter().flat_map(|routes| routes.iter()) {
            let Some(subscriber) = self.subscribers.get_mut(&route.id) else { continue };
            if subscriber.unconfirmed.remove(topic) {
                route.sender.send_subscribed(vec![topic.to_owned()]);
            }
        }
    }

    /// A node does not serve a sharded topic any more; whether it was heard there.
    pub(super) fn shard_unsubscribed(&mut self, connection: u64, topic: &str) -> bool {
        let was_heard = self.sharded.ended_by(connection, topic);
        if was_heard {
            self.topics_lost([topic]);
        }
        was_heard
    }

    /// A connection to a node broke.
    pub(super) fn shard_connection_lost(&mut self, connection: u64) {
        let lost = self.sharded.close(connection);
        self.topics_lost(lost.iter().map(String::as_str));
    }

    /// Gives up those topics of a connection whose slots another node has; whether there were some.
    pub(super) fn leave_misplaced(&mut self, connection: u64, is_here: impl Fn(u16) -> bool) -> bool {
        let misplaced = self.sharded.leave_misplaced(connection, is_here);
        self.topics_lost(misplaced.iter().map(String::as_str));
        !misplaced.is_empty()
    }

    fn topics_lost<'a>(&mut self, topics: impl IntoIterator<Item = &'a str>) {
        for topic in topics {
            for route in self.routes.get(topic).into_iter().flat_map(|routes| routes.iter()) {
                let Some(subscriber) = self.subscribers.get_mut(&route.id) else { continue };
                if subscriber.unconfirmed.insert(topic.to_owned()) {
                    route.sender.send_topic_lost(topic);
                }
            }
        }
    }

    /// Reports the lost common connection to each subscriber that had a `Subscribed`.
    pub(super) fn connection_lost(&mut self) {
        self.subscribed.clear();
        for subscriber in self.subscribers.values_mut() {
            if subscriber.unconfirmed.len() < subscriber.topics.len() {
                subscriber.unconfirmed.clone_from(&subscriber.topics);
                subscriber.route.sender.send_connection_lost();
            }
        }
    }

    pub(super) fn take_dropped_count(&self) -> u64 {
        self.subscribers.values().map(|subscriber| subscriber.route.sender.take_dropped_count()).sum()
    }

    /// Ends the queues of all subscribers.
    pub(super) fn stop(&mut self) {
        *self = Self { is_stopped: true, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::subscriber::{EventReceiver, SubscriberEvent, bounded_channel},
        *,
    };

    const SHARDED: [&str; 2] = ["galley:0:{a}:finished", "galley:0:{b}:finished"];

    fn names(topics: &[&str]) -> Vec<String> {
        topics.iter().map(|topic| (*topic).to_owned()).collect()
    }

    fn subscribed(topics: &[&str]) -> SubscriberEvent {
        SubscriberEvent::Subscribed(names(topics))
    }

    fn registry_with_both() -> (Registry, u64, EventReceiver) {
        let (mut registry, (sender, events)) = (Registry::default(), bounded_channel(9));
        let id = registry.add_subscriber(sender, None);
        for topic in SHARDED {
            assert!(registry.add(id, topic.to_owned(), true));
        }
        registry.add(id, "plain".to_owned(), false);
        (registry, id, events)
    }

    #[test]
    fn a_sharded_topic_arrives_when_both_connections_hear_it() {
        let (mut registry, _, mut events) = registry_with_both();
        let node = registry.sharded.open();
        registry.shard_subscribed(node, SHARDED[0]);
        assert_eq!(events.try_recv(), None, "a process of the version before would not be heard");
        let (added, removed) = registry.changed_topics("probe");
        assert_eq!((added.len(), removed.len()), (4, 0));
        registry.note_subscribed(added, &removed);
        assert_eq!(events.try_recv(), Some(subscribed(&[SHARDED[0], "plain"])));
        registry.shard_subscribed(node, SHARDED[1]);
        assert_eq!(events.try_recv(), Some(subscribed(&[SHARDED[1]])));
    }

    #[test]
    fn what_one_node_does_not_serve_any_more_is_told_of_its_topics_only() {
        let (mut registry, id, mut events) = registry_with_both();
        let nodes = [registry.sharded.open(), registry.sharded.open()];
        registry.note_subscribed(registry.changed_topics("probe").0, &[]);
        registry.shard_subscribed(nodes[0], SHARDED[0]);
        registry.shard_subscribed(nodes[1], SHARDED[1]);
        // Not read yet when the other node is lost: it still counts
        registry.shard_connection_lost(nodes[1]);
        assert_eq!(events.try_recv(), Some(SubscriberEvent::ConnectionLost));
        assert_eq!(events.try_recv(), Some(subscribed(&[SHARDED[0], "plain"])));
        let node = registry.sharded.open();
        registry.shard_subscribed(node, SHARDED[1]);
        assert_eq!(events.try_recv(), Some(subscribed(&[SHARDED[1]])));

        assert!(registry.shard_unsubscribed(nodes[0], SHARDED[0]), "its slot has moved");
        assert!(!registry.shard_unsubscribed(nodes[0], SHARDED[0]), "that is known");
        assert_eq!(events.try_recv(), Some(SubscriberEvent::ConnectionLost));
        registry.shard_subscribed(nodes[1], SHARDED[0]);
        assert_eq!(events.try_recv(), None, "what a connection heard that is gone");
        registry.shard_subscribed(node, SHARDED[0]);
        assert_eq!(events.try_recv(), Some(subscribed(&[SHARDED[0]])));

        // All look again when the common connection breaks, and nothing is missing at the nodes
        registry.connection_lost();
        assert_eq!(events.try_recv(), Some(SubscriberEvent::ConnectionLost));
        registry.note_subscribed(registry.changed_topics("probe").0, &[]);
        assert_eq!(events.try_recv(), Some(subscribed(&[SHARDED[0], SHARDED[1], "plain"])));
        assert!(registry.remove_subscriber(id));
        let (unwanted, wanted) = registry.sharded.changes(node, |_| true);
        assert_eq!((unwanted.len(), wanted.len()), (2, 0));
    }
}
