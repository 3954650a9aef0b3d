//! Shows that channels lose nothing: publishers and readers of a few gateways on one Redis, while processes are killed and
//! connections cut. Readers come back with what they saw last; in the end everything each of them heard is compared with the
//! history. What was acknowledged came once and in order, or in a gap that the reader was told of; anything else is found.
//!
//! The faults follow from a seed. When exactly they strike does not: a run is not repeatable to the letter.

pub mod delivered;
mod endpoint;
mod faults;
mod peers;
mod publishers;
mod readers;
mod sse;
mod stage;
mod subscriptions;
pub mod verdict;
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
use tokio::task::JoinSet;

pub use self::faults::Fault;
use self::{
    delivered::Tally,
    endpoint::Endpoint,
    faults::Struck,
    publishers::{Publication, Publisher},
    readers::Reader,
    stage::{Cast, Stage},
    subscriptions::Subscriptions,
    verdict::{Answer, History, Position, judge_history, judge_reader},
};

/// Longest wait until every reader is there, and until every reader has everything: much longer than a gateway takes to
/// find a message that it did not hear.
const CATCH_UP: Duration = Duration::from_mins(1);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Of so many event streams one follows two channels, and of so many sockets.
const SSE_WITH_TWO: u32 = 10;
const WS_WITH_TWO: u32 = 5;
/// Findings that are told; there may be one for each reader.
const MOST_FINDINGS: usize = 100;

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
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
pub struct Outcome {
    /// Messages that were sent to a gateway.
    pub published: u64,
    /// Those of them that were answered with 201.
    pub acknowledged: u64,
    /// Those of them that were not answered, or with a 5xx.
    pub unknown: u64,
    /// Messages in the histories.
    pub kept: u64,
    /// Messages that readers got, all together.
    pub seen: u64,
    /// Gaps that readers were told of.
    pub gaps: u64,
    /// Messages in those.
    pub in_gaps: u64,
    /// How often readers came back.
    pub resumes: u64,
    /// Connections on which not even a sign of life came for long.
    pub silent: u64,
    /// How often each fault struck, and what it hit.
    pub faults: Vec<(Fault, u64)>,
    /// What subscriptions delivered.
    pub subscriptions: Vec<Delivered>,
    /// How long they took for what was left after the last fault.
    pub settled_in: Duration,
    /// What is wrong, one line each.
    pub findings: Vec<String>,
}

/// What a subscription delivered.
#[derive(Debug)]
pub struct Delivered {
    /// Which.
    pub name: &'static str,
    /// What that means.
    pub tally: Tally,
}

/// Runs it.
///
/// # Errors
/// It cannot be run: a process does not start, or readers find no gateway before anything is broken.
///
/// # Panics
/// A process of it does not start.
pub async fn run(plan: &Plan) -> anyhow::Result<Outcome> {
    ensure!(plan.gateways > 0 && plan.channels > 0 && plan.rate > 0, "it needs gateways, channels and messages");
    let mut cast = Cast::start(plan.gateways, plan.workers).await;
    let stage = cast.stage.clone();
    let channels: Vec<String> = (0..plan.channels).map(|number| format!("check.{number}")).collect();
    let readers = readers_of(plan, &channels);
    let is_over = Arc::new(AtomicBool::new(false));
    let mut reading = JoinSet::new();
    for reader in &readers {
        reading.spawn(reader.clone().read(stage.clone()));
    }
    ensure!(wait_for_all(&readers, Reader::is_open).await, "not every reader found a gateway");

    let subscriptions = subscribe(plan, &cast, &channels).await?;
    let mut publishing = JoinSet::new();
    for publisher in Publisher::all(plan.rate, &channels, plan.seed) {
        publishing.spawn(publisher.publish_until(is_over.clone(), stage.clone()));
    }
    let Struck { hits, strikes } = faults::strike(plan, &mut cast, &readers).await?;
    let mut outcome = Outcome { faults: hits.into_iter().collect(), ..Outcome::default() };
    is_over.store(true, Relaxed);
    let mut publications: Vec<Publication> = publishing.join_all().await.into_iter().flatten().collect();
    // Twice, so that what comes again although everybody has it shows too
    for _ in 0..2 {
        let ends = publishers::publish_ends(&channels, &stage, &mut publications).await?;
        if !wait_for_all(&readers, |reader| reader.has(&ends)).await {
            outcome.findings.push(format!("not every reader had everything {CATCH_UP:?} after the last fault"));
            break;
        }
    }
    reading.shutdown().await;
    if let Some(subscriptions) = &subscriptions {
        let settling = Instant::now();
        outcome.findings.extend(subscriptions.settle().await?);
        outcome.settled_in = settling.elapsed();
    }
    let histories = histories(&stage, &channels).await?;
    judge(&mut outcome, &histories, &channels, &publications);
    judge_readers(&mut outcome, &histories, &readers);
    if let Some(subscriptions) = &subscriptions {
        outcome.subscriptions = subscriptions.judge(&histories, &strikes).await?;
        for Delivered { name, tally } in &outcome.subscriptions {
            outcome.findings.extend(tally.findings.iter().map(|finding| format!("{name}: {finding}")));
        }
    }
    bound(&mut outcome.findings);
    Ok(outcome)
}

/// Makes the subscriptions, if there is somebody to deliver them, and waits until all of these do.
async fn subscribe(plan: &Plan, cast: &Cast, channels: &[String]) -> anyhow::Result<Option<Subscriptions>> {
    if plan.workers == 0 {
        return Ok(None);
    }
    let endpoint = Endpoint::start(channels, cast.peers.clone(), plan.seed).await?;
    let subscriptions = Subscriptions::make(cast.stage.clone(), endpoint, channels, cast.workers()).await?;
    subscriptions.wait_for_workers().await?;
    Ok(Some(subscriptions))
}

fn readers_of(plan: &Plan, channels: &[String]) -> Vec<Arc<Reader>> {
    let mut readers = Vec::new();
    for (kind, count, with_two) in
        [(readers::Kind::Sse, plan.sse, SSE_WITH_TWO), (readers::Kind::Ws, plan.ws, WS_WITH_TWO)]
    {
        for (number, channel) in (0..count).zip(0_usize..) {
            let mut read = vec![channels[channel % channels.len()].clone()];
            if number % with_two == with_two - 1 && channels.len() > 1 {
                read.push(channels[(channel + 1) % channels.len()].clone());
            }
            readers.push(Arc::new(Reader::new(kind, number, read, plan.seed)));
        }
    }
    readers
}

async fn wait_for_all(readers: &[Arc<Reader>], is_so: impl Fn(&Reader) -> bool) -> bool {
    let deadline = Instant::now() + CATCH_UP;
    while Instant::now() < deadline {
        if readers.iter().all(|reader| is_so(reader)) {
            return true;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    false
}

async fn histories<'a>(stage: &Stage, channels: &'a [String]) -> anyhow::Result<HashMap<&'a str, History>> {
    let mut histories = HashMap::new();
    for channel in channels {
        let history = stage.history(channel).await.with_context(|| format!("the history of {channel}"))?;
        histories.insert(channel.as_str(), history);
    }
    Ok(histories)
}

/// Compares what was published with the histories.
fn judge(outcome: &mut Outcome, histories: &HashMap<&str, History>, channels: &[String], publications: &[Publication]) {
    for (channel, number) in channels.iter().zip(0..) {
        let history = &histories[channel.as_str()];
        let published: Vec<_> =
            publications.iter().filter(|one| one.channel == number).map(|one| (one.mark, one.answer)).collect();
        outcome.findings.extend(judge_history(channel, history, &published));
        outcome.kept += history.len() as u64;
    }
    outcome.published = publications.len() as u64;
    let acknowledged = publications.iter().filter(|one| matches!(one.answer, Answer::Acknowledged(_))).count();
    outcome.acknowledged = acknowledged as u64;
    outcome.unknown = outcome.published - outcome.acknowledged;
    for (fault, hits) in &outcome.faults {
        if *hits == 0 {
            outcome.findings.push(format!("a planned fault never struck: {}", fault.name()));
        }
    }
}

/// Compares what readers heard with the histories.
fn judge_readers(outcome: &mut Outcome, histories: &HashMap<&str, History>, readers: &[Arc<Reader>]) {
    for reader in readers {
        let log = reader.log();
        outcome.resumes += log.resumes;
        outcome.silent += log.silent;
        outcome.findings.extend(log.findings.iter().map(|finding| format!("{}: {finding}", reader.name)));
        for (channel, heard) in reader.channels.iter().zip(&log.heard) {
            outcome.gaps += heard.iter().filter(|heard| matches!(heard, verdict::Heard::Gap { .. })).count() as u64;
            let judged = judge_reader(&histories[channel.as_str()], heard);
            outcome.seen += judged.seen;
            outcome.in_gaps += judged.in_gaps;
            outcome.findings.extend(judged.findings.iter().map(|text| format!("{} of {channel}: {text}", reader.name)));
        }
    }
}

fn bound(findings: &mut Vec<String>) {
    let more = findings.len().saturating_sub(MOST_FINDINGS);
    if more > 0 {
        findings.truncate(MOST_FINDINGS);
        findings.push(format!("and {more} more"));
    }
}

/// Positions of what was published last, by channel.
type Ends = HashMap<String, Position>;
