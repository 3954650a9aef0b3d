//! What each action does: to Redis, to the one that acts, and to the record of what really happened.

mod clients;
mod maintenance;
mod workers;

use crate::{
    JobKind, Scenario,
    actions::{Action, AttemptCaller},
    redis::{FinalState, JobNumber, PendingName, StoredEntry},
    scripts::{CallFence, ScriptAnswer},
    state::{AttemptOwner, CancelStep, FollowUpStep, HeldAttempt, ModelState, SettlingCall, WorkerProcess},
    witness::{Witness, Witnesses},
};

/// One step of one state.
pub(crate) struct Step<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) witnesses: &'a Witnesses,
    pub(crate) state: ModelState,
}

impl Step<'_> {
    /// The state after the action.
    pub(crate) fn take(mut self, action: Action) -> ModelState {
        self.run(action);
        self.state
    }

    fn run(&mut self, action: Action) {
        match action {
            Action::Enqueue(job) => self.enqueue(job),
            Action::ReadUniqueness(job) => self.read_uniqueness(job),
            Action::Create { job, answered } => self.create(job, answered),
            Action::Claim { process, answered } => self.claim(process, answered),
            Action::ReadClaimed { process } => self.read_claimed(process),
            Action::Renew { process, answered } => self.renew(process, answered),
            Action::CompleteBatch { process, batch, answered } => self.complete_batch(process, batch, answered),
            Action::IssueCallbackToken { process, attempt, answered } => {
                self.issue_callback_token(process, attempt, answered);
            }
            Action::ClaimPull { answered } => self.claim_pull(answered),
            Action::Heartbeat { program } => self.heartbeat(program),
            Action::Finish { program, answered } => {
                self.settle(AttemptCaller::Program(program), SettlingCall::Complete, answered);
            }
            Action::Retry { caller, answered } => self.settle(caller, SettlingCall::Fail, answered),
            Action::Release { caller, answered } => self.settle(caller, SettlingCall::Release, answered),
            Action::ReleaseLostClaim(at) => self.release_lost_claim(at),
            Action::LeaseExpires(entry) => self.lease_expires(entry),
            Action::ReadSilent(entry) => self.read_silent(entry),
            Action::WorkerLost(at) => self.worker_lost(at),
            Action::TimeOut(at) => self.time_out(at),
            Action::Promote(job) => drop(self.state.redis.promote(job)),
            Action::LocateToCancel(job) => {
                self.state.cancellers[usize::from(job)] = CancelStep::Seen(self.state.redis.locate(job));
            }
            Action::Cancel(job) => self.cancel(job),
            Action::ReadToRedrive(job) => self.read_to_redrive(job),
            Action::Redrive(job) => self.redrive(job),
            Action::LocateToFollowUp(job) => {
                let has_ended = self.state.redis.job(job).result.is_some();
                self.state.follow_up = FollowUpStep::Located(job, has_ended);
            }
            Action::ReleaseUniqueness => {
                if let FollowUpStep::Located(job, _) = self.state.follow_up {
                    self.state.redis.release_uniqueness(job);
                    self.state.follow_up = FollowUpStep::Released(job);
                }
            }
            Action::ClearFollowUp => {
                if let FollowUpStep::Located(job, _) | FollowUpStep::Released(job) = self.state.follow_up {
                    self.state.redis.job_mut(job).has_follow_up_timer = false;
                    self.state.follow_up = FollowUpStep::None;
                }
            }
            Action::CrashProcess(process) => {
                self.state.left.crashes -= 1;
                let name = self.state.next_name;
                self.state.next_name += 1;
                self.state.processes[process] = WorkerProcess { name, attempts: Vec::new() };
            }
            Action::CrashProgram(program) => {
                self.state.left.crashes -= 1;
                self.state.pulled.remove(program);
            }
        }
    }

    fn is_unique(&self, job: JobNumber) -> bool {
        matches!(self.scenario.kind(job), JobKind::Unique | JobKind::Replacing)
    }

    fn note_answer(&mut self, answered: bool) {
        self.state.left.lost_answers -= u8::from(!answered);
    }

    fn note_settled(&mut self, held: &HeldAttempt, owner: AttemptOwner, call: SettlingCall, got: (ScriptAnswer, bool)) {
        match got.0 {
            ScriptAnswer::Stale => self.witnesses.note(Witness::StaleCall),
            ScriptAnswer::DoneBefore => self.witnesses.note(Witness::RepeatRecognized),
            ScriptAnswer::Done => {}
        }
        self.state.note_settled(held, owner, call, got);
    }

    /// Ends an attempt by a call of its own: `finish`, `retry` or `release`.
    fn settle(&mut self, caller: AttemptCaller, call: SettlingCall, answered: bool) {
        self.note_answer(answered);
        let (held, owner, fence) = match caller {
            AttemptCaller::Process(process, at) => {
                let WorkerProcess { name, attempts } = &self.state.processes[process];
                let fence = CallFence::Worker { name: PendingName::Process(*name), must_be_idle: false };
                (attempts[at], AttemptOwner::Process(*name), fence)
            }
            AttemptCaller::Program(at) => {
                let held = self.state.pulled[at];
                (held, AttemptOwner::Token, CallFence::Pull { token: held.claimed.entry })
            }
        };
        let answer = match call {
            SettlingCall::Complete => self.finish(held.claimed, fence, FinalState::Completed),
            SettlingCall::Fail => self.fail(held.claimed, fence),
            SettlingCall::Release | SettlingCall::IssueToken => {
                if held.sent.is_none() {
                    self.state.left.releases -= 1;
                }
                self.state.redis.release(held.claimed, fence, held.claimed.counts)
            }
        };
        // The last failure ends the job as a success does: with a result
        let is_last = call == SettlingCall::Fail && held.claimed.counts.failures + 1 >= self.scenario.max_attempts;
        let noted = if is_last { SettlingCall::Complete } else { call };
        self.note_settled(&held, owner, noted, (answer, answered));
        let attempts = match caller {
            AttemptCaller::Process(process, _) => &mut self.state.processes[process].attempts,
            AttemptCaller::Program(_) => &mut self.state.pulled,
        };
        let (AttemptCaller::Process(_, at) | AttemptCaller::Program(at)) = caller;
        if answered {
            attempts.remove(at);
        } else {
            attempts[at].sent = Some(call);
        }
    }

    fn finish(&mut self, claimed: StoredEntry, fence: CallFence, state: FinalState) -> ScriptAnswer {
        let answer = self.state.redis.finish(claimed, fence, state, self.is_unique(claimed.job));
        if answer == ScriptAnswer::Done {
            self.state.note_end(claimed.job);
        }
        answer
    }

    /// What the retry policy says after a failure: `retry` or `finish`.
    fn fail(&mut self, claimed: StoredEntry, fence: CallFence) -> ScriptAnswer {
        let mut counts = claimed.counts;
        counts.failures += 1;
        if counts.failures >= self.scenario.max_attempts {
            return self.finish(claimed, fence, FinalState::Discarded);
        }
        let answer = self.state.redis.retry(claimed, fence, counts);
        if answer == ScriptAnswer::Done {
            self.state.audit_mut(claimed.job).failures += 1;
        }
        answer
    }
}
