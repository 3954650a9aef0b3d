//! What queue-workers and programs do.

use super::Step;
use crate::{
    PlantedBug,
    actions::batch_members,
    redis::{PendingName, StoredEntry},
    scripts::{CallFence, ScriptAnswer},
    state::{AttemptOwner, HeldAttempt, SettlingCall, WorkerProcess},
    witness::Witness,
};

impl Step<'_> {
    pub(super) fn claim(&mut self, process: usize, answered: bool) {
        self.note_answer(answered);
        let name = self.state.processes[process].name;
        let Some(claimed) = self.state.redis.claim(PendingName::Process(name)) else { return };
        let held = self.state.note_claim(claimed, AttemptOwner::Process(name));
        if answered {
            self.state.processes[process].attempts.push(held);
        }
    }

    pub(super) fn read_claimed(&mut self, process: usize) {
        let worker = &self.state.processes[process];
        let is_held = |entry| worker.attempts.iter().any(|held| held.claimed.entry == entry);
        let found = self.state.redis.read_claimed(PendingName::Process(worker.name));
        let recovered: Vec<HeldAttempt> = found
            .filter(|stored| !is_held(stored.entry))
            .map(|stored| self.state.held_again(StoredEntry { is_idle: false, ..*stored }))
            .collect();
        self.witnesses.note(Witness::ClaimRecovered);
        self.state.processes[process].attempts.extend(recovered);
    }

    pub(super) fn renew(&mut self, process: usize, answered: bool) {
        self.note_answer(answered);
        self.state.left.renewals -= 1;
        let WorkerProcess { name, mut attempts } = self.state.processes[process].clone();
        let mut lost = Vec::new();
        for held in &attempts {
            let entry = held.claimed.entry;
            if !self.state.redis.renew(entry, PendingName::Process(name)) {
                lost.push(entry);
            }
        }
        if answered && !lost.is_empty() {
            self.witnesses.note(Witness::LeaseLost);
            // Their handlers stop. What is being recorded goes on, and is refused
            attempts.retain(|held| held.sent.is_some() || !lost.contains(&held.claimed.entry));
            self.state.processes[process].attempts = attempts;
        }
    }

    pub(super) fn complete_batch(&mut self, process: usize, batch: u8, answered: bool) {
        self.note_answer(answered);
        let WorkerProcess { name, attempts } = self.state.processes[process].clone();
        let members: Vec<usize> = batch_members(batch, attempts.len()).collect();
        let claimed: Vec<StoredEntry> = members.iter().map(|at| attempts[*at].claimed).collect();
        let is_unique = claimed.iter().any(|claimed| self.is_unique(claimed.job));
        let is_whole = answered || !self.state.redis.has(PlantedBug::SettleNotAtomic);
        let pending = PendingName::Process(name);
        let answers = self.state.redis.complete_batch(pending, &claimed, is_unique, is_whole);
        if answers.contains(&ScriptAnswer::Done) && answers.contains(&ScriptAnswer::Stale) {
            self.witnesses.note(Witness::BatchSplit);
        }
        for (at, answer) in members.iter().zip(answers) {
            let owner = AttemptOwner::Process(name);
            self.note_settled(&attempts[*at], owner, SettlingCall::Complete, (answer, answered));
            if answer == ScriptAnswer::Done {
                self.state.note_end(attempts[*at].claimed.job);
            }
        }
        let kept = &mut self.state.processes[process].attempts;
        for at in members.into_iter().rev() {
            if answered {
                kept.remove(at);
            } else {
                kept[at].sent = Some(SettlingCall::Complete);
            }
        }
    }

    pub(super) fn issue_callback_token(&mut self, process: usize, attempt: usize, answered: bool) {
        self.note_answer(answered);
        let worker = &self.state.processes[process];
        let (name, held) = (worker.name, worker.attempts[attempt]);
        let StoredEntry { entry, job, .. } = held.claimed;
        let is_first = self.state.redis.token(entry).is_none();
        let is_issued = self.state.redis.issue_callback_token(entry, PendingName::Process(name));
        if is_issued && is_first {
            self.witnesses.note(Witness::HandedOver);
            self.state.left.handovers -= 1;
            let audit = self.state.audit_mut(job);
            audit.attempts[usize::from(held.number)].0 = AttemptOwner::Token;
            self.state.pulled.push(HeldAttempt { sent: None, ..held });
        }
        let attempts = &mut self.state.processes[process].attempts;
        if answered {
            attempts.remove(attempt);
        } else {
            attempts[attempt].sent = Some(SettlingCall::IssueToken);
        }
    }

    pub(super) fn claim_pull(&mut self, answered: bool) {
        self.note_answer(answered);
        let Some(claimed) = self.state.redis.claim(PendingName::Pull) else { return };
        let held = self.state.note_claim(claimed, AttemptOwner::Token);
        let known = if answered { &mut self.state.pulled } else { &mut self.state.lost_claims };
        known.push(held);
    }

    pub(super) fn heartbeat(&mut self, program: usize) {
        self.state.left.renewals -= 1;
        let entry = self.state.pulled[program].claimed.entry;
        if !self.state.redis.heartbeat(entry, entry) {
            self.witnesses.note(Witness::LeaseLost);
            if self.state.pulled[program].sent.is_none() {
                self.state.pulled.remove(program);
            }
        }
    }

    pub(super) fn release_lost_claim(&mut self, at: usize) {
        let held = self.state.lost_claims.remove(at);
        let entry = held.claimed.entry;
        let answer = self.state.redis.release(held.claimed, CallFence::Pull { token: entry }, held.claimed.counts);
        self.note_settled(&held, AttemptOwner::Token, SettlingCall::Release, (answer, true));
    }
}
