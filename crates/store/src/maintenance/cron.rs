//! Fires due cron entries: one more timer of the leader.

use std::time::Duration;

use tokio::time::Instant;

use super::maintenance_store::MaintenanceStore;
use crate::StoreResult;
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

    pub(super) async fn refresh(&mut self, store: &impl MaintenanceStore) -> StoreResult<()> {
        if self.is_stale {
            (self.next_at, self.is_stale) = (store.first_cron_run().await?, false);
        }
        Ok(())
    }

    /// Fires due entries, a bounded number.
    pub(super) async fn fire_if_due(&mut self, store: &impl MaintenanceStore, now: Millis) -> StoreResult<()> {
        if self.is_due(now) {
            let troubled = store.fire_cron().await?;
            self.not_before = (troubled > 0).then(|| Instant::now() + super::failures::FAILURE_PAUSE);
            self.is_stale = true;
        }
        Ok(())
    }
}
