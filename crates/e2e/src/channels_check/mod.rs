//! Shows that channels lose nothing: publishers and readers of a few gateways on one Redis, while processes are killed and
//! connections cut. Readers come back with what they saw last; in the end everything each of them heard is compared with the
//! history. What was acknowledged came once and in order, or in a gap that the reader received; anything else is found.
//!
//! The faults follow from a seed. When exactly they strike does not: a run is not repeatable to the letter.

mod cluster;
pub mod delivery_check;
mod endpoint;
mod faults;
mod publishers;
pub mod reader_check;
mod readers;
mod sse;
mod stream_event;
mod subscriptions;
mod worker_sockets;
mod ws;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use testkit::RedisKind;
use tokio::task::JoinSet;

pub use self::faults::Fault;
use self::{
    cluster::{CheckCluster, GatewayPool},
    delivery_check::DeliveryTally,
    endpoint::CheckedEndpoint,
    faults::FaultLog,
    publishers::{CheckedPublication, CheckedPublisher},
    reader_check::{CheckedHistory, CheckedPosition, CheckedPublishOutcome, check_history, check_reader},
    readers::CheckedReader,
    subscriptions::CheckedSubscriptions,
};

/// Longest wait until every reader is there, and until every reader has everything: much longer than a gateway takes to
/// find a message that it did not hear.
const CATCH_UP_TIMEOUT: Duration = Duration::from_mins(1);
/// How often that is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Of that many event streams one follows two channels, and of that many sockets.
const TWO_CHANNEL_SSE_ONE_IN: u32 = 10;
const TWO_CHANNEL_WS_ONE_IN: u32 = 5;
/// Findings that are told; there may be one for each reader.
const MAX_FINDINGS: usize = 100;

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct CheckPlan {
    /// What everything is stored in.
    pub redis: RedisKind,
    /// How long faults strike.
    pub seconds: u32,
    /// Messages published per second, all together, while there is somebody to take them.
    pub rate: u32,
    /// Readers by event stream.
    pub sse: u32,
    /// Readers by WebSocket.
    pub ws: u32,
    /// Channels.
    pub channels: u32,
    /// Gateways.
    pub gateways: u32,
    /// Workers that deliver subscriptions; without any there are none.
    pub workers: u32,
    /// Where the faults come from.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct CheckOutcome {
    /// Messages that were sent to a gateway.
    pub published: u64,
    /// Those of them that were answered with 201.
    pub acknowledged: u64,
    /// Those of them that were not answered, or with a 5xx.
    pub unknown: u64,
    /// Messages in the histories.
    pub stored: u64,
    /// Messages that readers got, all together.
    pub received: u64,
    /// Gaps that readers received.
    pub gaps: u64,
    /// Messages in those.
    pub in_gaps: u64,
    /// How often readers came back.
    pub reconnects: u64,
    /// Connections on which not even a sign of life came for long.
    pub timed_out_connections: u64,
    /// How often each fault struck, and what it hit.
    pub faults: Vec<(Fault, u64)>,
    /// What subscriptions delivered.
    pub subscriptions: Vec<SubscriptionCheck>,
    /// How long they took for what was left after the last fault.
    pub drain_time: Duration,
    /// What is wrong, one line each.
    pub findings: Vec<String>,
}

/// What a subscription delivered.
#[derive(Debug)]
pub struct SubscriptionCheck {
    /// Which.
    pub name: &'static str,
    /// What that means.
    pub tally: DeliveryTally,
}

/// Runs it.
///
/// # Errors
/// It cannot be run: a process does not start, or readers find no gateway before anything is broken.
///
/// # Panics
/// A process of it does not start.
pub async fn run(plan: &CheckPlan) -> anyhow::Result<CheckOutcome> {
    ensure!(plan.gateways > 0 && plan.channels > 0 && plan.rate > 0, "it needs gateways, channels and messages");
    let mut cast = CheckCluster::start(plan.redis, plan.gateways, plan.workers).await;
    let stage = cast.gateway_pool.clone();
    let channels: Vec<String> = (0..plan.channels).map(|number| format!("check.{number}")).collect();
    let readers = build_readers(plan, &channels);
    let is_over = Arc::new(AtomicBool::new(false));
    let mut reading = JoinSet::new();
    for reader in &readers {
        reading.spawn(reader.clone().run(stage.clone()));
    }
    ensure!(wait_for_readers(&readers, CheckedReader::is_open).await, "not every reader found a gateway");

    let subscriptions = create_subscriptions(plan, &cast, &channels).await?;
    let mut publishing = JoinSet::new();
    for publisher in CheckedPublisher::build_all(plan.rate, &channels, plan.seed) {
        publishing.spawn(publisher.publish_until(is_over.clone(), stage.clone()));
    }
    let FaultLog { hits, windows: strikes } = faults::inject_faults(plan, &mut cast, &readers).await?;
    let mut outcome = CheckOutcome { faults: hits.into_iter().collect(), ..CheckOutcome::default() };
    is_over.store(true, Relaxed);
    let mut publications: Vec<CheckedPublication> = publishing.join_all().await.into_iter().flatten().collect();
    // Twice, so that what comes again although everybody has it shows too
    for _ in 0..2 {
        let ends = publishers::publish_final_messages(&channels, &stage, &mut publications).await?;
        if !wait_for_readers(&readers, |reader| reader.has_reached(&ends)).await {
            outcome.findings.push(format!("not every reader had everything {CATCH_UP_TIMEOUT:?} after the last fault"));
            break;
        }
    }
    reading.shutdown().await;
    if let Some(subscriptions) = &subscriptions {
        let settling = Instant::now();
        outcome.findings.extend(subscriptions.wait_until_drained().await?);
        outcome.drain_time = settling.elapsed();
    }
    let histories = load_histories(&stage, &channels).await?;
    check_publications(&mut outcome, &histories, &channels, &publications);
    check_readers(&mut outcome, &histories, &readers);
    if let Some(subscriptions) = &subscriptions {
        outcome.subscriptions = subscriptions.check(&histories, &strikes).await?;
        for SubscriptionCheck { name, tally } in &outcome.subscriptions {
            outcome.findings.extend(tally.findings.iter().map(|finding| format!("{name}: {finding}")));
        }
    }
    truncate_findings(&mut outcome.findings);
    Ok(outcome)
}

/// Makes the subscriptions, if there is somebody to deliver them, and waits until all of these do.
async fn create_subscriptions(
    plan: &CheckPlan,
    cast: &CheckCluster,
    channels: &[String],
) -> anyhow::Result<Option<CheckedSubscriptions>> {
    if plan.workers == 0 {
        return Ok(None);
    }
    let endpoint = CheckedEndpoint::start(channels, cast.worker_sockets.clone(), plan.seed).await?;
    let subscriptions =
        CheckedSubscriptions::create(cast.gateway_pool.clone(), endpoint, channels, cast.worker_count()).await?;
    subscriptions.wait_for_workers().await?;
    Ok(Some(subscriptions))
}

fn build_readers(plan: &CheckPlan, channels: &[String]) -> Vec<Arc<CheckedReader>> {
    let mut readers = Vec::new();
    for (kind, count, with_two) in [
        (readers::ReaderTransport::Sse, plan.sse, TWO_CHANNEL_SSE_ONE_IN),
        (readers::ReaderTransport::Ws, plan.ws, TWO_CHANNEL_WS_ONE_IN),
    ] {
        for (number, channel) in (0..count).zip(0_usize..) {
            let mut read = vec![channels[channel % channels.len()].clone()];
            if number % with_two == with_two - 1 && channels.len() > 1 {
                read.push(channels[(channel + 1) % channels.len()].clone());
            }
            readers.push(Arc::new(CheckedReader::new(kind, number, read, plan.seed)));
        }
    }
    readers
}

async fn wait_for_readers(readers: &[Arc<CheckedReader>], is_so: impl Fn(&CheckedReader) -> bool) -> bool {
    let deadline = Instant::now() + CATCH_UP_TIMEOUT;
    while Instant::now() < deadline {
        if readers.iter().all(|reader| is_so(reader)) {
            return true;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    false
}

async fn load_histories<'a>(
    stage: &GatewayPool,
    channels: &'a [String],
) -> anyhow::Result<HashMap<&'a str, CheckedHistory>> {
    let mut histories = HashMap::new();
    for channel in channels {
        let history = stage.history(channel).await.with_context(|| format!("the history of {channel}"))?;
        histories.insert(channel.as_str(), history);
    }
    Ok(histories)
}

/// Compares what was published with the histories.
fn check_publications(
    outcome: &mut CheckOutcome,
    histories: &HashMap<&str, CheckedHistory>,
    channels: &[String],
    publications: &[CheckedPublication],
) {
    for (channel, number) in channels.iter().zip(0..) {
        let history = &histories[channel.as_str()];
        let published: Vec<_> =
            publications.iter().filter(|one| one.channel == number).map(|one| (one.tag, one.outcome)).collect();
        outcome.findings.extend(check_history(channel, history, &published));
        outcome.stored += history.len() as u64;
    }
    outcome.published = publications.len() as u64;
    let acknowledged =
        publications.iter().filter(|one| matches!(one.outcome, CheckedPublishOutcome::Acknowledged(_))).count();
    outcome.acknowledged = acknowledged as u64;
    outcome.unknown = outcome.published - outcome.acknowledged;
    for (fault, hits) in &outcome.faults {
        if *hits == 0 {
            outcome.findings.push(format!("a planned fault never struck: {}", fault.name()));
        }
    }
}

/// Compares what readers heard with the histories.
fn check_readers(
    outcome: &mut CheckOutcome,
    histories: &HashMap<&str, CheckedHistory>,
    readers: &[Arc<CheckedReader>],
) {
    for reader in readers {
        let log = reader.log();
        outcome.reconnects += log.reconnects;
        outcome.timed_out_connections += log.timed_out_connections;
        outcome.findings.extend(log.findings.iter().map(|finding| format!("{}: {finding}", reader.name)));
        for (channel, heard) in reader.channels.iter().zip(&log.events) {
            outcome.gaps +=
                heard.iter().filter(|heard| matches!(heard, reader_check::CheckedEvent::Gap { .. })).count() as u64;
            let judged = check_reader(&histories[channel.as_str()], heard);
            outcome.received += judged.received;
            outcome.in_gaps += judged.in_gaps;
            outcome.findings.extend(judged.findings.iter().map(|text| format!("{} of {channel}: {text}", reader.name)));
        }
    }
}

fn truncate_findings(findings: &mut Vec<String>) {
    let more = findings.len().saturating_sub(MAX_FINDINGS);
    if more > 0 {
        findings.truncate(MAX_FINDINGS);
        findings.push(format!("and {more} more"));
    }
}

/// Positions of what was published last, by channel.
type LastPositions = HashMap<String, CheckedPosition>;
