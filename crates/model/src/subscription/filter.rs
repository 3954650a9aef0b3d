//! Which messages a subscription delivers: conditions on the attributes of `CloudEvents` and on values in JSON data,
//! all of which must match. The same event matches in every mode in which it can be published.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    exact_json::{child, find},
    filter_condition::{FilterCondition, check_text},
};
use crate::message::{StoredMessage, cloud_event, decode_base64, is_json};
use common::{json::Object, name::quoted};

/// Most conditions of one filter.
const MAX_CONDITIONS: usize = 32;
/// The attribute that binary mode sends as content type.
const DATA_CONTENT_TYPE: &str = "datacontenttype";

/// Which messages are delivered. An empty filter matches all.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MessageFilter {
    /// Conditions by name of an attribute. A message that is not an event has no attributes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    attributes: BTreeMap<String, FilterCondition>,
    /// Conditions by JSON pointer (RFC 6901) into the data: of an event in structured mode, into its `data`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    data: BTreeMap<String, FilterCondition>,
}

/// What a filter says of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterVerdict {
    /// All conditions hold.
    Matches,
    /// A condition does not hold.
    Excluded,
    /// Nobody can tell: the message says that it is JSON, and cannot be read as JSON. Why, for people.
    Unreadable(String),
}

impl MessageFilter {
    /// Whether it matches everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.attributes.is_empty() && self.data.is_empty()
    }

    /// Refuses a filter that could never match or would cost too much. The text says what is allowed.
    ///
    /// # Errors
    /// Too many conditions or values, an invalid pointer, or a text that is too long.
    pub fn check(&self) -> Result<(), String> {
        let count = self.attributes.len() + self.data.len();
        if count > MAX_CONDITIONS {
            return Err(format!("a filter must have at most {MAX_CONDITIONS} conditions, got {count}"));
        }
        for (name, condition) in self.attributes.iter().chain(&self.data) {
            check_text(name)?;
            condition.check().map_err(|problem| format!("{}: {problem}", quoted(name)))?;
        }
        for name in self.attributes.keys() {
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
                return Err(format!("attributes have names of a-z and 0-9, unlike {}", quoted(name)));
            }
        }
        for pointer in self.data.keys() {
            let is_pointer = pointer.is_empty() || pointer.starts_with('/');
            let escapes = pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
            if !is_pointer || !escapes {
                return Err(format!(
                    "data is addressed by JSON pointers such as /order/id (with ~0 for ~ and ~1 for /), unlike {}",
                    quoted(pointer)
                ));
            }
        }
        Ok(())
    }

    /// What it says of a message.
    #[must_use]
    pub fn matches(&self, message: &StoredMessage) -> FilterVerdict {
        if !self.matches_attributes(message) {
            return FilterVerdict::Excluded;
        }
        self.matches_data(message)
    }

    fn matches_attributes(&self, message: &StoredMessage) -> bool {
        if self.attributes.is_empty() {
            return true;
        }
        let attributes: Option<Object> = message.attributes.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let Some(attributes) = attributes else { return false };
        self.attributes.iter().all(|(name, condition)| {
            if name == DATA_CONTENT_TYPE {
                return data_content_type(message, &attributes)
                    .is_some_and(|media_type| condition.matches_media_type(&media_type));
            }
            let value = attributes.get(name);
            value.is_some_and(|value| condition.matches_attribute(&cloud_event::attribute_text(value)))
        })
    }

    fn matches_data(&self, message: &StoredMessage) -> FilterVerdict {
        if self.data.is_empty() {
            return FilterVerdict::Matches;
        }
        let content_type = message.content_type.as_deref();
        let is_structured = content_type.is_some_and(cloud_event::is_structured);
        let body = match read_json(&message.body, content_type) {
            Ok(Some(body)) => body,
            Ok(None) => return FilterVerdict::Excluded,
            Err(problem) => return FilterVerdict::Unreadable(problem),
        };
        if !is_structured {
            return self.verdict(body);
        }
        let media_type = child(body, DATA_CONTENT_TYPE).filter(|value| value.get() != "null");
        let media_type = media_type.map(cloud_event::attribute_text);
        if media_type.as_deref().is_some_and(|media_type| !is_json(media_type)) {
            return FilterVerdict::Excluded;
        }
        if let Some(data) = child(body, "data") {
            return self.verdict(data);
        }
        let Some(encoded) = child(body, "data_base64").map(cloud_event::attribute_text) else {
            return FilterVerdict::Excluded;
        };
        let Ok(decoded) = decode_base64(&encoded) else { return FilterVerdict::Excluded };
        match read_json(&decoded, media_type.as_deref()) {
            Ok(data) => data.map_or(FilterVerdict::Excluded, |data| self.verdict(data)),
            Err(problem) => FilterVerdict::Unreadable(problem),
        }
    }

    fn verdict(&self, data: &RawValue) -> FilterVerdict {
        let holds = |(pointer, condition): (&String, &FilterCondition)| {
            find(data, pointer).is_some_and(|value| condition.matches(value))
        };
        if self.data.iter().all(holds) { FilterVerdict::Matches } else { FilterVerdict::Excluded }
    }
}

/// The content type of an event's data, which structured mode has among the attributes. Without one it is JSON there.
fn data_content_type<'a>(message: &'a StoredMessage, attributes: &Object<'a>) -> Option<Cow<'a, str>> {
    let content_type = message.content_type.as_deref();
    if !content_type.is_some_and(cloud_event::is_structured) {
        return content_type.map(Cow::Borrowed);
    }
    let given = attributes.get(DATA_CONTENT_TYPE).map(cloud_event::attribute_text);
    Some(given.unwrap_or(Cow::Borrowed("application/json")))
}

/// Bytes as JSON; none if they do not claim to be JSON and are not. Most publishers of JSON set no content type, so
/// bytes without one are tried. An error if they claim to be JSON and cannot be read.
fn read_json<'a>(bytes: &'a [u8], content_type: Option<&str>) -> Result<Option<&'a RawValue>, String> {
    if content_type.is_some_and(|content_type| !is_json(content_type)) {
        return Ok(None);
    }
    // Some programs write a mark in front, which readers may skip
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match serde_json::from_slice(bytes) {
        Ok(value) => Ok(Some(value)),
        Err(_) if content_type.is_none() => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Position;
    use common::trace_context::TraceContext;

    fn message(content_type: Option<&str>, attributes: Option<&str>, body: &str) -> StoredMessage {
        StoredMessage {
            position: Position { epoch: 1, sequence: 0 },
            published_at: 0,
            content_type: content_type.map(ToOwned::to_owned),
            attributes: attributes.map(ToOwned::to_owned),
            body: body.as_bytes().to_vec(),
            trace: TraceContext::default(),
        }
    }

    fn fits_of(filter: &MessageFilter, message: &StoredMessage) -> bool {
        filter.matches(message) == FilterVerdict::Matches
    }

    fn filter(json: &str) -> MessageFilter {
        let filter: MessageFilter = serde_json::from_str(json).expect(json);
        filter.check().expect(json);
        filter
    }

    #[test]
    fn all_conditions_must_hold_on_attributes() {
        let event = message(None, Some(r#"{"type":"order.paid","source":"/shop/7","n":5}"#), "");
        for (conditions, fits) in [
            (r#"{"type":"order.paid"}"#, true),
            (r#"{"type":"order"}"#, false),
            (r#"{"type":{"prefix":"order."},"source":{"prefix":"/shop"}}"#, true),
            (r#"{"type":{"prefix":"order."},"source":{"prefix":"/other"}}"#, false),
            (r#"{"type":{"any_of":["a","order.paid"]}}"#, true),
            (r#"{"type":{"any_of":["a"]}}"#, false),
            (r#"{"n":5}"#, true),
            (r#"{"n":"5"}"#, true),
            (r#"{"n":5.0}"#, true),
            (r#"{"n":{"prefix":"5"}}"#, true),
            (r#"{"n":6}"#, false),
            (r#"{"missing":null}"#, false),
        ] {
            assert_eq!(fits_of(&filter(&format!(r#"{{"attributes":{conditions}}}"#)), &event), fits, "{conditions}");
        }
        assert!(!fits_of(&filter(r#"{"attributes":{"type":"x"}}"#), &message(None, None, "{}")), "it is no event");
        assert!(fits_of(&MessageFilter::default(), &message(None, None, "\u{0}")));
    }

    #[test]
    fn data_is_compared_where_the_pointer_points() {
        let json = r#"{"order":{"id":7,"paid":true,"tags":["a","b"],"total":7.5},"":1,"a/b":2,"n":null}"#;
        for (conditions, fits) in [
            (r#"{"/order/id":7}"#, true),
            (r#"{"/order/id":7.0}"#, true),
            (r#"{"/order/id":"7"}"#, false),
            (r#"{"/order/id":{"any_of":[6,7]}}"#, true),
            (r#"{"/order/paid":true,"/order/tags/1":{"prefix":"b"}}"#, true),
            (r#"{"/order/tags/2":"c"}"#, false),
            (r#"{"/order/id":{"prefix":"7"}}"#, false),
            (r#"{"/":1,"/a~1b":2,"/n":null}"#, true),
            (r#"{"/none":null}"#, false),
        ] {
            let filter = filter(&format!(r#"{{"data":{conditions}}}"#));
            assert_eq!(fits_of(&filter, &message(Some("application/json"), None, json)), fits, "{conditions}");
            assert_eq!(fits_of(&filter, &message(None, None, json)), fits, "{conditions}, not said to be JSON");
            assert!(!fits_of(&filter, &message(Some("text/plain"), None, json)), "{conditions}, said to be text");
            let event = format!(r#"{{"specversion":"1.0","data":{json}}}"#);
            let event = message(Some(cloud_event::STRUCTURED_MEDIA_TYPE), None, &event);
            assert_eq!(fits_of(&filter, &event), fits, "{conditions}, in an event");
        }
        for odd in ["", "{", "[1", "\u{1}", &"[".repeat(200)] {
            assert!(!fits_of(&filter(r#"{"data":{"/a":1}}"#), &message(None, None, odd)), "{odd}");
        }
    }

    #[test]
    fn numbers_are_compared_exactly() {
        for (wanted, given, fits) in [
            ("9007199254740993", "9007199254740993", true),
            ("9007199254740993", "9007199254740992", false),
            ("9007199254740993", "9007199254740993.0", true),
            ("18446744073709551617", "18446744073709551616", false),
            ("0.1", "0.1000000000000000055", false),
            ("1e400", "10e399", true),
        ] {
            let filter = filter(&format!(r#"{{"data":{{"/id":{wanted}}}}}"#));
            let message = message(Some("application/json"), None, &format!(r#"{{"id":{given}}}"#));
            assert_eq!(fits_of(&filter, &message), fits, "{wanted} {given}");
        }
    }

    #[test]
    fn whatever_is_published_as_json_is_read() {
        let filter = filter(r#"{"data":{"/kind":"a"}}"#);
        let deep = format!(r#"{{"x":{}{},"kind":"a"}}"#, "[".repeat(5000), "]".repeat(5000));
        for body in [
            deep.as_str(),
            r#"{"x":1e999,"kind":"a"}"#,
            r#"{"x":"\ud800","kind":"a"}"#,
            r#"{"\udfff":1,"kind":"\u0061"}"#,
            r#"{"kind":"b","kind":"a"}"#,
            "\u{feff} {\"kind\":\"a\"}",
        ] {
            for content_type in [None, Some("application/json"), Some("Application/Vnd.Shop+JSON; charset=utf-8")] {
                assert!(fits_of(&filter, &message(content_type, None, body)), "{content_type:?} {body:.40}");
            }
        }
    }

    #[test]
    fn what_says_that_it_is_json_and_is_not_is_not_excluded() {
        let filter = filter(r#"{"attributes":{"type":"t"},"data":{"/kind":"a"}}"#);
        let verdict = |attributes: &str, content_type, body: &[u8]| {
            let message = message(Some(content_type), Some(attributes), "");
            filter.matches(&StoredMessage { body: body.to_vec(), ..message })
        };
        for body in [&b"{\"kind\":\"a\""[..], b"", b"\xff", b"{} {}"] {
            let unreadable = verdict(r#"{"type":"t"}"#, "application/json", body);
            assert!(matches!(unreadable, FilterVerdict::Unreadable(_)), "{body:?}");
            assert_eq!(verdict(r#"{"type":"u"}"#, "application/json", body), FilterVerdict::Excluded, "{body:?}");
            assert_eq!(verdict(r#"{"type":"t"}"#, "text/plain", body), FilterVerdict::Excluded, "{body:?}");
        }
    }

    #[test]
    fn an_event_matches_the_same_in_every_mode() {
        // As header, as JSON, and how the data is sent in each mode
        let binary = |attributes: &str, content_type, body: &str| message(content_type, Some(attributes), body);
        let structured = |attributes: &str, more: &str| {
            let members = attributes.trim_matches(['{', '}']);
            let body = format!("{{{members},{more}}}");
            message(Some("application/CloudEvents+JSON"), Some(attributes), &body)
        };
        let json = r#"{"specversion":"1.0","type":"t","n":7,"is":true,"zero":-0}"#;
        let text = r#"{"specversion":"1.0","type":"t","n":"7","is":"true","zero":"0"}"#;
        let typed =
            r#"{"specversion":"1.0","type":"t","n":7,"is":true,"zero":-0,"datacontenttype":"Application/JSON"}"#;
        let modes = [
            binary(text, Some("application/json"), r#"{"id":7}"#),
            binary(text, Some("APPLICATION/JSON"), r#"{"id":7}"#),
            structured(json, r#""data":{"id":7}"#),
            structured(typed, r#""datacontenttype":"Application/JSON","data":{"id":7}"#),
            structured(json, r#""data_base64":"eyJpZCI6N30=""#),
        ];
        for (conditions, fits) in [
            (r#"{"attributes":{"n":7}}"#, true),
            (r#"{"attributes":{"n":"7","is":true,"zero":0}}"#, true),
            (r#"{"attributes":{"n":8}}"#, false),
            (r#"{"attributes":{"is":false}}"#, false),
            (r#"{"attributes":{"datacontenttype":"application/Json"}}"#, true),
            (r#"{"attributes":{"datacontenttype":{"prefix":"application/"}}}"#, true),
            (r#"{"attributes":{"datacontenttype":"text/xml"}}"#, false),
            (r#"{"data":{"/id":7}}"#, true),
            (r#"{"data":{"/id":8}}"#, false),
        ] {
            for message in &modes {
                assert_eq!(fits_of(&filter(conditions), message), fits, "{conditions} {message:?}");
            }
        }
        let xml = r#"{"specversion":"1.0","type":"t","datacontenttype":"text/xml"}"#;
        for message in [
            binary(r#"{"specversion":"1.0","type":"t"}"#, Some("text/xml"), "\"a\""),
            structured(xml, r#""data":"a""#),
            structured(xml, r#""data_base64":"ImEi""#),
        ] {
            assert!(!fits_of(&filter(r#"{"data":{"":"a"}}"#), &message), "{message:?}");
            assert!(fits_of(&filter(r#"{"attributes":{"datacontenttype":"Text/XML"}}"#), &message), "{message:?}");
        }
    }

    #[test]
    fn what_could_never_fit_is_refused() {
        for (json, said) in [
            (r#"{"attributes":{"type":[1]}}"#, "expected a string"),
            (r#"{"attributes":{"type":{"prefix":1}}}"#, "expected a string"),
            (r#"{"attributes":{"type":{"any_of":[[1]]}}}"#, "expected a string"),
            (r#"{"attributes":{"type":{"prefix":"a","any_of":["b"]}}}"#, "expected a string"),
            (r#"{"attributes":{"type":{"suffix":"a"}}}"#, "expected a string"),
            (r#"{"header":{}}"#, "unknown field"),
            (r#"{"attributes":{"Type":"a"}}"#, "names of a-z and 0-9"),
            (r#"{"attributes":{"type":{"any_of":[]}}}"#, "1 to 100 values"),
            (r#"{"data":{"order.id":7}}"#, "JSON pointers"),
            (r#"{"data":{"/a~2":7}}"#, "JSON pointers"),
        ] {
            let refused = match serde_json::from_str::<MessageFilter>(json) {
                Err(error) => error.to_string(),
                Ok(filter) => filter.check().expect_err(json),
            };
            assert!(refused.contains(said), "{json}: {refused}");
        }
        let long = format!(r#"{{"data":{{"/a":"{}"}}}}"#, "x".repeat(257));
        let long: MessageFilter = serde_json::from_str(&long).expect("JSON");
        assert!(long.check().expect_err("long").contains("at most 256 characters"));
        let many: BTreeMap<String, u8> = (0..33).map(|n| (format!("/{n}"), 1)).collect();
        let many: MessageFilter = serde_json::from_value(serde_json::json!({ "data": many })).expect("JSON");
        assert!(many.check().expect_err("many").contains("at most 32 conditions"));
    }

    #[test]
    fn it_is_written_as_it_was_read() {
        let json = r#"{"attributes":{"type":{"prefix":"order."}},"data":{"/a":7.10e400,"/b":{"any_of":["x",null]}}}"#;
        assert_eq!(serde_json::to_string(&filter(json)).expect("JSON"), json);
    }
}
