//! Galley's worker for queues. `main` only wires: settings, telemetry, build, run until a signal.

mod attempt;
mod bridge;
mod claim;
mod commit;
mod doorbell;
mod handlers;
mod in_flight;
mod renew;
mod worker;

use common::{
    cli::{self, Cli, Command},
    settings::Settings,
    shutdown, telemetry,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let command = Cli::command();
    let settings = Settings::load()?;
    if let Command::Healthcheck = command {
        return cli::healthcheck(settings.queue_worker.listen);
    }
    let telemetry = telemetry::start("queue-worker", &settings.log, &settings.telemetry)?;
    let result = run(settings).await;
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "queue-worker stops");
    }
    telemetry.finish().await;
    result
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    worker::Worker::build(settings).await?.run_until(stop).await
}
