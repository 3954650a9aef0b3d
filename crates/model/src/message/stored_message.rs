//! A message as it is stored, and as clients see it.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::value::RawValue;

use super::{Position, event_trace, is_json};
use common::{
    json::{self, ObjectWriter},
    name::ChannelName,
    time::{self, Millis},
    trace_context::TraceContext,
};

/// Deepest JSON that is shown as JSON. Deeper JSON, which many parsers refuse, is shown as text.
const DEPTH_LIMIT: usize = 64;

/// A message with its position in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its position, which is also its id.
    pub position: Position,
    /// When it was published, in milliseconds.
    pub published_at: Millis,
    /// The content type, if one was sent.
    pub content_type: Option<String>,
    /// The context attributes of a `CloudEvent`: a JSON object.
    pub attributes: Option<String>,
    /// The body.
    pub body: Vec<u8>,
    /// The trace that it belongs to.
    pub trace: TraceContext,
}

impl StoredMessage {
    /// The trace that its delivery continues: the one that it was published in, else the one that the event names.
    #[must_use]
    pub fn trace(&self) -> TraceContext {
        self.trace.clone().or(|| event_trace(self.attributes.as_deref()))
    }

    /// The message as clients see it, on one line.
    #[must_use]
    pub fn to_json(&self, channel: &ChannelName) -> String {
        let mut json = ObjectWriter::with_capacity(self.body.len() + 256);
        json.text("id", &self.position.to_string())
            .text("channel", channel.as_str())
            .text("time", &time::format(self.published_at));
        write_content(&mut json, self.content_type.as_deref(), self.attributes.as_deref(), &self.body);
        join_lines(json.finish())
    }
}

/// A message published with plain Redis, as clients see it. It has no position and is not stored.
#[must_use]
pub fn plain_to_json(channel: &ChannelName, body: &[u8], at: Millis) -> String {
    let mut json = ObjectWriter::with_capacity(body.len() + 128);
    json.raw("id", "null").text("channel", channel.as_str()).text("time", &time::format(at));
    write_content(&mut json, None, None, body);
    join_lines(json.finish())
}

fn write_content(json: &mut ObjectWriter, content_type: Option<&str>, attributes: Option<&str>, body: &[u8]) {
    if let Some(content_type) = content_type {
        json.text("content_type", content_type);
    }
    // Attributes that another program wrote into the history must not break the JSON around them
    if let Some(attributes) = attributes.filter(|text| json::parse::<&RawValue>(text.as_bytes(), DEPTH_LIMIT).is_ok()) {
        json.raw("attributes", attributes);
    }
    let inline = content_type.filter(|content_type| is_json(content_type));
    let inline = inline.and_then(|_| json::parse::<&RawValue>(body, DEPTH_LIMIT).ok());
    match (inline, std::str::from_utf8(body)) {
        (Some(raw), _) => json.raw("data", raw.get()),
        (None, Ok(text)) => json.text("data", text),
        (None, Err(_)) => json.text("data_base64", &BASE64_STANDARD.encode(body)),
    };
}

/// A line break is white space in JSON, but ends a field of an event stream.
fn join_lines(json: String) -> String {
    if json.contains(['\n', '\r']) { json.replace(['\n', '\r'], " ") } else { json }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(content_type: Option<&str>, body: &[u8]) -> StoredMessage {
        StoredMessage {
            position: Position { epoch: 5, sequence: 1 },
            published_at: 1_000,
            content_type: content_type.map(ToOwned::to_owned),
            attributes: None,
            body: body.to_vec(),
            trace: TraceContext::default(),
        }
    }

    #[test]
    fn data_is_shown_as_json_as_text_or_as_base64() {
        let channel = "c".parse().expect("a name");
        let json = Some("application/json");
        for (content_type, body, shown) in [
            (None, &b"7"[..], r#""data":"7""#),
            (json, b"{\"a\":\n1e400}", r#""content_type":"application/json","data":{"a": 1e400}"#),
            (json, b"{no", r#""content_type":"application/json","data":"{no""#),
            (json, b"1\n2", r#""content_type":"application/json","data":"1\n2""#),
            (None, b"\x00\xff", r#""data_base64":"AP8=""#),
        ] {
            let expected = format!(r#"{{"id":"5-1","channel":"c","time":"1970-01-01T00:00:01.000Z",{shown}}}"#);
            assert_eq!(stored(content_type, body).to_json(&channel), expected);
        }
        let deep = [b"[".repeat(65), b"]".repeat(65)].concat();
        assert!(stored(json, &deep).to_json(&channel).contains(r#""data":"[["#));
        let odd = StoredMessage { attributes: Some("}".to_owned()), ..stored(None, b"") };
        assert!(!odd.to_json(&channel).contains("attributes"));
    }
}
