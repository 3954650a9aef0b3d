//! Channels: what many readers cost and how soon they hear, beside servers in Node that send the same to as many; and what
//! publishing costs, beside a bare client.

mod fan_out;
mod peer_server;
mod publishing;
mod readers;
mod servers;

use std::time::Duration;

use anyhow::ensure;
use clap::Args;

use self::fan_out::{FanOutFigures, MESSAGE_BYTES};
pub(crate) use self::{
    fan_out::measure as measure_fan_out,
    readers::{BenchReaders, timestamped_message},
    servers::{BenchPublisher, BenchServerKind, GALLEY_PATH},
};
use crate::{
    galley::{BenchDurability, BenchGalley},
    machine::open_file_limit,
    report::{BenchReport, median, percentile_of},
    scope::BenchScope,
};

/// Files that a process has open besides its connections.
const OTHER_FILES: u64 = 200;

/// What is measured.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChannelsOptions {
    /// Readers of the channel: one scenario for each number.
    #[arg(long, value_delimiter = ',', default_values_t = [1_u32, 1000, 10_000], value_parser = clap::value_parser!(u32).range(1..=50_000))]
    readers: Vec<u32>,
    /// How long each part of a scenario takes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=8))]
    seconds: u64,
}

impl ChannelsOptions {
    pub(crate) fn of(scope: BenchScope) -> Self {
        if scope.is_quick() {
            return Self { readers: vec![1000], seconds: 2 };
        }
        Self { readers: vec![1, 1000, 10_000], seconds: 5 }
    }
}

pub(crate) async fn run(
    durability: BenchDurability,
    scope: BenchScope,
    options: &ChannelsOptions,
) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("channels");
    let most = u64::from(options.readers.iter().copied().max().unwrap_or_default());
    let files = open_file_limit()?;
    ensure!(files >= most + OTHER_FILES, "{most} readers need ulimit -n {}, which is {files}", most + OTHER_FILES);
    report.add_note(format!(
        "messages of {MESSAGE_BYTES} bytes; one gateway, one process of each peer; client on the same machine"
    ));
    report.add_note(
        "Redis publishes to ws, socket.io and the bare streams, nchan keeps everything in memory: they do less",
    );
    let mut kinds = Vec::new();
    for kind in BenchServerKind::ALL.into_iter().filter(|kind| scope.has_peers() || !kind.is_peer()) {
        match kind.check_installed() {
            Ok(()) => kinds.push(kind),
            Err(reason) => report.add_note(format!("{}: {reason}", kind.name())),
        }
    }
    for readers in &options.readers {
        let mut all = Vec::new();
        for kind in &kinds {
            let time = Duration::from_secs(options.seconds);
            let rates = match measure_fan_out(&mut report, *kind, durability, *readers, time).await {
                Ok(rates) => rates,
                // Another system that does not work is a line that says why
                Err(error) if kind.is_peer() => {
                    report.add_note(format!("{readers} {}: no figure: {error:#}", kind.name()));
                    continue;
                }
                Err(error) => return Err(error),
            };
            add_rates(&mut report, *kind, *readers, &rates);
            all.push((*kind, rates));
        }
        add_ratios(&mut report, *readers, &all);
    }
    Ok(report)
}

/// What publishing costs.
pub(crate) async fn run_publishing(durability: BenchDurability, scope: BenchScope) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("publishing");
    add_publishing(&mut report, durability, scope.rounds()).await?;
    Ok(report)
}

fn add_rates(report: &mut BenchReport, kind: BenchServerKind, readers: u32, rates: &FanOutFigures) {
    let name = format!("{readers} {}", kind.name());
    // With a single reader it would be how fast messages are published
    if readers > 1 {
        report.add_figure(format!("{name}: delivered per second"), rates.delivered_per_second, "1/s");
        report.add_figure(format!("{name}: processor time for a delivery"), rates.cpu_micros_per_delivery, "us");
        let goal = if kind == BenchServerKind::EventStream { "<= 11000" } else { "" };
        let what = format!("{name}: memory for an idle connection");
        report.add_with_goal(what, rates.bytes_per_connection, "bytes", goal);
    }
    report.add_times(&format!("{name}: publish to reader"), &rates.times, "");
}

fn add_ratios(report: &mut BenchReport, readers: u32, all: &[(BenchServerKind, FanOutFigures)]) {
    let Some((_, ours)) = all.iter().find(|(kind, _)| *kind == BenchServerKind::EventStream) else { return };
    let is_compared = |kind: BenchServerKind| kind.is_peer() || kind == BenchServerKind::BareStream;
    for (kind, theirs) in all.iter().filter(|(kind, _)| is_compared(*kind)) {
        let name = format!("{readers} event streams / {}", kind.name());
        let is_goal = readers == 1000 && matches!(kind, BenchServerKind::NodeWs | BenchServerKind::SocketIo);
        if readers > 1 {
            let ratio = ours.delivered_per_second / theirs.delivered_per_second;
            report.add_figure(format!("{name}: delivered per second"), ratio, "");
            let ratio = theirs.cpu_micros_per_delivery / ours.cpu_micros_per_delivery;
            let goal = if is_goal { ">= 3" } else { "" };
            report.add_with_goal(format!("{name}: delivered per processor second"), ratio, "", goal);
            let ratio = ours.bytes_per_connection / theirs.bytes_per_connection;
            report.add_figure(format!("{name}: memory for an idle connection"), ratio, "");
        }
        let ratio = median(ours.times.clone()) / median(theirs.times.clone());
        report.add_figure(format!("{name}: publish to reader, p50"), ratio, "");
        let ratio = percentile_of(ours.times.clone(), 99) / percentile_of(theirs.times.clone(), 99);
        let goal = if readers == 1000 && *kind == BenchServerKind::NodeWs { "<= 1" } else { "" };
        report.add_with_goal(format!("{name}: publish to reader, p99"), ratio, "", goal);
    }
}

async fn add_publishing(report: &mut BenchReport, durability: BenchDurability, count: u32) -> anyhow::Result<()> {
    let galley = BenchGalley::start(durability).await;
    let mut rounds = Vec::new();
    for _ in 0..count {
        rounds.push(publishing::run_round(&galley).await?);
    }
    let of = |figure: fn(&publishing::PublishingRound) -> f64| median(rounds.iter().map(figure).collect());
    let at_once = publishing::CONCURRENCY;
    report.add_note(format!(
        "publishing: medians of {count} rounds, {at_once} requests or pipelines at a time, nobody listens"
    ));
    report.add_figure("messages published over HTTP", of(|round| round.http_per_second), "1/s");
    report.add_figure("bare client: XADD and PUBLISH in a pipeline", of(|round| round.bare_per_second), "1/s");
    report.add_figure("published over HTTP / bare", of(|round| round.http_per_second / round.bare_per_second), "");
    report.add_figure("Redis: processor time for a message", of(|round| round.redis_micros), "us");
    report.add_figure("bare: Redis: processor time for a message", of(|round| round.bare_micros), "us");
    let ratio = of(|round| round.redis_micros / round.bare_micros);
    report.add_with_goal("processor time of Redis / bare", ratio, "", "<= 3");
    report.add_figure("calls of the script for 1,000 messages", of(|round| round.scripts_per_thousand), "");
    Ok(())
}
