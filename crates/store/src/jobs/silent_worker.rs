//! Gives the jobs of a worker that stopped reporting to others, without waiting for its leases.

use std::time::Duration;

use super::{ActiveAttempt, ClaimedJob, Consumer, Fence, JobStreamEntry, Jobs, Settled};
use crate::{
    StoreError, StoreResult,
    connection::clock::MoveDue,
    keys::{QueueKeys, parse_attempt_name},
    workers::ListedWorker,
};
use common::{
    id::EntryId,
    name::{Priority, QueueName},
};

/// Jobs of one stream that are released at most.
const MAX_RELEASED: usize = 1000;
/// Leases of a queue that are looked at.
const MAX_LEASES: usize = 10_000;

impl Jobs {
    /// Makes the jobs of a silent worker available again, as after the end of its leases; how many.
    ///
    /// # Errors
    /// Redis is unavailable: some may be available.
    pub async fn release_jobs_of(&self, worker: &ListedWorker) -> StoreResult<usize> {
        let mut queues = Vec::new();
        for queue in worker.record.queues.iter().filter_map(|queue| queue.parse::<QueueName>().ok()) {
            queues.extend(self.read_partitions(&queue).await?);
        }
        let mut released = 0;
        for queue in queues {
            match Consumer::parse(worker.key.as_str()) {
                Some(consumer) => {
                    for priority in self.priorities(&queue).await? {
                        released += self.release_held(&queue, priority, &consumer).await?;
                    }
                }
                None => released += self.end_leases(&queue, &worker.record.name).await?,
            }
        }
        Ok(released)
    }

    /// Releases what a queue-worker holds of one stream.
    async fn release_held(&self, queue: &QueueName, priority: Priority, consumer: &Consumer) -> StoreResult<usize> {
        let mut command = redis::cmd("XPENDING");
        command.arg(QueueKeys::new(queue).stream(priority)).arg("workers").arg("-").arg("+");
        command.arg(MAX_RELEASED).arg(consumer.name());
        let mut redis = self.store.redis.clone();
        let held = command.query_async::<Vec<(String, String, i64, i64)>>(&mut redis).await;
        let held = match held.map_err(StoreError::from) {
            // The stream was removed
            Err(StoreError::Refused(_)) => return Ok(0),
            held => held?,
        };
        let mut released = 0;
        for (entry, _, idle, _) in held {
            let Ok(entry) = entry.parse::<EntryId>() else { continue };
            let JobStreamEntry::Job(job) = self.read_entry(queue, priority, entry).await? else { continue };
            let started_at = self.estimated_now() - idle;
            let claimed = ClaimedJob::new(*job, entry, None, started_at);
            let fence = Fence::Worker { consumer: consumer.clone(), min_idle: Duration::from_millis(1) };
            released += usize::from(self.worker_lost(&claimed, &fence).await? == Settled::Done);
        }
        Ok(released)
    }

    /// Ends the leases of a program that fetched over HTTP: the leader then gives its jobs to others.
    async fn end_leases(&self, queue: &QueueName, worker: &str) -> StoreResult<usize> {
        let (keys, mut redis) = (QueueKeys::new(queue), self.store.redis.clone());
        let mut command = redis::cmd("ZRANGE");
        command.arg(keys.leases()).arg(0).arg(MAX_LEASES - 1);
        let mut members: Vec<String> = command.query_async(&mut redis).await?;
        members.retain(|member| parse_attempt_name(member).is_some());
        if members.is_empty() {
            return Ok(0);
        }
        let attempts: Vec<Option<String>> =
            redis::cmd("HMGET").arg(keys.active()).arg(&members).query_async(&mut redis).await?;
        let is_of_worker = |attempt: &Option<String>| {
            attempt.as_deref().and_then(ActiveAttempt::parse).is_some_and(|attempt| attempt.worker == worker)
        };
        let held: Vec<String> = members
            .into_iter()
            .zip(&attempts)
            .filter(|(_, attempt)| is_of_worker(attempt))
            .map(|(name, _)| name)
            .collect();
        if !held.is_empty() {
            let now = self.now().await?;
            self.move_due(queue, &keys.leases(), &held, (now, MoveDue::OnlyEarlier)).await?;
        }
        Ok(held.len())
    }
}
