//! From the start of a process until it is ready, and how large the programs are.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::ensure;
use testkit::{RedisServer, binary_path};

use crate::{
    numbers::count_as_f64,
    report::{BenchReport, median},
    scope::BenchScope,
};

const SERVICES: [&str; 3] = ["gateway", "queue-worker", "pubsub-worker"];
const STARTS: u32 = 10;
const START_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) fn run(scope: BenchScope) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("startup");
    let redis = RedisServer::start();
    let starts = scope.of(STARTS).max(3);
    report.add_note(format!("medians of {starts} starts, until /health/ready answers 200"));
    let mut sum = 0.0;
    for service in SERVICES {
        let mut times = Vec::new();
        for _ in 0..starts {
            times.push(time_to_ready(service, &redis.url())?);
        }
        report.add_with_goal(format!("{service}: start to ready"), median(times), "ms", "<= 100");
        let megabytes = count_as_f64(fs::metadata(binary_path(service))?.len()) / 1e6;
        report.add_with_goal(format!("{service}: program"), megabytes, "MB", "<= 40");
        sum += megabytes;
    }
    report.add_figure("all programs", sum, "MB");
    Ok(report)
}

fn time_to_ready(service: &str, redis_url: &str) -> anyhow::Result<f64> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let section = service.to_uppercase().replace('-', "_");
    let mut command = Command::new(binary_path(service));
    command.env("GALLEY__REDIS__URL", redis_url).env(format!("GALLEY__{section}__LISTEN"), address.to_string());
    command.env("GALLEY__LOG__LEVEL", "error").stdin(Stdio::null()).stdout(Stdio::null());
    let began = Instant::now();
    let mut process = command.spawn()?;
    while !is_ready(address) {
        if began.elapsed() >= START_TIMEOUT {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let time = began.elapsed();
    process.kill()?;
    process.wait()?;
    ensure!(time < START_TIMEOUT, "{service} does not get ready");
    Ok(time.as_secs_f64() * 1000.0)
}

fn is_ready(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut answer = [0; 12];
    stream.write_all(b"GET /health/ready HTTP/1.1\r\nhost: localhost\r\n\r\n").is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer.ends_with(b"200")
}
