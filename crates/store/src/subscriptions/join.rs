//! Channels that are new, or whose history begins anew: the subscriptions that have them get their groups with the first message,
//! whoever publishes it. Otherwise nothing would hold the messages back until a worker runs.
//!
//! It costs something only when a channel is registered, and fails no publishing: a worker opens what is missing, and tells what it
//! has missed by then.

use std::collections::BTreeMap;

use super::groups::Outline;
use crate::{Redis, StoreResult, keys, script};
use common::{
    name::{ChannelName, SubscriptionName},
    settings::ChannelSettings,
};
use model::{
    message::Position,
    subscription::{Begin, group_of},
};

/// Subscriptions that get their groups in one call.
const JOINED_AT_ONCE: usize = 100;

/// The subscriptions that are to have a new channel, and where each begins.
pub(crate) struct Joining {
    /// None if they could not be read.
    begins: Option<BTreeMap<SubscriptionName, Position>>,
}

impl Joining {
    /// Whether the channel has subscriptions, or may have some.
    #[must_use]
    pub(crate) fn holds_back(&self) -> bool {
        self.begins.as_ref().is_none_or(|begins| !begins.is_empty())
    }

    /// Makes their groups, once there is a history.
    pub(crate) async fn finish(&self, redis: &Redis, settings: &ChannelSettings, channel: &ChannelName) {
        let begins: Vec<_> = self.begins.iter().flatten().collect();
        for some in begins.chunks(JOINED_AT_ONCE) {
            if let Err(error) = redis.join_channel(settings, channel, some).await {
                tracing::warn!(%channel, %error, "subscriptions have a new channel only when a worker opens it");
                return;
            }
        }
    }
}

/// How long a cursor lives, in milliseconds: it outlives the history that it is about.
pub(super) fn cursor_ttl_ms(settings: &ChannelSettings) -> u64 {
    u64::try_from((settings.history_ttl * 2).as_millis()).unwrap_or(u64::MAX)
}

impl Redis {
    /// The subscriptions that are to have a channel that is new.
    pub(crate) async fn joining(&self, channel: &ChannelName) -> Joining {
        let mut begins = BTreeMap::new();
        let read = self
            .scan_subscriptions(|name, raw| {
                let outline = Outline::read(raw).filter(|outline| outline.has_group(channel));
                if let (Some(outline), Ok(name)) = (outline, name.parse()) {
                    begins.insert(name, begin_of_new(outline.begin));
                }
            })
            .await;
        if let Err(error) = &read {
            tracing::warn!(%channel, %error, "it is not known which subscriptions have a new channel");
        }
        Joining { begins: read.is_ok().then_some(begins) }
    }

    async fn join_channel(
        &self,
        settings: &ChannelSettings,
        channel: &ChannelName,
        begins: &[(&SubscriptionName, &Position)],
    ) -> StoreResult<()> {
        let mut call = script::JOIN_CHANNEL.key(keys::history(channel));
        call.key(keys::channel_state(channel)).arg(cursor_ttl_ms(settings));
        for (name, position) in begins {
            call.key(keys::cursor(channel, name)).arg(group_of(name)).arg(position.to_string());
        }
        let _: i64 = call.invoke_async(&mut self.clone()).await?;
        // Asked afterwards: who is removed later leaves this channel, too
        let names: Vec<SubscriptionName> = begins.iter().map(|(name, _)| (*name).clone()).collect();
        self.leave_unless_wanted(channel, &names).await?;
        Ok(())
    }
}

/// Where a subscription begins in a channel of which nothing was published before.
fn begin_of_new(begin: Begin) -> Position {
    match begin {
        Begin::After(position) => position,
        Begin::Earliest | Begin::Now(_) | Begin::Since(_) => Position::START,
    }
}
