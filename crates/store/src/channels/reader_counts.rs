//! Who reads: how many there are here, of whom there may be so many, and how many read each channel at all gateways together: every
//! gateway notes that for the others.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::SeqCst},
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use super::hub::{ChannelHub, Inner};
use crate::{Redis, StoreResult, keys, note_interruption, script};
use common::name::ChannelName;

/// How often it is noted what has changed.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// How often it is noted that this gateway is there at all, and how long that counts.
const SAY_EVERY: Duration = Duration::from_secs(10);
const COUNTS_FOR: Duration = Duration::from_secs(30);
/// Channels that are noted in one call.
const NOTED_AT_ONCE: usize = 1000;
/// Gateways that are asked for.
const MOST_GATEWAYS: isize = 1000;

/// How many read a channel, by channel.
type Readers = HashMap<ChannelName, usize>;

/// Channels that more or fewer read than when somebody last looked.
#[derive(Debug, Clone, Default)]
pub(super) struct Changed(Arc<Mutex<HashSet<ChannelName>>>);

impl Changed {
    pub(super) fn note(&self, channel: &ChannelName) {
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
    pub async fn readers_of(&self, channels: &[ChannelName]) -> StoreResult<Vec<usize>> {
        let mut readers: Vec<usize> = channels.iter().map(|channel| self.0.readers_here(channel)).collect();
        if channels.is_empty() {
            return Ok(readers);
        }
        for noted in self.0.redis.noted_readers(&self.0.id, channels).await? {
            for (readers, noted) in readers.iter_mut().zip(noted) {
                *readers += noted.unwrap_or_default();
            }
        }
        Ok(readers)
    }
}

impl Inner {
    /// Notes how many read here until the hub stops; then nobody does.
    pub(super) async fn note_readers(self: Arc<Self>) {
        // What is noted; none if that is not known
        let (mut noted, mut pause, mut say_at) = (Some(HashSet::new()), NOTE_EVERY, Instant::now());
        while self.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            let is_whole = noted.as_ref().is_none_or(HashSet::is_empty);
            let news = self.news(noted.as_ref(), is_whole);
            // Where nobody reads there is nothing to say
            if noted.is_some() && news.is_empty() && (is_whole || Instant::now() < say_at) {
                continue;
            }
            match self.redis.note_readers(&self.id, &news, is_whole).await {
                Ok(true) => {
                    let noted = noted.get_or_insert_default();
                    for (channel, readers) in news {
                        if readers > 0 {
                            noted.insert(channel)
                        } else {
                            noted.remove(&channel)
                        };
                    }
                    (pause, say_at) = (NOTE_EVERY, Instant::now() + SAY_EVERY);
                }
                // Redis has lost it
                Ok(false) => noted = None,
                Err(error) => {
                    note_interruption("noting how many read channels", &error);
                    (noted, pause) = (None, SAY_EVERY);
                }
            }
        }
        if let Err(error) = self.redis.forget_readers(&self.id).await {
            tracing::debug!(%error, "that nobody reads here any more shows in half a minute");
        }
    }

    /// How many read the channels in which that has changed, or all. Not more channels than there may be: readers may wait for any
    /// that there never will be.
    fn news(&self, noted: Option<&HashSet<ChannelName>>, is_whole: bool) -> Readers {
        let changed = self.changed.take();
        let most = usize::try_from(self.settings.max_channels).unwrap_or(usize::MAX);
        if is_whole {
            return self.all_readers(most);
        }
        let count = noted.map_or(0, HashSet::len);
        let is_noted = |channel: &ChannelName| noted.is_some_and(|noted| noted.contains(channel));
        let (known, new): (Vec<ChannelName>, Vec<ChannelName>) = changed.into_iter().partition(is_noted);
        let fitting = known.into_iter().chain(new.into_iter().take(most.saturating_sub(count)));
        let counted = |channel: ChannelName| {
            let readers = self.readers_here(&channel);
            (channel, readers)
        };
        fitting.map(counted).collect()
    }

    /// One more reader, if there may be one.
    pub(super) fn take_seat(self: &Arc<Self>) -> Option<Seat> {
        let most = self.settings.max_readers;
        let taken = self.readers.fetch_update(SeqCst, SeqCst, |count| (count < most).then_some(count + 1));
        taken.is_ok().then(|| {
            self.show_readers();
            Seat(self.clone())
        })
    }

    fn show_readers(&self) {
        let count = self.readers.load(SeqCst);
        metrics::gauge!("galley_channel_readers").set(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

/// A reader's place among those that may be.
pub(super) struct Seat(Arc<Inner>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, SeqCst);
        self.0.show_readers();
    }
}

impl Redis {
    /// What other gateways noted of channels.
    async fn noted_readers(&self, but: &Uuid, channels: &[ChannelName]) -> StoreResult<Vec<Vec<Option<usize>>>> {
        let mut connection = self.clone();
        let mut command = redis::cmd("ZRANGE");
        let gateways: Vec<String> =
            command.arg(keys::READERS).arg(0).arg(MOST_GATEWAYS - 1).query_async(&mut connection).await?;
        let mut pipeline = redis::pipe();
        for gateway in gateways.iter().filter_map(|id| Uuid::parse_str(id).ok()).filter(|id| id != but) {
            let command = pipeline.cmd("HMGET").arg(keys::readers(&gateway));
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
    async fn note_readers(&self, gateway: &Uuid, news: &Readers, is_whole: bool) -> StoreResult<bool> {
        let news: Vec<(&ChannelName, &usize)> = news.iter().collect();
        // Without news it is said that it is there
        for number in 0..news.len().div_ceil(NOTED_AT_ONCE).max(1) {
            let begins = is_whole && number == 0;
            let mut call = script::NOTE_READERS.key(keys::readers(gateway));
            call.key(keys::READERS).arg(gateway.simple().to_string()).arg(COUNTS_FOR.as_millis().to_string());
            call.arg(u8::from(begins));
            for (channel, readers) in news.iter().skip(number * NOTED_AT_ONCE).take(NOTED_AT_ONCE) {
                call.arg(channel.as_str()).arg(**readers);
            }
            let is_known: bool = call.invoke_async(&mut self.clone()).await?;
            if !is_known && !begins {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn forget_readers(&self, gateway: &Uuid) -> StoreResult<()> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("DEL").arg(keys::readers(gateway)).ignore();
        pipeline.cmd("ZREM").arg(keys::READERS).arg(gateway.simple().to_string()).ignore();
        pipeline.query_async(&mut self.clone()).await.map_err(Into::into)
    }
}
