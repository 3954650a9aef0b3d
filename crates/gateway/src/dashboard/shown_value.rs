//! Values of jobs as their pages show them.

use serde_json::Value;

use super::json_text;

/// A value as JSON, as much of it as is shown.
pub(super) struct ShownValue {
    pub(super) text: String,
    pub(super) is_cut: bool,
}

impl ShownValue {
    /// How much of a value is shown.
    pub(super) const MAX_BYTES: usize = 4096;
    /// What is longer is not written with blanks, because most of it is cut.
    pub(super) const MAX_PRETTY_BYTES: usize = 64 << 10;

    pub(super) fn of(value: &Value) -> Self {
        Self::of_json(&value.to_string())
    }

    /// A value as its JSON: numbers stay digit for digit. A text with line feeds is shown as it is.
    pub(super) fn of_json(json: &str) -> Self {
        if json.len() > Self::MAX_PRETTY_BYTES {
            return Self::of_text(json.to_owned());
        }
        match serde_json::from_str::<String>(json) {
            Ok(text) if text.contains('\n') => Self::of_text(text),
            _ => Self::of_text(json_text::pretty(json)),
        }
    }

    pub(super) fn of_text(mut text: String) -> Self {
        let is_cut = text.len() > Self::MAX_BYTES;
        if is_cut {
            let end = (0..=Self::MAX_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
            text.truncate(end);
        }
        Self { text, is_cut }
    }
}
