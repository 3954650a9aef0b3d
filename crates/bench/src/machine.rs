//! The machine and the Redis that figures belong to: without them they mean nothing.

use std::{fs, process::Command};

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use testkit::redis::{self, aio::MultiplexedConnection};

use crate::{galley::BenchDurability, numbers::count_as_f64};

/// What the figures were taken on.
pub(crate) struct BenchMachine {
    cores: usize,
    model: String,
    memory_mib: u64,
    redis: String,
    durability: String,
    /// Of Galley, its compiler, the kernel, and what peers run on.
    versions: String,
    /// Processes that ran or wanted to before the first scenario, on average over a minute: above 0 the machine was shared.
    load: f64,
}

impl BenchMachine {
    pub(crate) fn to_line(&self) -> String {
        let Self { cores, model, memory_mib, redis, durability, versions, load } = self;
        format!(
            "{cores} cores ({model}), {memory_mib} MiB, load {load} before; {redis}, durability {durability}; {versions}"
        )
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "cores": self.cores, "model": self.model, "memory_mib": self.memory_mib, "load_before": self.load,
            "redis": self.redis, "durability": self.durability, "versions": self.versions,
        })
    }
}

pub(crate) fn describe(durability: BenchDurability) -> BenchMachine {
    BenchMachine {
        cores: std::thread::available_parallelism().map_or(0, Into::into),
        model: read_field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        memory_mib: read_kib("/proc/meminfo", "MemTotal") / 1024,
        redis: redis_version(),
        durability: durability.name(),
        versions: versions(),
        load: fs::read_to_string("/proc/loadavg")
            .ok()
            .and_then(|text| text.split(' ').next()?.parse().ok())
            .unwrap_or_default(),
    }
}

/// Memory that a process has in use, in bytes.
pub(crate) fn resident_bytes(process: u32) -> f64 {
    count_as_f64(read_kib(&format!("/proc/{process}/status"), "VmRSS") * 1024)
}

/// Memory that processes have in use together, in bytes: what they share counts once.
pub(crate) fn proportional_bytes(processes: &[u32]) -> f64 {
    let sum: u64 = processes.iter().map(|process| read_kib(&format!("/proc/{process}/smaps_rollup"), "Pss")).sum();
    count_as_f64(sum * 1024)
}

/// A process and those that it started.
pub(crate) fn process_tree(process: u32) -> Vec<u32> {
    let mut all = vec![process];
    let text = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    for child in text.split_whitespace().filter_map(|id| id.parse().ok()) {
        all.extend(process_tree(child));
    }
    all
}

/// Bytes that Redis has allocated, without the buffers of its clients.
pub(crate) async fn used_memory(redis: &mut MultiplexedConnection) -> anyhow::Result<f64> {
    let info: String = redis::cmd("INFO").arg("memory").query_async(redis).await?;
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    let all = field("used_memory:").context("redis says how much memory it has in use")?;
    Ok(all - field("mem_clients_normal:").unwrap_or_default())
}

/// Milliseconds that the threads of all these processes ran.
pub(crate) fn processor_time_ms(processes: &[u32]) -> f64 {
    processes.iter().map(|process| scheduler_times_ms(*process).0).sum()
}

/// Milliseconds that the threads of a process ran, and that they waited for a processor though they could have run: what
/// others on the machine took from them.
pub(crate) fn scheduler_times_ms(process: u32) -> (f64, f64) {
    let (mut ran, mut waited) = (0.0, 0.0);
    for task in fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let mut millis = text.split_whitespace().map(|nanos| count_as_f64(nanos.parse().unwrap_or_default()) / 1e6);
        ran += millis.next().unwrap_or_default();
        waited += millis.next().unwrap_or_default();
    }
    (ran, waited)
}

/// Lets this process and those that it starts open as many files as they may.
pub(crate) fn raise_open_file_limit() -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// How many files a process may open.
pub(crate) fn open_file_limit() -> anyhow::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

fn read_kib(path: &str, name: &str) -> u64 {
    read_field(path, name).and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or_default()
}

/// The value behind `<name>:` in a file of the kernel.
fn read_field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

fn redis_version() -> String {
    let program = std::env::var("GALLEY_TEST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("v="));
    let name = if text.starts_with("Redis") { "Redis" } else { "Valkey" };
    format!("{name} {}", version.unwrap_or("of unknown version"))
}

fn versions() -> String {
    let say = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let mut all = vec![format!("Galley {}", env!("CARGO_PKG_VERSION"))];
    all.extend(say("git", &["rev-parse", "--short", "HEAD"]).map(|commit| format!("commit {commit}")));
    all.extend(say("rustc", &["--version"]));
    all.extend(say("uname", &["-sr"]));
    all.extend(say("node", &["--version"]).map(|version| format!("Node {version}")));
    all.extend(say("python3", &["--version"]));
    all.join(", ")
}
