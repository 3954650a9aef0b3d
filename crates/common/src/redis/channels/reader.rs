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
    hub::{ChannelHub, Inner, Seat},
};
use crate::{
    message::{ChannelPattern, Position, Resume},
    name::ChannelName,
    redis::{StoreResult, note_interruption},
    time::Millis,
};

/// Channels that one reader may read.
pub const MOST_CHANNELS: usize = 100;

/// Pages of histories that one reader has at a time, whichever channels they are of.
const OWN_PAGES: usize = 4;

/// More channels than one reader may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyRead;

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
    patterns: Vec<ChannelPattern>,
    names: Option<broadcast::Receiver<Arc<Vec<ChannelName>>>>,
    resume: Resume,
    left_out: BTreeSet<ChannelName>,
    newly_left_out: Vec<ChannelName>,
    /// Names heard of that have not been looked at: a call that is given up must not lose one.
    unseen: Vec<ChannelName>,
    is_list_due: bool,
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
            patterns: Vec::new(),
            names: None,
            resume: Resume::default(),
            left_out: BTreeSet::new(),
            newly_left_out: Vec::new(),
            unseen: Vec::new(),
            is_list_due: false,
        })
    }
}

impl Reader {
    /// Reads one more channel. From the moment this returns nothing escapes. One that is read already goes on as it is.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn add(&mut self, channel: &ChannelName, start: Start) -> StoreResult<Result<(), TooManyRead>> {
        if self.positions.contains_key(channel) {
            return Ok(Ok(()));
        }
        if self.cursors.len() >= MOST_CHANNELS {
            return Ok(Err(TooManyRead));
        }
        let hold = self.hub.follow(channel);
        let after = match start {
            Start::After(position) => position,
            Start::Since(at) => self.hub.redis.channel_since(channel, at).await?,
            Start::Now => {
                let heard = hold.0.ring().head;
                match heard {
                    Some(head) => head,
                    None => self.hub.redis.channel_head(channel).await?.unwrap_or(Position::START),
                }
            }
        };
        self.cursors.push((channel.clone(), Cursor::new(&self.hub, hold, after)));
        self.positions.insert(channel.clone(), after);
        Ok(Ok(()))
    }

    /// Reads all channels that fit a pattern: those that are there from `start`, those that come later from their
    /// beginning. Of a stream that goes on somewhere, `resume` says which had been there.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn add_pattern(
        &mut self,
        pattern: ChannelPattern,
        start: Start,
        resume: Option<&Resume>,
    ) -> StoreResult<Result<(), TooManyRead>> {
        self.names.get_or_insert_with(|| self.hub.names.subscribe());
        self.hub.hear_of_new();
        for channel in self.hub.redis.all_channels().await? {
            if !pattern.fits(&channel) {
                continue;
            }
            let start = match resume {
                Some(resume) => Start::After(resume.position(&channel).unwrap_or(Position::START)),
                None => start,
            };
            if self.add(&channel, start).await?.is_err() {
                return Ok(Err(TooManyRead));
            }
        }
        self.resume = resume.cloned().unwrap_or_default();
        self.patterns.push(pattern);
        Ok(Ok(()))
    }

    /// Reads a channel no more; false if it was not read.
    pub fn remove(&mut self, channel: &ChannelName) -> bool {
        self.cursors.retain(|(name, _)| name != channel);
        self.positions.remove(channel).is_some()
    }

    /// Reads what fits a pattern no more, unless it fits another one that is read; false if it was not read.
    pub fn remove_pattern(&mut self, pattern: &ChannelPattern) -> bool {
        let before = self.patterns.len();
        self.patterns.retain(|known| known != pattern);
        let fitting: Vec<ChannelName> = self.positions.keys().filter(|name| pattern.fits(name)).cloned().collect();
        for channel in fitting {
            if !self.patterns.iter().any(|other| other.fits(&channel)) {
                self.remove(&channel);
            }
        }
        self.patterns.len() < before
    }

    /// What is read, and where.
    #[must_use]
    pub fn positions(&self) -> &BTreeMap<ChannelName, Position> {
        &self.positions
    }

    /// What comes next. A call that is given up loses nothing.
    pub async fn next(&mut self) -> Told {
        loop {
            if let Err(error) = self.join_new().await {
                // The next sweep names them again
                note_interruption("joining channels", &error);
                self.unseen.clear();
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
                    Some(names) => self.note_names(&names),
                    None => self.is_list_due = true,
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

    fn note_names(&mut self, names: &[ChannelName]) {
        let is_new = |name: &&ChannelName| {
            !self.positions.contains_key(*name)
                && !self.left_out.contains(*name)
                && self.patterns.iter().any(|pattern| pattern.fits(name))
        };
        self.unseen = names.iter().filter(is_new).chain(&self.unseen).cloned().collect();
    }

    /// Channels that are new and fit join from their beginning.
    async fn join_new(&mut self) -> StoreResult<()> {
        if self.is_list_due {
            let names = self.hub.redis.all_channels().await?;
            self.is_list_due = false;
            self.note_names(&names);
        }
        while let Some(name) = self.unseen.last().cloned() {
            let start = self.resume.position(&name).unwrap_or(Position::START);
            if self.add(&name, Start::After(start)).await?.is_err() && self.left_out.insert(name.clone()) {
                self.newly_left_out.push(name);
            }
            self.unseen.pop();
        }
        Ok(())
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
