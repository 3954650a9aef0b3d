//! Scheduled and retryable jobs whose time has come become available.

use futures_util::{TryStreamExt, stream};

use crate::{
    id::JobId,
    name::QueueName,
    redis::{
        StoreResult,
        jobs::{Jobs, wake::Wake},
        keys::{self, QueueKeys},
        script,
    },
};

/// Jobs of a queue in one turn.
const BATCH: usize = 200;
/// Scripts under way at once: they pipeline on the shared connection.
const AT_ONCE: usize = 32;

/// Moves jobs that are due into their streams, a batch at most.
pub(super) async fn promote(jobs: &Jobs, queue: &QueueName) -> StoreResult<()> {
    let keys = QueueKeys::new(queue);
    let now = jobs.now().await?;
    let mut command = redis::cmd("ZRANGEBYSCORE");
    command.arg(keys.due()).arg("-inf").arg(now).arg("LIMIT").arg(0).arg(BATCH);
    let ids: Vec<String> = command.query_async(&mut jobs.redis.clone()).await?;
    for stranger in ids.iter().filter(|id| id.parse::<JobId>().is_err()) {
        // Nothing of ours, and it would be due for ever
        tracing::error!(%queue, member = crate::name::quoted(stranger), "not a job id among the due jobs, removed");
        redis::cmd("ZREM").arg(keys.due()).arg(stranger).exec_async(&mut jobs.redis.clone()).await?;
    }
    stream::iter(ids.iter().filter_map(|id| id.parse::<JobId>().ok()).map(Ok))
        .try_for_each_concurrent(AT_ONCE, |id| promote_one(jobs, queue, &keys, id))
        .await
}

async fn promote_one(jobs: &Jobs, queue: &QueueName, keys: &QueueKeys, id: JobId) -> StoreResult<()> {
    let mut redis = jobs.redis.clone();
    let priority: Option<i64> = redis::cmd("HGET").arg(keys.record(&id)).arg("p").query_async(&mut redis).await?;
    let priority = priority.and_then(|number| crate::name::Priority::try_from(number).ok()).unwrap_or_default();
    let moved: String = script::PROMOTE
        .key(keys.due())
        .key(keys.record(&id))
        .key(keys.stream(priority))
        .key(keys.priorities())
        .arg(id.to_string())
        .arg(priority.get())
        .arg(keys::WAKE)
        .arg(Wake::Stream(queue.clone()).encode())
        .invoke_async(&mut redis)
        .await?;
    if moved == "moved" {
        metrics::counter!("galley_jobs_promoted_total", "queue" => queue.to_string()).increment(1);
    }
    Ok(())
}
