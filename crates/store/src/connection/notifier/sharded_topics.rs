//! Which connection hears which sharded topic. Only the connection to the node that has its slot can. Slots move at any time, so
//! connections come and go, and two may be subscribed to a topic for a moment: what is kept here follows what nodes said, in the
//! order in which each of them said it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::slots;

/// The sharded topics that somebody wants.
#[derive(Debug, Default)]
pub(super) struct ShardedTopics {
    /// Those that no connection hears, with their slots.
    missing: BTreeMap<String, u16>,
    /// The others, each with the connection that hears it.
    heard: HashMap<String, u64>,
    /// The connections that are open, each with the topics that it has to leave.
    connections: HashMap<u64, BTreeSet<String>>,
    last_connection: u64,
}

impl ShardedTopics {
    /// Somebody wants a topic.
    pub(super) fn want(&mut self, topic: &str) {
        if !self.heard.contains_key(topic) {
            self.missing.insert(topic.to_owned(), slots::slot_of(topic.as_bytes()));
        }
    }

    /// Nobody wants a topic any more.
    pub(super) fn leave(&mut self, topic: &str) {
        self.missing.remove(topic);
        if let Some(unwanted) = self.heard.remove(topic).and_then(|at| self.connections.get_mut(&at)) {
            unwanted.insert(topic.to_owned());
        }
    }

    /// A new connection. What an earlier one to the same node still hears does not count for it.
    pub(super) fn open(&mut self) -> u64 {
        self.last_connection += 1;
        self.connections.insert(self.last_connection, BTreeSet::new());
        self.last_connection
    }

    /// Whether a topic is wanted that no connection hears.
    pub(super) fn is_missing(&self, topic: &str) -> bool {
        self.missing.contains_key(topic)
    }

    /// The slots of the topics that no connection hears.
    pub(super) fn missing_slots(&self) -> BTreeSet<u16> {
        self.missing.values().copied().collect()
    }

    /// A node has confirmed a subscription; whether the topic is heard from now on.
    pub(super) fn heard_by(&mut self, connection: u64, topic: &str) -> bool {
        let Some(unwanted) = self.connections.get_mut(&connection) else { return false };
        if self.missing.remove(topic).is_some() {
            unwanted.remove(topic);
            self.heard.insert(topic.to_owned(), connection);
            return true;
        }
        // Nobody wants it any more, or another node was faster
        if self.heard.get(topic) != Some(&connection) {
            unwanted.insert(topic.to_owned());
        }
        false
    }

    /// A node has ended a subscription; whether the topic is not heard from now on.
    pub(super) fn ended_by(&mut self, connection: u64, topic: &str) -> bool {
        let is_its_own = self.heard.get(topic) == Some(&connection);
        if is_its_own {
            self.heard.remove(topic);
            self.want(topic);
        }
        is_its_own
    }

    /// A connection is gone; the topics that are not heard from now on.
    pub(super) fn close(&mut self, connection: u64) -> Vec<String> {
        self.connections.remove(&connection);
        let lost: Vec<String> = self.heard.extract_if(|_, at| *at == connection).map(|(topic, _)| topic).collect();
        for topic in &lost {
            self.want(topic);
        }
        lost
    }

    /// Whether a connection hears a topic, or has to.
    pub(super) fn is_used(&self, connection: u64, is_here: impl Fn(u16) -> bool) -> bool {
        self.heard.values().any(|at| *at == connection) || self.missing.values().any(|slot| is_here(*slot))
    }

    /// Leaves those topics of a connection whose slots another node has; they are not heard from now on.
    pub(super) fn leave_misplaced(&mut self, connection: u64, is_here: impl Fn(u16) -> bool) -> Vec<String> {
        let is_misplaced =
            |topic: &String, at: &mut u64| *at == connection && !is_here(slots::slot_of(topic.as_bytes()));
        let misplaced: Vec<String> = self.heard.extract_if(is_misplaced).map(|(topic, _)| topic).collect();
        for topic in &misplaced {
            self.want(topic);
            if let Some(unwanted) = self.connections.get_mut(&connection) {
                unwanted.insert(topic.clone());
            }
        }
        misplaced
    }

    /// What a connection has to leave, and then to subscribe to: of what nobody hears, the topics of its node's slots.
    pub(super) fn changes(&mut self, connection: u64, is_here: impl Fn(u16) -> bool) -> (Vec<String>, Vec<String>) {
        let unwanted = self.connections.get_mut(&connection).map(std::mem::take).unwrap_or_default();
        let wanted = self.missing.iter().filter(|(_, slot)| is_here(**slot)).map(|(topic, _)| topic.clone());
        (unwanted.into_iter().collect(), wanted.collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const TOPICS: [&str; 3] = ["{a}", "{b}", "{c}"];

    /// What happens next.
    #[derive(Debug, Clone)]
    enum Step {
        Want(usize),
        Leave(usize),
        /// The slot of a topic gets the other node, which the process learns.
        Move(usize),
        /// A process sends what it has to send to a node, which answers.
        Send(usize),
        /// It receives the first of what a node said.
        Receive(usize),
        Break(usize),
    }

    /// Two nodes, each with one connection.
    #[derive(Default)]
    struct World {
        topics: ShardedTopics,
        wanted: BTreeSet<usize>,
        owners: [usize; 3],
        connections: [u64; 2],
        /// What each node is subscribed to, and what it said and was not received yet: the topic, and whether it begins.
        at_node: [BTreeSet<String>; 2],
        said: [VecDeque<(String, bool)>; 2],
    }

    impl World {
        fn owner(owners: &[usize; 3], slot: u16) -> usize {
            TOPICS.iter().position(|topic| slots::slot_of(topic.as_bytes()) == slot).map_or(0, |topic| owners[topic])
        }

        fn send(&mut self, node: usize) {
            let owners = self.owners;
            let (unwanted, wanted) =
                self.topics.changes(self.connections[node], |slot| Self::owner(&owners, slot) == node);
            for topic in unwanted {
                self.at_node[node].remove(&topic);
                self.said[node].push_back((topic, false));
            }
            for topic in wanted {
                self.at_node[node].insert(topic.clone());
                self.said[node].push_back((topic, true));
            }
        }

        fn receive(&mut self, node: usize) {
            match self.said[node].pop_front() {
                Some((topic, true)) => _ = self.topics.heard_by(self.connections[node], &topic),
                Some((topic, false)) => _ = self.topics.ended_by(self.connections[node], &topic),
                None => {}
            }
        }

        fn take(&mut self, step: &Step) {
            match *step {
                Step::Want(topic) => {
                    self.wanted.insert(topic);
                    self.topics.want(TOPICS[topic]);
                }
                Step::Leave(topic) => {
                    self.wanted.remove(&topic);
                    self.topics.leave(TOPICS[topic]);
                }
                Step::Move(topic) => {
                    let node = self.owners[topic];
                    self.owners[topic] = 1 - node;
                    if self.at_node[node].remove(TOPICS[topic]) {
                        self.said[node].push_back((TOPICS[topic].to_owned(), false));
                    }
                }
                Step::Send(node) => self.send(node),
                Step::Receive(node) => self.receive(node),
                Step::Break(node) => {
                    self.topics.close(self.connections[node]);
                    self.connections[node] = self.topics.open();
                    (self.at_node[node], self.said[node]) = (BTreeSet::new(), VecDeque::new());
                }
            }
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3_usize).prop_map(Step::Want),
            (0..3_usize).prop_map(Step::Leave),
            (0..3_usize).prop_map(Step::Move),
            (0..2_usize).prop_map(Step::Send),
            (0..2_usize).prop_map(Step::Send),
            (0..2_usize).prop_map(Step::Receive),
            (0..2_usize).prop_map(Step::Receive),
            (0..2_usize).prop_map(Step::Break),
        ]
    }

    proptest! {
        #[test]
        fn in_the_end_each_wanted_topic_is_heard_at_its_node_and_no_other(
            steps in proptest::collection::vec(step(), 0..80),
        ) {
            let mut world = World::default();
            world.connections = [world.topics.open(), world.topics.open()];
            for step in &steps {
                world.take(step);
                // Whatever is said to be heard is heard, or the node has said that it ended
                for (topic, at) in &world.topics.heard {
                    let node = world.connections.iter().position(|connection| connection == at).expect("it is open");
                    let has_ended = world.said[node].contains(&(topic.clone(), false));
                    prop_assert!(world.at_node[node].contains(topic) || has_ended, "{} after {:?}", topic, step);
                }
            }
            for _ in 0..4 {
                for node in 0..2 {
                    world.send(node);
                    while !world.said[node].is_empty() {
                        world.receive(node);
                    }
                }
            }
            for (number, topic) in TOPICS.iter().enumerate() {
                let is_wanted = world.wanted.contains(&number);
                let at = world.topics.heard.get(*topic).copied();
                prop_assert_eq!(at, is_wanted.then_some(world.connections[world.owners[number]]), "{}", topic);
                for node in 0..2 {
                    let is_there = is_wanted && node == world.owners[number];
                    prop_assert_eq!(world.at_node[node].contains(*topic), is_there, "{} at {}", topic, node);
                }
            }
            prop_assert!(world.topics.missing.is_empty());
        }
    }
}
