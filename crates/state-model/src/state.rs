//! One state: Redis, what every process remembers, and what really happened, to compare with.

use crate::redis::{JobNumber, RedisState, StoredEntry, StoredResult};
use crate::scripts::{CallFence, KnownHolder, ScriptAnswer, SeenAt};

/// A call that ends an attempt or hands it over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum SettlingCall {
    Complete,
    Fail,
    Release,
    IssueToken,
}

/// An attempt in the memory of the one that runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HeldAttempt {
    /// As it was claimed.
    pub(crate) claimed: StoredEntry,
    /// Its place in [`JobAudit::attempts`].
    pub(crate) number: u8,
    /// The call that was sent and not answered: it is repeated.
    pub(crate) sent: Option<SettlingCall>,
}

/// A process of a queue-worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct WorkerProcess {
    pub(crate) name: u8,
    pub(crate) attempts: Vec<HeldAttempt>,
}

/// An attempt that a leader found silent, as it read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SilentAttempt {
    pub(crate) claimed: StoredEntry,
    pub(crate) fence: CallFence,
}

/// How far the client is that creates a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CreatorStep {
    Unsent,
    /// It read the uniqueness.
    Read {
        known: Option<JobNumber>,
        replaced: Option<(JobNumber, SeenAt)>,
    },
    Answered,
}

/// How far the client is that cancels a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CancelStep {
    Unasked,
    Seen(SeenAt),
    Answered,
}

/// How far the client is that redrives a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RedriveStep {
    Unasked,
    Read { seen: StoredResult, known: KnownHolder },
    Answered,
}

/// How far the follow-up of a job is that a leader, or the process that ended the job, carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FollowUpStep {
    None,
    /// It saw whether the job has ended.
    Located(JobNumber, bool),
    Released(JobNumber),
}

/// What may still happen. Every step but those that lead to an end takes from here, so no run is endless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FaultsLeft {
    pub(crate) lost_answers: u8,
    pub(crate) crashes: u8,
    pub(crate) renewals: u8,
    pub(crate) releases: u8,
    pub(crate) handovers: u8,
}

/// Who may end an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AttemptOwner {
    Process(u8),
    Token,
}

/// How an attempt ended in fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AttemptFate {
    Open,
    ByItsOwner(SettlingCall),
    /// A leader did it in place of a silent owner.
    ByLeader(SettlingCall),
    ByClient,
}

/// What happened to a job in fact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct JobAudit {
    pub(crate) attempts: Vec<(AttemptOwner, AttemptFate)>,
    /// In this life.
    pub(crate) failures: u8,
    pub(crate) crashes: u8,
    /// How often it was created or redriven, and ended.
    pub(crate) lives: u8,
    pub(crate) ends: u8,
}

impl JobAudit {
    pub(crate) fn is_live(&self) -> bool {
        self.lives > self.ends
    }

    fn is_current(&self, number: u8, owner: AttemptOwner) -> bool {
        usize::from(number) + 1 == self.attempts.len() && self.attempts.last() == Some(&(owner, AttemptFate::Open))
    }

    fn fate(&mut self, number: u8) -> &mut AttemptFate {
        &mut self.attempts[usize::from(number)].1
    }
}

/// What must never happen, seen in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ModelProblem {
    /// A call about another attempt than the current one changed something.
    StaleAttemptEnded,
    /// An attempt began before the one before it had ended.
    AttemptsOverlap,
    /// A caller was told something else than what happened.
    WrongAnswer,
    /// The attempt of a worker that was not silent was given to another.
    LiveAttemptReclaimed,
    /// A job ended, or was created, more often than it can.
    EndedTwice,
}

/// A state of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelState {
    pub(crate) redis: RedisState,
    pub(crate) processes: Vec<WorkerProcess>,
    pub(crate) next_name: u8,
    /// Attempts of programs that fetch over HTTP or were handed a token.
    pub(crate) pulled: Vec<HeldAttempt>,
    /// Attempts whose claim was not answered: the gateway releases them by their tokens.
    pub(crate) lost_claims: Vec<HeldAttempt>,
    pub(crate) silent: Vec<SilentAttempt>,
    pub(crate) creators: Vec<CreatorStep>,
    pub(crate) cancellers: Vec<CancelStep>,
    pub(crate) redrivers: Vec<RedriveStep>,
    pub(crate) follow_up: FollowUpStep,
    pub(crate) left: FaultsLeft,
    pub(crate) audit: Vec<JobAudit>,
    pub(crate) problem: Option<ModelProblem>,
}

impl ModelState {
    pub(crate) fn audit(&self, job: JobNumber) -> &JobAudit {
        &self.audit[usize::from(job)]
    }

    pub(crate) fn audit_mut(&mut self, job: JobNumber) -> &mut JobAudit {
        &mut self.audit[usize::from(job)]
    }

    /// Notes that a claim took an entry.
    pub(crate) fn note_claim(&mut self, claimed: StoredEntry, owner: AttemptOwner) -> HeldAttempt {
        let audit = self.audit_mut(claimed.job);
        let number = u8::try_from(audit.attempts.len()).unwrap_or(u8::MAX);
        let overlaps = audit.attempts.last().is_some_and(|(_, fate)| *fate == AttemptFate::Open);
        audit.attempts.push((owner, AttemptFate::Open));
        if overlaps {
            self.problem = Some(ModelProblem::AttemptsOverlap);
        }
        HeldAttempt { claimed, number, sent: None }
    }

    /// Notes a call about an attempt and its answer; false if the answer was lost, so that the call is repeated.
    pub(crate) fn note_settled(
        &mut self,
        held: &HeldAttempt,
        owner: AttemptOwner,
        call: SettlingCall,
        (answer, is_answered): (ScriptAnswer, bool),
    ) {
        let audit = self.audit_mut(held.claimed.job);
        let mut problem = None;
        if answer == ScriptAnswer::Done {
            if !audit.is_current(held.number, owner) {
                problem = Some(ModelProblem::StaleAttemptEnded);
            }
            *audit.fate(held.number) = AttemptFate::ByItsOwner(call);
        }
        let fate = *audit.fate(held.number);
        let is_own = fate == AttemptFate::ByItsOwner(call);
        // A worker that comes back to fail or release its job learns that this is done: the record names its attempt, though a
        // leader wrote it
        let is_same = call != SettlingCall::Complete
            && matches!(fate, AttemptFate::ByLeader(done) if done != SettlingCall::Complete);
        // After a redrive nothing tells any more how the life before ended. A retry or release is forgotten with the next one
        let is_kept = call == SettlingCall::Complete && audit.lives == 1;
        let is_wrong = match answer {
            ScriptAnswer::Done | ScriptAnswer::DoneBefore => !is_own && !is_same,
            ScriptAnswer::Stale => is_own && is_kept,
        };
        if is_answered && is_wrong && problem.is_none() {
            problem = Some(ModelProblem::WrongAnswer);
        }
        self.problem = self.problem.or(problem);
    }

    /// Notes that others than its owner ended the current attempt of a job.
    pub(crate) fn note_taken_away(&mut self, job: JobNumber, taken: AttemptFate) {
        if let Some((_, fate)) = self.audit_mut(job).attempts.last_mut()
            && *fate == AttemptFate::Open
        {
            *fate = taken;
        }
    }

    pub(crate) fn note_life(&mut self, job: JobNumber) {
        let audit = self.audit_mut(job);
        audit.lives += 1;
        (audit.failures, audit.crashes) = (0, 0);
        if audit.lives != audit.ends + 1 {
            self.problem = Some(ModelProblem::EndedTwice);
        }
    }

    pub(crate) fn note_end(&mut self, job: JobNumber) {
        let audit = self.audit_mut(job);
        audit.ends += 1;
        if audit.ends > audit.lives {
            self.problem = self.problem.or(Some(ModelProblem::EndedTwice));
        }
    }

    /// The attempt of an entry that a worker or program reads again.
    pub(crate) fn held_again(&self, claimed: StoredEntry) -> HeldAttempt {
        let number = self.audit(claimed.job).attempts.len().saturating_sub(1);
        HeldAttempt { claimed, number: u8::try_from(number).unwrap_or(u8::MAX), sent: None }
    }
}
