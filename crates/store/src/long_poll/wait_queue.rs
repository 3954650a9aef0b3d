//! Who waits for jobs of which queue, and whose turn it is. Pure: times come from outside, calls go out as notices.
//!
//! A queue is watched while nobody looks into it. When a job arrives one of those who wait is called, the first of them who
//! is not looking anyway; the queue is not watched again before that one has told what is left. If there may be more
//! the next one is called, so that a hundred who wait are not all called for one job. Whoever leaves without a word leaves
//! the queue to the watch, which finds out by itself what is there: no job is left waiting for somebody who is gone.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use crate::{jobs::ClaimAvailability, long_poll::new_entries::WatchedStream};
use common::name::QueueName;
use tokio::{sync::Notify, time::Instant};

/// A paused queue says when it goes on; that message can be lost, so it is looked into from time to time.
const PAUSED_RECHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Somebody who waits. The first to come has the smallest.
pub(crate) type WaiterId = u64;

/// What is left in a queue, as far as somebody who fetched has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remaining {
    /// Nothing, and what its limits say to more.
    Empty(ClaimAvailability),
    /// There may be more.
    MaybeMore,
    /// It could not be looked into; not before so long.
    Unavailable(Duration),
}

#[derive(Default)]
pub(crate) struct WaitQueue {
    queues: HashMap<QueueName, QueueWaiters>,
    waiters: HashMap<WaiterId, LongPollWaiterState>,
    last_id: WaiterId,
    /// The watch has to look at the lines again.
    has_changed: bool,
}

#[derive(Default)]
struct QueueWaiters {
    waiters: BTreeSet<WaiterId>,
    watch: WatchState,
    /// Who was called for this queue and has not told yet.
    claimer: Option<WaiterId>,
    /// Something changed since that one was called.
    changed_since_wakeup: bool,
}

#[derive(Default)]
enum WatchState {
    /// Nobody knows where handing out has come to.
    #[default]
    Unknown,
    /// It is being looked up.
    LookingUp,
    /// These streams are watched; none where the queue has none yet.
    Watching(Vec<WatchedStream>),
    /// Somebody looks.
    Claiming,
    /// Its limits allow nothing before.
    PausedUntil(Instant),
}

struct LongPollWaiterState {
    queues: Vec<QueueName>,
    wakeup: Arc<Notify>,
    is_claiming: bool,
}

impl WaitQueue {
    /// How many queues somebody waits for.
    pub(crate) fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// How many of these are not among them.
    pub(crate) fn count_new(&self, queues: &[QueueName]) -> usize {
        queues.iter().filter(|queue| !self.queues.contains_key(queue)).count()
    }

    /// Lines somebody up for all of these queues.
    pub(crate) fn register(&mut self, queues: &[QueueName]) -> (WaiterId, Arc<Notify>) {
        self.last_id += 1;
        let called: Arc<Notify> = Arc::default();
        for queue in queues {
            self.has_changed |= !self.queues.contains_key(queue);
            self.queues.entry(queue.clone()).or_default().waiters.insert(self.last_id);
        }
        let waiting = LongPollWaiterState { queues: queues.to_vec(), wakeup: called.clone(), is_claiming: false };
        self.waiters.insert(self.last_id, waiting);
        (self.last_id, called)
    }

    /// Somebody waits no longer. What was left to them is left to the watch.
    pub(crate) fn unregister(&mut self, ticket: WaiterId) {
        let Some(left) = self.waiters.remove(&ticket) else { return };
        for queue in left.queues {
            let Some(line) = self.queues.get_mut(&queue) else { continue };
            line.waiters.remove(&ticket);
            if line.claimer == Some(ticket) {
                line.reset();
                self.has_changed = true;
            }
            if line.waiters.is_empty() {
                self.queues.remove(&queue);
            }
        }
    }

    /// Somebody who was called has looked, and tells what is left. Whoever got something waits no longer.
    pub(crate) fn report_remaining(
        &mut self,
        ticket: WaiterId,
        left: &[(QueueName, Remaining)],
        got_something: bool,
        now: Instant,
    ) {
        if let Some(waiting) = self.waiters.get_mut(&ticket) {
            waiting.is_claiming = false;
        }
        if got_something {
            self.remove_from_queues(ticket);
        }
        for (queue, left) in left {
            let Some(line) = self.queues.get_mut(queue).filter(|line| line.claimer == Some(ticket)) else { continue };
            line.claimer = None;
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
                Some(pause) if !line.changed_since_wakeup => line.watch = WatchState::PausedUntil(now + pause),
                _ => line.reset(),
            }
        }
        if got_something {
            self.unregister(ticket);
        }
    }

    /// Takes somebody out of all lines, but leaves them what they have to tell.
    fn remove_from_queues(&mut self, ticket: WaiterId) {
        let Some(waiting) = self.waiters.get(&ticket) else { return };
        for queue in &waiting.queues {
            if let Some(line) = self.queues.get_mut(queue) {
                line.waiters.remove(&ticket);
            }
        }
    }

    /// A job arrived in a queue that was watched.
    pub(crate) fn job_arrived(&mut self, queue: &QueueName) {
        if self.queues.get(queue).is_some_and(|line| matches!(line.watch, WatchState::Watching(_))) {
            self.wake_first(queue);
        }
    }

    /// Calls the first in line who is not looking anyway, or else the first, who looks once more then.
    fn wake_first(&mut self, queue: &QueueName) {
        let Some(line) = self.queues.get_mut(queue) else { return };
        let is_idle = |ticket: &&WaiterId| self.waiters.get(ticket).is_some_and(|waiting| !waiting.is_claiming);
        let Some(first) = line.waiters.iter().find(is_idle).or(line.waiters.first()).copied() else {
            line.reset();
            self.has_changed = true;
            return;
        };
        line.watch = WatchState::Claiming;
        line.claimer = Some(first);
        line.changed_since_wakeup = false;
        if let Some(waiting) = self.waiters.get_mut(&first) {
            waiting.is_claiming = true;
            waiting.wakeup.notify_one();
        }
    }

    /// A queue may have streams that are not watched, or goes on after it was paused.
    pub(crate) fn queue_changed(&mut self, queue: &QueueName) {
        let Some(line) = self.queues.get_mut(queue) else { return };
        if matches!(line.watch, WatchState::Claiming) {
            line.changed_since_wakeup = true;
        } else {
            line.reset();
            self.has_changed = true;
        }
    }

    /// Nothing that is known of any queue counts any more.
    pub(crate) fn all_queues_changed(&mut self) {
        let queues: Vec<QueueName> = self.queues.keys().cloned().collect();
        for queue in &queues {
            self.queue_changed(queue);
        }
    }

    /// Watches those again whose time has come; when that of the next one is.
    pub(crate) fn resume_paused(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for line in self.queues.values_mut() {
            match line.watch {
                WatchState::PausedUntil(until) if until <= now => line.reset(),
                WatchState::PausedUntil(until) => next = Some(next.map_or(until, |next| next.min(until))),
                _ => {}
            }
        }
        next
    }

    /// The queues whose streams have to be looked up.
    pub(crate) fn take_unknown(&mut self) -> Vec<QueueName> {
        let unset = self.queues.iter_mut().filter(|(_, line)| matches!(line.watch, WatchState::Unknown));
        unset
            .map(|(queue, line)| {
                line.watch = WatchState::LookingUp;
                queue.clone()
            })
            .collect()
    }

    /// The streams that were looked up for these queues.
    pub(crate) fn set_watched(&mut self, asked: &[QueueName], streams: Vec<WatchedStream>) {
        let mut by_queue: HashMap<QueueName, Vec<WatchedStream>> = HashMap::new();
        for stream in streams {
            by_queue.entry(stream.queue.clone()).or_default().push(stream);
        }
        for queue in asked {
            // What changed meanwhile is looked up once more
            if let Some(line) = self.queues.get_mut(queue).filter(|line| matches!(line.watch, WatchState::LookingUp)) {
                line.watch = WatchState::Watching(by_queue.remove(queue).unwrap_or_default());
            }
        }
    }

    /// The streams to watch, those of a queue behind each other.
    pub(crate) fn watched_streams(&self) -> Vec<WatchedStream> {
        let streams = self.queues.values().filter_map(|line| match &line.watch {
            WatchState::Watching(streams) => Some(streams),
            _ => None,
        });
        streams.flatten().cloned().collect()
    }

    /// Whether the watch has to look at the lines again, said once.
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
mod tests {
    use super::*;

    #[derive(Default)]
    struct WaitQueueHarness {
        lines: WaitQueue,
        calls: HashMap<WaiterId, Arc<Notify>>,
    }

    impl WaitQueueHarness {
        fn join(&mut self, queues: &[&str]) -> WaiterId {
            let (ticket, called) = self.lines.register(&names(queues));
            self.calls.insert(ticket, called);
            ticket
        }

        /// Everything that may be watched is.
        fn watch(&mut self) {
            let asked = self.lines.take_unknown();
            self.lines.set_watched(&asked, Vec::new());
        }

        /// Who was called since this was asked last.
        fn called(&mut self) -> Vec<WaiterId> {
            let is_called = |called: &Notify| {
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                std::pin::pin!(called.notified()).poll(&mut context).is_ready()
            };
            let mut called: Vec<WaiterId> =
                self.calls.iter().filter(|(_, call)| is_called(call)).map(|(ticket, _)| *ticket).collect();
            called.sort_unstable();
            called
        }

        fn looked(&mut self, ticket: WaiterId, queue: &str, left: Remaining, got_something: bool) {
            self.lines.report_remaining(ticket, &[(name(queue), left)], got_something, Instant::now());
        }
    }

    const EMPTY: Remaining = Remaining::Empty(ClaimAvailability::Unlimited);

    fn name(queue: &str) -> QueueName {
        queue.parse().expect("a name")
    }

    fn names(queues: &[&str]) -> Vec<QueueName> {
        queues.iter().map(|queue| name(queue)).collect()
    }

    #[test]
    fn one_is_called_for_a_job_and_the_next_when_there_may_be_more() {
        let mut hall = WaitQueueHarness::default();
        let [first, second, third] = [hall.join(&["a"]), hall.join(&["a"]), hall.join(&["a"])];
        hall.watch();
        hall.lines.job_arrived(&name("a"));
        hall.lines.job_arrived(&name("a"));
        assert_eq!(hall.called(), [first], "nobody else as long as that one looks");
        hall.looked(first, "a", Remaining::MaybeMore, true);
        assert_eq!(hall.called(), [second]);
        hall.looked(second, "a", EMPTY, false);
        assert_eq!((hall.called(), hall.lines.take_unknown()), (vec![], names(&["a"])), "watched again");
        hall.lines.set_watched(&names(&["a"]), Vec::new());
        hall.lines.job_arrived(&name("a"));
        assert_eq!(hall.called(), [second], "who got nothing has kept its place");
        hall.lines.unregister(second);
        hall.watch();
        hall.lines.job_arrived(&name("a"));
        assert_eq!(hall.called(), [third], "who hangs up leaves the job to the next");
    }

    #[test]
    fn a_queue_whose_looker_found_a_job_elsewhere_is_passed_on() {
        let mut hall = WaitQueueHarness::default();
        let both = hall.join(&["a", "b"]);
        hall.watch();
        hall.lines.job_arrived(&name("b"));
        hall.lines.job_arrived(&name("a"));
        assert_eq!(hall.called(), [both], "the only one there is");
        let other = hall.join(&["b"]);
        let left = [(name("a"), Remaining::MaybeMore), (name("b"), Remaining::MaybeMore)];
        hall.lines.report_remaining(both, &left, true, Instant::now());
        assert_eq!(hall.called(), [other]);
        assert_eq!(hall.lines.queue_count(), 1, "nobody waits for the other any more");
        hall.looked(other, "b", EMPTY, true);
        assert!(hall.lines.queues.is_empty() && hall.lines.waiters.is_empty());
    }

    #[test]
    fn a_queue_that_hands_out_nothing_for_a_while_is_left_alone_unless_there_is_news() {
        let mut hall = WaitQueueHarness::default();
        let ticket = hall.join(&["a"]);
        let soon = Remaining::Empty(ClaimAvailability::RetryAfter(Duration::from_millis(200)));
        for (left, pause) in [
            (soon, 200),
            (Remaining::Empty(ClaimAvailability::Paused), 10_000),
            (Remaining::Unavailable(PAUSED_RECHECK_INTERVAL), 10_000),
        ] {
            hall.watch();
            hall.lines.job_arrived(&name("a"));
            let now = Instant::now();
            hall.lines.report_remaining(ticket, &[(name("a"), left)], false, now);
            assert!(hall.lines.take_unknown().is_empty(), "{left:?}");
            let until = now + Duration::from_millis(pause);
            assert_eq!(hall.lines.resume_paused(now), Some(until));
            assert_eq!((hall.lines.resume_paused(until), hall.lines.take_unknown().len()), (None, 1), "{left:?}");
            hall.lines.queue_changed(&name("a"));
            // It goes on just after somebody saw that it does not
            hall.watch();
            hall.lines.job_arrived(&name("a"));
            hall.lines.queue_changed(&name("a"));
            hall.looked(ticket, "a", left, false);
            assert_eq!(hall.lines.take_unknown().len(), 1, "{left:?}");
            hall.lines.queue_changed(&name("a"));
        }
    }

    #[test]
    fn a_stream_that_is_made_while_the_streams_are_looked_up_is_looked_up() {
        let mut hall = WaitQueueHarness::default();
        hall.join(&["a"]);
        let asked = hall.lines.take_unknown();
        hall.lines.queue_changed(&name("a"));
        hall.lines.set_watched(&asked, Vec::new());
        assert_eq!(hall.lines.take_unknown(), names(&["a"]));
    }

    #[test]
    fn the_watch_is_stirred_only_when_it_has_to_know() {
        let mut hall = WaitQueueHarness::default();
        let first = hall.join(&["a"]);
        assert!(hall.lines.take_changed() && !hall.lines.take_changed());
        let second = hall.join(&["a"]);
        assert!(!hall.lines.take_changed(), "that queue is watched");
        hall.watch();
        hall.lines.job_arrived(&name("a"));
        hall.looked(first, "a", Remaining::MaybeMore, true);
        assert!(!hall.lines.take_changed(), "the second looks");
        hall.lines.unregister(second);
        assert!(hall.lines.take_changed(), "it had not told");
    }
}
