//! Opens queues and their partitions, and recovers jobs whose claim answer was lost.

use std::time::Instant;

use common::name::{Priority, QueueName};
use store::{StoreError, StoreResult};

use super::Claimer;

/// Maximum number of pages of jobs recovered from one stream: jobs whose outcome cannot be recorded come again.
const MAX_RECOVERY_PAGES: usize = 1000;

impl Claimer {
    /// Opens every queue and recovers jobs whose claim answer was lost.
    pub(super) async fn recover(&mut self) -> StoreResult<()> {
        for queue in self.queue_selector.all() {
            self.open(&queue).await?;
        }
        Ok(())
    }

    /// Opens the streams of a queue and recovers its jobs. A queue that cannot be opened, because Redis is full or a key
    /// has another type, must not stop the other queues: it is tried again later.
    pub(super) async fn open(&mut self, queue: &QueueName) -> StoreResult<()> {
        // They are not lost
        self.finish_starting().await?;
        match self.open_and_recover(queue).await {
            Ok(priorities) => {
                if self.queues.get_mut(queue).set_open(priorities) {
                    tracing::info!(event = "queue.available", %queue, "queue is served again");
                }
                Ok(())
            }
            Err(error) => self.leave_out(queue, error),
        }
    }

    async fn open_and_recover(&self, queue: &QueueName) -> StoreResult<Vec<Priority>> {
        let shared = &self.shared;
        let priorities = shared.jobs.open_queue(queue).await?;
        for priority in &priorities {
            let is_new = |entry| !shared.in_flight.contains(queue, *priority, entry);
            for _ in 0..MAX_RECOVERY_PAGES {
                let lost = shared.jobs.recover_claims(queue, *priority, &shared.consumer, is_new).await?;
                if lost.is_empty() {
                    break;
                }
                for claimed in lost {
                    let (id, entry, work) = (claimed.job.id, claimed.entry, claimed.job.work_scope());
                    self.runner.start(claimed, None);
                    shared.in_flight.renew_now(&(queue.clone(), *priority), entry);
                    work.within(|| {
                        tracing::info!(event = "claim.recovered", %queue, %id, "recovered a claim whose answer was lost");
                    });
                }
            }
        }
        Ok(priorities)
    }

    /// Leaves a queue out for a while, unless the error concerns all queues: with several servers none does.
    pub(super) fn leave_out(&mut self, queue: &QueueName, error: StoreError) -> StoreResult<()> {
        if matches!(error, StoreError::Unavailable(_)) && !self.shared.jobs.redis().has_several_servers() {
            return Err(error);
        }
        if self.queues.get_mut(queue).set_failing(Instant::now()) {
            tracing::warn!(event = "queue.unavailable", %queue, %error, "queue cannot be served for now");
        }
        Ok(())
    }

    /// Opens the partitions of a queue that this worker does not know yet.
    pub(super) async fn open_partitions(&mut self, queue: &QueueName, count: Option<u16>) -> StoreResult<()> {
        let Some(count) = count else { return Ok(()) };
        let new = self.queue_selector.add_partitions(queue, count);
        self.queues.add(&new);
        for partition in new {
            self.open(&partition).await?;
            self.new_partitions.push(partition);
        }
        Ok(())
    }
}
