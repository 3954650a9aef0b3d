//! Restores the next runs of cron entries: without one an entry would never run again.

use std::collections::HashSet;

use super::Cron;
use crate::{StoreResult, keys};

/// About how many entries one slice looks at.
const ENTRIES_PER_SLICE: usize = 20;

impl Cron<'_> {
    /// Looks at some entries from a position on and returns the next, 0 at the end.
    pub(crate) async fn restore_next_runs(&self, from: u64) -> StoreResult<u64> {
        let mut redis = self.jobs.store.redis.clone();
        let mut scan = redis::cmd("HSCAN");
        scan.arg(keys::CRON_ENTRIES).arg(from).arg("COUNT").arg(ENTRIES_PER_SLICE);
        let (next, found): (u64, Vec<(String, String)>) = scan.query_async(&mut redis).await?;
        if found.is_empty() {
            return Ok(next);
        }
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        let mut scores = redis::cmd("ZMSCORE");
        scores.arg(keys::CRON_NEXT).arg(&names);
        let scores: Vec<Option<f64>> = scores.query_async(&mut redis).await?;
        let missing: HashSet<&str> =
            names.into_iter().zip(scores).filter(|(_, score)| score.is_none()).map(|(name, _)| name).collect();
        for (name, raw) in found.iter().filter(|(name, _)| missing.contains(name.as_str())) {
            let now = self.jobs.now().await?;
            // One that cannot be read never runs, and one that is disabled has no next run
            let Ok(Some(entry)) = self.parse_entry(name, raw) else { continue };
            if entry.next_check_at(now).is_none() {
                continue;
            }
            // If it was changed meanwhile, that set its next run
            self.save_if_unchanged(&entry, Some(raw), now).await?;
            tracing::warn!(cron = name, "the next run of a cron entry was missing, restored");
        }
        Ok(next)
    }
}
