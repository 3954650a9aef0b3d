//! Which channels there are. A channel is on the list from its first message until some time after its last: it is noted
//! again now and then, so that publishing usually costs one script and no second key.

use std::time::Duration;

use super::Channels;
use crate::{StoreResult, keys, script};
use common::{name::ChannelName, settings::ChannelSettings};

/// How long a channel that is in use goes without being noted again, and without its TTLs being set.
pub(super) fn registration_refresh_interval(settings: &ChannelSettings) -> Duration {
    settings.history_ttl / 4
}

/// A channel that was not noted for that long has lost its history.
pub(super) fn registration_ttl(settings: &ChannelSettings) -> Duration {
    settings.history_ttl + registration_refresh_interval(settings) * 2
}

impl Channels {
    /// Notes that a channel is in use; false if it is new and there are too many.
    pub(super) async fn register_channel(&self, channel: &ChannelName) -> StoreResult<bool> {
        let mut call = script::REGISTER_CHANNEL.key(keys::CHANNELS);
        call.arg(channel.as_str())
            .arg(self.settings.max_channels)
            .arg(registration_ttl(&self.settings).as_millis().to_string());
        Ok(call.invoke_async(&mut self.redis.clone()).await?)
    }

    /// Names on the list behind that one, in the order of the alphabet, at most so many.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn list_channels(&self, after: Option<&ChannelName>, most: usize) -> StoreResult<Vec<ChannelName>> {
        let mut names = self.all_channels().await?;
        names.sort();
        let start = after.map_or(0, |after| names.partition_point(|name| name <= after));
        Ok(names.into_iter().skip(start).take(most).collect())
    }

    /// Every name on the list: at most `channels.max_channels`, each a hundred bytes or so.
    pub(crate) async fn all_channels(&self) -> StoreResult<Vec<ChannelName>> {
        let mut connection = self.redis.pooled_connection().await?;
        let names: Vec<String> =
            redis::cmd("ZRANGE").arg(keys::CHANNELS).arg(0).arg(-1).query_async(&mut connection).await?;
        Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
    }
}
