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

use crate::{jobs::More, long_poll::new_entries::Watched};
use common::name::QueueName;
use tokio::{sync::Notify, time::Instant};

/// A paused queue says when it goes on; that message can be lost, so it is looked into from time to time.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Somebody who waits. The first to come has the smallest.
pub(crate) type Ticket = u64;

/// What is left in a queue, as far as somebody who fetched has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing, and what its limits say to more.
    Nothing(More),
    /// There may be more.
    Perhaps,
    /// It could not be looked into; not before so long.
    Unknown(Duration),
}

#[derive(Default)]
pub(crate) struct Lines {
    queues: HashMap<QueueName, Line>,
    waiting: HashMap<Ticket, Waiting>,
    tickets: Ticket,
    /// The watch has to look at the lines again.
    is_stirred: bool,
}

#[derive(Default)]
struct Line {
    waiting: BTreeSet<Ticket>,
    watch: Watch,
    /// Who was called for this queue and has not told yet.
    looker: Option<Ticket>,
    /// Something changed since that one was called.
    has_news: bool,
}

#[derive(Default)]
enum Watch {
    /// Nobody knows where handing out has come to.
    #[default]
    Unset,
    /// It is being looked up.
    Asked,
    /// These streams are watched; none where the queue has none yet.
    Set(Vec<Watched>),
    /// Somebody looks.
    Called,
    /// Its limits allow nothing before.
    Held(Instant),
}

struct Waiting {
    queues: Vec<QueueName>,
    called: Arc<Notify>,
    is_looking: bool,
}

impl Lines {
    /// How many queues somebody waits for.
    pub(crate) fn queues(&self) -> usize {
        self.queues.len()
    }

    /// How many of these are not among them.
    pub(crate) fn new_among(&self, queues: &[QueueName]) -> usize {
        queues.iter().filter(|queue| !self.queues.contains_key(queue)).count()
    }

    /// Lines somebody up for all of these queues.
    pub(crate) fn join(&mut self, queues: &[QueueName]) -> (Ticket, Arc<Notify>) {
        self.tickets += 1;
        let called: Arc<Notify> = Arc::default();
        for queue in queues {
            self.is_stirred |= !self.queues.contains_key(queue);
            self.queues.entry(queue.clone()).or_default().waiting.insert(self.tickets);
        }
        let waiting = Waiting { queues: queues.to_vec(), called: called.clone(), is_looking: false };
        self.waiting.insert(self.tickets, waiting);
        (self.tickets, called)
    }

    /// Somebody waits no longer. What was left to them is left to the watch.
    pub(crate) fn leave(&mut self, ticket: Ticket) {
        let Some(left) = self.waiting.remove(&ticket) else { return };
        for queue in left.queues {
            let Some(line) = self.queues.get_mut(&queue) else { continue };
            line.waiting.remove(&ticket);
            if line.looker == Some(ticket) {
                line.unset();
                self.is_stirred = true;
            }
            if line.waiting.is_empty() {
                self.queues.remove(&queue);
            }
        }
    }

    /// Somebody who was called has looked, and tells what is left. Whoever got something waits no longer.
    pub(crate) fn looked(&mut self, ticket: Ticket, left: &[(QueueName, Left)], got_something: bool, now: Instant) {
        if let Some(waiting) = self.waiting.get_mut(&ticket) {
            waiting.is_looking = false;
        }
        if got_something {
            self.step_out(ticket);
        }
        for (queue, left) in left {
            let Some(line) = self.queues.get_mut(queue).filter(|line| line.looker == Some(ticket)) else { continue };
            line.looker = None;
            let pause = match left {
                Left::Nothing(More::Unlimited | More::Limited) => None,
                Left::Nothing(More::In(pause)) | Left::Unknown(pause) => Some(*pause),
                Left::Nothing(More::Paused) => Some(LOOK_AGAIN),
                Left::Perhaps => {
                    self.call(queue);
                    continue;
                }
            };
            self.is_stirred = true;
            match pause {
                Some(pause) if !line.has_news => line.watch = Watch::Held(now + pause),
                _ => line.unset(),
            }
        }
        if got_something {
            self.leave(ticket);
        }
    }

    /// Takes somebody out of all lines, but leaves them what they have to tell.
    fn step_out(&mut self, ticket: Ticket) {
        let Some(waiting) = self.waiting.get(&ticket) else { return };
        for queue in &waiting.queues {
            if let Some(line) = self.queues.get_mut(queue) {
                line.waiting.remove(&ticket);
            }
        }
    }

    /// A job arrived in a queue that was watched.
    pub(crate) fn arrived(&mut self, queue: &QueueName) {
        if self.queues.get(queue).is_some_and(|line| matches!(line.watch, Watch::Set(_))) {
            self.call(queue);
        }
    }

    /// Calls the first in line who is not looking anyway, or else the first, who looks once more then.
    fn call(&mut self, queue: &QueueName) {
        let Some(line) = self.queues.get_mut(queue) else { return };
        let is_idle = |ticket: &&Ticket| self.waiting.get(ticket).is_some_and(|waiting| !waiting.is_looking);
        let Some(first) = line.waiting.iter().find(is_idle).or(line.waiting.first()).copied() else {
            line.unset();
            self.is_stirred = true;
            return;
        };
        line.watch = Watch::Called;
        line.looker = Some(first);
        line.has_news = false;
        if let Some(waiting) = self.waiting.get_mut(&first) {
            waiting.is_looking = true;
            waiting.called.notify_one();
        }
    }

    /// A queue may have streams that are not watched, or goes on after it was paused.
    pub(crate) fn changed(&mut self, queue: &QueueName) {
        let Some(line) = self.queues.get_mut(queue) else { return };
        if matches!(line.watch, Watch::Called) {
            line.has_news = true;
        } else {
            line.unset();
            self.is_stirred = true;
        }
    }

    /// Nothing that is known of any queue counts any more.
    pub(crate) fn all_changed(&mut self) {
        let queues: Vec<QueueName> = self.queues.keys().cloned().collect();
        for queue in &queues {
            self.changed(queue);
        }
    }

    /// Watches those again whose time has come; when that of the next one is.
    pub(crate) fn release(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for line in self.queues.values_mut() {
            match line.watch {
                Watch::Held(until) if until <= now => line.unset(),
                Watch::Held(until) => next = Some(next.map_or(until, |next| next.min(until))),
                _ => {}
            }
        }
        next
    }

    /// The queues whose streams have to be looked up.
    pub(crate) fn ask(&mut self) -> Vec<QueueName> {
        let unset = self.queues.iter_mut().filter(|(_, line)| matches!(line.watch, Watch::Unset));
        unset
            .map(|(queue, line)| {
                line.watch = Watch::Asked;
                queue.clone()
            })
            .collect()
    }

    /// The streams that were looked up for these queues.
    pub(crate) fn set(&mut self, asked: &[QueueName], streams: Vec<Watched>) {
        let mut by_queue: HashMap<QueueName, Vec<Watched>> = HashMap::new();
        for stream in streams {
            by_queue.entry(stream.queue.clone()).or_default().push(stream);
        }
        for queue in asked {
            // What changed meanwhile is looked up once more
            if let Some(line) = self.queues.get_mut(queue).filter(|line| matches!(line.watch, Watch::Asked)) {
                line.watch = Watch::Set(by_queue.remove(queue).unwrap_or_default());
            }
        }
    }

    /// The streams to watch, those of a queue behind each other.
    pub(crate) fn watched(&self) -> Vec<Watched> {
        let streams = self.queues.values().filter_map(|line| match &line.watch {
            Watch::Set(streams) => Some(streams),
            _ => None,
        });
        streams.flatten().cloned().collect()
    }

    /// Whether the watch has to look at the lines again, said once.
    pub(crate) fn stirred(&mut self) -> bool {
        std::mem::take(&mut self.is_stirred)
    }
}

impl Line {
    fn unset(&mut self) {
        self.watch = Watch::Unset;
        self.looker = None;
        self.has_news = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Hall {
        lines: Lines,
        calls: HashMap<Ticket, Arc<Notify>>,
    }

    impl Hall {
        fn join(&mut self, queues: &[&str]) -> Ticket {
            let (ticket, called) = self.lines.join(&names(queues));
            self.calls.insert(ticket, called);
            ticket
        }

        /// Everything that may be watched is.
        fn watch(&mut self) {
            let asked = self.lines.ask();
            self.lines.set(&asked, Vec::new());
        }

        /// Who was called since this was asked last.
        fn called(&mut self) -> Vec<Ticket> {
            let is_called = |called: &Notify| {
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                std::pin::pin!(called.notified()).poll(&mut context).is_ready()
            };
            let mut called: Vec<Ticket> =
                self.calls.iter().filter(|(_, call)| is_called(call)).map(|(ticket, _)| *ticket).collect();
            called.sort_unstable();
            called
        }

        fn looked(&mut self, ticket: Ticket, queue: &str, left: Left, got_something: bool) {
            self.lines.looked(ticket, &[(name(queue), left)], got_something, Instant::now());
        }
    }

    const EMPTY: Left = Left::Nothing(More::Unlimited);

    fn name(queue: &str) -> QueueName {
        queue.parse().expect("a name")
    }

    fn names(queues: &[&str]) -> Vec<QueueName> {
        queues.iter().map(|queue| name(queue)).collect()
    }

    #[test]
    fn one_is_called_for_a_job_and_the_next_when_there_may_be_more() {
        let mut hall = Hall::default();
        let [first, second, third] = [hall.join(&["a"]), hall.join(&["a"]), hall.join(&["a"])];
        hall.watch();
        hall.lines.arrived(&name("a"));
        hall.lines.arrived(&name("a"));
        assert_eq!(hall.called(), [first], "nobody else as long as that one looks");
        hall.looked(first, "a", Left::Perhaps, true);
        assert_eq!(hall.called(), [second]);
        hall.looked(second, "a", EMPTY, false);
        assert_eq!((hall.called(), hall.lines.ask()), (vec![], names(&["a"])), "watched again");
        hall.lines.set(&names(&["a"]), Vec::new());
        hall.lines.arrived(&name("a"));
        assert_eq!(hall.called(), [second], "who got nothing has kept its place");
        hall.lines.leave(second);
        hall.watch();
        hall.lines.arrived(&name("a"));
        assert_eq!(hall.called(), [third], "who hangs up leaves the job to the next");
    }

    #[test]
    fn a_queue_whose_looker_found_a_job_elsewhere_is_passed_on() {
        let mut hall = Hall::default();
        let both = hall.join(&["a", "b"]);
        hall.watch();
        hall.lines.arrived(&name("b"));
        hall.lines.arrived(&name("a"));
        assert_eq!(hall.called(), [both], "the only one there is");
        let other = hall.join(&["b"]);
        let left = [(name("a"), Left::Perhaps), (name("b"), Left::Perhaps)];
        hall.lines.looked(both, &left, true, Instant::now());
        assert_eq!(hall.called(), [other]);
        assert_eq!(hall.lines.queues(), 1, "nobody waits for the other any more");
        hall.looked(other, "b", EMPTY, true);
        assert!(hall.lines.queues.is_empty() && hall.lines.waiting.is_empty());
    }

    #[test]
    fn a_queue_that_hands_out_nothing_for_a_while_is_left_alone_unless_there_is_news() {
        let mut hall = Hall::default();
        let ticket = hall.join(&["a"]);
        let soon = Left::Nothing(More::In(Duration::from_millis(200)));
        for (left, pause) in [(soon, 200), (Left::Nothing(More::Paused), 10_000), (Left::Unknown(LOOK_AGAIN), 10_000)] {
            hall.watch();
            hall.lines.arrived(&name("a"));
            let now = Instant::now();
            hall.lines.looked(ticket, &[(name("a"), left)], false, now);
            assert!(hall.lines.ask().is_empty(), "{left:?}");
            let until = now + Duration::from_millis(pause);
            assert_eq!(hall.lines.release(now), Some(until));
            assert_eq!((hall.lines.release(until), hall.lines.ask().len()), (None, 1), "{left:?}");
            hall.lines.changed(&name("a"));
            // It goes on just after somebody saw that it does not
            hall.watch();
            hall.lines.arrived(&name("a"));
            hall.lines.changed(&name("a"));
            hall.looked(ticket, "a", left, false);
            assert_eq!(hall.lines.ask().len(), 1, "{left:?}");
            hall.lines.changed(&name("a"));
        }
    }

    #[test]
    fn a_stream_that_is_made_while_the_streams_are_looked_up_is_looked_up() {
        let mut hall = Hall::default();
        hall.join(&["a"]);
        let asked = hall.lines.ask();
        hall.lines.changed(&name("a"));
        hall.lines.set(&asked, Vec::new());
        assert_eq!(hall.lines.ask(), names(&["a"]));
    }

    #[test]
    fn the_watch_is_stirred_only_when_it_has_to_know() {
        let mut hall = Hall::default();
        let first = hall.join(&["a"]);
        assert!(hall.lines.stirred() && !hall.lines.stirred());
        let second = hall.join(&["a"]);
        assert!(!hall.lines.stirred(), "that queue is watched");
        hall.watch();
        hall.lines.arrived(&name("a"));
        hall.looked(first, "a", Left::Perhaps, true);
        assert!(!hall.lines.stirred(), "the second looks");
        hall.lines.leave(second);
        assert!(hall.lines.stirred(), "it had not told");
    }
}
