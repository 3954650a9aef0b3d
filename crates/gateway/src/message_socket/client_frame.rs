//! A frame from a client.

use common::json::{self, Object};
use serde::de::IgnoredAny;

use crate::error::ApiError;

/// The most levels of JSON in a frame.
const MAX_FRAME_DEPTH: usize = 8;

/// A request of a client.
pub(super) struct ClientFrame {
    pub(super) action: String,
    pub(super) channel: String,
    pub(super) after: Option<String>,
    pub(super) since: Option<String>,
    pub(super) id: Option<String>,
}

impl ClientFrame {
    pub(super) fn parse(text: &[u8]) -> Result<Self, ApiError> {
        let members: Object = json::parse(text, MAX_FRAME_DEPTH)?;
        members.check_names(&["type", "channel", "after", "since", "id"]).map_err(ApiError::invalid)?;
        let mut known = [("type", None), ("channel", None), ("after", None), ("since", None), ("id", None)];
        for (name, value) in members.iter() {
            let Some(slot) = known.iter_mut().find(|(known, _)| *known == name) else { continue };
            let text: Option<String> = serde_json::from_str(value.get()).ok();
            let is_null = serde_json::from_str::<Option<IgnoredAny>>(value.get()).is_ok_and(|value| value.is_none());
            if text.is_none() && !is_null {
                return Err(ApiError::invalid(format!("{name} must be a string")));
            }
            slot.1 = text;
        }
        let [action, channel, after, since, id] = known.map(|(_, value)| value);
        let (Some(action), Some(channel)) = (action, channel) else {
            return Err(ApiError::invalid("a frame must have type and channel"));
        };
        Ok(Self { action, channel, after, since, id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_is_not_understood_is_refused_with_what_is_allowed() {
        let asked =
            ClientFrame::parse(br#"{"type":"subscribe","channel":"a","after":"1-1","since":null}"#).expect("a frame");
        assert_eq!((asked.channel.as_str(), asked.after.as_deref(), asked.since), ("a", Some("1-1"), None));
        for (bad, said) in [
            ("", "not valid JSON"),
            ("[]", "a JSON object"),
            (r#"{"type":"subscribe"}"#, "type and channel"),
            (r#"{"type":1,"channel":"a"}"#, "type must be a string"),
            (r#"{"type":"subscribe","chanel":"a"}"#, "did you mean \"channel\""),
        ] {
            let error = ClientFrame::parse(bad.as_bytes()).err().expect(bad).to_string();
            assert!(error.contains(said), "{bad}: {error}");
        }
    }
}
