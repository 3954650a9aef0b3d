//! A Redis server of a test's own: a free port, a folder of its own, gone at the end.

use std::path::Path;

use nix::sys::signal::Signal;
use redis::AsyncConnectionConfig;
use tempfile::TempDir;

use crate::{
    AdjustableClock, CertificateFiles, ReservedPort, TEST_TIMEOUT, TestAuthority, WatchedDisk, eventually,
    one_node_cluster::OneNodeCluster,
    redis_process::{RedisProcess, redis_command, spawn_until_it_answers},
    watched_disk::preloaded,
};

/// What an acknowledged write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisPersistence {
    /// Nothing.
    None,
    /// A killed process: every write is in the append-only file before it is acknowledged.
    Always,
    /// A killed process; and a power failure all but what came in the last second or two.
    EverySecond,
}

/// A running server.
pub struct RedisServer {
    pub(crate) process: Option<RedisProcess>,
    pub(crate) folder: TempDir,
    port: ReservedPort,
    persistence: RedisPersistence,
    options: Vec<String>,
    tls_port: Option<ReservedPort>,
    /// `user:password@` of the test itself.
    credentials: &'static str,
    clock: Option<AdjustableClock>,
    pub(crate) disk: Option<WatchedDisk>,
    cluster: Option<OneNodeCluster>,
}

impl RedisServer {
    /// Starts a server that keeps nothing.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(RedisPersistence::None)
    }

    /// Starts a server.
    ///
    /// # Panics
    /// There is no server to start; `make test` sees to that.
    #[must_use]
    pub fn start_with(persistence: RedisPersistence) -> Self {
        Self::start_on(persistence, Vec::new())
    }

    /// Starts a server with more options, such as `--cluster-enabled yes`.
    ///
    /// # Panics
    /// As above.
    #[must_use]
    pub fn start_with_options(persistence: RedisPersistence, options: &[&str]) -> Self {
        Self::start_on(persistence, options.iter().map(|option| (*option).to_owned()).collect())
    }

    /// Starts a server that keeps nothing, with an ACL file of these lines and a user of the test's own, who may do all.
    ///
    /// # Panics
    /// There is no server to start, or it refuses the file.
    #[must_use]
    pub fn start_with_acl(lines: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("users.acl");
        std::fs::write(&path, format!("{lines}user test on >test ~* &* +@all\n")).expect("a file");
        let path = path.to_str().expect("UTF-8");
        // Read at the start only
        let mut server = Self::start_with_options(RedisPersistence::None, &["--aclfile", path]);
        server.credentials = "test:test@";
        server
    }

    /// Starts a server that keeps nothing and has a second port with TLS, where clients need a certificate of the
    /// authority; none if the server of this machine was built without TLS.
    ///
    /// # Panics
    /// There is no server to start.
    #[must_use]
    pub fn start_with_tls(authority: &TestAuthority, certificate: &CertificateFiles) -> Option<Self> {
        Self::start_with_tls_and_options(authority, certificate, &[])
    }

    /// The same with more options.
    ///
    /// # Panics
    /// As above.
    #[must_use]
    pub fn start_with_tls_and_options(
        authority: &TestAuthority,
        certificate: &CertificateFiles,
        more: &[&str],
    ) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder for redis");
        for _ in 0..10 {
            let (port, tls_port) = (ReservedPort::choose(), ReservedPort::choose());
            let tls = tls_options(tls_port.number(), authority, certificate);
            let tls = tls.into_iter().flat_map(|(name, value)| [format!("--{name}"), value]);
            let options: Vec<String> = tls.chain(more.iter().map(|option| (*option).to_owned())).collect();
            let persistence = RedisPersistence::None;
            if let Some(process) = spawn_redis(folder.path(), port.number(), persistence, &options, &[]) {
                let (process, tls_port) = (Some(process), Some(tls_port));
                return Some(Self {
                    process,
                    folder,
                    port,
                    persistence,
                    options,
                    tls_port,
                    credentials: "",
                    clock: None,
                    disk: None,
                    cluster: None,
                });
            }
        }
        None
    }

    /// Starts a server that keeps nothing and whose clock can be set.
    #[must_use]
    pub fn start_with_clock() -> Self {
        Self::start_preloaded(RedisPersistence::None, Vec::new(), Some(AdjustableClock::new()), None)
    }

    /// Starts a server whose clock can be set, whose disk can be full, and of which it is known what it synced.
    #[must_use]
    pub fn start_on_watched_disk(persistence: RedisPersistence) -> Self {
        Self::start_preloaded(persistence, Vec::new(), Some(AdjustableClock::new()), Some(WatchedDisk::new()))
    }

    fn start_on(persistence: RedisPersistence, options: Vec<String>) -> Self {
        Self::start_preloaded(persistence, options, None, None)
    }

    fn start_preloaded(
        persistence: RedisPersistence,
        mut options: Vec<String>,
        clock: Option<AdjustableClock>,
        disk: Option<WatchedDisk>,
    ) -> Self {
        let cluster = OneNodeCluster::choose(&options);
        options.extend(cluster.iter().flat_map(OneNodeCluster::options));
        let folder = tempfile::tempdir().expect("a folder for redis");
        let variables = preloaded(clock.as_ref(), disk.as_ref());
        // A program that is no test may take the port in the moment between: then another one
        for _ in 0..10 {
            let port = ReservedPort::choose();
            if let Some(process) = spawn_redis(folder.path(), port.number(), persistence, &options, &variables) {
                let (process, tls_port, credentials) = (Some(process), None, "");
                if cluster.is_some() {
                    OneNodeCluster::complete(port.number());
                }
                return Self {
                    process,
                    folder,
                    port,
                    persistence,
                    options,
                    tls_port,
                    credentials,
                    clock,
                    disk,
                    cluster,
                };
            }
        }
        panic!("redis-server does not start; see {}", folder.path().display());
    }

    /// The URL of its database 5, as the original demo has it.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_with(self.credentials)
    }

    /// The URL of the same database for another user.
    #[must_use]
    pub fn url_of(&self, user: &str, password: &str) -> String {
        self.url_with(&format!("{user}:{password}@"))
    }

    fn url_with(&self, credentials: &str) -> String {
        if self.cluster.is_some() {
            format!("redis+cluster://{credentials}127.0.0.1:{}", self.port())
        } else {
            self.server_url(credentials)
        }
    }

    /// The URL for clients that know no clusters.
    fn server_url(&self, credentials: &str) -> String {
        let database = if self.cluster.is_some() { 0 } else { 5 };
        format!("redis://{credentials}127.0.0.1:{}/{database}", self.port())
    }

    /// The URL of the same database on its port with TLS.
    ///
    /// # Panics
    /// It was not started with TLS.
    #[must_use]
    pub fn tls_url(&self, host: &str) -> String {
        format!("rediss://{host}:{}/5", self.tls_port().expect("a port with TLS"))
    }

    /// Everything in its files: the append-only file, dumps, its log.
    ///
    /// # Panics
    /// A file cannot be read.
    #[must_use]
    pub fn file_contents(&self) -> Vec<u8> {
        let mut folders = vec![self.folder.path().to_owned()];
        let mut contents = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder of ours").flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else {
                    contents.extend(std::fs::read(entry.path()).expect("a file of ours"));
                }
            }
        }
        contents
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its port with TLS.
    #[must_use]
    pub fn tls_port(&self) -> Option<u16> {
        self.tls_port.as_ref().map(ReservedPort::number)
    }

    /// Its clock.
    ///
    /// # Panics
    /// It was not started with a clock that can be set.
    #[must_use]
    pub fn clock(&self) -> &AdjustableClock {
        self.clock.as_ref().expect("a clock that can be set")
    }

    /// A connection to its database 5.
    ///
    /// # Panics
    /// It is not running.
    pub async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let client = &redis::Client::open(self.server_url(self.credentials)).expect("a URL");
        let config = &patient_config();
        // A sentinel closes all connections to a server that it makes a primary or a replica, also one that is just opened
        eventually("a connection to redis", || async {
            client.get_multiplexed_async_connection_with_config(config).await.ok()
        })
        .await
    }

    /// What it answers to a command that may be sent twice: again on a new connection if this one is closed, as a sentinel
    /// does to all connections of a server that it makes a primary or a replica.
    ///
    /// # Panics
    /// It is not running, or refuses the command.
    pub async fn ask<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> T {
        eventually("redis answers", || async {
            match command.query_async(&mut self.connection().await).await {
                Ok(answer) => Some(answer),
                Err(error) if error.is_io_error() => None,
                Err(error) => panic!("redis refuses a command: {error}"),
            }
        })
        .await
    }

    /// Waits until a replica has everything that was written before.
    ///
    /// # Panics
    /// It is not running.
    pub async fn wait_until_replicated(&self) {
        let mut connection = self.connection().await;
        // WAIT is about the writes of its own connection, and they are replicated in order
        redis::cmd("SET").arg("test:replicated").arg(1).exec_async(&mut connection).await.expect("redis runs");
        redis::cmd("WAIT").arg(1).arg(0).exec_async(&mut connection).await.expect("redis runs");
    }

    /// Kills it without warning.
    ///
    /// # Panics
    /// It is not running.
    pub fn kill(&mut self) {
        self.process.take().expect("redis runs").kill();
    }

    /// Starts it again, on the same port and data.
    ///
    /// # Panics
    /// It does not start.
    pub fn restart(&mut self) {
        let variables = preloaded(self.clock.as_ref(), self.disk.as_ref());
        self.process = spawn_redis(self.folder.path(), self.port(), self.persistence, &self.options, &variables);
        assert!(self.process.is_some(), "redis-server does not start again");
    }

    /// The same as the replica of another server on this machine.
    pub(crate) fn restart_as_replica_of(&mut self, port: u16) {
        if let Some(place) = self.options.iter().position(|option| option == "--replicaof") {
            self.options.drain(place..place + 2);
        }
        self.options.extend(["--replicaof".to_owned(), format!("127.0.0.1 {port}")]);
        self.restart();
    }

    /// Stops it in its tracks, connections and all, until [`RedisServer::thaw`].
    ///
    /// # Panics
    /// It is not running.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// It is not running.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("redis runs").signal(signal);
    }
}

/// For connections of tests and benchmarks: by default answers are waited for no longer than half a second, and a machine that
/// is short of processors has longer pauses.
#[must_use]
pub fn patient_config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(TEST_TIMEOUT)).set_response_timeout(Some(TEST_TIMEOUT))
}

/// The settings of a second port with TLS, where clients need a certificate of the authority.
pub(crate) fn tls_options(
    port: u16,
    authority: &TestAuthority,
    certificate: &CertificateFiles,
) -> [(&'static str, String); 5] {
    [
        ("tls-port", port.to_string()),
        ("tls-cert-file", certificate.cert.clone()),
        ("tls-key-file", certificate.key.clone()),
        ("tls-ca-cert-file", authority.ca_file()),
        ("tls-auth-clients", "yes".to_owned()),
    ]
}

fn spawn_redis(
    folder: &Path,
    port: u16,
    persistence: RedisPersistence,
    options: &[String],
    variables: &[(&str, String)],
) -> Option<RedisProcess> {
    let mut command = redis_command();
    command.arg("--port").arg(port.to_string()).arg("--bind").arg("127.0.0.1").arg("--dir").arg(folder);
    command.args(["--save", "", "--logfile", "redis.log", "--daemonize", "no"]);
    match persistence {
        RedisPersistence::None => command.args(["--appendonly", "no"]),
        RedisPersistence::Always => command.args(["--appendonly", "yes", "--appendfsync", "always"]),
        RedisPersistence::EverySecond => command.args(["--appendonly", "yes", "--appendfsync", "everysec"]),
    };
    command.args(options);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    spawn_until_it_answers(command, port)
}
