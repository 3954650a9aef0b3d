//! Galley's worker for channels. `main` only wires: settings, telemetry, build, run until a signal.

mod channel_logger;
mod commands;
mod subscriptions;
mod targets;
mod worker;

use std::process::ExitCode;

use common::{
    cli::{self, HealthAddress},
    settings::Settings,
};
use delivery::command::launch;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Must come first, before any runtime: this process may be a launcher that becomes a configured program
    launch::intercept();
    cli::exit_code("pubsub-worker", run())
}

#[tokio::main]
async fn run() -> anyhow::Result<()> {
    let health = |settings: &Settings| HealthAddress { listen: settings.pubsub_worker.listen, is_tls: false };
    Box::pin(cli::run_service("pubsub-worker", health, worker::run)).await
}
