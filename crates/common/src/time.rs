//! Times and durations as the Open Job Spec writes them.
//!
//! Times are RFC 3339, durations ISO 8601 (`PT1.5S`, `P1D`). A start time may also be a duration from now, with a
//! plus sign (`+PT2S`). Inside Galley a time is milliseconds since 1970, taken from Redis's clock.

use std::time::Duration;

use jiff::{
    SignedDuration, Span, SpanRelativeTo, Timestamp,
    fmt::{strtime, temporal::Pieces},
};

use crate::name::quoted;

/// Milliseconds since 1970.
pub type Millis = i64;

/// The last moment that RFC 3339 can write, 9999-12-31T23:59:59Z.
pub const MAX_MILLIS: Millis = 253_402_300_799_000;

/// A time or duration that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Neither RFC 3339 nor `+` and an ISO 8601 duration.
    #[error("must be an RFC 3339 time or \"+\" and an ISO 8601 duration, got {0}")]
    Time(String),
    /// Neither RFC 3339 nor `-` and an ISO 8601 duration.
    #[error("must be an RFC 3339 time or \"-\" and an ISO 8601 duration, got {0}")]
    Past(String),
    /// Not an ISO 8601 duration.
    #[error("must be an ISO 8601 duration from PT0S to P3650D, got {0}")]
    Duration(String),
}

/// `2026-11-22T10:00:00.123Z`.
#[must_use]
pub fn format(at: Millis) -> String {
    let timestamp = Timestamp::from_millisecond(at.clamp(0, MAX_MILLIS)).unwrap_or_default();
    strtime::format("%Y-%m-%dT%H:%M:%S.%3fZ", timestamp).unwrap_or_default()
}

/// Reads a duration of at most ten years. Years and months have no fixed length and are refused.
///
/// # Errors
/// The text is anything else, also a negative duration.
pub fn parse_duration(text: &str) -> Result<Duration, TimeError> {
    let refused = || TimeError::Duration(quoted(text));
    // jiff also reads "1 hour" and similar forms, which the specification does not allow
    if !text.starts_with('P') {
        return Err(refused());
    }
    let span: Span = text.parse().map_err(|_| refused())?;
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(refused());
    }
    let length: SignedDuration = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| refused())?;
    match Duration::try_from(length) {
        Ok(length) if length <= Duration::from_hours(87600) => Ok(length),
        _ => Err(refused()),
    }
}

/// A time that a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedTime {
    /// When it is.
    pub at: Millis,
    /// How to show it: an absolute time as it was sent, a relative one as the time it stands for.
    pub text: String,
}

/// Reads an absolute time or one relative to `now`.
///
/// # Errors
/// The text is neither.
pub fn parse_time(text: &str, now: Millis) -> Result<ParsedTime, TimeError> {
    let refused = || TimeError::Time(quoted(text));
    if let Some(duration) = text.strip_prefix('+') {
        let length = parse_duration(duration).map_err(|_| refused())?;
        let at = now + i64::try_from(length.as_millis()).map_err(|_| refused())?;
        return Ok(ParsedTime { at, text: format(at) });
    }
    if !is_date_and_time(text) {
        return Err(refused());
    }
    let at = text.parse::<Timestamp>().map_err(|_| refused())?.as_millisecond();
    if (0..=MAX_MILLIS + 999).contains(&at) { Ok(ParsedTime { at, text: text.to_owned() }) } else { Err(refused()) }
}

/// Whether a text is a time of any year as RFC 3339 writes it.
#[must_use]
pub fn is_rfc_3339(text: &str) -> bool {
    // jiff has no timestamps for the last hours of the year 9999
    let parsed = Pieces::parse(text).ok().filter(|_| is_date_and_time(text));
    text.bytes().next().is_some_and(|first| first.is_ascii_digit())
        && parsed.is_some_and(|pieces| pieces.time().is_some() && pieces.offset().is_some())
}

/// Whether the text has no zone annotation, which jiff reads too.
fn is_date_and_time(text: &str) -> bool {
    text.len() <= 40 && !text.contains('[') && text.contains(['T', 't'])
}

/// Reads a time in the past: an absolute one, or `-` and a duration before `now`.
///
/// # Errors
/// The text is neither.
pub fn parse_past(text: &str, now: Millis) -> Result<Millis, TimeError> {
    let refused = || TimeError::Past(quoted(text));
    if let Some(duration) = text.strip_prefix('-') {
        let length = parse_duration(duration).map_err(|_| refused())?;
        return Ok(now.saturating_sub(i64::try_from(length.as_millis()).unwrap_or(i64::MAX)).max(0));
    }
    if text.starts_with('+') {
        return Err(refused());
    }
    parse_time(text, now).map(|given| given.at).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_of_the_specification_are_read() {
        for (text, millis) in
            [("PT1S", 1000), ("PT0.5S", 500), ("PT5M", 300_000), ("P1D", 86_400_000), ("P1W", 604_800_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn other_durations_are_refused() {
        for bad in ["", "1s", "1 hour", "-PT1S", "P1Y", "P1M", "PT", "P99999D", "pt1s x"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_absolute_time_is_shown_as_it_was_written() {
        let given = parse_time("2099-12-31T23:59:59Z", 0).expect("a time");
        assert_eq!(given.text, "2099-12-31T23:59:59Z");
        assert_eq!(format(given.at), "2099-12-31T23:59:59.000Z");
    }

    #[test]
    fn a_relative_time_is_worked_out() {
        let given = parse_time("+PT2S", 1_000).expect("a time");
        assert_eq!((given.at, given.text.as_str()), (3_000, "1970-01-01T00:00:03.000Z"));
    }

    #[test]
    fn a_time_in_the_past_is_absolute_or_so_long_ago() {
        assert_eq!(parse_past("-PT2S", 5_000), Ok(3_000));
        assert_eq!(parse_past("-P1D", 5_000), Ok(0));
        assert_eq!(parse_past("1970-01-01T00:00:01Z", 5_000), Ok(1_000));
        for bad in ["", "-", "+PT2S", "PT2S", "--PT2S", "yesterday", "5"] {
            assert!(parse_past(bad, 5_000).is_err(), "{bad}");
        }
    }

    #[test]
    fn other_times_are_refused() {
        for bad in ["", "tomorrow", "2026-01-01", "+2s", "PT2S", "2026-01-01T00:00:00", "2026-01-01T00:00:00Z[UTC]"] {
            assert!(parse_time(bad, 0).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_formatted_time_reads_back(at in 0..MAX_MILLIS) {
            prop_assert_eq!(parse_time(&format(at), 0).map(|given| given.at), Ok(at));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,60}") {
            let _ = parse_time(&text, 0);
            let _ = parse_duration(&text);
        }
    }
}
