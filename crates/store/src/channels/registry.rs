//! The list of channels. A channel is on it from its first message until some time after its last: publishing
//! refreshes the entry only now and then, so it usually costs one script and no second key.

use std::{sync::Arc, time::Duration};

use super::Channels;
use crate::{Redis, StoreResult, keys, script};
use common::{name::ChannelName, settings::ChannelSettings};

/// How often the entry and the TTLs of a channel in use are refreshed.
pub(super) fn registration_refresh_interval(settings: &ChannelSettings) -> Duration {
    settings.history_ttl / 4
}

/// A channel whose entry is older than this has lost its history.
pub(super) fn registration_ttl(settings: &ChannelSettings) -> Duration {
    settings.history_ttl + registration_refresh_interval(settings) * 2
}

impl Channels {
    /// Adds or refreshes a channel; false if it is new and the maximum is reached.
    pub(crate) async fn register_channel(&self, channel: &ChannelName) -> StoreResult<bool> {
        let mut call = script::REGISTER_CHANNEL.key(keys::CHANNELS);
        call.arg(channel.as_str())
            .arg(self.settings.max_channels)
            .arg(registration_ttl(&self.settings).as_millis().to_string())
            .arg(self.redis.topics().new_channels());
        Ok(call.invoke_async(&mut self.redis.clone()).await?)
    }

    /// Those of these names that are registered.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn registered_channels(&self, names: Vec<ChannelName>) -> StoreResult<Vec<ChannelName>> {
        if names.is_empty() {
            return Ok(names);
        }
        let mut command = redis::cmd("ZMSCORE");
        command.arg(keys::CHANNELS).arg(names.iter().map(ChannelName::as_str).collect::<Vec<_>>());
        let scores: Vec<Option<f64>> = command.query_async(&mut self.redis.clone()).await?;
        Ok(names.into_iter().zip(scores).filter_map(|(name, score)| score.map(|_| name)).collect())
    }

    /// At most `max` names after `after`, in alphabetical order.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn list_channels(&self, after: Option<&ChannelName>, max: usize) -> StoreResult<Vec<ChannelName>> {
        let all = self.all_channels().await?;
        let mut names: Vec<&ChannelName> = all.iter().filter(|name| after.is_none_or(|after| *name > after)).collect();
        names.sort();
        Ok(names.into_iter().take(max).cloned().collect())
    }

    /// All names: at most `channels.max_channels`, each about a hundred bytes. All who ask at the same moment share them.
    pub(crate) async fn all_channels(&self) -> StoreResult<Arc<Vec<ChannelName>>> {
        let redis = self.redis.clone();
        self.listing.read(&self.runtime, || async move { read_channels(&redis).await.map(Arc::new) }).await
    }
}

async fn read_channels(redis: &Redis) -> StoreResult<Vec<ChannelName>> {
    let mut connection = redis.pooled_connection().await?;
    let names: Vec<String> =
        redis::cmd("ZRANGE").arg(keys::CHANNELS).arg(0).arg(-1).query_async(&mut connection).await?;
    Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
}
