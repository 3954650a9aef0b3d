//! Bounds what hints cost. A client that may publish can send any hint at any rate, so a hint is only a reason to look, equal
//! hints count once, and looks have a pace.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// Maximum number of different hints that wait.
const MAX_PENDING: usize = 16_384;
/// The pause after a look that found nothing; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// How often a look is allowed: one each interval, and a few more at once after a quiet time.
#[derive(Debug)]
pub struct LookPace {
    interval: Duration,
    burst: u32,
    /// When all looks so far would have been over, spread evenly.
    spread_until: Instant,
}

impl LookPace {
    /// One look each `interval`, and up to `burst` more at once.
    #[must_use]
    pub fn new(burst: u32, interval: Duration) -> Self {
        Self { interval, burst, spread_until: Instant::now() }
    }

    /// Plans a look and returns when it may begin.
    pub fn plan(&mut self) -> Instant {
        let now = Instant::now();
        let spread = self.spread_until.max(now);
        self.spread_until = spread + self.interval;
        spread.checked_sub(self.interval * self.burst).map_or(now, |at| at.max(now))
    }
}

/// Hints that wait for a look, in the order in which they came.
#[derive(Debug)]
pub struct PacedHints<T> {
    pace: LookPace,
    order: VecDeque<T>,
    pending: BTreeSet<T>,
    due: Option<Instant>,
    has_overflowed: bool,
}

impl<T: Ord + Clone> PacedHints<T> {
    /// One look each `interval`, and up to `burst` more at once.
    #[must_use]
    pub fn new(burst: u32, interval: Duration) -> Self {
        let pace = LookPace::new(burst, interval);
        Self { pace, order: VecDeque::new(), pending: BTreeSet::new(), due: None, has_overflowed: false }
    }

    /// Adds a hint, unless it waits already.
    pub fn add(&mut self, hint: T) {
        if self.order.len() >= MAX_PENDING {
            self.has_overflowed = true;
        } else if self.pending.insert(hint.clone()) {
            self.order.push_back(hint);
            self.due.get_or_insert_with(|| self.pace.plan());
        }
    }

    /// Waits until there are hints and a look is allowed; returns at most `max` of them. Cancel safe.
    pub async fn ready(&mut self, max: usize) -> Vec<T> {
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
        let ready: Vec<T> = self.order.drain(..max.min(self.order.len())).collect();
        for hint in &ready {
            self.pending.remove(hint);
        }
        self.due = (!self.order.is_empty()).then(|| self.pace.plan());
        ready
    }

    /// Whether hints were dropped since the last call, because too many waited.
    pub fn has_overflowed(&mut self) -> bool {
        std::mem::take(&mut self.has_overflowed)
    }
}

/// Slows looks down that hints asked for and that found nothing.
#[derive(Debug)]
pub struct FruitlessLooks {
    max_pause: Duration,
    pause: Duration,
    not_before: Option<Instant>,
}

impl FruitlessLooks {
    /// With pauses up to that.
    #[must_use]
    pub fn new(max_pause: Duration) -> Self {
        Self { max_pause, pause: FIRST_PAUSE, not_before: None }
    }

    /// A look found something: hints are true.
    pub fn found(&mut self) {
        (self.pause, self.not_before) = (FIRST_PAUSE, None);
    }

    /// A look found nothing.
    pub fn found_nothing(&mut self) {
        self.not_before = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(self.max_pause);
    }

    /// Waits until a hint may cause a look.
    pub async fn wait(&self) {
        if let Some(at) = self.not_before {
            tokio::time::sleep_until(at).await;
        }
    }

    /// Before when no hint may cause a look.
    #[must_use]
    pub fn not_before(&self) -> Option<Instant> {
        self.not_before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_hints_causes_a_few_looks_at_once_and_then_one_each_interval() {
        let interval = Duration::from_millis(50);
        let (mut hints, mut looks, begin) = (PacedHints::new(3, interval), Vec::new(), Instant::now());
        for _ in 0..8 {
            for hint in 0..3000 {
                hints.add(hint % 2000);
            }
            assert_eq!(hints.ready(2000).await, (0..2000).collect::<Vec<_>>());
            looks.push(begin.elapsed().as_millis());
        }
        // Timers have a resolution of a millisecond
        assert!(looks.iter().zip([0, 0, 0, 0, 50, 100, 150, 200]).all(|(at, due)| at.abs_diff(due) <= 1), "{looks:?}");
        // A quiet time earns the burst again, and no more than that
        tokio::time::advance(Duration::from_mins(1)).await;
        let begin = Instant::now();
        for _ in 0..4 {
            hints.add(1);
            assert_eq!(hints.ready(9).await, [1]);
        }
        assert!(begin.elapsed() < interval);
        hints.add(1);
        let waits = tokio::time::timeout(interval / 2, hints.ready(9)).await;
        assert!(waits.is_err() && hints.ready(9).await == [1], "and nothing is lost by waiting");
    }

    #[tokio::test(start_paused = true)]
    async fn hints_are_looked_into_in_their_order_and_too_many_are_told() {
        let mut hints = PacedHints::new(1, Duration::from_millis(50));
        for hint in [3, 1, 2] {
            hints.add(hint);
        }
        assert_eq!(hints.ready(2).await, [3, 1]);
        hints.add(0);
        assert_eq!((hints.ready(2).await, hints.has_overflowed()), (vec![2, 0], false));
        for hint in 0..=MAX_PENDING {
            hints.add(hint);
        }
        assert_eq!((hints.ready(usize::MAX).await.len(), hints.has_overflowed()), (MAX_PENDING, true));
        assert!(!hints.has_overflowed());
    }

    #[tokio::test(start_paused = true)]
    async fn looks_that_find_nothing_become_rare_until_one_finds_something() {
        let longest = Duration::from_millis(200);
        let mut looks = FruitlessLooks::new(longest);
        assert_eq!(looks.not_before(), None);
        let mut pauses = Vec::new();
        for _ in 0..40 {
            looks.found_nothing();
            pauses.push(looks.not_before().expect("a pause") - Instant::now());
        }
        assert_eq!((pauses[0], pauses[1], pauses[39]), (FIRST_PAUSE, FIRST_PAUSE * 2, longest));
        looks.found();
        assert_eq!(looks.not_before(), None);
    }
}
