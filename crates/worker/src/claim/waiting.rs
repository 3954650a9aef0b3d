//! Waits until there may be jobs: one read blocks on the streams of all queues that have no limits.

use std::time::{Duration, Instant};

use common::name::QueueName;
use store::{StoreResult, jobs::record_claim};
use tokio_util::task::AbortOnDropHandle;

use super::{Claimer, MAX_BLOCK};
use crate::{queue_states::ChangedQueues, slots::AnyQueuePermit};

impl Claimer {
    /// Wakes the loop when one of these queues has a job. A blocking read would bypass their limits. Each has a waiter of
    /// its own, so that the loop asks only the queue that has a job. `queues` are in order.
    fn watch_limited_queues(&mut self, queues: &[QueueName]) {
        self.limited_watches.retain(|queue, task| !task.is_finished() && queues.binary_search(queue).is_ok());
        for queue in
            queues.iter().filter(|queue| !self.limited_watches.contains_key(queue)).cloned().collect::<Vec<_>>()
        {
            // The settings can name fewer queues than can be watched
            let Ok(waiter) = self.shared.long_poll.register(std::slice::from_ref(&queue)) else { continue };
            let (wakeup, watched) = (self.wakeup.clone(), queue.clone());
            let watch = async move {
                waiter.wait_for_wakeup().await;
                wakeup.wake_for(&watched);
            };
            self.limited_watches.insert(queue, AbortOnDropHandle::new(tokio::spawn(watch)));
        }
    }

    /// Waits for a job on any stream, for a limit to allow more, or for a wakeup.
    pub(super) async fn wait_for_jobs(&mut self, permit: Option<AnyQueuePermit>) -> StoreResult<()> {
        let plan = self.queues.wait_plan(|queue| self.shared.slots.has_capacity(queue), Instant::now());
        let longest = MAX_BLOCK.min(self.shared.consumer.lease() / 2);
        let max_block = plan.max_wait.map_or(longest, |wait| wait.min(longest));
        self.watch_limited_queues(&plan.limited);
        if plan.streams.is_empty() {
            drop(permit);
            let _ = tokio::time::timeout(max_block, self.wakeup.woken()).await;
            return Ok(());
        }
        let mut connection = match self.blocking_connection.take() {
            Some(connection) => connection,
            None => self.shared.jobs.redis().open_dedicated(MAX_BLOCK).await?,
        };
        let (jobs, ender) = (&self.shared.jobs, connection.ender());
        let block = max_block.max(Duration::from_millis(1));
        let read = jobs.claim_blocking(&mut connection, &plan.streams, &self.shared.consumer, block);
        let (arrived, _) = jobs.redis().interruptible(ender, read, self.wakeup.woken()).await;
        let (shared, mut permits) = (self.shared.clone(), Vec::from_iter(permit));
        // Drop the connection after an error: its next answer could belong to this read
        let arrived = match arrived {
            Err(error) if error.is_missing_stream() => {
                // Maintenance removes the stream of a priority that nobody uses: the next claim reads the list again
                tracing::debug!(%error, "a stream is gone");
                self.queues.note_changed(&ChangedQueues::All);
                return Ok(());
            }
            arrived => arrived?,
        };
        for claimed in arrived {
            self.queues.get_mut(&claimed.job.queue).job_arrived();
            let (queue, worker) = (&claimed.job.queue, &shared.settings.queue_worker.name);
            record_claim(queue, std::slice::from_ref(&claimed), Some(worker), shared.jobs.estimated_now());
            let permit = shared.slots.bind_to_queue(&claimed.job.queue, &mut permits, 1).pop();
            self.runner.start(claimed, permit);
        }
        self.blocking_connection = Some(connection);
        Ok(())
    }
}
