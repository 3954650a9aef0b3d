//! Runs the loops of maintenance, as they are, against a scripted Redis: two processes that take turns as leader, queue-workers,
//! clients that pull and clients that schedule, hundreds of times, each time with another seed. The clock stands still unless all
//! tasks wait, so a minute takes milliseconds. A seed gives the same workload and the same faults; which of two tasks that are
//! ready goes first is left to tokio.
//!
//! Redis is away, hangs, is slow, loses answers, restarts, and its clock is set both ways, also there and back. Queues are
//! damaged, notifications are lost, and processes stop, die, start and stand still. `scripted_redis.rs` stands for the scripts,
//! and says when a rule is broken.

mod actors;
mod scripted_process;
mod scripted_redis;

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use redis::{ErrorKind, RedisError};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{
    scripted_process::ScriptedProcess,
    scripted_redis::{MaintenanceFindings, ScriptedRedis},
};
use super::leader;
use crate::{StoreError, StoreResult, jobs::Consumer};
use common::{
    name::QueueName,
    settings::{MaintenanceSettings, Settings},
};

/// How many runs a test does.
const SEEDS: u64 = 1_000;
/// The lease of jobs.
const LEASE: Duration = Duration::from_secs(12);
const LEADER_LEASE: Duration = Duration::from_millis(1_200);
/// How long a call waits for an answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);
/// After the last fault everything late is done within that.
const CATCH_UP_TIME: Duration = Duration::from_secs(8);
/// For how long it is seen then that everything is done when it is due.
const PROMPT_TIME: Duration = Duration::from_secs(4);
/// After the last fault nothing is left of dead workers within that: the longest step back, a lease of grace, a lease.
const SETTLE_TIME: Duration = Duration::from_secs(45);

/// A mistake of maintenance, to see that the simulation notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MaintenanceFlaw {
    None,
    /// Silence counts at once after an outage.
    NoGrace,
    /// It goes by a clock that is not Redis's.
    OwnClock,
    /// It gives no attempt its time back after a step of the clock.
    HealsNothing,
    /// It goes on as leader when it has lost the lease.
    KeepsLeading,
}

/// What goes wrong just now.
#[derive(Default)]
struct Trouble {
    away_until: Option<Instant>,
    hangs: bool,
    slow_until: Option<Instant>,
    quiet: bool,
}

/// A process that takes part in maintenance.
struct MaintenanceProcess {
    stop: CancellationToken,
    task: JoinHandle<()>,
    began: Instant,
    frozen_until: Instant,
    calls: u64,
}

/// One run.
struct MaintenanceWorld {
    flaw: MaintenanceFlaw,
    rng: Mutex<StdRng>,
    redis: Mutex<ScriptedRedis>,
    trouble: Mutex<Trouble>,
    processes: Mutex<Vec<MaintenanceProcess>>,
    settings: MaintenanceSettings,
}

fn queues() -> [QueueName; 2] {
    ["a", "b"].map(|name| name.parse().expect("a name"))
}

fn consumer(name: &str) -> Consumer {
    Consumer::parse(name).expect("the name of a queue-worker")
}

fn rng_of(rng: &mut StdRng) -> StdRng {
    StdRng::seed_from_u64(rng.random())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unavailable() -> StoreError {
    StoreError::Unavailable(RedisError::from((ErrorKind::Io, "scripted")))
}

impl MaintenanceWorld {
    fn redis(&self) -> MutexGuard<'_, ScriptedRedis> {
        lock(&self.redis)
    }

    /// Whether nothing goes wrong any more.
    fn is_quiet(&self) -> bool {
        lock(&self.trouble).quiet
    }

    fn is_away(&self) -> bool {
        lock(&self.trouble).away_until.is_some_and(|until| Instant::now() < until)
    }

    fn go_away(&self, lasts: Duration, hangs: bool) {
        let mut trouble = lock(&self.trouble);
        (trouble.away_until, trouble.hangs) = (Some(Instant::now() + lasts), hangs);
        drop(trouble);
        self.redis().findings.outages += 1;
    }

    fn be_slow(&self, lasts: Duration) {
        lock(&self.trouble).slow_until = Some(Instant::now() + lasts);
    }

    fn random(&self, range: Range<u64>) -> u64 {
        lock(&self.rng).random_range(range)
    }

    fn is_queue_damaged(&self) -> bool {
        !self.is_quiet() && self.random(0..30) == 0
    }

    /// A call of Redis. One that fails may have had its effect.
    async fn call<T>(&self, effect: impl FnOnce(&mut ScriptedRedis) -> T) -> StoreResult<T> {
        let is_slow = lock(&self.trouble).slow_until.is_some_and(|until| Instant::now() < until);
        let latency = if is_slow { self.random(20..450) } else { self.random(0..8).saturating_sub(4) };
        if self.is_away() {
            let hangs = lock(&self.trouble).hangs;
            sleep(if hangs { RESPONSE_TIMEOUT } else { Duration::from_millis(latency.max(1)) }).await;
            return Err(unavailable());
        }
        let answer = effect(&mut self.redis());
        if latency > 0 {
            sleep(Duration::from_millis(latency)).await;
        }
        if !self.is_quiet() && self.random(0..200) == 0 {
            sleep(RESPONSE_TIMEOUT).await;
            return Err(unavailable());
        }
        Ok(answer)
    }

    /// A call of a process, which may stand still before and after it.
    async fn call_of<T>(&self, process: usize, effect: impl FnOnce(&mut ScriptedRedis) -> T) -> StoreResult<T> {
        lock(&self.processes)[process].calls += 1;
        let asked = Instant::now();
        self.thaw(process).await;
        let answer = self.call(effect).await;
        self.thaw(process).await;
        if asked.elapsed() > RESPONSE_TIMEOUT { Err(unavailable()) } else { answer }
    }

    async fn thaw(&self, process: usize) {
        let until = lock(&self.processes)[process].frozen_until;
        if until > Instant::now() {
            sleep_until(until).await;
        }
    }

    fn freeze(&self, process: usize, lasts: Duration) {
        lock(&self.processes)[process].frozen_until = Instant::now() + lasts;
    }

    fn start_process(self: &Arc<Self>, number: usize) -> MaintenanceProcess {
        let (stop, process) = (CancellationToken::new(), ScriptedProcess::new(self.clone(), number));
        let (world, stopped, now) = (self.clone(), stop.clone(), Instant::now());
        let task = tokio::spawn(async move { leader::lead(&process, &world.settings, &stopped).await });
        MaintenanceProcess { stop, task, began: now, frozen_until: now, calls: 0 }
    }

    /// Stops or kills a process and starts another in its place, if the other one has run for a while: the leases of jobs are
    /// safe from steps of the clock that a process has seen.
    fn restart_process(self: &Arc<Self>, number: usize, is_killed: bool) {
        let mut processes = lock(&self.processes);
        let (old, other) = (&processes[number], &processes[1 - number]);
        if other.began.elapsed() < LEASE || other.frozen_until > Instant::now() {
            return;
        }
        if is_killed {
            old.task.abort();
        } else {
            old.stop.cancel();
        }
        let calls = old.calls;
        processes[number] = MaintenanceProcess { calls, ..self.start_process(number) };
    }
}

fn settings() -> MaintenanceSettings {
    let defaults = Settings::from_sources(None, std::collections::HashMap::new()).expect("the defaults are allowed");
    let sweep_interval = Duration::from_secs(1);
    MaintenanceSettings { leader_lease: LEADER_LEASE, sweep_interval, ..defaults.maintenance }
}

async fn run(seed: u64, flaw: MaintenanceFlaw, settings: MaintenanceSettings) -> MaintenanceFindings {
    let mut rng = StdRng::seed_from_u64(seed);
    let lasts = Duration::from_millis(rng.random_range(4_000..25_000));
    let world = Arc::new(MaintenanceWorld {
        flaw,
        rng: Mutex::new(StdRng::seed_from_u64(rng.random())),
        redis: Mutex::new(ScriptedRedis::new()),
        trouble: Mutex::default(),
        processes: Mutex::default(),
        settings,
    });
    let began = Instant::now();
    let processes = vec![world.start_process(0), world.start_process(1)];
    *lock(&world.processes) = processes;
    let clock = Arc::default();
    let mut actors = tokio::task::JoinSet::new();
    actors.spawn(actors::gateway(world.clone(), Arc::clone(&clock)));
    for _ in 0..2 {
        actors.spawn(actors::queue_workers(world.clone(), rng_of(&mut rng)));
        actors.spawn(actors::pulling_clients(world.clone(), clock.clone(), rng_of(&mut rng)));
    }
    actors.spawn(actors::schedule(world.clone(), rng_of(&mut rng)));
    actors::nemesis(world.clone(), rng_of(&mut rng), began + lasts).await;
    *lock(&world.trouble) = Trouble { quiet: true, ..Trouble::default() };
    let quiet_since = Instant::now();
    world.redis().must_be_prompt_from = Some(quiet_since + CATCH_UP_TIME);
    sleep(CATCH_UP_TIME + PROMPT_TIME).await;
    while quiet_since.elapsed() < SETTLE_TIME && !world.redis().left_undone().is_empty() {
        sleep(Duration::from_secs(1)).await;
    }
    end(&world, began.elapsed()).await;
    actors.shutdown().await;
    std::mem::take(&mut world.redis().findings)
}

/// Looks whether everything is done, and whether the processes stop.
async fn end(world: &MaintenanceWorld, lasted: Duration) {
    let left = world.redis().left_undone();
    if !left.is_empty() {
        world.redis().findings.problems.push(format!("left undone: {left:?}"));
    }
    for number in 0..2 {
        let (calls, task) = {
            let mut processes = lock(&world.processes);
            processes[number].stop.cancel();
            let task = std::mem::replace(&mut processes[number].task, tokio::spawn(async {}));
            (processes[number].calls, task)
        };
        // A leader renews three times in its lease and sweeps once a second; the rest is what is due
        let allowed = 40 * lasted.as_secs();
        if calls > allowed {
            world.redis().findings.problems.push(format!("{calls} calls of process {number} in {lasted:?}"));
        }
        if tokio::time::timeout(RESPONSE_TIMEOUT, task).await.is_err() {
            world.redis().findings.problems.push(format!("process {number} does not stop"));
        }
    }
}

/// Runs one seed on a clock of its own.
fn simulate(seed: u64, flaw: MaintenanceFlaw, settings: &MaintenanceSettings) -> MaintenanceFindings {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(run(seed, flaw, settings.clone()))
}

#[test]
fn no_seed_makes_maintenance_break_a_rule() {
    let settings = settings();
    let simulate_some = |seeds: Range<u64>| {
        let mut all = MaintenanceFindings::default();
        for seed in seeds {
            let mut found = simulate(seed, MaintenanceFlaw::None, &settings);
            // Some steps in a row may do that, so they are counted
            found.problems.retain(|problem| !problem.contains("early, by the clock"));
            assert!(found.problems.is_empty(), "seed {seed}: {:#?}", found.problems);
            all.add(&found);
        }
        all
    };
    let all = std::thread::scope(|scope| {
        let other = scope.spawn(|| simulate_some(SEEDS / 2..SEEDS));
        let mut all = simulate_some(0..SEEDS / 2);
        all.add(&other.join().expect("no rule is broken"));
        all
    });
    println!("{all:?}");
    assert!(all.early_limits <= SEEDS / 200, "time limits end early: {all:?}");
    let rare = [all.reclaimed, all.expired, all.timed_out, all.leaders, all.steps, all.outages];
    assert!(rare.iter().all(|count| *count > SEEDS / 4), "little happened: {all:?}");
}

#[test]
fn every_flaw_breaks_a_rule() {
    let settings = settings();
    for (flaw, rule) in [
        (MaintenanceFlaw::NoGrace, "live"),
        (MaintenanceFlaw::OwnClock, "ms late"),
        (MaintenanceFlaw::HealsNothing, "early, by the clock"),
        (MaintenanceFlaw::KeepsLeading, "acts though another leads"),
    ] {
        let is_found =
            |seed: u64| simulate(seed, flaw, &settings).problems.iter().any(|problem| problem.contains(rule));
        assert!((0..SEEDS).any(is_found), "{flaw:?}: no seed shows \"{rule}\"");
    }
}
