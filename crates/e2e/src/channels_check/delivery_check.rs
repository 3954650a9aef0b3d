//! What the deliveries of a subscription mean. Pure functions of the history of a channel, what came at the endpoint, and
//! when what broke: nothing may be missing, in order nothing may overtake, and what comes twice has to have a cause.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{
    faults::{Fault, FaultWindow},
    reader_check::{CheckedPosition, MessageTag},
};

/// Findings of one kind about one channel of a subscription that are spelled out; the rest is counted.
const MAX_FINDINGS: usize = 10;

/// One request to the endpoint.
#[derive(Debug, Clone, Copy)]
pub struct CheckedDelivery {
    /// Which message.
    pub position: CheckedPosition,
    /// Who published it, by its body.
    pub tag: MessageTag,
    /// Which attempt the sender says it is.
    pub attempt: u32,
    /// Who sent it.
    pub worker: usize,
    /// When it had come.
    pub started_at: Instant,
    /// When it was answered, or not any more.
    pub ended_at: Instant,
    /// What it was answered.
    pub response: CheckedResponse,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckedResponse {
    /// 200.
    Accepted,
    /// 500.
    Refused,
    /// The endpoint closed the connection.
    ConnectionClosed,
    /// The sender closed it, or was gone.
    ClientGone,
}

/// Why a message came again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RedeliveryCause {
    /// It had not been accepted.
    NotAccepted,
    /// It had been, and before that could have been noted something broke.
    DuringFault(Fault),
    /// Nothing that is known.
    Unexplained,
}

/// What came of a subscription.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeliveryTally {
    /// Messages that were accepted, and for a broadcast by which worker.
    pub accepted: u64,
    /// Messages that came again, each time, by cause.
    pub redeliveries: BTreeMap<RedeliveryCause, u64>,
    /// Those without a cause, in detail.
    pub unexplained: Vec<String>,
    /// What is wrong, one line each.
    pub findings: Vec<String>,
}

impl DeliveryTally {
    /// Adds what came of another channel or worker.
    pub fn merge(&mut self, of: &str, other: Self) {
        self.accepted += other.accepted;
        for (cause, count) in other.redeliveries {
            *self.redeliveries.entry(cause).or_default() += count;
        }
        self.unexplained.extend(other.unexplained.iter().map(|text| format!("{of}: {text}")));
        self.findings.extend(other.findings.iter().map(|text| format!("{of}: {text}")));
    }
}

/// Compares what came of a channel, in the order in which it began, with its history. What broke within `deadline` after a
/// message was accepted explains that it comes again.
#[must_use]
pub fn check_deliveries(
    history: &[(CheckedPosition, MessageTag)],
    deliveries: &[CheckedDelivery],
    strikes: &[FaultWindow],
    deadline: Duration,
) -> DeliveryTally {
    let mut tally = DeliveryTally::default();
    let mut is_accepted = vec![false; history.len()];
    let mut before: HashMap<CheckedPosition, &CheckedDelivery> = HashMap::with_capacity(history.len());
    let mut handed_out: HashMap<CheckedPosition, &CheckedDelivery> = HashMap::with_capacity(history.len());
    let mut failed: HashSet<(CheckedPosition, u32)> = HashSet::new();
    let mut strange = Vec::new();
    for delivery in deliveries {
        let (position, mark) = (delivery.position, delivery.tag);
        match history.binary_search_by_key(&position, |(position, _)| *position) {
            Ok(index) if history[index].1 == mark => {
                is_accepted[index] |= delivery.response == CheckedResponse::Accepted;
            }
            Ok(index) => strange.push(format!("{mark} came as {position}, where the history has {}", history[index].1)),
            Err(_) => strange.push(format!("{mark} came as {position}, where the history has nothing")),
        }
        if let Some(earlier) = before.insert(position, delivery) {
            // It may be on its way as a job already when it is handed out anew
            let is_retry = delivery.attempt > 1 && failed.contains(&(position, delivery.attempt - 1));
            // One that failed goes on as a job, and a client that had it may break before that is noted
            let first = handed_out.get(&position).filter(|_| delivery.attempt == 1).copied();
            let cause = match redelivery_cause(earlier, delivery, strikes, deadline) {
                _ if is_retry => RedeliveryCause::NotAccepted,
                RedeliveryCause::Unexplained => {
                    first.map_or(RedeliveryCause::Unexplained, |first| fault_cause(first, delivery, strikes, deadline))
                }
                cause => cause,
            };
            *tally.redeliveries.entry(cause).or_default() += 1;
            if cause == RedeliveryCause::Unexplained {
                tally.unexplained.push(describe_duplicate(earlier, delivery, strikes));
            }
        }
        if delivery.attempt == 1 {
            handed_out.insert(position, delivery);
        }
        if delivery.response != CheckedResponse::Accepted {
            failed.insert((position, delivery.attempt));
        }
    }
    tally.accepted = is_accepted.iter().filter(|is_accepted| **is_accepted).count() as u64;
    let missing = history.iter().zip(is_accepted).filter(|(_, is_accepted)| !is_accepted);
    let missing = missing.map(|((position, mark), _)| match before.get(position) {
        None => format!("{mark} at {position} was never delivered"),
        Some(last) => format!("{mark} at {position} was delivered, and given up after {:?}", last.response),
    });
    push_capped(&mut tally.findings, missing.collect());
    push_capped(&mut tally.findings, strange);
    tally
}

fn redelivery_cause(
    earlier: &CheckedDelivery,
    again: &CheckedDelivery,
    strikes: &[FaultWindow],
    deadline: Duration,
) -> RedeliveryCause {
    if earlier.response != CheckedResponse::Accepted {
        return RedeliveryCause::NotAccepted;
    }
    fault_cause(earlier, again, strikes, deadline)
}

/// What broke before it could be noted what had become of a message.
fn fault_cause(
    earlier: &CheckedDelivery,
    again: &CheckedDelivery,
    strikes: &[FaultWindow],
    deadline: Duration,
) -> RedeliveryCause {
    let broken = strikes.iter().find(|strike| {
        // What a worker that stops has sent may be read after another has delivered what it gave back
        let is_given_back = strike.fault == Fault::StopWorker && strike.worker == Some(again.worker);
        let is_theirs = is_given_back || strike.worker.is_none_or(|worker| worker == earlier.worker);
        let is_then =
            strike.to >= earlier.started_at && strike.from <= again.started_at.min(earlier.ended_at + deadline);
        strike.fault.causes_redelivery() && is_theirs && is_then
    });
    broken.map_or(RedeliveryCause::Unexplained, |strike| RedeliveryCause::DuringFault(strike.fault))
}

fn describe_duplicate(earlier: &CheckedDelivery, again: &CheckedDelivery, strikes: &[FaultWindow]) -> String {
    let (mark, position) = (again.tag, again.position);
    let later = again.started_at.saturating_duration_since(earlier.ended_at);
    let seconds = |at: Instant| {
        if at < earlier.ended_at {
            -(earlier.ended_at - at).as_secs_f32()
        } else {
            (at - earlier.ended_at).as_secs_f32()
        }
    };
    let near = strikes.iter().filter(|strike| (-10.0..10.0).contains(&seconds(strike.from)));
    let near = near.map(|strike| {
        let (from, to) = (seconds(strike.from), seconds(strike.to));
        format!("; {} {:?} from {from:.2} to {to:.2} s", strike.fault.name(), strike.worker)
    });
    format!(
        "{mark} at {position} was accepted from worker {} (attempt {}), and came again {later:?} later from worker {} \
         (attempt {}){}",
        earlier.worker,
        earlier.attempt,
        again.worker,
        again.attempt,
        near.collect::<String>()
    )
}

/// Of a channel in order: a message comes when all before it have been accepted, and not any more when one behind it has.
/// What is wrong, one line each.
#[must_use]
pub fn check_order(history: &[(CheckedPosition, MessageTag)], deliveries: &[CheckedDelivery]) -> Vec<String> {
    let mut events: Vec<(Instant, bool, &CheckedDelivery)> = Vec::with_capacity(deliveries.len() * 2);
    for delivery in deliveries {
        events.push((delivery.started_at, false, delivery));
        if delivery.response == CheckedResponse::Accepted {
            events.push((delivery.ended_at, true, delivery));
        }
    }
    // What is accepted in the moment that another one comes was accepted before
    events.sort_by_key(|(at, is_accepted, _)| (*at, !is_accepted));
    let (mut findings, mut is_accepted, mut accepted) = (Vec::new(), vec![false; history.len()], 0);
    let mut newest = None;
    for (_, is_end, delivery) in events {
        let Ok(index) = history.binary_search_by_key(&delivery.position, |(position, _)| *position) else { continue };
        if is_end {
            is_accepted[index] = true;
            newest = newest.max(Some(index));
            while is_accepted.get(accepted).copied().unwrap_or_default() {
                accepted += 1;
            }
            continue;
        }
        let (position, worker) = (delivery.position, delivery.worker);
        if index > accepted {
            let waits = history[accepted].0;
            findings.push(format!("worker {worker} delivered {position} before {waits} was accepted"));
        }
        if let Some(later) = newest.filter(|newest| *newest > index) {
            let later = history[later].0;
            findings.push(format!("worker {worker} delivered {position} after {later} had been accepted"));
        }
    }
    let mut told = Vec::new();
    push_capped(&mut told, findings);
    told
}

/// Of a queue: each message of a channel is one job. What is wrong, one line each.
#[must_use]
pub fn check_jobs(history: &[(CheckedPosition, MessageTag)], jobs: &[CheckedPosition]) -> Vec<String> {
    let mut counts: BTreeMap<CheckedPosition, u64> = BTreeMap::new();
    for position in jobs {
        *counts.entry(*position).or_default() += 1;
    }
    let mut wrong = Vec::new();
    for (position, mark) in history {
        match counts.remove(position).unwrap_or_default() {
            1 => {}
            count => wrong.push(format!("{mark} at {position} became {count} jobs")),
        }
    }
    wrong.extend(counts.keys().map(|position| format!("there is a job for {position}, where the history has nothing")));
    let mut told = Vec::new();
    push_capped(&mut told, wrong);
    told
}

fn push_capped(told: &mut Vec<String>, mut findings: Vec<String>) {
    let more = findings.len().saturating_sub(MAX_FINDINGS);
    findings.truncate(MAX_FINDINGS);
    told.append(&mut findings);
    if more > 0 {
        told.push(format!("and {more} more of this kind"));
    }
}

#[cfg(test)]
mod tests;
