//! Channels. `publish` appends a message to the channel's history, sends it with its position to all gateways, and
//! publishes it unchanged on the plain channel name for any Redis client.
//!
//! Subscribers may miss messages; readers detect that by positions, which are contiguous within an epoch, and read
//! missing messages from the history.
//!
//! | module | what it does |
//! |---|---|
//! | `registry` | the list of channels |
//! | `history` | reads a channel's history page by page |
//! | `hub`, `message_ring` | one subscription for many readers; the newest messages in memory |
//! | `reader`, `cursor`, `page_budget` | one reader of many channels; its position in each; memory for what it has read |
//! | `reader_counts`, `changed_channels` | how many readers each channel has, over all gateways |
//! | `plain_publish_filter` | tells copies of Galley's messages from those of plain Redis publishers |
//! | `retention` | trims histories |
//! | `subscription_groups`, `new_channel_groups` | consumer groups of subscriptions: for new channels, and orphans |

mod changed_channels;
mod cursor;
mod history;
mod hub;
mod message_ring;
mod new_channel_groups;
mod page_budget;
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

/// A published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedMessage {
    /// Its position in the channel's history.
    pub position: Position,
    /// Number of Redis clients subscribed to the plain channel name that received it.
    pub plain_subscribers: u64,
}

/// Identifies a message when its request is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageDedup {
    /// The request's seed.
    pub seed: u128,
    /// The index of the message in the request.
    pub nth: usize,
    /// How long the message is remembered.
    pub ttl: Duration,
}

/// The channel would be new, and the maximum number of channels is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyChannels {
    /// The limit `channels.max_channels`.
    pub max: u64,
}

/// The channels in Redis. Cheap to clone.
#[derive(Clone)]
pub struct Channels {
    pub(crate) redis: Redis,
    pub(crate) settings: Arc<ChannelSettings>,
}

impl Channels {
    pub(crate) fn redis(&self) -> &Redis {
        &self.redis
    }

    /// The channels in this Redis.
    #[must_use]
    pub fn new(redis: &Redis, settings: &ChannelSettings) -> Self {
        Self { redis: redis.clone(), settings: Arc::new(settings.clone()) }
    }

    /// Publishes a message.
    ///
    /// # Errors
    /// Redis is unavailable: the message may have been published nevertheless.
    pub async fn publish(
        &self,
        channel: &ChannelName,
        message: &NewMessage<'_>,
    ) -> StoreResult<Result<PublishedMessage, TooManyChannels>> {
        self.publish_deduplicated(channel, message, None).await
    }

    /// Publishes a message unless an earlier call with the same `dedup` did.
    ///
    /// # Errors
    /// Redis is unavailable: the message may have been published nevertheless.
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
                // Its subscriptions get it from this message on, even if no worker runs
                let joining = self.find_new_channel_groups(channel).await;
                let sent = self.run_publish_script(channel, message, (Some(&joining), once)).await?;
                joining.create_groups(self, channel).await;
                sent.ok_or_else(|| crate::StoreError::damaged("a registered channel that is to be registered"))?
            }
        };
        metrics::counter!("galley_messages_published_total").increment(1);
        let (position, plain_subscribers, is_due) = sent;
        if is_due && let Err(error) = self.register_channel(channel).await {
            tracing::debug!(%error, %channel, "channel registration not refreshed");
        }
        let position = position.parse().map_err(|_| crate::StoreError::damaged(position))?;
        Ok(Ok(PublishedMessage { position, plain_subscribers }))
    }

    /// None if the channel must be registered first. A newly registered channel gets its consumer groups here.
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
        // The epoch belongs to this connection: a server restarted with less data is another connection
        let (connection, epoch) = self.redis.pinned_with_epoch().await?;
        let max = self.settings.retention.for_channel(channel).messages;
        call.arg(epoch).arg(max).arg(max.max(self.settings.retention.backlog_cap().messages));
        call.arg(self.settings.history_ttl.as_millis().to_string());
        call.arg(registry::registration_refresh_interval(&self.settings).as_millis().to_string());
        call.arg(&*message.body).arg(message.content_type.as_deref().unwrap_or_default());
        call.arg(message.attributes.as_deref().unwrap_or_default());
        call.arg(u8::from(registered.is_some()))
            .arg(u8::from(registered.is_some_and(NewChannelGroups::may_have_subscriptions)));
        if let Some(MessageDedup { ttl, .. }) = once {
            call.arg(self.redis.memory().idempotency_ttl(ttl).as_millis().to_string());
        }
        Ok(self.redis.run_pinned(&call, connection).await?)
    }
}
