//! Redis's clock as a process knows it.
//!
//! Redis's clock decides everything about time, and a process's own clock nothing. A process compares each reading of
//! Redis's clock with its monotonic clock. So it knows Redis's time between two readings, and it sees when somebody set
//! Redis's clock. No time of an adjustable clock is kept in memory without the moment at which it was read.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::aio::ConnectionLike;
use tokio::time::Instant;

use crate::StoreResult;
use common::time::Millis;

/// Pause between two readings while nothing else asks for the time.
pub(crate) const READING_INTERVAL: Duration = Duration::from_secs(5);
/// How long after a step back leases still start by the clock as it was before: until the leader, too, has read the
/// clock.
pub(crate) const SET_BACK_MEMORY: Duration = Duration::from_secs(10);
/// How old a reading may be that a lease counts from.
const MAX_READING_AGE: Duration = Duration::from_secs(2 * READING_INTERVAL.as_secs());
/// A difference between the clocks that is no step.
const STEP_TOLERANCE_MS: Millis = 500;
/// Clocks that are being corrected run faster or slower by less than one part in this many.
const MAX_DRIFT: Millis = 10;

/// Redis's clock as this process knows it.
#[derive(Debug, Default)]
pub(crate) struct RedisClock(Mutex<KnownClock>);

#[derive(Debug, Default)]
struct KnownClock {
    reading: Option<ClockReading>,
    steps: ClockSteps,
    /// The last reading before a step back, and when that was seen.
    before_set_back: Option<(ClockReading, Instant)>,
}

/// One answer to TIME.
#[derive(Debug, Clone, Copy)]
struct ClockReading {
    at: Millis,
    answered: Instant,
    /// How long the answer took: Redis read its clock somewhere in between.
    round_trip: Duration,
}

/// How often and how far Redis's clock was set, as far as this process saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ClockSteps {
    /// How often.
    pub(crate) count: u64,
    /// The sum of all steps; negative when the clock was set back.
    pub(crate) total_ms: Millis,
    /// When this process saw the last one.
    pub(crate) last_seen: Option<Instant>,
}

impl ClockSteps {
    /// Whether there was a step less than `limit` ago.
    pub(crate) fn remaining(&self, limit: Duration) -> Duration {
        self.last_seen.map_or(Duration::ZERO, |seen| limit.saturating_sub(seen.elapsed()))
    }
}

impl KnownClock {
    /// What a lease may count from: the last reading, and the one before a step back that was seen lately. A process that
    /// stood still for long knows nothing: the clock may have been set meanwhile.
    fn lease_readings(&self) -> impl Iterator<Item = ClockReading> {
        let is_recent = |seen: &Instant| seen.elapsed() < SET_BACK_MEMORY;
        let before = self.before_set_back.filter(|(_, seen)| is_recent(seen)).map(|(reading, _)| reading);
        let latest = self.reading.filter(|reading| reading.answered.elapsed() < MAX_READING_AGE);
        latest.into_iter().chain(before)
    }
}

fn whole_millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

/// Milliseconds from one moment to another, negative if that is earlier.
fn millis_between(from: Instant, to: Instant) -> Millis {
    whole_millis(to.saturating_duration_since(from)) - whole_millis(from.saturating_duration_since(to))
}

impl ClockReading {
    fn now(&self) -> Millis {
        self.at.saturating_add(whole_millis(self.answered.elapsed()))
    }

    /// By how much the clock was set between this reading and a later one; 0 if it was not.
    fn step_to(&self, later: &Self) -> Millis {
        let asked = later.answered.checked_sub(later.round_trip).unwrap_or(later.answered);
        let earliest = self.at + millis_between(self.answered, asked);
        let latest = self.at + whole_millis(self.round_trip) + millis_between(self.answered, later.answered);
        let tolerance = STEP_TOLERANCE_MS + millis_between(self.answered, later.answered).abs() / MAX_DRIFT;
        match later.at {
            at if at > latest + tolerance => at - latest,
            at if at < earliest - tolerance => at - earliest,
            _ => 0,
        }
    }
}

impl RedisClock {
    fn state(&self) -> MutexGuard<'_, KnownClock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a reading, and a step since the last one.
    fn record(&self, reading: ClockReading) {
        let mut state = self.state();
        let by_ms = state.reading.map_or(0, |known| known.step_to(&reading));
        if by_ms < 0 {
            let latest = state.lease_readings().max_by_key(ClockReading::now);
            state.before_set_back = latest.map(|latest| (latest, Instant::now()));
        }
        state.reading = Some(reading);
        if by_ms != 0 {
            state.steps.count += 1;
            state.steps.total_ms += by_ms;
            state.steps.last_seen = Some(Instant::now());
            drop(state);
            tracing::warn!(event = "redis.clock_stepped", by_ms, "the clock of redis was set");
            metrics::counter!("galley_redis_clock_steps_total").increment(1);
        }
    }

    /// Reads Redis's clock on a connection.
    pub(super) async fn read(&self, connection: &mut impl ConnectionLike) -> StoreResult<Millis> {
        let asked = Instant::now();
        let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(connection).await?;
        let at = seconds * 1000 + micros / 1000;
        self.note_answer(at, asked);
        Ok(at)
    }

    /// Notes an answer to TIME that has just come.
    pub(crate) fn note_answer(&self, at: Millis, asked: Instant) {
        let answered = Instant::now();
        self.record(ClockReading { at, answered, round_trip: answered - asked });
    }

    /// Redis's time from the last reading and the time since; none before the first reading.
    pub(crate) fn estimate(&self) -> Option<Millis> {
        self.state().reading.map(|reading| reading.now())
    }

    /// When a lease starts; none before the first reading. After a step back, the clock as it was before goes on for a
    /// while: if it is set ahead again before the leader has noticed, no lease ends early. Leases are too long if it is
    /// not. Then the leader shortens them, which harms nobody.
    pub(crate) fn lease_start(&self) -> Option<Millis> {
        self.state().lease_readings().map(|reading| reading.now()).max()
    }

    /// The steps so far.
    pub(crate) fn steps(&self) -> ClockSteps {
        self.state().steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reading `after` the start, which took `round_trip`.
    fn reading(start: Instant, after: u64, round_trip: u64, at: Millis) -> ClockReading {
        let answered = start + Duration::from_millis(after);
        ClockReading { at, answered, round_trip: Duration::from_millis(round_trip) }
    }

    #[test]
    fn a_step_is_told_from_a_slow_answer_and_from_a_clock_that_is_being_corrected() {
        let start = Instant::now() + Duration::from_hours(1);
        let first = reading(start, 0, 2, 1_000_000);
        for (later, step) in [
            (reading(start, 5_000, 1, 1_005_000), 0),
            (reading(start, 5_000, 4_000, 1_001_500), 0),
            (reading(start, 5_000, 1, 1_005_400), 0),
            (reading(start, 5_000, 1, 8_205_000), 7_199_998),
            (reading(start, 5_000, 0, 905_000), -100_000),
            (reading(start, 5_000, 4_000, 904_000), -97_000),
        ] {
            assert_eq!(first.step_to(&later), step, "{later:?}");
        }
    }

    #[test]
    fn steps_add_up_and_the_time_is_known_between_two_readings() {
        let (clock, now) = (RedisClock::default(), Instant::now());
        clock.record(reading(now, 0, 0, 50_000));
        clock.record(reading(now, 0, 0, 3_650_000));
        clock.record(reading(now, 0, 0, 650_000));
        let steps = clock.steps();
        assert_eq!((steps.count, steps.total_ms), (2, 600_000));
        assert!(steps.remaining(Duration::from_mins(1)) > Duration::ZERO);
        assert!(clock.state().reading.expect("a reading").now() >= 650_000);
    }

    #[test]
    fn a_lease_starts_by_the_clock_before_a_step_back_until_that_is_long_ago() {
        let (clock, now) = (RedisClock::default(), Instant::now());
        assert_eq!(clock.lease_start(), None);
        for at in [9_000_000, 6_000_000, 3_000_000] {
            clock.record(reading(now, 0, 0, at));
        }
        let start = clock.lease_start().expect("a reading");
        assert!((9_000_000..9_900_000).contains(&start), "{start}");
        let mut state = clock.state();
        let (_, seen) = state.before_set_back.as_mut().expect("it was set back");
        *seen = seen.checked_sub(SET_BACK_MEMORY).expect("the machine has run for longer");
        drop(state);
        let start = clock.lease_start().expect("a reading");
        assert!((3_000_000..3_900_000).contains(&start), "{start}");
    }
}
