//! A primary, its replica and three sentinels that watch them.

use std::{collections::HashMap, fs, time::Duration};

use redis::{Client, RedisResult, aio::MultiplexedConnection};
use tempfile::TempDir;

use crate::{
    CertificateFiles, RedisPersistence, RedisServer, ReservedPort, TestAuthority,
    cluster_node::Tls,
    eventually, patient_config,
    redis_process::{RedisProcess, redis_command, spawn_until_it_answers},
    redis_server::tls_options,
};

/// What the sentinels call the primary.
const PRIMARY_NAME: &str = "galley";
const LOCALHOST: &str = "127.0.0.1";
/// Servers listen there too where there is IPv6.
const BIND: [&str; 3] = ["--bind", LOCALHOST, "-::1"];
/// How long a server may stand still at first: on a busy machine sentinels would fail over though nobody asked for it.
pub(crate) const NEVER_DOWN: Duration = Duration::from_mins(10);
/// The password of sentinels with TLS.
pub const SENTINEL_PASSWORD: &str = "sentinel-secret";

/// The servers and their sentinels.
pub struct SentinelSet {
    /// The server that is the primary at first.
    pub primary: RedisServer,
    /// The server that is its replica at first.
    pub replica: RedisServer,
    /// What watches them.
    pub sentinels: SentinelProcesses,
}

/// Three sentinels, and the address by which they and the servers know each other.
pub struct SentinelProcesses(Vec<Sentinel>, String);

struct Sentinel {
    _process: RedisProcess,
    port: ReservedPort,
    tls_port: Option<ReservedPort>,
    _folder: TempDir,
}

impl SentinelSet {
    /// Starts servers that keep nothing, and waits until the sentinels could fail over.
    ///
    /// # Panics
    /// They do not start.
    pub async fn start() -> Self {
        Self::start_with_options(&[]).await
    }

    /// The same with more options of the primary.
    ///
    /// # Panics
    /// They do not start.
    pub async fn start_with_options(of_primary: &[&str]) -> Self {
        Self::start_servers(of_primary, LOCALHOST).await
    }

    /// The same where everybody is known by that address of this machine.
    ///
    /// # Panics
    /// They do not start.
    pub async fn start_at(address: &str) -> Self {
        Self::start_servers(&[], address).await
    }

    async fn start_servers(of_primary: &[&str], address: &str) -> Self {
        let options: Vec<&str> =
            ["--repl-diskless-sync-delay", "0"].iter().chain(of_primary).chain(&BIND).copied().collect();
        let primary = RedisServer::start_with_options(RedisPersistence::None, &options);
        let of_primary = format!("{address} {}", primary.port());
        let options: Vec<&str> = ["--replicaof", &of_primary].into_iter().chain(BIND).collect();
        let replica = RedisServer::start_with_options(RedisPersistence::None, &options);
        let sentinels = SentinelProcesses::start((address, primary.port()), None).await;
        Self { primary, replica, sentinels }
    }

    /// The same with TLS between all of them, where everybody has the same certificate, and a password of the sentinels;
    /// none if the server of this machine was built without TLS.
    ///
    /// # Panics
    /// They do not start.
    pub async fn start_with_tls(authority: &TestAuthority, certificate: &CertificateFiles) -> Option<Self> {
        let start = |more: [&str; 2]| {
            let options: Vec<&str> = ["--tls-replication", "yes"].into_iter().chain(more).collect();
            RedisServer::start_with_tls_and_options(authority, certificate, &options)
        };
        let primary = start(["--repl-diskless-sync-delay", "0"])?;
        let port = primary.tls_port()?;
        let replica = start(["--replicaof", &format!("127.0.0.1 {port}")])?;
        let sentinels = SentinelProcesses::start((LOCALHOST, port), Some((authority, certificate))).await;
        Some(Self { primary, replica, sentinels })
    }
}

impl SentinelProcesses {
    async fn start(primary: (&str, u16), tls: Tls<'_>) -> Self {
        let sentinels = Self((0..3).map(|_| Sentinel::start(primary, tls)).collect(), primary.0.to_owned());
        // A failover needs a majority of them, and a replica that they have looked at
        for sentinel in &sentinels.0 {
            eventually("a sentinel knows the others and the replica", || async {
                let usable: String = sentinel.ask("CKQUORUM").await.ok()?;
                let replicas: Vec<HashMap<String, String>> = sentinel.ask("REPLICAS").await.ok()?;
                let status = replicas.first()?.get("master-link-status")?;
                (usable.starts_with("OK 3 ") && status == "ok").then_some(())
            })
            .await;
        }
        sentinels
    }

    /// The URL of the primary's database 5.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_with("")
    }

    /// The URL of the same database for another user.
    #[must_use]
    pub fn url_of(&self, user: &str, password: &str) -> String {
        self.url_with(&format!("{user}:{password}@"))
    }

    fn url_with(&self, credentials: &str) -> String {
        let scheme = if self.0[0].tls_port.is_some() { "rediss+sentinel" } else { "redis+sentinel" };
        let port = |sentinel: &Sentinel| sentinel.tls_port.as_ref().unwrap_or(&sentinel.port).number();
        let host = if self.1.contains(':') { format!("[{}]", self.1) } else { self.1.clone() };
        let address = |sentinel: &Sentinel| format!("{host}:{}", port(sentinel));
        let addresses: Vec<String> = self.0.iter().map(address).collect();
        format!("{scheme}://{credentials}{}/{PRIMARY_NAME}/5", addresses.join(","))
    }

    /// Makes the replica the primary though the primary runs.
    ///
    /// # Panics
    /// No sentinel does it.
    pub async fn fail_over(&self) {
        eventually("a sentinel begins a failover", || async { self.0[0].ask::<()>("FAILOVER").await.ok() }).await;
    }

    /// Sets after how long without an answer the primary counts as down: no pause is so long at first.
    ///
    /// # Panics
    /// A sentinel does not take it.
    pub async fn set_down_after(&self, silence: Duration) {
        for sentinel in &self.0 {
            let mut command = redis::cmd("SENTINEL");
            command.arg("SET").arg(PRIMARY_NAME).arg("down-after-milliseconds").arg(silence.as_millis().to_string());
            let mut connection = sentinel.connection().await.expect("the sentinel runs");
            command.exec_async(&mut connection).await.expect("it takes the setting");
        }
    }

    /// Waits until every sentinel names this server as the primary.
    ///
    /// # Panics
    /// They do not.
    pub async fn wait_until_primary_is(&self, server: &RedisServer) {
        for sentinel in &self.0 {
            eventually("the sentinel names the new primary", || async {
                let (_, port): (String, u16) = sentinel.ask("GET-MASTER-ADDR-BY-NAME").await.ok()?;
                (port == server.tls_port().unwrap_or(server.port())).then_some(())
            })
            .await;
        }
    }
}

impl Sentinel {
    fn start((address, primary_port): (&str, u16), tls: Tls<'_>) -> Self {
        for _ in 0..10 {
            let folder = tempfile::tempdir().expect("a folder for a sentinel");
            let (port, tls_port) = (ReservedPort::choose(), tls.map(|_| ReservedPort::choose()));
            let mut lines = vec![
                format!("port {}", port.number()),
                format!("bind {LOCALHOST} -::1"),
                format!("dir {}", folder.path().display()),
            ];
            if let (Some((authority, certificate)), Some(tls_port)) = (tls, &tls_port) {
                let tls = tls_options(tls_port.number(), authority, certificate);
                lines.extend(tls.iter().map(|(name, value)| format!("{name} {value}")));
                lines.push("tls-replication yes".to_owned());
                lines.push(format!("requirepass {SENTINEL_PASSWORD}"));
                lines.push(format!("sentinel sentinel-pass {SENTINEL_PASSWORD}"));
            }
            lines.push(format!("sentinel monitor {PRIMARY_NAME} {address} {primary_port} 2"));
            lines.push(format!("sentinel down-after-milliseconds {PRIMARY_NAME} {}", NEVER_DOWN.as_millis()));
            lines.push(format!("sentinel failover-timeout {PRIMARY_NAME} 3000\n"));
            let path = folder.path().join("sentinel.conf");
            fs::write(&path, lines.join("\n")).expect("a file");
            let mut command = redis_command();
            command.arg(&path).arg("--sentinel");
            if let Some(process) = spawn_until_it_answers(command, port.number()) {
                return Self { _process: process, port, tls_port, _folder: folder };
            }
        }
        panic!("redis-server --sentinel does not start");
    }

    async fn connection(&self) -> RedisResult<MultiplexedConnection> {
        let credentials = if self.tls_port.is_some() { format!(":{SENTINEL_PASSWORD}@") } else { String::new() };
        let client = Client::open(format!("redis://{credentials}127.0.0.1:{}", self.port.number()))?;
        client.get_multiplexed_async_connection_with_config(&patient_config()).await
    }

    /// Asks something about the primary.
    async fn ask<T: redis::FromRedisValue>(&self, question: &str) -> RedisResult<T> {
        let mut command = redis::cmd("SENTINEL");
        command.arg(question).arg(PRIMARY_NAME).query_async(&mut self.connection().await?).await
    }
}
