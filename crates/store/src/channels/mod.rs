//! Channels: a message goes into the channel's history, with its position to all gateways, and byte for byte to
//! everybody who subscribes to the bare channel name, Galley or not.
//!
//! Subscribers may miss messages, so whoever must not goes by positions: they are contiguous within an epoch, and what is
//! missing between two of them is in the history. `registry` knows which channels there are, `hub` hears them
//! for many readers, `reader` is one of these, `reader_counts` counts them, `plain_publish_filter` tells
//! copies of messages from what others publish. `retention` trims histories.

mod changed_channels;
mod cursor;
mod history;
mod hub;
mod message_ring;
mod new_channel_groups;
mod plain_publish_filter;
mod reader;
mod reader_counts;
mod registry;
mod retention;
mod subscription_groups;

pub use cursor::ReaderEvent;
pub(super) use history::parse_stored_message;
pub use history::{ChannelInfo, ChannelPage, MAX_PAGE_BYTES};
pub use hub::ChannelHub;
pub use message_ring::EncodedMessage;
use new_channel_groups::NewChannelGroups;
pub(crate) use new_channel_groups::cursor_ttl_ms;
pub use reader::{
    ChannelReader, MAX_CHANNELS, MAX_EXCLUDED, MAX_PATTERNS, ReaderLimitExceeded, ReaderStart, RemoveChannelResult,
};
pub use retention::{SubscriptionLoss, TrimmedChannel};
pub(crate) use subscription_groups::{ExpectedGroups, OrphanGroups};

use std::{sync::Arc, time::Duration};

use crate::{Redis, StoreResult, keys, script};
use common::{name::ChannelName, settings::ChannelSettings};
use model::message::{NewMessage, Position};

/// A message that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedMessage {
    /// Its position in the channel's history.
    pub position: Position,
    /// Subscribers of the bare channel that Redis handed it to.
    pub receivers: u64,
}

/// What a message is known by when the request that publishes it is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageDedup {
    /// The seed of the request.
    pub seed: u128,
    /// Which of its messages it is.
    pub nth: usize,
    /// How long it is known.
    pub ttl: Duration,
}

/// There are as many channels as there may be, and this would be a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyChannels {
    /// `channels.max_channels`.
    pub max: u64,
}

/// The channels in Redis. Clone it freely.
#[derive(Clone)]
pub struct Channels {
    pub(crate) redis: Redis,
    pub(crate) settings: Arc<ChannelSettings>,
}

impl Channels {
    /// The channels in that Redis.
    #[must_use]
    pub fn new(redis: &Redis, settings: &ChannelSettings) -> Self {
        Self { redis: redis.clone(), settings: Arc::new(settings.clone()) }
    }

    /// Publishes a message.
    ///
    /// # Errors
    /// Redis is unavailable: the message may have been published all the same.
    pub async fn publish(
        &self,
        channel: &ChannelName,
        message: &NewMessage<'_>,
    ) -> StoreResult<Result<PublishedMessage, TooManyChannels>> {
        self.publish_deduplicated(channel, message, None).await
    }

    /// Publishes a message, unless it was published before as that one.
    ///
    /// # Errors
    /// Redis is unavailable: the message may have been published all the same.
    pub async fn publish_deduplicated(
        &self,
        channel: &ChannelName,
        message: &NewMessage<'_>,
        once: Option<MessageDedup>,
    ) -> StoreResult<Result<PublishedMessage, TooManyChannels>> {
        let sent = match self.run_publish_script(channel, message, (None, once)).await? {
            Some(sent) => sent,
            // A new channel, or one whose history is gone
            None if !self.register_channel(channel).await? => {
                return Ok(Err(TooManyChannels { max: self.settings.max_channels }));
            }
            None => {
                // Its subscriptions have it from this message on, also if no worker runs
                let joining = self.find_new_channel_groups(channel).await;
                let sent = self.run_publish_script(channel, message, (Some(&joining), once)).await?;
                joining.create_groups(self, channel).await;
                sent.ok_or_else(|| crate::StoreError::damaged("a registered channel that is to be registered"))?
            }
        };
        metrics::counter!("galley_messages_published_total").increment(1);
        let (position, receivers, is_due) = sent;
        if is_due && let Err(error) = self.register_channel(channel).await {
            tracing::debug!(%error, %channel, "not noted as being in use");
        }
        let position = position.parse().map_err(|_| crate::StoreError::damaged(position))?;
        Ok(Ok(PublishedMessage { position, receivers }))
    }

    /// None if the channel has to be registered first; if it was just now, it has those who join it.
    async fn run_publish_script(
        &self,
        channel: &ChannelName,
        message: &NewMessage<'_>,
        (registered, once): (Option<&NewChannelGroups>, Option<MessageDedup>),
    ) -> StoreResult<Option<(String, u64, bool)>> {
        let mut call = script::PUBLISH.prepare_invoke();
        call.key(keys::channel_history(channel)).key(keys::channel_state(channel));
        if let Some(MessageDedup { seed, nth, .. }) = once {
            call.key(keys::published_message(channel, seed, nth));
        }
        call.arg(channel.as_str()).arg(keys::live_messages(channel));
        // The epoch is that of the very connection: a server that came back with less is another connection
        let (connection, epoch) = self.redis.pinned_with_epoch().await?;
        let most = self.settings.retention.for_channel(channel).messages;
        call.arg(epoch).arg(most).arg(most.max(self.settings.retention.backlog_cap().messages));
        call.arg(self.settings.history_ttl.as_millis().to_string());
        call.arg(registry::registration_refresh_interval(&self.settings).as_millis().to_string());
        call.arg(&*message.body).arg(message.content_type.as_deref().unwrap_or_default());
        call.arg(message.attributes.as_deref().unwrap_or_default());
        call.arg(u8::from(registered.is_some()))
            .arg(u8::from(registered.is_some_and(NewChannelGroups::may_have_subscriptions)));
        if let Some(MessageDedup { ttl, .. }) = once {
            call.arg(ttl.as_millis().to_string());
        }
        Ok(self.redis.run_pinned(&call, connection).await?)
    }
}
