//! Which waiter is woken, and when a queue is watched again.

use super::*;

#[derive(Default)]
struct WaitQueueHarness {
    queue: WaitQueue,
    calls: HashMap<WaiterId, Arc<Notify>>,
}

impl WaitQueueHarness {
    fn join(&mut self, queues: &[&str]) -> WaiterId {
        let (waiter, called) = self.queue.register(&names(queues));
        self.calls.insert(waiter, called);
        waiter
    }

    /// Watches everything that may be watched.
    fn watch(&mut self) {
        let asked = self.queue.take_unknown();
        self.queue.set_watched(&asked, Vec::new());
    }

    /// The waiters woken since the last call.
    fn called(&mut self) -> Vec<WaiterId> {
        let is_called = |called: &Notify| {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            std::pin::pin!(called.notified()).poll(&mut context).is_ready()
        };
        let mut called: Vec<WaiterId> =
            self.calls.iter().filter(|(_, call)| is_called(call)).map(|(waiter, _)| *waiter).collect();
        called.sort_unstable();
        called
    }

    fn report(&mut self, waiter: WaiterId, queue: &str, left: Remaining, got_something: bool) {
        self.queue.report_remaining(waiter, &[(name(queue), left)], got_something, Instant::now());
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
    let mut kit = WaitQueueHarness::default();
    let [first, second, third] = [kit.join(&["a"]), kit.join(&["a"]), kit.join(&["a"])];
    kit.watch();
    kit.queue.job_arrived(&name("a"));
    kit.queue.job_arrived(&name("a"));
    assert_eq!(kit.called(), [first], "nobody else while it claims");
    kit.report(first, "a", Remaining::MaybeMore, true);
    assert_eq!(kit.called(), [second]);
    kit.report(second, "a", EMPTY, false);
    assert_eq!((kit.called(), kit.queue.take_unknown()), (vec![], names(&["a"])), "watched again");
    kit.queue.set_watched(&names(&["a"]), Vec::new());
    kit.queue.job_arrived(&name("a"));
    assert_eq!(kit.called(), [second], "a waiter without a job keeps its turn");
    kit.queue.unregister(second);
    kit.watch();
    kit.queue.job_arrived(&name("a"));
    assert_eq!(kit.called(), [third], "a waiter that leaves passes the job on");
}

#[test]
fn a_queue_whose_looker_found_a_job_elsewhere_is_passed_on() {
    let mut kit = WaitQueueHarness::default();
    let both = kit.join(&["a", "b"]);
    kit.watch();
    kit.queue.job_arrived(&name("b"));
    kit.queue.job_arrived(&name("a"));
    assert_eq!(kit.called(), [both], "the only one there is");
    let other = kit.join(&["b"]);
    let left = [(name("a"), Remaining::MaybeMore), (name("b"), Remaining::MaybeMore)];
    kit.queue.report_remaining(both, &left, true, Instant::now());
    assert_eq!(kit.called(), [other]);
    assert_eq!(kit.queue.queue_count(), 1, "nobody waits for the other any more");
    kit.report(other, "b", EMPTY, true);
    assert!(kit.queue.queues.is_empty() && kit.queue.waiters.is_empty());
}

#[test]
fn a_queue_that_hands_out_nothing_for_a_while_is_left_alone_unless_there_is_news() {
    let mut kit = WaitQueueHarness::default();
    let waiter = kit.join(&["a"]);
    let soon = Remaining::Empty(ClaimAvailability::RetryAfter(Duration::from_millis(200)));
    for (left, pause) in [
        (soon, 200),
        (Remaining::Empty(ClaimAvailability::Paused), 10_000),
        (Remaining::Unavailable(PAUSED_RECHECK_INTERVAL), 10_000),
    ] {
        kit.watch();
        kit.queue.job_arrived(&name("a"));
        let now = Instant::now();
        kit.queue.report_remaining(waiter, &[(name("a"), left)], false, now);
        assert!(kit.queue.take_unknown().is_empty(), "{left:?}");
        let until = now + Duration::from_millis(pause);
        assert_eq!(kit.queue.resume_paused(now), Some(until));
        assert_eq!((kit.queue.resume_paused(until), kit.queue.take_unknown().len()), (None, 1), "{left:?}");
        kit.queue.queue_changed(&name("a"));
        // The queue resumes just after a waiter saw that it is paused
        kit.watch();
        kit.queue.job_arrived(&name("a"));
        kit.queue.queue_changed(&name("a"));
        kit.report(waiter, "a", left, false);
        assert_eq!(kit.queue.take_unknown().len(), 1, "{left:?}");
        kit.queue.queue_changed(&name("a"));
    }
}

#[test]
fn a_stream_that_is_made_while_the_streams_are_looked_up_is_looked_up() {
    let mut kit = WaitQueueHarness::default();
    kit.join(&["a"]);
    let asked = kit.queue.take_unknown();
    kit.queue.queue_changed(&name("a"));
    kit.queue.set_watched(&asked, Vec::new());
    assert_eq!(kit.queue.take_unknown(), names(&["a"]));
}

#[test]
fn the_watcher_is_notified_only_when_something_changes_for_it() {
    let mut kit = WaitQueueHarness::default();
    let first = kit.join(&["a"]);
    assert!(kit.queue.take_changed() && !kit.queue.take_changed());
    let second = kit.join(&["a"]);
    assert!(!kit.queue.take_changed(), "that queue is watched");
    kit.watch();
    kit.queue.job_arrived(&name("a"));
    kit.report(first, "a", Remaining::MaybeMore, true);
    assert!(!kit.queue.take_changed(), "the second one claims");
    kit.queue.unregister(second);
    assert!(kit.queue.take_changed(), "it had not reported");
}
