//! Which messages a subscription delivers: conditions on the attributes of `CloudEvents` and on values in JSON data,
//! all of which must match.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::Value;

use crate::message::{StoredMessage, cloud_event, essence, is_json};
use common::{json, name::quoted};

/// Most conditions of one filter.
const MAX_CONDITIONS: usize = 32;
/// Most values of one condition.
const MAX_VALUES: usize = 100;
/// Most characters of an attribute's name, of a pointer, and of a text to compare with.
const MAX_TEXT_CHARS: usize = 256;
/// Deepest data that a condition can match.
const DEPTH_LIMIT: usize = 64;

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

/// What a value must be. An absent value matches nothing.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
enum FilterCondition {
    Equals(Value),
    Prefix { prefix: String },
    AnyOf { any_of: Vec<Value> },
}

impl<'de> Deserialize<'de> for FilterCondition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let allowed = "a string, a number, true, false or null, {\"prefix\": \"...\"} or {\"any_of\": [...]}";
        let value = Value::deserialize(deserializer)?;
        let refused =
            |value: &Value| D::Error::custom(format!("expected {allowed}, got {}", quoted(&value.to_string())));
        let Value::Object(members) = &value else {
            return if is_scalar(&value) { Ok(Self::Equals(value)) } else { Err(refused(&value)) };
        };
        let mut members_of_it = members.iter();
        match (members_of_it.next(), members_of_it.next()) {
            (Some((name, Value::String(prefix))), None) if name == "prefix" => {
                Ok(Self::Prefix { prefix: prefix.clone() })
            }
            (Some((name, Value::Array(values))), None) if name == "any_of" && values.iter().all(is_scalar) => {
                Ok(Self::AnyOf { any_of: values.clone() })
            }
            _ => Err(refused(&value)),
        }
    }
}

fn is_scalar(value: &Value) -> bool {
    !value.is_array() && !value.is_object()
}

impl FilterCondition {
    fn matches(&self, value: &Value) -> bool {
        match self {
            Self::Equals(wanted) => is_equal(wanted, value),
            Self::Prefix { prefix } => value.as_str().is_some_and(|text| text.starts_with(prefix)),
            Self::AnyOf { any_of } => any_of.iter().any(|wanted| is_equal(wanted, value)),
        }
    }

    fn values(&self) -> Vec<&Value> {
        match self {
            Self::Equals(value) => vec![value],
            Self::Prefix { .. } => Vec::new(),
            Self::AnyOf { any_of } => any_of.iter().collect(),
        }
    }

    /// The text says what is allowed.
    fn check(&self) -> Result<(), String> {
        if let Self::AnyOf { any_of } = self
            && !(1..=MAX_VALUES).contains(&any_of.len())
        {
            return Err(format!("any_of must have 1 to {MAX_VALUES} values, got {}", any_of.len()));
        }
        let prefix = if let Self::Prefix { prefix } = self { Some(prefix.as_str()) } else { None };
        let mut texts = self.values().into_iter().filter_map(Value::as_str).chain(prefix);
        texts.try_for_each(check_text)
    }
}

/// Numbers are equal if their values are: 7 and 7.0.
fn is_equal(wanted: &Value, value: &Value) -> bool {
    match (wanted, value) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64() && !(a.is_u64() && b.is_u64()),
        _ => wanted == value,
    }
}

fn check_text(text: &str) -> Result<(), String> {
    if text.chars().count() <= MAX_TEXT_CHARS {
        return Ok(());
    }
    Err(format!("names and texts of a filter must have at most {MAX_TEXT_CHARS} characters, unlike {}", quoted(text)))
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

    /// Whether it matches a message.
    #[must_use]
    pub fn matches(&self, message: &StoredMessage) -> bool {
        self.matches_attributes(message) && self.matches_data(message)
    }

    fn matches_attributes(&self, message: &StoredMessage) -> bool {
        if self.attributes.is_empty() {
            return true;
        }
        let attributes: Option<Value> =
            message.attributes.as_deref().and_then(|text| json::parse(text.as_bytes(), DEPTH_LIMIT).ok());
        let Some(Value::Object(attributes)) = attributes else { return false };
        self.attributes
            .iter()
            .all(|(name, condition)| attributes.get(name).is_some_and(|value| condition.matches(value)))
    }

    fn matches_data(&self, message: &StoredMessage) -> bool {
        if self.data.is_empty() {
            return true;
        }
        // Most publishers of JSON set no content type
        let content_type = message.content_type.as_deref();
        if content_type.is_some_and(|content_type| !is_json(content_type)) {
            return false;
        }
        let Ok(body) = json::parse::<Value>(&message.body, DEPTH_LIMIT) else { return false };
        let is_event =
            content_type.is_some_and(|content_type| essence(content_type) == cloud_event::STRUCTURED_MEDIA_TYPE);
        let data = if is_event { body.get("data") } else { Some(&body) };
        let Some(data) = data else { return false };
        self.data.iter().all(|(pointer, condition)| data.pointer(pointer).is_some_and(|value| condition.matches(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Position;

    fn message(content_type: Option<&str>, attributes: Option<&str>, body: &str) -> StoredMessage {
        StoredMessage {
            position: Position { epoch: 1, sequence: 0 },
            published_at: 0,
            content_type: content_type.map(ToOwned::to_owned),
            attributes: attributes.map(ToOwned::to_owned),
            body: body.as_bytes().to_vec(),
        }
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
            (r#"{"n":"5"}"#, false),
            (r#"{"missing":null}"#, false),
        ] {
            assert_eq!(filter(&format!(r#"{{"attributes":{conditions}}}"#)).matches(&event), fits, "{conditions}");
        }
        assert!(!filter(r#"{"attributes":{"type":"x"}}"#).matches(&message(None, None, "{}")), "it is no event");
        assert!(MessageFilter::default().matches(&message(None, None, "\u{0}")));
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
            assert_eq!(filter.matches(&message(Some("application/json"), None, json)), fits, "{conditions}");
            assert_eq!(filter.matches(&message(None, None, json)), fits, "{conditions}, not said to be JSON");
            assert!(!filter.matches(&message(Some("text/plain"), None, json)), "{conditions}, said to be text");
            let event = format!(r#"{{"specversion":"1.0","data":{json}}}"#);
            let event = message(Some(cloud_event::STRUCTURED_MEDIA_TYPE), None, &event);
            assert_eq!(filter.matches(&event), fits, "{conditions}, in an event");
        }
        for odd in ["", "{", "[1", "\u{1}", &"[".repeat(200)] {
            assert!(!filter(r#"{"data":{"/a":1}}"#).matches(&message(None, None, odd)), "{odd}");
        }
    }

    #[test]
    fn large_integers_are_not_confused() {
        let filter = filter(r#"{"data":{"/id":9007199254740993}}"#);
        assert!(filter.matches(&message(None, None, r#"{"id":9007199254740993}"#)));
        assert!(!filter.matches(&message(None, None, r#"{"id":9007199254740992}"#)));
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
        let json = r#"{"attributes":{"type":{"prefix":"order."}},"data":{"/a":7,"/b":{"any_of":["x",null]}}}"#;
        assert_eq!(serde_json::to_string(&filter(json)).expect("JSON"), json);
    }
}
