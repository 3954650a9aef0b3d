//! What clients do.

use super::Step;
use crate::{
    JobKind,
    actions::is_blocking,
    redis::{AttemptCounts, JobNumber},
    scripts::{CreateAnswer, KnownHolder, SeenAt},
    state::{AttemptFate, CancelStep, CreatorStep, RedriveStep},
    witness::Witness,
};

impl Step<'_> {
    pub(super) fn enqueue(&mut self, job: JobNumber) {
        self.state.redis.add_entry(job, AttemptCounts::default(), false);
        self.state.note_life(job);
        self.state.creators[usize::from(job)] = CreatorStep::Answered;
    }

    /// `create_with_record` before its script.
    pub(super) fn read_uniqueness(&mut self, job: JobNumber) {
        let redis = &self.state.redis;
        let known = redis.uniqueness;
        let is_created = redis.locate(job) != SeenAt::Nowhere;
        let blocking = known.map(|holder| (holder, redis.locate(holder))).filter(|(_, seen)| is_blocking(*seen));
        let replaces = self.scenario.kind(job) == JobKind::Replacing;
        let step = match blocking {
            // An earlier call created it
            _ if is_created => CreatorStep::Answered,
            None => CreatorStep::Read { known, replaced: None },
            // A running job may have had effects already
            Some((_, SeenAt::Entry(_, Some(_)))) => CreatorStep::Answered,
            Some(blocking) if replaces => CreatorStep::Read { known, replaced: Some(blocking) },
            Some(_) => CreatorStep::Answered,
        };
        self.state.creators[usize::from(job)] = step;
    }

    pub(super) fn create(&mut self, job: JobNumber, answered: bool) {
        self.note_answer(answered);
        let (known, replaced) = match self.state.creators[usize::from(job)] {
            CreatorStep::Read { known, replaced } => (KnownHolder::Read(known), replaced),
            _ => (KnownHolder::NotUnique, None),
        };
        let is_scheduled = self.scenario.kind(job) == JobKind::Scheduled;
        let answer = if is_scheduled {
            self.state.redis.create_scheduled(job)
        } else {
            self.state.redis.create(job, known, replaced)
        };
        if answer == CreateAnswer::Created {
            self.state.note_life(job);
            if let Some((older, _)) = replaced
                && self.state.redis.job(older).result.is_some()
            {
                self.witnesses.note(Witness::Replaced);
                self.state.note_end(older);
            }
        }
        if answer == CreateAnswer::Changed {
            self.witnesses.note(Witness::UniquenessChanged);
        }
        let is_over = answered && answer != CreateAnswer::Changed;
        let step = if is_over { CreatorStep::Answered } else { CreatorStep::Unsent };
        self.state.creators[usize::from(job)] = step;
    }

    pub(super) fn cancel(&mut self, job: JobNumber) {
        let CancelStep::Seen(seen) = self.state.cancellers[usize::from(job)] else { return };
        if let SeenAt::Result(_) = seen {
            self.state.cancellers[usize::from(job)] = CancelStep::Answered;
            return;
        }
        let is_done = self.state.redis.cancel(job, seen, self.is_unique(job));
        if is_done {
            self.state.note_taken_away(job, AttemptFate::ByClient);
            self.state.note_end(job);
            if matches!(seen, SeenAt::Entry(_, Some(_))) {
                self.witnesses.note(Witness::RunningJobCancelled);
            }
        } else {
            self.witnesses.note(Witness::CancelSawOld);
        }
        // Changed: it looks again
        self.state.cancellers[usize::from(job)] = if is_done { CancelStep::Answered } else { CancelStep::Unasked };
    }

    pub(super) fn read_to_redrive(&mut self, job: JobNumber) {
        let redis = &self.state.redis;
        let Some(seen) = redis.job(job).result else { return };
        let known = redis.uniqueness;
        let is_blocked = known.is_some_and(|holder| holder != job && is_blocking(redis.locate(holder)));
        let is_unique = self.is_unique(job);
        let known = if is_unique { KnownHolder::Read(known) } else { KnownHolder::NotUnique };
        let is_refused = is_blocked && is_unique;
        self.state.redrivers[usize::from(job)] =
            if is_refused { RedriveStep::Answered } else { RedriveStep::Read { seen, known } };
    }

    pub(super) fn redrive(&mut self, job: JobNumber) {
        let RedriveStep::Read { seen, known } = self.state.redrivers[usize::from(job)] else { return };
        let is_done = self.state.redis.redrive(job, seen, known);
        if is_done {
            self.witnesses.note(Witness::Redriven);
            self.state.note_life(job);
        }
        self.state.redrivers[usize::from(job)] = if is_done { RedriveStep::Answered } else { RedriveStep::Unasked };
    }
}
