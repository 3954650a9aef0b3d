//! Channels that are new, or whose history begins anew: the subscriptions that have them get their groups with the first message,
//! whoever publishes it. Otherwise nothing would hold the messages back until a worker runs.
//!
//! It costs something only when a channel is registered, and fails no publishing: a worker opens what is missing, and tells what it
//! has missed by then.

use std::collections::BTreeMap;

use super::Channels;
use super::subscription_groups::SubscriptionOutline;
use crate::{StoreResult, keys, script};
use common::{
    name::{ChannelName, SubscriptionName},
    settings::ChannelSettings,
};
use model::{
    message::Position,
    subscription::{NewChannelStart, group_of},
};

/// Subscriptions that get their groups in one call.
const JOIN_BATCH_SIZE: usize = 100;

/// The subscriptions that are to have a new channel, and where each begins.
pub(crate) struct NewChannelGroups {
    /// None if they could not be read.
    start_positions: Option<BTreeMap<SubscriptionName, Position>>,
}

impl NewChannelGroups {
    /// Whether the channel has subscriptions, or may have some.
    #[must_use]
    pub(crate) fn may_have_subscriptions(&self) -> bool {
        self.start_positions.as_ref().is_none_or(|begins| !begins.is_empty())
    }

    /// Makes their groups, once there is a history.
    pub(crate) async fn create_groups(&self, channels: &Channels, channel: &ChannelName) {
        let begins: Vec<_> = self.start_positions.iter().flatten().collect();
        for some in begins.chunks(JOIN_BATCH_SIZE) {
            if let Err(error) = channels.create_channel_groups(channel, some).await {
                tracing::warn!(%channel, %error, "subscriptions have a new channel only when a worker opens it");
                return;
            }
        }
    }
}

/// How long a cursor lives, in milliseconds: it outlives the history that it is about.
pub(crate) fn cursor_ttl_ms(settings: &ChannelSettings) -> u64 {
    u64::try_from((settings.history_ttl * 2).as_millis()).unwrap_or(u64::MAX)
}

impl Channels {
    /// The subscriptions that are to have a channel that is new.
    pub(crate) async fn find_new_channel_groups(&self, channel: &ChannelName) -> NewChannelGroups {
        let mut begins = BTreeMap::new();
        let read = self
            .scan_subscriptions(|name, raw| {
                let outline = SubscriptionOutline::parse(raw).filter(|outline| outline.has_group(channel));
                if let (Some(outline), Ok(name)) = (outline, name.parse()) {
                    begins.insert(name, new_channel_position(outline.begin));
                }
            })
            .await;
        if let Err(error) = &read {
            tracing::warn!(%channel, %error, "it is not known which subscriptions have a new channel");
        }
        NewChannelGroups { start_positions: read.is_ok().then_some(begins) }
    }

    async fn create_channel_groups(
        &self,
        channel: &ChannelName,
        begins: &[(&SubscriptionName, &Position)],
    ) -> StoreResult<()> {
        let mut call = script::CREATE_CHANNEL_GROUPS.key(keys::channel_history(channel));
        call.key(keys::channel_state(channel)).arg(cursor_ttl_ms(&self.settings));
        for (name, position) in begins {
            call.key(keys::subscription_cursor(channel, name)).arg(group_of(name)).arg(position.to_string());
        }
        let _: i64 = call.invoke_async(&mut self.redis.clone()).await?;
        // Asked afterwards: who is removed later leaves this channel, too
        let names: Vec<SubscriptionName> = begins.iter().map(|(name, _)| (*name).clone()).collect();
        self.leave_unless_subscribed(channel, &names).await?;
        Ok(())
    }
}

/// Where a subscription begins in a channel of which nothing was published before.
fn new_channel_position(begin: NewChannelStart) -> Position {
    match begin {
        NewChannelStart::After(position) => position,
        NewChannelStart::Earliest | NewChannelStart::Now(_) | NewChannelStart::Since(_) => Position::START,
    }
}
