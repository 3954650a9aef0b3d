//! A JSON object whose values are not decoded.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::known_names;

/// Most members of one object in a request. It bounds the search for duplicates.
const MAX_MEMBERS: usize = 256;

/// The members of a JSON object in their order. Each value is the bytes that were received.
#[derive(Debug, Clone, Default)]
pub struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Object<'a> {
    /// The value of a member. A `null` counts as absent.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| *value).filter(|value| value.get() != "null")
    }

    /// Refuses members of other names.
    ///
    /// # Errors
    /// The message names the first one, the nearest known name and all known names.
    pub fn check_names(&self, known: &[&str]) -> Result<(), String> {
        let stranger = self.0.iter().find(|(name, _)| !known.contains(&name.as_ref()));
        stranger.map_or(Ok(()), |(name, _)| Err(known_names::unknown("member", name, known)))
    }

    /// Reads JSON that was accepted once. It may have more members than a request: Galley adds its own, and what is inside a
    /// job is not looked into.
    ///
    /// # Errors
    /// It is not an object.
    pub fn of_stored(text: &'a str) -> serde_json::Result<Self> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let object = reader.deserialize_map(ObjectVisitor { is_request: false })?;
        reader.end().map(|()| object)
    }

    /// The members in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), *value))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor { is_request: true })
    }
}

struct ObjectVisitor {
    /// Whether too many members are refused, and two of one name.
    is_request: bool,
}

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::new();
        while let Some(MemberName(key)) = map.next_key()? {
            if self.is_request && members.iter().any(|(known, _)| *known == key) {
                return Err(A::Error::custom(format!("duplicate member {}", crate::name::quoted(&key))));
            }
            if self.is_request && members.len() == MAX_MEMBERS {
                return Err(A::Error::custom(format!("more than {MAX_MEMBERS} members")));
            }
            members.push((key, map.next_value()?));
        }
        Ok(Object(members))
    }
}

pub(crate) struct MemberName<'a>(pub(crate) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for MemberName<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MemberNameVisitor;
        impl<'de> Visitor<'de> for MemberNameVisitor {
            type Value = MemberName<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member name")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(MemberName(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(MemberName(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(MemberNameVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_may_have_more_members_than_a_request() {
        let members = |count: usize| (0..count).map(|number| format!("\"x{number}\":{number}")).collect::<Vec<_>>();
        let text = format!("{{{}}}", members(MAX_MEMBERS + 1).join(","));
        assert!(serde_json::from_str::<Object>(&text).is_err());
        let object = Object::of_stored(&text).expect("it was accepted once");
        assert_eq!(object.get("x256").map(RawValue::get), Some("256"));
        assert_eq!(Object::of_stored("{\"a\":1,\"a\":2}").expect("an object").iter().count(), 2);
        for text in ["[]", "1", "{", "{} {}"] {
            assert!(Object::of_stored(text).is_err(), "{text}");
        }
    }
}
