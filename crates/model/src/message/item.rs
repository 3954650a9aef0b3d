//! One message of a batch request: `{"data": ..., "content_type": ...}` or `{"data_base64": ...}`, as the history shows
//! messages, or a `CloudEvent`.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{MessageError, NewMessage, check_content_type, cloud_event, decode_base64, is_json};
use common::{
    json::{self, Object},
    trace_context::TraceContext,
};

/// Reads one message of a batch.
///
/// # Errors
/// It has another shape. The text says what is allowed.
pub fn parse(item: &RawValue, depth_limit: usize) -> Result<NewMessage<'_>, MessageError> {
    let members: Object =
        json::parse(item.get().as_bytes(), depth_limit).map_err(|error| MessageError::invalid(error.to_string()))?;
    members.check_names(&["data", "data_base64", "content_type"]).map_err(MessageError::invalid)?;
    let content_type = members.get("content_type").map(parse_text).transpose()?;
    content_type.as_deref().map_or(Ok(()), check_content_type)?;
    // A null in `data` is data: it is JSON
    let data = members.iter().find(|(name, _)| *name == "data").map(|(_, value)| value);
    let (body, implied) = match (data, members.get("data_base64")) {
        (Some(data), None) => body_from_json(data, content_type.as_deref())?,
        (None, Some(data)) => (Cow::Owned(decode_base64(&parse_text(data)?)?), None),
        _ => return Err(MessageError::invalid("a message must have either data or data_base64")),
    };
    let content_type = content_type.map(Cow::Owned).or(implied.map(Cow::Borrowed));
    let attributes = match content_type.as_deref() {
        Some(content_type) if cloud_event::is_structured(content_type) => {
            cloud_event::parse_structured(&body, depth_limit)?.attributes
        }
        Some(content_type) if cloud_event::is_cloud_events(content_type) => {
            return Err(cloud_event::unsupported_encoding());
        }
        _ => None,
    };
    Ok(NewMessage { body, content_type, attributes, trace: TraceContext::default() })
}

/// Reads one event of a batch of `CloudEvents`.
///
/// # Errors
/// It is not an event of version 1.0.
pub fn parse_event(item: &RawValue, depth_limit: usize) -> Result<NewMessage<'_>, MessageError> {
    cloud_event::parse_structured(item.get().as_bytes(), depth_limit)
}

/// A string is text, unless the content type is JSON. Anything else is JSON.
fn body_from_json<'a>(
    data: &'a RawValue,
    content_type: Option<&str>,
) -> Result<(Cow<'a, [u8]>, Option<&'static str>), MessageError> {
    let is_string = data.get().starts_with('"');
    match content_type {
        Some(content_type) if is_json(content_type) => Ok((Cow::Borrowed(data.get().as_bytes()), None)),
        _ if is_string => Ok((Cow::Owned(parse_text(data)?.into_bytes()), None)),
        Some(_) => Err(MessageError::invalid("data must be a string, unless content_type is JSON")),
        None => Ok((Cow::Borrowed(data.get().as_bytes()), Some("application/json"))),
    }
}

fn parse_text(value: &RawValue) -> Result<String, MessageError> {
    serde_json::from_str(value.get())
        .map_err(|_| MessageError::invalid("content_type, data_base64 and data as text must be strings"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(Vec<u8>, Option<String>), MessageError> {
        let raw: &RawValue = serde_json::from_str(text).expect("JSON");
        let message = parse(raw, 8)?;
        Ok((message.body.into_owned(), message.content_type.map(Cow::into_owned)))
    }

    #[test]
    fn a_message_is_text_json_or_bytes() {
        for (item, body, content_type) in [
            (r#"{"data":"7"}"#, &b"7"[..], None),
            (r#"{"data":{"b":1, "a":1e400}}"#, br#"{"b":1, "a":1e400}"#, Some("application/json")),
            (r#"{"data":null}"#, b"null", Some("application/json")),
            (r#"{"data":"7","content_type":"application/json"}"#, br#""7""#, Some("application/json")),
            (r#"{"data":"<a/>","content_type":"text/xml"}"#, b"<a/>", Some("text/xml")),
            (r#"{"data_base64":"AP8="}"#, b"\x00\xff", None),
        ] {
            assert_eq!(parsed(item), Ok((body.to_vec(), content_type.map(ToOwned::to_owned))), "{item}");
        }
    }

    #[test]
    fn an_event_in_structured_mode_has_its_attributes() {
        let item = r#"{"content_type":"Application/CloudEvents+JSON",
            "data":{"specversion":"1.0","id":"1","source":"/k","type":"t","data":1}}"#;
        let message = parse(serde_json::from_str(item).expect("JSON"), 8).expect("an event");
        assert_eq!(message.attributes.as_deref(), Some(r#"{"specversion":"1.0","id":"1","source":"/k","type":"t"}"#));
    }

    #[test]
    fn anything_else_is_refused() {
        for (item, said) in [
            ("{}", "either data or data_base64"),
            (r#"{"data":1,"data_base64":"AA=="}"#, "either data or data_base64"),
            (r#"{"data":1,"type":"x"}"#, "unknown member \"type\""),
            (r#"{"data":1,"content_type":"text/plain"}"#, "data must be a string"),
            (r#"{"data_base64":"A"}"#, "base64"),
            (r#"{"data":{},"content_type":"application/cloudevents+json"}"#, "must have the attribute specversion"),
            (r#"{"data":"x","content_type":"application/CloudEvents+xml"}"#, "a CloudEvent must be sent as"),
            (r#"{"data_base64":1}"#, "must be strings"),
            (r#"{"data":1,"content_type":"a\nb"}"#, "printable"),
            ("7", "a JSON object"),
            (r#"{"data":[[[[[[[[1]]]]]]]]}"#, "too deeply"),
        ] {
            let error = parsed(item).expect_err(item).to_string();
            assert!(error.contains(said), "{item}: {error}");
        }
    }
}
