//! Heals what a step of Redis's clock left behind.
//!
//! Redis stores times as its clock showed them. When the clock is set, running attempts get back what was left of their
//! leases and time limits. When it is set back, leases, pauses, retries and cron entries would also last until the clock
//! gets there again: they get the longest time that they can have from now on. What a user gave as a time of day stays:
//! scheduled jobs, `expires_at`. TTLs of results and similar data stay too: only Redis could change them.

use std::time::Duration;

use redis::aio::ConnectionLike;
use tokio::time::Instant;

use super::maintenance_store::MaintenanceStore;
use crate::{
    StoreError, StoreResult,
    connection::{
        clock::{MoveDue, score_to_millis},
        redis_clock::{ClockSteps, READING_INTERVAL, SET_BACK_MEMORY},
    },
    jobs::Jobs,
    keys::{self, QueueKeys},
    script,
    workflows::Workflows,
};
use common::{id::JobId, name::QueueName, time::Millis};

/// Maximum number of members of a sorted set in one step.
const PAGE: usize = 100;
/// No timer of a limit, a follow-up or a chosen id is later than that for long.
const MAX_TIMER_MS: Millis = 60_000;

/// When no process starts a lease by the clock as it was before a step back any more: each has read the clock by then.
const HEAL_AGAIN_AFTER: Duration = Duration::from_secs(2 * READING_INTERVAL.as_secs() + SET_BACK_MEMORY.as_secs());

/// What the leader has healed.
pub(super) struct HealedSteps {
    /// The steps of Redis's clock until then.
    pub(super) steps: ClockSteps,
    /// When leases are healed again: those that started, after a step back, by the clock as it was before.
    again_at: Option<Instant>,
}

impl HealedSteps {
    /// What a new leader takes for healed. If the leader before it had leases to heal again, they last until their time by
    /// the clock as it was, which delays only the jobs of workers that vanished.
    pub(super) fn new(steps: ClockSteps) -> Self {
        Self { steps, again_at: None }
    }

    /// Notes that these steps are healed.
    pub(super) fn note(&mut self, steps: ClockSteps) {
        *self = Self { steps, again_at: Some(Instant::now() + HEAL_AGAIN_AFTER) };
    }

    /// Heals leases again when it is time.
    pub(super) async fn heal_again(&mut self, store: &impl MaintenanceStore) -> StoreResult<()> {
        if self.again_at.take_if(|at| *at <= Instant::now()).is_none() {
            return Ok(());
        }
        store.move_leases(0).await
    }
}

/// Gives running attempts back what was left of their leases and time limits before Redis's clock was set by `by_ms`.
pub(super) async fn heal_leases(store: &impl MaintenanceStore, by_ms: Millis) -> StoreResult<()> {
    tracing::warn!(event = "maintenance.clock_healed", by_ms, "redis's clock was set: leases get their time back");
    store.move_leases(by_ms).await
}

pub(super) async fn move_leases(jobs: &Jobs, by_ms: Millis) -> StoreResult<()> {
    for queue in jobs.list_partitions().await? {
        match move_leases_of(jobs, &queue, by_ms).await {
            // A key of a wrong type must not keep the other queues from it
            Err(error) if !matches!(error, StoreError::Unavailable(_)) => {
                tracing::debug!(%queue, %error, "leases of a queue are not healed");
            }
            healed => healed?,
        }
    }
    Ok(())
}

async fn move_leases_of(jobs: &Jobs, queue: &QueueName, by_ms: Millis) -> StoreResult<()> {
    let keys = QueueKeys::new(queue);
    let mut redis = jobs.store.redis.clone();
    let names: Vec<String> = redis::cmd("ZRANGE").arg(keys.leases()).arg(0).arg(-1).query_async(&mut redis).await?;
    for names in names.chunks(PAGE) {
        let mut call = script::HEAL_LEASES.prepare_invoke();
        call.key(keys.leases()).key(keys.active()).arg(by_ms);
        let _: i64 = call.arg(names).invoke_async(&mut redis).await?;
    }
    Ok(())
}

/// Heals everything whose time is still to come although it should be over soon, because Redis's clock was set back.
/// Idempotent: what is not too late stays as it is.
pub(super) async fn heal_clock_set_back(jobs: &Jobs) -> StoreResult<()> {
    heal_leases(jobs, 0).await?;
    for queue in jobs.list_partitions().await? {
        heal_pending(jobs, &queue).await?;
        heal_retries(jobs, &queue).await?;
        heal_timers(jobs, &queue).await?;
    }
    heal_workflows(jobs).await?;
    jobs.cron().heal_clock_set_back().await?;
    // From now on the clock is what it is
    let now = jobs.now().await?;
    let mut command = redis::cmd("SET");
    Ok(command.arg(keys::CLOCK).arg(now).exec_async(&mut jobs.store.redis.clone()).await?)
}

async fn heal_pending(jobs: &Jobs, queue: &QueueName) -> StoreResult<()> {
    for priority in jobs.priorities(queue).await? {
        let mut redis = jobs.store.redis.clone();
        heal_group(&mut redis, &QueueKeys::new(queue).stream(priority), "workers").await?;
    }
    Ok(())
}

/// Lets the idle times of a group's pending entries grow again.
pub(crate) async fn heal_group(redis: &mut impl ConnectionLike, stream: &str, group: &str) -> StoreResult<()> {
    let mut start = String::from("-");
    loop {
        let call = script::HEAL_PENDING.key(stream);
        let last: String = { call }.arg(group).arg(&start).arg(PAGE).invoke_async(redis).await?;
        if last.is_empty() {
            return Ok(());
        }
        start = format!("({last}");
    }
}

/// The next page of a sorted set whose members change meanwhile: member, time.
async fn scan(jobs: &Jobs, set: &str, cursor: u64, pattern: &str) -> StoreResult<(u64, Vec<(String, f64)>)> {
    let mut command = redis::cmd("ZSCAN");
    command.arg(set).arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(PAGE);
    Ok(command.query_async(&mut jobs.store.redis.clone()).await?)
}

async fn heal_retries(jobs: &Jobs, queue: &QueueName) -> StoreResult<()> {
    let (keys, mut cursor) = (QueueKeys::new(queue), 0);
    loop {
        let (next, page) = scan(jobs, &keys.due(), cursor, "*").await?;
        let ids: Vec<JobId> = page.iter().filter_map(|(id, _)| id.parse().ok()).collect();
        if !ids.is_empty() {
            let mut call = script::HEAL_RETRIES.prepare_invoke();
            call.key(keys.due());
            for id in &ids {
                call.key(keys.record(id)).arg(id.to_string());
            }
            let _: i64 = call.invoke_async(&mut jobs.store.redis.clone()).await?;
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

/// Makes timers of limits, follow-ups and chosen ids due now: each sets its next time itself.
async fn heal_timers(jobs: &Jobs, queue: &QueueName) -> StoreResult<()> {
    let timers = QueueKeys::new(queue).timers();
    for pattern in ["key *", "follow_up *", "chosen_id *"] {
        let mut cursor = 0;
        loop {
            let (next, late) = scan_late(jobs, &timers, cursor, pattern, MAX_TIMER_MS).await?;
            jobs.move_due(queue, &timers, &late, (jobs.now().await?, MoveDue::OnlyEarlier)).await?;
            if next == 0 {
                break;
            }
            cursor = next;
        }
    }
    Ok(())
}

/// A workflow is checked an hour from now at the latest.
async fn heal_workflows(jobs: &Jobs) -> StoreResult<()> {
    let interval = Millis::try_from(jobs.store.settings.workflows.check_interval.as_millis()).unwrap_or(Millis::MAX);
    let (workflows, mut cursor) = (Workflows::new(jobs), 0);
    loop {
        let max_ms = interval.saturating_add(3_600_000);
        let (next, late) = scan_late(jobs, keys::WORKFLOWS, cursor, "*", max_ms).await?;
        for id in late.iter().filter_map(|id| id.parse().ok()) {
            workflows.reschedule_workflow(id, Duration::ZERO).await?;
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

/// Members of the next page of a sorted set whose time is later than `max_ms` from now.
async fn scan_late(
    jobs: &Jobs,
    set: &str,
    cursor: u64,
    pattern: &str,
    max_ms: Millis,
) -> StoreResult<(u64, Vec<String>)> {
    let (next, page) = scan(jobs, set, cursor, pattern).await?;
    let latest = jobs.now().await?.saturating_add(max_ms);
    let late = page.into_iter().filter(|(_, at)| score_to_millis(*at) > latest);
    Ok((next, late.map(|(member, _)| member).collect()))
}
