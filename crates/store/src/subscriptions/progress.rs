//! How far a subscription is, and how it does.

use std::collections::HashMap;

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

/// Epochs that are counted through; each is a restart of Redis.
const MAX_EPOCHS: usize = 1000;

/// What became of a subscription's messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscriptionCounters {
    /// Delivered at the first attempt, or in order. Of a broadcast by all workers together.
    pub delivered: u64,
    /// Not wanted by the filter.
    pub filtered: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// When something was delivered last.
    pub last_delivered_at: Option<Millis>,
    /// Since when nothing but failures was seen.
    pub failing_since: Option<Millis>,
}

/// How far a subscription is in a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelProgress {
    /// Which.
    pub channel: ChannelName,
    /// Everything up to here was handed out; in order, delivered.
    pub position: Option<Position>,
    /// The newest position there ever was.
    pub head: Option<Position>,
    /// Messages that are kept and were not handed out.
    pub lag: u64,
    /// Messages that were handed out and are not done with.
    pub in_flight: u64,
    /// What holds up a channel in order.
    pub blocked: Option<BlockedChannel>,
}

/// What holds up a channel in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockedChannel {
    /// How often its next message has failed.
    pub failures: u32,
    /// When it is tried again.
    pub next_attempt_at: Millis,
    /// What went wrong last.
    pub last_error: String,
}

/// How far one worker of a broadcast is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BroadcastWorkerLag {
    /// Its name.
    pub worker: WorkerId,
    /// When it noted that last.
    pub last_seen_at: Millis,
    /// Messages that it has not delivered.
    pub lag: u64,
}

impl Subscriptions {
    /// What became of the messages.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn counters(&self, subscription: &Subscription) -> StoreResult<SubscriptionCounters> {
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

    /// How far it is in a channel.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn channel_progress(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
    ) -> StoreResult<ChannelProgress> {
        let group = match (subscription.mode, subscription.ordering) {
            (DeliveryMode::Shared, DeliveryOrdering::None) => subscription.group(),
            _ => String::new(),
        };
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
        call.arg(group).arg(position).arg(MAX_EPOCHS);
        let (position, head, lag, in_flight, failures, at, problem): (String, String, u64, u64, u32, Millis, String) =
            call.invoke_async(&mut self.redis().clone()).await?;
        let position: Option<Position> = position.parse().ok();
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

    /// How far each worker of a broadcast is in those channels, all together.
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
            // Milliseconds since 1970 are whole numbers that a float holds exactly
            #[expect(clippy::cast_possible_truncation, reason = "see above")]
            let seen_at = seen_at as Millis;
            let Some(checkpoint) = self.load_checkpoint(subscription, &worker).await? else { continue };
            let mut lag = 0;
            for &channel in channels {
                let position = checkpoint.positions.get(channel).copied().unwrap_or(Position::START);
                lag += self.read_progress(subscription, channel, "", &position.to_string()).await?.lag;
            }
            all.push(BroadcastWorkerLag { worker, last_seen_at: seen_at, lag });
        }
        Ok(all)
    }

    /// The subscriptions that have a channel.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn for_channel(&self, channel: &ChannelName) -> StoreResult<Vec<Subscription>> {
        let known = self.list().await?.subscriptions;
        let mut of_it: Vec<Subscription> = known.into_iter().map(|(subscription, _)| subscription).collect();
        of_it.retain(|subscription| subscription.channels.matches(channel));
        Ok(of_it)
    }

    /// Notes that a delivery failed; for how many milliseconds nothing but failures was seen.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn record_failure(&self, subscription: &Subscription) -> StoreResult<Millis> {
        let call = script::RECORD_FAILURE.key(keys::subscription_counters(&subscription.name));
        let (since, now): (Millis, Millis) = call.invoke_async(&mut self.redis().clone()).await?;
        Ok((now - since).max(0))
    }

    /// Notes that its target works: failures before that do not count any more.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn record_recovery(&self, name: &SubscriptionName) -> StoreResult<()> {
        let mut command = redis::cmd("HDEL");
        command.arg(keys::subscription_counters(name)).arg("failing_since");
        let _: i64 = command.query_async(&mut self.redis().clone()).await?;
        Ok(())
    }
}
