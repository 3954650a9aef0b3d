//! Messages that were handed out and are not delivered: those of workers that vanished or gave them back, and those that this
//! worker was handed in an answer that it did not get.

use std::time::Duration;

use common::name::{ChannelName, WorkerId};
use model::message::{Position, continuity::Gap};
use store::{StoreResult, subscriptions::ReclaimFilter};
use tokio::sync::OwnedSemaphorePermit;

use super::{GroupReader, MESSAGE_BATCH_SIZE};

impl GroupReader {
    /// Takes messages of workers that were silent for too long.
    pub(super) async fn reclaim_idle(&self) -> StoreResult<()> {
        let (runner, at_least) = (&self.runner, self.runner.lease());
        for channel in self.find_idle(at_least, None).await? {
            let mut behind = None;
            loop {
                // Not only if one is free just now: under load what is new would take every one of them until there is no more
                let Some(places) = runner.acquire_slots(MESSAGE_BATCH_SIZE).await else { return Ok(()) };
                let most = places.len();
                behind = self
                    .reclaim_channel(
                        &channel,
                        ReclaimFilter { min_idle: at_least, worker: None, after: behind },
                        most,
                        places,
                    )
                    .await?;
                if behind.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Takes messages of this worker that it did not hear of. They do not wait for places: they were handed out for some.
    pub(super) async fn recover_own(&self) -> StoreResult<()> {
        let (runner, own) = (&self.runner, Some(self.runner.worker()));
        for channel in self.find_idle(Duration::ZERO, own).await? {
            let mut behind = None;
            loop {
                let places = std::iter::from_fn(|| runner.try_acquire_slot()).take(MESSAGE_BATCH_SIZE).collect();
                let silent = ReclaimFilter { min_idle: Duration::ZERO, worker: own, after: behind };
                behind = self.reclaim_channel(&channel, silent, MESSAGE_BATCH_SIZE, places).await?;
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

    /// Takes at most so many messages of a channel; behind where there may be more.
    async fn reclaim_channel(
        &self,
        channel: &ChannelName,
        silent: ReclaimFilter<'_>,
        most: usize,
        mut places: Vec<OwnedSemaphorePermit>,
    ) -> StoreResult<Option<Position>> {
        let (runner, name) = (&self.runner, &self.runner.subscription.name);
        let taken = runner.store().reclaim(&runner.subscription, channel, runner.worker(), silent, most).await?;
        for id in &taken.lost {
            tracing::error!(subscription = %name, %channel, %id, "a message is not kept any more and was not delivered");
            metrics::counter!("galley_messages_given_up_total", "subscription" => name.to_string()).increment(1);
        }
        // Whoever was handed the message behind it may not have heard of it
        let unheard = |gap: &&Gap| gap.to.is_some_and(|to| !self.in_flight.contains(&(channel.clone(), to)));
        taken.gaps.iter().filter(unheard).for_each(|gap| runner.record_gap(channel, gap));
        for (message, times) in taken.messages {
            let id = message.position;
            if self.in_flight.contains(&(channel.clone(), id)) {
                continue;
            }
            tracing::info!(subscription = %name, %channel, %id, times, "taken over");
            // Its own were handed out to itself
            let vanished = if silent.worker.is_some() { times.saturating_sub(1) } else { times };
            self.deliver(channel.clone(), message, vanished, (places.pop(), None)).await;
        }
        Ok(taken.resume_after)
    }
}
