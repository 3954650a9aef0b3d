//! Where the bare name of a channel is heard, for what others publish with plain Redis, a message of Galley's comes twice: with its
//! position, and right behind that byte for byte on the bare name. One script publishes both, so nothing of the channel comes
//! between them on a connection.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, PoisonError},
};

use crate::keys;
use common::name::ChannelName;
use model::message::Stored;

/// Tells copies from what others published, in the order in which all of it comes.
pub(super) struct Copies {
    bare: HashSet<String>,
    /// Names of channels by where they are heard with positions.
    live: HashMap<String, String>,
    /// The copy that comes next: its channel and what its bytes are.
    owed: Mutex<Option<(String, u64)>>,
}

impl Copies {
    pub(super) fn new(plain: &[ChannelName]) -> Self {
        let bare = plain.iter().map(ToString::to_string).collect();
        let live = plain.iter().map(|name| (keys::live(name), name.to_string())).collect();
        Self { bare, live, owed: Mutex::default() }
    }

    /// False for the copy of a message that came just before.
    pub(super) fn is_wanted(&self, channel: &str, payload: &[u8]) -> bool {
        let owed = || self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = self.live.get(channel) {
            *owed() = Stored::from_frame(payload).map(|message| (name.clone(), fingerprint(&message.body)));
            return true;
        }
        if !self.bare.contains(channel) {
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
        let copies = Copies::new(std::slice::from_ref(&name));
        let live = keys::live(&name);
        let frame = b"1-0 5 0 0\nbody";
        assert_eq!(Stored::from_frame(frame).map(|message| message.body), Some(b"body".to_vec()));
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
            assert_eq!(copies.is_wanted(channel, payload), is_wanted, "{channel}");
        }
    }
}
