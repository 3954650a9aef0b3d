//! Whether a worker's silence means that it vanished.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use crate::StoreResult;
use common::time::Millis;

/// Whether a worker's silence means that it vanished. After an absence of Redis it does not: the worker could not report.
/// It gets half a lease to do so.
pub(super) struct OutageGrace {
    grace: Duration,
    /// Since this moment Redis has been there long enough, as far as this process saw.
    grace_ends_at: Instant,
    /// It was away when it was last asked.
    pub(super) is_redis_away: bool,
    /// When Redis started, on its own clock.
    pub(super) redis_started_at: Millis,
}

impl OutageGrace {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, grace_ends_at: Instant::now(), is_redis_away: false, redis_started_at: 0 }
    }

    /// Awaits an answer of Redis and judges by how it came: one that follows an absence, or that was long in coming,
    /// tells that nobody could report meanwhile.
    pub(super) async fn observe<T>(&mut self, call: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        let asked = Instant::now();
        let answer = call.await?;
        if self.is_redis_away || asked.elapsed() >= self.grace / 2 {
            self.is_redis_away = false;
            self.grace_ends_at = Instant::now() + self.grace;
        }
        Ok(answer)
    }

    /// Milliseconds from `now` until the silence of somebody last heard of at `heard_at` counts; 0 if it counts.
    pub(super) fn remaining_grace(&self, heard_at: Millis, now: Millis) -> Millis {
        let whole = |duration: Duration| Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX);
        let seen = whole(self.grace_ends_at.saturating_duration_since(Instant::now()));
        // Redis was started over since: whoever was heard of before may not have had the time to report again
        let restarted =
            if heard_at < self.redis_started_at { self.redis_started_at + whole(self.grace) - now } else { 0 };
        seen.max(restarted).max(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn silence_does_not_count_until_half_a_lease_after_redis_was_away() {
        let mut trust = OutageGrace::new(Duration::from_secs(15));
        trust.observe(async { Ok(()) }).await.expect("an answer");
        assert_eq!(trust.remaining_grace(1_000, 50_000), 0);
        trust.is_redis_away = true;
        trust.observe(async { Ok(()) }).await.expect("an answer");
        assert!((14_000..=15_000).contains(&trust.remaining_grace(1_000, 50_000)));
    }

    #[test]
    fn silence_from_before_a_restart_of_redis_counts_half_a_lease_after_it() {
        let trust = OutageGrace { redis_started_at: 100_000, ..OutageGrace::new(Duration::from_secs(15)) };
        assert_eq!(trust.remaining_grace(99_000, 101_000), 14_000);
        assert_eq!(trust.remaining_grace(99_000, 115_000), 0);
        assert_eq!(trust.remaining_grace(100_500, 101_000), 0, "heard of since the restart");
    }
}
