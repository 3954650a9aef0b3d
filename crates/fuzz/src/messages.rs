//! Messages of channels, and what selects them.

use common::{json, trace_context::TraceContext};
use model::{
    message::{NewMessage, Position, StoredMessage, cloud_event, item},
    subscription::{MessageFilter, SubscriptionRequest},
};
use serde_json::value::RawValue;

use crate::{DEPTH_LIMIT, NOW};

/// What is accepted is shown to readers as one line of JSON.
fn check_message(message: NewMessage<'_>) {
    let stored = StoredMessage {
        position: Position::START,
        published_at: NOW,
        content_type: message.content_type.map(Into::into),
        attributes: message.attributes,
        body: message.body.into_owned(),
        trace: TraceContext::default(),
    };
    let shown = stored.to_json(&"orders.new".parse().expect("a name"));
    assert!(!shown.contains('\n'), "{shown}");
    let _: &RawValue = serde_json::from_str(&shown).expect("a message is shown as JSON");
}

pub(crate) fn cloud_event(data: &[u8]) {
    if let Ok(message) = cloud_event::parse_structured(data, DEPTH_LIMIT) {
        check_message(message);
    }
}

/// `NAME:VALUE` on each line. Attributes that were accepted can be sent as headers again.
pub(crate) fn cloud_event_headers(data: &[u8]) {
    let mut headers = Vec::new();
    for line in data.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if let Ok(name) = std::str::from_utf8(name) {
            headers.push((name, value));
        }
    }
    if let Ok(Some(attributes)) = cloud_event::attributes_from_headers(headers.into_iter()) {
        let members: json::Object = serde_json::from_str(&attributes).expect("attributes are a JSON object");
        for (name, value) in members.iter() {
            let text = cloud_event::attribute_text(value);
            let (header, value) = cloud_event::attribute_header(name, &text);
            let again = cloud_event::attributes_from_headers(
                [(header.as_str(), value.as_bytes()), ("ce-id", b"1"), ("ce-source", b"/"), ("ce-type", b"t")]
                    .into_iter()
                    .filter(|(known, _)| *known == header || header.as_str() != *known),
            );
            let _ = again;
        }
    }
}

pub(crate) fn message_item(data: &[u8]) {
    let Ok(raw) = json::parse::<&RawValue>(data, DEPTH_LIMIT) else { return };
    for parsed in [item::parse(raw, DEPTH_LIMIT), item::parse_event(raw, DEPTH_LIMIT)].into_iter().flatten() {
        check_message(parsed);
    }
}

pub(crate) fn subscription_request(data: &[u8]) {
    if let Ok(request) = SubscriptionRequest::parse(data, DEPTH_LIMIT, NOW) {
        let _ = request.start();
        assert!(!request.needs_secret(None) || request.needs_secret(None));
    }
}

/// `FILTER<line feed>BODY`: a filter that is allowed decides about any body.
pub(crate) fn message_filter(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (filter, body) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let Ok(filter) = common::json_members::parse_request::<MessageFilter>(filter, DEPTH_LIMIT) else { return };
    if filter.check().is_err() {
        return;
    }
    let attributes = Some(r#"{"specversion":"1.0","type":"order.new","source":"/shop","id":"7"}"#.to_owned());
    for (content_type, attributes) in [("application/json", attributes), ("text/plain", None)] {
        let message = StoredMessage {
            position: Position::START,
            published_at: NOW,
            content_type: Some(content_type.to_owned()),
            attributes,
            body: body.to_owned(),
            trace: TraceContext::default(),
        };
        let _ = filter.matches(&message);
    }
}
