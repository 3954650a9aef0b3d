//! An expression in a time zone: when the next run is, across clock changes. `docs/cron.md` has the table.
//!
//! Between two clock changes, wall clock and real time differ by a constant. So the search goes from change to change,
//! and within each stretch asks the expression for a wall clock time. Times that a change skips are in no stretch and
//! do not run. Times that it repeats are in two; an expression with fixed times runs only in the first.

use jiff::{
    Timestamp,
    civil::DateTime,
    tz::{AmbiguousOffset, Offset, TimeZone},
};

use super::expression::{CronExpression, CronExpressionError};
use common::{
    name::quoted,
    time::{MAX_MILLIS, Millis},
};

/// Clock changes that a search covers: some 170 years with four each.
const MAX_CLOCK_CHANGES: usize = 700;

/// A refused schedule. The message says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronScheduleError {
    /// The expression is wrong.
    #[error(transparent)]
    Expression(#[from] CronExpressionError),
    /// The time zone does not exist.
    #[error(
        "timezone must be UTC or the IANA name of a place such as Europe/Berlin, as it is spelled there, not an offset or an abbreviation; got {0}"
    )]
    Zone(String),
    /// No time matches.
    #[error("expression must match some time: {0} never occurs")]
    Never(String),
}

/// When something runs.
#[derive(Debug, Clone)]
pub struct CronSchedule {
    expression: CronExpression,
    zone: TimeZone,
}

/// The result of a search within a stretch.
enum CronSearch {
    Run(Timestamp),
    ClockChange(Timestamp),
    Never,
}

impl CronSchedule {
    /// Reads an expression and a time zone.
    ///
    /// # Errors
    /// One of them is wrong, or there is no run after `now`.
    pub fn parse(expression: &str, zone: &str, now: Millis) -> Result<Self, CronScheduleError> {
        let schedule = Self { expression: CronExpression::parse(expression)?, zone: parse_timezone(zone)? };
        let runs = schedule.next(now, now).is_some();
        runs.then_some(schedule).ok_or_else(|| CronScheduleError::Never(quoted(expression)))
    }

    /// The first run after a time. `@every` counts from `anchor`.
    #[must_use]
    pub fn next(&self, after: Millis, anchor: Millis) -> Option<Millis> {
        let after = after.clamp(0, MAX_MILLIS);
        match &self.expression {
            CronExpression::Every(length) => {
                let whole = (after - anchor).max(0) / length;
                anchor.checked_add((whole + 1).checked_mul(*length)?).filter(|at| *at <= MAX_MILLIS)
            }
            CronExpression::Calendar(_) => self.next_calendar_run(after),
        }
    }

    fn next_calendar_run(&self, after: Millis) -> Option<Millis> {
        let mut from = Timestamp::from_second(after.div_euclid(1000)).ok()?;
        let mut inclusive = false;
        for _ in 0..MAX_CLOCK_CHANGES {
            let offset = self.zone.to_offset(from);
            let change = self.zone.following(from).next().map(|change| change.timestamp());
            match self.next_before_clock_change(from, inclusive, offset, change) {
                CronSearch::Run(at) => return Some(at.as_millisecond()),
                // The next stretch starts with the change itself
                CronSearch::ClockChange(change) => (from, inclusive) = (change, true),
                CronSearch::Never => return None,
            }
        }
        None
    }

    /// The next run, if it comes before the clock changes.
    fn next_before_clock_change(
        &self,
        from: Timestamp,
        mut inclusive: bool,
        offset: Offset,
        change: Option<Timestamp>,
    ) -> CronSearch {
        let CronExpression::Calendar(calendar) = &self.expression else { return CronSearch::Never };
        let mut local = offset.to_datetime(from);
        loop {
            let Some(next) = calendar.next(&local, inclusive) else { return CronSearch::Never };
            let Ok(at) = offset.to_timestamp(next) else { return CronSearch::Never };
            if let Some(change) = change.filter(|change| at >= *change) {
                return CronSearch::ClockChange(change);
            }
            if !calendar.is_fixed || !self.is_second_occurrence(next, offset) {
                return CronSearch::Run(at);
            }
            local = next;
            inclusive = false;
        }
    }

    /// Whether the clocks show this time for the second time.
    fn is_second_occurrence(&self, local: DateTime, offset: Offset) -> bool {
        let ambiguous = self.zone.to_ambiguous_timestamp(local);
        matches!(ambiguous.offset(), AmbiguousOffset::Fold { after, .. } if after == offset)
    }

    /// RFC 3339 with the zone's offset: `2026-11-22T10:00:00+01:00`.
    #[must_use]
    pub fn format_local(&self, at: Millis) -> String {
        let at = Timestamp::from_millisecond(at.clamp(0, MAX_MILLIS)).unwrap_or_default();
        at.display_with_offset(self.zone.to_offset(at)).to_string()
    }
}

/// A zone by its name in the tz database. Those without a slash are old abbreviations, most with a fixed offset; `Etc`
/// holds offsets with their signs the wrong way round.
fn parse_timezone(name: &str) -> Result<TimeZone, CronScheduleError> {
    let refused = || CronScheduleError::Zone(quoted(name));
    if name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    if !name.contains('/') || name.starts_with("Etc/") {
        return Err(refused());
    }
    let zone = TimeZone::get(name).map_err(|_| refused())?;
    // The database ignores case, but the name is shown and compared as text
    if zone.iana_name() == Some(name) { Ok(zone) } else { Err(refused()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(text: &str) -> Millis {
        text.parse::<Timestamp>().expect("a time").as_millisecond()
    }

    /// Runs between two moments, as wall clock and offset.
    fn runs(expression: &str, zone: &str, from: &str, to: &str) -> Vec<String> {
        let (from, to) = (millis(from), millis(to));
        let schedule = CronSchedule::parse(expression, zone, from).expect("allowed");
        std::iter::successors(schedule.next(from, 0), |at| schedule.next(*at, 0))
            .take_while(|at| *at <= to)
            .map(|at| schedule.format_local(at)[11..].to_owned())
            .collect()
    }

    /// A zone, and a night in it in which the clock changes, from about midnight on.
    type ClockChangeWindow = (&'static str, &'static str, &'static str);

    const BERLIN_SPRING: ClockChangeWindow = ("Europe/Berlin", "2026-03-28T22:59:59Z", "2026-03-29T03:00:00Z");
    const BERLIN_AUTUMN: ClockChangeWindow = ("Europe/Berlin", "2026-10-24T21:59:59Z", "2026-10-25T04:00:00Z");
    const YORK_SPRING: ClockChangeWindow = ("America/New_York", "2026-03-08T04:59:59Z", "2026-03-08T09:00:00Z");
    const YORK_AUTUMN: ClockChangeWindow = ("America/New_York", "2026-11-01T03:59:59Z", "2026-11-01T10:00:00Z");
    const HOWE_SPRING: ClockChangeWindow = ("Australia/Lord_Howe", "2026-10-03T13:29:59Z", "2026-10-03T18:00:00Z");
    const HOWE_AUTUMN: ClockChangeWindow = ("Australia/Lord_Howe", "2026-04-04T12:59:59Z", "2026-04-04T18:30:00Z");

    /// The table of `docs/cron.md`: an expression, a night, and the runs in it.
    const TABLE: [(&str, ClockChangeWindow, &[&str]); 20] = [
        // Skipped times do not run
        ("30 2 * * *", BERLIN_SPRING, &[]),
        ("0 2,3 * * *", BERLIN_SPRING, &["03:00:00+02:00"]),
        ("30 2 * * *", YORK_SPRING, &[]),
        ("0 3 * * *", YORK_SPRING, &["03:00:00-04:00"]),
        ("15 2 * * *", HOWE_SPRING, &[]),
        ("30 2 * * *", HOWE_SPRING, &["02:30:00+11:00"]),
        // Repeated times run once, the first time
        ("30 2 * * *", BERLIN_AUTUMN, &["02:30:00+02:00"]),
        ("0,30 2,3 * * *", BERLIN_AUTUMN, &["02:00:00+02:00", "02:30:00+02:00", "03:00:00+01:00", "03:30:00+01:00"]),
        ("30 1 * * *", YORK_AUTUMN, &["01:30:00-04:00"]),
        ("0 30 1 * * *", YORK_AUTUMN, &["01:30:00-04:00"]),
        ("45 1 * * *", HOWE_AUTUMN, &["01:45:00+11:00"]),
        ("0,30 1 * * *", HOWE_AUTUMN, &["01:00:00+11:00", "01:30:00+11:00"]),
        // With a star among second, minute and hour, real time counts
        ("*/30 1-3 * * *", BERLIN_SPRING, &["01:00:00+01:00", "01:30:00+01:00", "03:00:00+02:00", "03:30:00+02:00"]),
        ("*/30 2 * * *", BERLIN_AUTUMN, &["02:00:00+02:00", "02:30:00+02:00", "02:00:00+01:00", "02:30:00+01:00"]),
        (
            "@hourly",
            YORK_SPRING,
            &["00:00:00-05:00", "01:00:00-05:00", "03:00:00-04:00", "04:00:00-04:00", "05:00:00-04:00"],
        ),
        (
            "30 * * * *",
            YORK_AUTUMN,
            &[
                "00:30:00-04:00",
                "01:30:00-04:00",
                "01:30:00-05:00",
                "02:30:00-05:00",
                "03:30:00-05:00",
                "04:30:00-05:00",
            ],
        ),
        ("0 */2 * * *", BERLIN_SPRING, &["00:00:00+01:00", "04:00:00+02:00"]),
        ("*/15 2 * * *", HOWE_SPRING, &["02:30:00+11:00", "02:45:00+11:00"]),
        (
            "*/15 1 * * *",
            HOWE_AUTUMN,
            &[
                "01:00:00+11:00",
                "01:15:00+11:00",
                "01:30:00+11:00",
                "01:45:00+11:00",
                "01:30:00+10:30",
                "01:45:00+10:30",
            ],
        ),
        ("0 0 25 10 *", BERLIN_AUTUMN, &["00:00:00+02:00"]),
    ];

    #[test]
    fn changes_of_the_clock_are_handled_as_the_table_says() {
        for (expression, (zone, from, to), expected) in TABLE {
            assert_eq!(runs(expression, zone, from, to), expected, "{expression} in {zone} from {from}");
        }
    }

    #[test]
    fn every_minute_runs_every_minute_of_real_time_through_a_change() {
        for (zone, from, to) in [
            ("Europe/Berlin", "2026-03-29T00:00:00Z", "2026-03-29T02:00:00Z"),
            ("Europe/Berlin", "2026-10-25T00:00:00Z", "2026-10-25T02:00:00Z"),
            ("Australia/Lord_Howe", "2026-04-04T14:00:00Z", "2026-04-04T16:00:00Z"),
        ] {
            assert_eq!(runs("* * * * *", zone, from, to).len(), 120, "{zone} {from}");
        }
    }

    #[test]
    fn an_interval_counts_from_its_anchor() {
        let schedule = CronSchedule::parse("@every 90s", "UTC", 0).expect("allowed");
        assert_eq!(schedule.next(1_000, 1_000), Some(91_000));
        assert_eq!(schedule.next(90_999, 1_000), Some(91_000));
        assert_eq!(schedule.next(91_000, 1_000), Some(181_000));
    }

    #[test]
    fn what_never_occurs_is_refused() {
        for (expression, zone) in [
            ("0 0 30 2 *", "UTC"),
            ("0 0 31 2,4,6,9,11 *", "UTC"),
            // The last Sunday of March at half past two is skipped every year
            ("30 2 * 3 0L", "Europe/Berlin"),
        ] {
            let error = CronSchedule::parse(expression, zone, millis("2026-01-01T00:00:00Z")).expect_err(expression);
            assert!(matches!(error, CronScheduleError::Never(_)), "{error}");
        }
        assert!(CronSchedule::parse("0 0 29 2 *", "Europe/Berlin", 0).is_ok());
        assert!(CronSchedule::parse("0 0 * 2 1#5", "UTC", millis("2026-01-01T00:00:00Z")).is_ok(), "next in 2044");
    }

    #[test]
    fn only_names_of_places_are_time_zones() {
        for zone in ["UTC", "Europe/Berlin", "Asia/Tokyo", "America/Argentina/Buenos_Aires", "US/Eastern"] {
            assert!(CronSchedule::parse("@daily", zone, 0).is_ok(), "{zone}");
        }
        for zone in [
            "",
            "EST",
            "PST8PDT",
            "CET",
            "+05:00",
            "-08:00",
            "UTC+5",
            "Etc/GMT+5",
            "europe/berlin",
            "Mars/Olympus",
            "Europe/Berlin ",
            "../etc/passwd",
            "Local",
        ] {
            let error = CronSchedule::parse("@daily", zone, 0).expect_err(zone).to_string();
            assert!(error.contains("IANA name"), "{zone}: {error}");
        }
    }

    const ZONES: [&str; 6] =
        ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca"];

    fn an_expression() -> impl Strategy<Value = String> {
        let field = |min: u32, max: u32| {
            prop_oneof![
                Just("*".to_owned()),
                (min..=max).prop_map(|number| number.to_string()),
                (1..=max.min(30)).prop_map(|step| format!("*/{step}")),
                (min..=max, min..=max).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
                proptest::collection::vec(min..=max, 1..4).prop_map(|list| list
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(",")),
            ]
        };
        (field(0, 59), field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 7), any::<bool>()).prop_map(
            |(second, minute, hour, day, month, weekday, six)| {
                let five = format!("{minute} {hour} {day} {month} {weekday}");
                if six { format!("{second} {five}") } else { five }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn runs_come_one_after_another_and_match(
            expression in an_expression(),
            zone in proptest::sample::select(&ZONES[..]),
            start in 946_684_800_000..4_000_000_000_000_i64,
        ) {
            let schedule = CronSchedule::parse(&expression, zone, start);
            prop_assume!(!matches!(schedule, Err(CronScheduleError::Never(_))));
            let schedule = schedule.expect("allowed");
            let CronExpression::Calendar(calendar) = &schedule.expression else { unreachable!() };
            let mut at = start;
            for _ in 0..4 {
                let Some(next) = schedule.next(at, 0) else { break };
                prop_assert!(next > at, "{next} after {at}");
                let moment = Timestamp::from_millisecond(next).expect("a time");
                prop_assert!(calendar.matches(&schedule.zone.to_datetime(moment)), "{}", schedule.format_local(next));
                prop_assert_eq!(schedule.next(next - 1, 0), Some(next), "nothing in between");
                at = next;
            }
        }

        /// Against the slow way: every minute of a night, and for fixed times only the first of two that look alike.
        #[test]
        fn in_the_nights_the_runs_are_the_minutes_that_match(
            fields in proptest::collection::vec("\\*|\\*/[1-9]|[0-3]|[1-5]?[0-9],[1-5]?[05]|1-3", 2),
            night in proptest::sample::select(
                &[BERLIN_SPRING, BERLIN_AUTUMN, YORK_SPRING, YORK_AUTUMN, HOWE_SPRING, HOWE_AUTUMN][..]
            ),
        ) {
            let (zone, from, to) = night;
            let (from, to) = (millis(from) + 1000, millis(to));
            let schedule = CronSchedule::parse(&format!("{} {} * * *", fields[0], fields[1]), zone, from);
            prop_assume!(schedule.is_ok());
            let schedule = schedule.expect("allowed");
            let CronExpression::Calendar(calendar) = &schedule.expression else { unreachable!() };
            let mut seen = std::collections::HashSet::new();
            let expected: Vec<Millis> = (from..=to)
                .step_by(60_000)
                .filter(|at| {
                    let local = schedule.zone.to_datetime(Timestamp::from_millisecond(*at).expect("a time"));
                    (seen.insert(local) || !calendar.is_fixed) && calendar.matches(&local)
                })
                .collect();
            let found: Vec<Millis> = std::iter::successors(schedule.next(from - 1, 0), |at| schedule.next(*at, 0))
                .take_while(|at| *at <= to)
                .collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_text_makes_a_schedule_panic(expression in "[0-9A-Z*/,#LW -]{0,30}", zone in ".{0,30}", at in any::<i64>()) {
            let _ = CronSchedule::parse("@daily", &zone, at);
            if let Ok(schedule) = CronSchedule::parse(&expression, "Europe/Berlin", at) {
                let _ = schedule.next(at, at);
            }
        }
    }
}
