//! How many readers each channel has at all gateways together. Every gateway saves its own counts for the others.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use super::hub::{ChannelHub, ChannelHubInner};
use crate::{Redis, StoreResult, keys, log_interruption, script};
use common::name::ChannelName;

/// How often it is noted what has changed.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is noted that this gateway is there at all, and how long that counts.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
const READER_COUNTS_TTL: Duration = Duration::from_secs(30);
/// Channels that are noted in one call.
const CHANNELS_PER_CALL: usize = 1000;
/// Gateways that are asked for.
const MAX_GATEWAYS: isize = 1000;

/// How many read a channel, by channel.
type ChannelReaderCounts = HashMap<ChannelName, usize>;

/// Channels that more or fewer read than when somebody last looked.
#[derive(Debug, Clone, Default)]
pub(super) struct ChangedChannels(Arc<Mutex<HashSet<ChannelName>>>);

impl ChangedChannels {
    pub(super) fn mark(&self, channel: &ChannelName) {
        let mut changed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !changed.contains(channel) {
            changed.insert(channel.clone());
        }
    }

    fn take(&self) -> HashSet<ChannelName> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ChannelHub {
    /// How many read channels, at all gateways: what others noted up to a second ago, and those that are here now.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn count_readers(&self, channels: &[ChannelName]) -> StoreResult<Vec<usize>> {
        let mut readers: Vec<usize> = channels.iter().map(|channel| self.0.local_readers(channel)).collect();
        if channels.is_empty() {
            return Ok(readers);
        }
        for noted in self.0.redis.remote_reader_counts(&self.0.gateway_id, channels).await? {
            for (readers, noted) in readers.iter_mut().zip(noted) {
                *readers += noted.unwrap_or_default();
            }
        }
        Ok(readers)
    }
}

impl ChannelHubInner {
    /// Notes how many read here until the hub stops; then nobody does.
    pub(super) async fn publish_reader_counts(self: Arc<Self>) {
        // What is noted; none if that is not known
        let (mut noted, mut pause, mut say_at) = (Some(HashSet::new()), UPDATE_INTERVAL, Instant::now());
        while self.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            let is_whole = noted.as_ref().is_none_or(HashSet::is_empty);
            let news = self.changed_reader_counts(noted.as_ref(), is_whole);
            // Where nobody reads there is nothing to say
            if noted.is_some() && news.is_empty() && (is_whole || Instant::now() < say_at) {
                continue;
            }
            match self.redis.save_reader_counts(&self.gateway_id, &news, is_whole).await {
                Ok(true) => {
                    let noted = noted.get_or_insert_default();
                    for (channel, readers) in news {
                        if readers > 0 {
                            noted.insert(channel)
                        } else {
                            noted.remove(&channel)
                        };
                    }
                    (pause, say_at) = (UPDATE_INTERVAL, Instant::now() + HEARTBEAT_INTERVAL);
                }
                // Redis has lost it
                Ok(false) => noted = None,
                Err(error) => {
                    log_interruption("noting how many read channels", &error);
                    (noted, pause) = (None, HEARTBEAT_INTERVAL);
                }
            }
        }
        if let Err(error) = self.redis.delete_reader_counts(&self.gateway_id).await {
            tracing::debug!(%error, "that nobody reads here any more shows in half a minute");
        }
    }

    /// How many read the channels in which that has changed, or all. Not more channels than there may be: readers may wait for any
    /// that there never will be.
    fn changed_reader_counts(&self, noted: Option<&HashSet<ChannelName>>, is_whole: bool) -> ChannelReaderCounts {
        let changed = self.changed_channels.take();
        let most = usize::try_from(self.settings.max_channels).unwrap_or(usize::MAX);
        if is_whole {
            return self.local_reader_counts(most);
        }
        let count = noted.map_or(0, HashSet::len);
        let is_noted = |channel: &ChannelName| noted.is_some_and(|noted| noted.contains(channel));
        let (known, new): (Vec<ChannelName>, Vec<ChannelName>) = changed.into_iter().partition(is_noted);
        let fitting = known.into_iter().chain(new.into_iter().take(most.saturating_sub(count)));
        let counted = |channel: ChannelName| {
            let readers = self.local_readers(&channel);
            (channel, readers)
        };
        fitting.map(counted).collect()
    }
}

impl Redis {
    /// What other gateways noted of channels.
    async fn remote_reader_counts(&self, but: &Uuid, channels: &[ChannelName]) -> StoreResult<Vec<Vec<Option<usize>>>> {
        let mut connection = self.clone();
        let mut command = redis::cmd("ZRANGE");
        let gateways: Vec<String> =
            command.arg(keys::READER_GATEWAYS).arg(0).arg(MAX_GATEWAYS - 1).query_async(&mut connection).await?;
        let mut pipeline = redis::pipe();
        for gateway in gateways.iter().filter_map(|id| Uuid::parse_str(id).ok()).filter(|id| id != but) {
            let command = pipeline.cmd("HMGET").arg(keys::gateway_readers(&gateway));
            for channel in channels {
                command.arg(channel.as_str());
            }
        }
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        Ok(pipeline.query_async(&mut connection).await?)
    }

    /// Notes how many read channels at a gateway, or all of its channels. False if nothing was noted before that still counts:
    /// then all of them are to be noted.
    async fn save_reader_counts(
        &self,
        gateway: &Uuid,
        news: &ChannelReaderCounts,
        is_whole: bool,
    ) -> StoreResult<bool> {
        let news: Vec<(&ChannelName, &usize)> = news.iter().collect();
        // Without news it is said that it is there
        for number in 0..news.len().div_ceil(CHANNELS_PER_CALL).max(1) {
            let begins = is_whole && number == 0;
            let mut call = script::SAVE_READER_COUNTS.key(keys::gateway_readers(gateway));
            call.key(keys::READER_GATEWAYS)
                .arg(gateway.simple().to_string())
                .arg(READER_COUNTS_TTL.as_millis().to_string());
            call.arg(u8::from(begins));
            for (channel, readers) in news.iter().skip(number * CHANNELS_PER_CALL).take(CHANNELS_PER_CALL) {
                call.arg(channel.as_str()).arg(**readers);
            }
            let is_known: bool = call.invoke_async(&mut self.clone()).await?;
            if !is_known && !begins {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn delete_reader_counts(&self, gateway: &Uuid) -> StoreResult<()> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("DEL").arg(keys::gateway_readers(gateway)).ignore();
        pipeline.cmd("ZREM").arg(keys::READER_GATEWAYS).arg(gateway.simple().to_string()).ignore();
        pipeline.query_async(&mut self.clone()).await.map_err(Into::into)
    }
}
