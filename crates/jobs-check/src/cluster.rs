//! The processes of a run, each behind ways of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testkit::{RedisDeployment, RedisKind, RedisPersistence, RedisServer, ServiceProcess};

use crate::{
    fault_proxy::FaultProxy,
    handling,
    plan::{JobRunner, LEASE_MS},
};

/// [`LEASE_MS`] as a setting.
const LEASE_TEXT: &str = "3000";
const _: () = assert!(LEASE_MS == 3000, "LEASE_TEXT is the same");

/// Gateways, queue-workers and pulling workers: two of each.
const COPIES: usize = 2;
/// Nobody listens there.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);
/// So that what is lost is found soon, and no job runs out of workers that may be lost with it.
const VARIABLES: [(&str, &str); 5] = [
    // Of gateways, too: a leader waits for half of it after an outage, and for all of it after a step of the clock
    ("GALLEY__JOBS__LEASE_MS", LEASE_TEXT),
    ("GALLEY__WORKFLOWS__CHECK_MS", "1000"),
    ("GALLEY__MAINTENANCE__SWEEP_MS", "200"),
    ("GALLEY__MAINTENANCE__LEADER_LEASE_MS", "1000"),
    ("GALLEY__JOBS__CRASH_BUDGET", "100"),
];

/// A service and its ways.
pub(crate) struct CheckedService {
    pub(crate) name: String,
    pub(crate) process: Option<ServiceProcess>,
    /// If Redis is one server: others tell clients where they are.
    pub(crate) to_redis: Option<FaultProxy>,
    /// Of gateways.
    pub(crate) from_clients: FaultProxy,
}

/// A worker in Python.
pub(crate) struct CheckedPuller {
    pub(crate) name: String,
    url: String,
    process: Option<Child>,
}

/// All of them.
pub(crate) struct JobsCluster {
    pub(crate) gateways: Vec<CheckedService>,
    pub(crate) workers: Vec<CheckedService>,
    pub(crate) pullers: Vec<CheckedPuller>,
    folder: PathBuf,
    /// Settings of a run's own.
    settings: Vec<(&'static str, &'static str)>,
    // Dropped last: the others outlive nothing they need
    pub(crate) redis: RedisDeployment,
}

impl JobsCluster {
    /// Starts everything; histories go into the folder.
    pub(crate) async fn start(redis: RedisKind, folder: &Path) -> anyhow::Result<Self> {
        Self::start_with(redis, folder, &[]).await
    }

    /// The same with more settings.
    pub(crate) async fn start_with(
        redis: RedisKind,
        folder: &Path,
        settings: &[(&'static str, &'static str)],
    ) -> anyhow::Result<Self> {
        let server = || RedisServer::start_on_watched_disk(RedisPersistence::Always);
        let redis = RedisDeployment::start(redis, server).await;
        for (name, text) in [
            ("check_history.py", include_str!("../python/check_history.py")),
            ("pulling_worker.py", include_str!("../python/pulling_worker.py")),
            ("program.py", include_str!("../python/program.py")),
        ] {
            std::fs::write(folder.join(name), text)?;
        }
        let endpoint = handling::serve_endpoint(folder).await?;
        let rules = handling::rules(&endpoint, &python(), &folder.join("program.py"));
        std::fs::write(folder.join("rules.toml"), rules)?;
        let folder = folder.to_owned();
        let settings = [&VARIABLES[..], settings].concat();
        let (gateways, workers, pullers) = (Vec::new(), Vec::new(), Vec::new());
        let mut cluster = Self { gateways, workers, pullers, folder, settings, redis };
        for number in 0..COPIES {
            let gateway = cluster.service(format!("gateway-{number}")).await?;
            cluster.gateways.push(gateway);
            cluster.start_gateway(number).await;
            let worker = cluster.service(format!("worker-{number}")).await?;
            cluster.workers.push(worker);
            cluster.start_worker(number).await;
            let url = format!("http://{}", cluster.gateways[number].from_clients.address());
            cluster.pullers.push(CheckedPuller { name: format!("puller-{number}"), url, process: None });
            cluster.start_puller(number)?;
        }
        for gateway in &cluster.gateways {
            gateway.process.as_ref().context("it was started")?.wait_until_ready().await;
        }
        Ok(cluster)
    }

    async fn service(&mut self, name: String) -> anyhow::Result<CheckedService> {
        let to_redis = match self.redis.server() {
            Some(server) => Some(FaultProxy::start(SocketAddr::from(([127, 0, 0, 1], server.port()))).await?),
            None => None,
        };
        let from_clients = FaultProxy::start(NOWHERE).await?;
        Ok(CheckedService { name, process: None, to_redis, from_clients })
    }

    /// Where a service finds Redis.
    fn redis_url(&self, service: &CheckedService) -> String {
        let proxied = service.to_redis.as_ref().map(|proxy| format!("redis://{}/5", proxy.address()));
        proxied.unwrap_or_else(|| self.redis.url())
    }

    /// Where clients reach gateways.
    pub(crate) fn gateway_urls(&self) -> Vec<String> {
        self.gateways.iter().map(|gateway| format!("http://{}", gateway.from_clients.address())).collect()
    }

    /// Each process of Galley's that runs, by its name.
    pub(crate) fn process_ids(&self) -> Vec<(&str, u32)> {
        let services = self.gateways.iter().chain(&self.workers);
        let services =
            services.filter_map(|service| Some((service.name.as_str(), service.process.as_ref()?.process_id())));
        let pullers =
            self.pullers.iter().filter_map(|puller| Some((puller.name.as_str(), puller.process.as_ref()?.id())));
        services.chain(pullers).collect()
    }

    pub(crate) async fn start_gateway(&mut self, number: usize) {
        let url = self.redis_url(&self.gateways[number]);
        let variables = [&self.settings[..], &[("GALLEY__GATEWAY__SHUTDOWN_GRACE_MS", "1000")]].concat();
        let process = ServiceProcess::start_with_redis_url("gateway", &url, &variables).await;
        self.gateways[number].from_clients.lead_to(process.address());
        self.gateways[number].process = Some(process);
    }

    pub(crate) async fn start_worker(&mut self, number: usize) {
        let worker = &self.workers[number];
        let queues = [JobRunner::Rust, JobRunner::Push, JobRunner::Command].map(JobRunner::queue).join(",");
        let rules = self.folder.join("rules.toml");
        let folder = self.folder.to_string_lossy();
        let mut variables: Vec<(&str, &str)> = self.settings.clone();
        variables.extend([
            ("GALLEY__QUEUE_WORKER__QUEUES", queues.as_str()),
            ("GALLEY__QUEUE_WORKER__RULES", rules.to_str().unwrap_or_default()),
            ("GALLEY__QUEUE_WORKER__NAME", worker.name.as_str()),
            ("GALLEY__QUEUE_WORKER__SHUTDOWN_GRACE_MS", "500"),
            ("GALLEY__QUEUE_WORKER__STOP_GRACE_MS", "500"),
            ("GALLEY__BRIDGE__LIST", ""),
            ("JOBS_CHECK_FOLDER", &folder),
            ("JOBS_CHECK_NAME", worker.name.as_str()),
        ]);
        let url = self.redis_url(worker);
        let process = ServiceProcess::start_worker_with_redis_url("jobs-check-worker", &url, &variables).await;
        self.workers[number].process = Some(process);
    }

    pub(crate) fn start_puller(&mut self, number: usize) -> anyhow::Result<()> {
        let puller = &mut self.pullers[number];
        let package = concat!(env!("CARGO_MANIFEST_DIR"), "/../../clients/python");
        let mut command = Command::new(python());
        command.arg(self.folder.join("pulling_worker.py")).env("PYTHONPATH", package).env("GALLEY_URL", &puller.url);
        command.env("JOBS_CHECK_FOLDER", &self.folder).env("JOBS_CHECK_NAME", &puller.name);
        command.env("JOBS_CHECK_LEASE", (LEASE_MS / 1000).to_string()).stdin(Stdio::null());
        let log = self.folder.join(format!("{}.log", puller.name));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        command.stdout(log.try_clone()?).stderr(log);
        puller.process = Some(command.spawn().context("python3 starts")?);
        Ok(())
    }
}

impl CheckedPuller {
    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let process = self.process.as_ref().context("it runs")?;
        Ok(kill(Pid::from_raw(i32::try_from(process.id())?), signal)?)
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self) -> anyhow::Result<()> {
        let mut process = self.process.take().context("it runs")?;
        tokio::task::block_in_place(|| process.wait())?;
        Ok(())
    }
}

impl Drop for CheckedPuller {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The interpreter of tests, or that of the machine.
fn python() -> String {
    std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}
