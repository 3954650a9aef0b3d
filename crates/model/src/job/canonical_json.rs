//! JSON in one spelling, so that equal values are equal text.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use unicode_normalization::UnicodeNormalization;

/// JSON in one spelling: members sorted, strings in NFC, numbers by value. Integers keep all their digits.
pub(super) fn canonical(raw: &RawValue) -> Result<String, String> {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(|error| error.to_string())?;
            let members: Result<BTreeMap<String, String>, String> =
                members.into_iter().map(|(name, value)| Ok((name, canonical(value)?))).collect();
            Ok(write_object(members?.iter().map(|(name, value)| (name.as_str(), value.as_str()))))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| error.to_string())?;
            let items: Result<Vec<String>, String> = items.into_iter().map(canonical).collect();
            Ok(format!("[{}]", items?.join(",")))
        }
        Some(b'"') => {
            serde_json::from_str::<String>(text).map(|text| canonical_text(&text)).map_err(|error| error.to_string())
        }
        Some(b't' | b'f' | b'n') | None => Ok(text.to_owned()),
        _ => Ok(canonical_number(text)),
    }
}

fn canonical_number(text: &str) -> String {
    let is_integer = !text.contains(['.', 'e', 'E']);
    match text.parse::<f64>() {
        _ if is_integer && text != "-0" => text.to_owned(),
        // 1.0 and 1e0 are 1. Beyond 2^53 floats are not exact, so the text decides
        Ok(number) if number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0 => {
            format!("{number:.0}").replace("-0", "0")
        }
        Ok(number) if number.is_finite() => number.to_string(),
        _ => text.to_owned(),
    }
}

/// A string in NFC, as JSON.
pub(super) fn canonical_text(text: &str) -> String {
    let normal: String = text.nfc().collect();
    serde_json::to_string(&normal).unwrap_or_default()
}

/// An object of members in their order.
pub(super) fn write_object<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let members: Vec<String> = members.map(|(name, value)| format!("{}:{value}", canonical_text(name))).collect();
    format!("{{{}}}", members.join(","))
}
