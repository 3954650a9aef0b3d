//! Who else is there in the simulation: queue-workers, clients that pull, clients that schedule, and what breaks things.

use std::{sync::Arc, time::Duration};

use rand::{Rng, rngs::StdRng};
use tokio::{task::JoinSet, time::Instant};

use super::{
    LEASE, MaintenanceWorld, queues, rng_of,
    scripted_redis::{PendingEntry, PulledAttempt},
};
use crate::{
    connection::{
        notifier::SubscriberEvent,
        redis_clock::{READING_INTERVAL, RedisClock},
    },
    jobs::duration_millis,
};
use common::{id::EntryId, name::QueueName, time::Millis};

const LEASE_MS: Millis = 12_000;
/// Longest step of the clock back, and most steps ahead.
const MAX_STEP_MS: Millis = 15_000;

pub(super) async fn sleep(rng: &mut StdRng, range: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(rng.random_range(range))).await;
}

fn any_queue(rng: &mut StdRng) -> QueueName {
    let queues = queues();
    queues[rng.random_range(0..queues.len())].clone()
}

/// Queue-workers, one after the other: each dies at some time, with what it has.
pub(super) async fn queue_workers(world: Arc<MaintenanceWorld>, mut rng: StdRng) {
    loop {
        let name = format!("w-{LEASE_MS}-{}", world.redis().next_id());
        world.redis().live_workers.insert(name.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(report(world.clone(), name.clone()));
        tasks.spawn(renew(world.clone(), name.clone()));
        tasks.spawn(work(world.clone(), name.clone(), rng_of(&mut rng)));
        sleep(&mut rng, 3_000..40_000).await;
        if world.is_quiet() {
            return std::future::pending().await;
        }
        tasks.shutdown().await;
        world.redis().live_workers.remove(&name);
        sleep(&mut rng, 1..3_000).await;
    }
}

async fn report(world: Arc<MaintenanceWorld>, name: String) {
    loop {
        // Lost reports come again
        let _ = world.call(|redis| redis.report(&name, LEASE_MS / 2)).await;
        tokio::time::sleep(LEASE / 6).await;
    }
}

async fn renew(world: Arc<MaintenanceWorld>, name: String) {
    loop {
        tokio::time::sleep(LEASE / 3).await;
        while world
            .call(|redis| {
                let now = redis.now();
                let pending = redis.queues.values_mut().flat_map(|queue| queue.pending.values_mut());
                pending.filter(|entry| entry.worker == name).for_each(|entry| entry.delivered_at = now);
            })
            .await
            .is_err()
        {
            tokio::time::sleep(LEASE / 6).await;
        }
    }
}

/// Claims a job now and then, and ends it later.
async fn work(world: Arc<MaintenanceWorld>, name: String, mut rng: StdRng) {
    let mut running: Vec<(Instant, QueueName, EntryId)> = Vec::new();
    loop {
        sleep(&mut rng, 200..2_500).await;
        let now = Instant::now();
        let ended: Vec<_> = running.extract_if(.., |(ends_at, ..)| *ends_at <= now).collect();
        for (_, queue, entry) in ended {
            while world
                .call(|redis| redis.queues.get_mut(&queue).and_then(|queue| queue.pending.remove(&entry)))
                .await
                .is_err()
            {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
        let (queue, runs) = (any_queue(&mut rng), Duration::from_millis(rng.random_range(10..20_000)));
        if running.len() < 3 && !world.is_away() {
            let mut redis = world.redis();
            let (delivered_at, sequence) = (redis.now(), redis.next_id());
            let entry = EntryId { milliseconds: 0, sequence };
            let pending = PendingEntry { worker: name.clone(), delivered_at };
            redis.queues.get_mut(&queue).expect("a known queue").pending.insert(entry, pending);
            running.push((Instant::now() + runs, queue, entry));
        }
    }
}

/// Reads Redis's clock for a gateway.
pub(super) async fn gateway(world: Arc<MaintenanceWorld>, clock: Arc<RedisClock>) {
    loop {
        let asked = Instant::now();
        let read = world.call(|redis| redis.now()).await;
        match read {
            Ok(now) => {
                clock.note_answer(now, asked);
                tokio::time::sleep(READING_INTERVAL).await;
            }
            // It reads the clock as soon as it is connected again
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Clients that pull from that gateway, one after the other.
pub(super) async fn pulling_clients(world: Arc<MaintenanceWorld>, clock: Arc<RedisClock>, mut rng: StdRng) {
    loop {
        let client = world.redis().next_id();
        world.redis().live_clients.insert(client);
        let mut tasks = JoinSet::new();
        tasks.spawn(pull(world.clone(), clock.clone(), client, rng_of(&mut rng)));
        sleep(&mut rng, 3_000..40_000).await;
        if world.is_quiet() {
            return std::future::pending().await;
        }
        tasks.shutdown().await;
        world.redis().live_clients.remove(&client);
        sleep(&mut rng, 1..3_000).await;
    }
}

async fn pull(world: Arc<MaintenanceWorld>, clock: Arc<RedisClock>, client: u64, mut rng: StdRng) {
    loop {
        sleep(&mut rng, 10..2_000).await;
        let (queue, runs) = (any_queue(&mut rng), Duration::from_millis(rng.random_range(10..40_000)));
        let limit = rng.random_ratio(1, 2).then(|| Duration::from_millis(rng.random_range(2_000..40_000)));
        if world.is_away() {
            continue;
        }
        let Some(start) = clock.lease_start() else { continue };
        let id = {
            let mut redis = world.redis();
            let (id, token) = (redis.next_id(), redis.next_id());
            let started = redis.now().max(start);
            let deadline = limit.map(|limit| (started + duration_millis(limit).cast_signed(), Instant::now() + limit));
            let expiry = (started + LEASE_MS).min(deadline.map_or(Millis::MAX, |(deadline, _)| deadline));
            let attempt = PulledAttempt { client, token, expiry, started, lease_ms: LEASE_MS, deadline };
            redis.queues.get_mut(&queue).expect("a known queue").attempts.insert(id, attempt);
            redis.tell_due(&queue, expiry);
            id
        };
        let ends_at = Instant::now() + runs;
        while Instant::now() < ends_at {
            tokio::time::sleep((ends_at - Instant::now()).min(LEASE / 3)).await;
            while world.call(|redis| heartbeat(redis, &queue, id, clock.lease_start())).await.is_err() {
                tokio::time::sleep(LEASE / 12).await;
            }
        }
        while world
            .call(|redis| redis.queues.get_mut(&queue).and_then(|queue| queue.attempts.remove(&id)))
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

fn heartbeat(redis: &mut super::ScriptedRedis, queue: &QueueName, id: u64, start: Option<Millis>) {
    let start = redis.now().max(start.unwrap_or(0));
    let stored = redis.queues.get_mut(queue).expect("a known queue");
    if let Some(attempt) = stored.attempts.get_mut(&id) {
        let limit = attempt.deadline.map_or(Millis::MAX, |(deadline, _)| deadline);
        attempt.expiry = (start + attempt.lease_ms).min(limit);
    }
}

/// Schedules jobs and sets timers.
pub(super) async fn schedule(world: Arc<MaintenanceWorld>, mut rng: StdRng) {
    loop {
        sleep(&mut rng, 100..2_000).await;
        let (queue, after, is_timer) = (any_queue(&mut rng), rng.random_range(0..6_000), rng.random_bool(0.5));
        let is_told = world.is_quiet() || rng.random_ratio(9, 10);
        if !world.is_away() {
            world.redis().add_due(&queue, is_timer, after, is_told);
        }
    }
}

/// Breaks things until it is time to be quiet.
pub(super) async fn nemesis(world: Arc<MaintenanceWorld>, mut rng: StdRng, until: Instant) {
    while Instant::now() < until {
        sleep(&mut rng, 300..5_000).await;
        match rng.random_range(0..10) {
            0..3 => {
                // Sometimes for longer than a lease
                let (longest, hangs) = (if rng.random_ratio(1, 4) { 20_000 } else { 6_000 }, rng.random_bool(0.5));
                let lasts = rng.random_range(30..longest);
                world.go_away(Duration::from_millis(lasts), hangs);
                sleep(&mut rng, 0..longest).await;
                if rng.random_bool(0.3) && !world.is_away() {
                    let mut redis = world.redis();
                    redis.started_at = redis.now();
                }
            }
            3..6 => {
                let by_ms = step(&mut rng);
                world.redis().set_clock(by_ms);
                if rng.random_bool(0.5) {
                    sleep(&mut rng, 1..4_000).await;
                    world.redis().set_clock(-by_ms);
                }
            }
            6 => world.be_slow(Duration::from_millis(rng.random_range(100..5_000))),
            7 => world.freeze(usize::from(rng.random_bool(0.5)), Duration::from_millis(rng.random_range(100..5_000))),
            8 => world.restart_process(usize::from(rng.random_bool(0.5)), rng.random_bool(0.5)),
            _ => {
                let redis = world.redis();
                redis.publish(|| SubscriberEvent::ConnectionLost);
                redis.publish(|| SubscriberEvent::Subscribed(Vec::new()));
            }
        }
    }
}

fn step(rng: &mut StdRng) -> Millis {
    let by_ms = rng.random_range(600..MAX_STEP_MS);
    if rng.random_bool(0.5) { by_ms } else { -by_ms }
}
