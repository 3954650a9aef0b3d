//! `CloudEvents` 1.0 over HTTP. In binary mode attributes are headers `ce-...` and the body is the data. In structured
//! mode the body is the whole event as JSON. Both are checked here; the body stays as it was sent.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde_json::value::RawValue;

use super::{MAX_ATTRIBUTES_BYTES, MessageError, NewMessage, essence};
use common::{
    json::{self, Object, ObjectWriter},
    name::quoted,
    time,
    trace_context::TraceContext,
};

/// The media type of one event in structured mode.
pub const STRUCTURED_MEDIA_TYPE: &str = "application/cloudevents+json";
/// The media type of several events.
pub const BATCH_MEDIA_TYPE: &str = "application/cloudevents-batch+json";
/// The prefix of the headers of binary mode.
const HEADER_PREFIX: &str = "ce-";
/// The characters that the HTTP binding encodes in the value of an attribute's header.
const HEADER_ENCODE_SET: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');
const REQUIRED_ATTRIBUTES: [&str; 4] = ["specversion", "id", "source", "type"];
/// Attributes of one event.
const MAX_ATTRIBUTES: usize = 64;
/// Longest name of an attribute. The specification says 20, but other implementations allow more.
const MAX_ATTRIBUTE_NAME_LENGTH: usize = 64;

/// Whether a media type belongs to `CloudEvents`, also one that is not supported.
#[must_use]
pub fn is_cloud_events(essence: &str) -> bool {
    let prefix = "application/cloudevents";
    essence.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// The error of an event in an encoding that is not supported.
#[must_use]
pub fn unsupported_encoding() -> MessageError {
    MessageError::Unsupported(format!(
        "a CloudEvent must be sent as {STRUCTURED_MEDIA_TYPE}, or with ce- headers; {BATCH_MEDIA_TYPE} goes to the \
         path that ends in /batch"
    ))
}

/// Whether a header is an attribute of binary mode, valid or not.
#[must_use]
pub fn is_attribute_header(header: &str) -> bool {
    header.starts_with(HEADER_PREFIX)
}

/// Whether a content type is that of an event in structured mode, in any spelling.
#[must_use]
pub fn is_structured(content_type: &str) -> bool {
    essence(content_type).eq_ignore_ascii_case(STRUCTURED_MEDIA_TYPE)
}

/// The header of an attribute in binary mode.
#[must_use]
pub fn attribute_header(name: &str, value: &str) -> (String, String) {
    (format!("{HEADER_PREFIX}{name}"), utf8_percent_encode(value, HEADER_ENCODE_SET).to_string())
}

/// An attribute as text, the same in every mode: a string as it is, a boolean and an integer in their canonical form.
#[must_use]
pub fn attribute_text(value: &RawValue) -> Cow<'_, str> {
    if let Some(text) = parse_string(value) {
        return Cow::Owned(text);
    }
    // An integer has one spelling except for zero, which may be -0
    value.get().parse::<i32>().map_or(Cow::Borrowed(value.get()), |number| Cow::Owned(number.to_string()))
}

/// The attributes in headers, as JSON; none if there are no such headers.
///
/// # Errors
/// They are not the attributes of an event of version 1.0.
pub fn attributes_from_headers<'a>(
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<Option<String>, MessageError> {
    let mut given: Vec<(&str, String)> = Vec::new();
    for (header, value) in headers {
        let Some(name) = header.strip_prefix(HEADER_PREFIX) else { continue };
        check_name(name).map_err(|error| MessageError::invalid(format!("header {}: {error}", quoted(header))))?;
        if ["datacontenttype", "data", "data_base64"].contains(&name) {
            return Err(MessageError::invalid(format!(
                "{header} is not an attribute in binary mode: use Content-Type"
            )));
        }
        if given.iter().any(|(known, _)| *known == name) {
            return Err(MessageError::invalid(format!("{header} must be given once")));
        }
        let text = decode_header_value(value).ok_or_else(|| {
            MessageError::invalid(format!(
                "{header} must be printable ASCII, with anything else percent-encoded as UTF-8"
            ))
        })?;
        given.push((name, text));
    }
    if given.is_empty() {
        return Ok(None);
    }
    check_count(given.len())?;
    for name in REQUIRED_ATTRIBUTES {
        if !given.iter().any(|(known, _)| *known == name) {
            return Err(MessageError::invalid(format!(
                "a CloudEvent in binary mode must have the header {HEADER_PREFIX}{name}"
            )));
        }
    }
    let (mut attributes, mut size) = (ObjectWriter::default(), 0);
    for (name, value) in &given {
        check_value(name, value)?;
        attributes.text(name, value);
        size += header_size(name, value);
    }
    check_size(size)?;
    Ok(Some(attributes.finish()))
}

/// The value of a header without quotes and percent-encoding.
fn decode_header_value(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?.trim();
    if !text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return None;
    }
    let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let unquoted = inner.map_or(Cow::Borrowed(text), |inner| Cow::Owned(unescape(inner)));
    Some(percent_decode_str(&unquoted).decode_utf8().ok()?.into_owned())
}

fn unescape(text: &str) -> String {
    let mut characters = text.chars();
    let mut plain = String::with_capacity(text.len());
    while let Some(character) = characters.next() {
        plain.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    plain
}

/// An event in structured mode: the body as it was sent, and its attributes.
///
/// # Errors
/// It is not an event of version 1.0.
pub fn parse_structured(body: &[u8], depth_limit: usize) -> Result<NewMessage<'_>, MessageError> {
    let members: Object =
        json::parse(body, depth_limit).map_err(|error| MessageError::invalid(format!("a CloudEvent: {error}")))?;
    Ok(NewMessage {
        body: Cow::Borrowed(body),
        content_type: Some(Cow::Borrowed(STRUCTURED_MEDIA_TYPE)),
        attributes: Some(parse_attributes(&members)?),
        trace: TraceContext::default(),
    })
}

fn parse_attributes(members: &Object<'_>) -> Result<String, MessageError> {
    if members.get("data").is_some() && members.get("data_base64").is_some() {
        return Err(MessageError::invalid("a CloudEvent must not have both data and data_base64"));
    }
    if let Some(data) = members.get("data_base64") {
        let text = parse_string(data).ok_or_else(|| MessageError::invalid("data_base64 must be a string"))?;
        super::decode_base64(&text)?;
    }
    for name in REQUIRED_ATTRIBUTES {
        if members.get(name).is_none() {
            return Err(MessageError::invalid(format!("a CloudEvent must have the attribute {name}")));
        }
    }
    let mut attributes = ObjectWriter::default();
    let (mut count, mut size) = (0, 0);
    for (name, value) in members.iter().filter(|(name, _)| !["data", "data_base64"].contains(name)) {
        check_name(name)?;
        if value.get() == "null" {
            continue;
        }
        let is_other = value.get() == "true" || value.get() == "false" || value.get().parse::<i32>().is_ok();
        match parse_string(value) {
            Some(text) => check_value(name, &text)?,
            None if is_other && !is_text_attribute(name) => {}
            None => {
                let kinds =
                    if is_text_attribute(name) { "a string" } else { "a string, a boolean or a 32-bit integer" };
                return Err(MessageError::invalid(format!("the attribute {name} must be {kinds}")));
            }
        }
        attributes.raw(name, value.get());
        count += 1;
        size += header_size(name, &attribute_text(value));
    }
    check_count(count)?;
    check_size(size)?;
    Ok(attributes.finish())
}

fn parse_string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// The attributes that the specification defines are all text.
fn is_text_attribute(name: &str) -> bool {
    REQUIRED_ATTRIBUTES.contains(&name) || ["datacontenttype", "dataschema", "subject", "time"].contains(&name)
}

fn check_name(name: &str) -> Result<(), MessageError> {
    let is_fit = (1..=MAX_ATTRIBUTE_NAME_LENGTH).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if is_fit {
        return Ok(());
    }
    Err(MessageError::invalid(format!(
        "the name of an attribute must have 1 to {MAX_ATTRIBUTE_NAME_LENGTH} lower-case letters and digits, got {}",
        quoted(name)
    )))
}

fn check_value(name: &str, value: &str) -> Result<(), MessageError> {
    let must =
        |what: &str| Err(MessageError::invalid(format!("the attribute {name} must {what}, got {}", quoted(value))));
    if is_text_attribute(name) && value.is_empty() {
        return must("not be empty");
    }
    if value.chars().any(char::is_control) {
        return must("have no control characters");
    }
    match name {
        "specversion" if value != "1.0" => must("be 1.0"),
        "time" if !time::is_rfc_3339(value) => must("be an RFC 3339 time"),
        "source" | "dataschema" if value.contains(char::is_whitespace) => must("be a URI"),
        _ => Ok(()),
    }
}

fn check_count(count: usize) -> Result<(), MessageError> {
    if count <= MAX_ATTRIBUTES {
        return Ok(());
    }
    Err(MessageError::invalid(format!("a CloudEvent must have at most {MAX_ATTRIBUTES} attributes")))
}

/// The bytes that an attribute takes when it is delivered in a header.
fn header_size(name: &str, value: &str) -> usize {
    let (header, value) = attribute_header(name, value);
    header.len() + value.len()
}

fn check_size(bytes: usize) -> Result<(), MessageError> {
    if bytes <= MAX_ATTRIBUTES_BYTES {
        return Ok(());
    }
    Err(MessageError::invalid(format!(
        "the attributes of a CloudEvent must have at most {MAX_ATTRIBUTES_BYTES} bytes as headers of binary mode, \
         names and percent-encoded values together, got {bytes}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(headers: &[(&str, &str)]) -> Result<Option<String>, MessageError> {
        attributes_from_headers(headers.iter().map(|(name, value)| (*name, value.as_bytes())))
    }

    const GOOD: [(&str, &str); 4] =
        [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/orders"), ("ce-type", "dish.ready")];

    #[test]
    fn binary_mode_has_its_attributes_in_headers() {
        let mut headers = GOOD.to_vec();
        headers.extend([
            ("content-type", "text/plain"),
            ("ce-subject", "%E9%A5%AD%20%22a%22"),
            ("ce-x1", "\"a \\\"b\""),
        ]);
        assert_eq!(
            binary(&headers).expect("an event").as_deref(),
            Some(
                r#"{"specversion":"1.0","id":"1","source":"/orders","type":"dish.ready","subject":"饭 \"a\"","x1":"a \"b"}"#
            )
        );
        assert_eq!(binary(&[("content-type", "text/plain")]), Ok(None));
        for time in ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59.5+01:00", "9999-12-31T23:59:59.9999999Z"] {
            headers = [&GOOD[..], &[("ce-time", time)]].concat();
            assert!(binary(&headers).is_ok(), "{time}");
        }
    }

    #[test]
    fn headers_that_are_not_those_of_an_event_are_refused_with_what_is_allowed() {
        for missing in 0..GOOD.len() {
            let mut headers = GOOD.to_vec();
            let (name, _) = headers.remove(missing);
            let error = binary(&headers).expect_err(name).to_string();
            assert!(error.contains(&format!("must have the header {name}")), "{error}");
        }
        for (name, value, said) in [
            ("ce-specversion", "0.3", "specversion must be 1.0"),
            ("ce-id", "", "id must not be empty"),
            ("ce-source", "a b", "source must be a URI"),
            ("ce-time", "yesterday", "time must be an RFC 3339 time"),
            ("ce-time", "+PT1S", "time must be an RFC 3339 time"),
            ("ce-time", "-000001-01-01T00:00:00Z", "time must be an RFC 3339 time"),
            ("ce-time", "2026-01-01", "time must be an RFC 3339 time"),
            ("ce-datacontenttype", "text/plain", "use Content-Type"),
            ("ce-my_name", "x", "lower-case letters and digits"),
            ("ce-", "x", "lower-case letters and digits"),
            ("ce-subject", "a%0Ab", "no control characters"),
            ("ce-subject", "%ff", "percent-encoded as UTF-8"),
        ] {
            let mut headers: Vec<_> = GOOD.into_iter().filter(|(known, _)| *known != name).collect();
            headers.push((name, value));
            let error = binary(&headers).expect_err(name).to_string();
            assert!(error.contains(said), "{name}: {error}");
        }
        let twice = [&GOOD[..], &GOOD[1..2]].concat();
        assert!(binary(&twice).expect_err("twice").to_string().contains("ce-id must be given once"));
    }

    #[test]
    fn the_limit_of_attributes_is_that_of_the_headers_that_deliver_them() {
        // Nine bytes each when they are delivered, three as JSON
        let text = "饭".repeat(MAX_ATTRIBUTES_BYTES / 9);
        let encoded = "%E9%A5%AD".repeat(MAX_ATTRIBUTES_BYTES / 9);
        let headers = [&GOOD[..], &[("ce-x", encoded.as_str())]].concat();
        let said = binary(&headers).expect_err("too long").to_string();
        assert!(said.contains("at most 16384 bytes as headers"), "{said}");
        let body = format!(r#"{{"specversion":"1.0","id":"1","source":"/k","type":"t","x":"{text}"}}"#);
        assert!(parse_structured(body.as_bytes(), 64).expect_err("too long").to_string().contains("16384"));
        let half = &text[..text.len() / 6 * 3];
        let body = format!(r#"{{"specversion":"1.0","id":"1","source":"/k","type":"t","x":"{half}"}}"#);
        assert!(parse_structured(body.as_bytes(), 64).is_ok());
    }

    #[test]
    fn structured_mode_keeps_the_body_and_takes_the_attributes_out_of_it() {
        let body = br#"{ "specversion":"1.0", "id":"1","source":"/k","type":"t", "n":1, "is":true, "none":null, "data":{"a":1e400}}"#;
        let message = parse_structured(body, 64).expect("an event");
        assert_eq!((&*message.body, message.content_type.as_deref()), (&body[..], Some(STRUCTURED_MEDIA_TYPE)));
        assert_eq!(
            message.attributes.as_deref(),
            Some(r#"{"specversion":"1.0","id":"1","source":"/k","type":"t","n":1,"is":true}"#)
        );
    }

    #[test]
    fn a_body_that_is_not_an_event_is_refused_with_what_is_allowed() {
        let with = |more: &str| format!(r#"{{"specversion":"1.0","id":"1","source":"/k","type":"t"{more}}}"#);
        for (body, said) in [
            (String::new(), "not valid JSON"),
            ("[]".to_owned(), "a JSON object"),
            (r#"{"specversion":"1.0","source":"/k","type":"t"}"#.to_owned(), "must have the attribute id"),
            (r#"{"specversion":"1.1","id":"1","source":"/k","type":"t"}"#.to_owned(), "must be 1.0"),
            (r#"{"specversion":"1.0","id":1,"source":"/k","type":"t"}"#.to_owned(), "id must be a string"),
            (with(r#","data":1,"data_base64":"AA==""#), "both data and data_base64"),
            (with(r#","data_base64":"?""#), "base64"),
            (with(r#","data_base64":1"#), "data_base64 must be a string"),
            (with(r#","Up":"x""#), "lower-case letters and digits"),
            (with(r#","x":{}"#), "a string, a boolean or a 32-bit integer"),
            (with(r#","x":4294967296"#), "a string, a boolean or a 32-bit integer"),
            (with(r#","time":"noon""#), "RFC 3339"),
            (with(&format!(r#","x":"{}""#, "a".repeat(MAX_ATTRIBUTES_BYTES))), "at most 16384 bytes"),
        ] {
            let error = parse_structured(body.as_bytes(), 64).expect_err(&body).to_string();
            assert!(error.contains(said), "{body}: {error}");
        }
    }
}
