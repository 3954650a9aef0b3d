//! What can happen next in a state. Actions are named as the scripts that they run.

use crate::{
    JobKind, PlantedBug, Scenario,
    redis::{EntryNumber, FinalState, PendingName},
    scripts::SeenAt,
    state::{CancelStep, CreatorStep, FollowUpStep, HeldAttempt, ModelState, RedriveStep, SettlingCall},
};

/// Who sends a call: a process of a queue-worker, or the program that fetched a job over HTTP. With the place of its attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttemptCaller {
    /// A process and the place of one of its attempts.
    Process(usize, usize),
    /// The place of a pulled attempt.
    Program(usize),
}

/// One step. `answered` says whether the caller learns what its call did: an answer that is lost, and a process that dies after
/// its call, look the same to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "the fields say what the variants do not: which job, which process, which of its attempts"
)]
pub enum Action {
    /// Adds a plain job: `XADD`.
    Enqueue(u8),
    /// A client reads the uniqueness that its job needs, and its holder.
    ReadUniqueness(u8),
    /// `create.lua`
    Create { job: u8, answered: bool },
    /// `claim.lua` of a queue-worker
    Claim { process: usize, answered: bool },
    /// `read_claimed.lua`, after a claim without an answer
    ReadClaimed { process: usize },
    /// `renew.lua`
    Renew { process: usize, answered: bool },
    /// `complete_batch.lua` with the attempts of a process whose bits are set
    CompleteBatch { process: usize, batch: u8, answered: bool },
    /// `issue_callback_token.lua`: hands an attempt over
    IssueCallbackToken { process: usize, attempt: usize, answered: bool },
    /// `claim.lua` of a gateway
    ClaimPull { answered: bool },
    /// `heartbeat.lua`
    Heartbeat { program: usize },
    /// `finish.lua` of a program that succeeded
    Finish { program: usize, answered: bool },
    /// `retry.lua` after a failure; `finish.lua` when no attempt is left
    Retry { caller: AttemptCaller, answered: bool },
    /// `release.lua`: the attempt does not count
    Release { caller: AttemptCaller, answered: bool },
    /// `release.lua` for a claim of a gateway that was not answered
    ReleaseLostClaim(usize),
    /// A lease expires, because time passes and nobody renews it.
    LeaseExpires(u8),
    /// A leader reads an attempt whose lease expired.
    ReadSilent(u8),
    /// What it does then: `release.lua`, or `finish.lua` when the crash budget is spent
    WorkerLost(usize),
    /// The same for an attempt that ran past its time limit: `retry.lua` or `finish.lua`
    TimeOut(usize),
    /// `promote.lua`
    Promote(u8),
    /// A client that cancels looks for its job.
    LocateToCancel(u8),
    /// `cancel.lua`
    Cancel(u8),
    /// A client that redrives reads how its job ended.
    ReadToRedrive(u8),
    /// `redrive.lua`
    Redrive(u8),
    /// The process that carries out a follow-up looks for the job.
    LocateToFollowUp(u8),
    /// `release_uniqueness.lua`
    ReleaseUniqueness,
    /// The timer of the follow-up is removed.
    ClearFollowUp,
    /// A process of a queue-worker dies, and another starts under a new name.
    CrashProcess(usize),
    /// A program that fetched a job dies.
    CrashProgram(usize),
}

/// Whether an attempt may send this call: one that was not answered is repeated, and no other follows. A hand-over that was not
/// answered may also be followed by the result.
fn may_send(held: &HeldAttempt, call: SettlingCall) -> bool {
    held.sent.is_none_or(|sent| sent == call || sent == SettlingCall::IssueToken && call == SettlingCall::Complete)
}

struct ActionList<'a> {
    scenario: &'a Scenario,
    state: &'a ModelState,
    found: &'a mut Vec<Action>,
}

impl ActionList<'_> {
    /// The action with its answer, and without if an answer may be lost.
    fn add_call(&mut self, action: impl Fn(bool) -> Action) {
        self.found.push(action(true));
        if self.state.left.lost_answers > 0 {
            self.found.push(action(false));
        }
    }

    fn add_clients(&mut self) {
        for job in 0..self.scenario.job_count() {
            match (self.state.creators[usize::from(job)], self.scenario.kind(job)) {
                (CreatorStep::Answered, _) => {}
                (CreatorStep::Unsent, JobKind::Plain) => self.found.push(Action::Enqueue(job)),
                (CreatorStep::Unsent, JobKind::Unique | JobKind::Replacing) => {
                    self.found.push(Action::ReadUniqueness(job));
                }
                (CreatorStep::Read { .. }, _) | (CreatorStep::Unsent, JobKind::Scheduled) => {
                    self.add_call(|answered| Action::Create { job, answered });
                }
            }
        }
        for (job, step) in (0..).zip(&self.state.cancellers) {
            match step {
                CancelStep::Unasked if self.state.audit(job).lives > 0 => self.found.push(Action::LocateToCancel(job)),
                CancelStep::Seen(_) => self.found.push(Action::Cancel(job)),
                _ => {}
            }
        }
        for (job, step) in (0..).zip(&self.state.redrivers) {
            let result = self.state.redis.job(job).result;
            let may_redrive = result.is_some_and(|result| result.state != FinalState::Completed);
            match step {
                RedriveStep::Unasked if may_redrive => self.found.push(Action::ReadToRedrive(job)),
                RedriveStep::Read { .. } => self.found.push(Action::Redrive(job)),
                _ => {}
            }
        }
    }

    fn add_processes(&mut self) {
        let (state, slots) = (self.state, self.scenario.slots);
        for (process, worker) in state.processes.iter().enumerate() {
            if worker.attempts.len() < slots && state.redis.stream.iter().any(|stored| stored.holder.is_none()) {
                self.add_call(|answered| Action::Claim { process, answered });
            }
            let name = PendingName::Process(worker.name);
            let is_held = |entry| worker.attempts.iter().any(|held| held.claimed.entry == entry);
            if state.redis.read_claimed(name).any(|stored| !is_held(stored.entry)) {
                self.found.push(Action::ReadClaimed { process });
            }
            if !worker.attempts.is_empty() && state.left.renewals > 0 {
                self.add_call(|answered| Action::Renew { process, answered });
            }
            if state.left.crashes > 0 && state.redis.read_claimed(name).next().is_some() {
                self.found.push(Action::CrashProcess(process));
            }
            for batch in 1..1_u8 << worker.attempts.len() {
                let mut members = worker.attempts.iter().enumerate().filter(|(at, _)| batch & 1 << at != 0);
                if members.all(|(_, held)| may_send(held, SettlingCall::Complete)) {
                    self.add_call(|answered| Action::CompleteBatch { process, batch, answered });
                }
            }
            for (attempt, held) in worker.attempts.iter().enumerate() {
                self.add_ends(AttemptCaller::Process(process, attempt), held);
                if state.left.handovers > 0 && may_send(held, SettlingCall::IssueToken) {
                    self.add_call(|answered| Action::IssueCallbackToken { process, attempt, answered });
                }
            }
        }
    }

    fn add_ends(&mut self, caller: AttemptCaller, held: &HeldAttempt) {
        if self.scenario.fails && may_send(held, SettlingCall::Fail) {
            self.add_call(|answered| Action::Retry { caller, answered });
        }
        let may_release = self.state.left.releases > 0 || held.sent == Some(SettlingCall::Release);
        if may_release && may_send(held, SettlingCall::Release) {
            self.add_call(|answered| Action::Release { caller, answered });
        }
    }

    fn add_programs(&mut self) {
        let state = self.state;
        let has_free = state.redis.stream.iter().any(|stored| stored.holder.is_none());
        if state.pulled.len() + state.lost_claims.len() < self.scenario.programs && has_free {
            self.add_call(|answered| Action::ClaimPull { answered });
        }
        for (program, held) in state.pulled.iter().enumerate() {
            if state.left.renewals > 0 {
                self.found.push(Action::Heartbeat { program });
            }
            if state.left.crashes > 0 {
                self.found.push(Action::CrashProgram(program));
            }
            if may_send(held, SettlingCall::Complete) {
                self.add_call(|answered| Action::Finish { program, answered });
            }
            self.add_ends(AttemptCaller::Program(program), held);
        }
        self.found.extend((0..state.lost_claims.len()).map(Action::ReleaseLostClaim));
    }

    fn add_maintenance(&mut self) {
        let state = self.state;
        for stored in &state.redis.stream {
            let entry: EntryNumber = stored.entry;
            let Some(name) = stored.holder else { continue };
            let is_ignored = name == PendingName::Pull && state.redis.has(PlantedBug::PulledLeaseIgnored);
            if !state.redis.is_silent(entry) {
                self.found.push(Action::LeaseExpires(entry));
            } else if state.silent.len() < self.scenario.leaders && !is_ignored {
                self.found.push(Action::ReadSilent(entry));
            }
        }
        for at in 0..state.silent.len() {
            self.found.push(Action::WorkerLost(at));
            if self.scenario.fails && state.silent[at].claimed.holder == Some(PendingName::Pull) {
                self.found.push(Action::TimeOut(at));
            }
        }
        for job in 0..self.scenario.job_count() {
            let keys = state.redis.job(job);
            if keys.is_due_listed {
                self.found.push(Action::Promote(job));
            }
            if keys.has_follow_up_timer && state.follow_up == FollowUpStep::None {
                self.found.push(Action::LocateToFollowUp(job));
            }
        }
        match state.follow_up {
            FollowUpStep::Located(_, true) => self.found.push(Action::ReleaseUniqueness),
            FollowUpStep::Located(_, false) | FollowUpStep::Released(_) => self.found.push(Action::ClearFollowUp),
            FollowUpStep::None => {}
        }
    }
}

/// Lists what can happen next.
pub(crate) fn list(scenario: &Scenario, state: &ModelState, found: &mut Vec<Action>) {
    // Nothing that follows a problem is of interest
    if state.problem.is_some() {
        return;
    }
    let mut list = ActionList { scenario, state, found };
    list.add_clients();
    list.add_processes();
    list.add_programs();
    list.add_maintenance();
}

/// Whether a job that was located waits or runs: then it blocks equal jobs.
pub(crate) fn is_blocking(seen: SeenAt) -> bool {
    matches!(seen, SeenAt::Record(_) | SeenAt::Entry(..))
}

/// The bit of each attempt of a batch.
pub(crate) fn batch_members(batch: u8, count: usize) -> impl Iterator<Item = usize> {
    (0..count).filter(move |at| batch & 1 << at != 0)
}
