//! One reader of any number of channels, which may come and go; those that fit a pattern come by themselves.

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

/// Channels that one reader may read.
pub const MAX_CHANNELS: usize = 100;
/// Patterns that one reader may read.
pub const MAX_PATTERNS: usize = 100;
/// Channels of patterns that one reader may have left.
pub const MAX_EXCLUDED: usize = 1000;

/// Pages of histories that one reader has at a time, whichever channels they are of.
const MAX_PAGES_PER_READER: usize = 4;

/// More channels, or patterns, than one reader may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderLimitExceeded;

/// What became of a channel that is to be read no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoveChannelResult {
    /// It is not read any more, also if a pattern fits it.
    Removed,
    /// It was not read.
    NotRead,
    /// A pattern fits it, and [`MOST_LEFT`] channels of patterns have been left: it is still read.
    TooManyExcluded,
}

/// Where to begin in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReaderStart {
    /// With what is published from now on.
    Now,
    /// Behind a position. What is missing there is told as a gap.
    After(Position),
    /// With what was published at that time and is kept.
    Since(Millis),
}

/// A reader. What it holds of messages is bounded, however slow it is.
pub struct ChannelReader {
    hub: Arc<ChannelHubInner>,
    cursors: Vec<(ChannelName, ChannelCursor)>,
    /// The cursor that is asked first.
    next_cursor: usize,
    positions: BTreeMap<ChannelName, Position>,
    /// Those that were asked for by name: they stay when a pattern goes.
    named_channels: BTreeSet<ChannelName>,
    patterns: Vec<ChannelPattern>,
    /// Left, though a pattern fits them.
    excluded: BTreeSet<ChannelName>,
    channel_names: Option<broadcast::Receiver<Arc<Vec<ChannelName>>>>,
    resume: ResumeToken,
    /// The channels there are have been looked at for patterns. Until then `resume` says where it is in those that fit.
    is_list_loaded: bool,
    is_list_due: bool,
    skipped: BTreeSet<ChannelName>,
    newly_skipped: Vec<ChannelName>,
    _permit: ReaderPermit,
}

impl ChannelHub {
    /// A reader that reads no channel yet.
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
    /// Reads one more channel. From the moment this returns nothing escapes. One that is read already goes on as it is.
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

    /// Reads all channels that fit a pattern: those that are there from `start`, those that come later from their
    /// beginning. One that is read already goes on as it is, and so does the pattern. What is refused, or fails, changes
    /// nothing.
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
        // Before the list is read, so that none comes in between
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

    /// Reads the channels that fit patterns, at most [`MOST_PATTERNS`], from where another stream was; those that it did not
    /// have have come since then. Redis may be away: then they join when it is back. If they are too many those go on that
    /// the other stream had.
    pub fn resume_patterns(&mut self, patterns: Vec<ChannelPattern>, resume: ResumeToken) {
        self.subscribe_to_new_channels();
        (self.patterns, self.resume) = (patterns, resume);
        (self.is_list_loaded, self.is_list_due) = (false, true);
    }

    /// Reads a channel no more, whatever patterns fit it.
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

    /// Reads what fits a pattern no more, unless it fits another one that is read or was asked for by name; false if it was
    /// not read.
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
            ReaderStart::Since(at) => self.hub.redis.retained_channel_position_at(channel, at).await?,
            ReaderStart::Now => {
                let heard = hold.0.ring().head;
                match heard {
                    Some(head) => head,
                    None => self.hub.redis.channel_head(channel).await?.unwrap_or(Position::START),
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

    /// Those that were left out join when there is room.
    fn schedule_skipped(&mut self) {
        self.is_list_due |= !self.skipped.is_empty() && !self.is_full();
    }

    /// What is read, and where.
    #[must_use]
    pub fn positions(&self) -> &BTreeMap<ChannelName, Position> {
        &self.positions
    }

    /// The id of a stream that has come this far.
    #[must_use]
    pub fn resume_id(&self) -> String {
        let unlisted = (!self.is_list_loaded).then_some(&self.resume);
        ResumeToken::encode(self.positions.iter(), unlisted)
    }

    /// Keeps nothing ready, as nobody asks for what comes next for a while.
    pub fn discard_pending(&mut self) {
        for (_, cursor) in &mut self.cursors {
            cursor.discard_pending();
        }
    }

    /// What comes next. A call that is given up loses nothing.
    pub async fn next(&mut self) -> ReaderEvent {
        loop {
            if self.is_list_due {
                match self.hub.readable_channels().await {
                    Ok(names) => self.process_channel_list(&names),
                    // The next sweep names them, or whoever hears of channels again
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
                // Nobody else would wake it
                () = hub.stop.cancelled(), if is_idle => return ReaderEvent::Stopped,
            }
        }
    }

    fn process_channel_list(&mut self, names: &[ChannelName]) {
        let there: BTreeSet<&ChannelName> = names.iter().collect();
        self.skipped.retain(|name| there.contains(name));
        // What the other stream had comes first: the places may not suffice
        let (known, new): (Vec<&ChannelName>, Vec<&ChannelName>) =
            names.iter().partition(|name| self.resume.position(name).is_some());
        self.add_matching(known.into_iter().chain(new));
        self.is_list_loaded = true;
    }

    /// Channels that are new and fit join from their beginning.
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
        // Names that are gone are forgotten when all are looked at
        self.is_list_due |= self.skipped.len() as u64 > self.hub.settings.max_channels;
    }
}

/// What comes next in any of them, each in its turn.
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
        // The others wake it, unless they are done with theirs by now
        if !is_refused || pages >= MAX_PAGES_PER_READER {
            break;
        }
    }
    // From here on the cursors are woken when it is set
    if is_stopped() { Poll::Ready(ReaderEvent::Stopped) } else { Poll::Pending }
}

/// Never comes for who reads no pattern.
async fn next_channel_names(
    names: &mut Option<broadcast::Receiver<Arc<Vec<ChannelName>>>>,
) -> Option<Arc<Vec<ChannelName>>> {
    let Some(names) = names else { return std::future::pending().await };
    match names.recv().await {
        Ok(heard) => Some(heard),
        Err(RecvError::Lagged(_)) => None,
        // With the hub, which is found out elsewhere
        Err(RecvError::Closed) => std::future::pending().await,
    }
}
