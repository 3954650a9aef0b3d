//! A window limits the messages that a client has received and not acknowledged. Browsers need it: they receive and
//! buffer everything, whether or not their page keeps up.

use std::collections::{HashMap, VecDeque};

use common::name::ChannelName;
use model::message::Position;

/// The largest window, in messages.
pub(crate) const MAX_WINDOW: usize = 1000;

/// The messages that a client was sent and has not acknowledged.
pub(crate) struct AckWindow {
    max_unacked: usize,
    unacked_count: usize,
    channels: HashMap<ChannelName, ChannelUnacked>,
}

struct ChannelUnacked {
    last_sent: Position,
    unacked: VecDeque<Position>,
}

/// The client acknowledged a message that it was not sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnknownAck;

impl AckWindow {
    pub(crate) fn new(max_unacked: usize) -> Self {
        Self { max_unacked, unacked_count: 0, channels: HashMap::new() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.unacked_count >= self.max_unacked
    }

    pub(super) fn record_sent(&mut self, channel: &ChannelName, position: Position) {
        let new = || ChannelUnacked { last_sent: position, unacked: VecDeque::new() };
        let sent = self.channels.entry(channel.clone()).or_insert_with(new);
        sent.last_sent = position;
        sent.unacked.push_back(position);
        self.unacked_count += 1;
    }

    /// Acknowledges every message of a channel up to a position. Repeating it changes nothing.
    pub(super) fn acknowledge(&mut self, channel: &ChannelName, up_to: Position) -> Result<(), UnknownAck> {
        let sent = self.channels.get_mut(channel).filter(|sent| up_to <= sent.last_sent).ok_or(UnknownAck)?;
        let before = sent.unacked.len();
        sent.unacked.retain(|position| *position > up_to);
        self.unacked_count -= before - sent.unacked.len();
        Ok(())
    }

    /// Forgets channels that the client no longer reads.
    pub(super) fn retain_channels(&mut self, is_read: impl Fn(&ChannelName) -> bool) {
        self.channels.retain(|channel, _| is_read(channel));
        self.unacked_count = self.channels.values().map(|sent| sent.unacked.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_full_until_enough_is_acknowledged() {
        let [a, b]: [ChannelName; 2] = ["a", "b"].map(|name| name.parse().expect("a name"));
        let at = |text: &str| text.parse::<Position>().expect("a position");
        let mut window = AckWindow::new(3);
        for (channel, position) in [(&a, "1-0"), (&b, "1-0"), (&a, "1-1")] {
            assert!(!window.is_full());
            window.record_sent(channel, at(position));
        }
        assert!(window.is_full());
        assert_eq!(window.acknowledge(&b, at("1-1")), Err(UnknownAck));
        assert_eq!(window.acknowledge(&"c".parse().expect("a name"), at("1-0")), Err(UnknownAck));
        assert!(window.is_full());
        for _ in 0..2 {
            assert_eq!((window.acknowledge(&a, at("1-1")), window.unacked_count), (Ok(()), 1), "both, and once");
        }
        window.retain_channels(|channel| channel == &a);
        assert_eq!(window.unacked_count, 0);
        assert_eq!(window.acknowledge(&b, at("1-0")), Err(UnknownAck));
    }
}
