//! Waits for jobs without claiming them: thousands of waiters, two Redis connections.
//!
//! `wait_queue` has the waiters of each queue and whose turn it is; `watcher` is the task that reads the streams;
//! `new_entries` has its reads. A waiter claims only after its wakeup, and is woken only when a job arrived: nobody
//! polls.

mod new_entries;

mod wait_queue;
mod watcher;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{connection::notifier::Topics, jobs::Jobs};
use common::name::QueueName;
use common::settings::MAX_WATCHED_QUEUES;
use wait_queue::{WaitQueue, WaiterId};

pub use wait_queue::Remaining;

/// Maximum number of unread notifications. More are dropped: everything is checked again regularly.
const NOTIFICATION_BUFFER: usize = 1024;

/// Waits for jobs. Cheap to clone.
#[derive(Clone)]
pub struct LongPoll {
    shared: Arc<LongPollShared>,
    /// Subscribed when the first waiter registers.
    channels: Topics,
    notifications: String,
    /// The runtime that claims jobs for waiters: a claim must finish even if its request is gone.
    runtime: Handle,
}

/// What waiters share with the watcher.
#[derive(Default)]
struct LongPollShared {
    wait_queue: Mutex<WaitQueue>,
    changed: Notify,
}

impl LongPollShared {
    fn lock(&self) -> MutexGuard<'_, WaitQueue> {
        self.wait_queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the wait queues and notifies the watcher if needed.
    fn update<T>(&self, change: impl FnOnce(&mut WaitQueue) -> T) -> T {
        let mut wait_queue = self.lock();
        let changed = change(&mut wait_queue);
        if wait_queue.take_changed() {
            self.changed.notify_one();
        }
        changed
    }
}

/// Waiters need more queues than can be watched: [`MAX_WATCHED_QUEUES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyWatchedQueues;

/// A registered waiter. Dropping it unregisters it.
pub struct LongPollWaiter {
    shared: Arc<LongPollShared>,
    id: WaiterId,
    wakeup: Arc<Notify>,
}

impl LongPoll {
    /// Watches queues for waiters until `stop` is cancelled.
    #[must_use]
    pub fn start(jobs: &Jobs, stop: CancellationToken) -> Self {
        let (channels, heard) = jobs.store.notifier.subscribe(NOTIFICATION_BUFFER);
        let notifications = jobs.store.redis.topics().notifications();
        let shared: Arc<LongPollShared> = Arc::default();
        tokio::spawn(watcher::listen_for_changes(shared.clone(), heard, stop.clone()));
        tokio::spawn(watcher::run(shared.clone(), jobs.clone(), stop));
        Self { shared, channels, notifications, runtime: Handle::current() }
    }

    /// Registers a waiter for jobs of these queues. From here on no arrival is missed.
    ///
    /// # Errors
    /// Other waiters need as many queues as can be watched.
    pub fn register(&self, queues: &[QueueName]) -> Result<LongPollWaiter, TooManyWatchedQueues> {
        let joined = self.shared.update(|wait_queue| {
            let has_room = wait_queue.queue_count() + wait_queue.count_new(queues) <= MAX_WATCHED_QUEUES;
            has_room.then(|| wait_queue.register(queues))
        });
        let (id, wakeup) = joined.ok_or(TooManyWatchedQueues)?;
        self.channels.add(self.notifications.clone());
        Ok(LongPollWaiter { shared: self.shared.clone(), id, wakeup })
    }

    /// The runtime for work that must finish even if its waiter is gone.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl LongPollWaiter {
    /// Waits for a wakeup: a job arrived, which another client may have claimed already.
    pub async fn wait_for_wakeup(&self) {
        self.wakeup.notified().await;
    }

    /// Reports what remains. With `got_something` the next waiters are woken, and this one is finished.
    pub fn report_remaining(&self, left: &[(QueueName, Remaining)], got_something: bool) {
        self.shared.update(|wait_queue| wait_queue.report_remaining(self.id, left, got_something, Instant::now()));
    }

    /// Reports that these queues could not be read; nobody tries before that pause is over.
    pub fn report_failure(&self, queues: &[QueueName], pause: Duration) {
        let left: Vec<(QueueName, Remaining)> =
            queues.iter().map(|queue| (queue.clone(), Remaining::Unavailable(pause))).collect();
        self.report_remaining(&left, false);
    }
}

impl Drop for LongPollWaiter {
    fn drop(&mut self) {
        self.shared.update(|wait_queue| wait_queue.unregister(self.id));
    }
}
