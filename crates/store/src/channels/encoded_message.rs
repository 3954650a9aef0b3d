//! A message in the form that readers receive, encoded once for all of them.

use std::ops::Range;

use bytes::Bytes;

use common::{json::escape_line_ends, name::ChannelName};
use model::message::Position;

/// A message in the form that readers receive.
#[derive(Debug)]
pub struct EncodedMessage {
    /// Its channel.
    pub channel: ChannelName,
    /// Its position; none if a plain Redis client published it.
    pub position: Option<Position>,
    /// Encoded once for all readers: the event, and where the fields without id and the message begin in it.
    event: Bytes,
    id_len: usize,
    json_range: Range<usize>,
    kind: &'static str,
}

impl EncodedMessage {
    /// Encodes a message that clients see as `json`, which must be a single line.
    pub(super) fn new(channel: ChannelName, position: Option<Position>, json: &str) -> Self {
        Self::of_kind("message", channel, position, json)
    }

    /// Encodes what some readers get instead of the message at a position: its difference from the one before.
    pub(super) fn delta(channel: ChannelName, position: Position, json: &str) -> Self {
        Self::of_kind("delta", channel, Some(position), json)
    }

    fn of_kind(kind: &'static str, channel: ChannelName, position: Option<Position>, json: &str) -> Self {
        let json = &*escape_line_ends(json);
        let id = position.map(|position| format!("id: {position}\n")).unwrap_or_default();
        let begin = format!("{id}event: {kind}\ndata: ");
        let end = begin.len() + json.len();
        let event = Bytes::from([&begin, json, "\n\n"].concat());
        Self { channel, position, event, id_len: id.len(), json_range: begin.len()..end, kind }
    }

    /// The same message with its event in other memory.
    pub(super) fn with_event(&self, event: Bytes) -> Self {
        Self { channel: self.channel.clone(), json_range: self.json_range.clone(), event, ..*self }
    }

    pub(super) fn event_bytes(&self) -> &[u8] {
        &self.event
    }

    /// The length of the event.
    pub(super) fn event_len(&self) -> usize {
        self.event.len()
    }

    /// Its memory in bytes, about.
    pub(super) fn size(&self) -> usize {
        self.event.len() + size_of::<Self>()
    }

    /// What it is for clients: a `message`, or a `delta` for readers that asked for them.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The message as clients see it, on a single line.
    #[must_use]
    pub fn json(&self) -> &str {
        std::str::from_utf8(&self.event[self.json_range.clone()]).unwrap_or_default()
    }

    /// The message as a server-sent event; its id is the position.
    #[must_use]
    pub fn event(&self) -> Bytes {
        self.event.clone()
    }

    /// The event without an id.
    #[must_use]
    pub fn event_without_id(&self) -> Bytes {
        self.event.slice(self.id_len..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sequence: u64) -> Position {
        Position { epoch: 5, sequence }
    }

    #[test]
    fn a_message_is_an_event_with_its_id_or_without() {
        let event = |shown: &EncodedMessage| [shown.event(), shown.event_without_id()].map(|bytes| bytes.to_vec());
        let shown = EncodedMessage::new("c".parse().expect("a name"), Some(at(7)), r#"{"data":"饭"}"#);
        let fields = "event: message\ndata: {\"data\":\"饭\"}\n\n";
        assert_eq!(event(&shown), [format!("id: 5-7\n{fields}").into_bytes(), fields.into()]);
        assert_eq!(shown.json(), r#"{"data":"饭"}"#);
        let plain = EncodedMessage::new(shown.channel, None, "{}");
        assert_eq!(event(&plain), [b"event: message\ndata: {}\n\n"; 2]);
        let plain_kind = plain.kind();
        let delta = EncodedMessage::delta(plain.channel, at(8), "{}");
        assert_eq!(event(&delta)[0], b"id: 5-8\nevent: delta\ndata: {}\n\n");
        assert_eq!([plain_kind, delta.kind()], ["message", "delta"]);
    }
}
