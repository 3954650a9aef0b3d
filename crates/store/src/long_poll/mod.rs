//! Waiting for jobs to arrive: thousands who wait, two Redis connections.
//!
//! `wait_queue` has who waits for what and whose turn it is, `watcher` is the task that reads. Whoever waits takes no job before
//! they are called, and nobody is called before there is one: neither polls.

mod new_entries;

mod wait_queue;
mod watcher;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{connection::notifier::Topics, jobs::Jobs, keys};
use common::name::QueueName;
use common::settings::MAX_WATCHED_QUEUES;
use wait_queue::{WaitQueue, WaiterId};

pub use wait_queue::Remaining;

/// Wake-up calls heard and not looked at yet. More are dropped: everything is looked at again from time to time.
const NOTIFICATION_BUFFER: usize = 1024;

/// Those who wait for jobs. Clone it freely.
#[derive(Clone)]
pub struct LongPoll {
    shared: Arc<LongPollShared>,
    /// Wake-up calls are heard from when somebody waits first.
    channels: Topics,
    /// Where jobs are taken for those who wait: what was taken outlives the request that it was for.
    runtime: Handle,
}

/// What those who wait share with the watch.
#[derive(Default)]
struct LongPollShared {
    wait_queue: Mutex<WaitQueue>,
    changed: Notify,
}

impl LongPollShared {
    fn lock(&self) -> MutexGuard<'_, WaitQueue> {
        self.wait_queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the lines and tells the watch if it has to know.
    fn update<T>(&self, change: impl FnOnce(&mut WaitQueue) -> T) -> T {
        let mut lines = self.lock();
        let changed = change(&mut lines);
        if lines.take_changed() {
            self.changed.notify_one();
        }
        changed
    }
}

/// More queues than can be watched: [`MAX_WATCHED_QUEUES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyWatchedQueues;

/// A place in line. Whoever leaves it will not be called any more.
pub struct LongPollWaiter {
    shared: Arc<LongPollShared>,
    id: WaiterId,
    wakeup: Arc<Notify>,
}

impl LongPoll {
    /// Watches queues for those who wait, until `stop` is cancelled.
    #[must_use]
    pub fn start(jobs: &Jobs, stop: CancellationToken) -> Self {
        let (channels, heard) = jobs.store.notifier.subscribe(NOTIFICATION_BUFFER);
        let shared: Arc<LongPollShared> = Arc::default();
        tokio::spawn(watcher::listen_for_changes(shared.clone(), heard, stop.clone()));
        tokio::spawn(watcher::run(shared.clone(), jobs.clone(), stop));
        Self { shared, channels, runtime: Handle::current() }
    }

    /// Lines up for jobs of these queues. From here on no arrival is missed.
    ///
    /// # Errors
    /// Others wait for as many queues as may be watched.
    pub fn register(&self, queues: &[QueueName]) -> Result<LongPollWaiter, TooManyWatchedQueues> {
        let joined = self.shared.update(|lines| {
            let has_room = lines.queue_count() + lines.count_new(queues) <= MAX_WATCHED_QUEUES;
            has_room.then(|| lines.register(queues))
        });
        let (ticket, called) = joined.ok_or(TooManyWatchedQueues)?;
        self.channels.add(keys::NOTIFICATIONS.to_owned());
        Ok(LongPollWaiter { shared: self.shared.clone(), id: ticket, wakeup: called })
    }

    /// Where to run what must be finished though nobody may wait for it any more.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl LongPollWaiter {
    /// Waits to be called: then a job has arrived, which somebody else may have taken already.
    pub async fn wait_for_wakeup(&self) {
        self.wakeup.notified().await;
    }

    /// Tells what is left. With `got_something` the next in line are called, and this seat is free.
    pub fn report_remaining(&self, left: &[(QueueName, Remaining)], got_something: bool) {
        self.shared.update(|lines| lines.report_remaining(self.id, left, got_something, Instant::now()));
    }

    /// Tells that these queues could not be looked into; nobody tries before that pause is over.
    pub fn report_failure(&self, queues: &[QueueName], pause: Duration) {
        let left: Vec<(QueueName, Remaining)> =
            queues.iter().map(|queue| (queue.clone(), Remaining::Unavailable(pause))).collect();
        self.report_remaining(&left, false);
    }
}

impl Drop for LongPollWaiter {
    fn drop(&mut self) {
        self.shared.update(|lines| lines.unregister(self.id));
    }
}
