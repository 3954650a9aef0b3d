//! What leaders do.

use super::Step;
use crate::{
    PlantedBug,
    redis::{EntryNumber, FinalState, StoredEntry},
    scripts::{CallFence, ScriptAnswer},
    state::{AttemptFate, ModelProblem, SettlingCall, SilentAttempt},
    witness::Witness,
};

impl Step<'_> {
    pub(super) fn lease_expires(&mut self, entry: EntryNumber) {
        if self.state.redis.leases.iter().any(|(name, _)| *name == entry) {
            self.state.redis.set_lease(entry, true);
        } else if let Some(stored) = self.state.redis.entry_mut(entry) {
            stored.is_idle = true;
        }
    }

    pub(super) fn read_silent(&mut self, entry: EntryNumber) {
        let Some(stored) = self.state.redis.entry(entry) else { return };
        let Some(name) = stored.holder else { return };
        let fence = match self.state.redis.token(entry) {
            Some(token) => CallFence::ExpiredLease { token },
            None => CallFence::Worker { name, must_be_idle: true },
        };
        let silent = SilentAttempt { claimed: *stored, fence };
        self.state.silent.push(silent);
        self.state.silent.sort_by_key(|silent| (silent.claimed.entry, silent.fence));
    }

    pub(super) fn worker_lost(&mut self, at: usize) {
        let SilentAttempt { claimed, fence } = self.state.silent.remove(at);
        let was_silent = self.state.redis.is_silent(claimed.entry);
        let mut counts = claimed.counts;
        counts.crashes += 1;
        let answer = if counts.crashes > self.scenario.crash_budget {
            self.witnesses.note(Witness::CrashBudgetSpent);
            self.finish(claimed, fence, FinalState::Discarded)
        } else {
            let stored = if self.state.redis.has(PlantedBug::CrashNotCounted) { claimed.counts } else { counts };
            self.state.redis.release(claimed, fence, stored)
        };
        self.note_reclaimed(claimed, SettlingCall::Release, (answer, was_silent));
        if answer == ScriptAnswer::Done {
            self.state.audit_mut(claimed.job).crashes += 1;
        }
    }

    pub(super) fn time_out(&mut self, at: usize) {
        let SilentAttempt { claimed, fence } = self.state.silent.remove(at);
        let was_silent = self.state.redis.is_silent(claimed.entry);
        let answer = self.fail(claimed, fence);
        self.note_reclaimed(claimed, SettlingCall::Fail, (answer, was_silent));
    }

    pub(super) fn note_reclaimed(
        &mut self,
        claimed: StoredEntry,
        call: SettlingCall,
        (answer, was_silent): (ScriptAnswer, bool),
    ) {
        if answer != ScriptAnswer::Done {
            self.witnesses.note(Witness::ReclaimSawOld);
            return;
        }
        if !was_silent {
            self.state.problem = self.state.problem.or(Some(ModelProblem::LiveAttemptReclaimed));
        }
        let has_ended = self.state.redis.job(claimed.job).result.is_some();
        let taken = if has_ended { SettlingCall::Complete } else { call };
        self.state.note_taken_away(claimed.job, AttemptFate::ByLeader(taken));
    }
}
