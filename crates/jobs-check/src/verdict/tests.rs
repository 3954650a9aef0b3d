//! Histories that were written by hand: a good one, and one for each way to be bad.

use super::*;
use crate::{
    history::HistoryEvent,
    plan::{FaultGroup, JobBehaviour, JobRunner, PlannedFault, PlannedFaultKind, PlannedJob},
};

const WORKER: &str = "worker-0";

/// A run by hand: what is planned and what happened.
#[derive(Clone)]
pub(super) struct WrittenRun {
    pub(super) plan: JobsPlan,
    pub(super) history: Vec<HistoryEntry>,
}

impl WrittenRun {
    pub(super) fn new() -> Self {
        Self {
            plan: JobsPlan { requests: Vec::new(), faults: Vec::new(), length_ms: 0, load: CheckLoad::Mixed },
            history: Vec::new(),
        }
    }

    /// A request with jobs whose keys are its number and those behind it.
    pub(super) fn plan(&mut self, number: u32, kind: PlannedJobKind, jobs: u32) {
        let behaviour = JobBehaviour { run_ms: 0, failures: 0, fails_until_redriven: false };
        let jobs = (0..jobs).map(|job| PlannedJob { key: number + job, runner: JobRunner::Rust, behaviour }).collect();
        self.plan.requests.push(PlannedRequest { number, at_ms: 0, kind, group: 0, detail: 0, jobs });
    }

    pub(super) fn add(&mut self, at: u64, by: &str, event: HistoryEvent) {
        self.history.push(HistoryEntry { at, by: by.to_owned(), event });
        self.history.sort_by_key(|entry| entry.at);
    }

    pub(super) fn acknowledge(&mut self, request: u32, ids: &[&str]) {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        self.add(1, "producer", HistoryEvent::Acknowledged { request, ids, is_created: true });
    }

    pub(super) fn start(&mut self, at: u64, id: &str, key: u32, attempt: u32) {
        let (run, id) = (format!("{id}/{attempt}"), id.to_owned());
        self.add(at, WORKER, HistoryEvent::Started { run, id, key, attempt, cron: None });
    }

    pub(super) fn end(&mut self, at: u64, id: &str, attempt: u32, is_success: bool) {
        self.add(at, WORKER, HistoryEvent::Finished { run: format!("{id}/{attempt}"), is_success });
    }

    fn view(id: &str, state: &str, attempt: u32) -> CheckedJobView {
        let run = (state == "completed").then(|| format!("{id}/{attempt}"));
        let (id, state, queue) = (id.to_owned(), state.to_owned(), "check.rust".to_owned());
        CheckedJobView { id, state, queue, attempt, run, code: None, is_noted: false }
    }

    pub(super) fn finish(&mut self, id: &str, state: &str, attempt: u32) {
        let job = Self::view(id, state, attempt);
        self.add(900_000, "asker", HistoryEvent::Looked { job, is_final: true });
    }

    /// As the end of a job is known that Redis had no memory for.
    fn finish_noted(&mut self, id: &str, state: &str) {
        let job = CheckedJobView { run: None, is_noted: true, ..Self::view(id, state, 1) };
        self.add(900_000, "asker", HistoryEvent::Looked { job, is_final: true });
    }

    /// A plain job that did what it should.
    pub(super) fn add_job(&mut self, number: u32, kind: PlannedJobKind, id: &str, from: u64, to: u64) {
        self.plan(number, kind, 1);
        self.acknowledge(number, &[id]);
        self.start(from, id, number, 1);
        self.end(to, id, 1, true);
        self.finish(id, "completed", 1);
    }

    pub(super) fn strike(&mut self, kind: PlannedFaultKind, target: &str, from: u64, to: u64, hits: u64) {
        let fault = self.plan.faults.len();
        self.plan.faults.push(PlannedFault { at_ms: from, duration_ms: to - from, kind, target: 0 });
        let target = target.to_owned();
        self.add(to, "nemesis", HistoryEvent::Struck { fault, target, from, to, hits });
    }

    pub(super) fn violations(&self) -> Vec<JobsViolation> {
        judge(&self.plan, &self.history).violations
    }

    /// Removes what an entry says.
    fn forget(&mut self, is_forgotten: impl Fn(&HistoryEvent) -> bool) {
        self.history.retain(|entry| !is_forgotten(&entry.event));
    }
}

/// One job that is completed.
fn good() -> WrittenRun {
    let mut run = WrittenRun::new();
    run.add_job(1, PlannedJobKind::Plain, "a", 10, 20);
    run
}

#[test]
fn a_good_history_has_no_violation_and_is_counted() {
    let mut run = good();
    run.add_job(2, PlannedJobKind::Ordered, "b", 10, 20);
    run.add_job(3, PlannedJobKind::Ordered, "c", 20, 30);
    run.strike(PlannedFaultKind::FlushScripts, "redis", 5, 6, 1);
    run.add(950_000, "asker", HistoryEvent::Counted { queue: "check.rust".to_owned(), completed: 3 });
    let verdict = judge(&run.plan, &run.history);
    assert_eq!(verdict.violations, []);
    assert_eq!((verdict.acknowledged_requests, verdict.jobs, verdict.runs), (3, 3, 3));
    assert_eq!((verdict.states["completed"], verdict.worst_recovery_ms), (3, 14));
}

#[test]
fn an_acknowledged_job_that_nobody_finds_is_lost() {
    let mut run = good();
    run.forget(|event| matches!(event, HistoryEvent::Looked { .. }));
    assert_eq!(run.violations(), [JobsViolation::Lost { key: 1, id: "a".to_owned() }]);
    run.finish("a", "missing", 0);
    assert_eq!(run.violations(), [JobsViolation::Lost { key: 1, id: "a".to_owned() }]);
}

#[test]
fn an_end_that_redis_had_no_memory_for_is_noted_and_counted_and_what_is_missing_is_lost() {
    let mut run = good();
    run.forget(|event| matches!(event, HistoryEvent::Looked { .. }));
    run.finish_noted("a", "completed");
    run.add_job(2, PlannedJobKind::Plain, "b", 90_000, 90_010);
    run.forget(|event| matches!(event, HistoryEvent::Looked { job, .. } if job.id == "b"));
    run.finish_noted("b", "completed");
    run.add_job(3, PlannedJobKind::Plain, "c", 30, 40);
    run.forget(|event| matches!(event, HistoryEvent::Looked { job, .. } if job.id == "c"));
    run.finish("c", "missing", 0);
    run.strike(PlannedFaultKind::FillRedis, "redis", 5, 400, 9);
    let verdict = judge(&run.plan, &run.history);
    let lost = |key, id: &str| JobsViolation::Lost { key, id: id.to_owned() };
    assert_eq!(verdict.violations, [lost(2, "b"), lost(3, "c")], "there was memory for b, and c is not even noted");
    assert_eq!(verdict.dropped_records, 1);
    let counted = |completed| HistoryEvent::Counted { queue: "check.rust".to_owned(), completed };
    run.add(950_000, "asker", counted(3));
    assert!(!run.violations().iter().any(|one| matches!(one, JobsViolation::CountedTwice { .. })));
    run.add(950_001, "asker", counted(0));
    assert!(run.violations().iter().any(|one| matches!(one, JobsViolation::CountedTwice { counted: 0, jobs: 3, .. })));
}

#[test]
fn a_job_that_has_not_ended_after_all_has_healed_is_stuck() {
    let mut run = good();
    run.forget(|event| matches!(event, HistoryEvent::Looked { .. }));
    run.finish("a", "active", 1);
    assert_eq!(run.violations(), [JobsViolation::NotTerminal { id: "a".to_owned(), state: "active".to_owned() }]);
}

#[test]
fn a_job_that_ends_as_its_kind_does_not_is_found() {
    for (kind, state) in [
        (PlannedJobKind::Plain, "discarded"),
        (PlannedJobKind::Exhausted, "completed"),
        (PlannedJobKind::Expiring, "cancelled"),
        (PlannedJobKind::Redriven, "completed"),
        (PlannedJobKind::Scheduled, "cancelled"),
    ] {
        let mut run = WrittenRun::new();
        run.add_job(1, kind, "a", 10, 20);
        run.forget(|event| matches!(event, HistoryEvent::Looked { .. }));
        run.finish("a", state, 1);
        assert!(
            matches!(&run.violations()[..], [JobsViolation::WrongState { kind: found, .. }] if *found == kind),
            "{kind:?} {state}: {:?}",
            run.violations()
        );
    }
}

#[test]
fn the_result_of_a_stale_attempt_is_found() {
    let mut run = good();
    run.strike(PlannedFaultKind::FreezeWorker, WORKER, 11, 9000, 1);
    run.start(5000, "a", 1, 2);
    run.end(5010, "a", 2, true);
    let wrong = JobsViolation::WrongResult { id: "a".to_owned(), attempt: 1, newest: 2 };
    assert_eq!(run.violations(), [wrong]);
    run.forget(|event| matches!(event, HistoryEvent::Looked { .. }));
    run.finish("a", "completed", 2);
    assert_eq!(run.violations(), [], "that of the newest attempt is right");
}

#[test]
fn a_result_that_no_handler_returned_is_found() {
    let mut run = good();
    run.forget(|event| matches!(event, HistoryEvent::Finished { .. }));
    assert!(matches!(run.violations()[..], [JobsViolation::WrongResult { attempt: 1, newest: 1, .. }]));
    run.forget(|event| matches!(event, HistoryEvent::Started { .. }));
    assert!(matches!(run.violations()[..], [JobsViolation::WrongResult { attempt: 0, newest: 0, .. }]));
}

#[test]
fn a_job_that_was_recorded_twice_shows_in_the_count() {
    let mut run = good();
    run.add(950_000, "asker", HistoryEvent::Counted { queue: "check.rust".to_owned(), completed: 2 });
    assert_eq!(run.violations(), [JobsViolation::CountedTwice { queue: "check.rust".to_owned(), counted: 2, jobs: 1 }]);
}

#[test]
fn an_end_that_changes_is_found() {
    let mut run = good();
    let job = WrittenRun::view("a", "discarded", 1);
    run.add(30, "asker", HistoryEvent::Looked { job, is_final: false });
    assert!(matches!(&run.violations()[..], [JobsViolation::Changed { .. }]));
}

#[test]
fn one_request_that_became_two_jobs_is_found_in_its_answers_and_in_its_runs() {
    let mut run = good();
    run.acknowledge(1, &["b"]);
    assert!(matches!(&run.violations()[..], [JobsViolation::TwoAnswers { request: 1, .. }]));
    let mut run = good();
    run.start(12, "b", 1, 1);
    run.end(13, "b", 1, true);
    let found = run.violations();
    assert!(found.iter().any(|one| matches!(one, JobsViolation::TwoJobs { key: 1, .. })), "{found:?}");
}

#[test]
fn a_request_that_is_never_answered_or_refused_for_no_reason_is_found() {
    let mut run = good();
    run.plan(2, PlannedJobKind::Plain, 1);
    assert_eq!(run.violations(), [JobsViolation::NeverAnswered { request: 2 }]);
    run.add(2, "producer", HistoryEvent::Refused { request: 2, status: 400, is_conflict: false });
    assert_eq!(run.violations(), [JobsViolation::Refused { request: 2, status: 400 }]);
}

#[test]
fn a_key_that_came_with_another_body_must_be_refused() {
    let mut run = WrittenRun::new();
    run.add_job(1, PlannedJobKind::Conflicting, "a", 10, 20);
    assert_eq!(run.violations(), [JobsViolation::ConflictAccepted { request: 1 }]);
    run.add(2, "producer", HistoryEvent::Refused { request: 1, status: 409, is_conflict: true });
    assert_eq!(run.violations(), []);
    run.start(12, "b", CONFLICT_KEY + 1, 1);
    let refused = JobsViolation::RanRefused { key: CONFLICT_KEY + 1, id: "b".to_owned() };
    assert_eq!(run.violations(), [refused]);
}

#[test]
fn what_was_refused_expired_or_cancelled_must_not_run() {
    let mut run = WrittenRun::new();
    run.plan(1, PlannedJobKind::UniqueReject, 1);
    run.add(2, "producer", HistoryEvent::Refused { request: 1, status: 409, is_conflict: false });
    assert_eq!(run.violations(), []);
    run.start(10, "x", 1, 1);
    assert_eq!(run.violations(), [JobsViolation::RanRefused { key: 1, id: "x".to_owned() }]);

    let mut run = WrittenRun::new();
    run.plan(1, PlannedJobKind::Cancelled, 1);
    run.acknowledge(1, &["a"]);
    run.finish("a", "cancelled", 0);
    assert!(matches!(run.violations()[..], [JobsViolation::WrongState { .. }]), "nobody cancelled it");
    run.add(5, "producer", HistoryEvent::Cancelled { id: "a".to_owned() });
    assert_eq!(run.violations(), []);
    run.start(5000, "a", 1, 1);
    let found = run.violations();
    assert!(found.contains(&JobsViolation::RanRefused { key: 1, id: "a".to_owned() }), "{found:?}");
    assert!(found.contains(&JobsViolation::RanCancelled { id: "a".to_owned() }), "{found:?}");
}

#[test]
fn a_program_may_begin_late_if_its_job_was_claimed_before_it_was_cancelled() {
    let mut run = WrittenRun::new();
    run.plan(1, PlannedJobKind::Stopped, 1);
    run.plan.requests[0].jobs[0].runner = JobRunner::Command;
    run.acknowledge(1, &["a"]);
    run.add(5, "producer", HistoryEvent::Cancelled { id: "a".to_owned() });
    run.finish("a", "cancelled", 1);
    run.start(5000, "a", 1, 1);
    assert_eq!(run.violations(), []);
    run.start(6000, "a", 1, 2);
    assert!(run.violations().contains(&JobsViolation::RanCancelled { id: "a".to_owned() }));
}

#[test]
fn a_run_that_came_again_needs_a_fault_that_explains_it() {
    let mut run = good();
    run.forget(|event| matches!(event, HistoryEvent::Finished { .. } | HistoryEvent::Looked { .. }));
    run.start(5000, "a", 1, 2);
    run.end(5010, "a", 2, true);
    run.finish("a", "completed", 2);
    let is_unexplained =
        |run: &WrittenRun| matches!(run.violations()[..], [JobsViolation::UnexplainedDuplicate { .. }]);
    assert!(is_unexplained(&run));
    // These repeat nothing, or were elsewhere, or at another time, or too short
    for (kind, target, from, to) in [
        (PlannedFaultKind::KillRedis, "redis", 11, 400),
        (PlannedFaultKind::ClockForward, "redis", 11, 400),
        (PlannedFaultKind::KillWorker, "worker-1", 11, 12),
        (PlannedFaultKind::KillWorker, WORKER, 5001, 5002),
        (PlannedFaultKind::FreezeWorker, WORKER, 11, 500),
    ] {
        let mut run = run.clone();
        run.strike(kind, target, from, to, 1);
        assert!(is_unexplained(&run), "{kind:?}");
    }
    run.strike(PlannedFaultKind::KillWorker, WORKER, 11, 12, 1);
    let verdict = judge(&run.plan, &run.history);
    assert_eq!(verdict.violations, []);
    assert_eq!(verdict.duplicates["kill -9 of a queue-worker"], 1);
}

#[test]
fn an_attempt_after_a_failed_one_needs_no_explanation() {
    let mut run = WrittenRun::new();
    run.plan(1, PlannedJobKind::Retried, 1);
    run.acknowledge(1, &["a"]);
    run.start(10, "a", 1, 1);
    run.end(11, "a", 1, false);
    run.start(20, "a", 1, 2);
    run.end(21, "a", 2, true);
    run.finish("a", "completed", 2);
    assert_eq!(run.violations(), []);
}

#[test]
fn a_fault_that_never_struck_fails_the_run() {
    let mut run = good();
    run.strike(PlannedFaultKind::CutConnections, "redis", 11, 400, 0);
    let fault = PlannedFaultKind::CutConnections.name();
    assert_eq!(run.violations(), [JobsViolation::NeverStruck { fault: fault.clone() }]);
    run.forget(|event| matches!(event, HistoryEvent::Struck { .. }));
    assert_eq!(run.violations(), [JobsViolation::NeverStruck { fault }]);
}

#[test]
fn limits_and_orders_that_were_not_kept_are_found() {
    let mut run = WrittenRun::new();
    run.add_job(1, PlannedJobKind::Ordered, "a", 10, 30);
    run.add_job(2, PlannedJobKind::Ordered, "b", 20, 40);
    assert!(matches!(run.violations()[..], [JobsViolation::RanTogether { limit: 1, .. }]));

    let mut run = WrittenRun::new();
    run.add_job(1, PlannedJobKind::Ordered, "a", 30, 40);
    run.add_job(2, PlannedJobKind::Ordered, "b", 10, 20);
    assert!(matches!(run.violations()[..], [JobsViolation::OutOfOrder { earlier: 1, later: 2, .. }]));
    let mut cut = run.clone();
    cut.strike(PlannedFaultKind::CutConnections, "redis", 5, 15, 1);
    assert!(matches!(cut.violations()[..], [JobsViolation::OutOfOrder { .. }]), "it loses no attempt");
    run.strike(PlannedFaultKind::KillWorker, WORKER, 5, 15, 1);
    assert_eq!(run.violations(), []);

    let mut run = WrittenRun::new();
    run.add_job(1, PlannedJobKind::UniqueReject, "a", 10, 30);
    run.add_job(2, PlannedJobKind::UniqueReject, "b", 20, 40);
    assert!(matches!(run.violations()[..], [JobsViolation::EqualJobs { .. }]));

    let mut run = WrittenRun::new();
    for number in 0..13 {
        run.add_job(number, PlannedJobKind::RateLimited, &format!("r{number}"), 10, 20);
    }
    assert!(matches!(run.violations()[..], [JobsViolation::TooManyStarts { starts: 13, .. }]));
}

#[test]
fn a_workflow_that_does_not_end_or_begins_a_step_too_early_is_found() {
    let mut run = WrittenRun::new();
    run.plan(1, PlannedJobKind::Chain, 2);
    run.acknowledge(1, &["w"]);
    for (id, key, from, to) in [("a", 1, 10, 20), ("b", 2, 15, 30)] {
        run.start(from, id, key, 1);
        run.end(to, id, 1, true);
        run.finish(id, "completed", 1);
    }
    let mut ended = |state: &str| {
        run.forget(|event| matches!(event, HistoryEvent::WorkflowEnded { .. }));
        let (id, state, members) = ("w".to_owned(), state.to_owned(), vec!["a".to_owned(), "b".to_owned()]);
        run.add(900_001, "asker", HistoryEvent::WorkflowEnded { id, state, members });
        run.violations()
    };
    assert_eq!(ended("completed"), [JobsViolation::StepTooEarly { request: 1, step: 1 }]);
    assert!(ended("running").contains(&JobsViolation::WrongWorkflow { request: 1, state: "running".to_owned() }));
}

#[test]
fn a_run_of_a_cron_entry_that_made_two_jobs_is_found() {
    let mut run = WrittenRun::new();
    for id in ["a", "b"] {
        let (name, cron) = (format!("{id}/1"), Some("each 2026-11-29T12:00:00Z".to_owned()));
        run.add(10, WORKER, HistoryEvent::Started { run: name, id: id.to_owned(), key: 0, attempt: 1, cron });
        run.end(11, id, 1, true);
        run.finish(id, "completed", 1);
    }
    assert!(matches!(run.violations()[..], [JobsViolation::CronRanTwice { jobs: 2, .. }]));
}

#[test]
fn every_group_of_faults_has_names_of_its_own() {
    let names: BTreeSet<String> = PlannedFaultKind::all().into_iter().map(PlannedFaultKind::name).collect();
    assert_eq!(names.len(), PlannedFaultKind::all().len());
    assert!(FaultGroup::ALL.iter().all(|group| !PlannedFaultKind::of(*group).is_empty()));
}
