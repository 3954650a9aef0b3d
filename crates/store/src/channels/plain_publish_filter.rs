//! Removes copies from plain channels. Where a process subscribes to the plain name of a channel, it receives each of
//! Galley's messages twice: with its position, and right after that unchanged on the plain name. One script publishes
//! both, so no other message of the channel comes between them on a connection.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, PoisonError},
};

use crate::keys;
use common::name::ChannelName;
use model::message::StoredMessage;

/// Tells copies from messages of plain Redis publishers. Needs all messages in the order of arrival.
pub(super) struct PlainPublishFilter {
    plain_channels: HashSet<String>,
    /// Plain channel names by the name of their live channel.
    live_channels: HashMap<String, String>,
    /// The copy that is expected next: its channel and a hash of its bytes.
    expected_copy: Mutex<Option<(String, u64)>>,
}

impl PlainPublishFilter {
    pub(super) fn new(plain: &[ChannelName]) -> Self {
        let plain_channels = plain.iter().map(ToString::to_string).collect();
        let live_channels = plain.iter().map(|name| (keys::live_messages(name), name.to_string())).collect();
        Self { plain_channels, live_channels, expected_copy: Mutex::default() }
    }

    /// False for the copy of the message received just before.
    pub(super) fn accepts(&self, channel: &str, payload: &[u8]) -> bool {
        let owed = || self.expected_copy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = self.live_channels.get(channel) {
            *owed() = StoredMessage::from_frame(payload).map(|message| (name.clone(), fingerprint(&message.body)));
            return true;
        }
        if !self.plain_channels.contains(channel) {
            return true;
        }
        let is_copy = owed().take().is_some_and(|(name, bytes)| name == channel && bytes == fingerprint(payload));
        !is_copy
    }
}

fn fingerprint(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_copy_right_behind_a_message_is_not_wanted() {
        let name: ChannelName = "a".parse().expect("a name");
        let copies = PlainPublishFilter::new(std::slice::from_ref(&name));
        let live = keys::live_messages(&name);
        let frame = b"1-0 5 0 0\nbody";
        assert_eq!(StoredMessage::from_frame(frame).map(|message| message.body), Some(b"body".to_vec()));
        for (channel, payload, is_wanted) in [
            ("a", &b"body"[..], true),
            (&live, frame, true),
            ("other", b"body", true),
            ("a", b"body", false),
            ("a", b"body", true),
            (&live, frame, true),
            ("a", b"else", true),
            ("a", b"body", true),
            (&live, b"no frame", true),
            ("a", b"no frame", true),
        ] {
            assert_eq!(copies.accepts(channel, payload), is_wanted, "{channel}");
        }
    }
}
