//! The verdict: a pure function of the plan and the histories. It knows nothing of Redis or of processes, so it can be tested
//! with histories that were written by hand.

mod duplicates;
mod facts;
mod limits;
mod recovery;
#[cfg(test)]
mod tests;
mod violation;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use self::facts::{JobRun, RunFacts};
pub use self::{recovery::RecoveredThroughput, violation::JobsViolation};
use crate::{
    history::{CheckedJobView, HistoryEntry},
    plan::{CheckLoad, JobRunner, JobsPlan, PlannedJobKind, PlannedRequest},
};

/// What a request with the key of another one has in its arguments: that number and the number of the job.
pub const CONFLICT_KEY: u32 = 1_000_000_000;

/// A job that was claimed before its cancellation may begin after it: workers claim ahead for half a second.
const MAX_LATE_START_MS: u64 = 2000;

/// What is said about a run.
#[derive(Debug, Default, Serialize)]
pub struct JobsVerdict {
    /// Requests that were answered with success.
    pub acknowledged_requests: u64,
    /// Requests that were refused for good.
    pub refused_requests: u64,
    /// Requests that were sent and not answered, each time that it happened.
    pub unanswered: u64,
    /// Jobs that must end.
    pub jobs: u64,
    /// Runs of handlers.
    pub runs: u64,
    /// Runs of cron entries that made a job.
    pub cron_runs: u64,
    /// Jobs by the state in which they ended.
    pub states: BTreeMap<String, u64>,
    /// Jobs that ended while Redis had no memory to keep that: their ends are only counted.
    pub dropped_records: u64,
    /// Runs that followed a run which had not failed, by what explains them.
    pub duplicates: BTreeMap<String, u64>,
    /// How often each fault struck.
    pub faults: BTreeMap<String, u64>,
    /// From the end of a fault until the next acknowledgement and the next end of a job, the longest, in ms.
    pub worst_recovery_ms: u64,
    /// After which fault that was.
    pub worst_recovery_after: String,
    /// After each fault under a steady load, the slowest of each kind.
    pub recovered: BTreeMap<String, RecoveredThroughput>,
    /// What is wrong.
    pub violations: Vec<JobsViolation>,
}

/// Judges a run.
#[must_use]
pub fn judge(plan: &JobsPlan, history: &[HistoryEntry]) -> JobsVerdict {
    let facts = RunFacts::of(plan, history);
    let mut verdict = JobsVerdict {
        unanswered: facts.unanswered,
        runs: facts.runs.len() as u64,
        jobs: facts.known_ids().len() as u64,
        ..JobsVerdict::default()
    };
    for request in &plan.requests {
        judge_request(&mut verdict, &facts, request);
    }
    judge_endings(&mut verdict, &facts);
    judge_runs(&mut verdict, &facts);
    judge_cron(&mut verdict, &facts);
    duplicates::judge_duplicates(&mut verdict, &facts);
    limits::judge_limits(&mut verdict.violations, plan, &facts);
    judge_faults(&mut verdict, plan, &facts);
    if plan.load == CheckLoad::Steady {
        recovery::judge_recovery(&mut verdict, plan, &facts);
    }
    verdict
}

/// Whether it was answered, always the same, and its jobs ended as they must.
fn judge_request(verdict: &mut JobsVerdict, facts: &RunFacts<'_>, request: &PlannedRequest) {
    let number = request.number;
    let answers = facts.answers.get(&number).map_or(&[][..], Vec::as_slice);
    let Some((ids, _)) = answers.first() else {
        if facts.refused.contains_key(&number) {
            verdict.refused_requests += 1;
            if request.kind != PlannedJobKind::UniqueReject {
                verdict.violations.push(JobsViolation::Refused { request: number, status: facts.refused[&number] });
            }
        } else {
            verdict.violations.push(JobsViolation::NeverAnswered { request: number });
        }
        return;
    };
    verdict.acknowledged_requests += 1;
    // An equal job may be over before the request comes again, but the answer stays
    if let Some((other, _)) = answers.iter().find(|(other, _)| other != ids) {
        verdict
            .violations
            .push(JobsViolation::TwoAnswers { request: number, ids: [ids.clone(), other.clone()].concat() });
    }
    if request.kind == PlannedJobKind::Conflicting && !facts.conflicts.contains(&number) {
        verdict.violations.push(JobsViolation::ConflictAccepted { request: number });
    }
    if request.kind.is_workflow() {
        match facts.workflows.get(ids[0].as_str()) {
            Some((state, _)) if *state == "completed" => {}
            other => {
                let state = other.map_or("missing", |(state, _)| *state).to_owned();
                verdict.violations.push(JobsViolation::WrongWorkflow { request: number, state });
            }
        }
    }
    for (job, id) in facts.jobs_of(request) {
        let Some(id) = id else {
            verdict.violations.push(JobsViolation::Lost { key: job.key, id: String::new() });
            continue;
        };
        match facts.finals.get(id) {
            None => verdict.violations.push(JobsViolation::Lost { key: job.key, id: id.to_owned() }),
            // A workflow knows the ends of its jobs, so nothing else need
            Some(view) if view.state == "missing" && request.kind.is_workflow() && facts.is_dropped(id) => {
                verdict.dropped_records += 1;
            }
            Some(view) if view.state == "missing" || (view.is_noted && !facts.is_dropped(id)) => {
                verdict.violations.push(JobsViolation::Lost { key: job.key, id: id.to_owned() });
            }
            Some(view) if !view.is_over() => {
                verdict.violations.push(JobsViolation::NotTerminal { id: id.to_owned(), state: view.state.clone() });
            }
            Some(view) if !may_end_so(facts, request.kind, view) => {
                verdict.violations.push(JobsViolation::WrongState {
                    id: id.to_owned(),
                    kind: request.kind,
                    state: view.state.clone(),
                    code: view.code.clone().unwrap_or_default(),
                });
            }
            Some(view) => verdict.dropped_records += u64::from(view.is_noted),
        }
    }
}

fn may_end_so(facts: &RunFacts<'_>, kind: PlannedJobKind, view: &CheckedJobView) -> bool {
    let is_expired = view.state == "discarded" && (view.is_noted || view.code.as_deref() == Some("expired"));
    match kind {
        PlannedJobKind::Exhausted => view.state == "discarded" && (view.is_noted || !is_expired),
        PlannedJobKind::Redriven => view.state == "completed" && facts.redriven.contains(view.id.as_str()),
        PlannedJobKind::Expiring => view.state == "completed" || is_expired,
        PlannedJobKind::Expired => is_expired,
        PlannedJobKind::Cancelled => view.state == "cancelled" && facts.cancelled.contains_key(view.id.as_str()),
        PlannedJobKind::Stopped if facts.cancelled.contains_key(view.id.as_str()) => view.state == "cancelled",
        // A cancellation that was carried out and never answered
        PlannedJobKind::Stopped => view.state == "completed" || view.state == "cancelled",
        _ => view.state == "completed",
    }
}

/// Whether each result is that of the attempt that won, was recorded once, and stayed.
fn judge_endings(verdict: &mut JobsVerdict, facts: &RunFacts<'_>) {
    let mut completed: BTreeMap<&str, u64> = BTreeMap::new();
    for view in facts.finals.values() {
        *verdict.states.entry(view.state.clone()).or_default() += 1;
        if view.state == "missing"
            && facts.is_dropped(&view.id)
            && let Some(queue) = facts.queue_of_success(&view.id)
        {
            *completed.entry(queue).or_default() += 1;
        }
        if view.state != "completed" {
            continue;
        }
        *completed.entry(view.queue.as_str()).or_default() += 1;
        let runs = facts.runs_of(&view.id);
        let winner = runs.iter().find(|run| Some(run.run) == view.run.as_deref());
        let newest = runs.iter().map(|run| run.attempt).max().unwrap_or(0);
        let is_right = match winner {
            None => view.is_noted && runs.iter().any(|run| run.is_success()),
            Some(winner) => {
                winner.is_success() && (winner.attempt == newest || facts.redriven.contains(view.id.as_str()))
            }
        };
        if !is_right {
            let attempt = winner.map_or(0, |winner| winner.attempt);
            verdict.violations.push(JobsViolation::WrongResult { id: view.id.clone(), attempt, newest });
        }
    }
    for (queue, counted) in &facts.counted {
        let jobs = completed.get(queue).copied().unwrap_or(0);
        if *counted != jobs {
            let (queue, counted) = ((*queue).to_owned(), *counted);
            verdict.violations.push(JobsViolation::CountedTwice { queue, counted, jobs });
        }
    }
    for view in &facts.looked {
        let last = facts.finals.get(view.id.as_str());
        let is_same = last.is_some_and(|last| *last == *view || (last.is_noted && last.state == view.state));
        if view.is_over() && !is_same && !facts.redriven.contains(view.id.as_str()) {
            let then = last.map_or("missing", |last| last.state.as_str()).to_owned();
            verdict.violations.push(JobsViolation::Changed { id: view.id.clone(), state: view.state.clone(), then });
        }
    }
}

/// Whether only what was acknowledged ran, as one job each.
fn judge_runs(verdict: &mut JobsVerdict, facts: &RunFacts<'_>) {
    let known = facts.known_ids();
    let mut ids_of_keys: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
    for run in facts.runs.iter().filter(|run| run.cron.is_none()) {
        ids_of_keys.entry(run.key).or_default().insert(run.id);
        let kind = facts.kinds.get(&run.key).copied();
        let is_refused = match kind {
            None | Some(PlannedJobKind::Expired | PlannedJobKind::Cancelled) => true,
            Some(_) => !known.contains(run.id) || !facts.may_run(run),
        };
        if is_refused {
            verdict.violations.push(JobsViolation::RanRefused { key: run.key, id: run.id.to_owned() });
        }
        if let Some(at) = facts.cancelled.get(run.id)
            && run.started > *at + MAX_LATE_START_MS
            && !is_program_of_earlier_claim(facts, run)
            && duplicates::cause(facts, run.by, at.saturating_sub(crate::plan::LEASE_MS), run.started).is_none()
        {
            verdict.violations.push(JobsViolation::RanCancelled { id: run.id.to_owned() });
        }
    }
    for (key, ids) in ids_of_keys.into_iter().filter(|(_, ids)| ids.len() > 1) {
        verdict.violations.push(JobsViolation::TwoJobs { key, ids: ids.into_iter().map(str::to_owned).collect() });
    }
}

/// Whether it is a program that its worker had claimed the job for before that was cancelled: how long one takes to start is a
/// matter of the machine.
fn is_program_of_earlier_claim(facts: &RunFacts<'_>, run: &JobRun<'_>) -> bool {
    facts.runner_of(run) == Some(JobRunner::Command)
        && facts.finals.get(run.id).is_some_and(|view| view.state == "cancelled" && view.attempt >= run.attempt)
}

/// Whether each run of a cron entry made one job, which ended.
fn judge_cron(verdict: &mut JobsVerdict, facts: &RunFacts<'_>) {
    let mut ids_of_runs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (cron, run) in facts.runs.iter().filter_map(|run| Some((run.cron?, run))) {
        ids_of_runs.entry(cron).or_default().insert(run.id);
        let is_completed = facts.finals.get(run.id).is_some_and(|view| view.state == "completed");
        if !is_completed && !facts.is_dropped(run.id) {
            verdict.violations.push(JobsViolation::Lost { key: 0, id: run.id.to_owned() });
        }
    }
    verdict.cron_runs = ids_of_runs.len() as u64;
    for (run, ids) in ids_of_runs.into_iter().filter(|(_, ids)| ids.len() > 1) {
        verdict.violations.push(JobsViolation::CronRanTwice { run: run.to_owned(), jobs: ids.len() });
    }
}

/// Whether everything struck that was planned, and how soon work went on.
fn judge_faults(verdict: &mut JobsVerdict, plan: &JobsPlan, facts: &RunFacts<'_>) {
    for (index, planned) in plan.faults.iter().enumerate() {
        match facts.struck.iter().find(|struck| struck.fault == index) {
            Some(struck) if struck.hits > 0 => {
                *verdict.faults.entry(planned.kind.name()).or_default() += 1;
                let recovery = facts.recovery_after(struck.to);
                if recovery > verdict.worst_recovery_ms {
                    verdict.worst_recovery_ms = recovery;
                    verdict.worst_recovery_after = planned.kind.name();
                }
            }
            _ => verdict.violations.push(JobsViolation::NeverStruck { fault: planned.kind.name() }),
        }
    }
}
