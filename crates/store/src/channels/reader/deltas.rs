//! Of which channels a reader gets differences instead of whole messages. A whole message comes first, also after a gap: the
//! next one may be its difference from that. Messages without a position are whole, and nothing is a difference from them.

use std::sync::Arc;

use super::{ChannelReader, ReadChannel, ReadPattern};
use crate::channels::{cursor::ReaderEvent, encoded_message::EncodedMessage};
use common::{channel_pattern::ChannelPattern, name::ChannelName};
use model::message::Position;

/// From which message the next one is a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeltaBase {
    /// No differences are wanted.
    Unwanted,
    /// From none: the next message is whole.
    Nothing,
    /// From the one at this position, which the reader returned.
    Message(Position),
}

impl DeltaBase {
    fn update(&mut self, is_wanted: bool) {
        match (is_wanted, *self) {
            (false, _) => *self = Self::Unwanted,
            (true, Self::Unwanted) => *self = Self::Nothing,
            (true, _) => {}
        }
    }
}

fn is_wanted_by_pattern(name: &ChannelName, patterns: &[ReadPattern]) -> bool {
    patterns.iter().any(|read| read.wants_delta && read.pattern.matches(name))
}

/// Of a channel that patterns match, or that is being added by name.
pub(super) fn of_new_channel(name: &ChannelName, patterns: &[ReadPattern]) -> DeltaBase {
    if is_wanted_by_pattern(name, patterns) { DeltaBase::Nothing } else { DeltaBase::Unwanted }
}

impl ReadChannel {
    /// Replaces a message by its difference from the one before, if that is wanted and shorter.
    pub(super) fn replace_with_delta(&mut self, event: &mut ReaderEvent, message_head: &'static str) {
        if self.delta == DeltaBase::Unwanted {
            return;
        }
        match event {
            ReaderEvent::Message(message) => {
                if let Some(delta) = self.next_delta(message, message_head) {
                    let saved = message.event_len() - delta.event_len();
                    metrics::counter!("galley_message_deltas_total").increment(1);
                    metrics::counter!("galley_message_delta_saved_bytes_total").increment(saved as u64);
                    *message = delta;
                }
            }
            ReaderEvent::Gap { .. } => self.delta = DeltaBase::Nothing,
            _ => {}
        }
    }

    fn next_delta(&mut self, message: &Arc<EncodedMessage>, message_head: &'static str) -> Option<Arc<EncodedMessage>> {
        let before = std::mem::replace(&mut self.delta, DeltaBase::Message(message.position?));
        let delta = match before {
            DeltaBase::Message(base) => self.cursor.delta(base, message, message_head),
            _ => None,
        };
        self.cursor.keep_base(message);
        delta
    }
}

impl ChannelReader {
    /// Says what messages begin with for the client, in place of their first bracket.
    pub fn set_message_head(&mut self, head: &'static str) {
        self.message_head = head;
    }

    /// Sets whether a channel that was added by name is returned as differences. The next message is whole.
    pub fn set_channel_delta(&mut self, channel: &ChannelName, is_wanted: bool) {
        if let Some(read) = self.channels.iter_mut().find(|read| read.name == *channel) {
            (read.named_delta, read.delta) = (is_wanted, DeltaBase::Unwanted);
        }
        self.update_deltas();
    }

    /// Sets whether the channels of a pattern that is read are returned as differences. Their next messages are whole.
    pub fn set_pattern_delta(&mut self, pattern: &ChannelPattern, is_wanted: bool) {
        if let Some(read) = self.patterns.iter_mut().find(|read| read.pattern == *pattern) {
            read.wants_delta = is_wanted;
        }
        let of_pattern = self.channels.iter_mut().filter(|read| pattern.matches(&read.name));
        of_pattern.for_each(|read| read.delta = DeltaBase::Unwanted);
        self.update_deltas();
    }

    /// Returns everything that is read as differences: a whole stream.
    pub fn want_deltas(&mut self) {
        self.channels.iter_mut().for_each(|read| read.named_delta = true);
        self.patterns.iter_mut().for_each(|read| read.wants_delta = true);
        self.update_deltas();
    }

    pub(super) fn update_deltas(&mut self) {
        let patterns = &self.patterns;
        for read in &mut self.channels {
            read.delta.update(read.named_delta || is_wanted_by_pattern(&read.name, patterns));
        }
    }
}
