//! Which waiter waits for which queue, and whose turn it is. Pure: times are arguments, wakeups are notifies.
//!
//! A queue is watched while nobody claims from it. When a job arrives, the first waiter that is not claiming already
//! is woken; the queue is not watched again before that waiter reports what remains. If there may be more, the next
//! one is woken, so that one job does not wake a hundred waiters. If a waiter leaves without a report, the watcher
//! checks the queue: no job waits for a waiter that is gone.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use crate::{jobs::ClaimAvailability, long_poll::new_entries::WatchedStream};
use common::{name::QueueName, rotation::Rotation};
use tokio::{sync::Notify, time::Instant};

/// A paused queue is checked regularly, because the notification that it resumed can be lost.
const PAUSED_RECHECK_INTERVAL: Duration = Duration::from_secs(10);

/// How many queues are looked up again without a reason.
const RECHECKED_QUEUES: usize = 4;

/// Identifies a waiter. Earlier waiters have smaller ids.
pub(crate) type WaiterId = u64;

/// What remains in a queue after a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remaining {
    /// No job; when to expect more.
    Empty(ClaimAvailability),
    /// There may be more jobs.
    MaybeMore,
    /// The queue could not be read; try again after this delay.
    Unavailable(Duration),
}

#[derive(Default)]
pub(crate) struct WaitQueue {
    queues: HashMap<QueueName, QueueWaiters>,
    waiters: HashMap<WaiterId, LongPollWaiterState>,
    last_id: WaiterId,
    /// The watcher must check the queues again.
    has_changed: bool,
    rotation: Rotation,
}

#[derive(Default)]
struct QueueWaiters {
    waiters: BTreeSet<WaiterId>,
    watch: WatchState,
    /// The waiter that was woken for this queue and has not reported yet.
    claimer: Option<WaiterId>,
    /// Something changed since that wakeup.
    changed_since_wakeup: bool,
}

#[derive(Default)]
enum WatchState {
    /// The last claimed entries are unknown.
    #[default]
    Unknown,
    /// They are being looked up.
    LookingUp,
    /// These streams are watched; none if the queue has none yet.
    Watching(Vec<WatchedStream>),
    /// A waiter claims.
    Claiming,
    /// The queue's limits allow nothing before.
    PausedUntil(Instant),
}

struct LongPollWaiterState {
    queues: Vec<QueueName>,
    wakeup: Arc<Notify>,
    is_claiming: bool,
}

impl WaitQueue {
    /// The number of queues with waiters.
    pub(crate) fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Whether somebody waits for jobs of that queue.
    pub(crate) fn has_waiters(&self, queue: &QueueName) -> bool {
        self.queues.contains_key(queue)
    }

    /// How many of these queues have no waiter yet.
    pub(crate) fn count_new(&self, queues: &[QueueName]) -> usize {
        queues.iter().filter(|queue| !self.queues.contains_key(queue)).count()
    }

    /// Registers a waiter for all of these queues.
    pub(crate) fn register(&mut self, queues: &[QueueName]) -> (WaiterId, Arc<Notify>) {
        self.last_id += 1;
        let wakeup: Arc<Notify> = Arc::default();
        for queue in queues {
            self.has_changed |= !self.queues.contains_key(queue);
            self.queues.entry(queue.clone()).or_default().waiters.insert(self.last_id);
        }
        let state = LongPollWaiterState { queues: queues.to_vec(), wakeup: wakeup.clone(), is_claiming: false };
        self.waiters.insert(self.last_id, state);
        (self.last_id, wakeup)
    }

    /// Removes a waiter. Queues that it was woken for are checked by the watcher.
    pub(crate) fn unregister(&mut self, waiter: WaiterId) {
        let Some(left) = self.waiters.remove(&waiter) else { return };
        for queue in left.queues {
            let Some(entry) = self.queues.get_mut(&queue) else { continue };
            entry.waiters.remove(&waiter);
            if entry.claimer == Some(waiter) {
                entry.reset();
                self.has_changed = true;
            }
            if entry.waiters.is_empty() {
                self.queues.remove(&queue);
            }
        }
    }

    /// A woken waiter reports what remains. With `got_something` it waits no longer.
    pub(crate) fn report_remaining(
        &mut self,
        waiter: WaiterId,
        left: &[(QueueName, Remaining)],
        got_something: bool,
        now: Instant,
    ) {
        if let Some(state) = self.waiters.get_mut(&waiter) {
            state.is_claiming = false;
        }
        if got_something {
            self.remove_from_queues(waiter);
        }
        for (queue, left) in left {
            let Some(entry) = self.queues.get_mut(queue).filter(|entry| entry.claimer == Some(waiter)) else {
                continue;
            };
            entry.claimer = None;
            let pause = match left {
                Remaining::Empty(ClaimAvailability::Unlimited | ClaimAvailability::Limited) => None,
                Remaining::Empty(ClaimAvailability::RetryAfter(pause)) | Remaining::Unavailable(pause) => Some(*pause),
                Remaining::Empty(ClaimAvailability::Paused) => Some(PAUSED_RECHECK_INTERVAL),
                Remaining::MaybeMore => {
                    self.wake_first(queue);
                    continue;
                }
            };
            self.has_changed = true;
            match pause {
                Some(pause) if !entry.changed_since_wakeup => entry.watch = WatchState::PausedUntil(now + pause),
                _ => entry.reset(),
            }
        }
        if got_something {
            self.unregister(waiter);
        }
    }

    /// Removes a waiter from all queues, but not its pending reports.
    fn remove_from_queues(&mut self, waiter: WaiterId) {
        let Some(state) = self.waiters.get(&waiter) else { return };
        for queue in &state.queues {
            if let Some(entry) = self.queues.get_mut(queue) {
                entry.waiters.remove(&waiter);
            }
        }
    }

    /// A job arrived in a watched queue.
    pub(crate) fn job_arrived(&mut self, queue: &QueueName) {
        if self.queues.get(queue).is_some_and(|entry| matches!(entry.watch, WatchState::Watching(_))) {
            self.wake_first(queue);
        }
    }

    /// Wakes the first waiter that is not claiming; if all are, the first one, which then claims once more.
    fn wake_first(&mut self, queue: &QueueName) {
        let Some(entry) = self.queues.get_mut(queue) else { return };
        let is_idle = |waiter: &&WaiterId| self.waiters.get(waiter).is_some_and(|state| !state.is_claiming);
        let Some(first) = entry.waiters.iter().find(is_idle).or(entry.waiters.first()).copied() else {
            entry.reset();
            self.has_changed = true;
            return;
        };
        entry.watch = WatchState::Claiming;
        entry.claimer = Some(first);
        entry.changed_since_wakeup = false;
        if let Some(state) = self.waiters.get_mut(&first) {
            state.is_claiming = true;
            state.wakeup.notify_one();
        }
    }

    /// A queue may have unwatched streams, or was resumed.
    pub(crate) fn queue_changed(&mut self, queue: &QueueName) {
        let Some(entry) = self.queues.get_mut(queue) else { return };
        if matches!(entry.watch, WatchState::Claiming) {
            entry.changed_since_wakeup = true;
        } else {
            entry.reset();
            self.has_changed = true;
        }
    }

    /// Some queues in turn may have changed without a notification.
    pub(crate) fn recheck_some(&mut self) {
        let queues: Vec<QueueName> = self.queues.keys().cloned().collect();
        for queue in &self.rotation.next(&queues, RECHECKED_QUEUES) {
            self.queue_changed(queue);
        }
    }

    /// Nothing known about any queue is valid any more.
    pub(crate) fn all_queues_changed(&mut self) {
        let queues: Vec<QueueName> = self.queues.keys().cloned().collect();
        for queue in &queues {
            self.queue_changed(queue);
        }
    }

    /// Watches queues again whose pause is over; returns when the next pause ends.
    pub(crate) fn resume_paused(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for entry in self.queues.values_mut() {
            match entry.watch {
                WatchState::PausedUntil(until) if until <= now => entry.reset(),
                WatchState::PausedUntil(until) => next = Some(next.map_or(until, |next| next.min(until))),
                _ => {}
            }
        }
        next
    }

    /// The queues whose streams must be looked up.
    pub(crate) fn take_unknown(&mut self) -> Vec<QueueName> {
        let unset = self.queues.iter_mut().filter(|(_, entry)| matches!(entry.watch, WatchState::Unknown));
        unset
            .map(|(queue, entry)| {
                entry.watch = WatchState::LookingUp;
                queue.clone()
            })
            .collect()
    }

    /// Sets the streams that were looked up for these queues.
    pub(crate) fn set_watched(&mut self, asked: &[QueueName], streams: Vec<WatchedStream>) {
        let mut by_queue: HashMap<QueueName, Vec<WatchedStream>> = HashMap::new();
        for stream in streams {
            by_queue.entry(stream.queue.clone()).or_default().push(stream);
        }
        for queue in asked {
            // If something changed meanwhile, look it up once more
            if let Some(entry) = self.queues.get_mut(queue).filter(|entry| matches!(entry.watch, WatchState::LookingUp))
            {
                entry.watch = WatchState::Watching(by_queue.remove(queue).unwrap_or_default());
            }
        }
    }

    /// The streams to watch, grouped by queue.
    pub(crate) fn watched_streams(&self) -> Vec<WatchedStream> {
        let streams = self.queues.values().filter_map(|entry| match &entry.watch {
            WatchState::Watching(streams) => Some(streams),
            _ => None,
        });
        streams.flatten().cloned().collect()
    }

    /// Whether the watcher must check the queues again; clears the flag.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }
}

impl QueueWaiters {
    fn reset(&mut self) {
        self.watch = WatchState::Unknown;
        self.claimer = None;
        self.changed_since_wakeup = false;
    }
}

#[cfg(test)]
mod tests;
