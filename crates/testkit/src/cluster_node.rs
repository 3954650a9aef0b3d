//! The process of a node of a Redis Cluster, and what it says about the others.

use std::{path::Path, time::Duration};

use nix::sys::signal::Signal;
use redis::{Client, RedisResult, aio::MultiplexedConnection};
use tempfile::TempDir;

use crate::{
    CertificateFiles, ReservedPort, TestAuthority, patient_config,
    redis_process::{RedisProcess, redis_command, spawn_until_it_answers},
    redis_server::tls_options,
};

/// After how long without an answer a node counts as down, unless a test says otherwise: no node does, however busy the
/// machine is.
const NEVER_DOWN: Duration = Duration::from_mins(5);

/// Who signs certificates, and the one of all servers.
pub(crate) type Tls<'a> = Option<(&'a TestAuthority, &'a CertificateFiles)>;

/// A node of a cluster.
pub(crate) struct Node {
    pub(crate) process: Option<RedisProcess>,
    pub(crate) port: ReservedPort,
    pub(crate) tls_port: Option<ReservedPort>,
    pub(crate) bus_port: ReservedPort,
    folder: TempDir,
    options: Vec<String>,
    /// What the cluster calls it.
    pub(crate) id: String,
}

/// A line of `CLUSTER NODES`: what one node thinks about another one.
pub(crate) struct NodeView {
    pub(crate) id: String,
    pub(crate) flags: Vec<String>,
    pub(crate) primary_id: String,
    pub(crate) is_connected: bool,
    pub(crate) slots: Vec<(usize, usize)>,
}

impl Node {
    /// With TLS everybody has the same certificate.
    pub(crate) fn start(options: &[&str], tls: Tls<'_>) -> Self {
        let folder = tempfile::tempdir().expect("a folder for a node");
        // A program that is no test may take a port in the moment between: then other ones
        for _ in 0..10 {
            let (port, bus_port) = (ReservedPort::choose(), ReservedPort::choose());
            let mut options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
            let tls_port = tls.map(|(authority, certificate)| {
                let port = ReservedPort::choose();
                let settings = tls_options(port.number(), authority, certificate);
                options.extend(settings.into_iter().flat_map(|(name, value)| [format!("--{name}"), value]));
                options.extend(["--tls-cluster", "yes", "--tls-replication", "yes"].map(ToOwned::to_owned));
                port
            });
            if let Some(process) = spawn(folder.path(), &port, &bus_port, &options) {
                return Self { process: Some(process), port, tls_port, bus_port, folder, options, id: String::new() };
            }
        }
        panic!("redis-server --cluster-enabled yes does not start; see {}", folder.path().display());
    }

    pub(crate) async fn connection(&self) -> RedisResult<MultiplexedConnection> {
        let client = Client::open(format!("redis://127.0.0.1:{}", self.port.number()))?;
        client.get_multiplexed_async_connection_with_config(&patient_config()).await
    }

    pub(crate) fn kill(&mut self) {
        self.process.take().expect("the node runs").kill();
    }

    pub(crate) fn restart(&mut self) {
        self.process = spawn(self.folder.path(), &self.port, &self.bus_port, &self.options);
        assert!(self.process.is_some(), "a node does not start again");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("the node runs").signal(signal);
    }
}

impl NodeView {
    /// `<id> <address> <flags> <primary> <ping> <pong> <epoch> <link> <slots> ...`
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [id, _, flags, primary_id, _, _, _, link, slots @ ..] = words.as_slice() else { return None };
        let range = |text: &&str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        Some(Self {
            id: (*id).to_owned(),
            flags: flags.split(',').map(ToOwned::to_owned).collect(),
            primary_id: (*primary_id).to_owned(),
            is_connected: *link == "connected",
            // A slot that moves is in brackets as well
            slots: slots.iter().filter_map(range).collect(),
        })
    }

    pub(crate) fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|other| other == flag)
    }
}

fn spawn(folder: &Path, port: &ReservedPort, bus_port: &ReservedPort, options: &[String]) -> Option<RedisProcess> {
    let mut command = redis_command();
    command.arg("--port").arg(port.number().to_string()).arg("--cluster-port").arg(bus_port.number().to_string());
    command.args(["--bind", "127.0.0.1", "-::1", "--save", "", "--appendonly", "no", "--logfile", "redis.log"]);
    command.arg("--dir").arg(folder).args(["--cluster-enabled", "yes", "--repl-diskless-sync-delay", "0"]);
    command.arg("--cluster-node-timeout").arg(NEVER_DOWN.as_millis().to_string());
    // A replica takes over however old its data are, and stays with its primary
    command.args(["--cluster-replica-validity-factor", "0", "--cluster-allow-replica-migration", "no"]);
    command.args(options);
    spawn_until_it_answers(command, port.number())
}
