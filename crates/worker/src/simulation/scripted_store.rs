//! The store of the simulation: what waits, who has what, and whether the rules hold.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
    time::Duration,
};

use common::{
    id::EntryId,
    name::{Priority, QueueName},
};
use tokio::time::Instant;

use crate::in_flight::QueueStream;

/// What a slow round of calls may add to a time: two calls of an outage, and the looks at intervals.
const SLACK: Duration = Duration::from_millis(1_300);

/// How a handler behaves.
#[derive(Debug, Clone, Copy)]
pub(super) enum ScriptedHandler {
    Ends(Duration),
    /// It never ends by itself.
    Hangs,
}

/// A job.
#[derive(Debug, Clone)]
pub(super) struct ScriptedJob {
    pub(super) queue: QueueName,
    pub(super) entry: EntryId,
    pub(super) own_lease: Option<Duration>,
    pub(super) handler: ScriptedHandler,
    /// Whether it may go on for a while when it is stopped.
    pub(super) has_grace: bool,
}

impl ScriptedJob {
    /// A job at random; its entry is numbered when it is enqueued.
    pub(super) fn draw(random: impl Fn(Range<u32>) -> u32, queues: &[QueueName; 2]) -> Self {
        let handler = match random(0..20) {
            0 => ScriptedHandler::Hangs,
            1..6 => ScriptedHandler::Ends(Duration::from_millis(random(1_000..14_000).into())),
            _ => ScriptedHandler::Ends(Duration::from_millis(random(0..400).into())),
        };
        let own_lease = (random(0..10) == 0).then(|| Duration::from_millis(random(3_000..6_000).into()));
        Self {
            queue: queues[usize::from(random(0..2) == 1)].clone(),
            entry: EntryId { milliseconds: 0, sequence: 0 },
            own_lease,
            handler,
            has_grace: random(0..2) == 0,
        }
    }

    pub(super) fn stream(&self) -> QueueStream {
        (self.queue.clone(), Priority::default())
    }
}

/// A job that the worker has.
struct PendingJob {
    job: ScriptedJob,
    seen_at: Instant,
    failed_at: Option<Instant>,
}

/// All that the store knows.
pub(super) struct ScriptedStore {
    lease: Duration,
    slots: usize,
    waiting: BTreeMap<QueueName, VecDeque<ScriptedJob>>,
    pending: BTreeMap<EntryId, PendingJob>,
    /// What the worker lost: when, and when a renewal failed last.
    lost: BTreeMap<EntryId, (Instant, Option<Instant>)>,
    /// What runs, and since when.
    running: BTreeMap<EntryId, (QueueName, Instant)>,
    away_until: Option<Instant>,
    /// Whether a call hangs while the store is away, or is refused at once.
    pub(super) hangs: bool,
    settled: BTreeSet<EntryId>,
    pub(super) enqueued: u64,
    pub(super) calls: u64,
    pub(super) lost_answers: u64,
    pub(super) losses: u64,
    pub(super) stopped_by_loss: u64,
    pub(super) problems: Vec<String>,
}

impl ScriptedStore {
    pub(super) fn new(lease: Duration, slots: usize) -> Self {
        Self {
            lease,
            slots,
            waiting: BTreeMap::new(),
            pending: BTreeMap::new(),
            lost: BTreeMap::new(),
            running: BTreeMap::new(),
            away_until: None,
            hangs: false,
            settled: BTreeSet::new(),
            enqueued: 0,
            calls: 0,
            lost_answers: 0,
            losses: 0,
            stopped_by_loss: 0,
            problems: Vec::new(),
        }
    }

    pub(super) fn is_away(&self, now: Instant) -> bool {
        self.away_until.is_some_and(|until| now < until)
    }

    pub(super) fn go_away(&mut self, until: Instant, hangs: bool) {
        (self.away_until, self.hangs) = (Some(until), hangs);
    }

    pub(super) fn enqueue(&mut self, mut job: ScriptedJob) {
        self.enqueued += 1;
        job.entry.sequence = self.enqueued;
        self.waiting.entry(job.queue.clone()).or_default().push_back(job);
    }

    pub(super) fn claim(&mut self, queue: &QueueName, max: usize) -> Vec<ScriptedJob> {
        let waiting = self.waiting.entry(queue.clone()).or_default();
        let jobs: Vec<ScriptedJob> = waiting.drain(..max.min(waiting.len())).collect();
        for job in &jobs {
            let pending = PendingJob { job: job.clone(), seen_at: Instant::now(), failed_at: None };
            self.pending.insert(job.entry, pending);
        }
        jobs
    }

    /// What the worker has of a queue.
    pub(super) fn claimed(&self, queue: &QueueName) -> Vec<ScriptedJob> {
        self.pending.values().map(|pending| &pending.job).filter(|job| job.queue == *queue).cloned().collect()
    }

    /// Renews; returns what the worker does not have any more.
    pub(super) fn renew(&mut self, entries: &[EntryId]) -> Vec<EntryId> {
        let mut lost = Vec::new();
        for entry in entries {
            match self.pending.get_mut(entry) {
                Some(pending) => (pending.seen_at, pending.failed_at) = (Instant::now(), None),
                None => lost.push(*entry),
            }
        }
        lost
    }

    pub(super) fn note_failed_renewal(&mut self, entries: &[EntryId]) {
        let now = Some(Instant::now());
        for entry in entries {
            if let Some(pending) = self.pending.get_mut(entry) {
                pending.failed_at = now;
            } else if let Some((_, failed_at)) = self.lost.get_mut(entry) {
                *failed_at = now;
            }
        }
    }

    /// Records an outcome; false if the attempt is not the worker's any more, or was recorded before.
    pub(super) fn settle(&mut self, entry: EntryId) -> bool {
        let is_current = self.pending.remove(&entry).is_some();
        if is_current && !self.settled.insert(entry) {
            self.problems.push(format!("{entry:?} was recorded twice"));
        }
        is_current
    }

    pub(super) fn begin(&mut self, job: &ScriptedJob) {
        if self.running.insert(job.entry, (job.queue.clone(), Instant::now())).is_some() {
            self.problems.push(format!("{:?} runs twice here", job.entry));
        }
    }

    pub(super) fn end(&mut self, job: &ScriptedJob) {
        self.running.remove(&job.entry);
    }

    /// Gives what is silent to others, and with `takes_any` one job more, as a cancel does.
    pub(super) fn reclaim(&mut self, takes_any: bool) {
        let now = Instant::now();
        let lease_of = |job: &ScriptedJob| job.own_lease.map_or(self.lease, |own| own.min(self.lease));
        let mut silent: Vec<EntryId> = Vec::new();
        for (entry, pending) in &self.pending {
            let lease = lease_of(&pending.job);
            if now - pending.seen_at < lease {
                continue;
            }
            silent.push(*entry);
            // After a failure the next try comes a sixth of a lease later
            let is_excused = pending.failed_at.is_some_and(|at| now - at <= lease / 6 + SLACK);
            let has_begun = self.running.get(entry).is_some_and(|(_, since)| now - *since > SLACK);
            if has_begun && !is_excused {
                self.problems.push(format!("{:?} was reclaimed though it could be renewed", pending.job));
            }
        }
        if takes_any {
            silent.extend(self.pending.keys().next().filter(|entry| !silent.contains(entry)).copied());
        }
        for entry in silent {
            let failed_at = self.pending.remove(&entry).and_then(|pending| pending.failed_at);
            self.lost.insert(entry, (now, failed_at));
            self.losses += 1;
        }
    }

    /// Looks whether the rules hold now.
    pub(super) fn check(&mut self, slots_of: impl Fn(&QueueName) -> usize) {
        let mut of_queues: BTreeMap<&QueueName, usize> = BTreeMap::new();
        for (queue, _) in self.running.values() {
            *of_queues.entry(queue).or_default() += 1;
        }
        let is_over = of_queues.iter().any(|(queue, count)| *count > slots_of(queue));
        if is_over || self.running.len() > self.slots {
            self.problems.push(format!("{of_queues:?} run, more than its slots {}", self.slots));
        }
        let now = Instant::now();
        for entry in self.running.keys() {
            let Some((lost_at, failed_at)) = self.lost.get(entry) else { continue };
            let since = failed_at.map_or(*lost_at, |failed_at| failed_at.max(*lost_at));
            if now - since > self.lease / 2 + SLACK {
                self.problems.push(format!("{entry:?} runs on though its entry is lost"));
            }
        }
    }

    /// Every job waits, is the worker's, was recorded or was given to others: and only one of these.
    pub(super) fn check_none_lost(&mut self) {
        let waiting: usize = self.waiting.values().map(VecDeque::len).sum();
        let known = waiting + self.pending.len() + self.settled.len() + self.lost.len();
        if u64::try_from(known) != Ok(self.enqueued) {
            self.problems.push(format!("{known} of {} jobs are known", self.enqueued));
        }
    }

    /// Whether the worker asked more often than its jobs and the time call for.
    pub(super) fn check_pace(&mut self, lasted: Duration) {
        let allowed = 50 + 3 * self.enqueued + 8 * lasted.as_secs();
        if self.calls > allowed {
            self.problems.push(format!("{} calls in {lasted:?} for {} jobs", self.calls, self.enqueued));
        }
    }
}
