//! A Redis Cluster: three primaries with a replica each, or some without.

use std::time::Duration;

use nix::sys::signal::Signal;
use redis::{Cmd, FromRedisValue, InfoDict, RedisResult, aio::MultiplexedConnection};

use crate::{
    CertificateFiles, TestAuthority,
    cluster_node::{Node, NodeView, Tls},
    eventually, eventually_or,
};

const PRIMARIES: usize = 3;
const SLOTS: usize = 16_384;

/// The nodes. A node is named by its place from 0 to 5: at first 0, 1 and 2 are primaries, each with a third of the slots in
/// their order, and 3, 4 and 5 their replicas. They keep nothing; a node that starts again knows the cluster still.
pub struct ClusterProcesses {
    pub(crate) nodes: Vec<Node>,
    primaries: usize,
    /// The host of URLs, in which an IPv6 address has brackets.
    host: String,
}

impl ClusterProcesses {
    /// Starts a cluster in which no node counts as down, and waits until it is complete.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start() -> Self {
        Self::start_with_options(&[]).await
    }

    /// The same with more options of each node.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_with_options(options: &[&str]) -> Self {
        Self::start_nodes(PRIMARIES, 2 * PRIMARIES, options, None, "127.0.0.1").await
    }

    /// Starts a cluster whose nodes know each other by that address of this machine. The URLs that name it have another host.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_at(
        address: &str,
        host: &str,
        options: &[&str],
        tls: Option<(&TestAuthority, &CertificateFiles)>,
    ) -> Self {
        let cluster = Self::start_nodes(PRIMARIES, 2 * PRIMARIES, options, tls, address).await;
        Self { host: host.to_owned(), ..cluster }
    }

    /// Starts a cluster of that many primaries without replicas.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_without_replicas(primaries: usize) -> Self {
        Self::start_nodes(primaries, primaries, &[], None, "127.0.0.1").await
    }

    /// Starts a cluster with TLS between all of them, where everybody has the same certificate.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_with_tls(authority: &TestAuthority, certificate: &CertificateFiles) -> Self {
        Self::start_nodes(PRIMARIES, 2 * PRIMARIES, &[], Some((authority, certificate)), "127.0.0.1").await
    }

    async fn start_nodes(primaries: usize, nodes: usize, options: &[&str], tls: Tls<'_>, address: &str) -> Self {
        let nodes = (0..nodes).map(|_| Node::start(options, tls)).collect();
        let mut cluster = Self { nodes, primaries, host: "127.0.0.1".to_owned() };
        for place in 0..cluster.nodes.len() {
            cluster.nodes[place].id = cluster.ask(place, redis::cmd("CLUSTER").arg("MYID")).await;
            // Before it knows another node: else two could begin with one epoch, and it takes a while until they differ
            cluster.tell(place, redis::cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(place + 1)).await;
        }
        for place in 0..primaries {
            let first = place * SLOTS / primaries;
            let last = (place + 1) * SLOTS / primaries - 1;
            cluster.tell(place, redis::cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(first).arg(last)).await;
        }
        // Each meets all others, so that nothing waits for them to gossip
        for place in 0..cluster.nodes.len() {
            for other in cluster.nodes.iter().filter(|other| other.id != cluster.nodes[place].id) {
                let (port, bus_port) = (other.port.number(), other.bus_port.number());
                let mut meet = redis::cmd("CLUSTER");
                cluster.tell(place, meet.arg("MEET").arg(address).arg(port).arg(bus_port)).await;
            }
        }
        for replica in primaries..cluster.nodes.len() {
            let mut command = redis::cmd("CLUSTER");
            command.arg("REPLICATE").arg(&cluster.nodes[replica - primaries].id);
            eventually("a replica knows its primary", || async { cluster.try_ask::<()>(replica, &command).await.ok() })
                .await;
        }
        cluster.wait_until_complete().await;
        cluster
    }

    /// The addresses of all nodes.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("{}:{}", self.host, node.port.number())).collect()
    }

    /// The URL that names all nodes.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis+cluster://{}", self.addresses().join(","))
    }

    /// The URL that names the ports with TLS of all nodes.
    #[must_use]
    pub fn tls_url(&self) -> String {
        let ports = self.nodes.iter().filter_map(|node| node.tls_port.as_ref());
        let addresses: Vec<String> = ports.map(|port| format!("{}:{}", self.host, port.number())).collect();
        format!("rediss+cluster://{}", addresses.join(","))
    }

    /// The same for another user.
    #[must_use]
    pub fn url_of(&self, user: &str, password: &str) -> String {
        format!("redis+cluster://{user}:{password}@{}", self.addresses().join(","))
    }

    /// The port of a node.
    #[must_use]
    pub fn port(&self, node: usize) -> u16 {
        self.nodes[node].port.number()
    }

    /// The nodes whose processes run.
    #[must_use]
    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].process.is_some()).collect()
    }

    /// A connection to one node, which follows no redirection.
    ///
    /// # Panics
    /// The node does not run.
    pub async fn connection(&self, node: usize) -> MultiplexedConnection {
        self.nodes[node].connection().await.expect("the node runs")
    }

    /// Sends a command to one node.
    ///
    /// # Panics
    /// The node does not run, or refuses it.
    pub async fn ask<T: FromRedisValue>(&self, node: usize, command: &Cmd) -> T {
        self.try_ask(node, command).await.unwrap_or_else(|error| panic!("node {node}: {error}"))
    }

    pub(crate) async fn tell(&self, node: usize, command: &Cmd) {
        self.ask::<()>(node, command).await;
    }

    pub(crate) async fn try_ask<T: FromRedisValue>(&self, node: usize, command: &Cmd) -> RedisResult<T> {
        command.query_async(&mut self.nodes[node].connection().await?).await
    }

    /// Sends a command to each running primary, by place.
    ///
    /// # Panics
    /// A node refuses it.
    pub async fn ask_primaries<T: FromRedisValue>(&self, command: &Cmd) -> Vec<(usize, T)> {
        let mut answers = Vec::new();
        for node in self.primaries().await {
            answers.push((node, self.ask(node, command).await));
        }
        answers
    }

    /// The running nodes that are primaries.
    pub async fn primaries(&self) -> Vec<usize> {
        let mut primaries = Vec::new();
        for node in self.running() {
            if self.is_primary(node).await {
                primaries.push(node);
            }
        }
        primaries
    }

    /// The slot of a key.
    ///
    /// # Panics
    /// No node runs.
    pub async fn slot_of(&self, key: &str) -> usize {
        self.ask(self.running()[0], redis::cmd("CLUSTER").arg("KEYSLOT").arg(key)).await
    }

    /// The running node that takes writes of a slot.
    ///
    /// # Panics
    /// None does.
    pub async fn primary_of(&self, slot: usize) -> usize {
        eventually("a node has the slot", || async {
            for node in self.running() {
                let views = self.views(node).await?;
                let myself = views.iter().find(|view| view.has("myself"))?;
                if myself.has("master") && myself.slots.iter().any(|(first, last)| (*first..=*last).contains(&slot)) {
                    return Some(node);
                }
            }
            None
        })
        .await
    }

    /// A running replica of a node, which may be down.
    ///
    /// # Panics
    /// It has none.
    pub async fn replica_of(&self, primary: usize) -> usize {
        for node in self.running() {
            let views = self.views(node).await.expect("the node runs");
            if views.iter().any(|view| view.has("myself") && view.primary_id == self.nodes[primary].id) {
                return node;
            }
        }
        panic!("node {primary} has no replica");
    }

    async fn is_primary(&self, node: usize) -> bool {
        let views = self.views(node).await.unwrap_or_default();
        views.iter().any(|view| view.has("myself") && view.has("master"))
    }

    pub(crate) async fn views(&self, node: usize) -> Option<Vec<NodeView>> {
        let lines: String = self.try_ask(node, redis::cmd("CLUSTER").arg("NODES")).await.ok()?;
        lines.lines().map(NodeView::parse).collect()
    }

    /// Sets after how long without an answer a node counts as down, at all nodes that run: from then on replicas take over.
    ///
    /// # Panics
    /// A node does not take it.
    pub async fn set_down_after(&self, silence: Duration) {
        for node in self.running() {
            let milliseconds = silence.as_millis().to_string();
            self.tell(node, redis::cmd("CONFIG").arg("SET").arg("cluster-node-timeout").arg(milliseconds)).await;
        }
    }

    /// Waits until all running nodes agree that all slots are served, and each replica has what its primary has.
    ///
    /// # Panics
    /// They do not.
    pub async fn wait_until_complete(&self) {
        for node in self.running() {
            eventually_or(|| format!("node {node} is a part of a complete cluster"), || self.is_complete(node)).await;
        }
    }

    async fn is_complete(&self, node: usize) -> Option<()> {
        let state: String = self.try_ask(node, redis::cmd("CLUSTER").arg("INFO")).await.ok()?;
        let views = self.views(node).await?;
        let is_down = |view: &&NodeView| view.has("fail") || view.has("fail?");
        let is_usable = |view: &&NodeView| !is_down(view) && view.is_connected && !view.has("handshake");
        let usable: Vec<&NodeView> = views.iter().filter(is_usable).collect();
        let replicas = usable.iter().filter(|view| view.has("slave")).count();
        let expected = self.running().len();
        if !state.contains("cluster_state:ok") || usable.len() != expected || replicas != expected - self.primaries {
            return None;
        }
        let info: InfoDict = self.try_ask(node, redis::cmd("INFO").arg("replication")).await.ok()?;
        let link: Option<String> = info.get("master_link_status");
        link.is_none_or(|link| link == "up").then_some(())
    }

    /// Waits until every running node says that this one is a primary, and that all slots are served.
    ///
    /// # Panics
    /// They do not.
    pub async fn wait_until_promoted(&self, node: usize) {
        let id = &self.nodes[node].id;
        for other in self.running() {
            eventually("a replica is promoted", || async {
                let views = self.views(other).await?;
                let promoted = views.iter().find(|view| view.id == *id)?;
                let state: String = self.try_ask(other, redis::cmd("CLUSTER").arg("INFO")).await.ok()?;
                (promoted.has("master") && !promoted.slots.is_empty() && state.contains("cluster_state:ok"))
                    .then_some(())
            })
            .await;
        }
    }

    /// Promotes the replica of a primary that is gone, as if the others had noticed.
    ///
    /// # Panics
    /// It does not run, or is no replica.
    pub async fn promote(&self, replica: usize) {
        self.tell(replica, redis::cmd("CLUSTER").arg("FAILOVER").arg("TAKEOVER")).await;
    }

    /// Makes a replica the primary though its primary runs.
    ///
    /// # Panics
    /// It does not become one.
    pub async fn fail_over(&self, replica: usize) {
        eventually("a replica takes over", || async {
            // It gives up after some seconds
            let _: RedisResult<()> = self.try_ask(replica, redis::cmd("CLUSTER").arg("FAILOVER")).await;
            self.is_primary(replica).await.then_some(())
        })
        .await;
        self.wait_until_promoted(replica).await;
    }

    /// Waits until the replica of a primary has everything that was written before.
    ///
    /// # Panics
    /// The primary does not run.
    pub async fn wait_until_replicated(&self, primary: usize) {
        let mut connection = self.connection(primary).await;
        // WAIT is about the writes of its own connection, and they are replicated in order; a key would need a slot
        redis::cmd("PUBLISH").arg("test:replicated").arg(1).exec_async(&mut connection).await.expect("the node runs");
        redis::cmd("WAIT").arg(1).arg(0).exec_async(&mut connection).await.expect("the node runs");
    }

    /// Kills a node without warning.
    ///
    /// # Panics
    /// It does not run.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts a killed node again, on the same port and without data.
    ///
    /// # Panics
    /// It does not start.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].restart();
    }

    /// Stops a node in its tracks, connections and all, until [`ClusterProcesses::thaw`].
    ///
    /// # Panics
    /// It does not run.
    pub fn freeze(&self, node: usize) {
        self.nodes[node].signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// It does not run.
    pub fn thaw(&self, node: usize) {
        self.nodes[node].signal(Signal::SIGCONT);
    }
}
