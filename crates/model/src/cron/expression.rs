//! Cron expressions: five fields, six with seconds first, aliases such as `@daily`, and `@every <duration>`.
//!
//! croner parses the fields and finds matching wall clock times. It accepts too much: text that it would misread (month
//! names among the minutes, an empty element of a list) is refused here first.

use std::sync::Arc;

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::civil::DateTime;

use common::{name::quoted, time::Millis};

/// A refused expression. The message says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expression {0}")]
pub struct CronExpressionError(String);

/// Longest expression, in characters.
const MAX_EXPRESSION_CHARS: usize = 256;
/// Longest `@every`: ten years.
const MAX_EVERY_MS: u64 = 3650 * 86_400_000;
/// Years that are searched. It bounds the search for expressions that never match.
const YEARS: &str = "1970-2199";

const ALLOWED_FORMS: &str = "five fields (minute hour day-of-month month day-of-week), six with seconds first, @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly or @every <duration> such as @every 1h30m";

/// A field: its name, its largest value, its letters, and what is allowed, for messages.
struct CronField {
    name: &'static str,
    max: u32,
    special: &'static str,
    names: &'static [&'static str],
    first_name: u32,
    allowed: &'static str,
}

const fn numeric(name: &'static str, max: u32, allowed: &'static str) -> CronField {
    CronField { name, max, special: "", names: &[], first_name: 0, allowed }
}

const FIELDS: [CronField; 6] = [
    numeric("second", 59, "0-59 with * , - /"),
    numeric("minute", 59, "0-59 with * , - /"),
    numeric("hour", 23, "0-23 with * , - /"),
    CronField {
        special: "LW",
        ..numeric("day-of-month", 31, "1-31 with * , - /, L (last day), 15W or LW (nearest weekday)")
    },
    CronField {
        names: &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
        first_name: 1,
        ..numeric("month", 12, "1-12 or JAN-DEC with * , - /")
    },
    CronField {
        special: "L#",
        names: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
        ..numeric(
            "day-of-week",
            7,
            "0-7 or SUN-SAT (0 and 7 are Sunday) with * , - /, 5L (last Friday), 5#3 (third Friday)",
        )
    },
];

/// A parsed expression.
#[derive(Debug, Clone)]
pub enum CronExpression {
    /// An interval between runs, in milliseconds.
    Every(Millis),
    /// Runs at wall clock times.
    Calendar(Calendar),
}

/// Wall clock times.
#[derive(Debug, Clone)]
pub struct Calendar {
    // Behind a pointer: a pattern has some hundred bytes, an interval eight
    pattern: Arc<Cron>,
    /// Whether it names fixed times of day, without `*` in second, minute or hour. See `docs/cron.md`.
    pub is_fixed: bool,
}

impl Calendar {
    /// The first matching wall clock time after `from`, or at it when `inclusive`.
    #[must_use]
    pub fn next(&self, from: &DateTime, inclusive: bool) -> Option<DateTime> {
        self.pattern.find_next_occurrence(from, inclusive).ok()
    }

    /// Whether a wall clock time matches.
    #[must_use]
    pub fn matches(&self, at: &DateTime) -> bool {
        self.pattern.is_time_matching(at).unwrap_or(false)
    }
}

impl CronExpression {
    /// Reads an expression.
    ///
    /// # Errors
    /// The text is not an expression. The message names the field and says what is allowed.
    pub fn parse(text: &str) -> Result<Self, CronExpressionError> {
        if text.chars().count() > MAX_EXPRESSION_CHARS {
            return Err(CronExpressionError(format!("must have at most {MAX_EXPRESSION_CHARS} characters")));
        }
        if let Some(duration) = text.strip_prefix("@every ") {
            return parse_every(duration.trim()).map(Self::Every);
        }
        let five = match text.to_ascii_lowercase().as_str() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ => text,
        };
        let mut fields: Vec<&str> = five.split_ascii_whitespace().collect();
        if fields.len() == 5 {
            fields.insert(0, "0");
        }
        let fields: [&str; 6] = fields
            .try_into()
            .map_err(|_| CronExpressionError(format!("must be {ALLOWED_FORMS}, got {}", quoted(text))))?;
        let mut plain = Vec::with_capacity(6);
        for (field, written) in FIELDS.iter().zip(fields) {
            plain.push(field.normalize(written)?);
        }
        let refused = |_| CronExpressionError(format!("must be {ALLOWED_FORMS}, got {}", quoted(text)));
        let pattern = Arc::new(parse_pattern(&plain).map_err(refused)?);
        let is_fixed = fields.iter().take(3).all(|written| !written.contains('*'));
        Ok(Self::Calendar(Calendar { pattern, is_fixed }))
    }
}

fn parse_pattern(fields: &[String]) -> Result<Cron, croner::errors::CronError> {
    let parser = CronParser::builder().seconds(Seconds::Required).year(Year::Required).build();
    parser.parse(&format!("{} {YEARS}", fields.join(" ")))
}

impl CronField {
    fn refused(&self, written: &str) -> CronExpressionError {
        CronExpressionError(format!("has a wrong {}: allowed is {}, got {}", self.name, self.allowed, quoted(written)))
    }

    /// The field with numbers for names, if croner reads it as it is meant.
    fn normalize(&self, written: &str) -> Result<String, CronExpressionError> {
        let refused = || self.refused(written);
        let mut plain = String::with_capacity(written.len());
        for (index, element) in written.split(',').enumerate() {
            if index > 0 {
                plain.push(',');
            }
            plain.push_str(&self.normalize_element(element).ok_or_else(refused)?);
        }
        // The only field among stars, so that croner's error is about this field
        let mut fields = vec!["*".to_owned(); 6];
        if let Some(place) = FIELDS.iter().position(|field| field.name == self.name) {
            fields[place].clone_from(&plain);
        }
        parse_pattern(&fields).map(|_| plain).map_err(|_| refused())
    }

    fn normalize_element(&self, element: &str) -> Option<String> {
        let (range, step) = element.split_once('/').map_or((element, None), |(range, step)| (range, Some(step)));
        // A step beyond the range is an error: */90 would be every hour, not every 90 minutes
        if step.is_some_and(|step| step.parse().ok().is_none_or(|step: u32| step == 0 || step > self.max)) {
            return None;
        }
        let ends: Option<Vec<String>> = range.split('-').map(|end| self.normalize_bound(end)).collect();
        let step = step.map(|step| format!("/{step}")).unwrap_or_default();
        Some(ends?.join("-") + &step).filter(|plain| !plain.is_empty())
    }

    /// One end of a range (a star, a number or a name) as a number; none if this field does not allow it.
    fn normalize_bound(&self, end: &str) -> Option<String> {
        let upper = end.to_ascii_uppercase();
        let length = upper.find(|letter: char| !letter.is_ascii_alphanumeric()).unwrap_or(upper.len());
        let (word, rest) = upper.split_at(length);
        let named = self.names.iter().zip(self.first_name..).find_map(|(name, number)| {
            let last = word.strip_prefix(name).filter(|last| matches!(*last, "" | "L"))?;
            Some(format!("{number}{last}{rest}"))
        });
        let plain = named.unwrap_or(upper);
        let is_known = |letter: char| letter.is_ascii_digit() || self.special.contains(letter);
        // A bare L is Saturday to some and Friday to others
        let is_allowed = plain == "*" || (!plain.is_empty() && plain.chars().all(is_known));
        (is_allowed && !(plain == "L" && self.special == "L#")).then_some(plain)
    }
}

/// Reads a duration as Go writes it: `1h30m`, `45s`, `1.5h`, `1500ms`.
fn parse_every(text: &str) -> Result<Millis, CronExpressionError> {
    let refused = || {
        CronExpressionError(format!(
            "must be @every and a duration from 1s to 87600h in h, m, s and ms, such as @every 1h30m, got {}",
            quoted(text)
        ))
    };
    let (mut rest, mut total) = (text, 0_u64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refused)?;
        let (number, after) = rest.split_at(digits);
        let (unit_ms, after) = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)]
            .into_iter()
            .find_map(|(unit, ms)| after.strip_prefix(unit).map(|after| (ms, after)))
            .ok_or_else(refused)?;
        total = parse_decimal_ms(number, unit_ms).and_then(|part| total.checked_add(part)).ok_or_else(refused)?;
        rest = after;
    }
    let total = Some(total).filter(|total| (1000..=MAX_EVERY_MS).contains(total));
    total.and_then(|total| Millis::try_from(total).ok()).ok_or_else(refused)
}

/// A decimal number of a unit, in whole milliseconds.
fn parse_decimal_ms(number: &str, unit_ms: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let scale = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let fraction: u64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    whole.checked_mul(unit_ms)?.checked_add(fraction.checked_mul(unit_ms)? / scale)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn expressions_of_the_specification_are_read() {
        for text in [
            "* * * * *",
            "*/5 * * * *",
            "0 9 * * MON-FRI",
            "0 9 * * mon,Wed",
            "1,15 * * * *",
            "1-5/2 * * * *",
            "0 0 1 jan *",
            "0 0 * * 7",
            "0 0 * * 0",
            "0 0 L * *",
            "0 0 LW * *",
            "0 0 15W * *",
            "0 0 * * 5#3",
            "0 0 * * FRI#3",
            "0 0 * * 5L",
            "0 0 * * friL",
            "30 0 0 * * *",
            "* * * * * *",
            "0  0\t* * *",
            "@daily",
            "@Hourly",
            "@yearly",
            "@annually",
            "@monthly",
            "@weekly",
            "@midnight",
            "@every 1s",
            "@every 1h30m",
        ] {
            assert!(CronExpression::parse(text).is_ok(), "{text}: {:?}", CronExpression::parse(text));
        }
    }

    #[test]
    fn a_wrong_expression_is_refused_with_what_is_allowed() {
        for (text, expected) in [
            ("", "must be five fields"),
            ("not a valid cron", "must be five fields"),
            ("0 0 0 0 0 0 0", "must be five fields"),
            ("@sometimes", "must be five fields"),
            ("99 25 32 13 8", "wrong minute: allowed is 0-59"),
            ("* 24 * * *", "wrong hour: allowed is 0-23"),
            ("* * 32 * *", "wrong day-of-month: allowed is 1-31"),
            ("* * 0 * *", "wrong day-of-month"),
            ("* * * 13 *", "wrong month: allowed is 1-12 or JAN-DEC"),
            ("* * * * 8", "wrong day-of-week: allowed is 0-7 or SUN-SAT"),
            ("60 * * * * *", "wrong second"),
            ("*/0 * * * *", "wrong minute"),
            ("*/90 * * * *", "wrong minute"),
            ("1,,2 * * * *", "wrong minute"),
            ("1- * * * *", "wrong minute"),
            ("-1 * * * *", "wrong minute"),
            ("5-1 * * * *", "wrong minute"),
            ("JAN * * * *", "wrong minute"),
            ("0 0 MON * *", "wrong day-of-month"),
            ("0 0 * January *", "wrong month"),
            ("0 0 * JAN1 *", "wrong month"),
            ("0 0 ? * *", "wrong day-of-month"),
            ("0 0 * * +1", "wrong day-of-week"),
            ("0 0 * * L", "wrong day-of-week"),
            ("0 0 * * 5#6", "wrong day-of-week"),
            ("H * * * *", "wrong minute"),
            ("٣ * * * *", "wrong minute"),
            ("@every", "must be five fields"),
            ("@every 0s", "from 1s to 87600h"),
            ("@every 500ms", "from 1s to 87600h"),
            ("@every -5m", "from 1s to 87600h"),
            ("@every 5", "from 1s to 87600h"),
            ("@every 5d", "from 1s to 87600h"),
            ("@every 99999999999999999999h", "from 1s to 87600h"),
        ] {
            let error = CronExpression::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, ms) in
            [("1s", 1000), ("1h30m", 5_400_000), ("2h45m30s", 9_930_000), ("1500ms", 1500), ("1.5h", 5_400_000)]
        {
            assert_eq!(parse_every(text), Ok(ms), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,60}", fields in "[0-9A-Z*/,#LW -]{0,40}") {
            let _ = CronExpression::parse(&text);
            let _ = CronExpression::parse(&fields);
            let _ = CronExpression::parse(&format!("@every {text}"));
        }
    }
}
