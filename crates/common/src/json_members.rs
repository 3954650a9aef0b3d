//! Requests as structs: a member that the struct does not read is refused, so that no request is half understood.
//!
//! The names come from the struct itself, so a new request cannot forget the check.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, Visitor, value},
    forward_to_deserialize_any,
};
use serde_json::value::RawValue;

use crate::json::{JsonError, MemberName, Object, checked_text, parse};

/// Reads a body as [`parse`] does. If `T` is a struct, the body may have only the members that it reads.
///
/// # Errors
/// Malformed, too deep, of another shape, or with an unknown member; the message says where.
pub fn parse_request<'a, T: Deserialize<'a>>(body: &'a [u8], depth_limit: usize) -> Result<T, JsonError> {
    let Some(known) = member_names::<T>() else { return parse(body, depth_limit) };
    let text = checked_text(body, depth_limit)?;
    let mut reader = serde_json::Deserializer::from_str(text);
    if let Ok(parsed) = T::deserialize(KnownMembers(&mut reader))
        && reader.end().is_ok()
    {
        return Ok(parsed);
    }
    // Read again for what is wrong, and where
    parse::<Object>(body, depth_limit)?.check_names(known).map_err(JsonError::UnknownMember)?;
    parse(body, depth_limit)
}

/// Reads a struct in one pass and refuses members that the struct does not have.
struct KnownMembers<D>(D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for KnownMembers<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(KnownMembersVisitor { visitor, fields })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct KnownMembersVisitor<V> {
    visitor: V,
    fields: &'static [&'static str],
}

impl<'de, V: Visitor<'de>> Visitor<'de> for KnownMembersVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(formatter)
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(KnownMembersAccess { members, fields: self.fields })
    }
}

struct KnownMembersAccess<A> {
    members: A,
    fields: &'static [&'static str],
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for KnownMembersAccess<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let Some(MemberName(name)) = self.members.next_key()? else { return Ok(None) };
        if !self.fields.contains(&name.as_ref()) {
            return Err(A::Error::custom("unknown member"));
        }
        seed.deserialize(value::CowStrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.members.next_value_seed(seed)
    }
}

/// A struct inside a request, read as [`parse_request`] reads the whole.
#[derive(Debug, Clone, Copy, Default)]
pub struct Members<T>(pub T);

impl<'de: 'a, 'a, T: Deserialize<'a>> Deserialize<'de> for Members<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&'de RawValue>::deserialize(deserializer)?;
        // The depth of the whole body is checked before
        parse_request(raw.get().as_bytes(), usize::MAX).map(Self).map_err(|error| match error {
            JsonError::Unexpected(problem) | JsonError::UnknownMember(problem) => D::Error::custom(problem),
            other => D::Error::custom(other),
        })
    }
}

/// The names that a derived struct reads; none for any other type.
fn member_names<'a, T: Deserialize<'a>>() -> Option<&'static [&'static str]> {
    let mut names = None;
    // Nothing is read: the struct says its names and gets an error
    let _ = T::deserialize(MemberNames(&mut names));
    names
}

struct MemberNames<'n>(&'n mut Option<&'static [&'static str]>);

impl<'de> Deserializer<'de> for MemberNames<'_> {
    type Error = value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, value::Error> {
        Err(value::Error::custom("only structs have names"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, value::Error> {
        *self.0 = Some(fields);
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize, Debug)]
    struct Outer<'a> {
        #[serde(alias = "other")]
        limit: Option<u64>,
        #[serde(borrow)]
        inner: Option<Members<Inner<'a>>>,
    }

    #[derive(Deserialize, Debug)]
    struct Inner<'a> {
        #[serde(rename = "type")]
        kind: Option<String>,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
    }

    #[test]
    fn members_that_nothing_reads_are_refused_at_any_depth() {
        let read: Outer = parse_request(br#"{"other":7,"inner":{"type":"a","data":[1.0]}}"#, 8).expect("allowed");
        let inner = read.inner.expect("an inner one").0;
        assert_eq!(
            (read.limit, inner.kind.as_deref(), inner.data.map(RawValue::get)),
            (Some(7), Some("a"), Some("[1.0]"))
        );
        for (json, said) in [
            (r#"{"limt":1}"#, r#"unknown member "limt", did you mean "limit"? known are limit, other, inner"#),
            (r#"{"inner":{"typ":"a"}}"#, r#"inner: unknown member "typ", did you mean "type"?"#),
            (r#"{"limit":1,"limit":2}"#, "duplicate member"),
            (r#"{"inner":{"type":"a","type":"a"}}"#, "inner: duplicate member"),
            (r#"{"limit":-1}"#, "limit: "),
        ] {
            let error = parse_request::<Outer>(json.as_bytes(), 8).expect_err(json).to_string();
            assert!(error.contains(said), "{json}: {error}");
        }
        parse_request::<Object>(br#"{"anything":1}"#, 8).expect("an object has any member");
    }
}
