//! Which messages a reader returns. Others are read all the same, so positions and gaps are those of all messages.

use std::sync::Arc;

use super::{ChannelReader, ReadChannel, ReadPattern};
use crate::channels::{
    cursor::ReaderEvent, encoded_message::EncodedMessage, hub::ChannelHub, shared_filter::SharedFilter,
};
use common::{channel_pattern::ChannelPattern, name::ChannelName};
use model::subscription::MessageFilter;

/// Maximum length of all filters of a reader, as text in bytes.
pub const MAX_FILTERS_BYTES: usize = 16 * 1024;

/// The filter of a name or pattern; none lets everything pass.
pub(super) type NamedFilter = Option<Arc<SharedFilter>>;

/// Filters of which one must let a message pass; none lets everything pass.
pub(super) type ChannelFilter = Option<Box<[Arc<SharedFilter>]>>;

/// The filters of a channel: a message is returned if its name or one of the patterns that match it asks for it.
pub(super) fn of_channel(name: &ChannelName, named: Option<&NamedFilter>, patterns: &[ReadPattern]) -> ChannelFilter {
    let matching = patterns.iter().filter(|read| read.pattern.matches(name)).map(|read| &read.filter);
    let all: Option<Vec<_>> = named.into_iter().chain(matching).cloned().collect();
    // A channel that is being added has none yet
    all.filter(|all| !all.is_empty()).map(Vec::into_boxed_slice)
}

impl ChannelHub {
    /// A filter for readers, shared with those that have the same; none if it matches everything.
    #[must_use]
    pub fn share_filter(&self, filter: MessageFilter) -> Option<Arc<SharedFilter>> {
        self.0.filters.share(filter)
    }
}

impl ReadChannel {
    /// Whether its filter does not let a message pass; then it is counted.
    pub(super) fn skips(&mut self, message: &EncodedMessage) -> bool {
        let is_skipped = self.filter.as_ref().is_some_and(|filters| !self.cursor.passes(filters, message));
        self.skipped = if is_skipped { self.skipped.saturating_add(1) } else { 0 };
        is_skipped
    }

    /// What to tell of messages that were skipped, if there were any since the last event.
    pub(super) fn take_skipped(&mut self) -> Option<ReaderEvent> {
        let count = std::mem::take(&mut self.skipped);
        (count > 0).then(|| ReaderEvent::Skipped { channel: self.name.clone(), position: self.position, count })
    }
}

impl ChannelReader {
    /// Whether a filter for a channel or pattern of this name still fits.
    #[must_use]
    pub fn has_room_for_filter(&self, name: &str, filter: Option<&Arc<SharedFilter>>) -> bool {
        let named = self.channels.iter().filter(|read| read.name.as_str() != name);
        let named = named.filter_map(|read| read.named.as_ref());
        let patterns = self.patterns.iter().filter(|read| read.pattern.to_string() != name).map(|read| &read.filter);
        let others: usize = named.chain(patterns).flatten().map(|filter| filter.text_len()).sum();
        others + filter.map_or(0, |filter| filter.text_len()) <= MAX_FILTERS_BYTES
    }

    /// Sets which messages are returned of a channel that was added by name; none: all.
    pub fn filter_channel(&mut self, channel: &ChannelName, filter: Option<Arc<SharedFilter>>) {
        let read = self.channels.iter_mut().find(|read| read.name == *channel);
        if let Some(named) = read.and_then(|read| read.named.as_mut()) {
            *named = filter;
        }
        self.update_filters();
    }

    /// Sets which messages are returned of the channels of a pattern that is read; none: all.
    pub fn filter_pattern(&mut self, pattern: &ChannelPattern, filter: Option<Arc<SharedFilter>>) {
        if let Some(read) = self.patterns.iter_mut().find(|read| read.pattern == *pattern) {
            read.filter = filter;
        }
        self.update_filters();
    }

    /// Sets which messages are returned of everything that is read: one filter for a whole stream.
    pub fn filter_all(&mut self, filter: Option<&Arc<SharedFilter>>) {
        self.channels.iter_mut().filter_map(|read| read.named.as_mut()).for_each(|named| *named = filter.cloned());
        self.patterns.iter_mut().for_each(|read| read.filter = filter.cloned());
        self.update_filters();
    }

    /// The next channel of which messages were skipped since its last event: a client that comes back goes on there.
    pub fn take_skipped(&mut self) -> Option<ReaderEvent> {
        self.channels.iter_mut().find_map(ReadChannel::take_skipped)
    }

    pub(super) fn name_channel(&mut self, channel: &ChannelName) {
        if let Some(read) = self.channels.iter_mut().find(|read| read.name == *channel) {
            read.named.get_or_insert_default();
            read.filter = of_channel(&read.name, read.named.as_ref(), &self.patterns);
        }
    }

    pub(super) fn update_filters(&mut self) {
        for read in &mut self.channels {
            read.filter = of_channel(&read.name, read.named.as_ref(), &self.patterns);
        }
    }
}
