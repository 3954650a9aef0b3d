//! Opening channels for a subscription, closing them, and going on somewhere else.

use super::{Subscriptions, about, position_of};
use crate::{StoreError, StoreResult, keys, script};
use common::name::{ChannelName, SubscriptionName};
use model::{
    message::Position,
    subscription::{Begin, Mode, Start, Subscription},
};

/// Messages handed out that are given up in one call.
const GIVEN_UP_AT_ONCE: usize = 200;

/// A channel that a subscription may read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Everything up to here was handed out.
    pub position: Position,
    /// The consumer group had been lost: it was made again where the cursor was.
    pub was_lost: bool,
}

impl Subscriptions {
    /// The channels there are that a subscription has, the first ones by the alphabet.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn channels_of(&self, subscription: &Subscription) -> StoreResult<Vec<ChannelName>> {
        let mut channels = self.redis().all_channels().await?;
        channels.retain(|channel| subscription.channels.fits(channel));
        channels.sort();
        Ok(channels)
    }

    /// Opens a channel for a subscription where it should begin; none if it has no history yet, or if the subscription has
    /// been removed or has left the channel.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn open(&self, subscription: &Subscription, channel: &ChannelName) -> StoreResult<Option<Opened>> {
        let position = position_of(self.redis(), channel, subscription.begin).await?;
        let mut call = about(&script::OPEN_GROUP, subscription, channel);
        call.key(keys::channel_state(channel));
        call.arg(subscription.group()).arg(position.to_string()).arg(self.cursor_ttl_ms);
        let opened: Option<(String, bool)> = call.invoke_async(&mut self.redis().clone()).await?;
        let opened = opened.map(|(position, was_lost)| Opened { position: read(&position), was_lost });
        // Asked afterwards: who removes it later leaves this channel, too. Nobody else would ever close it again
        if opened.is_some() && !self.still_has(&subscription.name, channel).await? {
            self.redis().leave_channel(channel, &subscription.name).await?;
            return Ok(None);
        }
        if opened.is_some_and(|opened| opened.was_lost) {
            metrics::counter!("galley_subscription_groups_lost_total").increment(1);
            tracing::warn!(subscription = %subscription.name, %channel, "its group was lost and is made again");
        }
        Ok(opened)
    }

    /// Lets a subscription go on somewhere else, in one channel or in all; none if there is no such subscription. Messages
    /// that failed before stay in its queue.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn seek(
        &self,
        name: &SubscriptionName,
        start: Start,
        channel: Option<&ChannelName>,
    ) -> StoreResult<Option<Subscription>> {
        let now = self.jobs.now().await?;
        let changed = self
            .change(name, |subscription| {
                // The workers of a broadcast begin anew
                subscription.generation += 1;
                if channel.is_none() {
                    subscription.begin = start.begin(now);
                }
                true
            })
            .await?;
        let Some(subscription) = changed else { return Ok(None) };
        match channel {
            _ if subscription.mode == Mode::Broadcast => self.leave_channels(&subscription, |_| false).await?,
            Some(channel) => self.seek_channel(&subscription, channel, start).await?,
            None => {
                for channel in self.channels_of(&subscription).await? {
                    self.seek_channel(&subscription, &channel, start).await?;
                }
            }
        }
        if self.sweep_up(&subscription).await? {
            return Ok(None);
        }
        self.wake().await?;
        Ok(Some(subscription))
    }

    /// Not for a broadcast: it would have groups that nobody ever moves.
    pub(super) async fn seek_channel(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        start: Start,
    ) -> StoreResult<()> {
        let target = match start {
            Start::New => String::new(),
            Start::Earliest => position_of(self.redis(), channel, Begin::Earliest).await?.to_string(),
            Start::After(position) => position.to_string(),
            Start::Since(at) => position_of(self.redis(), channel, Begin::Since(at)).await?.to_string(),
        };
        loop {
            let mut call = about(&script::SEEK_GROUP, subscription, channel);
            call.key(keys::channel_state(channel));
            call.arg(subscription.group()).arg(&target).arg(self.cursor_ttl_ms).arg(GIVEN_UP_AT_ONCE);
            let more: Option<(String, bool)> = call.invoke_async(&mut self.redis().clone()).await?;
            if !more.is_some_and(|(_, more)| more) {
                return Ok(());
            }
        }
    }

    /// Leaves the channels of a subscription that it does not keep.
    pub(super) async fn leave_channels(
        &self,
        subscription: &Subscription,
        keeps: impl Fn(&ChannelName) -> bool,
    ) -> StoreResult<()> {
        for channel in self.channels_of(subscription).await? {
            if !keeps(&channel) {
                self.redis().leave_channel(&channel, &subscription.name).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn still_has(&self, name: &SubscriptionName, channel: &ChannelName) -> StoreResult<bool> {
        match self.get(name).await {
            Ok(now) => Ok(now.is_some_and(|now| now.channels.fits(channel))),
            // It is there, whatever it is
            Err(StoreError::Damaged(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// What is no position was not written here: it is before everything.
pub(super) fn read(position: &str) -> Position {
    position.parse().unwrap_or(Position::START)
}
