//! Channels: a message goes into the channel's history and, byte for byte, to everybody who subscribes to the bare
//! channel name, Galley or not.

use super::{Redis, StoreResult, keys, script};
use crate::{name::ChannelName, settings::ChannelSettings};

/// A message that was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its position in the channel's history: `<epoch>-<sequence>`.
    pub position: String,
    /// Subscribers of the bare channel that Redis handed it to.
    pub receivers: u64,
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
        body: &[u8],
        content_type: Option<&str>,
    ) -> StoreResult<Published> {
        let mut call = script::PUBLISH.prepare_invoke();
        call.key(keys::history(channel)).arg(channel.as_str()).arg(body);
        call.arg(settings.history_max).arg(settings.history_ttl.as_millis().to_string());
        if let Some(content_type) = content_type {
            call.arg("t").arg(content_type);
        }
        let (position, receivers) = call.invoke_async(&mut self.clone()).await?;
        metrics::counter!("galley_messages_published_total").increment(1);
        Ok(Published { position, receivers })
    }
}
