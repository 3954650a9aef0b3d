//! Times and durations as the Open Job Spec writes them.
//!
//! Times are RFC 3339, durations ISO 8601 (`PT1.5S`, `P1D`). Wherever a time may be given, it may also be a duration from
//! now with its sign: `+PT2S`, `-PT1H`. Inside Galley a time is milliseconds since 1970, taken from Redis's clock.

use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp, fmt::temporal::Pieces};

use crate::name::quoted;

/// Milliseconds since 1970.
pub type Millis = i64;

/// The last second that RFC 3339 can write in every time zone: 9999-12-30T22:00:00Z.
pub const MAX_MILLIS: Millis = 253_402_207_200_000;

const DAY_MILLIS: Millis = 86_400_000;

/// The longest duration: ten years.
const MAX_DURATION: Duration = Duration::from_hours(87_600);

/// A time or duration that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Neither RFC 3339 nor a sign and an ISO 8601 duration.
    #[error("must be an RFC 3339 time, or a time from now such as +PT2S or -PT1H, got {0}")]
    Time(String),
    /// A time that Galley cannot keep.
    #[error("must be from 1970-01-01T00:00:00Z to 9999-12-30T22:00:00Z, got {0}")]
    TimeRange(String),
    /// Not an ISO 8601 duration.
    #[error("must be an ISO 8601 duration such as PT1.5S or P1D, got {0}")]
    Duration(String),
    /// A duration that is too long, or negative.
    #[error("must be a duration from PT0S to P3650D, got {0}")]
    DurationRange(String),
    /// Years and months.
    #[error("must be a duration without years and months, which have no fixed length, got {0}")]
    Calendar(String),
}

/// `2026-11-22T10:00:00.123Z`.
#[must_use]
pub fn format(at: Millis) -> String {
    // Every job and event shows several times, and a format that is read anew each time costs as much as all else in it
    let at = at.clamp(0, MAX_MILLIS);
    let (days, millis) = (at / DAY_MILLIS, at % DAY_MILLIS);
    let (year, month, day) = civil_date(days);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    for (number, place, digits) in [
        (year, 0, 4),
        (month, 5, 2),
        (day, 8, 2),
        (millis / 3_600_000, 11, 2),
        (millis / 60_000 % 60, 14, 2),
        (millis / 1000 % 60, 17, 2),
        (millis % 1000, 20, 3),
    ] {
        let mut number = u32::try_from(number).unwrap_or_default();
        for digit in text[place..place + digits].iter_mut().rev() {
            *digit = b"0123456789"[number as usize % 10];
            number /= 10;
        }
    }
    str::from_utf8(&text).unwrap_or_default().to_owned()
}

/// Year, month and day of a day since 1970. Years begin in March here, so that a leap day is the last of its
/// year; the calendar repeats after 400 years.
fn civil_date(days: i64) -> (i64, i64, i64) {
    // 0000-03-01 is this many days before 1970
    let days = days + 719_468;
    let (cycle, day_of_cycle) = (days / 146_097, days % 146_097);
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let months = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * months + 2) / 5 + 1;
    let month = if months < 10 { months + 3 } else { months - 9 };
    (cycle * 400 + year_of_cycle + i64::from(month <= 2), month, day)
}

/// A duration as ISO 8601 in seconds: `PT1.5S`.
#[must_use]
pub fn format_duration(length: Duration) -> String {
    let (seconds, millis) = (length.as_secs(), length.subsec_millis());
    let fraction = if millis == 0 { String::new() } else { format!(".{millis:03}") };
    format!("PT{seconds}{}S", fraction.trim_end_matches('0'))
}

/// The time by this process's clock, for times that are only shown.
#[must_use]
pub fn local_now() -> Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Reads a duration of at most ten years. Years and months have no fixed length and are refused.
///
/// # Errors
/// The text is anything else, also a negative duration.
pub fn parse_duration(text: &str) -> Result<Duration, TimeError> {
    // jiff also reads "1 hour" and similar forms, which the specification does not allow
    let is_negative = text.starts_with("-P");
    let span = text.strip_prefix('-').unwrap_or(text);
    if !span.starts_with('P') {
        return Err(TimeError::Duration(quoted(text)));
    }
    let span: Span = match span.parse() {
        Ok(span) => span,
        Err(_) if is_long_duration(span) => return Err(TimeError::DurationRange(quoted(text))),
        Err(_) => return Err(TimeError::Duration(quoted(text))),
    };
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(TimeError::Calendar(quoted(text)));
    }
    let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok();
    let length = length.and_then(|length: SignedDuration| Duration::try_from(length).ok());
    length
        .filter(|length| *length <= MAX_DURATION && (!is_negative || length.is_zero()))
        .ok_or_else(|| TimeError::DurationRange(quoted(text)))
}

/// Whether a text would be a duration if its numbers were smaller.
fn is_long_duration(text: &str) -> bool {
    let mut short = String::new();
    for character in text.chars().filter(|character| *character != '.' && *character != ',') {
        if !(character.is_ascii_digit() && short.ends_with('1')) {
            short.push(if character.is_ascii_digit() { '1' } else { character });
        }
    }
    text.len() <= 256 && short.starts_with('P') && short.parse::<Span>().is_ok()
}

/// A time that a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedTime {
    /// When it is.
    pub at: Millis,
    /// How to show it: an absolute time as it was sent, a relative one as the time it stands for.
    pub text: String,
}

/// Reads an absolute time, or one relative to `now`: a sign and a duration.
///
/// # Errors
/// The text is neither, or the time is out of range.
pub fn parse_time(text: &str, now: Millis) -> Result<ParsedTime, TimeError> {
    let (sign, duration) = match text.split_at_checked(1) {
        // A year may have a sign, too
        Some(("+", duration)) if !duration.starts_with(|c: char| c.is_ascii_digit()) => (1, duration),
        Some(("-", duration)) if !duration.starts_with(|c: char| c.is_ascii_digit()) => (-1, duration),
        _ => return parse_absolute(text),
    };
    let length = parse_duration(duration).map_err(|error| match error {
        TimeError::Duration(_) => TimeError::Time(quoted(text)),
        TimeError::DurationRange(_) => TimeError::DurationRange(quoted(text)),
        other => other,
    })?;
    let millis = i64::try_from(length.as_millis()).unwrap_or(i64::MAX);
    let at = now.saturating_add(sign * millis).clamp(0, MAX_MILLIS);
    Ok(ParsedTime { at, text: format(at) })
}

fn parse_absolute(text: &str) -> Result<ParsedTime, TimeError> {
    if !is_date_and_time(text) {
        return Err(TimeError::Time(quoted(text)));
    }
    let at = text.parse::<Timestamp>().ok().map(Timestamp::as_millisecond);
    match at {
        Some(at) if (0..=MAX_MILLIS + 999).contains(&at) => Ok(ParsedTime { at, text: text.to_owned() }),
        Some(_) => Err(TimeError::TimeRange(quoted(text))),
        None if is_far_time(text) => Err(TimeError::TimeRange(quoted(text))),
        None => Err(TimeError::Time(quoted(text))),
    }
}

/// Whether a text would be a time if its year were another: a year before 0 or after 9999 has a sign or more digits.
fn is_far_time(text: &str) -> bool {
    let (year, rest) = text.split_at(text.find(['T', 't']).and_then(|at| text[..at].rfind('-')).unwrap_or_default());
    let Some((year, month)) = year.rsplit_once('-') else { return false };
    let digits = year.strip_prefix(['-', '+']).unwrap_or(year);
    let is_far = digits.len() > 4 || digits != year || digits == "9999";
    is_far && digits.bytes().all(|b| b.is_ascii_digit()) && is_rfc_3339(&format!("2000-{month}{rest}"))
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
    fn a_time_from_now_has_a_sign() {
        for (text, at) in [("-PT2S", 3_000), ("-P1D", 0), ("1970-01-01T00:00:01Z", 1_000), ("+P1D", 86_405_000)] {
            assert_eq!(parse_time(text, 5_000).map(|given| given.at), Ok(at), "{text}");
        }
        for bad in ["", "-", "+", "PT2S", "--PT2S", "+-PT2S", "-+PT2S", "yesterday", "5"] {
            assert!(parse_time(bad, 5_000).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_out_of_range_is_told_the_range() {
        for text in [
            "1969-12-31T23:59:59Z",
            "9999-12-31T23:59:59Z",
            "9999-12-31T23:59:59-10:00",
            "10000-01-01T00:00:00Z",
            "+10000-01-01T00:00:00Z",
            "-000001-01-01T00:00:00Z",
            "0000-01-01T00:00:00Z",
        ] {
            let error = parse_time(text, 0).expect_err(text).to_string();
            assert!(error.starts_with("must be from 1970-01-01T00:00:00Z to 9999-"), "{text}: {error}");
        }
        for text in ["P3651D", "P99999D", "PT99999999999999999999S", "P9999999999W", "-PT1S"] {
            let error = parse_duration(text).expect_err(text).to_string();
            assert!(error.starts_with("must be a duration from PT0S to P3650D"), "{text}: {error}");
        }
        for text in ["+P3651D", "-P3651D", "+PT99999999999999999999S"] {
            let error = parse_time(text, 0).expect_err(text).to_string();
            assert!(error.starts_with("must be a duration from PT0S to P3650D"), "{text}: {error}");
        }
        for text in ["P1Y", "P1M", "P1Y2D"] {
            let error = parse_duration(text).expect_err(text).to_string();
            assert!(error.contains("years and months"), "{text}: {error}");
        }
    }

    #[test]
    fn a_duration_is_written_as_it_is_read() {
        for (millis, text) in [(0, "PT0S"), (1, "PT0.001S"), (1500, "PT1.5S"), (1_010, "PT1.01S"), (60_000, "PT60S")] {
            let length = Duration::from_millis(millis);
            assert_eq!((format_duration(length).as_str(), parse_duration(text)), (text, Ok(length)));
        }
    }

    #[test]
    fn other_times_are_refused() {
        for bad in [
            "",
            "tomorrow",
            "2026-01-01",
            "+2s",
            "PT2S",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00Z[UTC]",
            "2025-02-29T00:00:00Z",
        ] {
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
