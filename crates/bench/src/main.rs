//! Measures Galley on this machine: `bench all`, or one scenario. Run it with `make bench`.
//!
//! Each scenario has a Redis of its own and Galley's own release binaries, prints a table and adds to
//! `bench/results/<date>.json`. Nothing here asserts how long something takes; what is lost or unanswered makes the exit
//! status 1.

mod access;
mod backlog;
mod bare_server;
mod care;
mod channels;
mod channels_check;
mod commands;
mod cost;
mod enqueue;
mod failover;
mod galley;
mod idle;
mod jobs_check;
mod latency;
mod load;
mod load_connection;
mod machine;
mod memory;
mod numbers;
mod open_load;
mod peers;
mod pickup;
mod power_failure;
mod processing;
mod reconnect;
mod report;
mod scale;
mod schedule;
mod scope;
mod shards;
mod slow_reader;
mod soak;
mod startup;
mod stored_jobs;
mod storm;
mod tracing;
mod waiters;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

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
    /// How soon handlers start at 1,000 jobs a second that do not wait for answers.
    Latency,
    /// Jobs processed per second with 1,000,000 waiting, beside 10,000.
    Backlog,
    /// What Galley costs while nothing happens.
    Idle,
    /// Bytes of a waiting job and of the record of a finished one.
    Memory,
    /// From the start of a process until it is ready.
    Startup,
    /// Readers of a channel, beside other servers.
    Channels(channels::ChannelsOptions),
    /// What publishing costs, beside a bare client.
    Publishing,
    /// The rows in which other systems take part.
    Peers,
    /// Curves over waiting jobs, queues, priorities, workers, payload, readers and results; no part of `all`.
    Scale(scale::ScaleOptions),
    /// What a job costs each service, and what a million a second would take.
    Cost,
    /// Writes the newest results into README.md and docs/performance.md.
    Publish,
    /// What readers notice of others who take one byte a second.
    SlowReader(slow_reader::SlowReaderOptions),
    /// Whether channels lose nothing while gateways, Redis and connections break; no part of `all`.
    ChannelsCheck(channels_check::ChannelsCheckOptions),
    /// Whether no job is lost or recorded twice while processes, Redis and connections break; no part of `all`.
    JobsCheck(jobs_check::JobsCheckArgs),
    /// Whether memory, descriptors, keys or lag grow while jobs of every kind run; no part of `all`.
    Soak(soak::SoakArgs),
    /// How many connections queue-workers open when Redis comes back; no part of `all`.
    Reconnect(reconnect::ReconnectArgs),
    /// What a power failure of Redis costs at each durability level; no part of `all`.
    PowerFailure(power_failure::PowerFailureArgs),
    /// Jobs processed per second, beside a bare client.
    Processing,
    /// Unique, keyed, expiring and workflow jobs, beside plain ones.
    Care,
    /// Jobs enqueued per second, beside a bare route and a bare client.
    Enqueue,
    /// What the check of a key, and TLS, cost a request.
    Access,
    /// What tracing costs, and what is noticed when its receiver is killed.
    Tracing,
    /// A failover of Redis Sentinel under load.
    Failover,
    /// What a job costs Redis on one server and on clusters, and how evenly the primaries share it.
    Shards,
    /// A server to compare the gateway with, until it is killed.
    #[command(hide = true)]
    BareServer,
}

impl BenchCommand {
    async fn run(
        self,
        durability: BenchDurability,
        scope: BenchScope,
        results: &Path,
    ) -> anyhow::Result<Vec<BenchReport>> {
        Ok(match self {
            Self::All => run_all(durability, scope).await?,
            Self::Peers => vec![
                processing::run(durability, scope).await?,
                channels::run(durability, scope, &channels::ChannelsOptions::of(scope)).await?,
            ],
            Self::Latency => vec![latency::run(durability, scope).await?],
            Self::Backlog => vec![backlog::run(durability, scope).await?],
            Self::Idle => vec![idle::run(durability, scope).await?],
            Self::Memory => vec![memory::run(durability, scope).await?],
            Self::Startup => vec![startup::run(scope)?],
            Self::Publishing => vec![channels::run_publishing(durability, scope).await?],
            Self::Schedule { jobs } => vec![schedule::run(durability, jobs).await?],
            Self::Pickup { jobs } => vec![pickup::run(jobs).await?],
            Self::Storm { jobs } => vec![storm::run(durability, jobs).await?],
            Self::Waiters { clients } => vec![waiters::run(durability, clients).await?],
            Self::Commands => vec![commands::run(durability, scope.rounds()).await?],
            Self::Channels(options) => vec![channels::run(durability, scope, &options).await?],
            Self::SlowReader(options) => vec![slow_reader::run(durability, options).await?],
            Self::ChannelsCheck(options) => vec![channels_check::run(options).await?],
            Self::JobsCheck(args) => jobs_check::run(args, results).await?,
            Self::Soak(args) => vec![soak::run(args, results).await?],
            Self::Reconnect(args) => vec![reconnect::run(args).await?],
            Self::PowerFailure(args) => vec![power_failure::run(args).await?],
            Self::Processing => vec![processing::run(durability, scope).await?],
            Self::Care => vec![care::run(durability, scope).await?],
            Self::Enqueue => vec![enqueue::run(durability, scope).await?],
            Self::Access => vec![access::run(durability, scope).await?],
            Self::Tracing => vec![tracing::run(durability, scope).await?],
            Self::Failover => vec![failover::run().await?],
            Self::Shards => vec![shards::run(durability, scope).await?],
            Self::Scale(options) => vec![scale::run(durability, scope, &options).await?],
            Self::Cost => vec![cost::run(durability, scope).await?],
            Self::BareServer | Self::Publish => Vec::new(),
        })
    }
}

/// Every row. A sample leaves out what takes minutes and what no goal is about.
async fn run_all(durability: BenchDurability, scope: BenchScope) -> anyhow::Result<Vec<BenchReport>> {
    let mut reports = vec![
        processing::run(durability, scope).await?,
        care::run(durability, scope).await?,
        enqueue::run(durability, scope).await?,
        access::run(durability, scope).await?,
        tracing::run(durability, scope).await?,
        latency::run(durability, scope).await?,
        backlog::run(durability, scope).await?,
        memory::run(durability, scope).await?,
        idle::run(durability, scope).await?,
        startup::run(scope)?,
        cost::run(durability, scope).await?,
        channels::run_publishing(durability, scope).await?,
        channels::run(durability, scope, &channels::ChannelsOptions::of(scope)).await?,
        schedule::run(durability, scope.of(schedule::JOBS)).await?,
    ];
    if !scope.is_quick() {
        reports.push(pickup::run(pickup::JOBS).await?);
        reports.push(storm::run(durability, storm::JOBS).await?);
        reports.push(waiters::run(durability, waiters::CLIENTS).await?);
        reports.push(commands::run(durability, scope.rounds()).await?);
        reports.push(failover::run().await?);
        reports.push(shards::run(durability, scope).await?);
        reports.push(slow_reader::run(durability, slow_reader::SlowReaderOptions::default()).await?);
    }
    Ok(reports)
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = BenchCli::parse();
    machine::raise_open_file_limit()?;
    if matches!(cli.command, BenchCommand::BareServer) {
        bare_server::serve()?;
        return Ok(ExitCode::SUCCESS);
    }
    if matches!(cli.command, BenchCommand::Publish) {
        report::publish(&cli.results)?;
        return Ok(ExitCode::SUCCESS);
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(cli))
}

async fn run(cli: BenchCli) -> anyhow::Result<ExitCode> {
    let machine = machine::describe(cli.durability);
    let reports = cli.command.run(cli.durability, cli.scope, &cli.results).await?;
    let path = report::write(&cli.results, &machine, &reports)?;
    println!("\n{}\n{}", machine.to_line(), path.display());
    Ok(if reports.iter().all(BenchReport::has_no_failures) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl BenchDurability {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}
