//! What is due next in each queue, by Redis's clock.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::maintenance_store::MaintenanceStore;
use crate::{StoreResult, keys::QueueKeys};
use common::{name::QueueName, rotation::Rotation, time::Millis};

/// The kinds of due times in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueTask {
    /// Scheduled and retryable jobs.
    Due,
    /// Leases and time limits of attempts.
    ExpiredLease,
    /// Everything else.
    Timer,
}

impl QueueTask {
    pub(super) const ALL: [Self; 3] = [Self::ExpiredLease, Self::Timer, Self::Due];

    pub(super) fn key(self, keys: &QueueKeys) -> String {
        match self {
            Self::Due => keys.due(),
            Self::ExpiredLease => keys.leases(),
            Self::Timer => keys.timers(),
        }
    }
}

/// How long after the last sign of activity a queue is read regularly.
const ACTIVE_TIME: Duration = Duration::from_mins(1);
/// A queue with something due this soon is active too.
const SOON: Duration = Duration::from_secs(10);
/// How many other queues are read each time: only a lost notification is found there.
const QUEUES_PER_TURN: usize = 1;
/// How many queues are read in one round trip.
const MAX_READ_AT_ONCE: usize = 500;

/// The next due times of all queues.
#[derive(Default)]
pub(super) struct DueTimes {
    queues: HashMap<QueueName, NextDue>,
    rotation: Rotation,
}

/// The next due times of a queue: for each task its time, and a moment before which it is not handled.
#[derive(Default)]
struct NextDue {
    tasks: [(Option<Millis>, Option<Instant>); QueueTask::ALL.len()],
    active_until: Option<Instant>,
    /// When something is due by a notification. Then the queue is read: a notification is no truth.
    told: Option<Millis>,
}

impl NextDue {
    fn unread() -> Self {
        Self { told: Some(0), ..Self::default() }
    }

    fn wait_for(&self, task: QueueTask, now: Millis) -> Option<Duration> {
        let (at, not_before) = self.tasks[task as usize];
        at.map(|at| wait_until(at, not_before, now))
    }

    fn wait(&self, now: Millis) -> Option<Duration> {
        let told = self.told.map(|at| wait_until(at, None, now));
        QueueTask::ALL.into_iter().filter_map(|task| self.wait_for(task, now)).chain(told).min()
    }

    fn is_active(&self, (now, moment): (Millis, Instant)) -> bool {
        self.active_until.is_some_and(|until| moment < until) || self.wait(now).is_some_and(|wait| wait < SOON)
    }
}

/// How long to wait from `now` for a due time, but at least until a moment.
pub(super) fn wait_until(at: Millis, not_before: Option<Instant>, now: Millis) -> Duration {
    // Due times are whole milliseconds: add one, because early is not due
    let wait = if at <= now { 0 } else { u64::try_from(at - now + 1).unwrap_or(0) };
    let pause = not_before.map_or(Duration::ZERO, |moment| moment.saturating_duration_since(Instant::now()));
    Duration::from_millis(wait).max(pause)
}

impl DueTimes {
    /// Forgets queues that are gone.
    pub(super) fn keep(&mut self, queues: &[QueueName]) {
        let known: HashSet<&QueueName> = queues.iter().collect();
        self.queues.retain(|queue, _| known.contains(queue));
    }

    /// Active queues, unknown ones, and a few others in turn.
    pub(super) fn queues_to_read(&mut self, queues: &[QueueName], now: (Millis, Instant)) -> Vec<QueueName> {
        let is_idle = |queue: &QueueName| self.queues.get(queue).is_some_and(|next| !next.is_active(now));
        let (idle, mut some): (Vec<QueueName>, Vec<QueueName>) = queues.iter().cloned().partition(is_idle);
        some.extend(self.rotation.next(&idle, QUEUES_PER_TURN));
        some
    }

    /// Something happens in a queue: more may follow without a notification.
    pub(super) fn note_activity(&mut self, queue: &QueueName, moment: Instant) {
        if let Some(next) = self.queues.get_mut(queue) {
            next.active_until = Some(moment + ACTIVE_TIME);
        }
    }

    /// Something in a queue is due at that time, says a notification.
    pub(super) fn note_due(&mut self, queue: &QueueName, at: Millis) {
        // A new queue is read at once: it may have more
        let told = &mut self.queues.entry(queue.clone()).or_insert_with(NextDue::unread).told;
        *told = Some(told.map_or(at, |known| known.min(at)));
    }

    /// The queues in which something is due now, say notifications.
    pub(super) fn queues_to_look_at(&self, now: Millis) -> Vec<QueueName> {
        let is_due = |next: &NextDue| next.told.is_some_and(|at| wait_until(at, None, now).is_zero());
        self.queues.iter().filter(|(_, next)| is_due(next)).map(|(queue, _)| queue.clone()).collect()
    }

    /// How long until the next task of any queue is due.
    pub(super) fn wait(&self, now: Millis) -> Option<Duration> {
        self.queues.values().filter_map(|next| next.wait(now)).min()
    }

    /// The queues with a task that is due.
    pub(super) fn due_queues(&self, now: Millis) -> Vec<QueueName> {
        let is_due = |next: &NextDue| next.wait(now).is_some_and(|wait| wait.is_zero());
        self.queues.iter().filter(|(_, next)| is_due(next)).map(|(queue, _)| queue.clone()).collect()
    }

    /// How long until a task of a queue is due.
    pub(super) fn wait_for(&self, queue: &QueueName, task: QueueTask, now: Millis) -> Option<Duration> {
        self.queues.get(queue)?.wait_for(task, now)
    }

    /// A task was handled: leave it alone before that moment.
    pub(super) fn pause(&mut self, queue: &QueueName, task: QueueTask, not_before: Instant) {
        if let Some(next) = self.queues.get_mut(queue) {
            next.tasks[task as usize].1 = Some(not_before);
            next.active_until = Some(not_before + ACTIVE_TIME);
        }
    }

    /// Reads the next due times of these queues.
    pub(super) async fn read(&mut self, store: &impl MaintenanceStore, queues: &[QueueName]) -> StoreResult<()> {
        for some in queues.chunks(MAX_READ_AT_ONCE) {
            for (queue, first) in some.iter().zip(store.first_due_times(some).await?) {
                let times = self.queues.entry(queue.clone()).or_default();
                times.told = None;
                for (task, at) in times.tasks.iter_mut().zip(first) {
                    task.0 = at;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_queues_are_read_a_few_at_a_time_and_active_ones_each_time() {
        let queues: Vec<QueueName> = (0..50).map(|number| format!("q{number:02}").parse().expect("a name")).collect();
        let mut times = DueTimes::default();
        let start = Instant::now();
        let soon = Millis::try_from(SOON.as_millis()).expect("a short time");
        assert_eq!(times.queues_to_read(&queues, (0, start)).len(), 50, "none is known yet");
        times.queues.extend(queues.iter().map(|queue| (queue.clone(), NextDue::default())));
        times.note_activity(&queues[7], start);
        times.queues.entry(queues[8].clone()).or_default().tasks[0].0 = Some(soon - 10);
        times.queues.entry(queues[9].clone()).or_default().tasks[0].0 = Some(soon * 100);
        let mut read = HashSet::new();
        for _ in 0..48 / QUEUES_PER_TURN {
            let some = times.queues_to_read(&queues, (1, start));
            assert_eq!(some.len(), 2 + QUEUES_PER_TURN);
            assert!(some.contains(&queues[7]) && some.contains(&queues[8]));
            read.extend(some);
        }
        assert_eq!(read.len(), 50);
        let later = (soon * 200, start + ACTIVE_TIME);
        assert_eq!(times.queues_to_read(&queues, later).len(), 2 + QUEUES_PER_TURN, "8 and 9 are due");
    }
}
