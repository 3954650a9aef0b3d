//! Fires due cron entries: one more timer of the leader.

use std::time::{Duration, Instant};

use crate::{StoreResult, connection::clock::first_due_at, jobs::Jobs, keys};
use common::time::Millis;

/// When the next cron entry is due, by Redis's clock. Read again whenever it may have changed.
#[derive(Default)]
pub(super) struct CronTimer {
    next_at: Option<Millis>,
    not_before: Option<Instant>,
    pub(super) is_stale: bool,
}

impl CronTimer {
    /// How long until the next entry is due.
    pub(super) fn wait(&self, now: Millis) -> Option<Duration> {
        self.next_at.map(|at| super::due_times::wait_until(at, self.not_before, now))
    }

    /// Whether an entry is due.
    pub(super) fn is_due(&self, now: Millis) -> bool {
        self.wait(now).is_some_and(|wait| wait.is_zero())
    }

    /// Fires nothing for a while.
    pub(super) fn pause(&mut self, length: Duration) {
        self.not_before = Some(Instant::now() + length);
    }

    pub(super) async fn refresh(&mut self, jobs: &Jobs) -> StoreResult<()> {
        if self.is_stale {
            let mut command = redis::cmd("ZRANGE");
            command.arg(keys::CRON_NEXT).arg(0).arg(0).arg("WITHSCORES");
            let head: Vec<(redis::Value, f64)> = command.query_async(&mut jobs.store.redis.clone()).await?;
            (self.next_at, self.is_stale) = (first_due_at(&head), false);
        }
        Ok(())
    }

    /// Fires due entries, a bounded number.
    pub(super) async fn fire_if_due(&mut self, jobs: &Jobs, now: Millis) -> StoreResult<()> {
        if self.is_due(now) {
            let troubled = jobs.cron().fire_due().await?;
            self.not_before = (troubled > 0).then(|| Instant::now() + super::FAILURE_PAUSE);
            self.is_stale = true;
        }
        Ok(())
    }
}
