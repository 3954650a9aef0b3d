//! Taking jobs: the place first, then the claim, so that nothing is claimed that cannot run.
//!
//! While there is work, jobs are claimed without blocking, as many as there are places. When there is none, one read
//! blocks on all streams at once: no polling, and an arriving job is here after one round trip. That read may return a
//! job of each stream if several arrive in the moment before it blocks; those without a place wait for one here, with
//! their leases renewed.

use std::{collections::HashMap, sync::Arc, time::Duration};

use common::name::{Priority, QueueName};
use store::{
    StoreError, StoreResult,
    connection::dedicated::Dedicated,
    jobs::{Claim, Claimed, More},
    next_delay, note_interruption, reconnect_delays,
};
use tokio_util::sync::CancellationToken;

use crate::{
    attempt::Runner,
    limited_queue_watcher::Bell,
    queue_selector::Turns,
    slots::{AnyPlace, Place},
    wakeup::Doorbell,
    worker::{Shared, Until},
};

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
    if claimer.shared.until == Until::Empty {
        let (shared, doorbell, stop) = (claimer.shared.clone(), claimer.doorbell.clone(), claimer.stop.clone());
        tokio::spawn(async move { stop.run_until_cancelled(ring_when_empty(&shared, &doorbell)).await });
    }
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

/// A read that is blocked does not notice by itself that there is nothing left to wait for.
async fn ring_when_empty(shared: &Shared, doorbell: &Doorbell) {
    loop {
        shared.in_flight.emptied.notified().await;
        doorbell.ring(shared).await;
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
            let place = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                place = self.shared.places.any() => place,
            };
            let Some(place) = place else { return Ok(()) };
            let mut places = self.more_places(place);
            if self.doorbell.answer() {
                self.priorities.clear();
            }
            if self.shared.presence.is_quiet() {
                drop(places);
                self.shared.presence.until_awake(&self.stop).await;
                continue;
            }
            // Before the claim: what runs may have made jobs until it ended
            let was_idle = self.shared.in_flight.is_empty();
            let found = self.claim(&mut places).await?;
            if self.is_enough(found, was_idle).await? {
                self.stop.cancel();
            }
            if !found && !self.stop.is_cancelled() {
                let last = places.pop();
                // The others are free for what else waits for one
                drop(places);
                self.wait(last).await?;
            }
        }
    }

    /// Whether a worker that does not work until it is stopped has done what it was started for.
    async fn is_enough(&self, found: bool, was_idle: bool) -> StoreResult<bool> {
        match (self.shared.until, found) {
            (Until::Stopped, _) | (Until::Empty, true) => Ok(false),
            (Until::One, true) => {
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    () = self.shared.in_flight.until_empty() => {}
                }
                Ok(true)
            }
            (Until::One, false) => Ok(true),
            (Until::Empty, false) => Ok(was_idle && !self.is_held_back().await?),
        }
    }

    /// Whether jobs wait for a limit of their queue, which are not handed out now but will be.
    async fn is_held_back(&self) -> StoreResult<bool> {
        for (queue, _) in self.more.iter().filter(|(_, more)| matches!(more, More::In(_))) {
            if self.shared.jobs.stats(queue).await?.available > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// As many places as are free, up to a batch.
    fn more_places(&self, first: AnyPlace) -> Vec<AnyPlace> {
        let most = if self.shared.until == Until::One { 1 } else { self.batch };
        let mut places = vec![first];
        while places.len() < most
            && let Some(place) = self.shared.places.another()
        {
            places.push(place);
        }
        places
    }

    /// Claims without waiting, queue by queue, and starts what it got; false when there was nothing.
    async fn claim(&mut self, places: &mut Vec<AnyPlace>) -> StoreResult<bool> {
        let shared = self.shared.clone();
        let by = Claim::Worker { consumer: &shared.consumer, worker: &shared.settings.queue_worker.name };
        let mut found = false;
        for queue in self.turns.next() {
            if places.is_empty() {
                break;
            }
            let mut taken = shared.places.of_queue(&queue, places, self.batch);
            if taken.is_empty() {
                continue;
            }
            let priorities = self.priorities.entry(queue.clone()).or_default();
            let batch = shared.jobs.claim(&queue, priorities, taken.len(), by).await?;
            self.more.insert(queue, batch.more);
            self.batch = next_batch(self.batch, &batch.jobs);
            for claimed in batch.jobs {
                found = true;
                self.runner.start(claimed, taken.pop());
            }
            places.extend(taken.into_iter().map(Place::into_any));
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
    async fn wait(&mut self, place: Option<AnyPlace>) -> StoreResult<()> {
        let mut longest = LONGEST_BLOCK.min(self.shared.consumer.lease() / 2);
        let (mut free, mut limited) = (Vec::new(), Vec::new());
        // A queue whose places are all taken is listened to again when one is given back
        for (queue, priorities) in self.priorities.iter().filter(|(queue, _)| self.shared.places.has_room(queue)) {
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
            drop(place);
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
        let (shared, mut places) = (self.shared.clone(), Vec::from_iter(place));
        // After an error the connection is not used again: its next answer could be this read's
        for claimed in arrived? {
            let place = shared.places.of_queue(&claimed.job.queue, &mut places, 1).pop();
            self.runner.start(claimed, place);
        }
        self.blocking = Some(connection);
        Ok(())
    }
}
