//! Galley's worker for channels. `main` only wires: settings, telemetry, build, run until a signal.

mod follow;
mod worker;

use common::cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    cli::run_service("pubsub-worker", |settings| settings.pubsub_worker.listen, worker::run).await
}
