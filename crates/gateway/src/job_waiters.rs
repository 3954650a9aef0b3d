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
    Redis, StoreError, StoreResult,
    connection::notifier::{Channels, Heard, Inbox, subscribe_to_changing},
    jobs::{Jobs, Located},
    keys::QueueKeys,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::error::{ApiError, Code};

/// Messages heard and not looked at yet. More are dropped: see [`LOOK_AGAIN`].
const BUFFER: usize = 4096;
/// A message can be lost: so everybody looks again from time to time.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// The same when Redis did not answer.
const AFTER_TROUBLE: Duration = Duration::from_secs(1);
/// A channel is heard this much longer than somebody waits: the next one comes soon.
const LINGER: Duration = Duration::from_secs(30);

/// Those who wait. Clone it freely.
#[derive(Clone)]
pub(crate) struct WaitingRoom {
    room: Arc<Room>,
    channels: Channels,
    most: usize,
    stop: CancellationToken,
}

#[derive(Default)]
struct Room {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    jobs: HashMap<JobId, Awaited>,
    queues: HashMap<QueueName, Listening>,
    count: usize,
}

struct Awaited {
    waiting: usize,
    queue: QueueName,
    ended: Arc<Notify>,
}

struct Listening {
    waiting: usize,
    empty_since: Instant,
}

impl Waiting {
    /// Wakes those who wait for jobs of queues that are heard anew.
    fn look_again(&self, channels: &[String]) {
        let channels: HashSet<&str> = channels.iter().map(String::as_str).collect();
        let is_heard = |queue: &&QueueName| channels.contains(QueueKeys::new(queue).ended().as_str());
        let queues: HashSet<&QueueName> = self.queues.keys().filter(is_heard).collect();
        let affected = self.jobs.values().filter(|awaited| queues.contains(&awaited.queue));
        affected.for_each(|awaited| awaited.ended.notify_waiters());
    }

    fn show(&self) {
        metrics::gauge!("galley_waiters").set(f64::from(u32::try_from(self.count).unwrap_or(u32::MAX)));
    }
}

impl Room {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of those that may wait.
pub(crate) struct Place<'a>(&'a Room);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        waiting.count -= 1;
        waiting.show();
    }
}

/// A place at a job; leaving it frees everything.
struct Seat<'a> {
    place: Place<'a>,
    id: JobId,
    queue: QueueName,
    ended: Arc<Notify>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut waiting = self.place.0.waiting();
        if let Some(awaited) = waiting.jobs.get_mut(&self.id) {
            awaited.waiting -= 1;
            if awaited.waiting == 0 {
                waiting.jobs.remove(&self.id);
            }
        }
        if let Some(listening) = waiting.queues.get_mut(&self.queue) {
            listening.waiting -= 1;
            listening.empty_since = Instant::now();
        }
    }
}

impl WaitingRoom {
    /// Opens the room. When `stop` is cancelled everybody is answered at once.
    pub(crate) fn open(redis: &Redis, most: usize, stop: CancellationToken) -> Self {
        let (channels, heard) = subscribe_to_changing(redis, BUFFER, stop.clone());
        let room: Arc<Room> = Arc::default();
        tokio::spawn(listen(room.clone(), channels.clone(), heard, stop.clone()));
        Self { room, channels, most, stop }
    }

    /// Waits for a job to end, but no longer than that; the job as it is then, or none if there is none with that id.
    pub(crate) async fn wait(&self, jobs: &Jobs, id: JobId, limit: Duration) -> Result<Option<Located>, ApiError> {
        let deadline = Instant::now() + limit;
        // Most often it is over already, or gone
        let Some((located, queue)) = jobs.locate_in(id).await? else { return Ok(None) };
        if located.state().is_terminal() || limit.is_zero() {
            return Ok(Some(located));
        }
        let seat = self.sit_down(id, queue)?;
        Ok(self.until_ended(jobs, &seat, deadline).await?)
    }

    async fn until_ended(&self, jobs: &Jobs, seat: &Seat<'_>, deadline: Instant) -> StoreResult<Option<Located>> {
        loop {
            let ended = seat.ended.notified();
            tokio::pin!(ended);
            // From here on no notice is missed
            ended.as_mut().enable();
            let found = jobs.locate(seat.id).await;
            let (is_over, pause) = match &found {
                Ok(located) => (located.as_ref().is_none_or(|located| located.state().is_terminal()), LOOK_AGAIN),
                // Whoever is ready to wait can wait for Redis to come back
                Err(StoreError::Unavailable(_)) => (false, AFTER_TROUBLE),
                Err(_) => (true, LOOK_AGAIN),
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
    pub(crate) fn place(&self) -> Result<Place<'_>, ApiError> {
        let mut waiting = self.room.waiting();
        if waiting.count >= self.most {
            let message = format!("{} requests wait already, which is gateway.max_waiters", waiting.count);
            return Err(ApiError::new(Code::TooManyWaiters, message));
        }
        waiting.count += 1;
        waiting.show();
        drop(waiting);
        Ok(Place(&self.room))
    }

    fn sit_down(&self, id: JobId, queue: QueueName) -> Result<Seat<'_>, ApiError> {
        let place = self.place()?;
        let mut waiting = self.room.waiting();
        let new = || Awaited { waiting: 0, queue: queue.clone(), ended: Arc::default() };
        let awaited = waiting.jobs.entry(id).or_insert_with(new);
        awaited.waiting += 1;
        let ended = awaited.ended.clone();
        let listening =
            waiting.queues.entry(queue.clone()).or_insert(Listening { waiting: 0, empty_since: Instant::now() });
        listening.waiting += 1;
        drop(waiting);
        self.channels.add(QueueKeys::new(&queue).ended());
        Ok(Seat { place, id, queue, ended })
    }
}

/// Hears which jobs ended and tells those who wait, until `stop` is cancelled.
async fn listen(room: Arc<Room>, channels: Channels, mut heard: Inbox, stop: CancellationToken) {
    let mut tidy = tokio::time::interval(LINGER);
    loop {
        let heard = tokio::select! {
            () = stop.cancelled() => return,
            _ = tidy.tick() => {
                stop_listening(&room, &channels);
                continue;
            }
            heard = heard.recv() => heard,
        };
        match heard {
            Some(Heard::Message { payload, .. }) => {
                let waiting = room.waiting();
                let ids = std::str::from_utf8(&payload).unwrap_or_default().split(' ');
                for awaited in ids.filter_map(|id| waiting.jobs.get(&id.parse().ok()?)) {
                    awaited.ended.notify_waiters();
                }
            }
            // Jobs may have ended unheard
            Some(Heard::Subscribed(channels)) => room.waiting().look_again(&channels),
            Some(Heard::Lost) => {}
            None => return,
        }
    }
}

/// Channels of queues for which nobody has waited for a while are not heard any more.
fn stop_listening(room: &Room, channels: &Channels) {
    room.waiting().queues.retain(|queue, listening| {
        let stays = listening.waiting > 0 || listening.empty_since.elapsed() < LINGER;
        if !stays {
            channels.remove(&QueueKeys::new(queue).ended());
        }
        stays
    });
}
