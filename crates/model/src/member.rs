//! Members of channels: who takes part, and what they say of themselves.

use std::{fmt, str::FromStr, sync::Arc};

use common::{json, name::NameError};
use serde_json::value::RawValue;

/// Longest id of a member, in bytes: that of the subject of a token.
const MAX_ID_BYTES: usize = 128;
/// Longest info of a member, as JSON in bytes.
pub const MAX_MEMBER_INFO_BYTES: usize = 1024;
/// Deepest info.
const MAX_INFO_DEPTH: usize = 16;

/// The id of a member: 1 to 128 printable ASCII characters without spaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(Arc<str>);

impl MemberId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for MemberId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_id = (1..=MAX_ID_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_id {
            return Ok(Self(text.into()));
        }
        Err(NameError::new("member", "have 1 to 128 printable ASCII characters without spaces", text))
    }
}

/// What a member says of itself: JSON on one line, or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemberInfo(Option<Arc<str>>);

impl MemberInfo {
    /// Reads the info that a client gives.
    ///
    /// # Errors
    /// It is no JSON, too long or too deep. The text says what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_MEMBER_INFO_BYTES {
            return Err(format!("info must have at most {MAX_MEMBER_INFO_BYTES} bytes, got {}", text.len()));
        }
        let value: &RawValue =
            json::parse(text.as_bytes(), MAX_INFO_DEPTH).map_err(|error| format!("info must be JSON: {error}"))?;
        // A line break is white space in JSON, but ends a field of an event stream
        Ok(Self::from_stored(&value.get().replace(['\n', '\r'], " ")))
    }

    /// The info as it is stored.
    #[must_use]
    pub fn from_stored(text: &str) -> Self {
        Self((!text.is_empty() && text != "null").then(|| text.into()))
    }

    /// As it is stored: empty for nothing.
    #[must_use]
    pub fn as_stored(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_printable_and_bounded() {
        for good in ["a", "auth0|5f7", "mailto:ada@example.org", "\"\\", &"x".repeat(128)] {
            assert_eq!(good.parse::<MemberId>().expect(good).as_str(), good);
        }
        for bad in ["", "a b", "ä", "a\n", &"x".repeat(129)] {
            assert!(bad.parse::<MemberId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn info_is_json_on_one_line_and_bounded() {
        let info = MemberInfo::parse("{\"name\":\n\"Ada\"}").expect("JSON");
        assert_eq!(info.as_stored(), "{\"name\": \"Ada\"}");
        assert_eq!(MemberInfo::from_stored(info.as_stored()), info);
        assert_eq!(MemberInfo::parse("null"), Ok(MemberInfo::default()));
        for (bad, said) in [
            ("", "must be JSON"),
            ("{", "must be JSON"),
            (&[&"[".repeat(17)[..], &"]".repeat(17)].concat(), "must be JSON"),
            (&format!("\"{}\"", "x".repeat(1023)), "at most 1024 bytes"),
        ] {
            let refused = MemberInfo::parse(bad).expect_err(bad);
            assert!(refused.contains(said), "{bad}: {refused}");
        }
    }
}
