//! A circuit breaker: sends nothing to a receiver that failed several times in a row. Pure; the clock is an argument.
//!
//! Closed, it admits everything and counts failures in a row. Open, it admits nothing until its time is over; then it
//! is half open: one request tries, and its outcome closes the breaker or opens it again. Outcomes of requests
//! admitted before the last change of state are ignored, so a hundred requests that time out together open it once.

use std::time::{Duration, Instant};

/// Half open, others may ask again after this time, or later if the trial has taken longer already.
const MIN_HALF_OPEN_WAIT: Duration = Duration::from_millis(200);

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Failures in a row that open it: 1 to 1000.
    pub failures: u32,
    /// How long it stays open: 1 ms to a day.
    pub open_for: Duration,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self { failures: 5, open_for: Duration::from_secs(30) }
    }
}

/// The outcome of an admitted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerOutcome {
    /// The receiver answers.
    Success,
    /// The receiver does not answer properly.
    Failure,
    /// The receiver asks for a pause.
    BackOff(Duration),
    /// Unknown: the request was dropped, or never sent.
    Unknown,
}

/// How many requests a target accepts now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetAvailability {
    /// Any number.
    Available,
    /// One, as a trial.
    HalfOpen,
    /// None, for this long.
    UnavailableFor(Duration),
}

/// Permission to send one request. Record its outcome, whatever it is.
#[derive(Debug)]
#[must_use = "what became of the request is to be recorded"]
pub struct BreakerPermit {
    generation: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BreakerState {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { since: Instant },
}

/// The breaker of one endpoint.
#[derive(Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    state: BreakerState,
    /// Counts changes of state, to recognize late outcomes.
    generation: u64,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(settings: BreakerSettings) -> Self {
        Self { settings, state: BreakerState::Closed { failures: 0 }, generation: 0 }
    }

    /// Asks for permission to send a request.
    ///
    /// # Errors
    /// The breaker is open: how long to wait before asking again.
    pub fn admit(&mut self, now: Instant) -> Result<BreakerPermit, Duration> {
        match self.state {
            BreakerState::Closed { .. } => {}
            BreakerState::Open { until } if now < until => return Err(until - now),
            BreakerState::Open { .. } => self.transition(BreakerState::HalfOpen { since: now }),
            BreakerState::HalfOpen { since } => return Err(self.half_open_wait(since, now)),
        }
        Ok(BreakerPermit { generation: self.generation })
    }

    /// What a request would get now, without asking for permission.
    #[must_use]
    pub fn availability(&self, now: Instant) -> TargetAvailability {
        match self.state {
            BreakerState::Closed { .. } => TargetAvailability::Available,
            BreakerState::Open { until } if now < until => TargetAvailability::UnavailableFor(until - now),
            BreakerState::Open { .. } => TargetAvailability::HalfOpen,
            BreakerState::HalfOpen { since } => TargetAvailability::UnavailableFor(self.half_open_wait(since, now)),
        }
    }

    /// Records the outcome of a request.
    #[expect(clippy::needless_pass_by_value, reason = "a pass is used up: nothing is recorded twice")]
    pub fn record(&mut self, pass: BreakerPermit, outcome: BreakerOutcome, now: Instant) {
        if pass.generation != self.generation {
            return;
        }
        match (self.state, outcome) {
            // While open nothing is admitted
            (BreakerState::Open { .. }, _) | (BreakerState::Closed { .. }, BreakerOutcome::Unknown) => {}
            (BreakerState::Closed { .. }, BreakerOutcome::Success) => self.state = BreakerState::Closed { failures: 0 },
            (BreakerState::Closed { failures }, BreakerOutcome::Failure) if failures + 1 < self.settings.failures => {
                self.state = BreakerState::Closed { failures: failures + 1 };
            }
            (_, BreakerOutcome::Failure) => self.transition(BreakerState::Open { until: now + self.settings.open_for }),
            (_, BreakerOutcome::BackOff(wait)) => self.transition(BreakerState::Open { until: now + wait }),
            (BreakerState::HalfOpen { .. }, BreakerOutcome::Success) => {
                self.transition(BreakerState::Closed { failures: 0 });
            }
            // Another request may try
            (BreakerState::HalfOpen { .. }, BreakerOutcome::Unknown) => {
                self.transition(BreakerState::Open { until: now });
            }
        }
    }

    /// The trial's end is unknown, but usually soon: waiting as long as it has lasted is never late by much, and needs
    /// few checks.
    fn half_open_wait(&self, since: Instant, now: Instant) -> Duration {
        now.saturating_duration_since(since).max(MIN_HALF_OPEN_WAIT).min(self.settings.open_for)
    }

    fn transition(&mut self, state: BreakerState) {
        self.state = state;
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: BreakerSettings = BreakerSettings { failures: 3, open_for: Duration::from_millis(100) };

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    fn fail(breaker: &mut Breaker, times: u32, now: Instant) {
        for _ in 0..times {
            let pass = breaker.admit(now).expect("closed");
            breaker.record(pass, BreakerOutcome::Failure, now);
        }
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_one_request_tries_when_its_time_is_over() {
        let (mut breaker, start) = (Breaker::new(SETTINGS), Instant::now());
        fail(&mut breaker, 2, start);
        let pass = breaker.admit(start).expect("closed");
        breaker.record(pass, BreakerOutcome::Success, start);
        fail(&mut breaker, 3, start);
        assert_eq!(breaker.admit(after(start, 40)).expect_err("open"), Duration::from_millis(60));
        assert_eq!(
            breaker.availability(after(start, 40)),
            TargetAvailability::UnavailableFor(Duration::from_millis(60))
        );
        assert_eq!(breaker.availability(after(start, 100)), TargetAvailability::HalfOpen);
        let trial = breaker.admit(after(start, 100)).expect("its time is over");
        assert_eq!(
            breaker.availability(after(start, 100)),
            TargetAvailability::UnavailableFor(SETTINGS.open_for),
            "it opens for less than a trial may last"
        );
        assert_eq!(breaker.admit(after(start, 100)).expect_err("one trial"), SETTINGS.open_for);
        breaker.record(trial, BreakerOutcome::Failure, after(start, 110));
        assert_eq!(breaker.admit(after(start, 110)).expect_err("open again"), SETTINGS.open_for);
        let trial = breaker.admit(after(start, 210)).expect("its time is over");
        breaker.record(trial, BreakerOutcome::Success, after(start, 220));
        fail(&mut breaker, 2, after(start, 220));
        assert!(breaker.admit(after(start, 220)).is_ok(), "closed, and the count begins anew");
    }

    #[test]
    fn while_one_request_tries_others_ask_again_soon_and_later_the_longer_it_takes() {
        let settings = BreakerSettings { failures: 1, open_for: Duration::from_secs(30) };
        let (mut breaker, start) = (Breaker::new(settings), Instant::now());
        fail(&mut breaker, 1, start);
        let trial = breaker.admit(after(start, 30_000)).expect("its time is over");
        for (lasted, wait) in [(0, 200), (150, 200), (1_000, 1_000), (29_000, 29_000), (60_000, 30_000)] {
            let (now, wait) = (after(start, 30_000 + lasted), Duration::from_millis(wait));
            assert_eq!(breaker.admit(now).expect_err("one trial"), wait, "{lasted} ms");
            assert_eq!(breaker.availability(now), TargetAvailability::UnavailableFor(wait), "{lasted} ms");
        }
        breaker.record(trial, BreakerOutcome::Success, after(start, 90_000));
        assert_eq!(breaker.availability(after(start, 90_000)), TargetAvailability::Available);
    }

    #[test]
    fn a_trial_that_was_dropped_leaves_its_place_to_another() {
        let (mut breaker, start) = (Breaker::new(SETTINGS), Instant::now());
        fail(&mut breaker, 3, start);
        let trial = breaker.admit(after(start, 100)).expect("its time is over");
        breaker.record(trial, BreakerOutcome::Unknown, after(start, 100));
        assert!(breaker.admit(after(start, 100)).is_ok());
    }

    #[test]
    fn what_began_before_it_opened_neither_closes_it_nor_keeps_it_open() {
        let (mut breaker, start) = (Breaker::new(SETTINGS), Instant::now());
        let late: Vec<BreakerPermit> = (0..2).map(|_| breaker.admit(start).expect("closed")).collect();
        fail(&mut breaker, 3, start);
        for (pass, outcome) in late.into_iter().zip([BreakerOutcome::Success, BreakerOutcome::Failure]) {
            breaker.record(pass, outcome, after(start, 50));
            assert_eq!(breaker.admit(after(start, 50)).expect_err("open"), Duration::from_millis(50));
        }
    }

    #[test]
    fn a_receiver_that_asks_to_be_left_alone_is() {
        let (mut breaker, start) = (Breaker::new(SETTINGS), Instant::now());
        let pass = breaker.admit(start).expect("closed");
        breaker.record(pass, BreakerOutcome::BackOff(Duration::from_secs(7)), start);
        assert_eq!(breaker.admit(start).expect_err("open"), Duration::from_secs(7));
    }

    #[derive(Debug, Clone)]
    enum BreakerStep {
        Admit,
        /// Which of the requests under way, and what became of it.
        Record(usize, BreakerOutcome),
        Advance(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<BreakerStep>> {
        let outcome = prop_oneof![
            1 => Just(BreakerOutcome::Success),
            4 => Just(BreakerOutcome::Failure),
            1 => (0_u64..300).prop_map(|millis| BreakerOutcome::BackOff(Duration::from_millis(millis))),
            1 => Just(BreakerOutcome::Unknown),
        ];
        let step = prop_oneof![
            3 => Just(BreakerStep::Admit),
            3 => (0_usize..8, outcome).prop_map(|(which, outcome)| BreakerStep::Record(which, outcome)),
            1 => (0_u64..150).prop_map(BreakerStep::Advance),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn it_never_stays_shut_and_never_lets_two_try(steps in steps()) {
            let (mut breaker, mut now) = (Breaker::new(SETTINGS), Instant::now());
            let mut under_way: Vec<BreakerPermit> = Vec::new();
            for step in steps {
                match step {
                    BreakerStep::Admit => {
                        let was = breaker.state;
                        match breaker.admit(now) {
                            Ok(pass) => {
                                prop_assert!(!matches!(was, BreakerState::HalfOpen { .. }), "two tried at once");
                                under_way.push(pass);
                            }
                            Err(wait) => prop_assert!(!wait.is_zero()),
                        }
                    }
                    BreakerStep::Record(which, outcome) if !under_way.is_empty() => {
                        let pass = under_way.swap_remove(which % under_way.len());
                        let (was, is_late) = (breaker.state, pass.generation != breaker.generation);
                        breaker.record(pass, outcome, now);
                        prop_assert!(!is_late || breaker.state == was, "late news changed it");
                        if let BreakerState::Closed { failures } = breaker.state {
                            prop_assert!(failures < SETTINGS.failures);
                        }
                    }
                    BreakerStep::Record(..) => {}
                    BreakerStep::Advance(millis) => now += Duration::from_millis(millis),
                }
            }
            // Whatever happened: when all have ended and time has passed, a request is admitted
            for pass in under_way {
                breaker.record(pass, BreakerOutcome::Unknown, now);
            }
            prop_assert!(breaker.admit(now + Duration::from_millis(300)).is_ok());
        }
    }
}
