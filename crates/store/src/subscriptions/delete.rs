//! Deletes a subscription and what belongs to it. Its workers may notice late: they ask before they write, and the last one
//! sweeps up.

use super::{MAX_SAVE_ATTEMPTS, Subscriptions, too_many_conflicts};
use crate::{StoreResult, deliveries::DeliveryOwner, jobs::PurgeRequest, keys};
use common::{name::SubscriptionName, time::Millis};
use model::{job::JobState, subscription::Subscription};

/// Number of jobs cancelled at once when a subscription is deleted.
const PURGE_BATCH_SIZE: usize = 200;

impl Subscriptions {
    /// Deletes a subscription and its data; false if there is none. Its failed deliveries are cancelled.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn delete(&self, name: &SubscriptionName) -> StoreResult<bool> {
        for _ in 0..MAX_SAVE_ATTEMPTS {
            let Some(raw) = self.read_raw(name).await? else { return Ok(false) };
            if self.save(name, Some(&raw), None).await? == "changed" {
                continue;
            }
            if let Ok(Some(subscription)) = self.parse(name.as_str(), &raw) {
                self.clear_data(&subscription).await?;
            }
            return Ok(true);
        }
        Err(too_many_conflicts(name))
    }

    /// Deletes data that the workers of a deleted subscription wrote late: they call this when they end, because
    /// nobody else would. False if a subscription of that name exists.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn clear_if_deleted(&self, removed: &Subscription) -> StoreResult<bool> {
        if self.read_raw(&removed.name).await?.is_some() {
            return Ok(false);
        }
        self.clear_data(removed).await?;
        Ok(true)
    }

    /// Deletes a subscription's data, except dead letters and checkpoints of broadcast workers, which expire by their
    /// TTL. It can take long, and ends when a new subscription has the name: what exists from then on belongs to that
    /// one.
    async fn clear_data(&self, subscription: &Subscription) -> StoreResult<()> {
        let (name, queue) = (&subscription.name, subscription.queue());
        for channel in self.matching_channels(subscription).await? {
            if self.read_raw(name).await?.is_some() {
                return Ok(());
            }
            self.channels.leave_channel(&channel, name, Some(subscription.created_at)).await?;
        }
        let states = vec![JobState::Available, JobState::Scheduled, JobState::Retryable];
        let purge = PurgeRequest { states, limit: PURGE_BATCH_SIZE, after: None };
        loop {
            if self.read_raw(name).await?.is_some() {
                return Ok(());
            }
            let purged = self.jobs.purge(&queue, &purge).await?;
            // Jobs that cannot be cancelled have a worker, which notices by itself
            if !purged.has_more || purged.count == 0 {
                break;
            }
        }
        if self.read_raw(name).await?.is_some() {
            return Ok(());
        }
        // A running delivery keeps the queue for a while; afterwards it is empty and harmless
        self.jobs.delete_queue(&queue).await?;
        self.forget_counts(name);
        let mut pipeline = redis::pipe();
        for key in [keys::subscription_counters(name), keys::subscription_workers(name)] {
            pipeline.cmd("DEL").arg(key);
        }
        pipeline.exec_async(&mut self.redis().clone()).await?;
        self.redis().forget_deliveries(&DeliveryOwner::Subscription(name.clone())).await
    }

    /// Whether the subscription of that name that was created at that time is deleted; not while Redis has lost the list.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn is_deleted(&self, name: &SubscriptionName, created_at: Millis) -> StoreResult<bool> {
        let mut command = redis::cmd("HMGET");
        command.arg(keys::SUBSCRIPTIONS).arg(name.as_str()).arg("");
        let (raw, marker): (Option<Vec<u8>>, Option<Vec<u8>>) = command.query_async(&mut self.redis().clone()).await?;
        let Some(raw) = raw else { return Ok(marker.is_some()) };
        let now = std::str::from_utf8(&raw).ok().and_then(|raw| self.parse(name.as_str(), raw).ok().flatten());
        Ok(now.is_some_and(|now| now.created_at != created_at))
    }
}
