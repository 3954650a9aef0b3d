//! One reader of any number of channels, which may be added and removed; channels that match a pattern are added
//! automatically.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    sync::{Arc, atomic::Ordering::SeqCst},
    task::{Context, Poll},
};

use tokio::sync::broadcast::{self, error::RecvError};

use super::{
    cursor::{ChannelCursor, ReaderEvent},
    hub::{ChannelHub, ChannelHubInner, ReaderGuard},
};
use crate::{StoreResult, TooManyReaders, log_interruption, reader_limiter::ReaderPermit};
use common::{channel_pattern::ChannelPattern, name::ChannelName, time::Millis};
use model::message::{Position, ResumeToken};

/// Maximum number of channels of one reader.
pub const MAX_CHANNELS: usize = 100;
/// Maximum number of patterns of one reader.
pub const MAX_PATTERNS: usize = 100;
/// Maximum number of channels that one reader may exclude from its patterns.
pub const MAX_EXCLUDED: usize = 1000;

/// Maximum number of history pages in memory for one reader.
const MAX_PAGES_PER_READER: usize = 4;

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
    cursors: Vec<(ChannelName, ChannelCursor)>,
    /// The cursor that is polled first.
    next_cursor: usize,
    positions: BTreeMap<ChannelName, Position>,
    /// Channels added by name: they stay when a pattern is removed.
    named_channels: BTreeSet<ChannelName>,
    patterns: Vec<ChannelPattern>,
    /// Channels that are excluded although a pattern matches them.
    excluded: BTreeSet<ChannelName>,
    channel_names: Option<broadcast::Receiver<Arc<Vec<ChannelName>>>>,
    resume: ResumeToken,
    /// Whether the list of channels was matched with the patterns. Until then `resume` has the positions in matching
    /// channels.
    is_list_loaded: bool,
    is_list_due: bool,
    skipped: BTreeSet<ChannelName>,
    newly_skipped: Vec<ChannelName>,
    _permit: ReaderPermit,
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
            cursors: Vec::new(),
            next_cursor: 0,
            positions: BTreeMap::new(),
            named_channels: BTreeSet::new(),
            patterns: Vec::new(),
            excluded: BTreeSet::new(),
            channel_names: None,
            resume: ResumeToken::default(),
            is_list_loaded: true,
            is_list_due: false,
            skipped: BTreeSet::new(),
            newly_skipped: Vec::new(),
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
        if !self.positions.contains_key(channel) {
            if self.is_full() {
                return Ok(Err(ReaderLimitExceeded));
            }
            self.start_channel(channel, start).await?;
            self.excluded.remove(channel);
            self.skipped.remove(channel);
        }
        self.named_channels.insert(channel.clone());
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
        if self.patterns.contains(&pattern) {
            return Ok(Ok(()));
        }
        if self.patterns.len() >= MAX_PATTERNS {
            return Ok(Err(ReaderLimitExceeded));
        }
        // Subscribe before the list is read, so that no channel is missed in between
        self.subscribe_to_new_channels();
        let mut new = self.hub.readable_channels().await?;
        new.retain(|channel| pattern.matches(channel) && !self.positions.contains_key(channel));
        if self.cursors.len() + new.len() > MAX_CHANNELS {
            return Ok(Err(ReaderLimitExceeded));
        }
        for channel in &new {
            if let Err(error) = self.start_channel(channel, start).await {
                for channel in &new {
                    self.drop_channel(channel);
                }
                return Err(error);
            }
        }
        self.excluded.retain(|channel| !pattern.matches(channel));
        self.patterns.push(pattern);
        Ok(Ok(()))
    }

    /// Adds patterns, at most [`MAX_PATTERNS`], with the positions of an earlier stream; channels that it did not have
    /// are newer. If Redis is unavailable, the channels are added when it is back. If there are too many, those of the
    /// earlier stream come first.
    pub fn resume_patterns(&mut self, patterns: Vec<ChannelPattern>, resume: ResumeToken) {
        self.subscribe_to_new_channels();
        (self.patterns, self.resume) = (patterns, resume);
        (self.is_list_loaded, self.is_list_due) = (false, true);
    }

    /// Removes a channel, whatever patterns match it.
    pub fn remove_channel(&mut self, channel: &ChannelName) -> RemoveChannelResult {
        if !self.positions.contains_key(channel) {
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
        self.patterns.retain(|known| known != pattern);
        if self.patterns.len() == before {
            return false;
        }
        let goes = |name: &&ChannelName| !self.named_channels.contains(*name) && !self.matches_pattern(name);
        let going: Vec<ChannelName> = self.positions.keys().filter(goes).cloned().collect();
        for channel in &going {
            self.drop_channel(channel);
        }
        let patterns = &self.patterns;
        let still_fits = |name: &ChannelName| patterns.iter().any(|pattern| pattern.matches(name));
        self.excluded.retain(still_fits);
        self.skipped.retain(still_fits);
        self.schedule_skipped();
        true
    }

    fn is_full(&self) -> bool {
        self.cursors.len() >= MAX_CHANNELS
    }

    fn matches_pattern(&self, channel: &ChannelName) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(channel))
    }

    fn subscribe_to_new_channels(&mut self) {
        self.channel_names.get_or_insert_with(|| self.hub.channel_names.subscribe());
        self.hub.subscribe_to_new_channels();
    }

    async fn start_channel(&mut self, channel: &ChannelName, start: ReaderStart) -> StoreResult<()> {
        let hold = self.hub.add_reader(channel);
        let after = match start {
            ReaderStart::After(position) => position,
            ReaderStart::Since(at) => self.hub.channels.retained_channel_position_at(channel, at).await?,
            ReaderStart::Now => {
                let heard = hold.0.ring().head;
                match heard {
                    Some(head) => head,
                    None => self.hub.channels.channel_head(channel).await?.unwrap_or(Position::START),
                }
            }
        };
        self.add_cursor(channel, hold, after);
        Ok(())
    }

    fn add_cursor(&mut self, channel: &ChannelName, hold: ReaderGuard, after: Position) {
        self.cursors.push((channel.clone(), ChannelCursor::new(&self.hub, hold, after)));
        self.positions.insert(channel.clone(), after);
    }

    fn drop_channel(&mut self, channel: &ChannelName) {
        self.cursors.retain(|(name, _)| name != channel);
        self.positions.remove(channel);
        self.named_channels.remove(channel);
    }

    /// Adds skipped channels when there is room.
    fn schedule_skipped(&mut self) {
        self.is_list_due |= !self.skipped.is_empty() && !self.is_full();
    }

    /// The position in each channel.
    #[must_use]
    pub fn positions(&self) -> &BTreeMap<ChannelName, Position> {
        &self.positions
    }

    /// The id with which a later stream can resume here.
    #[must_use]
    pub fn resume_id(&self) -> String {
        let unlisted = (!self.is_list_loaded).then_some(&self.resume);
        ResumeToken::encode(self.positions.iter(), unlisted)
    }

    /// Discards prefetched messages when nobody will ask for the next event for a while.
    pub fn discard_pending(&mut self) {
        for (_, cursor) in &mut self.cursors {
            cursor.discard_pending();
        }
    }

    /// Waits for the next event. Cancel safe.
    pub async fn next(&mut self) -> ReaderEvent {
        loop {
            if self.is_list_due {
                match self.hub.readable_channels().await {
                    Ok(names) => self.process_channel_list(&names),
                    // The next sweep or subscription reports these names again
                    Err(error) => log_interruption("joining channels", &error),
                }
                self.is_list_due = false;
            }
            if let Some(channel) = self.newly_skipped.pop() {
                return ReaderEvent::ChannelSkipped(channel);
            }
            let Self { hub, channel_names: names, cursors, next_cursor: turn, .. } = self;
            let is_idle = cursors.is_empty();
            tokio::select! {
                biased;
                heard = next_channel_names(names) => match heard {
                    Some(names) if self.is_list_loaded => self.add_matching(names.iter()),
                    _ => self.is_list_due = true,
                },
                told = poll_fn(|cx| poll_cursors(hub, cursors, turn, cx)) => {
                    if let ReaderEvent::Message(message) = &told
                        && let Some(position) = message.position
                        && let Some(known) = self.positions.get_mut(&message.channel)
                    {
                        *known = position;
                    }
                    return told;
                }
                // Nothing else would wake it
                () = hub.stop.cancelled(), if is_idle => return ReaderEvent::Stopped,
            }
        }
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
            if self.positions.contains_key(name) || self.excluded.contains(name) || !self.matches_pattern(name) {
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

/// Polls the cursors in turn.
fn poll_cursors(
    hub: &ChannelHubInner,
    cursors: &mut [(ChannelName, ChannelCursor)],
    turn: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<ReaderEvent> {
    let is_stopped = || hub.is_stopped.load(SeqCst);
    if is_stopped() {
        return Poll::Ready(ReaderEvent::Stopped);
    }
    let mut pages = cursors.iter().filter(|(_, cursor)| cursor.has_page()).count();
    loop {
        let mut is_refused = false;
        for offset in 0..cursors.len() {
            let index = (*turn + offset) % cursors.len();
            let cursor = &mut cursors[index].1;
            let others = pages - usize::from(cursor.has_page());
            let may_read = others < MAX_PAGES_PER_READER;
            if let Poll::Ready(told) = cursor.poll_next(may_read, cx) {
                *turn = index + 1;
                return Poll::Ready(told);
            }
            pages = others + usize::from(cursor.has_page());
            is_refused |= !may_read;
        }
        // Another cursor wakes it, unless all pages are done by now
        if !is_refused || pages >= MAX_PAGES_PER_READER {
            break;
        }
    }
    // From here on the hub wakes the cursors when it stops
    if is_stopped() { Poll::Ready(ReaderEvent::Stopped) } else { Poll::Pending }
}

/// Never returns for a reader without patterns.
async fn next_channel_names(
    names: &mut Option<broadcast::Receiver<Arc<Vec<ChannelName>>>>,
) -> Option<Arc<Vec<ChannelName>>> {
    let Some(names) = names else { return std::future::pending().await };
    match names.recv().await {
        Ok(heard) => Some(heard),
        Err(RecvError::Lagged(_)) => None,
        // The hub has stopped, which is noticed elsewhere
        Err(RecvError::Closed) => std::future::pending().await,
    }
}
