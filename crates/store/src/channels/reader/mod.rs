//! One reader of any number of channels, which may be added and removed; channels that match a pattern are added
//! automatically.

mod deltas;
mod filters;
mod poll;

use std::{collections::BTreeSet, pin::Pin, sync::Arc};

use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::WaitForCancellationFutureOwned;

pub use filters::MAX_FILTERS_BYTES;

use self::{
    deltas::DeltaBase,
    filters::{ChannelFilter, NamedFilter},
};
use super::{
    cursor::ChannelCursor,
    hub::{ChannelHub, ChannelHubInner, ReaderGuard},
    shared_read::SharedReadResult,
};
use crate::{StoreResult, TooManyReaders, reader_limiter::ReaderPermit};
use common::{channel_pattern::ChannelPattern, name::ChannelName, time::Millis};
use model::message::{Position, ResumeToken};

/// Maximum number of channels of one reader.
pub const MAX_CHANNELS: usize = 100;
/// Maximum number of patterns of one reader.
pub const MAX_PATTERNS: usize = 100;
/// Maximum number of channels that one reader may exclude from its patterns.
pub const MAX_EXCLUDED: usize = 1000;

/// The reader has the maximum number of channels or patterns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderLimitExceeded;

/// The result of removing a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoveChannelResult {
    /// No longer read, even if a pattern matches it.
    Removed,
    /// It was not read.
    NotRead,
    /// A pattern matches it, and [`MAX_EXCLUDED`] channels are excluded already: it is still read.
    TooManyExcluded,
}

/// Where a reader starts in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReaderStart {
    /// With the next published message.
    Now,
    /// After a position. Messages missing there are reported as a gap.
    After(Position),
    /// With the oldest stored message published at that time or later.
    Since(Millis),
}

/// A reader. Its memory is bounded, however slow it is.
pub struct ChannelReader {
    hub: Arc<ChannelHubInner>,
    channels: Vec<ReadChannel>,
    /// The channel that is polled first.
    next_channel: usize,
    patterns: Vec<ReadPattern>,
    /// Channels that are excluded although a pattern matches them.
    excluded: BTreeSet<ChannelName>,
    /// For readers of patterns, as the two below.
    channel_names: Option<BroadcastStream<Arc<Vec<ChannelName>>>>,
    /// The list of channels that is being read.
    listing: Option<SharedReadResult<Arc<Vec<ChannelName>>>>,
    resume: ResumeToken,
    /// Whether the list of channels was matched with the patterns. Until then `resume` has the positions in matching
    /// channels.
    is_list_loaded: bool,
    is_list_due: bool,
    skipped: BTreeSet<ChannelName>,
    newly_skipped: Vec<ChannelName>,
    /// Wakes a reader without channels when the process stops.
    stopped: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// What messages begin with for the client, in place of their first bracket: differences are of what it sees.
    message_head: &'static str,
    _permit: ReaderPermit,
}

/// A channel that a reader reads.
struct ReadChannel {
    name: ChannelName,
    cursor: ChannelCursor,
    /// Everything up to here was returned.
    position: Position,
    /// Of a channel that was added by name: it stays when a pattern is removed.
    named: Option<NamedFilter>,
    /// Which of its messages are returned, by its name and by patterns together.
    filter: ChannelFilter,
    /// Messages that the filter did not let pass since the last event.
    skipped: u32,
    /// Whether differences are wanted of the channel by its name.
    named_delta: bool,
    delta: DeltaBase,
}

/// A pattern that a reader reads.
struct ReadPattern {
    pattern: ChannelPattern,
    filter: NamedFilter,
    wants_delta: bool,
}

impl ChannelHub {
    /// Opens a reader without channels.
    ///
    /// # Errors
    /// This process has `channels.max_readers` readers.
    pub fn open_reader(&self) -> Result<ChannelReader, TooManyReaders> {
        Ok(ChannelReader {
            _permit: self.0.limiter.try_acquire()?,
            hub: self.0.clone(),
            channels: Vec::new(),
            next_channel: 0,
            patterns: Vec::new(),
            excluded: BTreeSet::new(),
            channel_names: None,
            listing: None,
            resume: ResumeToken::default(),
            is_list_loaded: true,
            is_list_due: false,
            skipped: BTreeSet::new(),
            newly_skipped: Vec::new(),
            stopped: None,
            message_head: "{",
        })
    }
}

impl ChannelReader {
    /// Adds a channel. No message published after this returns is missed. A channel that is read already is unchanged.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn add_channel(
        &mut self,
        channel: &ChannelName,
        start: ReaderStart,
    ) -> StoreResult<Result<(), ReaderLimitExceeded>> {
        if !self.reads(channel) {
            if self.is_full() {
                return Ok(Err(ReaderLimitExceeded));
            }
            self.start_channel(channel, start).await?;
            self.excluded.remove(channel);
            self.skipped.remove(channel);
        }
        self.name_channel(channel);
        Ok(Ok(()))
    }

    /// Adds a pattern: existing channels start at `start`, later ones at their beginning. Channels and patterns that
    /// are read already are unchanged, and so is everything if the call fails.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn add_pattern(
        &mut self,
        pattern: ChannelPattern,
        start: ReaderStart,
    ) -> StoreResult<Result<(), ReaderLimitExceeded>> {
        if self.has_pattern(&pattern) {
            return Ok(Ok(()));
        }
        if self.patterns.len() >= MAX_PATTERNS {
            return Ok(Err(ReaderLimitExceeded));
        }
        // Subscribe before the list is read, so that no channel is missed in between
        self.subscribe_to_new_channels();
        let names = self.hub.readable_channels().await?;
        let new: Vec<&ChannelName> =
            names.iter().filter(|channel| pattern.matches(channel) && !self.reads(channel)).collect();
        if self.channels.len() + new.len() > MAX_CHANNELS {
            return Ok(Err(ReaderLimitExceeded));
        }
        for channel in new.iter().copied() {
            if let Err(error) = self.start_channel(channel, start).await {
                for channel in &new {
                    self.drop_channel(channel);
                }
                return Err(error);
            }
        }
        self.excluded.retain(|channel| !pattern.matches(channel));
        self.patterns.push(ReadPattern { pattern, filter: None, wants_delta: false });
        self.update_filters();
        Ok(Ok(()))
    }

    /// Adds patterns, at most [`MAX_PATTERNS`], with the positions of an earlier stream; channels that it did not have
    /// are newer. If Redis is unavailable, the channels are added when it is back. If there are too many, those of the
    /// earlier stream come first.
    pub fn resume_patterns(&mut self, patterns: Vec<ChannelPattern>, resume: ResumeToken) {
        self.subscribe_to_new_channels();
        self.patterns =
            patterns.into_iter().map(|pattern| ReadPattern { pattern, filter: None, wants_delta: false }).collect();
        self.resume = resume;
        (self.is_list_loaded, self.is_list_due) = (false, true);
    }

    /// Removes a channel, whatever patterns match it.
    pub fn remove_channel(&mut self, channel: &ChannelName) -> RemoveChannelResult {
        if !self.reads(channel) {
            return RemoveChannelResult::NotRead;
        }
        if self.matches_pattern(channel) {
            if self.excluded.len() >= MAX_EXCLUDED {
                return RemoveChannelResult::TooManyExcluded;
            }
            self.excluded.insert(channel.clone());
        }
        self.drop_channel(channel);
        self.schedule_skipped();
        RemoveChannelResult::Removed
    }

    /// Removes a pattern and its channels, except those that another pattern matches or that were added by name; false
    /// if it was not read.
    pub fn remove_pattern(&mut self, pattern: &ChannelPattern) -> bool {
        let before = self.patterns.len();
        self.patterns.retain(|known| known.pattern != *pattern);
        if self.patterns.len() == before {
            return false;
        }
        let goes = |read: &&ReadChannel| read.named.is_none() && !self.matches_pattern(&read.name);
        let going: Vec<ChannelName> = self.channels.iter().filter(goes).map(|read| read.name.clone()).collect();
        for channel in &going {
            self.drop_channel(channel);
        }
        let patterns = &self.patterns;
        let still_fits = |name: &ChannelName| patterns.iter().any(|read| read.pattern.matches(name));
        self.excluded.retain(still_fits);
        self.skipped.retain(still_fits);
        self.update_filters();
        self.update_deltas();
        self.schedule_skipped();
        true
    }

    fn is_full(&self) -> bool {
        self.channels.len() >= MAX_CHANNELS
    }

    /// Whether it reads a channel.
    #[must_use]
    pub fn reads(&self, channel: &ChannelName) -> bool {
        self.position(channel).is_some()
    }

    /// The position in a channel that it reads.
    #[must_use]
    pub fn position(&self, channel: &ChannelName) -> Option<Position> {
        self.positions().find(|(name, _)| *name == channel).map(|(_, position)| position)
    }

    /// The position in each channel.
    pub fn positions(&self) -> impl Iterator<Item = (&ChannelName, Position)> {
        self.channels.iter().map(|read| (&read.name, read.position))
    }

    fn matches_pattern(&self, channel: &ChannelName) -> bool {
        self.patterns.iter().any(|read| read.pattern.matches(channel))
    }

    fn has_pattern(&self, pattern: &ChannelPattern) -> bool {
        self.patterns.iter().any(|known| known.pattern == *pattern)
    }

    fn subscribe_to_new_channels(&mut self) {
        self.channel_names.get_or_insert_with(|| BroadcastStream::new(self.hub.channel_names.subscribe()));
        self.hub.subscribe_to_new_channels();
    }

    async fn start_channel(&mut self, channel: &ChannelName, start: ReaderStart) -> StoreResult<()> {
        let hold = self.hub.add_reader(channel);
        let after = match start {
            ReaderStart::After(position) => position,
            ReaderStart::Since(at) => self.hub.channels.retained_channel_position_at(channel, at).await?,
            ReaderStart::Now => self.hub.head(&hold.0).await?,
        };
        self.add_cursor(channel, hold, after);
        Ok(())
    }

    fn add_cursor(&mut self, channel: &ChannelName, hold: ReaderGuard, after: Position) {
        let cursor = ChannelCursor::new(&self.hub, hold, after);
        // Most readers have one
        self.channels.reserve_exact(1);
        let filter = filters::of_channel(channel, None, &self.patterns);
        let delta = deltas::of_new_channel(channel, &self.patterns);
        self.channels.push(ReadChannel {
            name: channel.clone(),
            cursor,
            position: after,
            named: None,
            filter,
            skipped: 0,
            named_delta: false,
            delta,
        });
    }

    fn drop_channel(&mut self, channel: &ChannelName) {
        self.channels.retain(|read| read.name != *channel);
    }

    /// Adds skipped channels when there is room.
    fn schedule_skipped(&mut self) {
        self.is_list_due |= !self.skipped.is_empty() && !self.is_full();
    }

    /// The id with which a later stream can resume here.
    #[must_use]
    pub fn resume_id(&self) -> String {
        let unlisted = (!self.is_list_loaded).then_some(&self.resume);
        ResumeToken::encode(self.positions(), unlisted)
    }

    /// Discards prefetched messages when nobody will ask for the next event for a while.
    pub fn discard_pending(&mut self) {
        self.channels.iter_mut().for_each(|read| read.cursor.discard_pending());
    }

    fn process_channel_list(&mut self, names: &[ChannelName]) {
        let there: BTreeSet<&ChannelName> = names.iter().collect();
        self.skipped.retain(|name| there.contains(name));
        // The channels of the earlier stream come first: there may not be room for all
        let (known, new): (Vec<&ChannelName>, Vec<&ChannelName>) =
            names.iter().partition(|name| self.resume.position(name).is_some());
        self.add_matching(known.into_iter().chain(new));
        self.is_list_loaded = true;
    }

    /// Adds new matching channels from their beginning.
    fn add_matching<'a>(&mut self, names: impl Iterator<Item = &'a ChannelName>) {
        for name in names {
            if self.reads(name) || self.excluded.contains(name) || !self.matches_pattern(name) {
                continue;
            }
            if self.is_full() {
                if self.skipped.insert(name.clone()) {
                    self.newly_skipped.push(name.clone());
                }
                continue;
            }
            self.skipped.remove(name);
            let after = self.resume.position(name).unwrap_or(Position::START);
            let hold = self.hub.add_reader(name);
            self.add_cursor(name, hold, after);
        }
        // When the list is read again, names that are gone are forgotten
        self.is_list_due |= self.skipped.len() as u64 > self.hub.settings.max_channels;
    }
}
