//! What holds in every state.

use stateright::{Model, Property};

use crate::{
    JobModel,
    redis::{AttemptCounts, JobNumber, RecordState, RedisState},
    state::{JobAudit, ModelProblem, ModelState},
};

/// A rule of the model: one of the invariants in `docs/architecture.md`, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelRule {
    /// A job that was acknowledged is in exactly one place: an entry of the stream, a record that is due, or its result.
    OnePlace,
    /// Only the current attempt ends itself, and there is one at a time.
    CurrentAttempt,
    /// A job ends once, each time that it was created or redriven.
    OneEnd,
    /// A caller that is told that it ended an attempt did so, and one that recorded a result is not told that it did not.
    TrueAnswers,
    /// No attempt is reclaimed from a worker that renewed its lease in time.
    LiveLease,
    /// A job takes its failures and its crashes along, and no more workers die with it than the budget allows.
    Counts,
    /// Of equal unique jobs at most one lives.
    Uniqueness,
    /// Every run ends with all jobs ended, nothing left in the stream, and the uniqueness free.
    AllEnd,
}

impl ModelRule {
    /// Its name in reports of the checker.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OnePlace => "a job is in exactly one place",
            Self::CurrentAttempt => "only the current attempt ends itself",
            Self::OneEnd => "a job ends once",
            Self::TrueAnswers => "answers are true",
            Self::LiveLease => "no live attempt is reclaimed",
            Self::Counts => "failures and crashes are counted",
            Self::Uniqueness => "of equal jobs one lives",
            Self::AllEnd => "every job ends and frees its uniqueness",
        }
    }
}

pub(crate) fn properties() -> Vec<Property<JobModel>> {
    vec![
        Property::always(ModelRule::OnePlace.name(), |_, state: &ModelState| {
            state.job_numbers().all(|job| is_in_one_place(&state.redis, job, state.audit(job)))
        }),
        Property::always(ModelRule::CurrentAttempt.name(), |_, state: &ModelState| {
            !matches!(state.problem, Some(ModelProblem::StaleAttemptEnded | ModelProblem::AttemptsOverlap))
        }),
        Property::always(ModelRule::OneEnd.name(), |_, state: &ModelState| {
            state.problem != Some(ModelProblem::EndedTwice)
        }),
        Property::always(ModelRule::TrueAnswers.name(), |_, state: &ModelState| {
            state.problem != Some(ModelProblem::WrongAnswer)
        }),
        Property::always(ModelRule::LiveLease.name(), |_, state: &ModelState| {
            state.problem != Some(ModelProblem::LiveAttemptReclaimed)
        }),
        Property::always(ModelRule::Counts.name(), |model: &JobModel, state: &ModelState| {
            state.job_numbers().all(|job| is_counted(&state.redis, job, state.audit(job), model.scenario.crash_budget))
        }),
        Property::always(ModelRule::Uniqueness.name(), |model: &JobModel, state: &ModelState| {
            let is_live = |job: &JobNumber| model.is_unique(*job) && state.audit(*job).is_live();
            state.job_numbers().filter(is_live).count() <= 1
        }),
        // No run is endless, so what holds where nothing more can happen holds at the end of each run
        Property::always(ModelRule::AllEnd.name(), |model: &JobModel, state: &ModelState| {
            state.problem.is_some() || has_next(model, state) || has_all_ended(model, state)
        }),
    ]
}

/// Where a job is kept.
fn is_in_one_place(redis: &RedisState, job: JobNumber, audit: &JobAudit) -> bool {
    let keys = redis.job(job);
    let mut entries = redis.stream.iter().filter(|stored| stored.job == job);
    let (first, others) = (entries.next(), entries.count());
    let waits = keys.record.is_some_and(|record| !matches!(record.state, RecordState::Queued(_)));
    if !audit.is_live() {
        return first.is_none()
            && keys.record.is_none()
            && !keys.is_due_listed
            && keys.result.is_some() == (audit.lives > 0);
    }
    if keys.result.is_some() || others > 0 {
        return false;
    }
    match first {
        Some(stored) => {
            let address = keys.record.map(|record| record.state);
            let is_found = address.is_none_or(|state| state == RecordState::Queued(stored.entry));
            let has_lease = redis.leases.iter().all(|(name, _)| *name != stored.entry || stored.holder.is_some());
            is_found && has_lease && !keys.is_due_listed && (stored.has_record || address.is_none())
        }
        None => waits && keys.is_due_listed,
    }
}

/// Whether a live job has its counts with it.
fn is_counted(redis: &RedisState, job: JobNumber, audit: &JobAudit, crash_budget: u8) -> bool {
    let happened = AttemptCounts { failures: audit.failures, crashes: audit.crashes };
    if audit.crashes > crash_budget + 1 {
        return false;
    }
    if !audit.is_live() {
        return true;
    }
    let entry = redis.stream.iter().find(|stored| stored.job == job).map(|stored| stored.counts);
    let record = redis.job(job).record.map(|record| record.counts);
    entry.or(record).is_none_or(|counts| counts == happened)
}

fn has_next(model: &JobModel, state: &ModelState) -> bool {
    let mut found = Vec::new();
    model.actions(state, &mut found);
    !found.is_empty()
}

fn has_all_ended(model: &JobModel, state: &ModelState) -> bool {
    let is_free = match state.redis.uniqueness {
        None => true,
        // It may stay after a redrive, and blocks nobody then: its holder has ended
        Some(holder) => model.scenario.redrives > 0 && state.redis.job(holder).result.is_some(),
    };
    let all_asked = state.creators.iter().all(|step| *step == crate::state::CreatorStep::Answered);
    let all_ended = state.job_numbers().all(|job| !state.audit(job).is_live());
    all_asked && all_ended && is_free && state.redis.stream.is_empty() && state.redis.active.is_empty()
}

impl ModelState {
    fn job_numbers(&self) -> impl Iterator<Item = JobNumber> {
        (0..).zip(&self.audit).map(|(job, _)| job)
    }
}

impl JobModel {
    fn is_unique(&self, job: JobNumber) -> bool {
        matches!(self.scenario.kind(job), crate::JobKind::Unique | crate::JobKind::Replacing)
    }
}
