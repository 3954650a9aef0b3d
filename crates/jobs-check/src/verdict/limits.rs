//! Limits, orders and what follows what.

use std::collections::{BTreeMap, BTreeSet};

use super::{JobRun, JobsViolation, RunFacts, duplicates::may_lose_attempts};
use crate::plan::{JobsPlan, LEASE_MS, PlannedFaultKind, PlannedJobKind, PlannedRequest};

/// Starts of a rated group in a second, and the burst that comes before.
const RATE: usize = 4;

pub(super) fn judge_limits(violations: &mut Vec<JobsViolation>, plan: &JobsPlan, facts: &RunFacts<'_>) {
    let mut groups: BTreeMap<(PlannedJobKind, u32), Vec<&PlannedRequest>> = BTreeMap::new();
    for request in plan.requests.iter().filter(|request| facts.answers.contains_key(&request.number)) {
        groups.entry((request.kind, request.group)).or_default().push(request);
        if request.kind.is_workflow() {
            judge_workflow(violations, facts, request);
        }
    }
    for ((kind, group), requests) in groups {
        let name = format!("{kind:?}-{group}");
        let ids: BTreeSet<&str> =
            requests.iter().flat_map(|request| facts.jobs_of(request)).filter_map(|(_, id)| id).collect();
        let limit = if kind.is_unique() { Some(1) } else { kind.concurrency() };
        if let Some(limit) = limit
            && let Some(together) = find_together(facts, &ids, limit)
        {
            violations.push(if kind.is_unique() {
                JobsViolation::EqualJobs { group: name.clone(), ids: together }
            } else {
                JobsViolation::RanTogether { group: name.clone(), limit, ids: together }
            });
        }
        match kind {
            PlannedJobKind::Ordered => judge_order(violations, plan, facts, (&name, &requests)),
            PlannedJobKind::RateLimited => judge_rate(violations, plan, facts, &name, &ids),
            _ => {}
        }
    }
}

/// A run that counts: its worker was there all the time, so no lease ran out under it.
fn is_whole(facts: &RunFacts<'_>, run: &JobRun<'_>) -> bool {
    let runs = facts.runs_of(run.id);
    run.ended.is_some() && (run.is_failure() || runs.iter().all(|other| other.run == run.run || other.is_failure()))
}

/// Jobs of which more ran at once than may.
fn find_together(facts: &RunFacts<'_>, ids: &BTreeSet<&str>, limit: usize) -> Option<Vec<String>> {
    let runs = ids.iter().flat_map(|id| facts.runs_of(id)).filter(|run| is_whole(facts, run));
    let runs: Vec<(u64, u64, &str)> = runs.filter_map(|run| Some((run.started, run.ended?.0, run.id))).collect();
    runs.iter().find_map(|(at, _, _)| {
        // Those that had begun by then and not ended; one that ends in that millisecond may be followed
        let together: Vec<_> = runs.iter().filter(|(from, to, _)| from <= at && at < to).collect();
        (together.len() > limit).then(|| together.iter().map(|(_, _, id)| (*id).to_owned()).collect())
    })
}

/// The requests of an ordered group were sent one after the other.
fn judge_order(
    violations: &mut Vec<JobsViolation>,
    plan: &JobsPlan,
    facts: &RunFacts<'_>,
    (group, requests): (&str, &[&PlannedRequest]),
) {
    let first_run = |request: &PlannedRequest| {
        let id = facts.jobs_of(request).first().and_then(|(_, id)| *id)?;
        facts.runs_of(id).into_iter().min_by_key(|run| run.started)
    };
    for pair in requests.windows(2) {
        let (Some(earlier), Some(later)) = (first_run(pair[0]), first_run(pair[1])) else { continue };
        // The first attempt may have been lost with the worker that had it, before its handler began. Nothing else excuses it
        let may_be_lost = |from: u64, to: u64| {
            let mut struck = facts.struck.iter();
            struck.any(|struck| struck.from <= to && struck.to + LEASE_MS >= from && may_lose_attempts(plan, struck))
        };
        if later.started < earlier.started && !may_be_lost(later.started, earlier.started) {
            let (earlier, later) = (pair[0].number, pair[1].number);
            violations.push(JobsViolation::OutOfOrder { group: group.to_owned(), earlier, later });
        }
    }
}

/// A bucket that starts full, and one more for each step of the clock: no more than that over the whole time.
fn judge_rate(
    violations: &mut Vec<JobsViolation>,
    plan: &JobsPlan,
    facts: &RunFacts<'_>,
    group: &str,
    ids: &BTreeSet<&str>,
) {
    let mut starts: Vec<u64> = ids.iter().filter_map(|id| facts.runs_of(id).first().map(|run| run.started)).collect();
    starts.sort_unstable();
    let is_step = |kind| matches!(kind, PlannedFaultKind::ClockForward | PlannedFaultKind::ClockBack);
    // And the last one, which ends a run
    let steps = plan.faults.iter().filter(|fault| is_step(fault.kind)).count() + 1;
    let (Some(first), Some(last)) = (starts.first(), starts.last()) else { return };
    let within_ms = last - first;
    let allowed = RATE * (usize::try_from(within_ms / 1000).unwrap_or(usize::MAX / RATE / 2) + 2 + steps);
    if starts.len() > allowed {
        violations.push(JobsViolation::TooManyStarts { group: group.to_owned(), starts: starts.len(), within_ms });
    }
}

/// A step begins after the one before has ended, and what comes after all after all.
fn judge_workflow(violations: &mut Vec<JobsViolation>, facts: &RunFacts<'_>, request: &PlannedRequest) {
    let jobs = facts.jobs_of(request);
    let started = |id: &str| facts.runs_of(id).iter().map(|run| run.started).min();
    let ended = |id: &str| {
        let run = facts.finals.get(id)?.run.as_deref()?;
        facts.runs_of(id).into_iter().find(|other| other.run == run)?.ended.map(|(at, _)| at)
    };
    let mut follows: Vec<(usize, usize)> = Vec::new();
    match request.kind {
        PlannedJobKind::Chain => follows.extend((1..jobs.len()).map(|step| (step - 1, step))),
        PlannedJobKind::WorkflowBatch => follows.extend((0..jobs.len() - 1).map(|member| (member, jobs.len() - 1))),
        _ => {}
    }
    for (before, after) in follows {
        let (Some(before), Some(then)) = (jobs[before].1.and_then(ended), jobs[after].1.and_then(started)) else {
            continue;
        };
        if then < before {
            let step = u32::try_from(after).unwrap_or(u32::MAX);
            violations.push(JobsViolation::StepTooEarly { request: request.number, step });
        }
    }
}
