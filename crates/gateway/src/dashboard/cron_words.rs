//! A cron expression in plain words. What has no plain words stays as it is written.

use super::texts::Language;

/// When an expression matches, in words.
pub(super) fn describe(language: Language, expression: &str) -> String {
    words(language, expression).unwrap_or_else(|| expression.to_owned())
}

fn words(language: Language, expression: &str) -> Option<String> {
    if let Some(interval) = expression.strip_prefix("@every ") {
        return Some(language.fill("cron.every", &[&interval.trim()]));
    }
    let fields = match expression.to_ascii_lowercase().as_str() {
        "@yearly" | "@annually" => "0 0 1 1 *".to_owned(),
        "@monthly" => "0 0 1 * *".to_owned(),
        "@weekly" => "0 0 * * 0".to_owned(),
        "@daily" | "@midnight" => "0 0 * * *".to_owned(),
        "@hourly" => "0 * * * *".to_owned(),
        other => other.to_owned(),
    };
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    if let [seconds, "*", "*", "*", "*", "*"] = fields[..]
        && seconds != "0"
    {
        return match step(seconds) {
            Some(step) => Some(language.fill("cron.every_seconds", &[&step])),
            None => (seconds == "*").then(|| language.text("cron.every_second").to_owned()),
        };
    }
    let (["0", minute, hour, day, month, weekday] | [minute, hour, day, month, weekday]) = fields[..] else {
        return None;
    };
    let time = time_words(language, minute, hour)?;
    let days = day_words(language, day, month, weekday)?;
    if !days.is_empty() {
        return Some(language.fill("cron.time_and_days", &[&time, &days]));
    }
    // "At 03:00" alone leaves open on which days
    Some(if number(minute).is_some() && is_list(hour) { language.fill("cron.daily", &[&time]) } else { time })
}

/// `8` or `8,20`.
fn is_list(field: &str) -> bool {
    field.split(',').all(|part| number(part).is_some())
}

/// `*/5` as 5.
fn step(field: &str) -> Option<u32> {
    field.strip_prefix("*/")?.parse().ok()
}

/// `9-17` as 9 and 17.
fn hour_range(field: &str) -> Option<(u32, u32)> {
    let (first, last) = field.split_once('-')?;
    Some((number(first)?, number(last)?)).filter(|(first, last)| first < last)
}

fn number(field: &str) -> Option<u32> {
    field.parse().ok()
}

fn time_words(language: Language, minute: &str, hour: &str) -> Option<String> {
    Some(match (minute, hour) {
        ("*", "*") => language.text("cron.every_minute").to_owned(),
        (minute, "*") if step(minute).is_some() => language.fill("cron.every_minutes", &[&step(minute)?]),
        ("0", "*") => language.text("cron.every_hour").to_owned(),
        (minute, "*") => language.fill("cron.every_hour_at", &[&format!("{:02}", number(minute)?)]),
        (minute, hour) if step(hour).is_some() => {
            language.fill("cron.every_hours_at", &[&step(hour)?, &format!("{:02}", number(minute)?)])
        }
        (minute, hours) if step(minute).is_some() && hour_range(hours).is_some() => {
            let (first, last) = hour_range(hours)?;
            let (from, to) = (format!("{first:02}:00"), format!("{last:02}:59"));
            language.fill("cron.every_minutes_from", &[&step(minute)?, &from, &to])
        }
        (minute, hours) if hour_range(hours).is_some() => {
            let (minute, (first, last)) = (number(minute)?, hour_range(hours)?);
            language.fill("cron.hourly_from", &[&format!("{first:02}:{minute:02}"), &format!("{last:02}:{minute:02}")])
        }
        (minute, hours) => {
            let minute = number(minute)?;
            let times: Option<Vec<String>> =
                hours.split(',').map(|hour| Some(format!("{:02}:{minute:02}", number(hour)?))).collect();
            language.fill("cron.at", &[&times?.join(language.text("cron.and"))])
        }
    })
}

const WEEKDAYS: [&str; 7] =
    ["cron.sunday", "cron.monday", "cron.tuesday", "cron.wednesday", "cron.thursday", "cron.friday", "cron.saturday"];
const SHORT_WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

fn weekday_name(language: Language, field: &str) -> Option<&'static str> {
    let index = SHORT_WEEKDAYS.iter().position(|name| *name == field);
    let index = index.or_else(|| number(field).and_then(|number| usize::try_from(number % 7).ok()))?;
    WEEKDAYS.get(index).map(|key| language.text(key))
}

fn day_words(language: Language, day: &str, month: &str, weekday: &str) -> Option<String> {
    Some(match (day, month, weekday) {
        ("*", "*", "*") => String::new(),
        ("*", "*", "1-5" | "mon-fri") => language.text("cron.working_days").to_owned(),
        ("*", "*", days) if days.contains('-') && !days.contains(',') => {
            let (first, last) = days.split_once('-')?;
            language.fill("cron.from_day", &[&weekday_name(language, first)?, &weekday_name(language, last)?])
        }
        ("*", "*", days) => {
            let named: Option<Vec<&str>> = days.split(',').map(|day| weekday_name(language, day)).collect();
            language.fill("cron.on", &[&named?.join(language.text("cron.and"))])
        }
        (days, "*", "*") if is_list(days) => {
            let days: Vec<&str> = days.split(',').collect();
            language.fill("cron.day_of_month", &[&days.join(language.text("cron.and"))])
        }
        (day, month, "*") => language.fill("cron.day_of_year", &[&number(day)?, &number(month)?]),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_expressions_have_plain_words_and_others_stay_as_they_are() {
        for (expression, words) in [
            ("* * * * *", "every minute"),
            ("*/5 * * * *", "every 5 minutes"),
            ("0 * * * *", "every hour"),
            ("15 * * * *", "every hour at :15"),
            ("0 9 * * MON-FRI", "at 09:00, Monday to Friday"),
            ("* * * * * *", "every second"),
            ("*/5 * * * * *", "every 5 seconds"),
            ("30 8,20 * * *", "every day at 08:30 and 20:30"),
            ("*/15 9-17 * * 1-5", "every 15 minutes from 09:00 to 17:59, Monday to Friday"),
            ("0 8 * * tue-thu", "at 08:00, Tuesday to Thursday"),
            ("0 3 1,15 * *", "at 03:00, on day 1 and 15 of the month"),
            ("0 9-17 * * 1-5", "every hour from 09:00 to 17:00, Monday to Friday"),
            ("0 0 * * 7", "at 00:00, on Sunday"),
            ("0 3 1 * *", "at 03:00, on day 1 of the month"),
            ("@every 1h30m", "every 1h30m"),
            ("@daily", "every day at 00:00"),
            ("0 0 12 * * *", "every day at 12:00"),
            ("0 0 * * 5#3", "0 0 * * 5#3"),
            ("*/7 3-5 * * *", "every 7 minutes from 03:00 to 05:59"),
            ("*/7 3-5,9 * * *", "*/7 3-5,9 * * *"),
            ("10 0 0 * * *", "10 0 0 * * *"),
        ] {
            assert_eq!(describe(Language::English, expression), words, "{expression}");
        }
        assert_eq!(describe(Language::Chinese, "*/5 * * * *"), "每 5 分钟");
        assert_eq!(describe(Language::Chinese, "0 3 * * *"), "每天 03:00");
    }
}
