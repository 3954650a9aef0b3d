//! Measures Galley on this machine: `bench all`, or one scenario. Run it with `make bench`.
//!
//! Each scenario has a Redis of its own and Galley's own release binaries, prints a table and adds to
//! `bench/results/<date>.json`. Nothing here asserts how long something takes; what is lost or unanswered makes the exit
//! status 1.

mod bare_route;
mod care;
mod channels;
mod channels_check;
mod commands;
mod enqueue;
mod galley;
mod load;
mod machine;
mod numbers;
mod pickup;
mod processing;
mod report;
mod schedule;
mod scope;
mod slow_reader;
mod storm;
mod waiters;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use testkit::http;

use self::{galley::BenchDurability, report::BenchReport, scope::BenchScope};

/// What to measure, and how.
#[derive(Debug, Parser)]
#[command(version)]
struct BenchCli {
    #[command(subcommand)]
    command: BenchCommand,
    /// What Redis writes down before it answers.
    #[arg(long, global = true, value_enum, default_value_t = BenchDurability::None)]
    durability: BenchDurability,
    #[command(flatten)]
    scope: BenchScope,
    /// Where the results go.
    #[arg(long, global = true, default_value = "bench/results")]
    results: PathBuf,
}

#[derive(Debug, Clone, Subcommand)]
enum BenchCommand {
    /// Every scenario, one after the other.
    All,
    /// How late scheduled jobs start.
    Schedule {
        /// Jobs.
        #[arg(long, default_value_t = schedule::JOBS, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        jobs: u32,
    },
    /// How soon an idle worker has a job.
    Pickup {
        /// Jobs, each way.
        #[arg(long, default_value_t = pickup::JOBS, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        jobs: u32,
    },
    /// Jobs that are due in one second, and what becomes of another queue meanwhile.
    Storm {
        /// Jobs.
        #[arg(long, default_value_t = storm::JOBS, value_parser = clap::value_parser!(u32).range(1000..=1_000_000))]
        jobs: u32,
    },
    /// Clients that wait for results on one gateway.
    Waiters {
        /// Clients.
        #[arg(long, default_value_t = waiters::CLIENTS, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        clients: u32,
    },
    /// Jobs done by a program per second, beside a bare client.
    Commands,
    /// Readers of a channel, and publishing, beside servers in Node and a bare client.
    Channels(channels::ChannelsOptions),
    /// What readers notice of others who take one byte a second.
    SlowReader(slow_reader::SlowReaderOptions),
    /// Whether channels lose nothing while gateways, Redis and connections break; no part of `all`.
    ChannelsCheck(channels_check::ChannelsCheckOptions),
    /// Jobs processed per second, beside a bare client.
    Processing,
    /// Unique, keyed, expiring and workflow jobs, beside plain ones.
    Care,
    /// Jobs enqueued per second, beside a bare route and a bare client.
    Enqueue,
    /// The bare route, until it is killed.
    #[command(hide = true)]
    BareRoute,
}

impl BenchCommand {
    async fn run(self, durability: BenchDurability, scope: BenchScope) -> anyhow::Result<Vec<BenchReport>> {
        Ok(match self {
            Self::All => vec![
                schedule::run(durability, schedule::JOBS).await?,
                pickup::run(pickup::JOBS).await?,
                storm::run(durability, storm::JOBS).await?,
                waiters::run(durability, waiters::CLIENTS).await?,
                processing::run(durability, scope).await?,
                care::run(durability, scope).await?,
                enqueue::run(durability, scope).await?,
                commands::run(durability, scope.rounds()).await?,
                channels::run(durability, &channels::ChannelsOptions::default()).await?,
                slow_reader::run(durability, slow_reader::SlowReaderOptions::default()).await?,
            ],
            Self::Schedule { jobs } => vec![schedule::run(durability, jobs).await?],
            Self::Pickup { jobs } => vec![pickup::run(jobs).await?],
            Self::Storm { jobs } => vec![storm::run(durability, jobs).await?],
            Self::Waiters { clients } => vec![waiters::run(durability, clients).await?],
            Self::Commands => vec![commands::run(durability, scope.rounds()).await?],
            Self::Channels(options) => vec![channels::run(durability, &options).await?],
            Self::SlowReader(options) => vec![slow_reader::run(durability, options).await?],
            Self::ChannelsCheck(options) => vec![channels_check::run(options).await?],
            Self::Processing => vec![processing::run(durability, scope).await?],
            Self::Care => vec![care::run(durability, scope).await?],
            Self::Enqueue => vec![enqueue::run(durability, scope).await?],
            Self::BareRoute => Vec::new(),
        })
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = BenchCli::parse();
    machine::raise_open_file_limit()?;
    if matches!(cli.command, BenchCommand::BareRoute) {
        bare_route::serve()?;
        return Ok(ExitCode::SUCCESS);
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(cli))
}

async fn run(cli: BenchCli) -> anyhow::Result<ExitCode> {
    let machine = machine::describe(cli.durability);
    let reports = cli.command.run(cli.durability, cli.scope).await?;
    let path = report::write(&cli.results, &machine, &reports)?;
    println!("\n{}\n{}", machine.to_line(), path.display());
    Ok(if reports.iter().all(BenchReport::has_no_failures) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl BenchDurability {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}
