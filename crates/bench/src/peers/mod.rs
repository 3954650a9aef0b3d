//! Other systems, as `deploy/dev/bench-peers.sh` installs them below `target/dev/peers`.

mod catalog;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use testkit::redis;

use anyhow::{Context, bail, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use testkit::{RedisServer, redis::aio::MultiplexedConnection};
use tokio::process::{Child, Command};

pub(crate) use self::catalog::{PEERS, Peer};
use self::catalog::{PeerProgress, PeerRuntime};
use crate::{galley::BenchDurability, machine::used_memory, numbers::count_as_f64};

/// Sources of what is started here.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");
/// No job done for so long, and the peer has stopped.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest enqueueing.
const ENQUEUE_TIMEOUT: Duration = Duration::from_mins(2);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What came of one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerRound {
    pub(crate) enqueued: f64,
    pub(crate) processed: f64,
    pub(crate) bytes_per_waiting_job: f64,
}

/// `target/dev/peers`.
pub(crate) fn install_folder() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).context("this program is in target/<profile>")?;
    Ok(target.join("dev/peers"))
}

/// Copies a script to where Node finds its packages; where it is.
pub(crate) fn node_script(script: &str) -> anyhow::Result<PathBuf> {
    let folder = install_folder()?.join("node");
    let packages = folder.join("node_modules/.package-lock.json");
    ensure!(packages.exists(), "{}", missing_reason("node"));
    let path = folder.join(script);
    fs::copy(Path::new(SOURCES).join(script), &path)?;
    Ok(path)
}

/// Why something is not there.
pub(crate) fn missing_reason(kind: &str) -> String {
    let reason = install_folder().and_then(|folder| Ok(fs::read_to_string(folder.join(format!("{kind}.missing")))?));
    reason.map_or_else(
        |_| "not installed: make bench-peers".to_owned(),
        |reason| format!("not installed: {}", reason.trim()),
    )
}

impl Peer {
    /// One round on a Redis of its own; an error says why there is none.
    pub(crate) async fn run_round(&self, durability: BenchDurability, share: u32) -> anyhow::Result<PeerRound> {
        let jobs = self.jobs / share / 1000 * 1000;
        let server = RedisServer::start_with(durability.persistence());
        let mut redis = server.connection().await;
        let before = used_memory(&mut redis).await?;
        let enqueued = self.enqueue(&server, jobs).await?;
        let bytes_per_waiting_job = (used_memory(&mut redis).await? - before) / f64::from(jobs);
        let keys: u64 = redis::cmd("DBSIZE").query_async(&mut redis).await?;
        let log = tempfile::NamedTempFile::new()?;
        let _worker = PeerProcess(self.worker(&server)?.stderr(log.reopen()?).stdout(log.reopen()?).spawn()?);
        let processed = self.completed_per_second(&mut redis, jobs, keys).await.with_context(|| {
            let text = fs::read_to_string(log.path()).unwrap_or_default();
            text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
        })?;
        Ok(PeerRound { enqueued, processed, bytes_per_waiting_job })
    }

    async fn enqueue(&self, server: &RedisServer, jobs: u32) -> anyhow::Result<f64> {
        let mut command = match self.runtime {
            PeerRuntime::Rust(_) | PeerRuntime::Node(..) => self.program(server)?,
            PeerRuntime::Python(script, _) => {
                let mut command = self.python(server, "python")?;
                command.arg(Path::new(SOURCES).join(format!("{script}.py")));
                command
            }
        };
        command.arg("enqueue").arg(jobs.to_string()).stderr(Stdio::piped());
        let output =
            tokio::time::timeout(ENQUEUE_TIMEOUT, command.output()).await.context("enqueueing takes too long")??;
        let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let line = text.lines().find_map(|line| line.strip_prefix("enqueued "));
        let Some((count, seconds)) = line.and_then(|line| line.split_once(' ')) else {
            bail!("it did not enqueue: {}", errors.lines().last().unwrap_or_default());
        };
        Ok(count.parse::<f64>()? / seconds.parse::<f64>()?)
    }

    fn worker(&self, server: &RedisServer) -> anyhow::Result<Command> {
        let PeerRuntime::Python(_, [program, arguments @ ..]) = self.runtime else {
            let mut command = self.program(server)?;
            command.arg("work");
            return Ok(command);
        };
        let mut command = self.python(server, program)?;
        command.args(arguments);
        if *program == "rq" {
            command.arg("--url").arg(server.url());
        }
        Ok(command)
    }

    /// A program in Rust or a script in Node.
    fn program(&self, server: &RedisServer) -> anyhow::Result<Command> {
        let mut command = match self.runtime {
            PeerRuntime::Node(script, variable) => {
                let mut command = Command::new("node");
                command.arg(node_script(script)?).env("NODE_ENV", "production");
                if let Some((name, value)) = variable.split_once('=') {
                    command.env(name, value);
                }
                command
            }
            PeerRuntime::Rust(name) | PeerRuntime::Python(name, _) => {
                let path = install_folder()?.join("rust/release").join(name);
                ensure!(path.exists(), "{}", missing_reason("rust"));
                Command::new(path)
            }
        };
        prepare(&mut command, server);
        Ok(command)
    }

    fn python(&self, server: &RedisServer, program: &str) -> anyhow::Result<Command> {
        let path = install_folder()?.join("python/bin").join(program);
        ensure!(path.exists(), "{}: {}", self.name, missing_reason("python"));
        let mut command = Command::new(path);
        // Its scripts import each other
        command.env("PYTHONPATH", SOURCES).env("PYTHONDONTWRITEBYTECODE", "1").env("PATH", {
            let own = install_folder()?.join("python/bin");
            format!("{}:{}", own.display(), std::env::var("PATH").unwrap_or_default())
        });
        prepare(&mut command, server);
        Ok(command)
    }

    /// Waits until its worker has done its jobs; how many it did per second, from the first tenth on. The last twentieth
    /// is not waited for: results may share keys with what else it stores.
    async fn completed_per_second(
        &self,
        redis: &mut MultiplexedConnection,
        jobs: u32,
        keys: u64,
    ) -> anyhow::Result<f64> {
        let (jobs, mut first, mut last) = (u64::from(jobs), None, (0, Instant::now()));
        loop {
            let done = self.done(redis, jobs, keys).await?;
            let now = Instant::now();
            if done != last.0 {
                last = (done, now);
            }
            ensure!(now.duration_since(last.1) < STALL_TIMEOUT, "it stopped after {done} of {jobs} jobs");
            if done >= jobs / 10 {
                let (from, since) = *first.get_or_insert((done, now));
                if done >= jobs / 20 * 19 {
                    return Ok(count_as_f64(done - from) / now.duration_since(since).as_secs_f64());
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn done(&self, redis: &mut MultiplexedConnection, jobs: u64, keys: u64) -> anyhow::Result<u64> {
        Ok(match self.progress {
            PeerProgress::Set(key) => redis::cmd("SCARD").arg(key).query_async(redis).await?,
            PeerProgress::SortedSet(key) => redis::cmd("ZCARD").arg(key).query_async(redis).await?,
            PeerProgress::NewKeys => {
                let now: u64 = redis::cmd("DBSIZE").query_async(redis).await?;
                now.saturating_sub(keys)
            }
            PeerProgress::Drained(key) => {
                let left: u64 = redis::cmd("LLEN").arg(key).query_async(redis).await?;
                jobs.saturating_sub(left)
            }
        })
    }
}

/// What all of them are started with. A process group, because some have processes of their own.
fn prepare(command: &mut Command, server: &RedisServer) {
    command.env("PEER_REDIS_URL", server.url()).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
}

/// One that runs; all its processes end with this value.
struct PeerProcess(Child);

impl Drop for PeerProcess {
    fn drop(&mut self) {
        if let Some(group) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            // It may have ended by itself
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}
