//! What jobs should do, without Redis: plain data and no time.

use std::collections::{BTreeMap, BTreeSet};

use common::id::JobId;
use model::job::{Advice, Event, State};
use store::jobs::Stats;

use super::plan::{Spec, Start};

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own that is compared")]
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) spec: Spec,
    pub(super) state: State,
    pub(super) attempts: u32,
    pub(super) failures: u32,
    pub(super) crashes: u32,
    /// The attempt that is shown once it is over.
    pub(super) last_attempt: u32,
    pub(super) has_record: bool,
    pub(super) is_dead_letter: bool,
    /// A dead letter that was deleted.
    pub(super) is_gone: bool,
    /// Whether the attempt that runs has a lease of its own.
    pub(super) has_lease: bool,
}

/// What becomes of a job that is enqueued.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Stored(State),
    Duplicate(JobId),
    Ignored(JobId),
}

/// The crash budget that the test sets.
pub(super) const CRASH_BUDGET: u32 = 1;

#[derive(Default)]
pub(super) struct World {
    pub(super) jobs: Vec<Job>,
    /// Entries by priority, in order of arrival; those that run are among them.
    pub(super) streams: BTreeMap<i64, Vec<usize>>,
    pub(super) lanes: BTreeMap<&'static str, Vec<usize>>,
    pub(super) held: BTreeMap<&'static str, BTreeSet<usize>>,
    pub(super) limits: BTreeMap<&'static str, u32>,
    pub(super) holders: BTreeMap<u8, usize>,
    pub(super) is_paused: bool,
    pub(super) totals: Stats,
}

impl World {
    /// What a job will do; `id` is asked for only when it is stored.
    pub(super) fn enqueue(&mut self, spec: &Spec, id: Option<JobId>) -> Outcome {
        if let Some(chosen) = spec.id
            && let Some(job) = self.jobs.iter().find(|job| job.spec.id == Some(chosen) && !job.is_gone)
        {
            return Outcome::Duplicate(job.id);
        }
        let (mut start, mut replaced) = (spec.start, None);
        if let Some((args, policy)) = spec.unique
            && let Some(older) = self.holders.get(&args).copied().filter(|older| !self.jobs[*older].state.is_terminal())
        {
            let (state, older_id) = (self.jobs[older].state, self.jobs[older].id);
            match policy {
                "reject" => return Outcome::Duplicate(older_id),
                "ignore" => return Outcome::Ignored(older_id),
                _ if state == State::Active => return Outcome::Duplicate(older_id),
                _ => {}
            }
            if policy == "replace_except_schedule" && state == State::Scheduled && start == Start::Now {
                start = Start::Scheduled;
            }
            // It is there before the older one goes
            replaced = id.map(|_| older);
        }
        let state = match start {
            Start::Now => State::Available,
            Start::Scheduled => State::Scheduled,
            Start::Pending => State::Pending,
        };
        if let Some(id) = id {
            self.store(spec.clone(), id, state);
        }
        if let Some(older) = replaced {
            self.cancel(older);
        }
        Outcome::Stored(state)
    }

    fn store(&mut self, spec: Spec, id: JobId, state: State) {
        let index = self.jobs.len();
        if let Some((args, _)) = spec.unique {
            self.holders.insert(args, index);
        }
        if let Some((key, concurrency)) = spec.limit {
            self.limits.insert(key, concurrency);
        }
        let has_record = spec.id.is_some()
            || spec.unique.is_some()
            || spec.limit.is_some()
            || spec.deadline
            || state != State::Available;
        let limit = spec.limit;
        self.jobs.push(Job {
            id,
            spec,
            state,
            attempts: 0,
            failures: 0,
            crashes: 0,
            last_attempt: 0,
            has_record,
            is_dead_letter: false,
            is_gone: false,
            has_lease: false,
        });
        if state == State::Available {
            self.make_available(index);
        }
        if let Some((key, _)) = limit {
            self.admit(key);
        }
    }

    fn step(&mut self, index: usize, event: Event) {
        let job = &mut self.jobs[index];
        job.state = job.state.after(event).expect("the test only does what a state allows");
    }

    /// Into its stream, or behind the others with its key.
    fn make_available(&mut self, index: usize) {
        let Some((key, _)) = self.jobs[index].spec.limit else { return self.add_to_stream(index) };
        let (jobs, priority) = (&self.jobs, self.jobs[index].spec.priority);
        let lane = self.lanes.entry(key).or_default();
        let place = lane.iter().position(|other| jobs[*other].spec.priority < priority).unwrap_or(lane.len());
        lane.insert(place, index);
        self.admit(key);
    }

    fn add_to_stream(&mut self, index: usize) {
        self.streams.entry(self.jobs[index].spec.priority).or_default().push(index);
    }

    fn admit(&mut self, key: &'static str) {
        let most = self.limits.get(key).map_or(usize::MAX, |most| usize::try_from(*most).unwrap_or(usize::MAX));
        while self.held.entry(key).or_default().len() < most
            && let Some(lane) = self.lanes.get_mut(key)
            && !lane.is_empty()
        {
            let first = lane.remove(0);
            self.held.entry(key).or_default().insert(first);
            self.add_to_stream(first);
        }
    }

    /// Takes a job out of wherever it is, and lets the next with its key in.
    fn take_out(&mut self, index: usize) {
        for entries in self.streams.values_mut().chain(self.lanes.values_mut()) {
            entries.retain(|other| *other != index);
        }
        self.jobs[index].has_lease = false;
        if let Some((key, _)) = self.jobs[index].spec.limit {
            self.held.entry(key).or_default().remove(&index);
        }
    }

    fn end(&mut self, index: usize, event: Event) {
        self.step(index, event);
        self.jobs[index].has_record = false;
        match self.jobs[index].state {
            State::Completed => self.totals.completed += 1,
            State::Cancelled => self.totals.cancelled += 1,
            _ => self.totals.discarded += 1,
        }
        self.take_out(index);
        if let Some((args, _)) = self.jobs[index].spec.unique
            && self.holders.get(&args) == Some(&index)
        {
            self.holders.remove(&args);
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
            waiting.filter(|index| self.jobs[*index].state == State::Available).take(most).collect();
        for index in &claimed {
            self.step(*index, Event::Claim);
            self.jobs[*index].has_lease = is_pull || self.jobs[*index].spec.own_lease;
        }
        claimed
    }

    pub(super) fn complete(&mut self, index: usize) {
        self.jobs[index].last_attempt = self.jobs[index].attempts + 1;
        self.end(index, Event::Succeed);
    }

    pub(super) fn fail(&mut self, index: usize, advice: Advice) {
        let job = &mut self.jobs[index];
        (job.attempts, job.failures) = (job.attempts + 1, job.failures + 1);
        let is_last = matches!(advice, Advice::Never | Advice::Discard);
        if job.failures >= job.spec.max_attempts || is_last {
            self.discard(index);
            self.jobs[index].is_dead_letter &= advice != Advice::Discard;
            return;
        }
        job.has_record = true;
        self.step(index, Event::Retry);
        self.totals.retried += 1;
        self.take_out(index);
        if let Some((key, _)) = self.jobs[index].spec.limit {
            self.admit(key);
        }
    }

    fn discard(&mut self, index: usize) {
        let job = &mut self.jobs[index];
        (job.last_attempt, job.is_dead_letter) = (job.attempts, job.spec.dead_letter);
        self.end(index, Event::Discard);
    }

    pub(super) fn crash(&mut self, index: usize) {
        let job = &mut self.jobs[index];
        (job.attempts, job.crashes) = (job.attempts + 1, job.crashes + 1);
        if job.crashes > CRASH_BUDGET { self.discard(index) } else { self.requeue(index) }
    }

    /// Back to the end of its stream. It keeps its place among those with its key.
    pub(super) fn requeue(&mut self, index: usize) {
        self.step(index, Event::Release);
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
        job.last_attempt = job.attempts + u32::from(job.state == State::Active);
        self.end(index, Event::Cancel);
        true
    }

    pub(super) fn due(&mut self, index: usize) {
        self.step(index, Event::Due);
        self.make_available(index);
    }

    pub(super) fn activate(&mut self, index: usize) -> bool {
        if self.jobs[index].state != State::Pending {
            return false;
        }
        self.step(index, Event::Activate);
        self.make_available(index);
        true
    }

    pub(super) fn redrive(&mut self, index: usize) -> bool {
        if !self.jobs[index].is_dead_letter {
            return false;
        }
        self.step(index, Event::Redrive);
        let job = &mut self.jobs[index];
        (job.is_dead_letter, job.has_record) = (false, true);
        (job.attempts, job.failures, job.crashes) = (0, 0, 0);
        self.make_available(index);
        true
    }

    pub(super) fn delete_dead_letter(&mut self, index: usize) -> bool {
        let job = &mut self.jobs[index];
        let was_one = std::mem::take(&mut job.is_dead_letter);
        job.is_gone |= was_one;
        was_one
    }

    pub(super) fn purge(&mut self, states: &[State]) -> usize {
        let mut cancelled = 0;
        // What is let in meanwhile is in the same state as before
        while let Some(index) = self.jobs.iter().position(|job| states.contains(&job.state)) {
            cancelled += usize::from(self.cancel(index));
        }
        cancelled
    }

    pub(super) fn stats(&self) -> Stats {
        let count = |states: &[State]| {
            u64::try_from(self.jobs.iter().filter(|job| states.contains(&job.state)).count()).expect("few")
        };
        Stats {
            available: count(&[State::Available]),
            active: count(&[State::Active]),
            waiting: count(&[State::Scheduled, State::Retryable]),
            pending: count(&[State::Pending]),
            dead: u64::try_from(self.jobs.iter().filter(|job| job.is_dead_letter).count()).expect("few"),
            ..self.totals
        }
    }
}
