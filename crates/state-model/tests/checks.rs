//! Visits every state of some scenarios, and sees that planted bugs are found.

use state_model::{JobKind, JobModel, ModelRule, PlantedBug, Scenario, Witness};
use stateright::{Checker, HasDiscoveries, Model};

/// No scenario has more states, so a check that visits more is broken.
const MAX_STATES: usize = 5_000_000;

/// One job, two workers that may stop, and two leaders that do not know of each other.
fn workers() -> Scenario {
    Scenario {
        processes: 2,
        leaders: 2,
        fails: true,
        lost_answers: 1,
        crashes: 1,
        renewals: 1,
        releases: 1,
        ..Scenario::new(&[JobKind::Plain])
    }
}

/// One job that is due later, two workers, two leaders, and a client that cancels.
fn cancels() -> Scenario {
    Scenario { jobs: &[JobKind::Scheduled], cancels: 1, releases: 0, ..workers() }
}

/// One job, a worker that can hand it over, and two programs that fetch over HTTP.
fn programs() -> Scenario {
    Scenario {
        programs: 2,
        leaders: 2,
        fails: true,
        lost_answers: 1,
        crashes: 1,
        renewals: 1,
        handovers: 1,
        ..Scenario::new(&[JobKind::Plain])
    }
}

/// Two jobs that a worker completes together.
fn batches() -> Scenario {
    Scenario {
        processes: 2,
        slots: 2,
        cancels: 1,
        lost_answers: 1,
        crash_budget: 0,
        ..Scenario::new(&[JobKind::Plain, JobKind::Plain])
    }
}

/// Two equal unique jobs, one of which may replace the other.
fn unique() -> Scenario {
    Scenario {
        fails: true,
        cancels: 1,
        lost_answers: 1,
        crash_budget: 0,
        ..Scenario::new(&[JobKind::Unique, JobKind::Replacing])
    }
}

/// Three of them.
fn three_unique() -> Scenario {
    Scenario { cancels: 1, crash_budget: 0, ..Scenario::new(&[JobKind::Unique, JobKind::Replacing, JobKind::Unique]) }
}

/// Two equal unique jobs that are redriven.
fn redrives() -> Scenario {
    Scenario {
        cancels: 1,
        redrives: 2,
        max_attempts: 1,
        crash_budget: 0,
        ..Scenario::new(&[JobKind::Unique, JobKind::Unique])
    }
}

/// Checks every rule in every state; the number of states is part of what is claimed in docs/guarantees.md.
#[track_caller]
fn check(scenario: Scenario, states: usize, seen: &[Witness]) {
    let checker = JobModel::new(scenario).checker().threads(2).target_state_count(MAX_STATES).spawn_bfs().join();
    if let Some((rule, path)) = checker.discoveries().into_iter().next() {
        let state = format!("{:#?}", path.last_state());
        panic!("{rule}: {:#?}\n{state}", path.into_actions());
    }
    let visited = checker.unique_state_count();
    println!("{visited} states, up to {} steps away", checker.max_depth());
    assert!(checker.state_count() < MAX_STATES, "not all states were visited");
    assert_eq!(visited, states, "other states than docs/guarantees.md says");
    for witness in seen {
        assert!(checker.model().has_seen(*witness), "no way led to {witness:?}");
    }
}

#[test]
fn one_job_of_two_workers_keeps_every_rule_in_every_state() {
    let seen = [
        Witness::StaleCall,
        Witness::RepeatRecognized,
        Witness::LeaseLost,
        Witness::ClaimRecovered,
        Witness::ReclaimSawOld,
        Witness::CrashBudgetSpent,
    ];
    check(workers(), 181_022, &seen);
}

#[test]
fn a_job_that_is_cancelled_keeps_every_rule_in_every_state() {
    check(cancels(), 236_158, &[Witness::RunningJobCancelled, Witness::CancelSawOld]);
}

#[test]
fn a_job_that_is_fetched_over_http_or_handed_over_keeps_every_rule_in_every_state() {
    let seen = [Witness::StaleCall, Witness::RepeatRecognized, Witness::LeaseLost, Witness::HandedOver];
    check(programs(), 317_189, &seen);
}

#[test]
fn jobs_that_are_completed_together_keep_every_rule_in_every_state() {
    check(batches(), 7_075, &[Witness::BatchSplit, Witness::RepeatRecognized, Witness::RunningJobCancelled]);
}

#[test]
fn equal_unique_jobs_keep_every_rule_in_every_state() {
    check(unique(), 78_706, &[Witness::UniquenessChanged, Witness::Replaced, Witness::CancelSawOld]);
}

#[test]
fn three_equal_unique_jobs_keep_every_rule_in_every_state() {
    check(three_unique(), 24_272, &[Witness::UniquenessChanged, Witness::Replaced]);
}

#[test]
fn unique_jobs_that_are_redriven_keep_every_rule_in_every_state() {
    check(redrives(), 41_176, &[Witness::Redriven, Witness::UniquenessChanged]);
}

/// Where a bug shows, and which rule it breaks.
fn expectation(bug: PlantedBug) -> (Scenario, ModelRule) {
    match bug {
        PlantedBug::NoFence | PlantedBug::ReclaimKeepsEntry => (workers(), ModelRule::CurrentAttempt),
        PlantedBug::ReclaimWithoutIdleCheck => (workers(), ModelRule::LiveLease),
        PlantedBug::CrashNotCounted => (workers(), ModelRule::Counts),
        PlantedBug::SettleNotAtomic => (workers(), ModelRule::OnePlace),
        PlantedBug::RepeatForgotten => (workers(), ModelRule::TrueAnswers),
        PlantedBug::RetryNotDue | PlantedBug::PromoteKeepsDue => (workers(), ModelRule::OnePlace),
        PlantedBug::CancelUnchecked => (cancels(), ModelRule::OneEnd),
        PlantedBug::UniquenessFreedAtClaim
        | PlantedBug::UniquenessFreedAtRetry
        | PlantedBug::CreateUnchecked
        | PlantedBug::ReplacedJobStays => (unique(), ModelRule::Uniqueness),
        PlantedBug::UniquenessNeverFreed => (unique(), ModelRule::AllEnd),
        PlantedBug::RedrivenHolderUnseen | PlantedBug::RedrivenJobUnprotected => (redrives(), ModelRule::Uniqueness),
        PlantedBug::CompletionIgnoresToken => (programs(), ModelRule::CurrentAttempt),
        PlantedBug::RenewWithoutFence => (programs(), ModelRule::CurrentAttempt),
        PlantedBug::PulledLeaseIgnored => (programs(), ModelRule::AllEnd),
    }
}

#[test]
fn every_planted_bug_is_found() {
    for bug in PlantedBug::ALL {
        let (scenario, rule) = expectation(bug);
        let until = HasDiscoveries::AnyOf([rule.name()].into());
        let checker = JobModel::with_bug(scenario, bug).checker().threads(2);
        let checker = checker.finish_when(until).target_state_count(MAX_STATES).spawn_bfs().join();
        let found = checker.discovery(rule.name());
        let steps = found.map(|path| path.into_actions().len());
        println!("{bug:?}: {steps:?} steps, {} states", checker.state_count());
        assert!(steps.is_some(), "{bug:?} breaks no rule \"{}\"", rule.name());
    }
}
