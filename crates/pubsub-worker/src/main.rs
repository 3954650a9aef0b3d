//! Galley's worker for channels. `main` only wires: settings, telemetry, build, run until a signal.

mod follow;
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
        return cli::healthcheck(settings.pubsub_worker.listen);
    }
    let telemetry = telemetry::start("pubsub-worker", &settings.log, &settings.telemetry)?;
    let result = run(settings).await;
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "pubsub-worker stops");
    }
    telemetry.finish().await;
    result
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    worker::run(settings, stop).await
}
