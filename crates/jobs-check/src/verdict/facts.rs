//! What the histories say, by request, job and run.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    history::{CheckedJobView, HistoryEntry, HistoryEvent},
    plan::{JobRunner, JobsPlan, PlannedFaultKind, PlannedJob, PlannedJobKind, PlannedRequest},
};

/// How long a process goes by the memory that it saw last.
const MEMORY_MEASURED_MS: u64 = 7000;
/// From the end of a handler until its result is recorded, while a connection is broken.
const RECORDED_MS: u64 = 5000;
/// Longest time until a job of a plan expires and that is noticed.
const EXPIRY_MS: u64 = 5000;

/// A run of a handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JobRun<'a> {
    pub(super) run: &'a str,
    pub(super) id: &'a str,
    pub(super) key: u32,
    pub(super) attempt: u32,
    pub(super) cron: Option<&'a str>,
    pub(super) by: &'a str,
    pub(super) started: u64,
    /// When, and whether it has a result.
    pub(super) ended: Option<(u64, bool)>,
}

impl JobRun<'_> {
    pub(super) fn is_success(&self) -> bool {
        matches!(self.ended, Some((_, true)))
    }

    pub(super) fn is_failure(&self) -> bool {
        matches!(self.ended, Some((_, false)))
    }
}

/// A fault that struck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StruckFault<'a> {
    pub(super) fault: usize,
    pub(super) target: &'a str,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) hits: u64,
}

/// All of it.
#[derive(Default)]
pub(super) struct RunFacts<'a> {
    pub(super) plan: Option<&'a JobsPlan>,
    /// Kinds of jobs by their key.
    pub(super) kinds: BTreeMap<u32, PlannedJobKind>,
    pub(super) unanswered: u64,
    /// Ids, and whether they were created, by request.
    pub(super) answers: BTreeMap<u32, Vec<(Vec<String>, bool)>>,
    pub(super) refused: BTreeMap<u32, u16>,
    pub(super) conflicts: BTreeSet<u32>,
    pub(super) cancelled: BTreeMap<&'a str, u64>,
    pub(super) redriven: BTreeSet<&'a str>,
    /// In the order in which they began.
    pub(super) runs: Vec<JobRun<'a>>,
    runs_by_id: BTreeMap<&'a str, Vec<usize>>,
    pub(super) struck: Vec<StruckFault<'a>>,
    pub(super) finals: BTreeMap<&'a str, &'a CheckedJobView>,
    pub(super) looked: Vec<&'a CheckedJobView>,
    pub(super) workflows: BTreeMap<&'a str, (&'a str, &'a [String])>,
    pub(super) counted: BTreeMap<&'a str, u64>,
    /// When the last request was sent.
    pub(super) last_sent: u64,
    acknowledged_at: Vec<u64>,
    acknowledged_ids: BTreeMap<&'a str, u64>,
}

impl<'a> RunFacts<'a> {
    pub(super) fn of(plan: &'a JobsPlan, history: &'a [HistoryEntry]) -> Self {
        let mut facts = Self { plan: Some(plan), ..Self::default() };
        facts.kinds = plan.jobs().map(|(request, job)| (job.key, request.kind)).collect();
        for entry in history {
            facts.add(entry);
        }
        for (index, run) in facts.runs.iter().enumerate() {
            facts.runs_by_id.entry(run.id).or_default().push(index);
        }
        facts
    }

    fn add(&mut self, entry: &'a HistoryEntry) {
        match &entry.event {
            HistoryEvent::Sent { .. } => self.last_sent = self.last_sent.max(entry.at),
            HistoryEvent::Unanswered { .. } => self.unanswered += 1,
            HistoryEvent::Acknowledged { request, ids, is_created } => {
                self.acknowledged_at.push(entry.at);
                self.acknowledged_ids.extend(ids.iter().map(|id| (id.as_str(), entry.at)));
                self.answers.entry(*request).or_default().push((ids.clone(), *is_created));
            }
            HistoryEvent::Refused { request, is_conflict: true, .. } => {
                self.conflicts.insert(*request);
            }
            HistoryEvent::Refused { request, status, .. } => {
                self.refused.insert(*request, *status);
            }
            HistoryEvent::Cancelled { id } => {
                self.cancelled.insert(id, entry.at);
            }
            HistoryEvent::Redriven { id } => {
                self.redriven.insert(id);
            }
            HistoryEvent::Started { run, id, key, attempt, cron } => {
                let (attempt, cron, by, started) = (*attempt, cron.as_deref(), entry.by.as_str(), entry.at);
                self.runs.push(JobRun { run, id, key: *key, attempt, cron, by, started, ended: None });
            }
            HistoryEvent::Finished { run, is_success } => {
                if let Some(found) = self.runs.iter_mut().rev().find(|found| found.run == run) {
                    found.ended = Some((entry.at, *is_success));
                }
            }
            HistoryEvent::Struck { fault, target, from, to, hits } => {
                self.struck.push(StruckFault { fault: *fault, target, from: *from, to: *to, hits: *hits });
            }
            HistoryEvent::Looked { job, is_final: true } => {
                self.finals.insert(&job.id, job);
            }
            HistoryEvent::Looked { job, .. } => self.looked.push(job),
            HistoryEvent::WorkflowEnded { id, state, members } => {
                self.workflows.insert(id, (state, members));
            }
            HistoryEvent::Counted { queue, completed } => {
                self.counted.insert(queue, *completed);
            }
        }
    }

    /// The jobs of a request with their ids.
    pub(super) fn jobs_of<'r>(&self, request: &'r PlannedRequest) -> Vec<(&'r PlannedJob, Option<&str>)> {
        let ids = match self.answers.get(&request.number).and_then(|answers| answers.first()) {
            None => &[][..],
            Some((ids, _)) if request.kind.is_workflow() => {
                self.workflows.get(ids[0].as_str()).map_or(&[][..], |(_, members)| members)
            }
            Some((ids, _)) => ids,
        };
        let ids = ids.iter().map(|id| Some(id.as_str())).chain(std::iter::repeat(None));
        request.jobs.iter().zip(ids).collect()
    }

    /// Every job that was acknowledged, and those of cron.
    pub(super) fn known_ids(&self) -> BTreeSet<&str> {
        let requests = self.plan.iter().flat_map(|plan| &plan.requests);
        let jobs = requests.flat_map(|request| self.jobs_of(request)).filter_map(|(_, id)| id);
        jobs.chain(self.runs.iter().filter(|run| run.cron.is_some()).map(|run| run.id)).collect()
    }

    /// Whether the request of its key made that job, or may have made it.
    pub(super) fn may_run(&self, run: &JobRun<'_>) -> bool {
        let requests = self.plan.iter().flat_map(|plan| &plan.requests);
        let request = requests.into_iter().find(|request| request.jobs.iter().any(|job| job.key == run.key));
        let answers = request.and_then(|request| Some((request.kind, self.answers.get(&request.number)?)));
        // Instead of a job that exists already none is made
        answers.is_some_and(|(kind, answers)| !kind.is_unique() || answers.iter().any(|(_, is_created)| *is_created))
    }

    /// Whether a job ended while Redis had no memory: then its end is counted and its record is not kept, as
    /// docs/operations.md says.
    pub(super) fn is_dropped(&self, id: &str) -> bool {
        let faults = self.plan.map_or(&[][..], |plan| &plan.faults);
        let is_full = |from: u64, to: u64| {
            self.struck.iter().any(|struck| {
                let kind = faults.get(struck.fault).map(|fault| fault.kind);
                kind == Some(PlannedFaultKind::FillRedis) && from <= struck.to + MEMORY_MEASURED_MS && to >= struck.from
            })
        };
        let ends = self.runs_of(id).into_iter().filter_map(|run| run.ended).map(|(at, _)| at);
        let last = ends.chain(self.cancelled.get(id).copied()).max();
        match (last, self.acknowledged_ids.get(id)) {
            (Some(at), _) => is_full(at, at + RECORDED_MS),
            (None, Some(at)) => is_full(*at, at + EXPIRY_MS),
            (None, None) => false,
        }
    }

    /// The runs of a job, in the order in which they began.
    pub(super) fn runs_of(&self, id: &str) -> Vec<&JobRun<'a>> {
        self.runs_by_id.get(id).into_iter().flatten().map(|index| &self.runs[*index]).collect()
    }

    /// The queue of a job whose newest run has a result.
    pub(super) fn queue_of_success(&self, id: &str) -> Option<&'static str> {
        let newest = self.runs_of(id).into_iter().next_back().filter(|run| run.is_success())?;
        if newest.cron.is_some() {
            return Some(JobRunner::Pull.queue());
        }
        self.runner_of(newest).map(JobRunner::queue)
    }

    /// Who was to run the job of a run, unless that is of a cron entry.
    pub(super) fn runner_of(&self, run: &JobRun<'_>) -> Option<JobRunner> {
        let mut jobs = self.plan.into_iter().flat_map(JobsPlan::jobs).map(|(_, job)| job);
        jobs.find(|job| job.key == run.key).map(|job| job.runner)
    }

    /// The ids of all jobs that ran.
    pub(super) fn ids_of_runs(&self) -> impl Iterator<Item = &'a str> {
        self.runs_by_id.keys().copied()
    }

    /// From then until a request was acknowledged and a job ended, if that came.
    pub(super) fn recovery_after(&self, time: u64) -> u64 {
        let acknowledged = self.acknowledged_at.iter().copied().filter(|at| *at >= time).min();
        let ends = self.runs.iter().filter(|run| run.is_success()).filter_map(|run| run.ended);
        let ended = ends.map(|(at, _)| at).filter(|at| *at >= time).min();
        acknowledged.into_iter().chain(ended).max().unwrap_or(time) - time
    }
}
