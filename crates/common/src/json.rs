//! JSON at the edge: checked for depth and duplicate names, then passed on as the bytes that were received.
//!
//! Payloads are never decoded and encoded again, so numbers, key order and unknown fields stay as they are.
//! `RawValue` accepts any nesting depth, hence the check here before anything else reads a body.

use std::{
    borrow::Cow,
    collections::HashSet,
    fmt::{self, Write},
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};

pub(crate) use crate::json_object::MemberName;
pub use crate::json_object::Object;

/// Why a body is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, or not UTF-8.
    #[error("body is not valid JSON: {0}")]
    Malformed(String),
    /// JSON of another shape than expected.
    #[error("body has the wrong shape: {0}")]
    Unexpected(String),
    /// A member that the request does not have.
    #[error("{0}")]
    UnknownMember(String),
    /// Deeper than allowed.
    #[error("body is nested too deeply: at most {limit} levels are allowed")]
    TooDeep {
        /// Levels allowed.
        limit: usize,
    },
}

/// Reads a body as a `T` after checking that it is UTF-8 and nested at most `depth_limit` levels deep.
///
/// # Errors
/// Malformed or too deep; the message says where.
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], depth_limit: usize) -> Result<T, JsonError> {
    let text = checked_text(body, depth_limit)?;
    // Noting the path to each value costs more than reading it, and only an error needs it
    if let Ok(parsed) = serde_json::from_str(text) {
        return Ok(parsed);
    }
    let malformed = |error: serde_json::Error| JsonError::Malformed(error.to_string());
    let mut reader = serde_json::Deserializer::from_str(text);
    let parsed = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        match error.inner().classify() {
            // The path of the whole body is a dot, which would confuse
            serde_json::error::Category::Data if path == "." => JsonError::Unexpected(error.inner().to_string()),
            serde_json::error::Category::Data => JsonError::Unexpected(error.to_string()),
            _ => malformed(error.into_inner()),
        }
    })?;
    reader.end().map_err(malformed)?;
    Ok(parsed)
}

/// A body as text that is not nested too deeply.
pub(crate) fn checked_text(body: &[u8], depth_limit: usize) -> Result<&str, JsonError> {
    if body.starts_with(b"\xef\xbb\xbf") {
        return Err(JsonError::Malformed("it begins with a byte order mark: send UTF-8 without one".to_owned()));
    }
    let text = std::str::from_utf8(body).map_err(|error| JsonError::Malformed(format!("not UTF-8 ({error})")))?;
    if nesting_depth(text) > depth_limit {
        return Err(JsonError::TooDeep { limit: depth_limit });
    }
    Ok(text)
}

/// How deeply the brackets of a JSON text are nested. Brackets inside strings do not count.
fn nesting_depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = text.as_bytes();
    while let Some((byte, rest)) = bytes.split_first() {
        bytes = rest;
        match byte {
            b'"' => bytes = after_string(rest),
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// What follows a string whose first quotation mark was read. Most bytes of a body are in strings, so they are skipped
/// many at a time.
fn after_string(mut bytes: &[u8]) -> &[u8] {
    while let Some(at) = memchr::memchr2(b'"', b'\\', bytes) {
        let length = if bytes[at] == b'"' { 1 } else { 2 };
        bytes = bytes.get(at + length..).unwrap_or_default();
        if length == 1 {
            return bytes;
        }
    }
    &[]
}

/// JSON in which no object, at any depth, has two members of the same name.
#[derive(Debug, Clone, Copy)]
pub struct NoDuplicateMembers;

impl<'de> Deserialize<'de> for NoDuplicateMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NoDuplicateMembers)
    }
}

impl<'de> Visitor<'de> for NoDuplicateMembers {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while let Some(Self) = items.next_element()? {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut names: HashSet<Cow<'de, str>> = HashSet::new();
        while let Some(MemberName(name)) = map.next_key()? {
            if names.contains(&name) {
                return Err(A::Error::custom(format!("duplicate member {}", crate::name::quoted(&name))));
            }
            names.insert(name);
            let Self = map.next_value()?;
        }
        Ok(self)
    }
}

/// Writes a JSON object member by member. Values are encoded here, or copied if they are JSON already.
#[derive(Debug)]
pub struct ObjectWriter(String);

impl Default for ObjectWriter {
    fn default() -> Self {
        Self(String::from("{"))
    }
}

impl ObjectWriter {
    /// An empty object with room for `capacity` bytes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        let mut text = String::with_capacity(capacity);
        text.push('{');
        Self(text)
    }

    /// Adds a member whose value is JSON already.
    pub fn raw(&mut self, name: &str, json: &str) -> &mut Self {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        push_string(&mut self.0, name);
        self.0.push(':');
        self.0.push_str(json);
        self
    }

    /// Adds a string.
    pub fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.raw(name, "");
        push_string(&mut self.0, value);
        self
    }

    /// Adds a number.
    pub fn number(&mut self, name: &str, value: impl Into<i128>) -> &mut Self {
        let value: i128 = value.into();
        self.raw(name, "");
        // 128 bits are slow to print. Writing to a string cannot fail
        let _ = match i64::try_from(value) {
            Ok(value) => write!(self.0, "{value}"),
            Err(_) => write!(self.0, "{value}"),
        };
        self
    }

    /// Adds every member of an object, given as JSON text `{...}` without space around it.
    pub fn splice(&mut self, object: &str) -> &mut Self {
        let members = object.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or_default();
        if !members.is_empty() {
            if self.0.len() > 1 {
                self.0.push(',');
            }
            self.0.push_str(members);
        }
        self
    }

    /// The finished object.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// Appends a JSON string.
fn push_string(out: &mut String, value: &str) {
    // The fast path: most strings are names and times that need no escape. Without an early end many bytes are checked at
    // a time
    let needs_escape = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    if !value.bytes().fold(false, |found, byte| found | needs_escape(byte)) {
        out.push('"');
        out.push_str(value);
        out.push('"');
        return;
    }
    // Writing to a string cannot fail, and every &str is valid JSON string content once escaped
    out.push_str(&serde_json::to_string(value).unwrap_or_else(|_| String::from("\"\"")));
}

/// JSON in which no character ends a line for any reader. JSON allows three such characters in its strings as they are
/// (U+0085, U+2028, U+2029), and readers of lines in Python and others split there.
#[must_use]
pub fn escape_line_ends(json: &str) -> Cow<'_, str> {
    // The first bytes of these characters: most text has neither, and looking for bytes is fast
    if !json.bytes().any(|byte| byte == 0xc2 || byte == 0xe2) || !json.contains(['\u{85}', '\u{2028}', '\u{2029}']) {
        return Cow::Borrowed(json);
    }
    let escaped = json.replace('\u{85}', "\\u0085").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn depth_counts_brackets_outside_strings() {
        for (text, levels) in [("1", 0), ("[]", 1), ("[[{}]]", 3), (r#"["[[[[", "\"["]"#, 1), ("[1],[2]", 1)] {
            assert_eq!(nesting_depth(text), levels, "{text}");
        }
    }

    #[test]
    fn a_million_brackets_are_refused_without_overflowing_the_stack() {
        let deep = "[".repeat(1_000_000);
        assert_eq!(parse::<&RawValue>(deep.as_bytes(), 64).unwrap_err(), JsonError::TooDeep { limit: 64 });
    }

    #[test]
    fn duplicate_members_are_refused() {
        let error = parse::<Object>(br#"{"type":"a","\u0074ype":"b"}"#, 8).unwrap_err();
        assert!(error.to_string().contains("duplicate member \"type\""), "{error}");
    }

    #[test]
    fn values_keep_their_bytes() {
        let object: Object =
            parse(br#"{"a": 9007199254740993, "b": {"z":1, "a":1e400}, "c": null}"#, 8).expect("parses");
        assert_eq!(object.get("a").map(RawValue::get), Some("9007199254740993"));
        assert_eq!(object.get("b").map(RawValue::get), Some(r#"{"z":1, "a":1e400}"#));
        assert!(object.get("c").is_none());
    }

    #[test]
    fn an_object_is_written_member_by_member() {
        let mut object = ObjectWriter::default();
        object.text("a\"b", "c\n").number("n", -1).raw("r", "[1]").splice("{}").splice(r#"{"x":1,"y":2}"#);
        assert_eq!(object.finish(), r#"{"a\"b":"c\n","n":-1,"r":[1],"x":1,"y":2}"#);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse::<Object>(&bytes, 8);
        }
    }

    #[test]
    fn no_character_of_escaped_json_ends_a_line() {
        let json = "{\"a\":\"1\u{85}2\u{2028}3\u{2029}4\u{e9}\"}";
        let escaped = escape_line_ends(json);
        assert_eq!(escaped, "{\"a\":\"1\\u00852\\u20283\\u20294\u{e9}\"}");
        let [before, after] =
            [json, &escaped].map(|json| serde_json::from_str::<serde_json::Value>(json).expect("JSON"));
        assert_eq!(before, after);
        assert!(matches!(escape_line_ends("{\"a\":\"\u{e9} \u{a0} \u{2030}\"}"), Cow::Borrowed(_)));
    }
}
