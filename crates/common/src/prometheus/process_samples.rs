//! What this process is and takes, under the names that clients of Prometheus use everywhere.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::{
    resource::{Resource, UsageWho, getrlimit, getrusage},
    time::{TimeVal, TimeValLike},
};

use super::samples::Samples;

/// Shows version and start of this process, and what it takes where `/proc` tells it.
pub(super) fn show(service: &'static str) {
    let started_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    super::add_source(move |samples| {
        let labels = [("version", env!("CARGO_PKG_VERSION")), ("service", service)];
        samples.gauge("galley_build_info", &labels, 1.0);
        samples.gauge("process_start_time_seconds", &[], started_at);
        if let Some(seconds) = processor_seconds() {
            samples.counter("process_cpu_seconds_total", &[], seconds);
        }
        if let Some(bytes) = resident_bytes() {
            samples.gauge("process_resident_memory_bytes", &[], bytes);
        }
        show_files(samples);
        true
    });
}

fn processor_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = |time: TimeVal| Duration::from_micros(time.num_microseconds().unsigned_abs()).as_secs_f64();
    Some(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u32 = resident.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(f64::from(kilobytes) * 1024.0)
}

fn show_files(samples: &mut Samples) {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return };
    samples.gauge("process_open_fds", &[], f64::from(u32::try_from(open.count()).unwrap_or(u32::MAX)));
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        samples.gauge("process_max_fds", &[], f64::from(u32::try_from(soft).unwrap_or(u32::MAX)));
    }
}
