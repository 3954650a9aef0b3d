//! Heals what a step of Redis's clock left behind.
//!
//! Redis stores times as its clock showed them. When the clock is set, running attempts get back what was left of their
//! leases and time limits. When it is set back, leases, pauses, retries and cron entries would also last until the clock
//! gets there again: they get the longest time that they can have from now on. What a user gave as a time of day stays:
//! scheduled jobs, `expires_at`. TTLs of results and similar data stay too: only Redis could change them.

use redis::aio::ConnectionLike;

use crate::{
    StoreResult,
    jobs::Jobs,
    keys::{self, QueueKeys},
    script,
};
use common::{id::JobId, name::QueueName, time::Millis};

/// Maximum number of members of a sorted set in one step.
const PAGE: usize = 100;
/// No timer of a limit or of a follow-up is later than that for long.
const MAX_TIMER_MS: Millis = 60_000;

/// Gives running attempts back what was left of their leases and time limits before Redis's clock was set by `by_ms`.
pub(super) async fn heal_leases(jobs: &Jobs, by_ms: Millis) -> StoreResult<()> {
    tracing::warn!(event = "maintenance.clock_healed", by_ms, "redis's clock was set: leases get their time back");
    for queue in jobs.list_queues().await? {
        let keys = QueueKeys::new(&queue);
        let mut redis = jobs.store.redis.clone();
        let names: Vec<String> = redis::cmd("ZRANGE").arg(keys.leases()).arg(0).arg(-1).query_async(&mut redis).await?;
        for names in names.chunks(PAGE) {
            let mut call = script::HEAL_LEASES.prepare_invoke();
            call.key(keys.leases()).key(keys.active()).arg(by_ms);
            let _: i64 = call.arg(names).invoke_async(&mut redis).await?;
        }
    }
    Ok(())
}

/// Heals everything whose time is still to come although it should be over soon, because Redis's clock was set back.
/// Idempotent: what is not too late stays as it is.
pub(super) async fn heal_clock_set_back(jobs: &Jobs) -> StoreResult<()> {
    heal_leases(jobs, 0).await?;
    for queue in jobs.list_queues().await? {
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

/// Makes timers of limits and follow-ups due now: each sets its next time itself.
async fn heal_timers(jobs: &Jobs, queue: &QueueName) -> StoreResult<()> {
    let timers = QueueKeys::new(queue).timers();
    for pattern in ["key *", "follow_up *"] {
        bring_forward(jobs, &timers, pattern, MAX_TIMER_MS).await?;
    }
    Ok(())
}

/// A workflow is checked an hour from now at the latest.
async fn heal_workflows(jobs: &Jobs) -> StoreResult<()> {
    let interval = Millis::try_from(jobs.store.settings.workflows.check_interval.as_millis()).unwrap_or(Millis::MAX);
    bring_forward(jobs, keys::WORKFLOWS, "*", interval.saturating_add(3_600_000)).await
}

/// Makes members due now whose time is later than `max_ms` from now.
async fn bring_forward(jobs: &Jobs, set: &str, pattern: &str, max_ms: Millis) -> StoreResult<()> {
    let (now, mut cursor) = (jobs.now().await?, 0);
    loop {
        let (next, page) = scan(jobs, set, cursor, pattern).await?;
        let latest = now.saturating_add(max_ms);
        for (member, _) in page.iter().filter(|(_, at)| crate::connection::clock::score_to_millis(*at) > latest) {
            jobs.store.redis.reschedule(set, member, now).await?;
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}
