//! Consumer groups for channels that are new or whose history restarts: the publisher creates them with the first
//! message. Otherwise nothing would retain the messages until a worker runs.
//!
//! This costs something only when a channel is registered, and never fails a publish: a worker opens what is missing
//! and reports what it missed.

use std::collections::BTreeMap;

use super::Channels;
use super::subscription_groups::SubscriptionOutline;
use crate::{StoreResult, keys, script};
use common::{
    name::{ChannelName, SubscriptionName},
    settings::ChannelSettings,
    time::Millis,
};
use model::{
    message::Position,
    subscription::{NewChannelStart, group_of},
};

/// Maximum number of groups created in one call.
const JOIN_BATCH_SIZE: usize = 100;

/// The subscriptions that match a new channel, and where each starts.
pub(crate) struct NewChannelGroups {
    /// Also when each was created. None if they could not be read.
    start_positions: Option<BTreeMap<SubscriptionName, (Position, Millis)>>,
}

impl NewChannelGroups {
    /// Whether the channel has subscriptions, or may have some.
    #[must_use]
    pub(crate) fn may_have_subscriptions(&self) -> bool {
        self.start_positions.as_ref().is_none_or(|begins| !begins.is_empty())
    }

    /// Creates the groups, once the channel has a history.
    pub(crate) async fn create_groups(&self, channels: &Channels, channel: &ChannelName) {
        let begins: Vec<_> = self.start_positions.iter().flatten().collect();
        for some in begins.chunks(JOIN_BATCH_SIZE) {
            if let Err(error) = channels.create_channel_groups(channel, some).await {
                tracing::warn!(%channel, %error, "subscriptions get a new channel only when a worker opens it");
                return;
            }
        }
    }
}

/// TTL of a cursor in milliseconds: longer than that of its channel's history.
pub(crate) fn cursor_ttl_ms(settings: &ChannelSettings) -> u64 {
    u64::try_from((settings.history_ttl * 2).as_millis()).unwrap_or(u64::MAX)
}

impl Channels {
    /// Finds the subscriptions that match a new channel.
    pub(crate) async fn find_new_channel_groups(&self, channel: &ChannelName) -> NewChannelGroups {
        let mut begins = BTreeMap::new();
        let read = self
            .scan_subscriptions(|name, raw| {
                let outline = SubscriptionOutline::parse(raw).filter(|outline| outline.has_group(channel));
                if let (Some(outline), Ok(name)) = (outline, name.parse()) {
                    begins.insert(name, (new_channel_position(outline.begin), outline.created_at));
                }
            })
            .await;
        if let Err(error) = &read {
            tracing::warn!(%channel, %error, "cannot find the subscriptions of a new channel");
        }
        NewChannelGroups { start_positions: read.is_ok().then_some(begins) }
    }

    async fn create_channel_groups(
        &self,
        channel: &ChannelName,
        begins: &[(&SubscriptionName, &(Position, Millis))],
    ) -> StoreResult<()> {
        let mut call = script::CREATE_CHANNEL_GROUPS.key(keys::channel_history(channel));
        call.key(keys::channel_state(channel)).arg(cursor_ttl_ms(&self.settings));
        for (name, (position, created_at)) in begins {
            call.key(keys::subscription_cursor(channel, name)).arg(group_of(name));
            call.arg(position.to_string()).arg(created_at);
        }
        let _: i64 = call.invoke_async(&mut self.redis.clone()).await?;
        // Read after the groups exist: a later removal leaves this channel, too
        let names: Vec<SubscriptionName> = begins.iter().map(|(name, _)| (*name).clone()).collect();
        self.leave_unless_subscribed(channel, &names).await?;
        Ok(())
    }
}

/// Where a subscription starts in a channel without earlier messages.
fn new_channel_position(begin: NewChannelStart) -> Position {
    match begin {
        NewChannelStart::After(position) => position,
        NewChannelStart::Earliest | NewChannelStart::Now(_) | NewChannelStart::Since(_) => Position::START,
    }
}
