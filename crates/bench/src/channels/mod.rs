//! Channels: what many readers cost and how soon they hear, beside servers in Node that send the same to as many; and what
//! publishing costs, beside a bare client.

mod fan_out;
mod node_server;
mod publishing;
mod readers;
mod servers;

use std::time::Duration;

use anyhow::ensure;
use clap::Args;

use self::fan_out::{FanOutFigures, MESSAGE_BYTES, measure};
pub(crate) use self::{
    readers::{BenchReaders, timestamped_message},
    servers::{BenchPublisher, BenchServerKind},
};
use crate::{
    galley::{BenchDurability, BenchGalley},
    machine::open_file_limit,
    report::{BenchReport, median},
};

/// Files that a process has open besides its connections.
const OTHER_FILES: u64 = 200;
const ROUNDS: usize = 3;

/// What is measured.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChannelsOptions {
    /// Readers of the channel: one scenario for each number.
    #[arg(long, value_delimiter = ',', default_values_t = [1_u32, 1000, 10_000], value_parser = clap::value_parser!(u32).range(1..=50_000))]
    readers: Vec<u32>,
    /// How long each part of a scenario takes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=8))]
    seconds: u64,
    /// Leave out the servers in Node.
    #[arg(long)]
    without_peers: bool,
}

impl Default for ChannelsOptions {
    fn default() -> Self {
        Self { readers: vec![1, 1000, 10_000], seconds: 5, without_peers: false }
    }
}

pub(crate) async fn run(durability: BenchDurability, options: &ChannelsOptions) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("channels");
    let most = u64::from(options.readers.iter().copied().max().unwrap_or_default());
    let files = open_file_limit()?;
    ensure!(files >= most + OTHER_FILES, "{most} readers need ulimit -n {}, which is {files}", most + OTHER_FILES);
    let has_peers = !options.without_peers && install_peers(&mut report);
    report.add_note(format!(
        "messages of {MESSAGE_BYTES} bytes; one gateway, one process of each peer; client on the same machine"
    ));
    let kinds: Vec<BenchServerKind> =
        BenchServerKind::ALL.into_iter().filter(|kind| has_peers || !kind.is_node_server()).collect();
    for readers in &options.readers {
        let mut all = Vec::new();
        for kind in &kinds {
            let time = Duration::from_secs(options.seconds);
            let rates = measure(&mut report, *kind, durability, *readers, time).await?;
            add_rates(&mut report, *kind, *readers, &rates);
            all.push((*kind, rates));
        }
        add_ratios(&mut report, *readers, &all);
    }
    add_publishing(&mut report, durability).await?;
    Ok(report)
}

fn install_peers(report: &mut BenchReport) -> bool {
    match node_server::install() {
        Ok(node) => {
            report.add_note(format!("peers in Node {node}, versions in crates/bench/peers; Redis publishes to them"));
            true
        }
        Err(error) => {
            report.add_note(format!("without peers, for want of Node, npm or a registry: {error:#}"));
            false
        }
    }
}

fn add_rates(report: &mut BenchReport, kind: BenchServerKind, readers: u32, rates: &FanOutFigures) {
    let name = format!("{readers} {}", kind.name());
    // With a single reader it would be how fast messages are published
    if readers > 1 {
        report.add_figure(format!("{name}: delivered per second"), rates.delivered_per_second, "1/s");
        report.add_figure(format!("{name}: processor time for a delivery"), rates.cpu_micros_per_delivery, "us");
        let goal = if kind == BenchServerKind::EventStream { "<= 10240" } else { "" };
        let what = format!("{name}: memory for an idle connection");
        report.add_with_goal(what, rates.bytes_per_connection, "bytes", goal);
    }
    report.add_times(&format!("{name}: publish to reader"), &rates.times, "");
}

fn add_ratios(report: &mut BenchReport, readers: u32, all: &[(BenchServerKind, FanOutFigures)]) {
    let Some((_, ours)) = all.iter().find(|(kind, _)| *kind == BenchServerKind::EventStream) else { return };
    for (kind, theirs) in all.iter().filter(|(kind, _)| kind.is_node_server()) {
        let name = format!("{readers} event streams / {}", kind.name());
        let goal = if readers == 1000 { ">= 5" } else { "" };
        if readers > 1 {
            let ratio = ours.delivered_per_second / theirs.delivered_per_second;
            report.add_with_goal(format!("{name}: delivered per second"), ratio, "", goal);
            let ratio = ours.cpu_micros_per_delivery / theirs.cpu_micros_per_delivery;
            report.add_figure(format!("{name}: processor time for a delivery"), ratio, "");
            let ratio = ours.bytes_per_connection / theirs.bytes_per_connection;
            report.add_figure(format!("{name}: memory for an idle connection"), ratio, "");
        }
        let ratio = median(ours.times.clone()) / median(theirs.times.clone());
        report.add_figure(format!("{name}: publish to reader, p50"), ratio, "");
    }
}

async fn add_publishing(report: &mut BenchReport, durability: BenchDurability) -> anyhow::Result<()> {
    let galley = BenchGalley::start(durability).await;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(publishing::run_round(&galley).await?);
    }
    let of = |figure: fn(&publishing::PublishingRound) -> f64| median(rounds.iter().map(figure).collect());
    let at_once = publishing::CONCURRENCY;
    report.add_note(format!(
        "publishing: medians of {ROUNDS} rounds, {at_once} requests or pipelines at a time, nobody listens"
    ));
    report.add_figure("messages published over HTTP", of(|round| round.http_per_second), "1/s");
    report.add_figure("bare client: XADD and PUBLISH in a pipeline", of(|round| round.bare_per_second), "1/s");
    report.add_figure("published over HTTP / bare", of(|round| round.http_per_second / round.bare_per_second), "");
    report.add_figure("a call of the script, in Redis", of(|round| round.script_micros), "us");
    report.add_figure("bare: XADD and PUBLISH, in Redis", of(|round| round.bare_micros), "us");
    report.add_with_goal("script / bare, in Redis", of(|round| round.script_micros / round.bare_micros), "", "<= 3");
    Ok(())
}
