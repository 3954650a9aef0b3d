//! One condition of a filter: what an attribute or a value in the data must be.

use std::cmp::Ordering;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::value::RawValue;

use super::exact_json::{Decimal, Scalar};
use common::{json::Object, name::quoted};

/// Most values of one condition.
const MAX_VALUES: usize = 100;
/// Most characters of an attribute's name, of a pointer, and of a text or number to compare with.
const MAX_TEXT_CHARS: usize = 256;

/// What a value must be. An absent value matches nothing, except that it must not exist.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum FilterCondition {
    Equals(FilterValue),
    Prefix { prefix: String },
    AnyOf { any_of: Vec<FilterValue> },
    Exists { exists: bool },
    Range(Box<NumberRange>),
}

/// Bounds of a number, at least one.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(super) struct NumberRange {
    #[serde(skip_serializing_if = "Option::is_none")]
    gt: Option<FilterValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gte: Option<FilterValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lt: Option<FilterValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lte: Option<FilterValue>,
}

impl NumberRange {
    fn parse(members: &Object) -> Option<Self> {
        let mut range = Self::default();
        for (name, value) in members.iter() {
            let bound = match name {
                "gt" => &mut range.gt,
                "gte" => &mut range.gte,
                "lt" => &mut range.lt,
                "lte" => &mut range.lte,
                _ => return None,
            };
            let value = FilterValue::parse(value).filter(|value| matches!(value.value, Scalar::Number(_)));
            *bound = Some(value?);
        }
        range.bounds().next()?;
        Some(range)
    }

    fn bounds(&self) -> impl Iterator<Item = &FilterValue> {
        [&self.gt, &self.gte, &self.lt, &self.lte].into_iter().flatten()
    }

    fn contains(&self, number: &Decimal) -> bool {
        let fits = |bound: &Option<FilterValue>, fitting: &[Ordering]| match bound.as_ref().map(|bound| &bound.value) {
            Some(Scalar::Number(bound)) => number.compare(bound).is_some_and(|order| fitting.contains(&order)),
            _ => true,
        };
        fits(&self.gt, &[Ordering::Greater])
            && fits(&self.gte, &[Ordering::Greater, Ordering::Equal])
            && fits(&self.lt, &[Ordering::Less])
            && fits(&self.lte, &[Ordering::Less, Ordering::Equal])
    }
}

/// A scalar, kept as it was written: a number is never rounded.
#[derive(Debug, Clone)]
pub(super) struct FilterValue {
    raw: Box<RawValue>,
    value: Scalar,
}

impl PartialEq for FilterValue {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Serialize for FilterValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.raw.serialize(serializer)
    }
}

impl FilterValue {
    fn parse(raw: &RawValue) -> Option<Self> {
        Some(Self { value: Scalar::parse(raw)?, raw: raw.to_owned() })
    }

    fn text(&self) -> Option<String> {
        if let Scalar::Text(text) = &self.value { Some(String::from_utf8_lossy(text).into_owned()) } else { None }
    }

    /// Whether an attribute has this value. Its type is lost in binary mode, so its text counts.
    fn matches_attribute(&self, attribute: &str) -> bool {
        match &self.value {
            Scalar::Text(text) => text == attribute.as_bytes(),
            Scalar::Bool(wanted) => attribute == if *wanted { "true" } else { "false" },
            Scalar::Number(wanted) => Decimal::parse(attribute).as_ref() == Some(wanted),
            Scalar::Null => false,
        }
    }
}

impl<'de> Deserialize<'de> for FilterCondition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::parse(&raw).ok_or_else(|| {
            let allowed = "a string, a number, true, false or null, {\"prefix\": \"...\"}, {\"any_of\": [...]}, \
                           {\"exists\": true or false} or bounds such as {\"gte\": 1, \"lt\": 10} (gt, gte, lt, lte)";
            D::Error::custom(format!("expected {allowed}, got {}", quoted(raw.get())))
        })
    }
}

impl FilterCondition {
    fn parse(raw: &RawValue) -> Option<Self> {
        if !raw.get().starts_with('{') {
            return FilterValue::parse(raw).map(Self::Equals);
        }
        let members: Object = serde_json::from_str(raw.get()).ok()?;
        let mut each = members.iter();
        match (each.next()?, each.next()) {
            (("prefix", prefix), None) => Some(Self::Prefix { prefix: serde_json::from_str(prefix.get()).ok()? }),
            (("any_of", values), None) => {
                let values: Vec<&RawValue> = serde_json::from_str(values.get()).ok()?;
                let any_of = values.into_iter().map(FilterValue::parse).collect::<Option<_>>()?;
                Some(Self::AnyOf { any_of })
            }
            (("exists", exists), None) => Some(Self::Exists { exists: serde_json::from_str(exists.get()).ok()? }),
            _ => NumberRange::parse(&members).map(|range| Self::Range(Box::new(range))),
        }
    }

    /// Whether it holds where there is no value.
    pub(super) fn matches_absent(&self) -> bool {
        matches!(self, Self::Exists { exists: false })
    }

    pub(super) fn matches(&self, value: &RawValue) -> bool {
        // An object or an array exists too
        let Some(value) = Scalar::parse(value) else { return matches!(self, Self::Exists { exists: true }) };
        match self {
            Self::Equals(wanted) => wanted.value == value,
            Self::Prefix { prefix } => matches!(&value, Scalar::Text(text) if text.starts_with(prefix.as_bytes())),
            Self::AnyOf { any_of } => any_of.iter().any(|wanted| wanted.value == value),
            Self::Exists { exists } => *exists,
            Self::Range(range) => matches!(&value, Scalar::Number(number) if range.contains(number)),
        }
    }

    pub(super) fn matches_attribute(&self, attribute: &str) -> bool {
        match self {
            Self::Equals(wanted) => wanted.matches_attribute(attribute),
            Self::Prefix { prefix } => attribute.starts_with(prefix.as_str()),
            Self::AnyOf { any_of } => any_of.iter().any(|wanted| wanted.matches_attribute(attribute)),
            Self::Exists { exists } => *exists,
            Self::Range(range) => Decimal::parse(attribute).is_some_and(|number| range.contains(&number)),
        }
    }

    /// The same, if the attribute is a media type, whose case has no meaning.
    pub(super) fn matches_media_type(&self, media_type: &str) -> bool {
        let media_type = media_type.to_ascii_lowercase();
        let is_same = |wanted: &FilterValue| wanted.text().is_some_and(|text| text.to_ascii_lowercase() == media_type);
        match self {
            Self::Equals(wanted) => is_same(wanted),
            Self::Prefix { prefix } => media_type.starts_with(&prefix.to_ascii_lowercase()),
            Self::AnyOf { any_of } => any_of.iter().any(is_same),
            Self::Exists { exists } => *exists,
            Self::Range(_) => false,
        }
    }

    fn values(&self) -> Vec<&FilterValue> {
        match self {
            Self::Equals(value) => vec![value],
            Self::Prefix { .. } | Self::Exists { .. } => Vec::new(),
            Self::AnyOf { any_of } => any_of.iter().collect(),
            Self::Range(range) => range.bounds().collect(),
        }
    }

    /// The text says what is allowed.
    pub(super) fn check(&self) -> Result<(), String> {
        if let Self::AnyOf { any_of } = self
            && !(1..=MAX_VALUES).contains(&any_of.len())
        {
            return Err(format!("any_of must have 1 to {MAX_VALUES} values, got {}", any_of.len()));
        }
        if let Self::Prefix { prefix } = self {
            check_text(prefix)?;
        }
        let text = |value: &FilterValue| value.text().unwrap_or_else(|| value.raw.get().to_owned());
        self.values().into_iter().map(text).try_for_each(|text| check_text(&text))
    }
}

pub(super) fn check_text(text: &str) -> Result<(), String> {
    if text.chars().count() <= MAX_TEXT_CHARS {
        return Ok(());
    }
    Err(format!(
        "names, texts and numbers of a filter must have at most {MAX_TEXT_CHARS} characters, unlike {}",
        quoted(text)
    ))
}
