//! One reader of any number of channels, which may come and go; those that fit a pattern come by themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    sync::{Arc, atomic::Ordering::SeqCst},
    task::{Context, Poll},
};

use tokio::sync::broadcast::{self, error::RecvError};

use super::{
    cursor::{Cursor, Told},
    hub::{ChannelHub, Hold, Inner},
    reader_counts::Seat,
};
use crate::{StoreResult, note_interruption};
use common::{channel_pattern::ChannelPattern, name::ChannelName, time::Millis};
use model::message::{Position, Resume};

/// Channels that one reader may read.
pub const MOST_CHANNELS: usize = 100;
/// Patterns that one reader may read.
pub const MOST_PATTERNS: usize = 100;
/// Channels of patterns that one reader may have left.
pub const MOST_LEFT: usize = 1000;

/// Pages of histories that one reader has at a time, whichever channels they are of.
const OWN_PAGES: usize = 4;

/// More channels, or patterns, than one reader may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyRead;

/// What became of a channel that is to be read no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It is not read any more, also if a pattern fits it.
    Left,
    /// It was not read.
    NotRead,
    /// A pattern fits it, and [`MOST_LEFT`] channels of patterns have been left: it is still read.
    TooMany,
}

/// Where to begin in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With what is published from now on.
    Now,
    /// Behind a position. What is missing there is told as a gap.
    After(Position),
    /// With what was published at that time and is kept.
    Since(Millis),
}

/// A reader. What it holds of messages is bounded, however slow it is.
pub struct Reader {
    hub: Arc<Inner>,
    cursors: Vec<(ChannelName, Cursor)>,
    /// The cursor that is asked first.
    turn: usize,
    positions: BTreeMap<ChannelName, Position>,
    /// Those that were asked for by name: they stay when a pattern goes.
    by_name: BTreeSet<ChannelName>,
    patterns: Vec<ChannelPattern>,
    /// Left, though a pattern fits them.
    left: BTreeSet<ChannelName>,
    names: Option<broadcast::Receiver<Arc<Vec<ChannelName>>>>,
    resume: Resume,
    /// The channels there are have been looked at for patterns. Until then `resume` says where it is in those that fit.
    is_listed: bool,
    is_list_due: bool,
    left_out: BTreeSet<ChannelName>,
    newly_left_out: Vec<ChannelName>,
    _seat: Seat,
}

impl ChannelHub {
    /// A reader of nothing yet; none if there are as many as there may be.
    #[must_use]
    pub fn reader(&self) -> Option<Reader> {
        Some(Reader {
            _seat: self.0.take_seat()?,
            hub: self.0.clone(),
            cursors: Vec::new(),
            turn: 0,
            positions: BTreeMap::new(),
            by_name: BTreeSet::new(),
            patterns: Vec::new(),
            left: BTreeSet::new(),
            names: None,
            resume: Resume::default(),
            is_listed: true,
            is_list_due: false,
            left_out: BTreeSet::new(),
            newly_left_out: Vec::new(),
        })
    }
}

impl Reader {
    /// Reads one more channel. From the moment this returns nothing escapes. One that is read already goes on as it is.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn add(&mut self, channel: &ChannelName, start: Start) -> StoreResult<Result<(), TooManyRead>> {
        if !self.positions.contains_key(channel) {
            if self.is_full() {
                return Ok(Err(TooManyRead));
            }
            self.begin(channel, start).await?;
            self.left.remove(channel);
            self.left_out.remove(channel);
        }
        self.by_name.insert(channel.clone());
        Ok(Ok(()))
    }

    /// Reads all channels that fit a pattern: those that are there from `start`, those that come later from their
    /// beginning. One that is read already goes on as it is, and so does the pattern. What is refused, or fails, changes
    /// nothing.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn add_pattern(&mut self, pattern: ChannelPattern, start: Start) -> StoreResult<Result<(), TooManyRead>> {
        if self.patterns.contains(&pattern) {
            return Ok(Ok(()));
        }
        if self.patterns.len() >= MOST_PATTERNS {
            return Ok(Err(TooManyRead));
        }
        // Before the list is read, so that none comes in between
        self.hear_of_new();
        let mut new = self.hub.all_names().await?;
        new.retain(|channel| pattern.fits(channel) && !self.positions.contains_key(channel));
        if self.cursors.len() + new.len() > MOST_CHANNELS {
            return Ok(Err(TooManyRead));
        }
        for channel in &new {
            if let Err(error) = self.begin(channel, start).await {
                for channel in &new {
                    self.drop_channel(channel);
                }
                return Err(error);
            }
        }
        self.left.retain(|channel| !pattern.fits(channel));
        self.patterns.push(pattern);
        Ok(Ok(()))
    }

    /// Reads the channels that fit patterns, at most [`MOST_PATTERNS`], from where another stream was; those that it did not
    /// have have come since then. Redis may be away: then they join when it is back. If they are too many those go on that
    /// the other stream had.
    pub fn go_on(&mut self, patterns: Vec<ChannelPattern>, resume: Resume) {
        self.hear_of_new();
        (self.patterns, self.resume) = (patterns, resume);
        (self.is_listed, self.is_list_due) = (false, true);
    }

    /// Reads a channel no more, whatever patterns fit it.
    pub fn remove(&mut self, channel: &ChannelName) -> Left {
        if !self.positions.contains_key(channel) {
            return Left::NotRead;
        }
        if self.fits(channel) {
            if self.left.len() >= MOST_LEFT {
                return Left::TooMany;
            }
            self.left.insert(channel.clone());
        }
        self.drop_channel(channel);
        self.use_free_places();
        Left::Left
    }

    /// Reads what fits a pattern no more, unless it fits another one that is read or was asked for by name; false if it was
    /// not read.
    pub fn remove_pattern(&mut self, pattern: &ChannelPattern) -> bool {
        let before = self.patterns.len();
        self.patterns.retain(|known| known != pattern);
        if self.patterns.len() == before {
            return false;
        }
        let goes = |name: &&ChannelName| !self.by_name.contains(*name) && !self.fits(name);
        let going: Vec<ChannelName> = self.positions.keys().filter(goes).cloned().collect();
        for channel in &going {
            self.drop_channel(channel);
        }
        let patterns = &self.patterns;
        let still_fits = |name: &ChannelName| patterns.iter().any(|pattern| pattern.fits(name));
        self.left.retain(still_fits);
        self.left_out.retain(still_fits);
        self.use_free_places();
        true
    }

    fn is_full(&self) -> bool {
        self.cursors.len() >= MOST_CHANNELS
    }

    fn fits(&self, channel: &ChannelName) -> bool {
        self.patterns.iter().any(|pattern| pattern.fits(channel))
    }

    fn hear_of_new(&mut self) {
        self.names.get_or_insert_with(|| self.hub.names.subscribe());
        self.hub.hear_of_new();
    }

    async fn begin(&mut self, channel: &ChannelName, start: Start) -> StoreResult<()> {
        let hold = self.hub.follow(channel);
        let after = match start {
            Start::After(position) => position,
            Start::Since(at) => self.hub.redis.channel_kept_since(channel, at).await?,
            Start::Now => {
                let heard = hold.0.ring().head;
                match heard {
                    Some(head) => head,
                    None => self.hub.redis.channel_head(channel).await?.unwrap_or(Position::START),
                }
            }
        };
        self.read_on(channel, hold, after);
        Ok(())
    }

    fn read_on(&mut self, channel: &ChannelName, hold: Hold, after: Position) {
        self.cursors.push((channel.clone(), Cursor::new(&self.hub, hold, after)));
        self.positions.insert(channel.clone(), after);
    }

    fn drop_channel(&mut self, channel: &ChannelName) {
        self.cursors.retain(|(name, _)| name != channel);
        self.positions.remove(channel);
        self.by_name.remove(channel);
    }

    /// Those that were left out join when there is room.
    fn use_free_places(&mut self) {
        self.is_list_due |= !self.left_out.is_empty() && !self.is_full();
    }

    /// What is read, and where.
    #[must_use]
    pub fn positions(&self) -> &BTreeMap<ChannelName, Position> {
        &self.positions
    }

    /// The id of a stream that has come this far.
    #[must_use]
    pub fn resume_id(&self) -> String {
        let unlisted = (!self.is_listed).then_some(&self.resume);
        Resume::id(self.positions.iter(), unlisted)
    }

    /// Keeps nothing ready, as nobody asks for what comes next for a while.
    pub fn rest(&mut self) {
        for (_, cursor) in &mut self.cursors {
            cursor.rest();
        }
    }

    /// What comes next. A call that is given up loses nothing.
    pub async fn next(&mut self) -> Told {
        loop {
            if self.is_list_due {
                match self.hub.all_names().await {
                    Ok(names) => self.look_at_all(&names),
                    // The next sweep names them, or whoever hears of channels again
                    Err(error) => note_interruption("joining channels", &error),
                }
                self.is_list_due = false;
            }
            if let Some(channel) = self.newly_left_out.pop() {
                return Told::LeftOut(channel);
            }
            let Self { hub, names, cursors, turn, .. } = self;
            let is_idle = cursors.is_empty();
            tokio::select! {
                biased;
                heard = new_names(names) => match heard {
                    Some(names) if self.is_listed => self.join_new(names.iter()),
                    _ => self.is_list_due = true,
                },
                told = poll_fn(|cx| poll_all(hub, cursors, turn, cx)) => {
                    if let Told::Message(message) = &told
                        && let Some(position) = message.position
                        && let Some(known) = self.positions.get_mut(&message.channel)
                    {
                        *known = position;
                    }
                    return told;
                }
                // Nobody else would wake it
                () = hub.stop.cancelled(), if is_idle => return Told::Stopped,
            }
        }
    }

    fn look_at_all(&mut self, names: &[ChannelName]) {
        let there: BTreeSet<&ChannelName> = names.iter().collect();
        self.left_out.retain(|name| there.contains(name));
        // What the other stream had comes first: the places may not suffice
        let (known, new): (Vec<&ChannelName>, Vec<&ChannelName>) =
            names.iter().partition(|name| self.resume.position(name).is_some());
        self.join_new(known.into_iter().chain(new));
        self.is_listed = true;
    }

    /// Channels that are new and fit join from their beginning.
    fn join_new<'a>(&mut self, names: impl Iterator<Item = &'a ChannelName>) {
        for name in names {
            if self.positions.contains_key(name) || self.left.contains(name) || !self.fits(name) {
                continue;
            }
            if self.is_full() {
                if self.left_out.insert(name.clone()) {
                    self.newly_left_out.push(name.clone());
                }
                continue;
            }
            self.left_out.remove(name);
            let after = self.resume.position(name).unwrap_or(Position::START);
            let hold = self.hub.follow(name);
            self.read_on(name, hold, after);
        }
        // Names that are gone are forgotten when all are looked at
        self.is_list_due |= self.left_out.len() as u64 > self.hub.settings.max_channels;
    }
}

/// What comes next in any of them, each in its turn.
fn poll_all(hub: &Inner, cursors: &mut [(ChannelName, Cursor)], turn: &mut usize, cx: &mut Context<'_>) -> Poll<Told> {
    let is_stopped = || hub.is_stopped.load(SeqCst);
    if is_stopped() {
        return Poll::Ready(Told::Stopped);
    }
    let mut pages = cursors.iter().filter(|(_, cursor)| cursor.has_page()).count();
    loop {
        let mut is_refused = false;
        for offset in 0..cursors.len() {
            let index = (*turn + offset) % cursors.len();
            let cursor = &mut cursors[index].1;
            let others = pages - usize::from(cursor.has_page());
            let may_read = others < OWN_PAGES;
            if let Poll::Ready(told) = cursor.poll_next(may_read, cx) {
                *turn = index + 1;
                return Poll::Ready(told);
            }
            pages = others + usize::from(cursor.has_page());
            is_refused |= !may_read;
        }
        // The others wake it, unless they are done with theirs by now
        if !is_refused || pages >= OWN_PAGES {
            break;
        }
    }
    // From here on the cursors are woken when it is set
    if is_stopped() { Poll::Ready(Told::Stopped) } else { Poll::Pending }
}

/// Never comes for who reads no pattern.
async fn new_names(names: &mut Option<broadcast::Receiver<Arc<Vec<ChannelName>>>>) -> Option<Arc<Vec<ChannelName>>> {
    let Some(names) = names else { return std::future::pending().await };
    match names.recv().await {
        Ok(heard) => Some(heard),
        Err(RecvError::Lagged(_)) => None,
        // With the hub, which is found out elsewhere
        Err(RecvError::Closed) => std::future::pending().await,
    }
}
