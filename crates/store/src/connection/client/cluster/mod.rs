//! Redis Cluster: several servers, of which each has a part of the slots.
//!
//! A handle to a cluster has a handle of the ordinary kind for each primary. So every rule about connections holds for each
//! node by itself: one hot connection that many callers share, commands that fail at once while the node is away, a server
//! that takes no writes is left. What is new is which node a command goes to.
//!
//! | file | what it does |
//! |---|---|
//! | `slot_map` | which node has which slot |
//! | `redirect` | what a node says of a slot that it does not have |
//! | `each_node` | what every node is asked |
//! | `refresh` | asks the nodes for the map |
//! | `route` | sends commands, scripts and transactions to their node, and pipelines to several |
//! | `scripts` | the texts of scripts, for a node that lacks one |

mod each_node;
mod redirect;
mod refresh;
mod route;
mod scripts;
mod slot_map;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak},
};

use common::settings::RedisSettings;
use redis::{ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisError, RedisResult};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
};

use self::{refresh::Refreshed, scripts::Scripts, slot_map::SlotMap};
use super::{Redis, RedisInner};
use crate::connection::server_address::ServerAddress;

pub(in crate::connection) use self::{redirect::Redirect, route::ConnectionKind};
pub(in crate::connection) use slot_map::NodeAddress;

/// What a handle leads to.
pub(in crate::connection) enum Destination {
    /// One server, or the primary that sentinels name.
    Server,
    /// All nodes of a cluster.
    Cluster(Arc<Cluster>),
    /// One node of a cluster.
    Node(NodeAddress, Weak<Cluster>),
}

/// The nodes of a cluster.
pub(in crate::connection) struct Cluster {
    settings: RedisSettings,
    runtime: Handle,
    seeds: Vec<NodeAddress>,
    topology: RwLock<Topology>,
    /// Notified when the map may be wrong.
    demand: Notify,
    refreshed: watch::Sender<Refreshed>,
    /// Which node is asked first what any node knows: the processes of Galley share the nodes out.
    first_of_any: usize,
    scripts: Scripts,
}

#[derive(Default)]
struct Topology {
    map: SlotMap,
    nodes: HashMap<NodeAddress, Redis>,
}

impl Cluster {
    pub(in crate::connection) fn new(settings: &RedisSettings, runtime: &Handle, seeds: Vec<NodeAddress>) -> Arc<Self> {
        let cluster = Arc::new(Self {
            settings: settings.clone(),
            runtime: runtime.clone(),
            seeds,
            topology: RwLock::default(),
            demand: Notify::new(),
            refreshed: watch::Sender::default(),
            first_of_any: rand::random_range(0..1024),
            scripts: Scripts::default(),
        });
        runtime.spawn(refresh::run(Arc::downgrade(&cluster)));
        cluster
    }

    /// The handle to a node.
    pub(in crate::connection) fn node(self: &Arc<Self>, address: &NodeAddress) -> RedisResult<Redis> {
        if let Some(node) = self.topology().nodes.get(address) {
            return Ok(node.clone());
        }
        let mut topology = self.topology_mut();
        if let Some(node) = topology.nodes.get(address) {
            return Ok(node.clone());
        }
        let destination = Destination::Node(address.clone(), Arc::downgrade(self));
        let node = Redis::open(&self.settings, self.runtime.clone(), destination)
            .map_err(|error| RedisError::from((ErrorKind::Io, "no handle", format!("{error:#}"))))?;
        topology.nodes.insert(address.clone(), node.clone());
        Ok(node)
    }

    fn topology(&self) -> RwLockReadGuard<'_, Topology> {
        self.topology.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn topology_mut(&self) -> RwLockWriteGuard<'_, Topology> {
        self.topology.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn map(&self) -> SlotMap {
        self.topology().map.clone()
    }

    /// The nodes that may be primaries next.
    pub(in crate::connection) fn replicas(&self) -> Vec<NodeAddress> {
        self.topology().map.replicas().to_vec()
    }

    fn known_owner(&self, slot: u16) -> Option<NodeAddress> {
        self.topology().map.owner(slot).cloned()
    }

    /// Whether a node has a slot, as far as is known.
    pub(in crate::connection) fn has_slot(&self, node: &NodeAddress, slot: u16) -> bool {
        self.topology().map.owner(slot) == Some(node)
    }

    /// Notes what a node said of a slot that it does not have.
    pub(in crate::connection) fn note(&self, redirect: &Redirect) {
        match redirect {
            Redirect::Moved(slot, to) => self.topology_mut().map.set(*slot, to),
            Redirect::Unserved => {}
            Redirect::Ask(_) | Redirect::TryAgain => return,
        }
        self.demand_refresh();
    }

    /// Has the nodes asked for the map: a node does not answer as its owner of slots should.
    pub(in crate::connection) fn demand_refresh(&self) {
        self.demand.notify_one();
    }

    /// Uses another map. The connections to servers that are no primaries any more end.
    fn replace_map(&self, map: SlotMap) {
        let mut topology = self.topology_mut();
        let (gone, kept) = std::mem::take(&mut topology.nodes)
            .into_iter()
            .partition(|(address, _)| !map.primaries().contains(address));
        topology.nodes = kept;
        topology.map = map;
        drop(topology);
        let gone: HashMap<NodeAddress, Redis> = gone;
        for node in gone.values() {
            node.inner().leave();
        }
    }
}

impl Redis {
    /// Prepares a client of a cluster. Any node at these URLs can name the others.
    pub(in crate::connection) fn of_cluster(settings: &RedisSettings, urls: &[String]) -> anyhow::Result<Self> {
        let runtime = Handle::current();
        let seed = |url: &String| match url.as_str().into_connection_info()?.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                Ok(NodeAddress { host: host.clone(), port: *port })
            }
            _ => anyhow::bail!("redis.url has a node without a host"),
        };
        let seeds = urls.iter().map(seed).collect::<anyhow::Result<_>>()?;
        let cluster = Cluster::new(settings, &runtime, seeds);
        Self::open(settings, runtime, Destination::Cluster(cluster))
    }

    /// Whether one part of the keys may be there while another is not.
    #[must_use]
    pub fn has_several_servers(&self) -> bool {
        self.cluster().is_some()
    }

    /// Whether both are handles to one server, or to one cluster, that share everything.
    pub(in crate::connection) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.arc(), other.arc())
    }

    /// The cluster that it leads to.
    pub(in crate::connection) fn cluster(&self) -> Option<&Arc<Cluster>> {
        match &self.inner().destination {
            Destination::Cluster(cluster) => Some(cluster),
            _ => None,
        }
    }

    /// The node that it leads to, and its cluster.
    pub(in crate::connection) fn node_of_cluster(&self) -> Option<(&NodeAddress, Option<Arc<Cluster>>)> {
        match &self.inner().destination {
            Destination::Node(address, cluster) => Some((address, cluster.upgrade())),
            _ => None,
        }
    }
}

impl RedisInner {
    /// How connections are opened, with the certificates as they are now.
    pub(in crate::connection) fn read_address(
        settings: &RedisSettings,
        destination: &Destination,
    ) -> anyhow::Result<ServerAddress> {
        let node = if let Destination::Node(address, _) = destination { Some(address) } else { None };
        ServerAddress::new(settings, node)
    }
}
