//! A frame from a client.

use common::json::{self, Object};
use serde_json::value::RawValue;

use crate::error::ApiError;

/// Members that are texts, in the order of [`ClientFrame`].
const TEXTS: [&str; 7] = ["type", "channel", "after", "since", "id", "ref", "idempotency_key"];

/// A request of a client.
pub(super) struct ClientFrame {
    pub(super) action: String,
    pub(super) channel: String,
    pub(super) after: Option<String>,
    pub(super) since: Option<String>,
    pub(super) id: Option<String>,
    /// What the answer repeats, so that the client knows which frame it answers.
    pub(super) reference: Option<String>,
    pub(super) idempotency_key: Option<String>,
    /// What to publish.
    pub(super) message: Option<Box<RawValue>>,
    /// Whether the client is told who is there.
    pub(super) presence: bool,
    /// As whom it takes part: `true`, or an object with `member` and `info`.
    pub(super) join: Option<Box<RawValue>>,
    /// Which messages the client wants.
    pub(super) filter: Option<Box<RawValue>>,
    /// The format of the differences that it wants instead of whole messages.
    pub(super) delta: Option<String>,
}

impl ClientFrame {
    /// `depth_limit` is that of a message in the frame.
    pub(super) fn parse(text: &[u8], depth_limit: usize) -> Result<Self, ApiError> {
        // The frame and the message are a level each
        let members: Object = json::parse(text, depth_limit.saturating_add(2))?;
        let names: Vec<&str> = TEXTS.into_iter().chain(["message", "filter", "delta", "presence", "join"]).collect();
        members.check_names(&names).map_err(ApiError::invalid)?;
        let text = |name: &str| -> Result<Option<String>, ApiError> {
            let given = members.get(name).map(|value| serde_json::from_str(value.get()));
            given.transpose().map_err(|_| ApiError::invalid(format!("{name} must be a string")))
        };
        let [action, channel, after, since, id, reference, idempotency_key] = TEXTS.map(text);
        let (Some(action), Some(channel)) = (action?, channel?) else {
            return Err(ApiError::invalid("a frame must have type and channel"));
        };
        let given = |name: &str| members.get(name).filter(|value| value.get() != "null").map(ToOwned::to_owned);
        let presence = given("presence").map(|value| serde_json::from_str(value.get())).transpose();
        let presence = presence.map_err(|_| ApiError::invalid("presence must be true or false"))?;
        Ok(Self {
            action,
            channel,
            after: after?,
            since: since?,
            id: id?,
            reference: reference?,
            idempotency_key: idempotency_key?,
            message: members.get("message").map(ToOwned::to_owned),
            filter: given("filter"),
            // Anything else is refused with what is allowed
            delta: given("delta").map(|value| serde_json::from_str(value.get()).unwrap_or_else(|_| value.to_string())),
            join: given("join"),
            presence: presence.unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_is_not_understood_is_refused_with_what_is_allowed() {
        let asked = br#"{"type":"subscribe","channel":"a","after":"1-1","since":null}"#;
        let asked = ClientFrame::parse(asked, 8).expect("a frame");
        assert_eq!((asked.channel.as_str(), asked.after.as_deref(), asked.since), ("a", Some("1-1"), None));
        for (bad, said) in [
            ("", "not valid JSON"),
            ("[]", "a JSON object"),
            (r#"{"type":"subscribe"}"#, "type and channel"),
            (r#"{"type":1,"channel":"a"}"#, "type must be a string"),
            (r#"{"type":"publish","channel":"a","ref":7}"#, "ref must be a string"),
            (r#"{"type":"subscribe","chanel":"a"}"#, "did you mean \"channel\""),
        ] {
            let error = ClientFrame::parse(bad.as_bytes(), 8).err().expect(bad).to_string();
            assert!(error.contains(said), "{bad}: {error}");
        }
    }
}
