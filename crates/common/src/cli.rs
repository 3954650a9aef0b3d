//! The command line that the binaries share: run a service, or check the health of a running one.

use std::{
    future::Future,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::{ClientConnection, pki_types::ServerName};

use crate::{settings::Settings, shutdown::StopSignals, telemetry, tls};

/// Settings come from `config/default.toml`, the file named by `GALLEY_CONFIG` and `GALLEY__SECTION__KEY`.
#[derive(Debug, Parser)]
#[command(version)]
struct ServiceCli {
    #[command(subcommand)]
    command: Option<ServiceCommand>,
}

/// What to do.
#[derive(Debug, Clone, Copy, Default, Subcommand)]
enum ServiceCommand {
    /// Run the service (the default).
    #[default]
    Run,
    /// Ask a running service on this machine whether it is ready; exit status 0 or 1.
    Healthcheck,
}

/// The exit code of a program of ours. An error is one line on stderr, without a stack trace whatever `RUST_BACKTRACE`
/// says: it says what to change.
#[must_use]
pub fn exit_code(name: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The whole life of a service's process: command line, settings, telemetry, `run` until a signal, last spans.
///
/// # Errors
/// Settings that cannot be used, and the error of `run`.
pub async fn run_service<R>(
    name: &'static str,
    listen: impl Fn(&Settings) -> HealthAddress,
    run: impl FnOnce(Settings, StopSignals) -> R,
) -> anyhow::Result<()>
where
    R: Future<Output = anyhow::Result<()>>,
{
    let command = ServiceCli::parse().command.unwrap_or_default();
    let settings = Settings::load()?;
    if let ServiceCommand::Healthcheck = command {
        return healthcheck(listen(&settings));
    }
    serve(name, settings, run).await
}

/// Runs a service after its command line is parsed: telemetry, `run` until a signal, last spans.
///
/// # Errors
/// The error of `run`.
pub async fn serve<R>(
    name: &'static str,
    settings: Settings,
    run: impl FnOnce(Settings, StopSignals) -> R,
) -> anyhow::Result<()>
where
    R: Future<Output = anyhow::Result<()>>,
{
    tls::use_ring();
    let (telemetry, is_for_people) =
        (telemetry::start(name, &settings.log, &settings.telemetry)?, telemetry::is_for_people(&settings.log));
    let result = match StopSignals::listen() {
        Ok(signals) => run(settings, signals).await,
        Err(error) => Err(error.into()),
    };
    // People read it on stderr, from `exit_code`
    if let Err(error) = &result
        && !is_for_people
    {
        tracing::error!(event = "process.failed", error = format!("{error:#}"), "{name} stops");
    }
    telemetry.finish().await;
    result
}

/// Raises the limit of open files as far as the process may: each connection is one, and many systems begin with 1024.
/// Not for workers: the programs that they run would inherit it.
pub fn allow_many_connections() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // Where it may not, it runs with fewer connections
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Where a service answers health checks.
#[derive(Debug, Clone, Copy)]
pub struct HealthAddress {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether it speaks TLS.
    pub is_tls: bool,
}

/// Requests `/health/ready` from the service that listens there. Images have no shell and no curl, so the binary does.
///
/// # Errors
/// The service is not ready, or nothing listens.
pub fn healthcheck(HealthAddress { listen, is_tls }: HealthAddress) -> anyhow::Result<()> {
    let limit = Duration::from_secs(2);
    let address = loopback_if_unspecified(listen);
    let mut stream =
        TcpStream::connect_timeout(&address, limit).with_context(|| format!("nothing listens on {address}"))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let head = if is_tls {
        let mut connection = ClientConnection::new(tls::trust_anybody()?, ServerName::from(address.ip()))?;
        ask_readiness(rustls::Stream::new(&mut connection, &mut stream))
    } else {
        ask_readiness(stream)
    };
    let head = head.with_context(|| format!("no answer from {address}"))?;
    let status = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
    if status.split_whitespace().nth(1) == Some("200") { Ok(()) } else { bail!("{address} answered {status:?}") }
}

fn ask_readiness(mut stream: impl Read + Write) -> std::io::Result<Vec<u8>> {
    stream.write_all(b"GET /health/ready HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut head = Vec::new();
    match stream.take(1024).read_to_end(&mut head) {
        // A server may close a connection without TLS's word of farewell
        Err(error) if head.is_empty() => Err(error),
        _ => Ok(head),
    }
}

/// Loopback in place of an address that listens on all interfaces.
fn loopback_if_unspecified(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
