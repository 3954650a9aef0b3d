//! Lag and counters of subscriptions.

use std::{collections::HashMap, time::Duration};

use super::{Subscriptions, channel_script_call};
use crate::{StoreResult, keys, script};
use common::{
    name::{ChannelName, SubscriptionName, WorkerId},
    time::Millis,
};
use model::{
    message::Position,
    subscription::{DeliveryMode, DeliveryOrdering, Subscription},
};

/// Maximum number of epochs to count through; each is a restart of Redis.
const MAX_EPOCHS: usize = 1000;

/// Counters of a subscription's messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscriptionCounters {
    /// Delivered at the first attempt, or in order. Of a broadcast: by all workers together.
    pub delivered: u64,
    /// Filtered out.
    pub filtered: u64,
    /// Failed attempts.
    pub failed: u64,
    /// Time of the last delivery.
    pub last_delivered_at: Option<Millis>,
    /// Since when there were only failures.
    pub failing_since: Option<Millis>,
}

/// The failures of a target since its last success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailureStreak {
    /// Time since the first of them.
    pub duration: Duration,
    /// Messages that failed.
    pub failures: u64,
}

/// A subscription's progress in a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelProgress {
    /// The channel.
    pub channel: ChannelName,
    /// Everything up to this position was handed out; in order, delivered.
    pub position: Option<Position>,
    /// The newest position ever.
    pub head: Option<Position>,
    /// Stored messages that were not handed out.
    pub lag: u64,
    /// Messages that were handed out and not acknowledged.
    pub in_flight: u64,
    /// What blocks a channel in order.
    pub blocked: Option<BlockedChannel>,
}

/// What blocks a channel in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockedChannel {
    /// Failed attempts of its next message.
    pub failures: u32,
    /// When it is due.
    pub next_attempt_at: Millis,
    /// The last error.
    pub last_error: String,
}

/// The lag of one broadcast worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BroadcastWorkerLag {
    /// Its name.
    pub worker: WorkerId,
    /// When it last saved a checkpoint.
    pub last_seen_at: Millis,
    /// Messages that it has not delivered.
    pub lag: u64,
}

impl Subscriptions {
    /// Reads the counters of a subscription. What this process counted is among them; of other processes that of their
    /// last second may be missing.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn counters(&self, subscription: &Subscription) -> StoreResult<SubscriptionCounters> {
        self.write_counts_of(&subscription.name).await?;
        let fields: HashMap<String, i64> = redis::cmd("HGETALL")
            .arg(keys::subscription_counters(&subscription.name))
            .query_async(&mut self.redis().clone())
            .await?;
        let count = |name: &str| fields.get(name).and_then(|count| u64::try_from(*count).ok()).unwrap_or_default();
        Ok(SubscriptionCounters {
            delivered: count("delivered"),
            filtered: count("filtered"),
            failed: count("failed"),
            last_delivered_at: fields.get("last_delivered_at").copied(),
            failing_since: fields.get("failing_since").copied(),
        })
    }

    /// A subscription's progress in a channel.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn channel_progress(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
    ) -> StoreResult<ChannelProgress> {
        let group = if subscription.mode == DeliveryMode::Shared { subscription.group() } else { String::new() };
        self.read_progress(subscription, channel, &group, "").await
    }

    async fn read_progress(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        group: &str,
        position: &str,
    ) -> StoreResult<ChannelProgress> {
        let mut call = channel_script_call(&script::CHANNEL_PROGRESS, subscription, channel);
        let counts_pending = !group.is_empty() && subscription.ordering == DeliveryOrdering::None;
        call.arg(group).arg(position).arg(MAX_EPOCHS).arg(u8::from(counts_pending));
        let (position, head, lag, in_flight, failures, at, problem): (String, String, u64, u64, u32, Millis, String) =
            call.invoke_async(&mut self.redis().clone()).await?;
        let position: Option<Position> = position.parse().ok();
        let place = ["problem", subscription.name.as_str(), channel.as_str()];
        let problem = if problem.is_empty() { problem } else { self.redis().sealer().open(&place, problem)? };
        let held_up = (failures > 0).then_some(BlockedChannel { failures, next_attempt_at: at, last_error: problem });
        Ok(ChannelProgress {
            channel: channel.clone(),
            position,
            head: head.parse().ok(),
            lag,
            in_flight,
            blocked: held_up,
        })
    }

    /// The lag of each broadcast worker, summed over these channels.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn broadcast_lag(
        &self,
        subscription: &Subscription,
        channels: &[&ChannelName],
    ) -> StoreResult<Vec<BroadcastWorkerLag>> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(keys::subscription_workers(&subscription.name)).arg(0).arg(-1).arg("WITHSCORES");
        let seen: Vec<(String, f64)> = command.query_async(&mut self.redis().clone()).await?;
        let mut all = Vec::with_capacity(seen.len());
        for (worker, seen_at) in seen {
            let Ok(worker) = worker.parse::<WorkerId>() else { continue };
            // Milliseconds since 1970 are whole numbers that a float represents exactly
            #[expect(clippy::cast_possible_truncation, reason = "see above")]
            let seen_at = seen_at as Millis;
            let Some(checkpoint) = self.load_checkpoint(subscription, &worker).await? else { continue };
            let (mut lag, since) = (0, checkpoint.first_seen_at.unwrap_or(0));
            for &channel in channels {
                let position = match checkpoint.positions.get(channel) {
                    Some(position) => *position,
                    // It has not read the channel yet, and will not read what was there before
                    None => self.broadcast_start_position(subscription, channel, since).await?,
                };
                lag += self.read_progress(subscription, channel, "", &position.to_string()).await?.lag;
            }
            all.push(BroadcastWorkerLag { worker, last_seen_at: seen_at, lag });
        }
        Ok(all)
    }

    /// The subscriptions that match a channel.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn for_channel(&self, channel: &ChannelName) -> StoreResult<Vec<Subscription>> {
        let known = self.list().await?.subscriptions;
        let mut of_it: Vec<Subscription> = known.into_iter().map(|(subscription, _)| subscription).collect();
        of_it.retain(|subscription| subscription.channels.matches(channel));
        Ok(of_it)
    }

    /// Records a failed delivery, and whether the target is at fault and not the message; returns the failures of the
    /// target since the last success.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn record_failure(
        &self,
        subscription: &Subscription,
        is_target_at_fault: bool,
        is_first_attempt: bool,
    ) -> StoreResult<FailureStreak> {
        // Only what failed since then counts
        self.write_counts_of(&subscription.name).await?;
        let mut call = script::RECORD_FAILURE.key(keys::subscription_counters(&subscription.name));
        call.arg(u8::from(is_target_at_fault)).arg(u8::from(is_first_attempt));
        let (since, now, failures): (Millis, Millis, u64) = call.invoke_async(&mut self.redis().clone()).await?;
        let duration = if since == 0 { 0 } else { u64::try_from(now - since).unwrap_or_default() };
        Ok(FailureStreak { duration: Duration::from_millis(duration), failures })
    }

    /// Records that the target works: earlier failures do not count any more.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn record_recovery(&self, name: &SubscriptionName) -> StoreResult<()> {
        let mut command = redis::cmd("HDEL");
        command.arg(keys::subscription_counters(name)).arg("failing_since").arg("failing");
        let _: i64 = command.query_async(&mut self.redis().clone()).await?;
        Ok(())
    }
}
