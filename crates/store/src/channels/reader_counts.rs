//! Counts readers: in this process, with a maximum, and of each channel over all gateways. Every gateway publishes its
//! counts to Redis for the others.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use super::Channels;
use super::hub::{ChannelHub, ChannelHubInner};
use crate::{StoreResult, keys, log_interruption, script};
use common::name::ChannelName;

/// How often changed counts are published.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);
/// How often this gateway's presence is published, and how long it is valid.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
const READER_COUNTS_TTL: Duration = Duration::from_secs(30);
/// Maximum number of channels in one call.
const CHANNELS_PER_CALL: usize = 1000;
/// Maximum number of gateways that are asked.
const MAX_GATEWAYS: isize = 1000;

/// The number of readers by channel.
type ChannelReaderCounts = HashMap<ChannelName, usize>;

impl ChannelHub {
    /// The number of readers of channels over all gateways: up to a second old for other gateways, current for this
    /// one.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn count_readers(&self, channels: &[ChannelName]) -> StoreResult<Vec<usize>> {
        let mut readers: Vec<usize> = channels.iter().map(|channel| self.0.local_readers(channel)).collect();
        if channels.is_empty() {
            return Ok(readers);
        }
        for published in self.0.channels.remote_reader_counts(&self.0.gateway_id, channels).await? {
            for (readers, published) in readers.iter_mut().zip(published) {
                *readers += published.unwrap_or_default();
            }
        }
        Ok(readers)
    }
}

impl ChannelHubInner {
    /// Publishes this process's counts until the hub stops; then removes them.
    pub(super) async fn publish_reader_counts(self: Arc<Self>) {
        // The published channels; none if unknown
        let (mut published, mut pause, mut heartbeat_at) = (Some(HashSet::new()), UPDATE_INTERVAL, Instant::now());
        while self.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            let is_whole = published.as_ref().is_none_or(HashSet::is_empty);
            let changes = self.changed_reader_counts(published.as_ref(), is_whole);
            // Without readers there is nothing to publish
            if published.is_some() && changes.is_empty() && (is_whole || Instant::now() < heartbeat_at) {
                continue;
            }
            match self.channels.save_reader_counts(&self.gateway_id, &changes, is_whole).await {
                Ok(true) => {
                    let published = published.get_or_insert_default();
                    for (channel, readers) in changes {
                        if readers > 0 {
                            published.insert(channel)
                        } else {
                            published.remove(&channel)
                        };
                    }
                    (pause, heartbeat_at) = (UPDATE_INTERVAL, Instant::now() + HEARTBEAT_INTERVAL);
                }
                // Redis lost the counts
                Ok(false) => published = None,
                Err(error) => {
                    log_interruption("noting how many read channels", &error);
                    (published, pause) = (None, HEARTBEAT_INTERVAL);
                }
            }
        }
        if let Err(error) = self.channels.delete_reader_counts(&self.gateway_id).await {
            tracing::debug!(%error, "reader counts not removed; they expire in half a minute");
        }
    }

    /// The changed counts, or all. At most as many channels as may exist: readers may wait for channels that never
    /// will.
    fn changed_reader_counts(&self, published: Option<&HashSet<ChannelName>>, is_whole: bool) -> ChannelReaderCounts {
        let changed = self.changed_channels.take();
        let max = usize::try_from(self.settings.max_channels).unwrap_or(usize::MAX);
        if is_whole {
            return self.local_reader_counts(max);
        }
        let count = published.map_or(0, HashSet::len);
        let is_published = |channel: &ChannelName| published.is_some_and(|published| published.contains(channel));
        let (known, new): (Vec<ChannelName>, Vec<ChannelName>) = changed.into_iter().partition(is_published);
        let fitting = known.into_iter().chain(new.into_iter().take(max.saturating_sub(count)));
        let counted = |channel: ChannelName| {
            let readers = self.local_readers(&channel);
            (channel, readers)
        };
        fitting.map(counted).collect()
    }
}

impl Channels {
    /// The published counts of other gateways.
    async fn remote_reader_counts(&self, but: &Uuid, channels: &[ChannelName]) -> StoreResult<Vec<Vec<Option<usize>>>> {
        let mut connection = self.redis.clone();
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

    /// Publishes counts for a gateway: changes, or all of its channels. False if its earlier counts are gone: then all
    /// must be published.
    async fn save_reader_counts(
        &self,
        gateway: &Uuid,
        changes: &ChannelReaderCounts,
        is_whole: bool,
    ) -> StoreResult<bool> {
        let changes: Vec<(&ChannelName, &usize)> = changes.iter().collect();
        let ttl_ms = READER_COUNTS_TTL.as_millis().to_string();
        // Without changes, publish that the gateway is alive
        for number in 0..changes.len().div_ceil(CHANNELS_PER_CALL).max(1) {
            let begins = is_whole && number == 0;
            let mut call = script::SAVE_READER_COUNTS.key(keys::gateway_readers(gateway));
            call.arg(&ttl_ms).arg(u8::from(begins));
            for (channel, readers) in changes.iter().skip(number * CHANNELS_PER_CALL).take(CHANNELS_PER_CALL) {
                call.arg(channel.as_str()).arg(**readers);
            }
            let is_known: bool = call.invoke_async(&mut self.redis.clone()).await?;
            if !is_known && !begins {
                return Ok(false);
            }
        }
        // Others look for the counts of listed gateways only. After an error the next call lists it
        let mut call = script::LIST_GATEWAY.key(keys::READER_GATEWAYS);
        call.arg(gateway.simple().to_string()).arg(&ttl_ms);
        let _: i64 = call.invoke_async(&mut self.redis.clone()).await?;
        Ok(true)
    }

    async fn delete_reader_counts(&self, gateway: &Uuid) -> StoreResult<()> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("DEL").arg(keys::gateway_readers(gateway)).ignore();
        pipeline.cmd("ZREM").arg(keys::READER_GATEWAYS).arg(gateway.simple().to_string()).ignore();
        pipeline.query_async(&mut self.redis.clone()).await.map_err(Into::into)
    }
}
