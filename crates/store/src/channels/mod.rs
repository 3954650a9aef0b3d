//! Channels: a message goes into the channel's history, with its position to all gateways, and byte for byte to
//! everybody who subscribes to the bare channel name, Galley or not.
//!
//! Subscribers may miss messages, so whoever must not goes by positions: they are contiguous within an epoch, and what is
//! missing between two of them is in the history. `registry` knows which channels there are, `hub` hears them
//! for many readers, `reader` is one of these, `reader_counts` counts them, `plain` tells
//! copies of messages from what others publish. `retention` trims histories.

mod cursor;
mod history;
mod hub;
mod plain;
mod reader;
mod reader_counts;
mod registry;
mod retention;
mod ring;

pub use cursor::Told;
pub(super) use history::stored;
pub use history::{ChannelInfo, PAGE_BYTES, Page};
pub use hub::ChannelHub;
pub use reader::{Left, MOST_CHANNELS, MOST_LEFT, MOST_PATTERNS, Reader, Start, TooManyRead};
pub use retention::{Overtaken, Trimmed};
pub use ring::Shown;

use std::time::Duration;

use crate::{Redis, StoreResult, keys, script, subscriptions::Joining};
use common::{name::ChannelName, settings::ChannelSettings};
use model::message::{NewMessage, Position};

/// A message that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Its position in the channel's history.
    pub position: Position,
    /// Subscribers of the bare channel that Redis handed it to.
    pub receivers: u64,
}

/// What a message is known by when the request that publishes it is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Once {
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
    pub most: u64,
}

impl Redis {
    /// Publishes a message.
    ///
    /// # Errors
    /// Redis is unavailable: the message may have been published all the same.
    pub async fn publish(
        &self,
        settings: &ChannelSettings,
        channel: &ChannelName,
        message: &NewMessage<'_>,
    ) -> StoreResult<Result<Published, TooManyChannels>> {
        self.publish_once(settings, channel, message, None).await
    }

    /// Publishes a message, unless it was published before as that one.
    ///
    /// # Errors
    /// Redis is unavailable: the message may have been published all the same.
    pub async fn publish_once(
        &self,
        settings: &ChannelSettings,
        channel: &ChannelName,
        message: &NewMessage<'_>,
        once: Option<Once>,
    ) -> StoreResult<Result<Published, TooManyChannels>> {
        let sent = match self.send(settings, channel, message, (None, once)).await? {
            Some(sent) => sent,
            // A new channel, or one whose history is gone
            None if !self.register(settings, channel).await? => {
                return Ok(Err(TooManyChannels { most: settings.max_channels }));
            }
            None => {
                // Its subscriptions have it from this message on, also if no worker runs
                let joining = self.joining(channel).await;
                let sent = self.send(settings, channel, message, (Some(&joining), once)).await?;
                joining.finish(self, settings, channel).await;
                sent.ok_or_else(|| crate::StoreError::damaged("a registered channel that is to be registered"))?
            }
        };
        metrics::counter!("galley_messages_published_total").increment(1);
        let (position, receivers, is_due) = sent;
        if is_due && let Err(error) = self.register(settings, channel).await {
            tracing::debug!(%error, %channel, "not noted as being in use");
        }
        let position = position.parse().map_err(|_| crate::StoreError::damaged(position))?;
        Ok(Ok(Published { position, receivers }))
    }

    /// None if the channel has to be registered first; if it was just now, it has those who join it.
    async fn send(
        &self,
        settings: &ChannelSettings,
        channel: &ChannelName,
        message: &NewMessage<'_>,
        (registered, once): (Option<&Joining>, Option<Once>),
    ) -> StoreResult<Option<(String, u64, bool)>> {
        let mut call = script::PUBLISH.prepare_invoke();
        call.key(keys::history(channel)).key(keys::channel_state(channel));
        if let Some(Once { seed, nth, .. }) = once {
            call.key(keys::published(channel, seed, nth));
        }
        call.arg(channel.as_str()).arg(keys::live(channel));
        // The epoch is that of the very connection: a server that came back with less is another connection
        let (connection, epoch) = self.pinned_with_epoch().await?;
        let most = settings.retention.of(channel).messages;
        call.arg(epoch).arg(most).arg(most.max(settings.retention.cap().messages));
        call.arg(settings.history_ttl.as_millis().to_string());
        call.arg(registry::note_again_after(settings).as_millis().to_string());
        call.arg(&*message.body).arg(message.content_type.as_deref().unwrap_or_default());
        call.arg(message.attributes.as_deref().unwrap_or_default());
        call.arg(u8::from(registered.is_some())).arg(u8::from(registered.is_some_and(Joining::holds_back)));
        if let Some(Once { ttl, .. }) = once {
            call.arg(ttl.as_millis().to_string());
        }
        Ok(self.run_pinned(&call, connection).await?)
    }
}
