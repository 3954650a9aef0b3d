//! Claims messages that were handed out and not delivered: those of dead workers, those that workers released, and
//! this worker's own whose answer was lost.

use std::time::Duration;

use common::name::{ChannelName, WorkerId};
use model::message::{Position, continuity::Gap};
use store::{StoreResult, subscriptions::ReclaimFilter};
use tokio::sync::OwnedSemaphorePermit;

use super::{GroupReader, MESSAGE_BATCH_SIZE};

impl GroupReader {
    /// Reclaims messages of workers that were idle for too long.
    pub(super) async fn reclaim_idle(&self) -> StoreResult<()> {
        let (runner, at_least) = (&self.runner, self.runner.lease());
        // Idle times are measured by Redis's clock. After that was set they say nothing for a lease
        let channels: Vec<ChannelName> = self.channels.iter().cloned().collect();
        let idle = self.find_idle(at_least, None).await?;
        if runner.store().are_idle_times_wrong(&runner.subscription, &channels, at_least, !idle.is_empty()).await? {
            return Ok(());
        }
        for channel in idle {
            let mut behind = None;
            loop {
                // Wait for a permit: under load new messages would take every free one
                let Some(permits) = runner.acquire_slots(MESSAGE_BATCH_SIZE).await else { return Ok(()) };
                let max = permits.len();
                behind = self
                    .reclaim_channel(
                        &channel,
                        ReclaimFilter { min_idle: at_least, worker: None, after: behind },
                        max,
                        permits,
                    )
                    .await?;
                if behind.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Claims this worker's messages whose answer was lost. They need no permits: permits were acquired for them
    /// before.
    pub(super) async fn recover_own(&self) -> StoreResult<()> {
        let (runner, own) = (&self.runner, Some(self.runner.worker()));
        for channel in self.find_idle(Duration::ZERO, own).await? {
            let mut behind = None;
            loop {
                let permits = std::iter::from_fn(|| runner.try_acquire_slot()).take(MESSAGE_BATCH_SIZE).collect();
                let idle = ReclaimFilter { min_idle: Duration::ZERO, worker: own, after: behind };
                behind = self.reclaim_channel(&channel, idle, MESSAGE_BATCH_SIZE, permits).await?;
                if behind.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn find_idle(&self, at_least: Duration, of: Option<&WorkerId>) -> StoreResult<Vec<ChannelName>> {
        let channels: Vec<ChannelName> = self.channels.iter().cloned().collect();
        let _look = self.runner.acquire_redis_read().await;
        self.runner.store().find_idle(&self.runner.subscription, &channels, at_least, of).await
    }

    /// Reclaims at most `max` messages of a channel; returns where more may follow.
    async fn reclaim_channel(
        &self,
        channel: &ChannelName,
        idle: ReclaimFilter<'_>,
        max: usize,
        mut permits: Vec<OwnedSemaphorePermit>,
    ) -> StoreResult<Option<Position>> {
        let (runner, name) = (&self.runner, &self.runner.subscription.name);
        let taken = runner.store().reclaim(&runner.subscription, channel, runner.worker(), idle, max).await?;
        for id in &taken.lost {
            tracing::error!(subscription = %name, %channel, %id, "a message was trimmed before it was delivered");
            metrics::counter!("galley_messages_given_up_total", "subscription" => name.to_string()).increment(1);
        }
        // The worker that had the next message may not have reported the gap
        let unreported = |gap: &&Gap| gap.to.is_some_and(|to| !self.in_flight.contains(&(channel.clone(), to)));
        taken.gaps.iter().filter(unreported).for_each(|gap| runner.record_gap(channel, gap));
        for (message, times) in taken.messages {
            let id = message.position;
            if self.in_flight.contains(&(channel.clone(), id)) {
                continue;
            }
            tracing::info!(event = "message.reclaimed", subscription = %name, %channel, %id, times, "message reclaimed");
            // This worker's own messages count no crash
            let crashes = if idle.worker.is_some() { times.saturating_sub(1) } else { times };
            self.deliver(channel.clone(), message, crashes, (permits.pop(), None)).await;
        }
        Ok(taken.resume_after)
    }
}
