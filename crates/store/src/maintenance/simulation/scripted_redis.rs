//! The Redis of the simulation: what is due, who has what, what its scripts do, and whether the rules hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{sync::mpsc::UnboundedSender, time::Instant};

use super::queues;
use crate::{
    connection::{notification::Notification, notifier::SubscriberEvent},
    jobs::duration_millis,
};
use common::{id::EntryId, name::QueueName, time::Millis};

/// The time by Redis's clock when a run begins.
const BEGIN_MS: Millis = 1_800_000_000_000;
const CRON_INTERVAL_MS: Millis = 3_000;
/// `RECENT_MS` of `heal_leases.lua`.
const RECENT_MS: Millis = 10_000;
/// How late something may be that is due.
const MAX_LATE_MS: Millis = 1_500;
/// What healing may take from a time limit: how far the clock was set is known to about a second.
const MAX_EARLY: Duration = Duration::from_secs(3);

/// The attempt of a client that pulls.
#[derive(Debug, Clone)]
pub(super) struct PulledAttempt {
    pub(super) client: u64,
    pub(super) token: u64,
    pub(super) expiry: Millis,
    pub(super) started: Millis,
    pub(super) lease_ms: Millis,
    /// The time limit by Redis's clock, and when it really is over.
    pub(super) deadline: Option<(Millis, Instant)>,
}

/// What a queue-worker has.
#[derive(Debug, Clone)]
pub(super) struct PendingEntry {
    pub(super) worker: String,
    pub(super) delivered_at: Millis,
}

#[derive(Default)]
pub(super) struct ScriptedQueue {
    pub(super) due: BTreeMap<u64, Millis>,
    pub(super) timers: BTreeMap<u64, Millis>,
    pub(super) attempts: BTreeMap<u64, PulledAttempt>,
    pub(super) pending: BTreeMap<EntryId, PendingEntry>,
}

/// What was done, and what went wrong.
#[derive(Debug, Default)]
pub(super) struct MaintenanceFindings {
    pub(super) problems: Vec<String>,
    pub(super) promoted: u64,
    pub(super) timers: u64,
    pub(super) cron_runs: u64,
    pub(super) reclaimed: u64,
    pub(super) expired: u64,
    pub(super) timed_out: u64,
    /// Time limits that ended early.
    pub(super) early_limits: u64,
    pub(super) steps: u64,
    pub(super) outages: u64,
    pub(super) leaders: u64,
}

pub(super) struct ScriptedRedis {
    began: Instant,
    /// By how much its clock was set since.
    offset_ms: Millis,
    pub(super) started_at: Millis,
    leader: Option<(String, Millis)>,
    latest_seen: Option<Millis>,
    pub(super) queues: BTreeMap<QueueName, ScriptedQueue>,
    cron_next: Millis,
    /// Listed workers, until when.
    listed: BTreeMap<String, Millis>,
    pub(super) live_workers: BTreeSet<String>,
    pub(super) live_clients: BTreeSet<u64>,
    subscribers: Vec<UnboundedSender<SubscriberEvent>>,
    last_id: u64,
    /// When nothing goes wrong any more and everything late has been done.
    pub(super) must_be_prompt_from: Option<Instant>,
    pub(super) findings: MaintenanceFindings,
}

impl ScriptedRedis {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            offset_ms: 0,
            started_at: BEGIN_MS - 3_600_000,
            leader: None,
            latest_seen: None,
            queues: queues().into_iter().map(|queue| (queue, ScriptedQueue::default())).collect(),
            cron_next: BEGIN_MS,
            listed: BTreeMap::new(),
            live_workers: BTreeSet::new(),
            live_clients: BTreeSet::new(),
            subscribers: Vec::new(),
            last_id: 0,
            must_be_prompt_from: None,
            findings: MaintenanceFindings::default(),
        }
    }

    /// The time by its clock.
    pub(super) fn now(&self) -> Millis {
        BEGIN_MS + self.real_ms() + self.offset_ms
    }

    /// The time by a clock that nobody sets.
    pub(super) fn unset_now(&self) -> Millis {
        BEGIN_MS + self.real_ms()
    }

    fn real_ms(&self) -> Millis {
        duration_millis(self.began.elapsed()).cast_signed()
    }

    pub(super) fn set_clock(&mut self, by_ms: Millis) {
        self.offset_ms += by_ms;
        self.findings.steps += 1;
    }

    fn problem(&mut self, text: String) {
        self.findings.problems.push(text);
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn subscribe(&mut self, sender: UnboundedSender<SubscriberEvent>) {
        self.subscribers.retain(|known| !known.is_closed());
        self.subscribers.push(sender);
    }

    pub(super) fn publish(&self, event: impl Fn() -> SubscriberEvent) {
        for subscriber in &self.subscribers {
            let _ = subscriber.send(event());
        }
    }

    /// `acquire_leadership.lua`.
    pub(super) fn acquire_leadership(
        &mut self,
        id: &str,
        lease_ms: Millis,
        expected: Option<Millis>,
    ) -> (bool, Millis, Millis) {
        let (now, seen) = (self.now(), self.latest_seen);
        match &mut self.leader {
            Some((leader, expires_at)) if *expires_at > now && leader != id => {
                *expires_at = (*expires_at).min(now + lease_ms);
                return (false, 0, seen.unwrap_or(0));
            }
            Some((leader, _)) if leader == id => {}
            _ => self.findings.leaders += 1,
        }
        self.leader = Some((id.to_owned(), now + lease_ms));
        if expected.is_some_and(|expected| (now - expected).abs() <= 1_000) && seen.is_none_or(|seen| now > seen) {
            self.latest_seen = Some(now);
        }
        (true, seen.map_or(0, |seen| now - seen), seen.unwrap_or(0))
    }

    pub(super) fn resign_leadership(&mut self, id: &str) {
        self.leader.take_if(|(leader, _)| leader == id);
    }

    /// Adds a job that is due then, or a timer; `is_told` if the leader hears of it.
    pub(super) fn add_due(&mut self, queue: &QueueName, is_timer: bool, after_ms: Millis, is_told: bool) {
        let (at, id) = (self.now() + after_ms, self.next_id());
        let stored = self.queues.get_mut(queue).expect("a known queue");
        let set = if is_timer { &mut stored.timers } else { &mut stored.due };
        set.insert(id, at);
        if is_told && set.values().all(|other| *other >= at) {
            self.tell_due(queue, at);
        }
    }

    pub(super) fn tell_due(&self, queue: &QueueName, at: Millis) {
        let payload = Notification::DueAt(queue.clone(), at).encode().into_bytes();
        self.publish(|| SubscriberEvent::Message { channel: "notifications".into(), payload: payload.clone() });
    }

    pub(super) fn first_cron_run(&self) -> Millis {
        self.cron_next
    }

    pub(super) fn promote(&mut self, queue: &QueueName, estimated_now: Millis) {
        let now = self.now().min(estimated_now);
        let due = take_due(&mut self.queues.get_mut(queue).expect("a known queue").due, now);
        self.findings.promoted += u64::try_from(due.len()).expect("few");
        self.note_late("a due job", &due);
    }

    pub(super) fn run_timers(&mut self, queue: &QueueName) {
        let now = self.now();
        let due = take_due(&mut self.queues.get_mut(queue).expect("a known queue").timers, now);
        self.findings.timers += u64::try_from(due.len()).expect("few");
        self.note_late("a timer", &due);
    }

    pub(super) fn fire_cron(&mut self) {
        let (now, at) = (self.now(), self.cron_next);
        if at <= now {
            self.cron_next = (now / CRON_INTERVAL_MS + 1) * CRON_INTERVAL_MS;
            self.findings.cron_runs += 1;
            self.note_late("a cron run", &[at]);
        }
    }

    fn note_late(&mut self, what: &str, due: &[Millis]) {
        let must_be_prompt = self.must_be_prompt_from.is_some_and(|from| Instant::now() >= from);
        let late_ms = self.now() - due.iter().min().copied().unwrap_or(Millis::MAX);
        if must_be_prompt && late_ms > MAX_LATE_MS {
            self.problem(format!("{what} is {late_ms} ms late"));
        }
    }

    /// Settles an attempt, as `worker_lost` and `fail` do with the fence of an expired lease.
    pub(super) fn settle_expired(&mut self, queue: &QueueName, id: u64, token: u64, now: Millis) {
        let redis_now = self.now();
        let stored = self.queues.get_mut(queue).expect("a known queue");
        let is_current = |attempt: &&PulledAttempt| attempt.token == token && attempt.expiry <= redis_now;
        let Some(attempt) = stored.attempts.get(&id).filter(is_current).cloned() else { return };
        stored.attempts.remove(&id);
        if let Some((deadline, ends_at)) = attempt.deadline.filter(|(deadline, _)| *deadline <= now) {
            self.findings.timed_out += 1;
            let left = ends_at.saturating_duration_since(Instant::now());
            if left > MAX_EARLY {
                self.findings.early_limits += 1;
                self.problem(format!("a time limit ended {left:?} early, by the clock at {deadline}: {attempt:?}"));
            }
            return;
        }
        self.findings.expired += 1;
        if self.live_clients.contains(&attempt.client) {
            self.problem(format!("the lease of a live client ended early: {attempt:?}, now {redis_now}"));
        }
    }

    /// Takes an entry from a queue-worker, with its fence.
    pub(super) fn take_from_worker(&mut self, queue: &QueueName, worker: &str, entry: EntryId, lease: Duration) {
        let (now, lease_ms) = (self.now(), duration_millis(lease).cast_signed());
        let stored = self.queues.get_mut(queue).expect("a known queue");
        let is_idle = |pending: &PendingEntry| pending.worker == worker && now - pending.delivered_at >= lease_ms;
        if !stored.pending.get(&entry).is_some_and(is_idle) {
            return;
        }
        stored.pending.remove(&entry);
        self.findings.reclaimed += 1;
        if self.live_workers.contains(worker) {
            self.problem(format!("a job of the live worker {worker} was reclaimed"));
        }
    }

    /// `heal_leases.lua`.
    pub(super) fn move_leases(&mut self, step_ms: Millis) {
        let now = self.now();
        for attempt in self.queues.values_mut().flat_map(|queue| queue.attempts.values_mut()) {
            let mut shift_ms = 0;
            if step_ms > 0 {
                if attempt.started <= now - step_ms + 1_000 {
                    shift_ms = step_ms;
                }
                if shift_ms > 0 && attempt.expiry <= now - step_ms + attempt.lease_ms + 1_000 {
                    attempt.expiry += step_ms;
                }
            } else if attempt.started > now {
                shift_ms = if step_ms < 0 { step_ms } else { now - attempt.started };
            } else if attempt.started < now - RECENT_MS {
                shift_ms = step_ms;
            }
            attempt.expiry = attempt.expiry.min(now + attempt.lease_ms);
            if let Some((deadline, _)) = &mut attempt.deadline {
                *deadline += shift_ms;
                attempt.expiry = attempt.expiry.min(*deadline);
            }
            attempt.started = (attempt.started + shift_ms).clamp(0, now);
        }
    }

    /// `heal_clock_set_back` in `clock_steps.rs`.
    pub(super) fn heal_clock_set_back(&mut self) {
        self.move_leases(0);
        let now = self.now();
        for pending in self.queues.values_mut().flat_map(|queue| queue.pending.values_mut()) {
            // `heal_pending.lua`
            pending.delivered_at = pending.delivered_at.min(now);
        }
        self.cron_next = self.cron_next.min((now / CRON_INTERVAL_MS + 1) * CRON_INTERVAL_MS);
        self.latest_seen = Some(now);
    }

    /// `list_worker.lua`.
    pub(super) fn report(&mut self, worker: &str, ttl_ms: Millis) {
        let now = self.now();
        let latest = now + ttl_ms.max(60_000);
        self.listed.values_mut().for_each(|until| *until = latest.min(*until));
        self.listed.retain(|_, until| *until > now);
        self.listed.insert(worker.to_owned(), now + ttl_ms);
    }

    pub(super) fn listed_workers(&self) -> Vec<(String, Millis)> {
        self.listed.iter().map(|(worker, until)| (worker.clone(), *until)).collect()
    }

    /// What is left that should be done by now.
    pub(super) fn left_undone(&self) -> Vec<String> {
        let latest = self.now() - MAX_LATE_MS;
        let mut left = Vec::new();
        for (name, queue) in &self.queues {
            let is_late = |(_, at): &(&u64, &Millis)| **at <= latest;
            let late = queue.due.iter().chain(&queue.timers).filter(is_late).count();
            let dead = queue.pending.values().filter(|pending| !self.live_workers.contains(&pending.worker)).count();
            let gone = queue.attempts.values().filter(|attempt| !self.live_clients.contains(&attempt.client)).count();
            if late + dead + gone > 0 {
                left.push(format!("{name}: {late} are due, dead workers have {dead} jobs and dead clients {gone}"));
            }
        }
        if self.cron_next <= latest || self.cron_next > self.now() + CRON_INTERVAL_MS {
            left.push(format!("the next cron run is {} ms away", self.cron_next - self.now()));
        }
        left
    }
}

fn take_due(set: &mut BTreeMap<u64, Millis>, now: Millis) -> Vec<Millis> {
    let due: Vec<Millis> = set.values().copied().filter(|at| *at <= now).collect();
    set.retain(|_, at| *at > now);
    due
}

impl MaintenanceFindings {
    /// Adds what another run did.
    pub(super) fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.promoted, other.promoted),
            (&mut self.timers, other.timers),
            (&mut self.cron_runs, other.cron_runs),
            (&mut self.reclaimed, other.reclaimed),
            (&mut self.expired, other.expired),
            (&mut self.timed_out, other.timed_out),
            (&mut self.early_limits, other.early_limits),
            (&mut self.steps, other.steps),
            (&mut self.outages, other.outages),
            (&mut self.leaders, other.leaders),
        ] {
            *sum += more;
        }
    }
}
