//! Lines that handlers log for people: at most a number of bytes each, with a level and the attempt that wrote them.

use std::str::FromStr;

use serde::Deserialize;
use serde_json::value::RawValue;

use common::{
    json::ObjectWriter,
    time::{self, Millis},
};

/// The longest text of a line that is read at all, in bytes; what is kept of it is a setting.
const MAX_READ_BYTES: usize = 64 << 10;

/// How urgent a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogLevel {
    /// For who looks into something.
    Debug,
    /// What happened.
    #[default]
    Info,
    /// Something that may be wrong.
    Warn,
    /// Something that is wrong.
    Error,
}

impl LogLevel {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

impl FromStr for LogLevel {
    type Err = JobLogLineError;
    fn from_str(text: &str) -> Result<Self, JobLogLineError> {
        let levels = [Self::Debug, Self::Info, Self::Warn, Self::Error];
        let is_meant = |level: &&Self| level.as_str() == text || (text == "warning" && **level == Self::Warn);
        levels.iter().find(is_meant).copied().ok_or_else(|| JobLogLineError::Level(common::name::quoted(text)))
    }
}

/// Why a line is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobLogLineError {
    /// Another word.
    #[error("level must be debug, info, warn or error, got {0}")]
    Level(String),
    /// Neither a text nor an object.
    #[error("each of lines must be a string, or an object with message (a string), and level and at if it has them")]
    Shape,
    /// A time that is none.
    #[error("at {0}")]
    Time(String),
}

/// A line of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobLogLine {
    /// When it was written.
    pub at: Millis,
    /// How urgent it is.
    pub level: LogLevel,
    /// What it says.
    pub message: String,
}

#[derive(Deserialize)]
struct GivenLine {
    message: String,
    level: Option<String>,
    at: Option<String>,
}

impl JobLogLine {
    /// Reads a line as a client sends it: a string, or `{"message": ..., "level": ..., "at": ...}`.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(raw: &RawValue, now: Millis) -> Result<Self, JobLogLineError> {
        if raw.get().starts_with('"') {
            let message: String = serde_json::from_str(raw.get()).map_err(|_| JobLogLineError::Shape)?;
            return Ok(Self { at: now, level: LogLevel::Info, message });
        }
        let given: GivenLine = serde_json::from_str(raw.get()).map_err(|_| JobLogLineError::Shape)?;
        let level = given.level.as_deref().map_or(Ok(LogLevel::Info), str::parse)?;
        let at = given.at.as_deref().map(|text| time::parse_time(text, now).map(|time| time.at));
        let at = at.transpose().map_err(|error| JobLogLineError::Time(error.to_string()))?.unwrap_or(now);
        Ok(Self { at, level, message: given.message })
    }

    /// The line as it is stored and shown: a JSON object, its text cut after that many bytes.
    #[must_use]
    pub fn to_json(&self, attempt: u32, max_bytes: usize) -> String {
        let kept = cut(self.message.trim_end_matches(['\n', '\r']), max_bytes.min(MAX_READ_BYTES));
        let mut json = ObjectWriter::with_capacity(96 + kept.len());
        json.text("at", &time::format(self.at)).number("attempt", attempt);
        json.text("level", self.level.as_str()).text("message", kept);
        if kept.len() < self.message.trim_end_matches(['\n', '\r']).len() {
            json.raw("truncated", "true");
        }
        json.finish()
    }
}

/// The first bytes of a text, without half a character.
fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<JobLogLine, JobLogLineError> {
        JobLogLine::parse(&RawValue::from_string(json.to_owned()).expect("JSON"), 5)
    }

    #[test]
    fn a_line_is_a_text_or_an_object() {
        let line = |at, level, message: &str| JobLogLine { at, level, message: message.to_owned() };
        assert_eq!(parse("\"a\""), Ok(line(5, LogLevel::Info, "a")));
        let given = r#"{"message":"a","level":"warning","at":"1970-01-01T00:00:01Z","x":1}"#;
        assert_eq!(parse(given), Ok(line(1000, LogLevel::Warn, "a")));
        for wrong in ["1", "null", "[\"a\"]", "{}", r#"{"message":1}"#, r#"{"message":"a","level":1}"#] {
            assert_eq!(parse(wrong), Err(JobLogLineError::Shape), "{wrong}");
        }
        assert!(matches!(parse(r#"{"message":"a","level":"loud"}"#), Err(JobLogLineError::Level(_))));
        assert!(matches!(parse(r#"{"message":"a","at":"now"}"#), Err(JobLogLineError::Time(_))));
    }

    #[test]
    fn a_long_line_is_cut_between_characters_and_says_so() {
        let line = JobLogLine { at: 0, level: LogLevel::Info, message: "半分\n".to_owned() };
        let shown = |bytes| serde_json::from_str::<serde_json::Value>(&line.to_json(2, bytes)).expect("JSON");
        assert_eq!((&shown(6)["message"], &shown(6)["truncated"]), (&"半分".into(), &serde_json::Value::Null));
        assert_eq!((&shown(5)["message"], &shown(5)["truncated"]), (&"半".into(), &true.into()));
        assert_eq!((&shown(0)["message"], &shown(6)["attempt"]), (&"".into(), &2.into()));
    }
}
