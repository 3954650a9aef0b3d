//! The kinds of settings: how a value is checked, and what the reference says about it.
//!
//! A value from the environment is always text, so every kind accepts text too. Nothing is rounded or guessed.

use std::{collections::BTreeMap, fmt::Display, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use config::{Value, ValueKind};
use secrecy::SecretString;

use super::{SettingError, error::invalid_value};
use crate::name::QueueName;

/// One kind of setting, with its bounds and default.
pub(super) struct Kind<T> {
    /// The value if none is set; `Nil` if the setting can be absent.
    pub(super) default: ValueKind,
    /// For a setting that can be absent: a line of TOML that sets it.
    pub(super) example: Option<&'static str>,
    /// The unit or the type, for people.
    pub(super) unit: &'static str,
    /// The allowed values, for people.
    pub(super) allowed: String,
    /// The allowed numbers, for programs.
    pub(super) range: Option<RangeInclusive<u64>>,
    /// Whether the value is a secret, or can hold one: another setting, `<key>_file`, can name a file with the value.
    pub(super) is_secret: bool,
    /// The checked value of a key.
    pub(super) check: Check<T>,
}

type Check<T> = Box<dyn Fn(&str, Value) -> Result<T, SettingError>>;

impl<T: 'static> Kind<T> {
    fn map<U>(self, convert: impl Fn(T) -> U + 'static) -> Kind<U> {
        let Self { default, example, unit, allowed, range, is_secret, check } = self;
        let check = Box::new(move |key: &str, value| check(key, value).map(&convert));
        Kind { default, example, unit, allowed, range, is_secret, check }
    }
}

/// A whole number.
pub(super) fn number<T: TryFrom<u64>>(range: RangeInclusive<u64>, default: u64) -> Kind<T> {
    let allowed = format!("{} to {}", range.start(), range.end());
    let refusal = allowed.clone();
    let bounds = Some(range.clone());
    let check = move |key: &str, value: Value| {
        let number = whole_number(key, &value, &refusal)?;
        let converted =
            Some(number).filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
        converted.ok_or_else(|| invalid_value(key, &refusal, number))
    };
    let (default, check): (_, Check<T>) = (default.into(), Box::new(check));
    Kind { default, example: None, unit: "Number", allowed, range: bounds, is_secret: false, check }
}

/// A time in milliseconds.
pub(super) fn millis(range: RangeInclusive<u64>, default: u64) -> Kind<Duration> {
    Kind { unit: "Milliseconds", ..number(range, default) }.map(Duration::from_millis)
}

/// A size in bytes.
pub(super) fn bytes<T: TryFrom<u64>>(range: RangeInclusive<u64>, default: u64) -> Kind<T> {
    Kind { unit: "Bytes", ..number(range, default) }
}

/// A number of a kind above that can also be 0, which stands for no limit. That is the default.
pub(super) fn zero_or<T: 'static>(kind: Kind<T>) -> Kind<Option<T>> {
    let allowed = format!("0 (no limit) or {}", kind.allowed);
    let range = kind.range.clone();
    let refusal = allowed.clone();
    let check = move |key: &str, value: Value| match whole_number(key, &value, &refusal)? {
        0 => Ok(None),
        number => (kind.check)(key, value).map(Some).map_err(|_| invalid_value(key, &refusal, number)),
    };
    let (default, unit) = (0_u64.into(), kind.unit);
    let range = range.map(|range| 0..=*range.end());
    Kind { default, example: None, unit, allowed, range, is_secret: false, check: Box::new(check) }
}

/// A setting that can be absent, with a line of TOML that sets it.
pub(super) fn optional<T: 'static>(kind: Kind<T>, example: &'static str) -> Kind<Option<T>> {
    let Kind { unit, allowed, range, is_secret, check, .. } = kind;
    let check = move |key: &str, value: Value| match value.kind {
        ValueKind::Nil => Ok(None),
        _ => check(key, value).map(Some),
    };
    Kind { default: ValueKind::Nil, example: Some(example), unit, allowed, range, is_secret, check: Box::new(check) }
}

/// `true` or `false`.
pub(super) fn switch(default: bool) -> Kind<bool> {
    let check = |key: &str, value: Value| {
        let got = shown(&value.kind);
        value.into_bool().map_err(|_| invalid_value(key, "true or false", got))
    };
    let allowed = "true or false".to_owned();
    let (default, check): (_, Check<bool>) = (default.into(), Box::new(check));
    Kind { default, example: None, unit: "Boolean", allowed, range: None, is_secret: false, check }
}

/// Text that `check` turns into a value.
pub(super) fn text_with<T>(
    allowed: &'static str,
    default: &str,
    check: impl Fn(&str, String) -> Result<T, SettingError> + 'static,
) -> Kind<T> {
    let check = move |key: &str, value: Value| {
        let got = shown(&value.kind);
        check(key, value.into_string().map_err(|_| invalid_value(key, allowed, got))?)
    };
    let (default, allowed) = (default.into(), allowed.to_owned());
    Kind { default, example: None, unit: "Text", allowed, range: None, is_secret: false, check: Box::new(check) }
}

/// A secret; empty for none. Errors never contain it.
pub(super) fn secret() -> Kind<Option<SecretString>> {
    let check = |key: &str, value: Value| match value.kind {
        ValueKind::String(text) => Ok(Some(text).filter(|text| !text.is_empty()).map(SecretString::from)),
        _ => Err(invalid_value(key, SECRET, "another type of value")),
    };
    let check: Check<_> = Box::new(check);
    let (default, allowed) = ("".into(), SECRET.to_owned());
    Kind { default, example: None, unit: "Secret", allowed, range: None, is_secret: true, check }
}

const SECRET: &str = "text, or empty";

/// The same kind for a value that can hold a secret: it can come from a file too. Its check keeps the secret out of errors.
pub(super) fn with_secret<T: 'static>(kind: Kind<T>) -> Kind<T> {
    let Kind { default, example, unit, allowed, range, check, .. } = kind;
    let refusal = allowed.clone();
    let check = Box::new(move |key: &str, value: Value| match &value.kind {
        ValueKind::String(_) => check(key, value),
        other => Err(invalid_value(key, &refusal, type_name(other))),
    });
    Kind { default, example, unit, allowed, range, is_secret: true, check }
}

/// Text that parses.
pub(super) fn text<T: FromStr>(allowed: &'static str, default: &str) -> Kind<T> {
    text_with(allowed, default, move |key, text| parse_value(key, &text, allowed))
}

/// The path of a file; empty for none.
pub(super) fn optional_path() -> Kind<Option<PathBuf>> {
    text_with("a path, or empty", "", |_, text| Ok(Some(text).filter(|path| !path.is_empty()).map(PathBuf::from)))
}

/// A list: an array in a file, comma-separated in the environment. `allowed` says what each item can be.
pub(super) fn list<T: FromStr<Err: Display>>(allowed: &'static str, default: &[&str]) -> Kind<Vec<T>> {
    let check = |key: &str, value: Value| {
        let refused =
            |error: &dyn Display, got: &str| invalid_value(key, format_args!("a list of names: {error}"), got);
        let items = match value.kind {
            ValueKind::String(text) => text.split(',').map(str::to_owned).collect(),
            ValueKind::Array(items) => items
                .into_iter()
                .map(|item| match item.kind {
                    ValueKind::String(text) => Ok(text),
                    other => Err(refused(&"each is text", &shown(&other))),
                })
                .collect::<Result<Vec<_>, _>>()?,
            other => return Err(refused(&"an array or comma-separated text", &shown(&other))),
        };
        let items = items.iter().map(|item| item.trim()).filter(|item| !item.is_empty());
        items.map(|item| item.parse().map_err(|error: T::Err| refused(&error, &format!("{item:?}")))).collect()
    };
    let default: Vec<ValueKind> = default.iter().map(|item| ValueKind::from(*item)).collect();
    let (default, allowed) = (default.into(), allowed.to_owned());
    Kind { default, example: None, unit: "List", allowed, range: None, is_secret: false, check: Box::new(check) }
}

/// What the name of a queue must be, in an error.
pub(super) const QUEUE_TABLE: &str = "a table of queue names (^[a-z0-9][a-z0-9.-]*$)";

/// A table with a number for each queue.
pub(super) fn per_queue<T: TryFrom<u64> + 'static>(
    range: RangeInclusive<u64>,
    example: &'static str,
) -> Kind<BTreeMap<QueueName, T>> {
    let Kind { unit, allowed, range, is_secret, check, .. } = number::<T>(range, 0);
    let check = move |key: &str, value: Value| {
        let table = match value.kind {
            ValueKind::Nil => return Ok(BTreeMap::new()),
            ValueKind::Table(table) => table,
            other => return Err(invalid_value(key, QUEUE_TABLE, shown(&other))),
        };
        let entry = |(name, value): (String, Value)| {
            Ok((parse_value(key, &name, QUEUE_TABLE)?, check(&format!("{key}.{name}"), value)?))
        };
        table.into_iter().map(entry).collect()
    };
    Kind { default: ValueKind::Nil, example: Some(example), unit, allowed, range, is_secret, check: Box::new(check) }
}

pub(super) fn parse_value<T: FromStr>(key: &str, text: &str, allowed: &str) -> Result<T, SettingError> {
    text.parse().map_err(|_| invalid_value(key, allowed, format_args!("{text:?}")))
}

fn whole_number(key: &str, value: &Value, allowed: &str) -> Result<u64, SettingError> {
    let number = match &value.kind {
        ValueKind::I64(number) => u64::try_from(*number).ok(),
        ValueKind::U64(number) => Some(*number),
        ValueKind::String(text) => text.parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| invalid_value(key, format_args!("a whole number, {allowed}"), shown(&value.kind)))
}

/// The type of a value, where the value may hold a secret.
pub(super) fn type_name(value: &ValueKind) -> &'static str {
    match value {
        ValueKind::Nil => "nothing",
        ValueKind::Boolean(_) => "a boolean",
        ValueKind::I64(_) | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_) | ValueKind::Float(_) => {
            "a number"
        }
        ValueKind::String(_) => "text",
        ValueKind::Table(_) => "a table",
        ValueKind::Array(_) => "an array",
    }
}

/// A value as TOML writes it.
pub(super) fn shown(value: &ValueKind) -> String {
    match value {
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Array(items) => {
            format!("[{}]", items.iter().map(|item| shown(&item.kind)).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
