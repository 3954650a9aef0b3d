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

use crate::{
    connection::notifier::{Channels, subscribe_to_changing},
    jobs::Jobs,
    keys,
};
use common::name::QueueName;
use common::settings::MAX_WATCHED_QUEUES;
use wait_queue::{Lines, Ticket};

pub use wait_queue::Left;

/// Wake-up calls heard and not looked at yet. More are dropped: everything is looked at again from time to time.
const BUFFER: usize = 1024;

/// Those who wait for jobs. Clone it freely.
#[derive(Clone)]
pub struct Arrivals {
    hall: Arc<Hall>,
    /// Wake-up calls are heard from when somebody waits first.
    channels: Channels,
    /// Where jobs are taken for those who wait: what was taken outlives the request that it was for.
    runtime: Handle,
}

/// What those who wait share with the watch.
#[derive(Default)]
struct Hall {
    lines: Mutex<Lines>,
    stirred: Notify,
}

impl Hall {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the lines and tells the watch if it has to know.
    fn change<T>(&self, change: impl FnOnce(&mut Lines) -> T) -> T {
        let mut lines = self.lines();
        let changed = change(&mut lines);
        if lines.stirred() {
            self.stirred.notify_one();
        }
        changed
    }
}

/// More queues than can be watched: [`MAX_WATCHED_QUEUES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyWatched;

/// A place in line. Whoever leaves it will not be called any more.
pub struct Seat {
    hall: Arc<Hall>,
    ticket: Ticket,
    called: Arc<Notify>,
}

impl Arrivals {
    /// Watches queues for those who wait, until `stop` is cancelled.
    #[must_use]
    pub fn open(jobs: &Jobs, stop: CancellationToken) -> Self {
        let (channels, heard) = subscribe_to_changing(jobs.redis(), BUFFER, stop.clone());
        let hall: Arc<Hall> = Arc::default();
        tokio::spawn(watcher::listen(hall.clone(), heard, stop.clone()));
        tokio::spawn(watcher::run(hall.clone(), jobs.clone(), stop));
        Self { hall, channels, runtime: Handle::current() }
    }

    /// Lines up for jobs of these queues. From here on no arrival is missed.
    ///
    /// # Errors
    /// Others wait for as many queues as may be watched.
    pub fn sit_down(&self, queues: &[QueueName]) -> Result<Seat, TooManyWatched> {
        let joined = self.hall.change(|lines| {
            let has_room = lines.queues() + lines.new_among(queues) <= MAX_WATCHED_QUEUES;
            has_room.then(|| lines.join(queues))
        });
        let (ticket, called) = joined.ok_or(TooManyWatched)?;
        self.channels.add(keys::WAKE.to_owned());
        Ok(Seat { hall: self.hall.clone(), ticket, called })
    }

    /// Where to run what must be finished though nobody may wait for it any more.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl Seat {
    /// Waits to be called: then a job has arrived, which somebody else may have taken already.
    pub async fn called(&self) {
        self.called.notified().await;
    }

    /// Tells what is left. With `got_something` the next in line are called, and this seat is free.
    pub fn looked(&self, left: &[(QueueName, Left)], got_something: bool) {
        self.hall.change(|lines| lines.looked(self.ticket, left, got_something, Instant::now()));
    }

    /// Tells that these queues could not be looked into; nobody tries before that pause is over.
    pub fn failed(&self, queues: &[QueueName], pause: Duration) {
        let left: Vec<(QueueName, Left)> = queues.iter().map(|queue| (queue.clone(), Left::Unknown(pause))).collect();
        self.looked(&left, false);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.hall.change(|lines| lines.leave(self.ticket));
    }
}
