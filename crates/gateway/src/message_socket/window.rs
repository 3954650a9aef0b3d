//! A client that asked for a window is sent no more messages than it allows beyond those that it has acknowledged: browsers
//! take whatever comes, and gather it before their page has looked at it.

use std::collections::{HashMap, VecDeque};

use common::name::ChannelName;
use model::message::Position;

/// Messages that a window may have.
pub(crate) const LARGEST_WINDOW: usize = 1000;

/// What a client was sent and has not acknowledged.
pub(crate) struct Window {
    most: usize,
    count: usize,
    channels: HashMap<ChannelName, Sent>,
}

struct Sent {
    last: Position,
    open: VecDeque<Position>,
}

/// It was sent nothing that new.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotSent;

impl Window {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, count: 0, channels: HashMap::new() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.count >= self.most
    }

    pub(super) fn sent(&mut self, channel: &ChannelName, position: Position) {
        let new = || Sent { last: position, open: VecDeque::new() };
        let sent = self.channels.entry(channel.clone()).or_insert_with(new);
        sent.last = position;
        sent.open.push_back(position);
        self.count += 1;
    }

    /// Everything of a channel up to there is acknowledged. It may be so already.
    pub(super) fn acknowledge(&mut self, channel: &ChannelName, up_to: Position) -> Result<(), NotSent> {
        let sent = self.channels.get_mut(channel).filter(|sent| up_to <= sent.last).ok_or(NotSent)?;
        let before = sent.open.len();
        sent.open.retain(|position| *position > up_to);
        self.count -= before - sent.open.len();
        Ok(())
    }

    /// Channels that are read no more do not count.
    pub(super) fn forget(&mut self, is_read: impl Fn(&ChannelName) -> bool) {
        self.channels.retain(|channel, _| is_read(channel));
        self.count = self.channels.values().map(|sent| sent.open.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_full_until_enough_is_acknowledged() {
        let [a, b]: [ChannelName; 2] = ["a", "b"].map(|name| name.parse().expect("a name"));
        let at = |text: &str| text.parse::<Position>().expect("a position");
        let mut window = Window::new(3);
        for (channel, position) in [(&a, "1-0"), (&b, "1-0"), (&a, "1-1")] {
            assert!(!window.is_full());
            window.sent(channel, at(position));
        }
        assert!(window.is_full());
        assert_eq!(window.acknowledge(&b, at("1-1")), Err(NotSent));
        assert_eq!(window.acknowledge(&"c".parse().expect("a name"), at("1-0")), Err(NotSent));
        assert!(window.is_full());
        for _ in 0..2 {
            assert_eq!((window.acknowledge(&a, at("1-1")), window.count), (Ok(()), 1), "both, and once");
        }
        window.forget(|channel| channel == &a);
        assert_eq!(window.count, 0);
        assert_eq!(window.acknowledge(&b, at("1-0")), Err(NotSent));
    }
}
