//! Every text of the dashboard, in each language: `texts/dashboard.tsv`. A line is a key, the English text and the Chinese one.

use std::{collections::HashMap, fmt::Display, sync::LazyLock};

use actix_web::http::header::{self, HeaderMap};

use super::session::cookie;

/// The cookie with the language that somebody chose.
pub(super) const LANGUAGE_COOKIE: &str = "galley_language";

/// A language of the dashboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Language {
    English,
    Chinese,
}

const TABLE: &str = include_str!("../../texts/dashboard.tsv");

static TEXTS: LazyLock<HashMap<&'static str, [&'static str; 2]>> = LazyLock::new(|| rows().collect());

fn rows() -> impl Iterator<Item = (&'static str, [&'static str; 2])> {
    TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let mut cells = line.split('\t');
        let mut cell = || cells.next().unwrap_or_default();
        (cell(), [cell(), cell()])
    })
}

impl Language {
    pub(crate) const ALL: [Self; 2] = [Self::English, Self::Chinese];

    /// The language that a browser asks for, or that somebody chose.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        if let Some(chosen) = cookie(headers, LANGUAGE_COOKIE).and_then(Self::from_tag) {
            return chosen;
        }
        let asked = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Self::accepted(asked).unwrap_or(Self::English)
    }

    /// The known language that `Accept-Language` likes best; the first of several that it likes alike.
    fn accepted(asked: &str) -> Option<Self> {
        let weighed = asked.split(',').filter_map(|part| {
            let (tag, parameters) = part.split_once(';').unwrap_or((part, ""));
            let weight = parameters.trim().strip_prefix("q=").map_or(Some(1.0), |q| q.trim().parse::<f32>().ok());
            let language = Self::from_tag(tag.trim().split('-').next()?)?;
            weight.filter(|weight| *weight > 0.0).map(|weight| (language, weight))
        });
        weighed.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(language, _)| language)
    }

    /// The language with that tag.
    pub(super) fn from_tag(tag: &str) -> Option<Self> {
        match tag.to_ascii_lowercase().as_str() {
            "en" => Some(Self::English),
            "zh" => Some(Self::Chinese),
            _ => None,
        }
    }

    /// Its tag, for `lang`.
    pub(crate) fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Chinese => "zh",
        }
    }

    /// What it calls itself.
    pub(crate) fn own_name(self) -> &'static str {
        self.text("language.name")
    }

    /// A text.
    pub(crate) fn text(self, key: &str) -> &'static str {
        match TEXTS.get(key) {
            Some([english, chinese]) => match self {
                Self::English => english,
                Self::Chinese => chinese,
            },
            None => "?",
        }
    }

    /// Whether there is such a text.
    pub(super) fn has(key: &str) -> bool {
        TEXTS.contains_key(key)
    }

    /// A text with values in place of `{0}`, `{1}` and so on.
    pub(crate) fn fill(self, key: &str, values: &[&dyn Display]) -> String {
        let mut text = String::new();
        let mut rest = self.text(key);
        // Once from left to right, so that a value with braces stays as it is
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            let (number, following) = after.split_once('}').unwrap_or((after, ""));
            if let Some(value) = number.parse::<usize>().ok().and_then(|number| values.get(number)) {
                text.push_str(&value.to_string());
            }
            rest = following;
        }
        text + rest
    }
}

#[cfg(test)]
#[path = "texts_tests.rs"]
mod tests;
