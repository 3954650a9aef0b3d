//! The command line of a worker: run it, or ask what its rules do.

use clap::{Args, Parser, Subcommand};
use common::{cli, name::JobType, settings::Settings};
use delivery::command::launch;

use crate::{builder::WorkerBuilder, rules, shared::RunMode};

/// Takes jobs out of Galley's queues, runs their handlers and records how they ended.
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
    /// Work (the default).
    Run(RunArgs),
    /// Check the settings and the rules, and say what is done with jobs of some types, or what each rule does. The exit
    /// status is 1 when something cannot be used or a type is run by nothing.
    Check {
        /// Job types such as email.send.
        types: Vec<JobType>,
    },
    /// Ask a worker that runs on this machine whether it is ready; exit status 0 or 1.
    Healthcheck,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Work until no job is left that can run now, then stop.
    #[arg(long, conflicts_with = "once")]
    drain: bool,
    /// Run one job, if one is there, then stop.
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
    /// The whole life of a worker's process: its command line, settings, telemetry, and jobs until a signal. For the
    /// `main` of a binary; to be called before there is a runtime or another thread.
    ///
    /// # Errors
    /// What keeps the worker from working.
    pub fn main(self) -> anyhow::Result<()> {
        run(self)
    }
}

fn run(builder: WorkerBuilder) -> anyhow::Result<()> {
    // Before anything else: this process may have been started to become a program
    launch::intercept();
    let line = CommandLine::parse();
    let mut settings = Settings::load()?;
    let run = match line.command {
        Some(WorkerCommand::Healthcheck) => return cli::healthcheck(settings.queue_worker.listen),
        Some(WorkerCommand::Check { types }) => return check_rules(builder, &settings, &types),
        Some(WorkerCommand::Run(run)) => run,
        None => line.run,
    };
    let mut builder = builder;
    if let Some(until) = run.run_mode() {
        builder = builder.run_mode(until);
        // It does not stay, and there may be one that does
        settings.queue_worker.listen.set_port(0);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(cli::serve("queue-worker", settings, async |settings, stop| {
        builder.build(settings).await?.run_until(stop).await
    }));
    // A handler on a thread of its own that does not end must not keep the process
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
