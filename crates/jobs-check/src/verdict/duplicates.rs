//! Runs that came again, and what explains them.

use super::{JobsVerdict, JobsViolation, RunFacts, facts::StruckFault};
use crate::plan::{CheckLink, LEASE_MS, LinkDisturbance, PlannedFaultKind};

/// Leases are renewed three times as often, so after two thirds of one without a renewal it may run out.
const SILENCE_MS: u64 = LEASE_MS * 2 / 3;

/// Each run that followed one of the same job which had not failed needs a cause.
pub(super) fn judge_duplicates(verdict: &mut JobsVerdict, facts: &RunFacts<'_>) {
    for id in facts.ids_of_runs() {
        let runs = facts.runs_of(id);
        for pair in runs.windows(2) {
            let (first, second) = (pair[0], pair[1]);
            let is_retry = first.is_failure() && first.ended.is_some_and(|(at, _)| at <= second.started);
            let was_redriven = facts.redriven.contains(id);
            if is_retry || was_redriven && first.is_failure() {
                continue;
            }
            // A worker that was frozen before its handler began writes that down after the one who has the job since
            let (earlier, later) = if first.attempt <= second.attempt { (first, second) } else { (second, first) };
            let (from, to) = (first.started.min(earlier.started), first.started.max(second.started));
            let early = from.saturating_sub(if first.attempt > second.attempt { 2 * LEASE_MS } else { 0 });
            match cause(facts, earlier.by, early, to) {
                Some(fault) => *verdict.duplicates.entry(fault).or_default() += 1,
                None => verdict.violations.push(JobsViolation::UnexplainedDuplicate {
                    id: id.to_owned(),
                    first: format!("attempt {} by {} at {}", earlier.attempt, earlier.by, earlier.started),
                    second: format!("attempt {} by {} at {}", later.attempt, later.by, later.started),
                }),
            }
        }
    }
}

/// The fault because of which a run by that process in that time may be repeated.
pub(super) fn cause(facts: &RunFacts<'_>, by: &str, from: u64, to: u64) -> Option<String> {
    let plan = facts.plan?;
    let explains = |struck: &&StruckFault<'_>| {
        let kind = plan.faults.get(struck.fault).map(|fault| fault.kind);
        struck.from <= to && struck.to >= from && kind.is_some_and(|kind| may_repeat(kind, struck, by))
    };
    facts.struck.iter().find(explains).map(|struck| plan.faults[struck.fault].kind.name())
}

/// Faults of Redis, of connections and of scripts repeat nothing: docs/guarantees.md promises that. What does is the loss of a
/// worker, its silence, and for a worker that pulls also the silence of what is behind it: its client reports a result until the
/// lease is over, and no longer.
fn may_repeat(kind: PlannedFaultKind, struck: &StruckFault<'_>, by: &str) -> bool {
    let is_long = struck.to - struck.from >= SILENCE_MS;
    let is_target = struck.target == by;
    let is_on_its_way = by.starts_with("puller");
    match kind {
        PlannedFaultKind::KillWorker
        | PlannedFaultKind::TerminateWorker
        | PlannedFaultKind::KillPuller
        | PlannedFaultKind::TerminatePuller => is_target,
        PlannedFaultKind::FreezeWorker | PlannedFaultKind::FreezePuller => is_target && is_long,
        PlannedFaultKind::Link(CheckLink::WorkerToRedis, LinkDisturbance::BlackHole) => is_target && is_long,
        PlannedFaultKind::KillGateway
        | PlannedFaultKind::FreezeGateway
        | PlannedFaultKind::TerminateGateway
        | PlannedFaultKind::KillRedis
        | PlannedFaultKind::FreezeRedis
        | PlannedFaultKind::Link(CheckLink::GatewayToRedis | CheckLink::ClientsToGateway, _) => {
            is_on_its_way && is_long
        }
        PlannedFaultKind::FillRedis
        | PlannedFaultKind::ClockForward
        | PlannedFaultKind::ClockBack
        | PlannedFaultKind::CutConnections
        | PlannedFaultKind::FlushScripts
        | PlannedFaultKind::Link(CheckLink::WorkerToRedis, _) => false,
    }
}
