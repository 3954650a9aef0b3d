//! Waiting for jobs to end: thousands of requests on one Redis connection.
//!
//! The scripts that end jobs publish their ids on the queue's channel. Whoever waits for a job first sees to it that the
//! channel is heard and then looks at the job, so that an end in between is not missed; whenever a channel is heard anew,
//! everybody who waits for a job of that queue looks again.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{id::JobId, name::QueueName};
use store::{
    StoreError, StoreResult,
    connection::notifier::{EventReceiver, Notifier, SubscriberEvent, Topics},
    jobs::{Jobs, LocatedJob},
    keys::QueueKeys,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::error::{ApiError, ErrorCode};

/// Messages heard and not looked at yet. More are dropped: see [`LOOK_AGAIN`].
const NOTIFICATION_BUFFER: usize = 4096;
/// A message can be lost: so everybody looks again from time to time.
const RECHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The same when Redis did not answer.
const REDIS_RETRY_DELAY: Duration = Duration::from_secs(1);
/// A channel is heard this much longer than somebody waits: the next one comes soon.
const UNSUBSCRIBE_DELAY: Duration = Duration::from_secs(30);

/// Those who wait. Clone it freely.
#[derive(Clone)]
pub(crate) struct JobWaiters {
    shared: Arc<SharedWaiters>,
    channels: Topics,
    max_waiters: usize,
    stop: CancellationToken,
}

#[derive(Default)]
struct SharedWaiters {
    registry: Mutex<WaiterRegistry>,
}

#[derive(Default)]
struct WaiterRegistry {
    jobs: HashMap<JobId, AwaitedJob>,
    queues: HashMap<QueueName, QueueWaiterCount>,
    count: usize,
}

struct AwaitedJob {
    waiters: usize,
    queue: QueueName,
    ended: Arc<Notify>,
}

struct QueueWaiterCount {
    waiters: usize,
    idle_since: Instant,
}

impl WaiterRegistry {
    /// Wakes those who wait for jobs of queues that are heard anew.
    fn wake_waiters(&self, channels: &[String]) {
        let channels: HashSet<&str> = channels.iter().map(String::as_str).collect();
        let is_heard = |queue: &&QueueName| channels.contains(QueueKeys::new(queue).finished().as_str());
        let queues: HashSet<&QueueName> = self.queues.keys().filter(is_heard).collect();
        let affected = self.jobs.values().filter(|awaited| queues.contains(&awaited.queue));
        affected.for_each(|awaited| awaited.ended.notify_waiters());
    }

    fn update_gauge(&self) {
        metrics::gauge!("galley_waiters").set(f64::from(u32::try_from(self.count).unwrap_or(u32::MAX)));
    }
}

impl SharedWaiters {
    fn lock(&self) -> MutexGuard<'_, WaiterRegistry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of those that may wait.
pub(crate) struct WaiterPermit<'a>(&'a SharedWaiters);

impl Drop for WaiterPermit<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.count -= 1;
        waiting.update_gauge();
    }
}

/// A place at a job; leaving it frees everything.
struct JobWaiter<'a> {
    permit: WaiterPermit<'a>,
    id: JobId,
    queue: QueueName,
    ended: Arc<Notify>,
}

impl Drop for JobWaiter<'_> {
    fn drop(&mut self) {
        let mut waiting = self.permit.0.lock();
        if let Some(awaited) = waiting.jobs.get_mut(&self.id) {
            awaited.waiters -= 1;
            if awaited.waiters == 0 {
                waiting.jobs.remove(&self.id);
            }
        }
        if let Some(listening) = waiting.queues.get_mut(&self.queue) {
            listening.waiters -= 1;
            listening.idle_since = Instant::now();
        }
    }
}

impl JobWaiters {
    /// Opens the room. When `stop` is cancelled everybody is answered at once.
    pub(crate) fn start(notifier: &Notifier, max_waiters: usize, stop: CancellationToken) -> Self {
        let (topics, events) = notifier.subscribe(NOTIFICATION_BUFFER);
        let shared: Arc<SharedWaiters> = Arc::default();
        tokio::spawn(listen(shared.clone(), topics.clone(), events, stop.clone()));
        Self { shared, channels: topics, max_waiters, stop }
    }

    /// Waits for a job to end, but no longer than that; the job as it is then, or none if there is none with that id.
    pub(crate) async fn wait(&self, jobs: &Jobs, id: JobId, limit: Duration) -> Result<Option<LocatedJob>, ApiError> {
        let deadline = Instant::now() + limit;
        // Most often it is over already, or gone
        let Some((located, queue)) = jobs.locate_with_queue(id).await? else { return Ok(None) };
        if located.state().is_terminal() || limit.is_zero() {
            return Ok(Some(located));
        }
        let seat = self.register(id, queue)?;
        Ok(self.wait_until_ended(jobs, &seat, deadline).await?)
    }

    async fn wait_until_ended(
        &self,
        jobs: &Jobs,
        seat: &JobWaiter<'_>,
        deadline: Instant,
    ) -> StoreResult<Option<LocatedJob>> {
        loop {
            let ended = seat.ended.notified();
            tokio::pin!(ended);
            // From here on no notice is missed
            ended.as_mut().enable();
            let found = jobs.locate(seat.id).await;
            let (is_over, pause) = match &found {
                Ok(located) => (located.as_ref().is_none_or(|located| located.state().is_terminal()), RECHECK_INTERVAL),
                // Whoever is ready to wait can wait for Redis to come back
                Err(StoreError::Unavailable(_)) => (false, REDIS_RETRY_DELAY),
                Err(_) => (true, RECHECK_INTERVAL),
            };
            if is_over || Instant::now() >= deadline || self.stop.is_cancelled() {
                return found;
            }
            tokio::select! {
                () = ended => {}
                () = tokio::time::sleep_until(deadline.min(Instant::now() + pause)) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Counts somebody who waits, for a job or for something else, if there may be more.
    pub(crate) fn try_acquire(&self) -> Result<WaiterPermit<'_>, ApiError> {
        let mut waiting = self.shared.lock();
        if waiting.count >= self.max_waiters {
            let message = format!("{} requests wait already, which is gateway.max_waiters", waiting.count);
            return Err(ApiError::new(ErrorCode::TooManyWaiters, message));
        }
        waiting.count += 1;
        waiting.update_gauge();
        drop(waiting);
        Ok(WaiterPermit(&self.shared))
    }

    fn register(&self, id: JobId, queue: QueueName) -> Result<JobWaiter<'_>, ApiError> {
        let place = self.try_acquire()?;
        let mut waiting = self.shared.lock();
        let new = || AwaitedJob { waiters: 0, queue: queue.clone(), ended: Arc::default() };
        let awaited = waiting.jobs.entry(id).or_insert_with(new);
        awaited.waiters += 1;
        let ended = awaited.ended.clone();
        let listening =
            waiting.queues.entry(queue.clone()).or_insert(QueueWaiterCount { waiters: 0, idle_since: Instant::now() });
        listening.waiters += 1;
        drop(waiting);
        self.channels.add(QueueKeys::new(&queue).finished());
        Ok(JobWaiter { permit: place, id, queue, ended })
    }
}

/// Hears which jobs ended and tells those who wait, until `stop` is cancelled.
async fn listen(room: Arc<SharedWaiters>, channels: Topics, mut heard: EventReceiver, stop: CancellationToken) {
    let mut tidy = tokio::time::interval(UNSUBSCRIBE_DELAY);
    loop {
        let heard = tokio::select! {
            () = stop.cancelled() => return,
            _ = tidy.tick() => {
                unsubscribe_idle_queues(&room, &channels);
                continue;
            }
            heard = heard.recv() => heard,
        };
        match heard {
            Some(SubscriberEvent::Message { payload, .. }) => {
                let waiting = room.lock();
                let ids = std::str::from_utf8(&payload).unwrap_or_default().split(' ');
                for awaited in ids.filter_map(|id| waiting.jobs.get(&id.parse().ok()?)) {
                    awaited.ended.notify_waiters();
                }
            }
            // Jobs may have ended unheard
            Some(SubscriberEvent::Subscribed(channels)) => room.lock().wake_waiters(&channels),
            Some(SubscriberEvent::ConnectionLost) => {}
            None => return,
        }
    }
}

/// Channels of queues for which nobody has waited for a while are not heard any more.
fn unsubscribe_idle_queues(room: &SharedWaiters, channels: &Topics) {
    room.lock().queues.retain(|queue, listening| {
        let stays = listening.waiters > 0 || listening.idle_since.elapsed() < UNSUBSCRIBE_DELAY;
        if !stays {
            channels.remove(&QueueKeys::new(queue).finished());
        }
        stays
    });
}
