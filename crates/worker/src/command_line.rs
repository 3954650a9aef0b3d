//! A worker's command line: run the worker, or check its rules.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use common::{
    cli::{self, HealthAddress},
    name::JobType,
    settings::Settings,
};
use delivery::command::launch;

use crate::{builder::WorkerBuilder, rules, shared::RunMode};

/// Claims jobs from Galley's queues, runs their handlers and records the outcomes.
///
/// Settings come from `config/default.toml`, the file named by `GALLEY_CONFIG` and `GALLEY__SECTION__KEY`.
#[derive(Debug, Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<WorkerCommand>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum WorkerCommand {
    /// Run jobs (the default).
    Run(RunArgs),
    /// Check the settings and the rules, and show how jobs of the given types run, or what each rule does. The exit
    /// status is 1 when the settings or rules are invalid or nothing handles a type.
    Check {
        /// Job types such as email.send.
        types: Vec<JobType>,
    },
    /// Ask a worker on this machine whether it is ready; the exit status is 0 or 1.
    Healthcheck,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Run until no job is ready to run, then stop.
    #[arg(long, conflicts_with = "once")]
    drain: bool,
    /// Run at most one job, then stop.
    #[arg(long)]
    once: bool,
}

impl RunArgs {
    fn run_mode(&self) -> Option<RunMode> {
        match (self.once, self.drain) {
            (true, _) => Some(RunMode::Once),
            (_, true) => Some(RunMode::Drain),
            _ => None,
        }
    }
}

impl WorkerBuilder {
    /// Runs a worker's whole process: command line, settings, telemetry, and jobs until a signal. Call it from `main`,
    /// before the process has a runtime or a second thread. An error is one line on stderr: invalid settings or rules, a
    /// Redis server that cannot be used, or a part of the worker that panicked.
    #[must_use = "it is the exit code of the process"]
    pub fn main(self) -> ExitCode {
        cli::exit_code("queue-worker", run(self))
    }
}

fn run(builder: WorkerBuilder) -> anyhow::Result<()> {
    // Must come first: this process may be a launcher that becomes a configured program
    launch::intercept();
    let line = CommandLine::parse();
    let mut settings = Settings::load()?;
    let run = match line.command {
        Some(WorkerCommand::Healthcheck) => {
            return cli::healthcheck(HealthAddress { listen: settings.queue_worker.listen, is_tls: false });
        }
        Some(WorkerCommand::Check { types }) => return check_rules(builder, &settings, &types),
        Some(WorkerCommand::Run(run)) => run,
        None => line.run,
    };
    let mut builder = builder;
    if let Some(until) = run.run_mode() {
        builder = builder.run_mode(until);
        // Use a free port, because a long-running worker may already listen on the configured one
        settings.queue_worker.listen.set_port(0);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(cli::serve("queue-worker", settings, async |settings, signals| {
        builder.build(settings).await?.run_until(signals).await
    }));
    // A blocking handler that does not end must not keep the process alive
    runtime.shutdown_background();
    result
}

fn check_rules(builder: WorkerBuilder, settings: &Settings, types: &[JobType]) -> anyhow::Result<()> {
    let handlers = builder.into_handlers(settings)?;
    let rules = rules::load(settings.queue_worker.rules.as_deref(), &handlers)?;
    let (text, all_are_run) = rules::check(&rules.current(), &handlers, types);
    print!("{text}");
    anyhow::ensure!(all_are_run, "not every type is run by something");
    Ok(())
}
