//! Galley's HTTP interface. `main` only wires: settings, telemetry, build, run until a signal.

mod body;
mod context;
mod error;
mod routes;
mod startup;

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
        return cli::healthcheck(settings.gateway.listen);
    }
    let telemetry = telemetry::start("gateway", &settings.log, &settings.telemetry)?;
    let result = run(settings).await;
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "gateway stops");
    }
    telemetry.finish().await;
    result
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    startup::Application::build(settings).await?.run_until(stop).await
}
