//! The scripts: each function is one, named as it is, and happens at once.

use crate::{
    PlantedBug,
    redis::{
        AttemptCounts, EntryNumber, FinalState, JobNumber, PendingName, RecordState, RedisState, StoredEntry,
        StoredRecord, StoredResult,
    },
};

/// Which attempt a caller means: the three arguments of `is_current_attempt` in `fence.lua`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum CallFence {
    Worker {
        name: PendingName,
        /// Whether it must have been silent for its lease.
        must_be_idle: bool,
    },
    Pull {
        token: EntryNumber,
    },
    ExpiredLease {
        token: EntryNumber,
    },
}

/// What a script that ends an attempt answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScriptAnswer {
    Done,
    DoneBefore,
    Stale,
}

/// Where `locate.lua` saw a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SeenAt {
    Result(StoredResult),
    Record(RecordState),
    Entry(EntryNumber, Option<PendingName>),
    Nowhere,
}

/// What the caller of `create.lua` or `redrive.lua` read of the uniqueness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum KnownHolder {
    /// The job need not be unique.
    NotUnique,
    Read(Option<JobNumber>),
}

/// What `create.lua` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CreateAnswer {
    Created,
    Duplicate,
    Changed,
}

impl RedisState {
    fn is_current_attempt(&self, entry: EntryNumber, fence: CallFence) -> bool {
        if self.has(PlantedBug::NoFence) {
            return true;
        }
        let token = self.token(entry);
        match fence {
            CallFence::Worker { name, must_be_idle } => {
                let must_be_idle = must_be_idle && !self.has(PlantedBug::ReclaimWithoutIdleCheck);
                self.entry(entry).is_some_and(|stored| stored.holder == Some(name) && (stored.is_idle || !must_be_idle))
            }
            CallFence::Pull { token: known } => token == Some(known),
            CallFence::ExpiredLease { token: known } => token == Some(known) && self.is_silent(entry),
        }
    }

    /// `after_end`, and what it sets off: only a unique job has a follow-up here.
    fn after_end(&mut self, job: JobNumber, is_unique: bool) {
        if is_unique && !self.has(PlantedBug::UniquenessNeverFreed) {
            self.job_mut(job).has_follow_up_timer = true;
        }
    }

    /// `claim.lua`, and a plain read for the jobs of one queue: the first entry that nobody has.
    pub(crate) fn claim(&mut self, name: PendingName) -> Option<StoredEntry> {
        let stored = self.stream.iter_mut().find(|stored| stored.holder.is_none())?;
        (stored.holder, stored.is_idle) = (Some(name), false);
        let claimed = *stored;
        if name == PendingName::Pull {
            self.active.push((claimed.entry, Some(claimed.entry)));
            self.leases.push((claimed.entry, false));
        }
        if self.has(PlantedBug::UniquenessFreedAtClaim) && self.uniqueness == Some(claimed.job) {
            self.uniqueness = None;
        }
        Some(claimed)
    }

    /// `read_claimed.lua`: what a worker has of a claim whose answer was lost.
    pub(crate) fn read_claimed(&self, name: PendingName) -> impl Iterator<Item = &StoredEntry> {
        self.stream.iter().filter(move |stored| stored.holder == Some(name))
    }

    /// `renew.lua`; false if the entry is lost.
    pub(crate) fn renew(&mut self, entry: EntryNumber, name: PendingName) -> bool {
        let is_current = self.is_current_attempt(entry, CallFence::Worker { name, must_be_idle: false });
        if !is_current && !self.has(PlantedBug::RenewWithoutFence) {
            return false;
        }
        let Some(stored) = self.entry_mut(entry) else { return false };
        (stored.holder, stored.is_idle) = (Some(name), false);
        if self.active.iter().all(|(name, _)| *name != entry) {
            self.active.push((entry, None));
        }
        true
    }

    /// `heartbeat.lua`; false if the attempt is not the current one.
    pub(crate) fn heartbeat(&mut self, entry: EntryNumber, token: EntryNumber) -> bool {
        let is_current = self.is_current_attempt(entry, CallFence::Pull { token });
        if is_current && self.leases.iter().any(|(name, _)| *name == entry) {
            self.set_lease(entry, false);
        }
        is_current
    }

    /// `issue_callback_token.lua` with a lease: hands the attempt to the holder of the token.
    pub(crate) fn issue_callback_token(&mut self, entry: EntryNumber, name: PendingName) -> bool {
        let pulled = CallFence::Worker { name: PendingName::Pull, must_be_idle: false };
        if self.token(entry) == Some(entry) && self.is_current_attempt(entry, pulled) {
            return true;
        }
        if !self.is_current_attempt(entry, CallFence::Worker { name, must_be_idle: false }) {
            return false;
        }
        let Some(stored) = self.entry_mut(entry) else { return false };
        (stored.holder, stored.is_idle) = (Some(PendingName::Pull), false);
        self.active.retain(|(name, _)| *name != entry);
        self.active.push((entry, Some(entry)));
        self.set_lease(entry, false);
        true
    }

    /// `complete_batch.lua`. Each job is given as its worker claimed it. `is_whole` is false where a planted bug makes two
    /// commands of it and the second does not arrive.
    pub(crate) fn complete_batch(
        &mut self,
        name: PendingName,
        batch: &[StoredEntry],
        is_unique: bool,
        is_whole: bool,
    ) -> Vec<ScriptAnswer> {
        let mut answers = vec![None; batch.len()];
        if !self.active.is_empty() && !self.has(PlantedBug::CompletionIgnoresToken) {
            for (answer, claimed) in answers.iter_mut().zip(batch) {
                let token = self.token(claimed.entry);
                let has_entry = self.entry(claimed.entry).is_some_and(|stored| stored.holder == Some(name));
                if token.is_some() && !has_entry {
                    *answer = Some(ScriptAnswer::Stale);
                }
            }
        }
        for (answer, claimed) in answers.iter_mut().zip(batch) {
            if answer.is_none() && self.entry(claimed.entry).is_none() && !self.has(PlantedBug::NoFence) {
                let result = self.job(claimed.job).result;
                let is_own = result.is_some_and(|result| result.attempt == Some(claimed.entry));
                let knows = is_own && !self.has(PlantedBug::RepeatForgotten);
                *answer = Some(if knows { ScriptAnswer::DoneBefore } else { ScriptAnswer::Stale });
            }
        }
        for (_, claimed) in answers.iter().zip(batch).filter(|(answer, _)| answer.is_none()) {
            if claimed.has_record {
                self.job_mut(claimed.job).record = None;
            }
            if is_unique && self.uniqueness == Some(claimed.job) {
                self.uniqueness = None;
            }
            let result = StoredResult { state: FinalState::Completed, attempt: Some(claimed.entry) };
            self.job_mut(claimed.job).result = Some(result);
            if is_whole {
                self.remove_entry(claimed.entry);
            }
        }
        answers.into_iter().map(|answer| answer.unwrap_or(ScriptAnswer::Done)).collect()
    }

    /// `finish.lua`: ends an attempt and its job. Only the attempt's own call leaves its name in the result.
    pub(crate) fn finish(
        &mut self,
        claimed: StoredEntry,
        fence: CallFence,
        state: FinalState,
        is_unique: bool,
    ) -> ScriptAnswer {
        let StoredEntry { entry, job, .. } = claimed;
        if !self.is_current_attempt(entry, fence) {
            let is_own = self.job(job).result.is_some_and(|result| result.attempt == Some(entry));
            let knows = is_own && !self.has(PlantedBug::RepeatForgotten);
            return if knows { ScriptAnswer::DoneBefore } else { ScriptAnswer::Stale };
        }
        self.remove_entry(entry);
        let is_own = !matches!(fence, CallFence::ExpiredLease { .. } | CallFence::Worker { must_be_idle: true, .. });
        let keys = self.job_mut(job);
        keys.record = None;
        keys.result = Some(StoredResult { state, attempt: is_own.then_some(entry) });
        self.after_end(job, is_unique);
        ScriptAnswer::Done
    }

    /// `retry.lua`: ends a failed attempt and schedules the next.
    pub(crate) fn retry(&mut self, claimed: StoredEntry, fence: CallFence, counts: AttemptCounts) -> ScriptAnswer {
        let StoredEntry { entry, job, .. } = claimed;
        if !self.is_current_attempt(entry, fence) {
            let record = self.job(job).record;
            let is_own = record.is_some_and(|record| {
                record.written_by == Some(entry) && !matches!(record.state, RecordState::Queued(_))
            });
            return if is_own { ScriptAnswer::DoneBefore } else { ScriptAnswer::Stale };
        }
        self.remove_entry(entry);
        let is_due_listed = !self.has(PlantedBug::RetryNotDue);
        let keys = self.job_mut(job);
        keys.record = Some(StoredRecord { state: RecordState::Retryable, counts, written_by: Some(entry) });
        keys.is_due_listed = is_due_listed;
        if self.has(PlantedBug::UniquenessFreedAtRetry) && self.uniqueness == Some(job) {
            self.uniqueness = None;
        }
        ScriptAnswer::Done
    }

    /// `release.lua`: ends an attempt without an outcome; the job gets a new entry.
    pub(crate) fn release(&mut self, claimed: StoredEntry, fence: CallFence, counts: AttemptCounts) -> ScriptAnswer {
        let StoredEntry { entry, job, .. } = claimed;
        if !self.is_current_attempt(entry, fence) {
            let is_own = self.job(job).record.is_some_and(|record| record.written_by == Some(entry));
            return if is_own { ScriptAnswer::DoneBefore } else { ScriptAnswer::Stale };
        }
        if self.has(PlantedBug::ReclaimKeepsEntry) {
            let Some(stored) = self.entry_mut(entry) else { return ScriptAnswer::Stale };
            (stored.holder, stored.is_idle, stored.counts) = (None, false, counts);
            self.active.retain(|(name, _)| *name != entry);
            self.leases.retain(|(name, _)| *name != entry);
            return ScriptAnswer::Done;
        }
        let new_entry = self.add_entry(job, counts, true);
        self.remove_entry(entry);
        self.note_entry(job, new_entry, Some(entry));
        ScriptAnswer::Done
    }

    /// `promote.lua`: moves a due job into the stream; false if it is no longer in the set.
    pub(crate) fn promote(&mut self, job: JobNumber) -> bool {
        let keys = *self.job(job);
        if !keys.is_due_listed {
            return false;
        }
        self.job_mut(job).is_due_listed = self.has(PlantedBug::PromoteKeepsDue);
        if let Some(record) = keys.record {
            let entry = self.add_entry(job, record.counts, true);
            self.note_entry(job, entry, None);
        }
        true
    }

    /// `locate.lua`.
    pub(crate) fn locate(&self, job: JobNumber) -> SeenAt {
        let keys = self.job(job);
        if let Some(result) = keys.result {
            return SeenAt::Result(result);
        }
        let stored = match keys.record.map(|record| record.state) {
            Some(RecordState::Queued(entry)) => self.entry(entry),
            Some(state) => return SeenAt::Record(state),
            // The id names the first entry
            None => self.stream.iter().find(|stored| stored.job == job && !stored.has_record),
        };
        stored.map_or(SeenAt::Nowhere, |stored| SeenAt::Entry(stored.entry, stored.holder))
    }

    /// `is_where_seen` in `end_job.lua`.
    fn is_where_seen(&self, job: JobNumber, seen: SeenAt) -> bool {
        match seen {
            SeenAt::Record(state) => self.job(job).record.is_some_and(|record| record.state == state),
            SeenAt::Entry(entry, holder) => self.entry(entry).is_some_and(|stored| stored.holder == holder),
            SeenAt::Result(_) | SeenAt::Nowhere => false,
        }
    }

    /// `cancel.lua`; false if the job is no longer where it was seen.
    pub(crate) fn cancel(&mut self, job: JobNumber, seen: SeenAt, is_unique: bool) -> bool {
        if !self.is_where_seen(job, seen) && !self.has(PlantedBug::CancelUnchecked) {
            return false;
        }
        // take_away
        match seen {
            SeenAt::Entry(entry, _) => self.remove_entry(entry),
            _ => self.job_mut(job).is_due_listed = false,
        }
        // store_end
        let keys = self.job_mut(job);
        keys.record = None;
        keys.result = Some(StoredResult { state: FinalState::Cancelled, attempt: None });
        self.after_end(job, is_unique);
        true
    }

    fn is_as_read(&self, known: KnownHolder) -> bool {
        match known {
            KnownHolder::NotUnique => true,
            KnownHolder::Read(holder) => holder == self.uniqueness,
        }
    }

    /// Whether another job that the caller saw ended has the uniqueness again, because it was redriven: a unique job that lives
    /// has a record.
    fn is_holder_live(&self, job: JobNumber, known: KnownHolder) -> bool {
        let KnownHolder::Read(Some(holder)) = known else { return false };
        let is_live = holder != job && self.job(holder).record.is_some();
        is_live && !self.has(PlantedBug::RedrivenHolderUnseen)
    }

    /// `create.lua` for a job that is available at once. A job to replace is cancelled in the same step.
    pub(crate) fn create(
        &mut self,
        job: JobNumber,
        known: KnownHolder,
        replaced: Option<(JobNumber, SeenAt)>,
    ) -> CreateAnswer {
        let keys = self.job(job);
        if keys.record.is_some() || keys.result.is_some() {
            return CreateAnswer::Duplicate;
        }
        let is_as_read = self.is_as_read(known);
        if !is_as_read && !self.has(PlantedBug::CreateUnchecked) {
            return CreateAnswer::Changed;
        }
        if replaced.is_none() && self.is_holder_live(job, known) {
            return CreateAnswer::Changed;
        }
        if let Some((older, seen)) = replaced {
            if !self.is_where_seen(older, seen) {
                return CreateAnswer::Changed;
            }
            if !self.has(PlantedBug::ReplacedJobStays) {
                self.cancel(older, seen, true);
            }
        }
        if known != KnownHolder::NotUnique {
            self.uniqueness = Some(job);
        }
        let entry = self.add_entry(job, AttemptCounts::default(), true);
        self.note_entry(job, entry, None);
        CreateAnswer::Created
    }

    /// `create.lua` for a job that is due later.
    pub(crate) fn create_scheduled(&mut self, job: JobNumber) -> CreateAnswer {
        let keys = self.job_mut(job);
        if keys.record.is_some() || keys.result.is_some() {
            return CreateAnswer::Duplicate;
        }
        let counts = AttemptCounts::default();
        keys.record = Some(StoredRecord { state: RecordState::Scheduled, counts, written_by: None });
        keys.is_due_listed = true;
        CreateAnswer::Created
    }

    /// `redrive.lua`; false if the job or the holder of its uniqueness is not as the caller saw it.
    pub(crate) fn redrive(&mut self, job: JobNumber, seen: StoredResult, known: KnownHolder) -> bool {
        // The first line names the attempt that ended the job
        let is_as_seen = self.job(job).result.is_some_and(|result| result.attempt == seen.attempt);
        if !is_as_seen || !self.is_as_read(known) || self.is_holder_live(job, known) {
            return false;
        }
        if known != KnownHolder::NotUnique {
            self.uniqueness = Some(job);
        }
        self.job_mut(job).result = None;
        let entry = self.add_entry(job, AttemptCounts::default(), true);
        self.note_entry(job, entry, None);
        true
    }

    /// `release_uniqueness.lua`.
    pub(crate) fn release_uniqueness(&mut self, job: JobNumber) {
        let has_ended = self.job(job).result.is_some() || self.has(PlantedBug::RedrivenJobUnprotected);
        if has_ended && self.uniqueness == Some(job) {
            self.uniqueness = None;
        }
    }
}
