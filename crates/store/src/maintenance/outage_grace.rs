//! Decides whether a worker's silence means that it died.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use crate::StoreResult;
use common::time::Millis;

/// Decides whether a worker's silence means that it died. After an outage of Redis it does not, because the worker
/// could not report: it gets half a lease to do so.
pub(super) struct OutageGrace {
    grace: Duration,
    /// From this moment on Redis has been available long enough, as far as this process saw.
    grace_ends_at: Instant,
    /// Whether the last call failed.
    pub(super) is_redis_away: bool,
    /// When Redis started, by its own clock.
    pub(super) redis_started_at: Millis,
}

impl OutageGrace {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, grace_ends_at: Instant::now(), is_redis_away: false, redis_started_at: 0 }
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

    /// Milliseconds from `now` until the silence of a worker last seen at `last_seen_at` counts; 0 if it does already.
    pub(super) fn remaining_grace(&self, last_seen_at: Millis, now: Millis) -> Millis {
        let whole = |duration: Duration| Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX);
        let seen = whole(self.grace_ends_at.saturating_duration_since(Instant::now()));
        // Redis restarted since: a worker seen before may not have had the time to report again
        let restarted =
            if last_seen_at < self.redis_started_at { self.redis_started_at + whole(self.grace) - now } else { 0 };
        seen.max(restarted).max(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn silence_does_not_count_until_half_a_lease_after_redis_was_away() {
        let mut outage_grace = OutageGrace::new(Duration::from_secs(15));
        outage_grace.observe(async { Ok(()) }).await.expect("an answer");
        assert_eq!(outage_grace.remaining_grace(1_000, 50_000), 0);
        outage_grace.is_redis_away = true;
        outage_grace.observe(async { Ok(()) }).await.expect("an answer");
        assert!((14_000..=15_000).contains(&outage_grace.remaining_grace(1_000, 50_000)));
    }

    #[test]
    fn silence_from_before_a_restart_of_redis_counts_half_a_lease_after_it() {
        let outage_grace = OutageGrace { redis_started_at: 100_000, ..OutageGrace::new(Duration::from_secs(15)) };
        assert_eq!(outage_grace.remaining_grace(99_000, 101_000), 14_000);
        assert_eq!(outage_grace.remaining_grace(99_000, 115_000), 0);
        assert_eq!(outage_grace.remaining_grace(100_500, 101_000), 0, "heard of since the restart");
    }
}
