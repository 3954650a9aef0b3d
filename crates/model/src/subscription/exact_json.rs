//! JSON read for filters: a value at a pointer, and scalars that are compared exactly.
//!
//! Reads whatever a publisher may send as JSON: any depth, numbers of any size and precision, lone surrogates,
//! duplicate members (the last one counts, as in most parsers). Numbers are never rounded.

use std::{borrow::Cow, cmp::Ordering};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// A number as its value: `digits` times ten to the power of `exponent`. Equal numbers are spelled alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decimal {
    is_negative: bool,
    /// Without zeros at either end; none for zero.
    digits: String,
    /// None if it is beyond any number that means something: then the number equals none but itself.
    exponent: Result<i64, String>,
}

/// A string, number, boolean or null.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Number(Decimal),
    /// UTF-8, in which a lone surrogate is encoded as if it were a character.
    Text(Vec<u8>),
}

impl Decimal {
    /// Reads a JSON number.
    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str::<&RawValue>(text).ok().filter(|raw| raw.get() == text)?;
        let (is_negative, unsigned) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        if !unsigned.starts_with(|first: char| first.is_ascii_digit()) {
            return None;
        }
        let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = [whole, fraction].concat();
        let trimmed = digits.trim_end_matches('0');
        let shift = i64::try_from(digits.len() - trimmed.len()).ok()? - i64::try_from(fraction.len()).ok()?;
        let digits = trimmed.trim_start_matches('0').to_owned();
        if digits.is_empty() {
            return Some(Self { is_negative: false, digits, exponent: Ok(0) });
        }
        let exponent = exponent.strip_prefix('+').unwrap_or(exponent);
        let exponent = exponent.parse::<i64>().ok().and_then(|exponent| exponent.checked_add(shift));
        Some(Self { is_negative, digits, exponent: exponent.ok_or_else(|| text.to_owned()) })
    }

    /// Which of two numbers is larger; none if one of them is beyond any number that means something.
    pub(super) fn compare(&self, other: &Self) -> Option<Ordering> {
        let (mine, others) = (self.exponent.as_ref().ok()?, other.exponent.as_ref().ok()?);
        let sign = |number: &Self| if number.digits.is_empty() { 0 } else { 1 - 2 * i32::from(number.is_negative) };
        if sign(self) != sign(other) || sign(self) == 0 {
            return Some(sign(self).cmp(&sign(other)));
        }
        let places = |digits: &str, exponent: i64| i64::try_from(digits.len()).ok()?.checked_add(exponent);
        let by_size = places(&self.digits, *mine)?.cmp(&places(&other.digits, *others)?);
        // Without zeros at the end, digits of the same places are in the order of their texts
        let size = by_size.then_with(|| self.digits.cmp(&other.digits));
        Some(if self.is_negative { size.reverse() } else { size })
    }
}

impl Scalar {
    /// None for an object or an array.
    pub(super) fn parse(raw: &RawValue) -> Option<Self> {
        Some(match raw.get() {
            "null" => Self::Null,
            "true" => Self::Bool(true),
            "false" => Self::Bool(false),
            text if text.starts_with('"') => Self::Text(serde_json::from_str::<Text>(text).ok()?.0.into_owned()),
            text => Self::Number(Decimal::parse(text)?),
        })
    }
}

/// The value at a JSON pointer (RFC 6901).
pub(super) fn find<'a>(value: &'a RawValue, pointer: &str) -> Option<&'a RawValue> {
    let Some(path) = pointer.strip_prefix('/') else { return pointer.is_empty().then_some(value) };
    let tokens = path.split('/').map(|token| token.replace("~1", "/").replace("~0", "~"));
    tokens.into_iter().try_fold(value, |value, token| child(value, &token))
}

/// A member of an object or an element of an array.
pub(super) fn child<'a>(value: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    let mut reader = serde_json::Deserializer::from_str(value.get());
    if value.get().starts_with('{') {
        return NamedMember(name).deserialize(&mut reader).ok()?;
    }
    let is_index = name == "0" || !name.starts_with('0') && name.bytes().all(|byte| byte.is_ascii_digit());
    let index = name.parse().ok().filter(|_| is_index && value.get().starts_with('['))?;
    Element(index).deserialize(&mut reader).ok()?
}

/// A string with escapes resolved, lone surrogates included.
struct Text<'a>(Cow<'a, [u8]>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(bytes)))
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(bytes.to_vec())))
            }
        }
        // Strings are read as bytes, because a lone surrogate is no character
        deserializer.deserialize_bytes(TextVisitor)
    }
}

struct NamedMember<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for NamedMember<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for NamedMember<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(Text(name)) = members.next_key()? {
            let value = members.next_value()?;
            if *name == *self.0.as_bytes() {
                found = Some(value);
            }
        }
        Ok(found)
    }
}

struct Element(usize);

impl<'de> DeserializeSeed<'de> for Element {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Element {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        for _ in 0..self.0 {
            if elements.next_element::<IgnoredAny>()?.is_none() {
                return Ok(None);
            }
        }
        let found = elements.next_element()?;
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at<'a>(json: &'a str, pointer: &str) -> Option<&'a str> {
        find(serde_json::from_str(json).expect(json), pointer).map(RawValue::get)
    }

    #[test]
    fn numbers_are_equal_if_their_values_are_and_only_then() {
        for same in [
            &["7", "7.0", "70e-1", "0.7e1", "7E+0", "0.07e2"][..],
            &["0", "-0", "0.000", "0e5", "-0.0e-99999999999999999999999"],
            &["1e400", "10e399", "0.1E401"],
            &["-1.5", "-15e-1"],
            &["100", "1e2", "1.00e2"],
        ] {
            for number in same {
                assert_eq!(Decimal::parse(number), Decimal::parse(same[0]), "{number}");
            }
        }
        for (a, b) in [
            ("9007199254740993", "9007199254740992"),
            ("9007199254740993.0", "9007199254740992.0"),
            ("18446744073709551616", "18446744073709551617"),
            ("0.1", "0.1000000000000000055511151231257827"),
            ("1e400", "1e401"),
            ("1e400", "-1e400"),
            ("1e99999999999999999999", "2e99999999999999999999"),
        ] {
            let (a, b) = (Decimal::parse(a).expect(a), Decimal::parse(b).expect(b));
            assert!(a != b && a == a.clone(), "{a:?} {b:?}");
        }
        for other in ["", "-", "01", "1.", ".5", "+1", "1e", "0x1", " 1", "true", "\"1\""] {
            assert_eq!(Decimal::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn numbers_are_in_the_order_of_their_values() {
        let rising =
            ["-1e400", "-20", "-9.5", "-0.001", "0", "1e-9", "0.5", "7", "7.0000000000000000000001", "10", "1e400"];
        for (a, left) in rising.iter().enumerate() {
            for (b, right) in rising.iter().enumerate() {
                let [left, right] = [left, right].map(|text| Decimal::parse(text).expect(text));
                assert_eq!(left.compare(&right), Some(a.cmp(&b)), "{left:?} {right:?}");
            }
        }
        let [huge, one] = ["1e99999999999999999999", "1"].map(|text| Decimal::parse(text).expect(text));
        assert_eq!((huge.compare(&one), one.compare(&huge)), (None, None));
        let [zero, other] = ["0", "-0.0e5"].map(|text| Decimal::parse(text).expect(text));
        assert_eq!(zero.compare(&other), Some(Ordering::Equal));
    }

    #[test]
    fn a_pointer_finds_its_value_in_whatever_is_json() {
        let json = r#"{"a":{"b":[1,{"c":2}]},"":3,"x/y":4,"m~n":5,"\u0064":6,"\ud800":7,"e":8,"e":9, "f" : 1e999 }"#;
        for (pointer, value) in [
            ("/a/b/0", Some("1")),
            ("/a/b/1/c", Some("2")),
            ("/a/b/2", None),
            ("/a/b/00", None),
            ("/a/b/-", None),
            ("/a/b/01", None),
            ("/", Some("3")),
            ("/x~1y", Some("4")),
            ("/m~0n", Some("5")),
            ("/d", Some("6")),
            ("/e", Some("9")),
            ("/f", Some("1e999")),
            ("/f/g", None),
            ("a", None),
        ] {
            assert_eq!(at(json, pointer), value, "{pointer}");
        }
        assert_eq!(at("[1]", ""), Some("[1]"));
        let deep = format!("{}7{}", r#"{"a":"#.repeat(1000), "}".repeat(1000));
        assert_eq!(at(&deep, &"/a".repeat(1000)), Some("7"));
        let many: Vec<String> = (0..1000).map(|n| format!(r#""k{n}":{n}"#)).collect();
        assert_eq!(at(&format!("{{{}}}", many.join(",")), "/k999"), Some("999"));
    }

    #[test]
    fn a_text_is_what_its_escapes_mean() {
        let text = |json: &str| Scalar::parse(serde_json::from_str(json).expect(json));
        assert_eq!(text(r#""\u0061\/b""#), Some(Scalar::Text(b"a/b".to_vec())));
        assert_eq!(text(r#""a\ud800""#), Some(Scalar::Text(b"a\xed\xa0\x80".to_vec())));
        assert_eq!(text("[1]"), None);
    }
}
