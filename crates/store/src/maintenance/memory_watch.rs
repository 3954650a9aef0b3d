//! Reads how full Redis is, in every process, and keeps each kind of data within its budget.

use std::time::{Duration, Instant};

use redis::InfoDict;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::memory_survey::MemorySurvey;
use crate::{
    Redis, StoreResult,
    connection::{budgets::DataKind, memory::ResultRetention},
    events::{JobEvent, stream_count},
    jobs::Jobs,
    keys,
};
use common::settings::Settings;

/// How often memory is read while little is stored.
const READ_INTERVAL: Duration = Duration::from_secs(5);
/// The same under pressure: each reading starts another round of trimming.
const PRESSURE_INTERVAL: Duration = Duration::from_millis(500);
/// Shortest time between two readings.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// What is trimmed is trimmed to this share of its budget, in percent, so that it is not trimmed again at once.
const TRIMMED_PERCENT: u64 = 90;
/// Shortest time between two reports that a kind uses more than its budget.
const REPORT_INTERVAL: Duration = Duration::from_mins(1);

/// Reads the memory of Redis regularly until `stop` is cancelled. A server that does not allow it counts as one without
/// a maximum.
pub(crate) async fn watch(jobs: &Jobs, stop: &CancellationToken) {
    let (redis, mut watch) = (&jobs.store.redis, MemoryWatch::default());
    let state = redis.memory();
    while !stop.is_cancelled() {
        if read_memory(redis).await.is_ok()
            && let Err(error) = watch.act(jobs).await
        {
            tracing::debug!(%error, "memory not measured");
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

/// Reads the memory of Redis once, of a cluster that of the fullest node. The first claim of a process needs to know how full it is.
///
/// # Errors
/// Redis is unavailable, or does not allow the question.
pub async fn read_memory(redis: &Redis) -> StoreResult<()> {
    let memory_of = |mut redis: Redis| async move {
        let info: InfoDict = redis::cmd("INFO").arg("memory").query_async(&mut redis).await?;
        Ok((info.get("used_memory").unwrap_or(0_u64), info.get("maxmemory").unwrap_or(0_u64)))
    };
    // The fullest one refuses first
    let share = |(used, max): &(u64, u64)| (used.saturating_mul(1000).checked_div(*max), *used);
    let (used, max) = redis.ask_each(memory_of).await?.into_iter().max_by_key(share).unwrap_or_default();
    redis.memory().set(used, max);
    Ok(())
}

/// The state of the watch of one process.
#[derive(Default)]
struct MemoryWatch {
    survey: MemorySurvey,
    retention: ResultRetention,
    is_checked: bool,
    reported_at: Option<Instant>,
}

impl MemoryWatch {
    /// Acts on a reading of the memory.
    async fn act(&mut self, jobs: &Jobs) -> StoreResult<()> {
        let state = jobs.store.redis.memory();
        let (used, max) = state.used_and_max();
        if !std::mem::replace(&mut self.is_checked, true) {
            warn_of_large_settings(&jobs.store.settings, max);
        }
        if state.must_be_measured() {
            self.survey.run(jobs).await?;
            state.demand_trimming();
            self.report(jobs);
            self.trim_dead_letters(jobs).await?;
            trim_events(jobs).await?;
        }
        let now = state.result_retention();
        if std::mem::replace(&mut self.retention, now) != now {
            tracing::warn!(event = "memory.results", results = now.as_str(), used, max, "retention of results changed");
        }
        Ok(())
    }

    /// Tells which kinds use more than their budget.
    fn report(&mut self, jobs: &Jobs) {
        if self.reported_at.is_some_and(|at| at.elapsed() < REPORT_INTERVAL) {
            return;
        }
        for (budget, used, share) in jobs.store.redis.memory().usage_of_kinds().filter(|(_, used, share)| used >= share)
        {
            self.reported_at = Some(Instant::now());
            let (kind, then) = (budget.name, budget.when_used_up.as_str());
            tracing::warn!(
                event = "memory.budget_used",
                kind,
                used,
                share,
                then,
                "data takes its share of redis's memory"
            );
            let data = json!({ "kind": kind, "used_bytes": used, "budget_bytes": share, "then": then });
            jobs.record_event(JobEvent::new("memory.budget_used", jobs.estimated_now(), data.to_string()));
        }
    }

    /// Drops the oldest dead letters of each queue when all together take too much.
    async fn trim_dead_letters(&mut self, jobs: &Jobs) -> StoreResult<()> {
        let Some(kept) = kept_percent(jobs, DataKind::DeadLetters) else { return Ok(()) };
        for (queue, size) in self.survey.queues.iter_mut().filter(|(_, size)| size.dead_letters > 0) {
            let max = size.dead_letters * kept / 100;
            jobs.trim_dead_letters(queue, max).await?;
            count_trimmed(DataKind::DeadLetters, size.dead_letters - max);
            size.dead_letters = max;
        }
        Ok(())
    }
}

/// How much of a kind may stay, in percent, when it uses more than its budget.
fn kept_percent(jobs: &Jobs, kind: DataKind) -> Option<u64> {
    let used = jobs.store.redis.memory().used_percent(kind);
    (used > 100).then(|| TRIMMED_PERCENT * 100 / used)
}

/// Trims the oldest events when they take too much.
async fn trim_events(jobs: &Jobs) -> StoreResult<()> {
    let Some(kept) = kept_percent(jobs, DataKind::Events) else { return Ok(()) };
    let mut redis = jobs.store.redis.clone();
    let mut trimmed = 0;
    for key in (0..stream_count(&redis)).map(keys::events) {
        let entries: u64 = redis::cmd("XLEN").arg(&*key).query_async(&mut redis).await?;
        let mut command = redis::cmd("XTRIM");
        command.arg(&*key).arg("MAXLEN").arg("~").arg(entries * kept / 100);
        trimmed += command.query_async::<u64>(&mut redis).await?;
    }
    count_trimmed(DataKind::Events, trimmed);
    Ok(())
}

fn count_trimmed(kind: DataKind, count: u64) {
    metrics::counter!("galley_memory_trimmed_total", "kind" => kind.budget().name).increment(count);
}

/// Compares what the settings allow data to take with the server's memory, when it is first known.
fn warn_of_large_settings(settings: &Settings, max: u64) {
    if max == 0 {
        return;
    }
    for (setting, configured, budget) in settings_beyond_budget(settings, max) {
        tracing::warn!(event = "memory.budget", setting, configured, budget, "more than redis has room for");
    }
}

/// About the bytes of a dead letter, of an event and of a message with small contents.
const SMALL_DEAD_LETTER: u64 = 1024;
const SMALL_EVENT: u64 = 200;
const SMALL_MESSAGE: u64 = 100;

/// Settings that allow data to take more than its budget, with that, both in bytes.
fn settings_beyond_budget(settings: &Settings, max: u64) -> Vec<(&'static str, u64, u64)> {
    let (retention, backlog) = (settings.channels.retention.largest(), settings.channels.retention.backlog_cap());
    let share = |kind: DataKind| kind.budget().bytes(max);
    let backlog_share = max / crate::connection::memory::BACKLOG_SHARE;
    let history = retention.bytes.unwrap_or(u64::MAX).min(retention.messages.saturating_mul(SMALL_MESSAGE));
    let all = [
        ("channels.backlog_max_bytes", backlog.bytes, backlog_share),
        ("channels.backlog_max_messages", backlog.messages.saturating_mul(SMALL_MESSAGE), backlog_share),
        ("channels.history_max", history, share(DataKind::Histories)),
        (
            "jobs.dead_letter_max",
            settings.jobs.dead_letter_max.saturating_mul(SMALL_DEAD_LETTER),
            share(DataKind::DeadLetters),
        ),
        ("jobs.events_max", settings.jobs.events_max.saturating_mul(SMALL_EVENT), share(DataKind::Events)),
        ("cron.max_entries", settings.cron.max_entries.saturating_mul(SMALL_DEAD_LETTER), share(DataKind::Definitions)),
        (
            "subscriptions.max",
            settings.subscriptions.max.saturating_mul(SMALL_DEAD_LETTER),
            share(DataKind::Definitions),
        ),
        ("workflows.results_limit_bytes", settings.workflows.results_limit_bytes, share(DataKind::Workflows)),
    ];
    all.into_iter().filter(|(_, configured, budget)| configured > budget).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_allow_more_than_a_share_are_named() {
        let settings = Settings::from_sources(None, std::collections::HashMap::new()).expect("defaults");
        let named =
            |max: u64| settings_beyond_budget(&settings, max).into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
        let small = named(64 << 20);
        for setting in ["channels.backlog_max_bytes", "jobs.dead_letter_max", "cron.max_entries"] {
            assert!(small.contains(&setting), "{setting} of {small:?}");
        }
        assert!(named(1 << 40).is_empty(), "{:?}", named(1 << 40));
    }
}
