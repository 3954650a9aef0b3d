//! What the claim loop knows of its queues: their streams, which may have jobs, and which cannot be used at present.
//!
//! Only queues that may have jobs are asked, so queues without work cost nothing. A queue may have jobs at the start,
//! after an arrival on one of its streams, after a claim that got all it asked for, when a pause is over, and after
//! anything that changed. Notifications can be lost, so a few queues in turn are asked again without a reason.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use common::{
    name::{Priority, QueueName},
    rotation::Rotation,
};
use store::jobs::{ClaimAvailability, JobSizes};

/// How often some queues are asked without a reason.
const RECHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How many queues are asked then.
const RECHECKED_QUEUES: usize = 2;
/// How soon a queue is tried again whose data cannot be used.
const FAILURE_PAUSE: Duration = Duration::from_secs(2);

/// The states of a worker's queues.
pub(crate) struct QueueStates {
    queues: Vec<QueueName>,
    states: HashMap<QueueName, WorkerQueueState>,
    next_recheck: Instant,
    rotation: Rotation,
}

#[derive(Default)]
pub(crate) struct WorkerQueueState {
    /// Its streams, highest priority first; empty if they are unknown.
    pub(crate) priorities: Vec<Priority>,
    /// The size of the jobs that it had lately.
    pub(crate) sizes: JobSizes,
    availability: ClaimAvailability,
    may_have_jobs: bool,
    /// When to ask again: a limit allows more then, or data that cannot be used is tried again.
    ask_at: Option<Instant>,
    is_failing: bool,
}

/// What a wakeup of the claim loop is about.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum ChangedQueues {
    /// No wakeup is pending.
    #[default]
    NoWakeup,
    /// These, or none: then the loop only looks at its own state.
    Only(HashSet<QueueName>),
    /// Nobody knows which.
    All,
}

impl ChangedQueues {
    /// Adds a wakeup for a queue, or for the loop's own state.
    pub(crate) fn add(&mut self, queue: Option<&QueueName>) {
        match self {
            Self::All => {}
            Self::Only(queues) => queues.extend(queue.cloned()),
            Self::NoWakeup => *self = Self::Only(queue.cloned().into_iter().collect()),
        }
    }
}

/// How to wait for jobs of the queues that had none.
#[derive(Default)]
pub(crate) struct WaitPlan {
    /// Streams for a blocking read.
    pub(crate) streams: Vec<(QueueName, Priority)>,
    /// Queues whose limits a blocking read would bypass.
    pub(crate) limited: Vec<QueueName>,
    /// The longest wait, if something is due before.
    pub(crate) max_wait: Option<Duration>,
}

impl QueueStates {
    pub(crate) fn new(queues: &[QueueName], now: Instant) -> Self {
        let states = queues.iter().map(|queue| (queue.clone(), WorkerQueueState::default())).collect();
        Self { queues: queues.to_vec(), states, next_recheck: now + RECHECK_INTERVAL, rotation: Rotation::default() }
    }

    /// Adds partitions of a queue.
    pub(crate) fn add(&mut self, partitions: &[QueueName]) {
        self.queues.extend_from_slice(partitions);
        self.states.extend(partitions.iter().map(|queue| (queue.clone(), WorkerQueueState::default())));
    }

    /// The state of a queue that the worker has.
    pub(crate) fn get_mut(&mut self, queue: &QueueName) -> &mut WorkerQueueState {
        self.states.entry(queue.clone()).or_default()
    }

    /// Ask the queues that changed, and read their streams again.
    pub(crate) fn note_changed(&mut self, changed: &ChangedQueues) {
        let has_changed = |queue: &QueueName| match changed {
            ChangedQueues::NoWakeup => false,
            ChangedQueues::Only(queues) => queues.contains(queue),
            ChangedQueues::All => true,
        };
        for (_, state) in self.states.iter_mut().filter(|(queue, state)| has_changed(queue) && !state.is_failing) {
            state.priorities.clear();
            state.may_have_jobs = true;
        }
    }

    /// Ask every queue.
    pub(crate) fn ask_all(&mut self) {
        self.states.values_mut().filter(|state| !state.is_failing).for_each(|state| state.may_have_jobs = true);
    }

    /// Ask the queues that are due.
    pub(crate) fn ask_due(&mut self, now: Instant) {
        for state in self.states.values_mut() {
            if state.ask_at.is_some_and(|at| at <= now) {
                state.ask_at = None;
                state.may_have_jobs = true;
            }
        }
        if now < self.next_recheck {
            return;
        }
        self.next_recheck = now + RECHECK_INTERVAL;
        for queue in self.rotation.next(&self.queues, RECHECKED_QUEUES) {
            if let Some(state) = self.states.get_mut(&queue).filter(|state| !state.is_failing) {
                state.may_have_jobs = true;
            }
        }
    }

    /// The partitions that may have jobs, if these are all of one queue; none if no queue may have any, or several.
    pub(crate) fn only_busy(&self) -> Vec<(&QueueName, &WorkerQueueState)> {
        let busy: Vec<_> = self.states.iter().filter(|(_, state)| state.may_have_jobs).collect();
        let is_one_queue = busy.windows(2).all(|pair| pair[0].0.base() == pair[1].0.base());
        if is_one_queue { busy } else { Vec::new() }
    }

    /// Whether a queue that can be used was not asked yet since something happened.
    pub(crate) fn has_unasked(&self) -> bool {
        self.states.values().any(|state| state.may_have_jobs && !state.is_failing)
    }

    /// Queues that a rate limit pauses: they have no jobs now but will soon.
    pub(crate) fn paused_by_limit(&self) -> impl Iterator<Item = &QueueName> {
        let is_paused = |state: &WorkerQueueState| matches!(state.availability, ClaimAvailability::RetryAfter(_));
        self.states.iter().filter(move |(_, state)| is_paused(state)).map(|(queue, _)| queue)
    }

    /// How to wait for the queues that `has_capacity` for jobs.
    pub(crate) fn wait_plan(&self, has_capacity: impl Fn(&QueueName) -> bool, now: Instant) -> WaitPlan {
        let mut plan = WaitPlan::default();
        for (queue, state) in &self.states {
            if let Some(at) = state.ask_at {
                let wait = at.saturating_duration_since(now);
                plan.max_wait = Some(plan.max_wait.map_or(wait, |longest| longest.min(wait)));
            }
            // A queue without a free slot is read again once a slot is free
            if state.is_failing || !has_capacity(queue) {
                continue;
            }
            // It was not asked yet: its availability is from before
            if state.may_have_jobs {
                plan.max_wait = Some(Duration::ZERO);
                continue;
            }
            match state.availability {
                ClaimAvailability::Unlimited => {
                    plan.streams.extend(state.priorities.iter().map(|priority| (queue.clone(), *priority)));
                }
                ClaimAvailability::Limited => plan.limited.push(queue.clone()),
                ClaimAvailability::RetryAfter(_) | ClaimAvailability::Paused => {}
            }
        }
        plan.limited.sort_unstable();
        plan
    }
}

impl WorkerQueueState {
    /// Whether to ask it in the next claim.
    pub(crate) fn may_have_jobs(&self) -> bool {
        self.may_have_jobs
    }

    /// Whether a claim needs no script: it has one stream, and had no limits when it was last asked.
    pub(crate) fn allows_direct_claims(&self) -> bool {
        self.priorities.len() == 1 && self.availability == ClaimAvailability::Unlimited
    }

    /// Whether its data could not be used when it was last asked.
    pub(crate) fn is_failing(&self) -> bool {
        self.is_failing
    }

    /// Its streams are open; true if its data could not be used before.
    pub(crate) fn set_open(&mut self, priorities: Vec<Priority>) -> bool {
        self.priorities = priorities;
        self.may_have_jobs = true;
        self.ask_at = None;
        std::mem::take(&mut self.is_failing)
    }

    /// Its data cannot be used: leave it alone for a while; true if it could be used before.
    pub(crate) fn set_failing(&mut self, now: Instant) -> bool {
        self.priorities.clear();
        self.may_have_jobs = false;
        self.ask_at = Some(now + FAILURE_PAUSE);
        !std::mem::replace(&mut self.is_failing, true)
    }

    /// A job arrived on one of its streams: there may be more.
    pub(crate) fn job_arrived(&mut self) {
        self.may_have_jobs = true;
    }

    /// Notes the answer to a claim. With `got_all` the claim got as many jobs as it asked for: there may be more.
    pub(crate) fn asked(&mut self, availability: ClaimAvailability, got_all: bool, now: Instant) {
        self.availability = availability;
        self.may_have_jobs = got_all;
        self.ask_at = match availability {
            ClaimAvailability::RetryAfter(pause) => Some(now + pause),
            _ => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> QueueName {
        text.parse().expect("a name")
    }

    fn opened(count: usize, now: Instant) -> QueueStates {
        let queues: Vec<QueueName> = (0..count).map(|number| name(&format!("q{number}"))).collect();
        let mut states = QueueStates::new(&queues, now);
        for queue in &queues {
            states.get_mut(queue).set_open(vec![Priority::default()]);
            states.get_mut(queue).asked(ClaimAvailability::Unlimited, false, now);
        }
        states
    }

    fn to_ask(states: &QueueStates) -> usize {
        states.states.values().filter(|state| state.may_have_jobs()).count()
    }

    #[test]
    fn queues_without_work_are_asked_a_few_at_a_time_and_each_in_turn() {
        let mut now = Instant::now();
        let mut states = opened(10, now);
        let mut asked = std::collections::HashSet::new();
        for _ in 0..5 {
            states.ask_due(now);
            assert_eq!(to_ask(&states), 0, "nothing has happened");
            now += RECHECK_INTERVAL;
            states.ask_due(now);
            let some: Vec<QueueName> =
                states.states.iter().filter(|(_, state)| state.may_have_jobs()).map(|(name, _)| name.clone()).collect();
            assert_eq!(some.len(), RECHECKED_QUEUES);
            for queue in some {
                states.get_mut(&queue).asked(ClaimAvailability::Unlimited, false, now);
                asked.insert(queue);
            }
        }
        assert_eq!(asked.len(), 10);
    }

    #[test]
    fn a_queue_that_fails_is_left_alone_until_its_pause_is_over() {
        let now = Instant::now();
        let mut states = opened(2, now);
        let bad = name("q0");
        assert!(states.get_mut(&bad).set_failing(now));
        assert!(!states.get_mut(&bad).set_failing(now), "it failed already");
        states.note_changed(&ChangedQueues::All);
        states.get_mut(&name("q1")).set_open(vec![Priority::default()]);
        states.ask_due(now);
        assert!(!states.get_mut(&bad).may_have_jobs());
        let plan = states.wait_plan(|_| true, now);
        assert_eq!(
            (plan.streams.len(), plan.max_wait),
            (0, Some(Duration::ZERO)),
            "the good one has not been asked yet"
        );
        states.get_mut(&name("q1")).asked(ClaimAvailability::Unlimited, false, now);
        let plan = states.wait_plan(|_| true, now);
        assert_eq!(plan.streams, [(name("q1"), Priority::default())]);
        assert_eq!(plan.max_wait, Some(FAILURE_PAUSE));
        states.ask_due(now + FAILURE_PAUSE);
        assert!(states.get_mut(&bad).may_have_jobs() && states.get_mut(&bad).is_failing());
        assert!(states.get_mut(&bad).set_open(vec![Priority::default()]), "it failed before");
    }

    #[test]
    fn only_the_queue_that_changed_is_asked_unless_nobody_knows_which() {
        let now = Instant::now();
        let mut states = opened(3, now);
        let mut changed = ChangedQueues::default();
        changed.add(None);
        assert_eq!(changed, ChangedQueues::Only(HashSet::new()), "a wakeup that concerns no queue");
        states.note_changed(&changed);
        assert_eq!(to_ask(&states), 0);
        changed.add(Some(&name("q1")));
        states.note_changed(&changed);
        assert_eq!(to_ask(&states), 1);
        assert!(states.get_mut(&name("q1")).may_have_jobs());
        states.note_changed(&ChangedQueues::All);
        assert_eq!(to_ask(&states), 3);
    }

    #[test]
    fn only_one_queue_is_busy_if_all_that_may_have_jobs_are_partitions_of_it() {
        let now = Instant::now();
        let mut states = opened(2, now);
        let first = name("q0");
        states.add(&[first.partition(1), first.partition(2)]);
        let busy = |states: &QueueStates| {
            let mut busy: Vec<String> =
                states.only_busy().iter().map(|(queue, _)| queue.stored().into_owned()).collect();
            busy.sort_unstable();
            busy
        };
        assert!(busy(&states).is_empty(), "none is");
        states.get_mut(&first.partition(2)).job_arrived();
        states.get_mut(&first).job_arrived();
        assert_eq!(busy(&states), [first.stored(), first.partition(2).stored()]);
        states.get_mut(&name("q1")).job_arrived();
        assert!(busy(&states).is_empty(), "two are");
    }

    #[test]
    fn a_pause_ends_when_it_is_over_however_often_the_wait_is_cut_short() {
        let now = Instant::now();
        let mut states = opened(1, now);
        let pause = Duration::from_secs(1);
        states.get_mut(&name("q0")).asked(ClaimAvailability::RetryAfter(pause), false, now);
        let later = now + pause / 2;
        states.ask_due(later);
        assert_eq!(states.wait_plan(|_| true, later).max_wait, Some(pause / 2));
        assert!(states.wait_plan(|_| true, later).streams.is_empty());
        states.ask_due(now + pause);
        assert_eq!(to_ask(&states), 1);
    }
}
