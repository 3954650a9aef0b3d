//! Whether channels lose nothing while everything breaks: three gateways, hundreds of readers, and kills for a minute. What is
//! lost, doubled or out of order is a failure, with its detail.

use clap::{ArgAction, Args};
use e2e::channels_check::{CheckPlan, SubscriptionCheck, delivery_check::RedeliveryCause, run as check};
use testkit::RedisKind;

use crate::{numbers::count_as_f64, report::BenchReport};

/// Messages that came again for no known reason, and are reported.
const MAX_DETAILS: usize = 20;

/// What is run.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ChannelsCheckOptions {
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
    /// What everything is stored in: server, sentinels (a primary and its replica) or cluster (three, and a replica of each).
    #[arg(long, default_value_t = RedisKind::Server)]
    redis: RedisKind,
    /// Where the faults come from; random if it is not said.
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) async fn run(options: ChannelsCheckOptions) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("channels-check");
    let ChannelsCheckOptions { seconds, rate, sse, ws, channels, gateways, workers, subscriptions, redis, seed } =
        options;
    let workers = if subscriptions { workers } else { 0 };
    let seed = seed.unwrap_or_else(rand::random);
    report.add_note(format!("{gateways} gateways, {channels} channels, {sse} event streams, {ws} WebSockets"));
    report.add_note(format!("{workers} pubsub-workers; a broadcast takes a quarter of the channels"));
    let stored = match redis {
        RedisKind::Server => "Redis keeps an append-only file, synced before every answer",
        RedisKind::Sentinels => {
            "a primary of Redis, its replica and three sentinels; the replica of a primary that is killed takes over"
        }
        RedisKind::Cluster => "a Redis Cluster of six nodes; the replica of a primary that is killed takes over",
    };
    report.add_note(format!("{rate} messages/s for {seconds} s; {stored}"));
    report.add_note(format!("--redis {redis} --seed {seed}"));
    let outcome = check(&CheckPlan { redis, seconds, rate, sse, ws, channels, gateways, workers, seed }).await?;
    for (what, count) in [
        ("messages published", outcome.published),
        ("messages acknowledged", outcome.acknowledged),
        ("messages whose outcome is unknown", outcome.unknown),
        ("messages in the histories", outcome.stored),
        ("messages that readers got, all together", outcome.received),
        ("gaps that readers received", outcome.gaps),
        ("messages that they did not get because of those", outcome.in_gaps),
        ("readers that came back", outcome.reconnects),
        ("connections without a sign of life", outcome.timed_out_connections),
    ] {
        report.add_figure(what, count_as_f64(count), "");
    }
    for (fault, hits) in &outcome.faults {
        report.add_figure(fault.name(), count_as_f64(*hits), "");
    }
    if workers > 0 {
        report.add_figure("until subscriptions had everything", outcome.drain_time.as_secs_f64(), "s");
    }
    for delivered in &outcome.subscriptions {
        add_subscription(&mut report, delivered);
    }
    for finding in &outcome.findings {
        report.check(false, || finding.clone());
    }
    Ok(report)
}

/// What a subscription delivered.
fn add_subscription(report: &mut BenchReport, SubscriptionCheck { name, tally }: &SubscriptionCheck) {
    report.add_figure(format!("{name}: messages delivered"), count_as_f64(tally.accepted), "");
    for (cause, count) in &tally.redeliveries {
        let why = match cause {
            RedeliveryCause::NotAccepted => "after a request that was not accepted".to_owned(),
            RedeliveryCause::DuringFault(fault) => format!("though accepted, around {}", fault.name()),
            RedeliveryCause::Unexplained => "though accepted, for no known reason".to_owned(),
        };
        report.add_figure(format!("{name}: delivered again {why}"), count_as_f64(*count), "");
    }
    for text in tally.unexplained.iter().take(MAX_DETAILS) {
        report.add_note(format!("{name}: {text}"));
    }
}
