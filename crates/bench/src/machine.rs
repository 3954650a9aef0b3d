//! The machine and the Redis that figures belong to: without them they mean nothing.

use std::{fs, process::Command};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::{galley::BenchDurability, numbers::count_as_f64};

/// What the figures were taken on.
pub(crate) struct BenchMachine {
    cores: usize,
    model: String,
    memory_mib: u64,
    redis: String,
    durability: String,
    /// Processes that ran or wanted to before the first scenario, on average over a minute: above 0 the machine was shared.
    load: f64,
}

impl BenchMachine {
    pub(crate) fn to_line(&self) -> String {
        let Self { cores, model, memory_mib, redis, durability, load } = self;
        format!("{cores} cores ({model}), {memory_mib} MiB, load {load} before; {redis}, durability {durability}")
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "cores": self.cores, "model": self.model, "memory_mib": self.memory_mib, "load_before": self.load,
            "redis": self.redis, "durability": self.durability,
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
