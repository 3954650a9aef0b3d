//! What Redis holds of one queue, as far as the scripts look at it.

use crate::PlantedBug;

/// Number of a job of the scenario.
pub(crate) type JobNumber = u8;
/// Number of a stream entry. Numbers only grow, as the ids of entries do. The token of an attempt has the number of its entry:
/// both are new with each attempt.
pub(crate) type EntryNumber = u8;

/// A name in the pending list of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum PendingName {
    /// A process of a queue-worker; one that starts again has another name.
    Process(u8),
    /// All jobs that are fetched over HTTP.
    Pull,
}

/// What a job takes along from attempt to attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct AttemptCounts {
    pub(crate) failures: u8,
    pub(crate) crashes: u8,
}

/// An entry of the stream, with its line in the pending list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StoredEntry {
    pub(crate) entry: EntryNumber,
    pub(crate) job: JobNumber,
    pub(crate) counts: AttemptCounts,
    /// Whether the entry says that the job has a record.
    pub(crate) has_record: bool,
    pub(crate) holder: Option<PendingName>,
    /// Whether it has been idle for the lease of its holder.
    pub(crate) is_idle: bool,
}

/// The state in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RecordState {
    /// In the stream, at this entry.
    Queued(EntryNumber),
    Scheduled,
    Retryable,
}

/// The record of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StoredRecord {
    pub(crate) state: RecordState,
    pub(crate) counts: AttemptCounts,
    /// Field `k`: the attempt that wrote it.
    pub(crate) written_by: Option<EntryNumber>,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FinalState {
    Completed,
    Discarded,
    Cancelled,
}

/// A finished job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StoredResult {
    pub(crate) state: FinalState,
    /// The first line: the attempt that ended it, if one did.
    pub(crate) attempt: Option<EntryNumber>,
}

/// The keys of one job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct KeysOfJob {
    pub(crate) record: Option<StoredRecord>,
    pub(crate) is_due_listed: bool,
    pub(crate) result: Option<StoredResult>,
    /// Timer `follow_up`.
    pub(crate) has_follow_up_timer: bool,
}

/// Everything that one queue has in Redis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RedisState {
    pub(crate) stream: Vec<StoredEntry>,
    /// The active hash: a token, or none for "-".
    pub(crate) active: Vec<(EntryNumber, Option<EntryNumber>)>,
    /// The leases, and whether each expired.
    pub(crate) leases: Vec<(EntryNumber, bool)>,
    pub(crate) jobs: Vec<KeysOfJob>,
    /// All unique jobs of a scenario are equal, so there is one uniqueness.
    pub(crate) uniqueness: Option<JobNumber>,
    pub(crate) last_entry: EntryNumber,
    pub(crate) bug: Option<PlantedBug>,
}

impl RedisState {
    pub(crate) fn new(jobs: u8, bug: Option<PlantedBug>) -> Self {
        Self {
            stream: Vec::new(),
            active: Vec::new(),
            leases: Vec::new(),
            jobs: vec![KeysOfJob::default(); usize::from(jobs)],
            uniqueness: None,
            last_entry: 0,
            bug,
        }
    }

    pub(crate) fn has(&self, bug: PlantedBug) -> bool {
        self.bug == Some(bug)
    }

    pub(crate) fn job(&self, job: JobNumber) -> &KeysOfJob {
        &self.jobs[usize::from(job)]
    }

    pub(crate) fn job_mut(&mut self, job: JobNumber) -> &mut KeysOfJob {
        &mut self.jobs[usize::from(job)]
    }

    pub(crate) fn entry(&self, entry: EntryNumber) -> Option<&StoredEntry> {
        self.stream.iter().find(|stored| stored.entry == entry)
    }

    pub(crate) fn entry_mut(&mut self, entry: EntryNumber) -> Option<&mut StoredEntry> {
        self.stream.iter_mut().find(|stored| stored.entry == entry)
    }

    /// The token of an attempt, if the active hash has it with one.
    pub(crate) fn token(&self, entry: EntryNumber) -> Option<EntryNumber> {
        self.active.iter().find(|(name, _)| *name == entry).and_then(|(_, token)| *token)
    }

    pub(crate) fn set_lease(&mut self, entry: EntryNumber, is_expired: bool) {
        match self.leases.iter_mut().find(|(name, _)| *name == entry) {
            Some((_, expired)) => *expired = is_expired,
            None => self.leases.push((entry, is_expired)),
        }
    }

    /// Whether the one that runs this attempt was silent for its lease.
    pub(crate) fn is_silent(&self, entry: EntryNumber) -> bool {
        match self.leases.iter().find(|(name, _)| *name == entry) {
            Some((_, is_expired)) => *is_expired,
            None => self.entry(entry).is_some_and(|stored| stored.is_idle),
        }
    }

    /// `add_entry`: puts a job at the end of the stream.
    pub(crate) fn add_entry(&mut self, job: JobNumber, counts: AttemptCounts, has_record: bool) -> EntryNumber {
        self.last_entry += 1;
        let entry = self.last_entry;
        self.stream.push(StoredEntry { entry, job, counts, has_record, holder: None, is_idle: false });
        entry
    }

    /// `remove_entry`: takes the entry of an attempt out of the stream, and the attempt with it.
    pub(crate) fn remove_entry(&mut self, entry: EntryNumber) {
        self.stream.retain(|stored| stored.entry != entry);
        self.active.retain(|(name, _)| *name != entry);
        self.leases.retain(|(name, _)| *name != entry);
    }

    /// `note_entry`: reduces a record to the address of its job.
    pub(crate) fn note_entry(&mut self, job: JobNumber, entry: EntryNumber, written_by: Option<EntryNumber>) {
        let counts = AttemptCounts::default();
        self.job_mut(job).record = Some(StoredRecord { state: RecordState::Queued(entry), counts, written_by });
    }
}
