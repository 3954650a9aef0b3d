//! Whether channels lose nothing while everything breaks: three gateways, hundreds of readers, and kills for a minute. What is
//! lost, doubled or out of order is a failure, with its detail.

use clap::{ArgAction, Args};
use e2e::channels_check::{Delivered, Plan, delivered::Cause, run as check};

use crate::report::{Report, whole};

/// Messages that came again for no known reason, and are told of.
const MOST_DETAILS: usize = 20;

/// What is run.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Options {
    /// How long faults strike.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Messages per second, from all publishers together.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Readers by event stream.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=5000))]
    sse: u32,
    /// Readers by WebSocket.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=5000))]
    ws: u32,
    /// Channels.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    channels: u32,
    /// Gateways.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    gateways: u32,
    /// Workers that deliver subscriptions.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    workers: u32,
    /// Whether there are subscriptions and their workers.
    #[arg(long, default_value_t = true, action = ArgAction::Set)]
    subscriptions: bool,
    /// Where the faults come from; random if it is not said.
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<Report> {
    let mut report = Report::new("channels-check");
    let Options { seconds, rate, sse, ws, channels, gateways, workers, subscriptions, seed } = options;
    let workers = if subscriptions { workers } else { 0 };
    let seed = seed.unwrap_or_else(rand::random);
    report.note(format!("{gateways} gateways, {channels} channels, {sse} event streams, {ws} WebSockets"));
    report.note(format!("{workers} pubsub-workers; a broadcast takes a quarter of the channels"));
    report.note(format!(
        "{rate} messages/s for {seconds} s; Redis keeps an append-only file, synced before every answer"
    ));
    report.note(format!("--seed {seed}"));
    let outcome = check(&Plan { seconds, rate, sse, ws, channels, gateways, workers, seed }).await?;
    for (what, count) in [
        ("messages published", outcome.published),
        ("messages acknowledged", outcome.acknowledged),
        ("messages whose outcome is unknown", outcome.unknown),
        ("messages in the histories", outcome.kept),
        ("messages that readers got, all together", outcome.seen),
        ("gaps that readers were told of", outcome.gaps),
        ("messages that they did not get because of those", outcome.in_gaps),
        ("readers that came back", outcome.resumes),
        ("connections without a sign of life", outcome.silent),
    ] {
        report.add(what, whole(count), "");
    }
    for (fault, hits) in &outcome.faults {
        report.add(fault.name(), whole(*hits), "");
    }
    if workers > 0 {
        report.add("until subscriptions had everything", outcome.settled_in.as_secs_f64(), "s");
    }
    for delivered in &outcome.subscriptions {
        add(&mut report, delivered);
    }
    for finding in &outcome.findings {
        report.check(false, || finding.clone());
    }
    Ok(report)
}

/// What a subscription delivered.
fn add(report: &mut Report, Delivered { name, tally }: &Delivered) {
    report.add(format!("{name}: messages delivered"), whole(tally.accepted), "");
    for (cause, count) in &tally.again {
        let why = match cause {
            Cause::NotAccepted => "after a request that was not accepted".to_owned(),
            Cause::Broken(fault) => format!("though accepted, around {}", fault.name()),
            Cause::Unexplained => "though accepted, for no known reason".to_owned(),
        };
        report.add(format!("{name}: delivered again {why}"), whole(*count), "");
    }
    for text in tally.unexplained.iter().take(MOST_DETAILS) {
        report.note(format!("{name}: {text}"));
    }
}
