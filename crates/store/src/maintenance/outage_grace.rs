//! Decides whether a worker's silence means that it died.

use std::{future::Future, time::Duration};

use tokio::time::Instant;

use crate::{StoreResult, connection::redis_clock::ClockSteps};
use common::time::Millis;

/// Decides whether a worker's silence means that it died. After an outage of Redis it does not, because the worker
/// could not report: it gets half a lease to do so. After Redis's clock was set it does not either, because nobody
/// knows how long the silence was: the worker gets a lease.
pub(super) struct OutageGrace {
    grace: Duration,
    /// From this moment on Redis has been available long enough, as far as this process saw.
    grace_ends_at: Instant,
    /// Whether the last call failed.
    pub(super) is_redis_away: bool,
    /// When Redis started, if this process knows.
    pub(super) redis_started: Option<Instant>,
}

impl OutageGrace {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, grace_ends_at: Instant::now(), is_redis_away: false, redis_started: None }
    }

    /// Awaits a call and judges by its result: after a failure or a late answer, workers could not report either.
    pub(super) async fn observe<T>(&mut self, call: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        let asked = Instant::now();
        let answer = call.await?;
        if self.is_redis_away || asked.elapsed() >= self.grace / 2 {
            self.is_redis_away = false;
            self.grace_ends_at = Instant::now() + self.grace;
        }
        Ok(answer)
    }

    /// Gives every worker a lease from now on: nobody knows how long it was silent.
    pub(super) fn start_over(&mut self) {
        self.grace_ends_at = Instant::now() + 2 * self.grace;
    }

    /// Milliseconds until a silence of `silent_ms` counts; 0 if it does already. Read Redis's clock, whose steps these are,
    /// after the silence was measured: a step in between is seen then.
    pub(super) fn remaining_grace(&self, silent_ms: Millis, steps: ClockSteps) -> Millis {
        let whole = |duration: Duration| Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX);
        let seen = self.grace_ends_at.saturating_duration_since(Instant::now());
        let stepped = steps.remaining(2 * self.grace);
        // Redis restarted since: a worker seen before may not have had the time to report again
        let since_start = self.redis_started.map(|started| started.elapsed());
        let restarted = since_start.filter(|age| silent_ms > whole(*age)).map(|age| self.grace.saturating_sub(age));
        whole(seen.max(stepped).max(restarted.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether that number of milliseconds was left at `begin`: some have passed since.
    fn is_what_is_left_of(remaining: Millis, all: Millis, begin: Instant) -> bool {
        let spent = Millis::try_from(begin.elapsed().as_millis()).expect("a short time");
        (all - spent - 1..=all).contains(&remaining)
    }

    fn outage_grace() -> OutageGrace {
        OutageGrace::new(Duration::from_secs(15))
    }

    fn remaining_grace(outage_grace: &OutageGrace, silent_ms: Millis) -> Millis {
        outage_grace.remaining_grace(silent_ms, ClockSteps::default())
    }

    #[tokio::test]
    async fn silence_does_not_count_until_half_a_lease_after_redis_was_away() {
        let mut outage_grace = outage_grace();
        outage_grace.observe(async { Ok(()) }).await.expect("an answer");
        assert_eq!(remaining_grace(&outage_grace, 49_000), 0);
        outage_grace.is_redis_away = true;
        let begin = Instant::now();
        outage_grace.observe(async { Ok(()) }).await.expect("an answer");
        let remaining = remaining_grace(&outage_grace, 49_000);
        assert!(is_what_is_left_of(remaining, 15_000, begin), "{remaining}");
    }

    #[tokio::test]
    async fn silence_from_before_a_restart_of_redis_counts_half_a_lease_after_it() {
        let begin = Instant::now();
        let started = |ago| begin.checked_sub(Duration::from_secs(ago));
        let mut outage_grace = OutageGrace { redis_started: started(1), ..outage_grace() };
        let remaining = remaining_grace(&outage_grace, 3_600_000);
        assert!(is_what_is_left_of(remaining, 14_000, begin), "{remaining}");
        assert_eq!(remaining_grace(&outage_grace, 500), 0, "heard of since the restart");
        outage_grace.redis_started = started(15);
        assert_eq!(remaining_grace(&outage_grace, 16_000), 0);
    }
}
