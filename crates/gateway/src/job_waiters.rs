//! Waiting for jobs to end: thousands of requests on one Redis connection.
//!
//! The scripts that end jobs publish their ids on the queue's channel. A waiter first subscribes to the channel and
//! then reads the job, so that it does not miss an end in between. After a subscription begins again, every waiter for
//! a job of that queue reads its job again.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{id::JobId, name::QueueName};
use store::{
    StoreError, StoreResult,
    connection::{
        hint_pace::FruitlessLooks,
        notifier::{EventReceiver, Notifier, SubscriberEvent, Topics},
    },
    jobs::{Jobs, LocatedJob},
    keys::TopicNames,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::error::{ApiError, ErrorCode};

/// Notifications received and not handled yet. More are dropped: see [`RECHECK_INTERVAL`].
const NOTIFICATION_BUFFER: usize = 4096;
/// How often a waiter reads its job again, because a notification can be lost.
const RECHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The same after Redis did not answer.
const REDIS_RETRY_DELAY: Duration = Duration::from_secs(1);
/// The longest pause after notifications of an end that were false.
const MAX_FRUITLESS_PAUSE: Duration = Duration::from_secs(2);
/// How long a channel stays subscribed without a waiter: the next one often comes soon.
const UNSUBSCRIBE_DELAY: Duration = Duration::from_secs(30);

/// The requests that wait. Clones share them.
#[derive(Clone)]
pub(crate) struct JobWaiters {
    shared: Arc<SharedWaiters>,
    channels: Topics,
    topic_names: TopicNames,
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
    /// Notified of its output.
    streamed: Arc<Notify>,
}

impl AwaitedJob {
    fn wake(&self) {
        self.ended.notify_waiters();
        self.streamed.notify_waiters();
    }
}

struct QueueWaiterCount {
    waiters: usize,
    idle_since: Instant,
}

impl WaiterRegistry {
    /// Wakes the waiters of queues whose channels are subscribed again.
    fn wake_waiters(&self, channels: &[String], topics: &TopicNames) {
        let channels: HashSet<&str> = channels.iter().map(String::as_str).collect();
        let is_subscribed = |queue: &&QueueName| {
            channels.contains(topics.finished_jobs(queue).as_str()) || channels.contains(topics.output(queue).as_str())
        };
        let queues: HashSet<&QueueName> = self.queues.keys().filter(is_subscribed).collect();
        let affected = self.jobs.values().filter(|awaited| queues.contains(&awaited.queue));
        affected.for_each(AwaitedJob::wake);
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

/// A permission to wait.
pub(crate) struct WaiterPermit(Arc<SharedWaiters>);

impl Drop for WaiterPermit {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.count -= 1;
        waiting.update_gauge();
    }
}

/// A request that waits for a job. Dropping it unregisters it.
pub(crate) struct JobWaiter {
    permit: WaiterPermit,
    pub(crate) id: JobId,
    pub(crate) queue: QueueName,
    ended: Arc<Notify>,
    streamed: Arc<Notify>,
}

impl JobWaiter {
    /// Notified when the job ends, and when it has new output.
    pub(crate) fn notifies(&self) -> (Arc<Notify>, Arc<Notify>) {
        (self.ended.clone(), self.streamed.clone())
    }
}

impl Drop for JobWaiter {
    fn drop(&mut self) {
        let mut waiting = self.permit.0.lock();
        if let Some(awaited) = waiting.jobs.get_mut(&self.id) {
            awaited.waiters -= 1;
            if awaited.waiters == 0 {
                waiting.jobs.remove(&self.id);
            }
        }
        if let Some(queue_waiters) = waiting.queues.get_mut(&self.queue) {
            queue_waiters.waiters -= 1;
            queue_waiters.idle_since = Instant::now();
        }
    }
}

impl JobWaiters {
    /// Opens the room. When `stop` is cancelled everybody is answered at once.
    pub(crate) fn start(notifier: &Notifier, max_waiters: usize, stop: CancellationToken) -> Self {
        let (topics, events) = notifier.subscribe(NOTIFICATION_BUFFER);
        let shared: Arc<SharedWaiters> = Arc::default();
        let topic_names = notifier.topic_names().clone();
        tokio::spawn(listen(shared.clone(), topics.clone(), topic_names.clone(), events, stop.clone()));
        Self { shared, channels: topics, topic_names, max_waiters, stop }
    }

    /// Waits for a job to end, but no longer than `limit`. Returns the job as it is then; none if no job has that id.
    pub(crate) async fn wait(&self, jobs: &Jobs, id: JobId, limit: Duration) -> Result<Option<LocatedJob>, ApiError> {
        let deadline = Instant::now() + limit;
        // Most jobs have ended already, or are gone
        let Some((located, queue)) = jobs.locate_with_queue(id).await? else { return Ok(None) };
        if located.state().is_terminal() || limit.is_zero() {
            return Ok(Some(located));
        }
        let waiter = self.register(id, queue)?;
        Ok(self.wait_until_ended(jobs, &waiter, deadline).await?)
    }

    async fn wait_until_ended(
        &self,
        jobs: &Jobs,
        waiter: &JobWaiter,
        deadline: Instant,
    ) -> StoreResult<Option<LocatedJob>> {
        let mut looks = FruitlessLooks::new(MAX_FRUITLESS_PAUSE);
        loop {
            let ended = waiter.ended.notified();
            tokio::pin!(ended);
            // From here on the waiter misses no notification
            ended.as_mut().enable();
            let job = jobs.locate(waiter.id).await;
            let (is_over, pause) = match &job {
                Ok(located) => (located.as_ref().is_none_or(|located| located.state().is_terminal()), RECHECK_INTERVAL),
                // A client that is ready to wait can wait for Redis too
                Err(StoreError::Unavailable(_)) => (false, REDIS_RETRY_DELAY),
                Err(_) => (true, RECHECK_INTERVAL),
            };
            if is_over || Instant::now() >= deadline || self.stop.is_cancelled() {
                return job;
            }
            tokio::select! {
                () = async { ended.await; looks.wait().await } => looks.found_nothing(),
                () = tokio::time::sleep_until(deadline.min(Instant::now() + pause)) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Admits a request that waits, for a job or for anything else.
    pub(crate) fn try_acquire(&self) -> Result<WaiterPermit, ApiError> {
        let mut waiting = self.shared.lock();
        if waiting.count >= self.max_waiters {
            let message = format!("{} requests wait already, which is gateway.max_waiters", waiting.count);
            return Err(ApiError::new(ErrorCode::TooManyWaiters, message));
        }
        waiting.count += 1;
        waiting.update_gauge();
        drop(waiting);
        Ok(WaiterPermit(self.shared.clone()))
    }

    /// Registers a reader of the output of a job.
    pub(crate) fn follow_output(&self, id: JobId, queue: QueueName) -> Result<JobWaiter, ApiError> {
        let waiter = self.register(id, queue)?;
        self.channels.add(self.topic_names.output(&waiter.queue));
        Ok(waiter)
    }

    fn register(&self, id: JobId, queue: QueueName) -> Result<JobWaiter, ApiError> {
        let permit = self.try_acquire()?;
        let mut waiting = self.shared.lock();
        let new = || AwaitedJob { waiters: 0, queue: queue.clone(), ended: Arc::default(), streamed: Arc::default() };
        let awaited = waiting.jobs.entry(id).or_insert_with(new);
        awaited.waiters += 1;
        let (ended, streamed) = (awaited.ended.clone(), awaited.streamed.clone());
        let queue_waiters =
            waiting.queues.entry(queue.clone()).or_insert(QueueWaiterCount { waiters: 0, idle_since: Instant::now() });
        queue_waiters.waiters += 1;
        drop(waiting);
        self.channels.add(self.topic_names.finished_jobs(&queue));
        Ok(JobWaiter { permit, id, queue, ended, streamed })
    }
}

/// Receives which jobs ended and wakes their waiters, until `stop` is cancelled.
async fn listen(
    shared: Arc<SharedWaiters>,
    channels: Topics,
    topics: TopicNames,
    mut notifications: EventReceiver,
    stop: CancellationToken,
) {
    let mut cleanup = tokio::time::interval(UNSUBSCRIBE_DELAY);
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            _ = cleanup.tick() => {
                unsubscribe_idle_queues(&shared, &channels, &topics);
                continue;
            }
            event = notifications.recv() => event,
        };
        match event {
            Some(SubscriberEvent::Message { channel, payload }) => {
                let waiting = shared.lock();
                let is_output = channel.ends_with(":output");
                let ids = std::str::from_utf8(&payload).unwrap_or_default().split(' ');
                for awaited in ids.filter_map(|id| waiting.jobs.get(&id.parse().ok()?)) {
                    if is_output { awaited.streamed.notify_waiters() } else { awaited.wake() }
                }
            }
            // Jobs may have ended before the subscription
            Some(SubscriberEvent::Subscribed(channels)) => shared.lock().wake_waiters(&channels, &topics),
            Some(SubscriberEvent::ConnectionLost) => {}
            None => return,
        }
    }
}

/// Unsubscribes from queues for which nobody has waited for a while.
fn unsubscribe_idle_queues(shared: &SharedWaiters, channels: &Topics, topics: &TopicNames) {
    shared.lock().queues.retain(|queue, queue_waiters| {
        let stays = queue_waiters.waiters > 0 || queue_waiters.idle_since.elapsed() < UNSUBSCRIBE_DELAY;
        if !stays {
            channels.remove(&topics.finished_jobs(queue));
            channels.remove(&topics.output(queue));
        }
        stays
    });
}
