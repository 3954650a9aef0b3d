//! What is asked of every primary: each knows only its own part.

use futures_util::future::join_all;
use redis::{Cmd, RedisResult};

use super::Cluster;
use crate::{
    Redis, StoreError, StoreResult,
    connection::{error_class::ErrorClass, health::SharedConnectionState, redis_clock::ClockSteps},
    slots,
};
use common::time::Millis;

/// The cursor of a scan is that of a node, and below it this many numbers for the nodes. Servers use fewer than 54 bits.
const MAX_SCANNED_NODES: u64 = 1024;

impl Redis {
    /// Handles to the server, or to all primaries of the cluster.
    ///
    /// # Errors
    /// No node says which ones there are.
    pub(crate) async fn servers(&self) -> RedisResult<Vec<Self>> {
        match self.cluster() {
            None => Ok(vec![self.clone()]),
            Some(cluster) => cluster.primaries(0).await,
        }
    }

    /// Handles to the server, or to the nodes of the cluster that were used.
    pub(in crate::connection) fn known_servers(&self) -> Vec<Self> {
        self.cluster().map_or_else(|| vec![self.clone()], |cluster| cluster.known_nodes())
    }

    /// A slot of the node that this handle leads to, as far as is known.
    pub(in crate::connection) fn own_slot(&self) -> Option<u16> {
        let (address, cluster) = self.node_of_cluster()?;
        cluster?.topology().map.first_slot_of(address)
    }

    /// A handle to the server that has a key.
    pub(crate) async fn server_of(&self, key: &str) -> RedisResult<Self> {
        match self.cluster() {
            None => Ok(self.clone()),
            Some(cluster) => cluster.owner(slots::slot_of(key.as_bytes())).await,
        }
    }

    /// Asks each server; without the answers of those that cannot be reached, unless there is none.
    pub(crate) async fn ask_each<T, F: Future<Output = StoreResult<T>>>(
        &self,
        ask: impl Fn(Self) -> F,
    ) -> StoreResult<Vec<T>> {
        let servers = self.servers().await?;
        let (mut answers, mut failure) = (Vec::with_capacity(servers.len()), None);
        for answer in join_all(servers.into_iter().map(ask)).await {
            match answer {
                Ok(answer) => answers.push(answer),
                Err(error @ StoreError::Unavailable(_)) => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        match failure {
            Some(error) if answers.is_empty() => Err(error),
            _ => Ok(answers),
        }
    }

    /// A step through all keys: those of one server after the other. Returns where to continue, 0 at the end. One that cannot
    /// be reached is passed over.
    pub(crate) async fn scan(&self, from: u64, options: impl Fn(&mut Cmd)) -> StoreResult<(u64, Vec<String>)> {
        let command = |cursor: u64| {
            let mut command = redis::cmd("SCAN");
            command.arg(cursor);
            options(&mut command);
            command
        };
        if self.cluster().is_none() {
            return Ok(command(from).query_async(&mut self.clone()).await?);
        }
        let mut servers = self.servers().await?;
        servers
            .sort_by(|a, b| a.node_of_cluster().map(|(node, _)| node).cmp(&b.node_of_cluster().map(|(node, _)| node)));
        let (cursor, number) = (from / MAX_SCANNED_NODES, from % MAX_SCANNED_NODES);
        let Some(server) = usize::try_from(number).ok().and_then(|number| servers.get(number)) else {
            return Ok((0, Vec::new()));
        };
        let (next, names) = match command(cursor).query_async::<(u64, Vec<String>)>(&mut server.clone()).await {
            Err(error) if ErrorClass::of(&error) >= ErrorClass::WrongServer => {
                tracing::debug!(%error, "a node is left out of a scan");
                (0, Vec::new())
            }
            answer => answer?,
        };
        let has_more = usize::try_from(number + 1).is_ok_and(|number| number < servers.len());
        Ok(match next {
            0 if has_more => (number + 1, names),
            0 => (0, names),
            next => (next * MAX_SCANNED_NODES + number, names),
        })
    }

    /// How often and how far the clocks of the servers were set, as far as this process saw.
    pub(crate) fn clock_steps(&self) -> ClockSteps {
        let own = self.clock().steps();
        let Some(cluster) = self.cluster() else { return own };
        cluster.known_nodes().iter().map(|node| node.clock().steps()).fold(own, |all, of_node| ClockSteps {
            count: all.count + of_node.count,
            total_ms: all.total_ms + of_node.total_ms,
            last_seen: all.last_seen.max(of_node.last_seen),
        })
    }

    /// The time by the clock of a node of the cluster; none if there is none, or it is unknown.
    pub(crate) fn time_at_nodes(&self) -> Option<Millis> {
        self.cluster()?.known_nodes().iter().find_map(|node| node.clock().estimate())
    }

    /// Whether there is a shared connection to the server, or to any node of the cluster.
    pub(crate) fn is_connected(&self) -> bool {
        match self.cluster() {
            None => self.current_connection().is_some(),
            Some(cluster) => cluster.known_nodes().iter().any(|node| node.current_connection().is_some()),
        }
    }

    /// The shared connections to all nodes as one: open if any is, for as long as the first, with the problem of any.
    pub(in crate::connection) fn state_of_nodes(&self) -> Option<SharedConnectionState> {
        let states = self.cluster()?.known_nodes().into_iter().map(|node| node.shared_connection_state());
        let none = SharedConnectionState { is_open: false, opened: 0, open_for: None, problem: None };
        Some(states.fold(none, |all, node| SharedConnectionState {
            is_open: all.is_open || node.is_open,
            opened: all.opened + node.opened,
            open_for: all.open_for.max(node.open_for),
            problem: all.problem.or(node.problem),
        }))
    }

    /// Whether it leads to a cluster of which a node can be reached.
    pub(in crate::connection) async fn is_partly_connected(&self) -> bool {
        self.cluster().is_some() && self.some_server().await.is_ok()
    }

    /// A handle to the server, or to a node that can be reached, each time another one.
    ///
    /// # Errors
    /// None can be reached.
    pub(crate) async fn some_server(&self) -> RedisResult<Self> {
        match self.cluster() {
            None => Ok(self.clone()),
            Some(cluster) => cluster.reachable_node(rand::random_range(0..1024)).await,
        }
    }

    /// When a lease starts that is written now to the server with a key, by what this process knows of its clock; 0 if it knows
    /// nothing. Scripts take that server's time if it is later.
    pub(crate) fn lease_start(&self, key: &str) -> Millis {
        let start = match self.cluster() {
            None => self.clock().lease_start(),
            Some(cluster) => {
                let node = cluster.known_node(slots::slot_of(key.as_bytes()));
                node.and_then(|node| node.clock().lease_start())
            }
        };
        start.unwrap_or(0)
    }
}

impl Cluster {
    /// Handles to the nodes that were used.
    pub(in crate::connection) fn known_nodes(&self) -> Vec<Redis> {
        self.topology().nodes.values().cloned().collect()
    }

    fn known_node(&self, slot: u16) -> Option<Redis> {
        let topology = self.topology();
        topology.nodes.get(topology.map.owner(slot)?).cloned()
    }
}
