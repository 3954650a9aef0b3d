//! Upkeep: jobs that are due, leases that are over, workers that vanished.
//!
//! Every gateway and queue-worker runs [`run`]; one of them holds the office at a time, none is special. Correctness
//! never rests on the office: every step is fenced by a script and harmless when two do it. Nothing polls for due
//! times: the maintainer sleeps until the next one and is woken when a sooner one appears.
//!
//! | file | what it does |
//! |---|---|
//! | `mod` | holding the office, and the clock of each queue |
//! | `due` | scheduled and retryable jobs become available |
//! | `lapsed` | attempts whose lease or time is over |
//! | `sweep` | queue-workers that vanished, dead letters that are too old |

mod due;
mod lapsed;
mod sweep;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    StoreResult,
    jobs::{Jobs, wake::Wake},
    keys::{self, QueueKeys},
    script,
    subscriber::{Heard, subscribe},
};
use crate::{name::QueueName, settings::MaintenanceSettings, time::Millis};

/// Does the upkeep whenever the office is free, until `stop` is cancelled.
pub async fn run(jobs: Jobs, settings: MaintenanceSettings, stop: CancellationToken) {
    let who = uuid::Uuid::new_v4().simple().to_string();
    while !stop.is_cancelled() {
        match keep_office(&jobs, &who, settings.office).await {
            Ok(true) => {
                tracing::debug!("maintaining");
                let maintainer = Maintainer::new(&jobs, &settings, &who);
                if let Err(error) = maintainer.work(&stop).await {
                    tracing::debug!(%error, "upkeep interrupted");
                }
            }
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the maintainer's office cannot be asked for"),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(settings.office / 3) => {}
        }
    }
    resign(&jobs, &who).await;
}

async fn keep_office(jobs: &Jobs, who: &str, term: Duration) -> StoreResult<bool> {
    let held: i64 = script::KEEP_OFFICE
        .key(keys::MAINTAINER)
        .arg(who)
        .arg(term.as_millis().to_string())
        .invoke_async(&mut jobs.redis.clone())
        .await?;
    Ok(held == 1)
}

/// Leaves the office to the next at once instead of letting the term run out. Only a courtesy.
async fn resign(jobs: &Jobs, who: &str) {
    let mut redis = jobs.redis.clone();
    let holder: Result<Option<String>, _> = redis::cmd("GET").arg(keys::MAINTAINER).query_async(&mut redis).await;
    if matches!(holder, Ok(Some(holder)) if holder == who) {
        let _ = redis::cmd("DEL").arg(keys::MAINTAINER).exec_async(&mut redis).await;
    }
}

/// One term of office.
struct Maintainer<'a> {
    jobs: &'a Jobs,
    settings: &'a MaintenanceSettings,
    who: &'a str,
    /// When something is due next in each queue, on Redis's clock.
    next: HashMap<QueueName, Millis>,
    /// Redis's clock, and when it was read.
    clock: (Millis, Instant),
    /// Before this moment silent workers are given the benefit of the doubt: Redis itself may have been away, and they
    /// could not report.
    trust_leases_from: Instant,
}

impl<'a> Maintainer<'a> {
    fn new(jobs: &'a Jobs, settings: &'a MaintenanceSettings, who: &'a str) -> Self {
        let trust_leases_from = Instant::now() + jobs.settings.lease / 2;
        Self { jobs, settings, who, next: HashMap::new(), clock: (0, Instant::now()), trust_leases_from }
    }

    /// Works until the office is lost (`Ok`), Redis is (`Err`), or `stop` is cancelled.
    async fn work(mut self, stop: &CancellationToken) -> StoreResult<()> {
        let listening = CancellationToken::new();
        let _ends_with_the_term = listening.clone().drop_guard();
        let mut calls = subscribe(&self.jobs.redis, vec![keys::WAKE.to_owned()], 1024, listening);
        let mut office = tokio::time::interval(self.settings.office / 3);
        let mut sweep = tokio::time::interval(self.settings.sweep);
        office.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.read_all().await?;
        loop {
            let pause = self.until_next();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = office.tick() => {
                    if !keep_office(self.jobs, self.who, self.settings.office).await? {
                        return Ok(());
                    }
                }
                heard = calls.recv() => self.hear(heard, &mut calls).await?,
                () = tokio::time::sleep(pause) => self.run_due().await?,
                _ = sweep.tick() => {
                    self.sweep().await?;
                    self.read_all().await?;
                }
            }
        }
    }

    fn now(&self) -> Millis {
        self.clock.0 + i64::try_from(self.clock.1.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    fn until_next(&self) -> Duration {
        let far = Duration::from_hours(1);
        let Some(next) = self.next.values().min() else { return far };
        // A millisecond more: due times are whole milliseconds, and early is not due
        u64::try_from(next - self.now() + 1).map_or(Duration::ZERO, Duration::from_millis).min(far)
    }

    async fn hear(&mut self, heard: Option<Heard>, calls: &mut mpsc::Receiver<Heard>) -> StoreResult<()> {
        let mut queues = Vec::new();
        let mut heard = heard;
        loop {
            match heard {
                Some(Heard::Message { payload, .. }) => {
                    if let Some(Wake::Due(queue)) = Wake::decode(&payload)
                        && !queues.contains(&queue)
                    {
                        queues.push(queue);
                    }
                }
                // Calls may have been missed
                Some(Heard::Subscribed) => return self.read_all().await,
                Some(Heard::Lost) | None => {}
            }
            match calls.try_recv() {
                Ok(more) => heard = Some(more),
                Err(_) => break,
            }
        }
        self.read(&queues).await
    }

    async fn read_all(&mut self) -> StoreResult<()> {
        let queues = self.jobs.queues().await?;
        self.next.retain(|queue, _| queues.contains(queue));
        self.read(&queues).await
    }

    /// Reads when something is due next in these queues.
    async fn read(&mut self, queues: &[QueueName]) -> StoreResult<()> {
        for some in queues.chunks(500) {
            let mut pipeline = redis::pipe();
            for queue in some {
                let keys = QueueKeys::new(queue);
                pipeline.cmd("ZRANGE").arg(keys.due()).arg(0).arg(0).arg("WITHSCORES");
                pipeline.cmd("ZRANGE").arg(keys.leases()).arg(0).arg(0).arg("WITHSCORES");
            }
            let heads: Vec<Vec<(String, f64)>> = pipeline.query_async(&mut self.jobs.redis.clone()).await?;
            for (queue, heads) in some.iter().zip(heads.chunks(2)) {
                #[expect(clippy::cast_possible_truncation, reason = "scores are whole milliseconds that we wrote")]
                let soonest = heads.iter().filter_map(|head| head.first()).map(|(_, score)| *score as Millis).min();
                match soonest {
                    Some(at) => self.next.insert(queue.clone(), at),
                    None => self.next.remove(queue),
                };
            }
        }
        self.clock = (self.jobs.now().await?, Instant::now());
        Ok(())
    }

    /// Handles what is due now, a bounded number per queue and turn, so that one queue cannot starve another.
    async fn run_due(&mut self) -> StoreResult<()> {
        let now = self.now();
        let queues: Vec<QueueName> =
            self.next.iter().filter(|(_, at)| **at <= now).map(|(queue, _)| queue.clone()).collect();
        for queue in &queues {
            due::promote(self.jobs, queue).await?;
            lapsed::settle(self.jobs, queue).await?;
        }
        self.read(&queues).await
    }

    async fn sweep(&mut self) -> StoreResult<()> {
        let trusted = Instant::now() >= self.trust_leases_from;
        for queue in self.jobs.queues().await? {
            sweep::queue(self.jobs, &queue, trusted).await?;
        }
        Ok(())
    }
}
