//! What comes on the bare name of a channel: a copy of each message of Galley's, which readers have with its position, and what
//! others publish with plain Redis.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use super::ring::Shown;

/// Bytes that wait until it is known whose they are.
const MOST_HELD_BYTES: usize = 1 << 20;
/// Messages of the history whose copies may still come.
const MOST_READ: usize = 256;

/// What is known of the messages on a bare name.
#[derive(Debug)]
pub(super) struct Plain {
    /// Whether the bare name is heard at all.
    is_heard: bool,
    /// The message that comes next is the one that was just heard with its position.
    owed: Option<u64>,
    /// Came while the history is read: what had a position and was not heard may be among them.
    held: Vec<(u64, Arc<Shown>)>,
    /// What was found there.
    read: VecDeque<u64>,
}

impl Plain {
    pub(super) fn new(is_heard: bool) -> Self {
        Self { is_heard, owed: None, held: Vec::new(), read: VecDeque::new() }
    }

    /// A message was heard with its position: its copy comes next.
    pub(super) fn heard(&mut self, body: &[u8]) {
        if self.is_heard {
            self.owed = Some(fingerprint(body));
        }
    }

    /// Whether this is the copy of the message that was heard just before.
    pub(super) fn is_copy(&mut self, body: &[u8]) -> bool {
        self.owed.take() == Some(fingerprint(body))
    }

    /// Keeps a message until the history has been read, unless it is a copy of what was found there; false if there is no room.
    pub(super) fn hold(&mut self, body: &[u8], shown: &Arc<Shown>) -> bool {
        let fingerprint = fingerprint(body);
        if let Some(index) = self.read.iter().position(|read| *read == fingerprint) {
            self.read.remove(index);
            return true;
        }
        let held: usize = self.held.iter().map(|(_, shown)| shown.json().len()).sum();
        let has_room = held + shown.json().len() <= MOST_HELD_BYTES;
        if has_room {
            self.held.push((fingerprint, shown.clone()));
        }
        has_room
    }

    /// A message was read in the history: its copy may be among what is held, or still come.
    pub(super) fn read(&mut self, body: &[u8]) {
        if !self.is_heard {
            return;
        }
        let read = fingerprint(body);
        if let Some(index) = self.held.iter().position(|(held, _)| *held == read) {
            self.held.remove(index);
            return;
        }
        if self.read.len() >= MOST_READ {
            self.read.pop_front();
        }
        self.read.push_back(read);
    }

    /// The history has been read: what is left is somebody else's.
    pub(super) fn take_held(&mut self) -> impl Iterator<Item = Arc<Shown>> + use<> {
        self.read.clear();
        std::mem::take(&mut self.held).into_iter().map(|(_, shown)| shown)
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

    fn shown(body: &str) -> Arc<Shown> {
        Arc::new(Shown::new("c".parse().expect("a name"), None, body))
    }

    #[test]
    fn a_copy_is_known_by_what_was_heard_before_or_read_since() {
        let mut plain = Plain::new(true);
        plain.heard(b"a");
        assert!(plain.is_copy(b"a"));
        assert!(!plain.is_copy(b"a"), "once");
        for body in ["a", "b", "b"] {
            assert!(plain.hold(body.as_bytes(), &shown(body)));
        }
        plain.read(b"b");
        plain.read(b"other");
        let left: Vec<String> = plain.take_held().map(|shown| shown.json().to_owned()).collect();
        assert_eq!(left, ["a", "b"]);
        plain.read(b"c");
        assert!(plain.hold(b"c", &shown("c")), "its copy came later");
        assert_eq!(plain.take_held().count(), 0);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut plain = Plain::new(true);
        let body = "x".repeat(MOST_HELD_BYTES / 2);
        let held = (0..5).filter(|_| plain.hold(body.as_bytes(), &shown(&body))).count();
        assert_eq!(held, 2);
    }
}
