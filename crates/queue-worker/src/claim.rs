//! Taking jobs: the permit first, then the claim, so that nothing is claimed that cannot run.
//!
//! While there is work, jobs are claimed without blocking, as many as there are permits. When there is none, one read
//! blocks on all streams at once: no polling, and an arriving job is here after one round trip. That read may return a
//! job of each stream if several arrive in the moment before it blocks; those without a permit wait for one here, with
//! their leases renewed.

use std::{collections::HashMap, sync::Arc, time::Duration};

use common::{
    name::{Priority, QueueName},
    redis::{
        StoreError, StoreResult,
        dedicated::Dedicated,
        jobs::{Claim, Claimed, More},
        next_delay, note_interruption, reconnect_delays,
    },
};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::{attempt::Runner, bell::Bell, doorbell::Doorbell, turns::Turns, worker::Shared};

/// Longest blocking read. It ends by itself so that a connection that died silently is found out, and within half the
/// lease: a process that froze while it was blocked must not be given the very job that is reclaimed from it.
const LONGEST_BLOCK: Duration = Duration::from_secs(5);
/// Most jobs claimed in one go.
const BATCH: usize = 128;
/// About the largest answer to a claim.
const ENOUGH_BYTES: usize = 4 << 20;

/// Claims jobs until `stop` is cancelled.
pub(crate) async fn run(shared: Arc<Shared>, runner: Runner, doorbell: Arc<Doorbell>, stop: CancellationToken) {
    if shared.settings.queue_worker.queues.is_empty() {
        stop.cancelled().await;
        return;
    }
    let worker = &shared.settings.queue_worker;
    let mut claimer = Claimer {
        turns: Turns::new(&worker.queues, &worker.weights),
        shared,
        runner,
        doorbell,
        stop,
        priorities: HashMap::new(),
        more: HashMap::new(),
        blocking: None,
        bell: None,
        batch: BATCH,
    };
    let mut delays = reconnect_delays();
    while !claimer.stop.is_cancelled() {
        // At the start, and after any trouble: queues may be gone, and jobs may have been handed to us unheard
        if let Err(error) = claimer.recover().await {
            claimer.pause(&error, next_delay(&mut delays)).await;
            continue;
        }
        delays = reconnect_delays();
        if let Err(error) = claimer.claim_until_stopped().await {
            claimer.pause(&error, next_delay(&mut delays)).await;
        }
    }
}

struct Claimer {
    shared: Arc<Shared>,
    runner: Runner,
    doorbell: Arc<Doorbell>,
    stop: CancellationToken,
    turns: Turns,
    priorities: HashMap<QueueName, Vec<Priority>>,
    /// What the limits of a queue said last.
    more: HashMap<QueueName, More>,
    blocking: Option<Dedicated>,
    /// Rings for jobs of queues with limits.
    bell: Option<Bell>,
    /// Jobs claimed in one go at the moment.
    batch: usize,
}

/// How many jobs to claim next time: fewer when they are large, so that an answer stays within a few mebibytes.
fn next_batch(batch: usize, claimed: &[Claimed]) -> usize {
    let bytes: usize = claimed.iter().map(|claimed| claimed.job.envelope.as_str().len()).sum();
    match claimed.len() {
        0 => batch,
        jobs => (ENOUGH_BYTES / (bytes / jobs).max(1)).clamp(1, BATCH),
    }
}

impl Claimer {
    async fn pause(&mut self, error: &StoreError, delay: Duration) {
        self.blocking = None;
        self.bell = None;
        self.priorities.clear();
        note_interruption("claiming", error);
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(delay) => {}
        }
    }

    /// Sees to it that there are streams to wait on, and takes up what was handed to us unheard. A queue that cannot be
    /// opened, because Redis is full or something else is in its place, must not keep the others from being served.
    async fn recover(&mut self) -> StoreResult<()> {
        let shared = self.shared.clone();
        for queue in &shared.settings.queue_worker.queues {
            let priorities = match shared.jobs.open_queue(queue).await {
                Ok(priorities) => priorities,
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                Err(error) => {
                    tracing::warn!(%queue, %error, "queue cannot be served for now");
                    continue;
                }
            };
            for priority in &priorities {
                let is_new = |entry| !shared.in_flight.contains(queue, *priority, entry);
                for claimed in shared.jobs.own(queue, *priority, &shared.consumer, is_new).await? {
                    let id = claimed.job.id;
                    if self.runner.start(claimed, None) {
                        tracing::info!(%queue, %id, "took up a job whose hand-over was lost");
                    }
                }
            }
            self.priorities.insert(queue.clone(), priorities);
        }
        Ok(())
    }

    async fn claim_until_stopped(&mut self) -> StoreResult<()> {
        loop {
            let permit = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                permit = self.shared.permits.clone().acquire_owned() => permit,
            };
            let Ok(permit) = permit else { return Ok(()) };
            let mut permits = self.more_permits(permit);
            if self.doorbell.answer() {
                self.priorities.clear();
            }
            if self.shared.presence.is_quiet() {
                drop(permits);
                self.shared.presence.until_awake(&self.stop).await;
                continue;
            }
            if !self.claim(&mut permits).await? && !self.stop.is_cancelled() {
                let last = permits.pop();
                // The others are free for what else waits for one
                drop(permits);
                self.wait(last).await?;
            }
        }
    }

    /// As many permits as are free, up to a batch.
    fn more_permits(&self, first: OwnedSemaphorePermit) -> Vec<OwnedSemaphorePermit> {
        let mut permits = vec![first];
        while permits.len() < self.batch
            && let Ok(permit) = self.shared.permits.clone().try_acquire_owned()
        {
            permits.push(permit);
        }
        permits
    }

    /// Claims without waiting, queue by queue, and starts what it got; false when there was nothing.
    async fn claim(&mut self, permits: &mut Vec<OwnedSemaphorePermit>) -> StoreResult<bool> {
        let shared = self.shared.clone();
        let by = Claim::Worker { consumer: &shared.consumer, worker: &shared.settings.queue_worker.name };
        let mut found = false;
        for queue in self.turns.next() {
            if permits.is_empty() {
                break;
            }
            let priorities = self.priorities.entry(queue.clone()).or_default();
            let batch = shared.jobs.claim(&queue, priorities, permits.len().min(self.batch), by).await?;
            self.more.insert(queue, batch.more);
            self.batch = next_batch(self.batch, &batch.jobs);
            for claimed in batch.jobs {
                found = true;
                self.runner.start(claimed, permits.pop());
            }
        }
        Ok(found)
    }

    /// Sees to it that the doorbell rings for a job on one of these streams.
    fn watch(&mut self, mut limited: Vec<(QueueName, Priority)>) {
        if limited.is_empty() {
            return;
        }
        limited.sort_unstable();
        match &self.bell {
            Some(bell) if bell.is_for(&limited) => bell.arm(),
            _ => self.bell = Some(Bell::new(&self.shared, &self.doorbell, limited, LONGEST_BLOCK)),
        }
    }

    /// Waits for a job on any stream, for a limit to allow more, or for the doorbell.
    async fn wait(&mut self, mut permit: Option<OwnedSemaphorePermit>) -> StoreResult<()> {
        let mut longest = LONGEST_BLOCK.min(self.shared.consumer.lease() / 2);
        let (mut free, mut limited) = (Vec::new(), Vec::new());
        for (queue, priorities) in &self.priorities {
            let streams = priorities.iter().map(|priority| (queue.clone(), *priority));
            match self.more.get(queue).copied().unwrap_or_default() {
                More::Unlimited => free.extend(streams),
                More::Limited => limited.extend(streams),
                More::In(pause) => longest = longest.min(pause),
                More::Paused => {}
            }
        }
        if self.priorities.values().all(Vec::is_empty) {
            return Err(StoreError::Damaged("the streams of all queues are gone".to_owned()));
        }
        self.watch(limited);
        if free.is_empty() {
            drop(permit);
            self.doorbell.or_after(longest).await;
            return Ok(());
        }
        let mut connection = match self.blocking.take() {
            Some(connection) => connection,
            None => self.shared.jobs.redis().dedicated(LONGEST_BLOCK).await?,
        };
        let (jobs, client_id) = (&self.shared.jobs, connection.client_id());
        let block = longest.max(Duration::from_millis(1));
        let read = jobs.claim_blocking(&mut connection, &free, &self.shared.consumer, block);
        let Some(arrived) = self.doorbell.while_blocked(client_id, read).await else {
            self.blocking = Some(connection);
            return Ok(());
        };
        // After an error the connection is not used again: its next answer could be this read's
        for claimed in arrived? {
            self.runner.start(claimed, permit.take());
        }
        self.blocking = Some(connection);
        Ok(())
    }
}
