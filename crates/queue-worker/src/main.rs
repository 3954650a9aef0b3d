//! Galley's worker for queues. `main` only wires: settings, telemetry, build, run until a signal.

mod attempt;
mod bell;
mod bridge;
mod claim;
mod commit;
mod doorbell;
mod handlers;
mod in_flight;
mod presence;
mod renew;
mod turns;
mod worker;

use common::cli;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    cli::run_service(
        "queue-worker",
        |settings| settings.queue_worker.listen,
        async |settings, stop| worker::Worker::build(settings).await?.run_until(stop).await,
    )
    .await
}
