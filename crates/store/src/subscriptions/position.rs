//! Opens and leaves channels of a subscription, and moves its position.

use super::{Subscriptions, channel_script_call};
use crate::{StoreError, StoreResult, channels::Channels, keys, script};
use common::{
    name::{ChannelName, SubscriptionName},
    time::Millis,
};
use model::{
    message::Position,
    subscription::{DeliveryMode, NewChannelStart, Subscription, SubscriptionStart},
};

/// Number of claimed messages dropped in one call.
const SEEK_ACK_BATCH_SIZE: usize = 200;

/// An opened channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedChannel {
    /// Everything up to this position was handed out.
    pub position: Position,
    /// The consumer group was lost and was created again at the cursor.
    pub was_recreated: bool,
}

impl Subscriptions {
    /// The channels that a subscription matches, in alphabetical order, up to its maximum.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn matching_channels(&self, subscription: &Subscription) -> StoreResult<Vec<ChannelName>> {
        let all = self.channels.all_channels().await?;
        let mut channels: Vec<ChannelName> =
            all.iter().filter(|channel| subscription.channels.matches(channel)).cloned().collect();
        channels.sort();
        Ok(channels)
    }

    /// Opens a channel at the subscription's start position; none if it has no history yet, or if the subscription was
    /// deleted or no longer matches the channel.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn open_channel(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
    ) -> StoreResult<Option<OpenedChannel>> {
        let position = start_position(&self.channels, channel, subscription.begin).await?;
        let mut call = channel_script_call(&script::OPEN_GROUP, subscription, channel);
        call.key(keys::channel_state(channel));
        call.arg(subscription.group()).arg(position.to_string()).arg(self.cursor_ttl_ms).arg(subscription.created_at);
        let mut opened: Option<(String, bool)> = call.invoke_async(&mut self.redis().clone()).await?;
        let one = (&subscription.name, Some(subscription.created_at));
        if opened.as_ref().is_some_and(|(position, _)| position == "other") {
            // Its workers have not heard that this one is gone, or were quicker than we to hear of the new one
            if !self.is_still_subscribed(one, channel).await? {
                return Ok(None);
            }
            opened = call.arg(1).invoke_async(&mut self.redis().clone()).await?;
        }
        let opened = opened
            .map(|(position, was_lost)| OpenedChannel { position: parse_position(&position), was_recreated: was_lost });
        // Checked afterwards: a later deletion leaves this channel, too. Nobody else would ever leave it
        if opened.is_some() && !self.is_still_subscribed(one, channel).await? {
            self.channels.leave_channel(channel, &subscription.name, one.1).await?;
            return Ok(None);
        }
        if opened.is_some_and(|opened| opened.was_recreated) {
            metrics::counter!("galley_subscription_groups_lost_total").increment(1);
            let event = "subscription.group_recreated";
            tracing::warn!(event, subscription = %subscription.name, %channel, "redis had lost the group: created again");
        }
        Ok(opened)
    }

    /// Moves a subscription to another position, in one channel or in all; none if there is no such subscription.
    /// Messages that failed before stay in its retry queue.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn seek(
        &self,
        name: &SubscriptionName,
        start: SubscriptionStart,
        channel: Option<&ChannelName>,
    ) -> StoreResult<Option<Subscription>> {
        let now = self.jobs.now().await?;
        let changed = self
            .update(name, |subscription| {
                // The workers of a broadcast start again
                subscription.generation += 1;
                if channel.is_none() {
                    subscription.begin = start.resolve(now);
                }
                true
            })
            .await?;
        let Some(subscription) = changed else { return Ok(None) };
        match channel {
            _ if subscription.mode == DeliveryMode::Broadcast => self.leave_channels(&subscription, |_| false).await?,
            Some(channel) => self.seek_channel(&subscription, channel, start).await?,
            None => {
                for channel in self.matching_channels(&subscription).await? {
                    self.seek_channel(&subscription, &channel, start).await?;
                }
            }
        }
        if self.clear_if_deleted(&subscription).await? {
            return Ok(None);
        }
        self.notify_workers().await;
        Ok(Some(subscription))
    }

    /// Not for a broadcast: it would have groups that nobody ever advances.
    pub(super) async fn seek_channel(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        start: SubscriptionStart,
    ) -> StoreResult<()> {
        let target = match start {
            SubscriptionStart::New => String::new(),
            SubscriptionStart::Earliest => {
                start_position(&self.channels, channel, NewChannelStart::Earliest).await?.to_string()
            }
            SubscriptionStart::After(position) => position.to_string(),
            SubscriptionStart::Since(at) => {
                start_position(&self.channels, channel, NewChannelStart::Since(at)).await?.to_string()
            }
        };
        loop {
            let mut call = channel_script_call(&script::SEEK_GROUP, subscription, channel);
            call.key(keys::channel_state(channel));
            call.arg(subscription.group()).arg(&target).arg(self.cursor_ttl_ms).arg(SEEK_ACK_BATCH_SIZE);
            call.arg(subscription.created_at);
            let more: Option<(String, bool)> = call.invoke_async(&mut self.redis().clone()).await?;
            if !more.is_some_and(|(_, more)| more) {
                return Ok(());
            }
        }
    }

    /// Leaves the channels of a subscription, except those to keep.
    pub(super) async fn leave_channels(
        &self,
        subscription: &Subscription,
        keeps: impl Fn(&ChannelName) -> bool,
    ) -> StoreResult<()> {
        for channel in self.matching_channels(subscription).await? {
            if !keeps(&channel) {
                self.channels.leave_channel(&channel, &subscription.name, None).await?;
            }
        }
        Ok(())
    }

    /// Whether a subscription exists, the one that was created at that time if given, and wants the channel.
    pub(super) async fn is_still_subscribed(
        &self,
        (name, created_at): (&SubscriptionName, Option<Millis>),
        channel: &ChannelName,
    ) -> StoreResult<bool> {
        let is_it = |now: &Subscription| created_at.is_none_or(|at| at == now.created_at);
        match self.get(name).await {
            Ok(now) => Ok(now.is_some_and(|now| is_it(&now) && now.channels.matches(channel))),
            // It exists, whatever it is
            Err(StoreError::Damaged(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// An unparsable position was not written by Galley: it counts as the start.
pub(super) fn parse_position(position: &str) -> Position {
    position.parse().unwrap_or(Position::START)
}

/// Where a channel starts.
pub(super) async fn start_position(
    channels: &Channels,
    channel: &ChannelName,
    begin: NewChannelStart,
) -> StoreResult<Position> {
    match begin {
        // After trimmed messages, which nobody asked for
        NewChannelStart::Earliest => channels.channel_start_position(channel).await,
        NewChannelStart::After(position) => Ok(position),
        NewChannelStart::Now(at) | NewChannelStart::Since(at) => channels.channel_position_at(channel, at).await,
    }
}
