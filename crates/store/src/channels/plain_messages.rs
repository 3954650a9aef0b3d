//! Messages of plain Redis publishers. Where a process subscribes to the plain name of a channel, it receives each of
//! Galley's messages there too: the script publishes the position, and right after that the body on the plain name. So a
//! body that follows a position may be a copy. Whether it is one is decided by the history: anybody can publish a
//! position.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
};

use super::encoded_message::EncodedMessage;
use crate::keys::TopicNames;
use common::name::ChannelName;
use model::message::Position;

/// Maximum number and bytes of messages that wait; the oldest are dropped.
const MAX_WAITING: usize = 1024;
const MAX_WAITING_BYTES: usize = 1 << 20;
/// How many of the last messages of the history are remembered.
const MAX_BODIES: usize = 1024;

/// Writes before each plain message the position that was received right before it on its channel. Needs all messages
/// in the order of arrival.
pub(super) struct PlainMessageTagger {
    plain_channels: HashSet<String>,
    /// Plain channel names by the name of their live channel.
    live_channels: HashMap<String, String>,
    /// The position just received: its channel and the position.
    last: Mutex<Option<(String, Position)>>,
}

impl PlainMessageTagger {
    pub(super) fn new(plain: &[ChannelName], topics: &TopicNames) -> Self {
        let plain_channels = plain.iter().map(ToString::to_string).collect();
        let live_channels = plain.iter().map(|name| (topics.live_messages(name), name.to_string())).collect();
        Self { plain_channels, live_channels, last: Mutex::default() }
    }

    /// The message as it is queued; none to queue it as it is.
    pub(super) fn tag(&self, channel: &str, payload: &[u8]) -> Option<Vec<u8>> {
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = self.live_channels.get(channel) {
            *last() = parse_position(payload).map(|position| (name.clone(), position));
            return None;
        }
        if !self.plain_channels.contains(channel) {
            return None;
        }
        let position = last().take().filter(|(name, _)| name == channel).map(|(_, position)| position);
        let tag = position.map(|position| position.to_string()).unwrap_or_default();
        Some([tag.as_bytes(), b" ", payload].concat())
    }
}

/// A position that was published.
pub(super) fn parse_position(payload: &[u8]) -> Option<Position> {
    std::str::from_utf8(payload).ok()?.parse().ok()
}

/// What a tagged message says: the position before it, and its body.
pub(super) fn split_tagged(payload: &[u8]) -> (Option<Position>, &[u8]) {
    let end = payload.iter().position(|byte| *byte == b' ').unwrap_or_default();
    (parse_position(&payload[..end]), payload.get(end + 1..).unwrap_or_default())
}

/// Plain messages of a channel that wait for the history: for what comes before them, and whether they are copies.
#[derive(Debug, Default)]
pub(super) struct WaitingPlainMessages {
    waiting: VecDeque<WaitingMessage>,
    bytes: usize,
    /// The last messages of the history, with a hash of the body of each.
    bodies: VecDeque<(Position, u64)>,
    /// The position of the last copy: positions on a connection only grow.
    last_copy: Option<Position>,
    hasher: RandomState,
}

#[derive(Debug)]
struct WaitingMessage {
    message: Arc<EncodedMessage>,
    copy_of: Option<Position>,
    hash: u64,
    /// The read of the history that was running or over when it came.
    came_in_read: u64,
}

impl WaitingPlainMessages {
    /// Remembers a message of the history.
    pub(super) fn note_stored(&mut self, position: Position, body: &[u8]) {
        if self.bodies.len() >= MAX_BODIES {
            self.bodies.pop_front();
        }
        self.bodies.push_back((position, self.hasher.hash_one(body)));
    }

    /// Adds a message that came in that read, or after it.
    pub(super) fn add(&mut self, message: Arc<EncodedMessage>, copy_of: Option<Position>, body: &[u8], read: u64) {
        self.bytes += message.size();
        let hash = self.hasher.hash_one(body);
        self.waiting.push_back(WaitingMessage { message, copy_of, hash, came_in_read: read });
        while self.waiting.len() > MAX_WAITING || self.bytes > MAX_WAITING_BYTES && self.waiting.len() > 1 {
            self.pop();
            metrics::counter!("galley_messages_dropped_total").increment(1);
        }
    }

    fn pop(&mut self) -> Option<WaitingMessage> {
        let first = self.waiting.pop_front()?;
        self.bytes -= first.message.size();
        Some(first)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes the messages that are no copies, once a read has got up to `head`.
    pub(super) fn take_ready(&mut self, head: Option<Position>, read: u64) -> Vec<Arc<EncodedMessage>> {
        let mut ready = Vec::new();
        while let Some(first) = self.waiting.front() {
            let is_read = first.copy_of.is_none_or(|position| head.is_some_and(|head| position <= head));
            // A position that a read does not find although it began later does not exist
            if !is_read && first.came_in_read >= read {
                break;
            }
            let Some(first) = self.pop() else { break };
            if !(is_read && self.is_copy(&first)) {
                ready.push(first.message);
            }
        }
        ready
    }

    fn is_copy(&mut self, message: &WaitingMessage) -> bool {
        let Some(position) = message.copy_of else { return false };
        if self.last_copy.is_some_and(|last| position <= last) {
            return false;
        }
        let stored = self.bodies.iter().rev().find(|(known, _)| *known == position);
        // A message that was trimmed before it was read is in a gap, of which readers learn
        let is_copy = stored.is_none_or(|(_, hash)| *hash == message.hash);
        if is_copy {
            self.last_copy = Some(position);
        }
        is_copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sequence: u64) -> Position {
        Position { epoch: 5, sequence }
    }

    #[test]
    fn only_a_message_right_behind_a_position_of_its_channel_is_tagged_with_it() {
        let name: ChannelName = "a".parse().expect("a name");
        let topics = TopicNames::of_database(5);
        let tagger = PlainMessageTagger::new(std::slice::from_ref(&name), &topics);
        let live = topics.live_messages(&name);
        let foreign = TopicNames::of_database(6).live_messages(&name);
        for (channel, payload, expected) in [
            ("a", &b"body"[..], Some((None, &b"body"[..]))),
            (&live, b"5-1", None),
            ("other", b"body", None),
            ("a", b"body", Some((Some(at(1)), b"body"))),
            ("a", b"5-9 body", Some((None, b"5-9 body"))),
            (&live, b"5-2", None),
            (&live, b"no position", None),
            ("a", b"", Some((None, b""))),
            (&foreign, b"5-3", None),
            ("a", b"x", Some((None, b"x"))),
        ] {
            let tagged = tagger.tag(channel, payload);
            assert_eq!(tagged.as_deref().map(split_tagged), expected, "{channel}");
        }
    }

    fn add(waiting: &mut WaitingPlainMessages, copy_of: Option<Position>, body: &str, read: u64) {
        let message = Arc::new(EncodedMessage::new("a".parse().expect("a name"), None, body));
        waiting.add(message, copy_of, body.as_bytes(), read);
    }

    fn take(waiting: &mut WaitingPlainMessages, head: u64, read: u64) -> Vec<String> {
        waiting.take_ready(Some(at(head)), read).iter().map(|message| message.json().to_owned()).collect()
    }

    #[test]
    fn a_message_is_a_copy_only_if_the_history_says_so_and_only_once() {
        let mut waiting = WaitingPlainMessages::default();
        for sequence in 1..=3 {
            waiting.note_stored(at(sequence), format!("stored {sequence}").as_bytes());
        }
        add(&mut waiting, Some(at(1)), "stored 1", 1);
        add(&mut waiting, None, "plain", 1);
        add(&mut waiting, Some(at(1)), "stored 1", 1);
        add(&mut waiting, Some(at(2)), "plain behind a false position", 1);
        add(&mut waiting, Some(at(3)), "stored 3", 1);
        let expected = ["plain", "stored 1", "plain behind a false position"];
        assert_eq!(take(&mut waiting, 3, 1), expected);
        assert!(waiting.is_empty());
    }

    #[test]
    fn a_position_that_no_later_read_finds_does_not_exist() {
        let mut waiting = WaitingPlainMessages::default();
        add(&mut waiting, Some(at(9)), "plain", 1);
        assert!(take(&mut waiting, 1, 1).is_empty());
        assert_eq!(take(&mut waiting, 1, 2), ["plain"]);
        // It was trimmed
        add(&mut waiting, Some(at(12)), "copy", 2);
        assert!(take(&mut waiting, 20, 3).is_empty() && waiting.is_empty());
        for number in 0..MAX_WAITING + 5 {
            add(&mut waiting, None, &number.to_string(), 3);
        }
        let kept = take(&mut waiting, 20, 3);
        assert_eq!((kept.len(), kept[0].as_str()), (MAX_WAITING, "5"));
    }
}
