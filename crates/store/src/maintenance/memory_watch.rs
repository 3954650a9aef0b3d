//! Reads how full Redis is, in every process.

use std::time::Duration;

use redis::InfoDict;
use tokio_util::sync::CancellationToken;

use crate::{
    Redis, StoreResult,
    connection::memory::{BACKLOG_SHARE, ResultRetention},
};

/// How often memory is read while little is stored.
const READ_INTERVAL: Duration = Duration::from_secs(5);
/// The same under pressure: each reading starts another round of trimming.
const PRESSURE_INTERVAL: Duration = Duration::from_millis(500);
/// Shortest time between two readings.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Reads the memory of Redis regularly until `stop` is cancelled. A server that does not allow it counts as one without
/// a maximum.
pub(crate) async fn watch(redis: &Redis, budgets: MemoryBudgets, stop: &CancellationToken) {
    let state = redis.memory();
    let (mut retention, mut is_checked) = (ResultRetention::Full, false);
    while !stop.is_cancelled() {
        if read_memory(redis).await.is_ok() {
            let (used, max) = state.used_and_max();
            if !std::mem::replace(&mut is_checked, true) {
                budgets.warn_if_too_large(max);
            }
            let now = state.result_retention();
            if std::mem::replace(&mut retention, now) != now {
                tracing::warn!(
                    event = "memory.results",
                    results = now.as_str(),
                    used,
                    max,
                    "retention of results changed"
                );
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(MIN_INTERVAL) => {}
        }
        let interval = if state.is_under_pressure() { PRESSURE_INTERVAL } else { READ_INTERVAL };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
            () = state.wait_for_much_stored() => {}
        }
    }
}

/// Reads the memory of Redis once. The first claim of a process needs to know how full it is.
///
/// # Errors
/// Redis is unavailable, or does not allow the question.
pub async fn read_memory(redis: &Redis) -> StoreResult<()> {
    let info: InfoDict = redis::cmd("INFO").arg("memory").query_async(&mut redis.clone()).await?;
    redis.memory().set(info.get("used_memory").unwrap_or(0), info.get("maxmemory").unwrap_or(0));
    Ok(())
}

/// What the settings allow data to take, compared with the server's memory when it is first known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryBudgets {
    /// `channels.backlog_max_bytes`.
    pub(crate) backlog: u64,
}

impl MemoryBudgets {
    fn warn_if_too_large(self, max: u64) {
        if max > 0 && self.backlog > max / BACKLOG_SHARE {
            let (setting, budget) = ("channels.backlog_max_bytes", max / BACKLOG_SHARE);
            tracing::warn!(
                event = "memory.budget",
                setting,
                configured = self.backlog,
                budget,
                "more than redis has room for: a quarter of maxmemory applies"
            );
        }
    }
}
