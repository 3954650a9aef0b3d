//! Which node of a cluster has which slot, as a node says it.

use std::{collections::HashMap, fmt};

use redis::{ErrorKind, FromRedisValue, InfoDict, RedisError, RedisResult, Value};

use crate::slots::SLOTS;

/// Where a node listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::connection) struct NodeAddress {
    /// A name or an address; an IPv6 address without brackets.
    pub(in crate::connection) host: String,
    /// The port.
    pub(in crate::connection) port: u16,
}

impl NodeAddress {
    /// Of text as `MOVED` has it. A node that does not say its address leaves the host out: it is the one that was asked. `?`
    /// is a node whose name is not configured, so no address.
    pub(super) fn parse(text: &str, asked: &Self) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        (host != UNKNOWN_NAME).then_some(Self::of(host, port.parse().ok()?, asked))
    }

    fn of(host: &str, port: u16, asked: &Self) -> Self {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Self { host: if bare.is_empty() { asked.host.clone() } else { bare.to_owned() }, port }
    }
}

/// In place of the name of a node that has none, where nodes name each other by their names.
pub(super) const UNKNOWN_NAME: &str = "?";

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The primary of each slot.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SlotMap {
    primaries: Vec<NodeAddress>,
    replicas: Vec<NodeAddress>,
    /// For each slot the index of its primary.
    owners: Vec<Option<u16>>,
}

impl Default for SlotMap {
    fn default() -> Self {
        Self { primaries: Vec::new(), replicas: Vec::new(), owners: vec![None; usize::from(SLOTS)] }
    }
}

impl SlotMap {
    /// From the answer to `CLUSTER SLOTS` of the node at `asked`.
    pub(super) fn parse(answer: Value, asked: &NodeAddress) -> RedisResult<Self> {
        let mut map = Self::default();
        for range in Vec::<Vec<Value>>::from_redis_value(answer)? {
            let mut parts = range.into_iter();
            let (Some(first), Some(last), Some(primary)) = (parts.next(), parts.next(), parts.next()) else {
                return Err(malformed());
            };
            let (first, last) = (u16::from_redis_value(first)?, u16::from_redis_value(last)?);
            if first > last || last >= SLOTS {
                return Err(malformed());
            }
            let primary = node_of(primary, asked)?;
            (first..=last).for_each(|slot| map.set(slot, &primary));
            for replica in parts {
                let replica = node_of(replica, asked)?;
                if !map.replicas.contains(&replica) {
                    map.replicas.push(replica);
                }
            }
        }
        Ok(map)
    }

    /// The primary of a slot, if one is known.
    pub(super) fn owner(&self, slot: u16) -> Option<&NodeAddress> {
        let owner = self.owners.get(usize::from(slot)).copied().flatten()?;
        self.primaries.get(usize::from(owner))
    }

    /// The first slot of a primary.
    pub(super) fn first_slot_of(&self, node: &NodeAddress) -> Option<u16> {
        (0..SLOTS).find(|slot| self.owner(*slot) == Some(node))
    }

    /// Notes that a slot has moved.
    pub(super) fn set(&mut self, slot: u16, to: &NodeAddress) {
        let known = self.primaries.iter().position(|primary| primary == to);
        let index = known.unwrap_or_else(|| {
            self.primaries.push(to.clone());
            self.primaries.len() - 1
        });
        if let Some(owner) = self.owners.get_mut(usize::from(slot)) {
            *owner = u16::try_from(index).ok();
        }
    }

    /// All primaries with slots, in the order in which they were named.
    pub(super) fn primaries(&self) -> &[NodeAddress] {
        &self.primaries
    }

    /// All replicas.
    pub(super) fn replicas(&self) -> &[NodeAddress] {
        &self.replicas
    }

    /// All nodes: each may be asked which has which slot.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeAddress> {
        self.primaries.iter().chain(&self.replicas)
    }
}

/// What one node says of its cluster.
pub(super) struct ClusterView {
    pub(super) map: SlotMap,
    is_working: bool,
    epoch: u64,
}

impl ClusterView {
    /// From the answers to `CLUSTER INFO` and `CLUSTER SLOTS`.
    pub(super) fn parse(answers: Vec<Value>, asked: &NodeAddress) -> RedisResult<Self> {
        let Ok([info, slots]) = <[Value; 2]>::try_from(answers) else { return Err(malformed()) };
        let info = InfoDict::from_redis_value(info.extract_error()?)?;
        Ok(Self {
            map: SlotMap::parse(slots.extract_error()?, asked)?,
            is_working: info.get::<String>("cluster_state").is_some_and(|state| state == "ok"),
            epoch: info.get("cluster_current_epoch").unwrap_or(0),
        })
    }

    /// Of several views the highest counts: one that was cut off keeps an old map, and an old epoch.
    pub(super) fn rank(&self) -> (u64, bool) {
        (self.epoch, self.is_working)
    }
}

/// A node is `[<host>, <port>, <id>, <more>]`.
fn node_of(value: Value, asked: &NodeAddress) -> RedisResult<NodeAddress> {
    let mut parts = Vec::<Value>::from_redis_value(value)?.into_iter();
    let (Some(host), Some(port)) = (parts.next(), parts.next()) else { return Err(malformed()) };
    let mut host = Option::<String>::from_redis_value(host)?.unwrap_or_default();
    if host == UNKNOWN_NAME {
        let more = parts.nth(1).map(HashMap::<String, String>::from_redis_value);
        host = more.and_then(Result::ok).and_then(|mut more| more.remove("ip")).unwrap_or_default();
    }
    Ok(NodeAddress::of(&host, u16::from_redis_value(port)?, asked))
}

fn malformed() -> RedisError {
    RedisError::from((ErrorKind::Parse, "no answer to CLUSTER SLOTS"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(port: u16) -> NodeAddress {
        NodeAddress { host: "127.0.0.1".to_owned(), port }
    }

    fn node(host: Option<&str>, port: u16) -> Value {
        let host = host.map_or(Value::Nil, |host| Value::BulkString(host.into()));
        Value::Array(vec![host, Value::Int(port.into()), Value::BulkString("id".into()), Value::Array(Vec::new())])
    }

    fn range(first: u16, last: u16, nodes: &[u16]) -> Value {
        let nodes = nodes.iter().map(|port| node(Some("127.0.0.1"), *port));
        Value::Array([Value::Int(first.into()), Value::Int(last.into())].into_iter().chain(nodes).collect())
    }

    proptest! {
        #[test]
        fn every_slot_has_the_node_that_was_said_last(
            ranges in proptest::collection::vec((0..SLOTS, 0..2_000_u16, 7000..7010_u16), 0..20),
            moves in proptest::collection::vec((0..SLOTS, 7000..7020_u16), 0..50),
        ) {
            let mut expected = vec![None; usize::from(SLOTS)];
            let mut said = Vec::new();
            for (first, length, port) in ranges {
                let last = (first + length).min(SLOTS - 1);
                said.push(range(first, last, &[port, port + 100]));
                expected[usize::from(first)..=usize::from(last)].fill(Some(port));
            }
            let mut map = SlotMap::parse(Value::Array(said), &address(1)).expect("a map");
            for (slot, port) in moves {
                map.set(slot, &address(port));
                expected[usize::from(slot)] = Some(port);
            }
            for slot in 0..SLOTS {
                prop_assert_eq!(map.owner(slot).map(|node| node.port), expected[usize::from(slot)]);
            }
            prop_assert!(map.nodes().count() <= 40, "each node is named once");
        }
    }

    #[test]
    fn a_node_without_a_name_is_the_one_that_was_asked() {
        let asked = NodeAddress { host: "redis-0".to_owned(), port: 6379 };
        for host in [None, Some("")] {
            let slots = Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(5), node(host, 7)])]);
            let map = SlotMap::parse(slots, &asked).expect("a map");
            assert_eq!(map.owner(5).map(ToString::to_string), Some("redis-0:7".to_owned()), "{host:?}");
        }
        assert_eq!(NodeAddress::parse(":7", &asked).map(|node| node.to_string()), Some("redis-0:7".to_owned()));
        assert_eq!(NodeAddress::parse("::1:7", &asked).map(|node| node.to_string()), Some("[::1]:7".to_owned()));
        for no_address in ["nothing", "?:7", "", "a:b", "a:70000"] {
            assert_eq!(NodeAddress::parse(no_address, &asked), None, "{no_address}");
        }
    }

    #[test]
    fn a_node_whose_name_is_not_configured_has_its_address() {
        let asked = address(1);
        let text = |text: &str| Value::BulkString(text.into());
        for (more, expected) in [
            (Value::Array(vec![text("ip"), text("10.0.0.7")]), "10.0.0.7:7"),
            (Value::Map(vec![(text("hostname"), text("")), (text("ip"), text("fd00::7"))]), "[fd00::7]:7"),
            (Value::Array(Vec::new()), "127.0.0.1:7"),
        ] {
            let node = Value::Array(vec![text("?"), Value::Int(7), text("id"), more]);
            assert_eq!(node_of(node, &asked).expect("a node").to_string(), expected);
        }
    }

    fn any_host() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z][a-z0-9-]{0,20}(\\.[a-z]{1,9}){0,3}",
            any::<std::net::Ipv4Addr>().prop_map(|address| address.to_string()),
            any::<std::net::Ipv6Addr>().prop_map(|address| address.to_string()),
        ]
    }

    proptest! {
        #[test]
        fn addresses_are_read_as_nodes_write_them(host in any_host(), port: u16) {
            let (asked, expected) = (address(1), NodeAddress { host: host.clone(), port });
            // As Redis writes it, and in brackets
            for text in [format!("{host}:{port}"), expected.to_string()] {
                prop_assert_eq!(NodeAddress::parse(&text, &asked), Some(expected.clone()), "{}", text);
            }
            let slots = Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(5), node(Some(&host), port)])]);
            let map = SlotMap::parse(slots, &asked).expect("a map");
            prop_assert_eq!(map.owner(5), Some(&expected));
        }

        #[test]
        fn no_text_is_an_address_that_would_not_be_connected_to(text in "[a-z?:.\\[\\]0-9]{0,12}") {
            if let Some(read) = NodeAddress::parse(&text, &address(1)) {
                prop_assert!(!read.host.is_empty() && read.host != UNKNOWN_NAME);
                prop_assert_eq!(NodeAddress::parse(&read.to_string(), &address(1)), Some(read));
            }
        }
    }

    #[test]
    fn what_is_no_map_is_refused() {
        for answer in [Value::Int(1), Value::Array(vec![range(7, 6, &[1])]), Value::Array(vec![range(0, SLOTS, &[1])])]
        {
            assert!(SlotMap::parse(answer, &address(1)).is_err());
        }
    }
}
