//! What jobs should do, without Redis: plain data and no time.

use std::collections::{BTreeMap, BTreeSet};

use common::id::JobId;
use model::job::{JobState, JobTransition, RetryAdvice};
use store::jobs::QueueStats;

use super::operations::{ModelJobSpec, ModelStart};

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own that is compared")]
pub(super) struct ModelJob {
    pub(super) id: JobId,
    pub(super) spec: ModelJobSpec,
    pub(super) state: JobState,
    pub(super) attempts: u32,
    pub(super) failures: u32,
    pub(super) crashes: u32,
    /// The attempt that is shown once it is over.
    pub(super) last_attempt: u32,
    pub(super) has_record: bool,
    pub(super) is_dead_letter: bool,
    /// A dead letter that was deleted.
    pub(super) is_deleted: bool,
    /// Whether the attempt that runs has a lease of its own.
    pub(super) has_lease: bool,
}

/// What becomes of a job that is enqueued.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ModelEnqueueOutcome {
    Stored(JobState),
    Duplicate(JobId),
    Ignored(JobId),
}

/// The crash budget that the test sets.
pub(super) const CRASH_BUDGET: u32 = 1;

#[derive(Default)]
pub(super) struct ModelState {
    pub(super) jobs: Vec<ModelJob>,
    /// Entries by priority, in order of arrival; those that run are among them.
    pub(super) streams: BTreeMap<i64, Vec<usize>>,
    pub(super) key_queues: BTreeMap<&'static str, Vec<usize>>,
    pub(super) admitted: BTreeMap<&'static str, BTreeSet<usize>>,
    pub(super) unique_holders: BTreeMap<u8, usize>,
    pub(super) is_paused: bool,
    pub(super) totals: QueueStats,
}

impl ModelState {
    /// What a job will do; `id` is asked for only when it is stored.
    pub(super) fn enqueue(&mut self, spec: &ModelJobSpec, id: Option<JobId>) -> ModelEnqueueOutcome {
        if let Some(chosen) = spec.id
            && let Some(job) = self.jobs.iter().find(|job| job.spec.id == Some(chosen) && !job.is_deleted)
        {
            return ModelEnqueueOutcome::Duplicate(job.id);
        }
        let (mut start, mut replaced) = (spec.start, None);
        if let Some((args, policy)) = spec.unique
            && let Some(older) =
                self.unique_holders.get(&args).copied().filter(|older| !self.jobs[*older].state.is_terminal())
        {
            let (state, older_id) = (self.jobs[older].state, self.jobs[older].id);
            match policy {
                "reject" => return ModelEnqueueOutcome::Duplicate(older_id),
                "ignore" => return ModelEnqueueOutcome::Ignored(older_id),
                _ if state == JobState::Active => return ModelEnqueueOutcome::Duplicate(older_id),
                _ => {}
            }
            if policy == "replace_except_schedule" && state == JobState::Scheduled && start == ModelStart::Now {
                start = ModelStart::Scheduled;
            }
            // It is there before the older one goes
            replaced = id.map(|_| older);
        }
        let state = match start {
            ModelStart::Now => JobState::Available,
            ModelStart::Scheduled => JobState::Scheduled,
            ModelStart::Pending => JobState::Pending,
        };
        if let Some(id) = id {
            self.insert(spec.clone(), id, state);
        }
        if let Some(older) = replaced {
            self.cancel(older);
        }
        ModelEnqueueOutcome::Stored(state)
    }

    fn insert(&mut self, spec: ModelJobSpec, id: JobId, state: JobState) {
        let index = self.jobs.len();
        if let Some((args, _)) = spec.unique {
            self.unique_holders.insert(args, index);
        }
        let has_record = spec.id.is_some()
            || spec.unique.is_some()
            || spec.limit.is_some()
            || spec.deadline
            || state != JobState::Available;
        let limit = spec.limit;
        self.jobs.push(ModelJob {
            id,
            spec,
            state,
            attempts: 0,
            failures: 0,
            crashes: 0,
            last_attempt: 0,
            has_record,
            is_dead_letter: false,
            is_deleted: false,
            has_lease: false,
        });
        if state == JobState::Available {
            self.make_available(index);
        }
        if let Some((key, _)) = limit {
            self.admit(key);
        }
    }

    fn transition(&mut self, index: usize, event: JobTransition) {
        let job = &mut self.jobs[index];
        job.state = job.state.after(event).expect("the test only does what a state allows");
    }

    /// Into its stream, or behind the others with its key.
    fn make_available(&mut self, index: usize) {
        let Some((key, _)) = self.jobs[index].spec.limit else { return self.add_to_stream(index) };
        let (jobs, priority) = (&self.jobs, self.jobs[index].spec.priority);
        let key_queue = self.key_queues.entry(key).or_default();
        let place = key_queue.iter().position(|other| jobs[*other].spec.priority < priority).unwrap_or(key_queue.len());
        key_queue.insert(place, index);
        self.admit(key);
    }

    fn add_to_stream(&mut self, index: usize) {
        self.streams.entry(self.jobs[index].spec.priority).or_default().push(index);
    }

    fn admit(&mut self, key: &'static str) {
        while let Some(key_queue) = self.key_queues.get_mut(key)
            && let Some(first) = key_queue.first().copied()
            // Each job is admitted by its own limit
            && let Some((_, most)) = self.jobs[first].spec.limit
            && self.admitted.entry(key).or_default().len() < usize::try_from(most).unwrap_or(usize::MAX)
        {
            key_queue.remove(0);
            self.admitted.entry(key).or_default().insert(first);
            self.add_to_stream(first);
        }
    }

    /// Takes a job out of wherever it is, and lets the next with its key in.
    fn remove_from_queues(&mut self, index: usize) {
        for entries in self.streams.values_mut().chain(self.key_queues.values_mut()) {
            entries.retain(|other| *other != index);
        }
        self.jobs[index].has_lease = false;
        if let Some((key, _)) = self.jobs[index].spec.limit {
            self.admitted.entry(key).or_default().remove(&index);
        }
    }

    fn finish(&mut self, index: usize, event: JobTransition) {
        self.transition(index, event);
        self.jobs[index].has_record = false;
        match self.jobs[index].state {
            JobState::Completed => self.totals.completed += 1,
            JobState::Cancelled => self.totals.cancelled += 1,
            _ => self.totals.discarded += 1,
        }
        self.remove_from_queues(index);
        if let Some((args, _)) = self.jobs[index].spec.unique
            && self.unique_holders.get(&args) == Some(&index)
        {
            self.unique_holders.remove(&args);
        }
        if let Some((key, _)) = self.jobs[index].spec.limit {
            self.admit(key);
        }
    }

    /// The jobs that a claim gets, in order.
    pub(super) fn claim(&mut self, most: usize, is_pull: bool) -> Vec<usize> {
        if self.is_paused {
            return Vec::new();
        }
        let waiting = self.streams.values().rev().flatten().copied();
        let claimed: Vec<usize> =
            waiting.filter(|index| self.jobs[*index].state == JobState::Available).take(most).collect();
        for index in &claimed {
            self.transition(*index, JobTransition::Claim);
            self.jobs[*index].has_lease = is_pull || self.jobs[*index].spec.own_lease;
        }
        claimed
    }

    pub(super) fn complete(&mut self, index: usize) {
        self.jobs[index].last_attempt = self.jobs[index].attempts + 1;
        self.finish(index, JobTransition::Succeed);
    }

    pub(super) fn fail(&mut self, index: usize, advice: RetryAdvice) {
        let job = &mut self.jobs[index];
        (job.attempts, job.failures) = (job.attempts + 1, job.failures + 1);
        let is_last = matches!(advice, RetryAdvice::Never | RetryAdvice::Discard);
        if job.failures >= job.spec.max_attempts || is_last {
            self.discard(index);
            self.jobs[index].is_dead_letter &= advice != RetryAdvice::Discard;
            return;
        }
        job.has_record = true;
        self.transition(index, JobTransition::Retry);
        self.totals.retried += 1;
        self.remove_from_queues(index);
        if let Some((key, _)) = self.jobs[index].spec.limit {
            self.admit(key);
        }
    }

    fn discard(&mut self, index: usize) {
        let job = &mut self.jobs[index];
        (job.last_attempt, job.is_dead_letter) = (job.attempts, job.spec.dead_letter);
        self.finish(index, JobTransition::Discard);
    }

    pub(super) fn lose_worker(&mut self, index: usize) {
        let job = &mut self.jobs[index];
        (job.attempts, job.crashes) = (job.attempts + 1, job.crashes + 1);
        if job.crashes > CRASH_BUDGET { self.discard(index) } else { self.release(index) }
    }

    /// Back to the end of its stream. It keeps its place among those with its key.
    pub(super) fn release(&mut self, index: usize) {
        self.transition(index, JobTransition::Release);
        for entries in self.streams.values_mut() {
            entries.retain(|other| *other != index);
        }
        (self.jobs[index].has_record, self.jobs[index].has_lease) = (true, false);
        self.add_to_stream(index);
    }

    pub(super) fn cancel(&mut self, index: usize) -> bool {
        let job = &mut self.jobs[index];
        if job.state.is_terminal() {
            return false;
        }
        job.last_attempt = job.attempts + u32::from(job.state == JobState::Active);
        self.finish(index, JobTransition::Cancel);
        true
    }

    pub(super) fn make_due(&mut self, index: usize) {
        self.transition(index, JobTransition::Due);
        self.make_available(index);
    }

    pub(super) fn activate(&mut self, index: usize) -> bool {
        if self.jobs[index].state != JobState::Pending {
            return false;
        }
        self.transition(index, JobTransition::Activate);
        self.make_available(index);
        true
    }

    pub(super) fn redrive(&mut self, index: usize) -> bool {
        match self.jobs[index].state {
            JobState::Discarded if !self.jobs[index].is_deleted => self.totals.discarded -= 1,
            JobState::Cancelled => self.totals.cancelled -= 1,
            _ => return false,
        }
        self.transition(index, JobTransition::Redrive);
        let job = &mut self.jobs[index];
        (job.is_dead_letter, job.has_record) = (false, true);
        (job.attempts, job.failures, job.crashes) = (0, 0, 0);
        if let Some((args, _)) = job.spec.unique {
            self.unique_holders.insert(args, index);
        }
        self.make_available(index);
        true
    }

    /// The equal job that is in the way of a redrive.
    pub(super) fn blocker(&self, index: usize) -> Option<usize> {
        let (args, _) = self.jobs[index].spec.unique?;
        self.unique_holders.get(&args).copied().filter(|holder| *holder != index)
    }

    pub(super) fn delete_dead_letter(&mut self, index: usize) -> bool {
        let job = &mut self.jobs[index];
        let was_one = std::mem::take(&mut job.is_dead_letter);
        job.is_deleted |= was_one;
        was_one
    }

    pub(super) fn purge(&mut self, states: &[JobState]) -> usize {
        let mut cancelled = 0;
        // What is let in meanwhile is in the same state as before
        while let Some(index) = self.jobs.iter().position(|job| states.contains(&job.state)) {
            cancelled += usize::from(self.cancel(index));
        }
        cancelled
    }

    pub(super) fn stats(&self) -> QueueStats {
        let count = |states: &[JobState]| {
            u64::try_from(self.jobs.iter().filter(|job| states.contains(&job.state)).count()).expect("few")
        };
        QueueStats {
            available: count(&[JobState::Available]),
            active: count(&[JobState::Active]),
            delayed: count(&[JobState::Scheduled, JobState::Retryable]),
            retryable: count(&[JobState::Retryable]),
            pending: count(&[JobState::Pending]),
            dead: u64::try_from(self.jobs.iter().filter(|job| job.is_dead_letter).count()).expect("few"),
            ..self.totals
        }
    }
}
