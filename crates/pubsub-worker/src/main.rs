//! Galley's worker for channels. `main` only wires: settings, telemetry, build, run until a signal.

mod channel_logger;
mod commands;
mod subscriptions;
mod targets;
mod worker;

use common::cli;
use delivery::command::launch;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    // Before anything else, a runtime included: this process may have been started to become a program
    launch::intercept();
    run()
}

#[tokio::main]
async fn run() -> anyhow::Result<()> {
    cli::run_service("pubsub-worker", |settings| settings.pubsub_worker.listen, worker::run).await
}
