//! Reclaims jobs of dead queue-workers; deletes idle consumers and old dead letters.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    OutageGrace,
    maintenance_store::{HoldingWorker, MaintenanceStore},
    silence_watch::{SilenceWatch, SilentQueue},
};
use crate::{
    StoreResult,
    jobs::{ClaimedJob, Consumer, Fence, JobStreamEntry, Jobs},
    keys::QueueKeys,
    script,
};
use common::{
    id::EntryId,
    name::{Priority, QueueName},
    time::Millis,
};

/// Maximum number of jobs of one dead worker in one page.
pub(super) const BATCH: usize = 100;
/// Maximum number of pages in one turn.
const MAX_PAGES: usize = 20;
/// The stream of a priority is removed when it had no new job for this long.
const STREAM_TTL: Duration = Duration::from_mins(1);
/// A consumer without jobs is deleted after this long.
const CONSUMER_TTL: Duration = Duration::from_hours(1);

/// Reclaims what silent queue-workers hold in one queue; returns all that held jobs.
pub(super) async fn reap_queue(
    store: &impl MaintenanceStore,
    queue: &QueueName,
    outage_grace: &mut OutageGrace,
    watch: &mut SilenceWatch,
) -> StoreResult<Vec<HoldingWorker>> {
    let (mut holders, mut silent) = (Vec::new(), watch.look(queue));
    for priority in store.priorities(queue).await? {
        for holder in store.job_holders(queue, priority).await? {
            reclaim(store, (queue, priority), &holder.consumer, outage_grace, &mut silent).await?;
            holders.push(holder);
        }
    }
    Ok(holders)
}

/// Finds streams that are on no list; deletes what is old: streams and consumers without jobs, dead letters.
pub(super) async fn prune_queue(jobs: &Jobs, queue: &QueueName) -> StoreResult<()> {
    jobs.check_streams_listed(queue).await?;
    let priorities = jobs.priorities(queue).await?;
    remove_idle_streams(jobs, queue, &priorities).await?;
    for priority in priorities {
        let _: i64 = script::PRUNE_CONSUMERS
            .key(QueueKeys::new(queue).stream(priority))
            .arg(CONSUMER_TTL.as_millis().to_string())
            .arg(BATCH)
            .arg("workers")
            .invoke_async(&mut jobs.store.redis.clone())
            .await?;
    }
    prune_dead_letters(jobs, queue).await
}

/// Removes the streams of priorities that nobody uses any more: every worker reads each stream of its queues.
async fn remove_idle_streams(jobs: &Jobs, queue: &QueueName, priorities: &[Priority]) -> StoreResult<()> {
    // The default priority's stays: most jobs have it
    let others = priorities.iter().filter(|priority| **priority != Priority::default());
    for priority in others.filter(|_| priorities.len() > 1) {
        let keys = QueueKeys::new(queue);
        let _: i64 = script::REMOVE_STREAM
            .key(keys.priorities())
            .key(keys.stream(*priority))
            .arg(priority.get())
            .arg(STREAM_TTL.as_millis().to_string())
            .invoke_async(&mut jobs.store.redis.clone())
            .await?;
    }
    Ok(())
}

/// Makes the jobs of a queue-worker that was silent for its lease available again, page by page.
async fn reclaim(
    store: &impl MaintenanceStore,
    stream: (&QueueName, Priority),
    consumer: &Consumer,
    outage_grace: &mut OutageGrace,
    watch: &mut SilentQueue<'_>,
) -> StoreResult<()> {
    // What waits for memory stays silent
    let looks_from = if consumer.is_postponed() { consumer.lease() } else { watch.looks_from(consumer.lease()) };
    let mut after = None;
    for _ in 0..MAX_PAGES {
        if consumer.is_postponed() && !store.has_room_for_records() {
            return Ok(());
        }
        let silent = outage_grace.observe(store.idle_entries(stream, consumer, looks_from, after)).await?;
        let Some((last, _)) = silent.last() else { return Ok(()) };
        after = Some(*last);
        for (entry, idle) in silent {
            let silence = (Duration::from_millis(u64::try_from(idle).unwrap_or(0)), consumer.lease());
            let counts = watch.counts((stream.1, consumer.name()), entry, silence, Instant::now());
            if counts || consumer.is_postponed() {
                let last_seen_at = store.now().await? - idle;
                if outage_grace.remaining_grace(idle, store.clock_steps()) == 0 {
                    store.take_from_worker(stream, consumer, entry, last_seen_at).await?;
                }
            }
        }
    }
    Ok(())
}

/// Settles the attempt of a worker that is dead, unless the entry is not its own any more.
pub(super) async fn take_from_worker(
    jobs: &Jobs,
    (queue, priority): (&QueueName, Priority),
    consumer: &Consumer,
    entry: EntryId,
    last_seen_at: Millis,
) -> StoreResult<()> {
    let job = match jobs.read_entry(queue, priority, entry).await? {
        JobStreamEntry::Job(job) => *job,
        JobStreamEntry::Unreadable => return Ok(()),
        JobStreamEntry::Missing => {
            // Deleted by hand: nobody can ever finish it, and it would keep its consumer for ever
            let stream = QueueKeys::new(queue).stream(priority);
            let mut command = redis::cmd("XACK");
            command.arg(stream).arg("workers").arg(entry.to_string());
            return Ok(command.exec_async(&mut jobs.store.redis.clone()).await?);
        }
    };
    let id = job.id;
    let claimed = ClaimedJob::new(job, entry, None, last_seen_at);
    let fence = Fence::Worker { consumer: consumer.clone(), min_idle: consumer.lease() };
    if consumer.is_postponed() {
        return jobs.release_postponed(&claimed, &fence).await;
    }
    let settled = jobs.worker_lost(&claimed, &fence).await?;
    let worker = consumer.name();
    claimed.job.work_scope().within(|| {
        tracing::warn!(event = "job.reclaimed", %queue, %id, worker, ?settled, "worker vanished, job reclaimed");
    });
    metrics::counter!("galley_leases_lost_total", "queue" => queue.to_string()).increment(1);
    Ok(())
}

async fn prune_dead_letters(jobs: &Jobs, queue: &QueueName) -> StoreResult<()> {
    let ttl_ms = i64::try_from(jobs.store.settings.jobs.dead_letter_ttl.as_millis()).unwrap_or(i64::MAX);
    // They are kept for days: an estimate that is off by seconds changes nothing
    let oldest = jobs.estimated_now() - ttl_ms;
    let mut command = redis::cmd("ZREMRANGEBYSCORE");
    command.arg(QueueKeys::new(queue).dead_letters()).arg("-inf").arg(oldest);
    command.exec_async(&mut jobs.store.redis.clone()).await?;
    // Those that the process which recorded the last one left
    jobs.trim_dead_letters(queue, jobs.store.settings.jobs.dead_letter_max).await
}
