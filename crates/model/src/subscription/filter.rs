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
use common::{
    json::{JsonError, Object},
    json_members,
    name::quoted,
};

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
    /// Reads a filter that a client wrote.
    ///
    /// # Errors
    /// It is not a filter, or one that [`check`](Self::check) refuses. The text says what is allowed.
    pub fn parse(text: &str, depth_limit: usize) -> Result<Self, String> {
        // Arrays of the members of its parts would parse too
        if !text.trim_start().starts_with('{') {
            return Err("filter must be an object with attributes, data or both".to_owned());
        }
        let filter: Self = json_members::parse_request(text.as_bytes(), depth_limit).map_err(|error| match error {
            JsonError::Unexpected(text) | JsonError::UnknownMember(text) => format!("filter: {text}"),
            other => format!("filter: {other}"),
        })?;
        filter.check().map_err(|problem| format!("filter: {problem}"))?;
        Ok(filter)
    }

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
        let content_type = message.content_type.as_deref();
        if !self.matches_attributes(content_type, message.attributes.as_deref()) {
            return FilterVerdict::Excluded;
        }
        if self.data.is_empty() { FilterVerdict::Matches } else { self.matches_data(content_type, &message.body) }
    }

    /// What it says of a message as clients see it: what [`StoredMessage::to_json`] wrote.
    #[must_use]
    pub fn matches_shown(&self, json: &str) -> FilterVerdict {
        let Ok(members) = serde_json::from_str::<Object>(json) else { return FilterVerdict::Excluded };
        let content_type = members.get("content_type").and_then(|text| serde_json::from_str::<String>(text.get()).ok());
        let content_type = content_type.as_deref();
        if !self.matches_attributes(content_type, members.get("attributes").map(RawValue::get)) {
            return FilterVerdict::Excluded;
        }
        if self.data.is_empty() {
            return FilterVerdict::Matches;
        }
        let body = shown_body(content_type, members.get("data"));
        body.map_or(FilterVerdict::Excluded, |body| self.matches_data(content_type, body.as_bytes()))
    }

    fn matches_attributes(&self, content_type: Option<&str>, attributes: Option<&str>) -> bool {
        if self.attributes.is_empty() {
            return true;
        }
        let attributes: Option<Object> = attributes.and_then(|text| serde_json::from_str(text).ok());
        let Some(attributes) = attributes else { return self.attributes.values().all(FilterCondition::matches_absent) };
        self.attributes.iter().all(|(name, condition)| {
            if name == DATA_CONTENT_TYPE {
                return data_content_type(content_type, &attributes)
                    .map_or(condition.matches_absent(), |media_type| condition.matches_media_type(&media_type));
            }
            let value = attributes.get(name).map(cloud_event::attribute_text);
            value.map_or(condition.matches_absent(), |value| condition.matches_attribute(&value))
        })
    }

    fn matches_data(&self, content_type: Option<&str>, body: &[u8]) -> FilterVerdict {
        let is_structured = content_type.is_some_and(cloud_event::is_structured);
        let body = match read_json(body, content_type) {
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
            find(data, pointer).map_or(condition.matches_absent(), |value| condition.matches(value))
        };
        if self.data.iter().all(holds) { FilterVerdict::Matches } else { FilterVerdict::Excluded }
    }
}

/// The content type of an event's data, which structured mode has among the attributes. Without one it is JSON there.
fn data_content_type<'a>(content_type: Option<&'a str>, attributes: &Object<'a>) -> Option<Cow<'a, str>> {
    if !content_type.is_some_and(cloud_event::is_structured) {
        return content_type.map(Cow::Borrowed);
    }
    let given = attributes.get(DATA_CONTENT_TYPE).map(cloud_event::attribute_text);
    Some(given.unwrap_or(Cow::Borrowed("application/json")))
}

/// The body of a message that clients see with this `data`. None of bytes that are no text: no JSON is among them.
fn shown_body<'a>(content_type: Option<&str>, data: Option<&'a RawValue>) -> Option<Cow<'a, str>> {
    let data = data?;
    if !data.get().starts_with('"') {
        return Some(Cow::Borrowed(data.get()));
    }
    let Ok(text) = serde_json::from_str::<String>(data.get()) else { return Some(Cow::Borrowed(data.get())) };
    // JSON is shown as text if it is very deep, or if it is none. A JSON string is shown as it is
    let is_string =
        content_type.is_some_and(is_json) && !text.trim_start_matches(['\u{feff}', ' ']).starts_with(['{', '[']);
    Some(if is_string { Cow::Borrowed(data.get()) } else { Cow::Owned(text) })
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
mod tests;
