//! How pages write numbers, times and long texts.
#![expect(clippy::unused_self, reason = "templates call methods")]

use std::fmt::Display;

use common::time::{self, Millis};

use super::{
    page::Page,
    plain::{Number, encode, parse_moment},
};

impl Page {
    /// A text as a part of an address.
    pub(super) fn enc(&self, text: impl Display) -> String {
        encode(&text.to_string())
    }

    /// The beginning of a text, with a sign that there is more.
    pub(super) fn cut(&self, text: &str, max: usize) -> String {
        let mut letters = text.chars();
        let start: String = letters.by_ref().take(max).collect();
        if letters.next().is_some() { format!("{start}…") } else { start }
    }

    /// A number with its thousands apart.
    pub(super) fn num(&self, number: impl Number) -> String {
        let digits = number.value().to_string();
        let mut text = String::with_capacity(digits.len() + digits.len() / 3);
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        text
    }

    /// How long ago that was, or in how long it is.
    pub(super) fn ago(&self, at: impl Number) -> String {
        let at = at.value();
        let behind = self.now.saturating_sub(at);
        let length = self.long(behind.abs());
        if behind.abs() < 1000 {
            self.t("ago.now").to_owned()
        } else if behind > 0 {
            self.f("ago.past", length)
        } else {
            self.f("ago.future", length)
        }
    }

    /// The same of a time as text.
    pub(super) fn ago_text(&self, text: &str) -> String {
        parse_moment(text).map_or_else(|| text.to_owned(), |at| self.ago(at))
    }

    /// How old something is.
    pub(super) fn age(&self, at: impl Number) -> String {
        self.long(self.now.saturating_sub(at.value()).max(0))
    }

    /// A length of time, in its largest unit.
    pub(super) fn long(&self, millis: Millis) -> String {
        let units =
            [(86_400_000, "long.days"), (3_600_000, "long.hours"), (60_000, "long.minutes"), (1000, "long.seconds")];
        let unit = units.into_iter().find(|(unit, _)| millis >= *unit);
        let (unit, key) = unit.unwrap_or((1, "long.millis"));
        self.f(key, millis / unit)
    }

    /// A period that something is counted in: "second" rather than "1 s".
    pub(super) fn period(&self, millis: Millis) -> String {
        match millis {
            1000 => self.t("period.second").to_owned(),
            60_000 => self.t("period.minute").to_owned(),
            3_600_000 => self.t("period.hour").to_owned(),
            86_400_000 => self.t("period.day").to_owned(),
            other => self.long_exact(other),
        }
    }

    /// How long something took: with tenths where they count.
    pub(super) fn took(&self, millis: impl Number) -> String {
        match millis.value() {
            millis @ 1000..60_000 => self.f("long.seconds", format!("{}.{}", millis / 1000, millis % 1000 / 100)),
            millis => self.long(millis),
        }
    }

    /// A length of time in the largest unit that leaves no rest.
    fn long_exact(&self, millis: Millis) -> String {
        let units =
            [(86_400_000, "long.days"), (3_600_000, "long.hours"), (60_000, "long.minutes"), (1000, "long.seconds")];
        let unit = units.into_iter().find(|(unit, _)| millis % unit == 0);
        let (unit, key) = unit.unwrap_or((1, "long.millis"));
        self.f(key, millis / unit)
    }

    /// A time for programs and for hovering over.
    pub(super) fn moment(&self, at: impl Number) -> String {
        time::format(at.value())
    }

    /// Day, hour and minute of a time.
    pub(super) fn minute_of(&self, at: impl Number) -> String {
        let text = time::format(at.value());
        format!("{} UTC", text.get(..16).unwrap_or(&text).replace('T', " "))
    }

    /// A number of bytes.
    pub(super) fn bytes(&self, bytes: impl Number) -> String {
        let bytes = bytes.value();
        let (unit, name) = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
            .into_iter()
            .find(|(unit, _)| bytes >= *unit)
            .unwrap_or((1, "B"));
        let tenths = bytes.saturating_mul(10) / unit;
        if unit == 1 || tenths >= 1000 {
            format!("{} {name}", tenths / 10)
        } else {
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
    }
}
