//! Runs that came again, and what explains them.

use super::{JobRun, JobsVerdict, JobsViolation, RunFacts, facts::StruckFault};
use crate::plan::{CheckLink, JobsPlan, LEASE_MS, LinkDisturbance, PlannedFaultKind};

/// Leases are renewed three times as often, so after two thirds of one without a renewal it may run out.
const SILENCE_MS: u64 = LEASE_MS * 2 / 3;

/// A worker that was silent may begin what it had claimed before, soon after.
const LATE_BEGIN_MS: u64 = 1000;
/// Between two looks at a time without a way to Redis.
const LOOK_MS: u64 = 50;

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
            let late_begin = || late_begin(facts, first).or_else(|| late_begin(facts, second));
            match cause(facts, earlier.by, early, to).or_else(late_begin) {
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
    let found = facts.struck.iter().find(explains).map(|struck| plan.faults[struck.fault].kind.name());
    found.or_else(|| if by.starts_with("puller") { silence_on_the_way(plan, facts, from, to) } else { None })
}

/// The fault because of which a worker may have begun a run long after it claimed the job.
fn late_begin(facts: &RunFacts<'_>, run: &JobRun<'_>) -> Option<String> {
    let plan = facts.plan?;
    let struck = facts.struck.iter().find(|struck| {
        let is_soon = struck.to <= run.started && run.started - struck.to <= LATE_BEGIN_MS;
        let kind = plan.faults.get(struck.fault).map(|fault| fault.kind);
        is_soon && kind.is_some_and(|kind| is_silence(kind) && may_repeat(kind, struck, run.by))
    });
    struck.map(|struck| plan.faults[struck.fault].kind.name())
}

/// Faults of Redis, of connections and of scripts repeat nothing that a queue-worker runs: docs/guarantees.md promises that. What
/// does is the loss of a worker and its silence.
fn may_repeat(kind: PlannedFaultKind, struck: &StruckFault<'_>, by: &str) -> bool {
    let is_long = struck.to - struck.from >= SILENCE_MS;
    let is_target = struck.target == by;
    match kind {
        PlannedFaultKind::KillWorker
        | PlannedFaultKind::TerminateWorker
        | PlannedFaultKind::KillPuller
        | PlannedFaultKind::TerminatePuller => is_target,
        kind => is_silence(kind) && is_target && is_long,
    }
}

/// Whether a worker is there and can say nothing.
fn is_silence(kind: PlannedFaultKind) -> bool {
    matches!(
        kind,
        PlannedFaultKind::FreezeWorker
            | PlannedFaultKind::FreezePuller
            | PlannedFaultKind::Link(CheckLink::WorkerToRedis, LinkDisturbance::BlackHole)
    )
}

/// Whether a worker that pulls can say nothing, because gateways or the way through them are away. Its lease ends
/// meanwhile.
fn is_on_the_way(kind: PlannedFaultKind) -> bool {
    matches!(
        kind,
        PlannedFaultKind::KillGateway
            | PlannedFaultKind::FreezeGateway
            | PlannedFaultKind::TerminateGateway
            | PlannedFaultKind::Link(CheckLink::GatewayToRedis | CheckLink::ClientsToGateway, _)
    )
}

/// Whether Redis is away. No lease ends meanwhile, nor for half a lease after it, and the client of a worker that pulls
/// reports for longer. Just before or after a fault on the way it adds to the silence of that.
fn is_outage(kind: PlannedFaultKind) -> bool {
    matches!(
        kind,
        PlannedFaultKind::KillRedis
            | PlannedFaultKind::LoseUnsynced
            | PlannedFaultKind::FillDisk
            | PlannedFaultKind::FreezeRedis
    )
}

/// A fault of several that together left a worker that pulls no way for most of a lease, and not by outages of Redis
/// alone. A fault lasts until a request is acknowledged and a job ends again.
fn silence_on_the_way(plan: &JobsPlan, facts: &RunFacts<'_>, from: u64, to: u64) -> Option<String> {
    let mut silences: Vec<(u64, u64, PlannedFaultKind)> = Vec::new();
    for struck in &facts.struck {
        let Some(kind) = plan.faults.get(struck.fault).map(|fault| fault.kind) else { continue };
        // What an earlier one covers does not count twice
        let start = silences.last().map_or(struck.from, |(_, end, _)| struck.from.max(*end));
        let end = struck.to + facts.recovery_after(struck.to);
        if (is_on_the_way(kind) || is_outage(kind)) && struck.from <= to && end >= from && start < end {
            silences.push((start, end, kind));
        }
    }
    let part_within = |start: u64, (from, to, _): &(u64, u64, PlannedFaultKind)| {
        (*to).min(start + LEASE_MS).saturating_sub((*from).max(start))
    };
    let explains = |start: u64| {
        let part = |silence| part_within(start, silence);
        let is_more_than_outages = silences.iter().any(|silence| is_on_the_way(silence.2) && part(silence) > 0);
        is_more_than_outages && silences.iter().map(part).sum::<u64>() >= SILENCE_MS
    };
    let is_long = (from..=to).step_by(usize::try_from(LOOK_MS).unwrap_or(1)).any(explains);
    let longest = silences.iter().max_by_key(|(from, to, _)| to - from);
    longest.filter(|_| is_long).map(|(_, _, kind)| kind.name())
}

/// Whether a fault can take attempts from a queue-worker.
pub(super) fn may_lose_attempts(plan: &JobsPlan, struck: &StruckFault<'_>) -> bool {
    let kind = plan.faults.get(struck.fault).map(|fault| fault.kind);
    struck.target.starts_with("worker") && kind.is_some_and(|kind| may_repeat(kind, struck, struck.target))
}

#[cfg(test)]
mod tests {
    use super::super::{JobsViolation, tests::WrittenRun};
    use crate::{
        history::HistoryEvent,
        plan::{PlannedFaultKind as Kind, PlannedJobKind},
    };

    fn add_run(run: &mut WrittenRun, by: &str, at: u64, attempt: u32) {
        let (name, id) = (format!("a/{attempt}"), "a".to_owned());
        run.add(at, by, HistoryEvent::Started { run: name.clone(), id, key: 1, attempt, cron: None });
        run.add(at + 100, by, HistoryEvent::Finished { run: name, is_success: true });
    }

    /// A job that two processes ran, while others go on at those times.
    fn ran_twice(first: (&str, u64), second: (&str, u64), others: &[u64]) -> WrittenRun {
        let mut run = WrittenRun::new();
        run.plan(1, PlannedJobKind::Plain, 1);
        run.acknowledge(1, &["a"]);
        add_run(&mut run, first.0, first.1, 1);
        add_run(&mut run, second.0, second.1, 2);
        run.finish("a", "completed", 2);
        for (number, at) in (10..).zip(others) {
            let id = format!("other {number}");
            run.add_job(number, PlannedJobKind::Plain, &id, *at, *at);
            run.add(*at, "producer", HistoryEvent::Acknowledged { request: number, ids: vec![id], is_created: true });
        }
        run
    }

    fn is_unexplained(run: &WrittenRun) -> bool {
        matches!(run.violations()[..], [JobsViolation::UnexplainedDuplicate { .. }])
    }

    #[test]
    fn faults_that_together_last_for_most_of_a_lease_explain_what_a_worker_that_pulls_could_not_say() {
        let mut run = ran_twice(("puller-0", 10_000), ("puller-1", 16_000), &[11_260, 12_510]);
        run.strike(Kind::FreezeGateway, "gateway-0", 10_150, 11_250, 1);
        assert!(is_unexplained(&run), "1.1 s of three");
        run.strike(Kind::FillDisk, "redis", 11_400, 12_500, 1);
        assert_eq!(run.violations(), []);
        let mut run = ran_twice(("puller-0", 10_000), ("puller-1", 16_000), &[13_010, 15_510]);
        run.strike(Kind::FreezeRedis, "redis", 10_050, 13_000, 1);
        run.strike(Kind::KillRedis, "redis", 13_100, 15_500, 1);
        assert!(is_unexplained(&run), "after outages of Redis its client has the time to report");
        let mut run = ran_twice(("worker-0", 10_000), ("worker-1", 16_000), &[16_010]);
        run.strike(Kind::FreezeRedis, "redis", 10_050, 15_990, 1);
        assert!(is_unexplained(&run), "a queue-worker keeps its jobs whatever becomes of Redis");
    }

    #[test]
    fn a_worker_begins_what_it_had_claimed_soon_after_it_was_silent_and_not_later() {
        for (begin, is_explained) in [(14_010, true), (15_600, false)] {
            let mut run = ran_twice(("worker-0", begin), ("worker-1", begin + 5), &[14_001]);
            run.strike(Kind::FreezeWorker, "worker-0", 10_000, 14_000, 1);
            assert_eq!(is_unexplained(&run), !is_explained, "{:?}", run.violations());
        }
    }
}
