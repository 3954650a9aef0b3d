//! Messages: bytes, with an optional content type, or a `CloudEvent`. Pure: no IO.
//!
//! | module | what it is |
//! |---|---|
//! | [`Position`] | the position of a message in the history of its channel |
//! | [`cloud_event`] | `CloudEvents` 1.0 in the modes of HTTP |
//! | [`StoredMessage`] | a message as it is stored, and as clients see it |
//! | [`continuity`] | whether messages are missing after a position |
//! | [`delta`] | the difference between two texts |
//! | [`ResumeToken`] | the positions of a stream of several channels |
//! | [`item`] | one message of a batch request |
//!
//! Invariant: a body is never decoded and encoded again. Subscribers get the bytes that were sent.

pub mod cloud_event;
pub mod continuity;
pub mod delta;
pub mod item;
mod position;
mod resume_token;
mod stored_message;

use std::borrow::Cow;

use base64::{Engine, prelude::BASE64_STANDARD};
use common::{json::Object, trace_context::TraceContext};

pub use position::Position;
pub use resume_token::ResumeToken;
pub use stored_message::{StoredMessage, plain_to_json};

/// Longest content type that is kept with a message, in bytes.
pub const MAX_CONTENT_TYPE_BYTES: usize = 255;
/// Longest context attributes of a `CloudEvent`, in bytes of the headers that deliver them: names and encoded values.
pub const MAX_ATTRIBUTES_BYTES: usize = 16_384;

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMessage<'a> {
    /// The body.
    pub body: Cow<'a, [u8]>,
    /// The content type, if one was sent.
    pub content_type: Option<Cow<'a, str>>,
    /// The context attributes of a `CloudEvent`: a JSON object.
    pub attributes: Option<String>,
    /// The trace that it belongs to.
    pub trace: TraceContext,
}

impl<'a> NewMessage<'a> {
    /// The trace that an event names itself, by the distributed tracing extension of `CloudEvents`.
    #[must_use]
    pub fn event_trace(&self) -> TraceContext {
        event_trace(self.attributes.as_deref())
    }

    /// A body without a content type.
    #[must_use]
    pub fn plain(body: &'a [u8]) -> Self {
        Self { body: Cow::Borrowed(body), content_type: None, attributes: None, trace: TraceContext::default() }
    }
}

/// Why a message cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Something in it is not allowed. The text says what is allowed.
    #[error("{0}")]
    Invalid(String),
    /// It is longer than a message may be.
    #[error("a message must have at most {limit} bytes")]
    TooLarge {
        /// Bytes allowed.
        limit: usize,
    },
    /// An unknown encoding of `CloudEvents`.
    #[error("{0}")]
    Unsupported(String),
}

impl MessageError {
    fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }
}

/// The trace that the attributes of a `CloudEvent` name.
pub(crate) fn event_trace(attributes: Option<&str>) -> TraceContext {
    let Some(attributes) = attributes.filter(|text| text.contains("traceparent")) else {
        return TraceContext::default();
    };
    let members = serde_json::from_str::<Object>(attributes).ok();
    let text =
        |name| members.as_ref().and_then(|members| serde_json::from_str::<String>(members.get(name)?.get()).ok());
    TraceContext::new(text("traceparent").as_deref(), text("tracestate").as_deref(), None)
}

/// Refuses a content type that cannot be stored or would break a header or a log line.
///
/// # Errors
/// It is empty, too long or not printable ASCII.
pub fn check_content_type(text: &str) -> Result<(), MessageError> {
    let is_fit = (1..=MAX_CONTENT_TYPE_BYTES).contains(&text.len()) && text.bytes().all(|b| (b' '..=b'~').contains(&b));
    if is_fit {
        return Ok(());
    }
    Err(MessageError::invalid(format!(
        "Content-Type must have at most {MAX_CONTENT_TYPE_BYTES} characters, and these printable ASCII"
    )))
}

/// The type and subtype of a content type, without its parameters.
#[must_use]
pub fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Whether bodies of that content type are JSON.
#[must_use]
pub fn is_json(content_type: &str) -> bool {
    let essence = essence(content_type).to_ascii_lowercase();
    essence == "application/json" || essence == "text/json" || essence.ends_with("+json")
}

/// Base64 with its padding, as bytes.
pub(crate) fn decode_base64(text: &str) -> Result<Vec<u8>, MessageError> {
    BASE64_STANDARD.decode(text).map_err(|_| MessageError::invalid("data_base64 must be base64 with its padding"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_known_by_its_content_type() {
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/cloudevents+json", "text/json"]
        {
            assert!(is_json(json), "{json}");
        }
        for other in ["", "text/plain", "application/jsonl", "application/json-seq", "json"] {
            assert!(!is_json(other), "{other}");
        }
    }
}
