//! Runs the parts of a worker that decide (slots, what to ask next, leases, what stops a handler) against a scripted store,
//! thousands of times, each time with another seed. The clock stands still unless all tasks wait, so a minute takes
//! milliseconds, and the same seed gives the same run.
//!
//! The store is slow, loses answers, is away for a while, takes jobs away as a cancel or a step of its clock does, and gives
//! jobs with an expired lease to others. The loops around the parts are written here again, because those of the worker talk
//! to a real Redis: `claim_loop.rs` stands for `claim/`, `renew` for `lease_renewal.rs`.

mod claim_loop;
mod scripted_store;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::name::QueueName;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::scripted_store::{ScriptedHandler, ScriptedJob, ScriptedStore};
use crate::{
    attempt::{HandlerEnd, HandlerStops, StopReason},
    in_flight::InFlightJobs,
    lease_renewal::{note_renewed, renewal_pause},
    slots::{Permit, Slots},
    wakeup::Wakeup,
};

/// How many runs a test does.
const SEEDS: u64 = 2_000;
/// The lease of the worker.
const LEASE: Duration = Duration::from_secs(6);
/// Time limit of an attempt.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(15);
/// How long a stopped handler may go on.
const STOP_GRACE: Duration = Duration::from_millis(200);
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

/// A mistake of the worker, to see that the simulation notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// It starts jobs without permits.
    NoPermits,
    /// It renews when half a lease is over, and a failed renewal waits as long.
    RenewsLate,
    /// It does not stop an attempt whose entry is lost.
    IgnoresLoss,
    /// It does not wait after an error.
    Spins,
    /// It renews what it recovers no earlier than what it just claimed.
    RecoversSilently,
    /// Its handlers do not hear of the end.
    HandlersStay,
}

/// One run.
struct World {
    flaw: Flaw,
    rng: Mutex<StdRng>,
    store: Mutex<ScriptedStore>,
    arrived: Notify,
    in_flight: InFlightJobs,
    slots: Slots,
    wakeup: Wakeup,
    attempts: TaskTracker,
    stop: CancellationToken,
    hard_shutdown: CancellationToken,
    stop_renewing: CancellationToken,
}

/// What a run did.
struct RunReport {
    problems: Vec<String>,
    jobs: u64,
    calls: u64,
    lasted: Duration,
    lost_answers: u64,
    losses: u64,
    stopped_by_loss: u64,
}

fn queues() -> [QueueName; 2] {
    ["a", "b"].map(|name| name.parse().expect("a name"))
}

impl World {
    fn store(&self) -> MutexGuard<'_, ScriptedStore> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chance(&self, percent: u32) -> bool {
        self.random(0..100) < percent
    }

    fn random(&self, range: std::ops::Range<u32>) -> u32 {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).random_range(range)
    }

    async fn sleep(&self, range: std::ops::Range<u32>) {
        tokio::time::sleep(Duration::from_millis(self.random(range).into())).await;
    }

    /// A call of the store: none if it fails. It may have had its effect then.
    async fn call<T>(&self, effect: impl FnOnce(&mut ScriptedStore) -> T) -> Option<T> {
        self.store().calls += 1;
        self.sleep(0..10).await;
        if self.store().is_away(Instant::now()) {
            // A connection that is refused fails at once, one that hangs does not
            let hangs = self.store().hangs;
            self.sleep(if hangs { 100..500 } else { 1..3 }).await;
            return None;
        }
        let answer = effect(&mut self.store());
        self.sleep(0..10).await;
        if self.chance(3) {
            self.store().lost_answers += 1;
            // Often the connection is gone, and Redis with it
            if self.chance(40) && !self.stop.is_cancelled() {
                self.lose_store();
            }
            return None;
        }
        Some(answer)
    }

    fn lose_store(&self) {
        let (lasts, hangs) = (Duration::from_millis(self.random(50..8_000).into()), self.chance(50));
        self.store().go_away(Instant::now() + lasts, hangs);
    }

    /// Starts an attempt; without a permit it waits for one first.
    fn start(self: &Arc<Self>, job: ScriptedJob, permit: Option<Permit>) {
        let has_permit = permit.is_some();
        let stream = job.stream();
        let Some(stale) = self.in_flight.insert_entry(&stream, job.entry, job.own_lease, has_permit) else { return };
        let world = self.clone();
        self.attempts.spawn(async move { world.attempt(job, permit, stale).await });
    }

    async fn attempt(self: Arc<Self>, job: ScriptedJob, permit: Option<Permit>, stale: CancellationToken) {
        let (stream, queue) = (job.stream(), job.queue.clone());
        let is_exempt = self.flaw == Flaw::NoPermits;
        let permit = match permit {
            None if !is_exempt => tokio::select! {
                biased;
                () = stale.cancelled() => None,
                () = self.hard_shutdown.cancelled() => None,
                permit = self.slots.acquire(&queue) => permit,
            },
            permit => permit,
        };
        self.in_flight.begin_entry(&stream, job.entry);
        let reason = if stale.is_cancelled() { Some(StopReason::Stale) } else { self.handle(&job, &stale).await };
        match reason {
            Some(StopReason::Stale) => self.store().stopped_by_loss += 1,
            _ => self.record(&job, &stale).await,
        }
        self.in_flight.remove(&queue, stream.1, job.entry);
        if permit.is_some_and(|permit| self.slots.return_permit(&queue, permit)) {
            self.wakeup.wake_for(&queue);
        }
    }

    /// Runs a handler; says what stopped it, if something did.
    async fn handle(&self, job: &ScriptedJob, stale: &CancellationToken) -> Option<StopReason> {
        if self.hard_shutdown.is_cancelled() {
            return Some(StopReason::HardShutdown);
        }
        let (stopped, deaf) = (CancellationToken::new(), CancellationToken::new());
        let hard_shutdown = if self.flaw == Flaw::HandlersStay { &deaf } else { &self.hard_shutdown };
        let stops = HandlerStops { stale, limit: Some(ATTEMPT_LIMIT), hard_shutdown, stopped: &stopped };
        let handler = async {
            match job.handler {
                ScriptedHandler::Ends(after) => tokio::time::sleep(after).await,
                ScriptedHandler::Hangs => std::future::pending().await,
            }
        };
        self.store().begin(job);
        let end = stops.run(handler, || if job.has_grace { STOP_GRACE } else { Duration::ZERO }).await;
        self.store().end(job);
        match end {
            HandlerEnd::Finished(()) => None,
            HandlerEnd::Stopped(reason, _) => Some(reason),
        }
    }

    /// Records an outcome until it is recorded, or until the attempt is not ours any more.
    async fn record(&self, job: &ScriptedJob, stale: &CancellationToken) {
        while self.call(|store| store.settle(job.entry)).await.is_none() {
            let pause = tokio::time::sleep(Duration::from_millis(200));
            if stale.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    /// Renews leases until it is stopped.
    async fn renew(&self) {
        loop {
            let late = if self.flaw == Flaw::RenewsLate { LEASE / 2 } else { Duration::ZERO };
            tokio::select! {
                biased;
                () = self.stop_renewing.cancelled() => return,
                () = self.in_flight.renewal_needed.notified() => {}
                () = tokio::time::sleep(renewal_pause(&self.in_flight, LEASE) + late) => {}
            }
            let due = self.in_flight.due_for_renewal(LEASE, |_, _| ATTEMPT_LIMIT + STOP_GRACE);
            // In order, so that a seed gives the same run again
            for (stream, mut renewals) in due.into_iter().collect::<BTreeMap<_, _>>() {
                renewals.sort_unstable_by_key(|(entry, ..)| *entry);
                let entries: Vec<_> = renewals.iter().map(|(entry, ..)| *entry).collect();
                match self.call(|store| store.renew(&entries)).await {
                    Some(_) if self.flaw == Flaw::IgnoresLoss => self.in_flight.mark_renewed(&stream, &renewals),
                    Some(lost) => note_renewed(&self.in_flight, &stream, &renewals, &lost),
                    None => self.store().note_failed_renewal(&entries),
                }
            }
        }
    }

    /// Another process: reclaims what is silent, takes jobs away, and looks whether the rules hold.
    async fn reap(&self) {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let takes_any = self.chance(1);
            let is_away = self.store().is_away(Instant::now());
            let slots = |queue: &QueueName| self.slots.total(queue);
            self.store().check(slots);
            if !is_away {
                self.store().reclaim(takes_any);
            }
        }
    }

    /// Clients that enqueue, and an outage now and then, until the worker stops.
    async fn disturb(&self) {
        loop {
            self.sleep(1..800).await;
            if self.stop.is_cancelled() {
                return;
            }
            for _ in 0..self.random(1..6) {
                let job = ScriptedJob::draw(|range| self.random(range), &queues());
                self.store().enqueue(job);
            }
            self.arrived.notify_waiters();
            if self.chance(5) {
                self.lose_store();
            }
        }
    }
}

/// A worker, and for how long it runs.
fn world(seed: u64, flaw: Flaw) -> (Arc<World>, usize, Duration) {
    let [first, _] = queues();
    let mut rng = StdRng::seed_from_u64(seed);
    let lasts = Duration::from_millis(rng.random_range(2_000..25_000));
    let total = rng.random_range(1..6);
    let limits = BTreeMap::from([(first, rng.random_range(1..4))]);
    let world = World {
        flaw,
        rng: Mutex::new(rng),
        store: Mutex::new(ScriptedStore::new(LEASE, total)),
        arrived: Notify::new(),
        in_flight: InFlightJobs::default(),
        slots: Slots::new(total, &limits),
        wakeup: Wakeup::default(),
        attempts: TaskTracker::new(),
        stop: CancellationToken::new(),
        hard_shutdown: CancellationToken::new(),
        stop_renewing: CancellationToken::new(),
    };
    (Arc::new(world), total, lasts)
}

async fn run(seed: u64, flaw: Flaw) -> RunReport {
    let (world, total, lasts) = world(seed, flaw);
    let began = Instant::now();
    let [one, two, three, four] = std::array::from_fn(|_| world.clone());
    let disturbing = tokio::spawn(async move { one.disturb().await });
    let reaping = tokio::spawn(async move { two.reap().await });
    let renewing = tokio::spawn(async move { three.renew().await });
    let claiming = tokio::spawn(async move { claim_loop::run(&four).await });
    tokio::time::sleep(lasts).await;
    world.stop.cancel();
    world.wakeup.wake();
    let end = async {
        claiming.await.expect("no panic");
        world.attempts.close();
        if tokio::time::timeout(SHUTDOWN_GRACE, world.attempts.wait()).await.is_err() {
            world.hard_shutdown.cancel();
            world.attempts.wait().await;
        }
        world.stop_renewing.cancel();
        renewing.await.expect("no panic");
    };
    // An outage lasts up to eight seconds
    if tokio::time::timeout(SHUTDOWN_GRACE + Duration::from_secs(12), end).await.is_err() {
        world.store().problems.push("the worker does not stop".into());
    }
    disturbing.await.expect("no panic");
    reaping.abort();
    report(&world, total, began.elapsed())
}

fn report(world: &World, total: usize, lasted: Duration) -> RunReport {
    let free = std::iter::from_fn(|| world.slots.try_acquire()).take(100).collect::<Vec<_>>().len();
    let mut store = world.store();
    if store.problems.is_empty() && (free, world.in_flight.len()) != (total, 0) {
        let left = format!("{free} of {total} slots are free, {} jobs are left", world.in_flight.len());
        store.problems.push(left);
    }
    store.check_none_lost();
    store.check_pace(lasted);
    RunReport {
        problems: std::mem::take(&mut store.problems),
        jobs: store.enqueued,
        calls: store.calls,
        lasted,
        lost_answers: store.lost_answers,
        losses: store.losses,
        stopped_by_loss: store.stopped_by_loss,
    }
}

/// Runs one seed on a clock of its own.
fn simulate(seed: u64, flaw: Flaw) -> RunReport {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(run(seed, flaw))
}

#[test]
fn no_seed_makes_a_worker_break_a_rule() {
    let (mut jobs, mut lost_answers, mut losses, mut stopped, mut seconds, mut calls) = (0, 0, 0, 0, 0, 0);
    for seed in 0..SEEDS {
        let report = simulate(seed, Flaw::None);
        assert!(report.problems.is_empty(), "seed {seed}: {:#?}", report.problems);
        jobs += report.jobs;
        lost_answers += report.lost_answers;
        losses += report.losses;
        stopped += report.stopped_by_loss;
        seconds += report.lasted.as_secs();
        calls += report.calls;
    }
    println!(
        "{jobs} jobs, {seconds} s, {calls} calls, {lost_answers} lost answers, {losses} losses, {stopped} stopped"
    );
    assert!(lost_answers > SEEDS && stopped > SEEDS, "{lost_answers} answers were lost, {stopped} handlers stopped");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let [one, two] = [simulate(seed, Flaw::None), simulate(seed, Flaw::None)];
        assert_eq!((one.jobs, one.calls, one.lasted), (two.jobs, two.calls, two.lasted), "seed {seed}");
    }
}

#[test]
fn every_flaw_breaks_a_rule() {
    for (flaw, rule) in [
        (Flaw::NoPermits, "more than its slots"),
        (Flaw::RenewsLate, "reclaimed though it could be renewed"),
        (Flaw::IgnoresLoss, "runs on though its entry is lost"),
        (Flaw::Spins, "calls in"),
        (Flaw::RecoversSilently, "reclaimed though it could be renewed"),
        (Flaw::HandlersStay, "does not stop"),
    ] {
        let is_found = |seed: u64| simulate(seed, flaw).problems.iter().any(|problem| problem.contains(rule));
        assert!((0..SEEDS).any(is_found), "{flaw:?}: no seed shows \"{rule}\"");
    }
}
