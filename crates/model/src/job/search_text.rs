//! A filter as people type it: `state:discarded,cancelled queue:mail type:email.* tag:x error:"timed out" 01953`.
//!
//! Words are separated by spaces. A word with a qualifier is a condition; any other is looked for in ids and errors. A
//! value with spaces stands in quotes, in which `\"` and `\\` stand for a quote and a backslash.

use std::{iter::Peekable, str::Chars};

use super::{
    filter::{JobFilter, MetaCondition},
    state::JobState,
};
use common::{
    known_names,
    name::quoted,
    time::{self, Millis},
};

/// The qualifiers of a search.
pub const QUALIFIERS: [&str; 15] = [
    "state",
    "queue",
    "type",
    "tag",
    "meta",
    "error",
    "error_type",
    "worker",
    "workflow",
    "id",
    "is",
    "since",
    "until",
    "ended_since",
    "ended_until",
];

/// The longest search, in bytes.
pub const MAX_SEARCH_BYTES: usize = 2048;
/// The most words of a search.
const MAX_WORDS: usize = 32;

/// A search that cannot be read; the message says what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SearchTextError(String);

fn refused<T>(message: impl Into<String>) -> Result<T, SearchTextError> {
    Err(SearchTextError(message.into()))
}

/// A word of a search.
struct SearchWord {
    qualifier: Option<String>,
    value: String,
}

impl JobFilter {
    /// Reads a search. Times may be relative to `now`.
    ///
    /// # Errors
    /// A qualifier is unknown, or a value does not fit it.
    pub fn from_search_text(text: &str, now: Millis) -> Result<Self, SearchTextError> {
        if text.len() > MAX_SEARCH_BYTES {
            return refused(format!("a search has at most {MAX_SEARCH_BYTES} bytes"));
        }
        let mut filter = Self::default();
        let words = split_words(text)?;
        if words.len() > MAX_WORDS {
            return refused(format!("a search has at most {MAX_WORDS} words"));
        }
        for word in words {
            match &word.qualifier {
                Some(qualifier) => filter.add_condition(qualifier, word.value, now)?,
                None => filter.words.push(word.value),
            }
        }
        Ok(filter)
    }

    fn add_condition(&mut self, qualifier: &str, value: String, now: Millis) -> Result<(), SearchTextError> {
        if value.is_empty() {
            return refused(format!("{qualifier}: needs a value"));
        }
        let not_valid = |error: &dyn std::fmt::Display| SearchTextError(format!("{qualifier}: {error}"));
        match qualifier {
            "state" => {
                for name in value.split(',') {
                    let names = JobState::ALL.map(JobState::as_str);
                    let state = JobState::from_name(name)
                        .ok_or_else(|| SearchTextError(known_names::unknown("state", name, &names)))?;
                    if !self.states.contains(&state) {
                        self.states.push(state);
                    }
                }
            }
            "queue" => set_once(qualifier, &mut self.queue, value.parse().map_err(|error| not_valid(&error))?)?,
            "type" => set_once(qualifier, &mut self.job_type, value)?,
            "tag" => self.tags.push(value),
            "meta" => self.meta.push(MetaCondition::from_text(&value)),
            "error" => self.errors.push(value),
            "error_type" => set_once(qualifier, &mut self.error_type, value)?,
            "worker" => set_once(qualifier, &mut self.worker, value)?,
            "workflow" => set_once(qualifier, &mut self.workflow, value.parse().map_err(|error| not_valid(&error))?)?,
            "id" => set_once(qualifier, &mut self.id, value.parse().map_err(|error| not_valid(&error))?)?,
            "is" if value == "dead" => self.is_dead_letter = true,
            "is" => return refused(format!("is: takes dead, got {}", quoted(&value))),
            "since" => set_once(qualifier, &mut self.created_since, parse_moment(qualifier, &value, now)?)?,
            "until" => set_once(qualifier, &mut self.created_until, parse_moment(qualifier, &value, now)?)?,
            "ended_since" => set_once(qualifier, &mut self.ended_since, parse_moment(qualifier, &value, now)?)?,
            "ended_until" => set_once(qualifier, &mut self.ended_until, parse_moment(qualifier, &value, now)?)?,
            unknown => {
                let unknown = known_names::unknown("qualifier", unknown, &QUALIFIERS);
                return refused(format!("{unknown}; put text with a colon in quotes"));
            }
        }
        Ok(())
    }

    /// The search that means this filter. What a caller may see is not part of it.
    #[must_use]
    pub fn to_search_text(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        let mut add = |qualifier: &str, value: &str| words.push(format!("{qualifier}:{}", quoted_value(value)));
        if !self.states.is_empty() {
            add("state", &self.states.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(","));
        }
        if self.is_dead_letter {
            add("is", "dead");
        }
        let texts = [
            ("id", self.id.map(|id| id.to_string())),
            ("queue", self.queue.as_ref().map(ToString::to_string)),
            ("type", self.job_type.clone()),
            ("error_type", self.error_type.clone()),
            ("worker", self.worker.clone()),
            ("workflow", self.workflow.map(|id| id.to_string())),
            ("since", self.created_since.map(time::format)),
            ("until", self.created_until.map(time::format)),
            ("ended_since", self.ended_since.map(time::format)),
            ("ended_until", self.ended_until.map(time::format)),
        ];
        for (qualifier, value) in texts {
            if let Some(value) = value {
                add(qualifier, &value);
            }
        }
        self.tags.iter().for_each(|tag| add("tag", tag));
        self.meta.iter().for_each(|meta| add("meta", &meta.to_text()));
        self.errors.iter().for_each(|error| add("error", error));
        words.extend(self.words.iter().map(|word| quoted_value(word)));
        words.join(" ")
    }
}

impl MetaCondition {
    /// `key` or `key=value`.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        match text.split_once('=') {
            Some((key, value)) => Self { key: key.to_owned(), value: Some(value.to_owned()) },
            None => Self { key: text.to_owned(), value: None },
        }
    }

    /// The same as text.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.value.as_ref().map_or_else(|| self.key.clone(), |value| format!("{}={value}", self.key))
    }
}

fn set_once<T>(qualifier: &str, place: &mut Option<T>, value: T) -> Result<(), SearchTextError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => refused(format!("{qualifier}: is there twice")),
    }
}

/// A time: as everywhere in Galley, or how long ago, such as `30m`, `2h` or `7d`.
fn parse_moment(qualifier: &str, text: &str, now: Millis) -> Result<Millis, SearchTextError> {
    let ago = text.char_indices().last().and_then(|(end, unit)| {
        let unit_ms = match unit {
            's' => 1000,
            'm' => 60_000,
            'h' => 3_600_000,
            'd' => 86_400_000,
            _ => return None,
        };
        Some(now.saturating_sub(i64::from(text[..end].parse::<u32>().ok()?) * unit_ms).max(0))
    });
    if let Some(ago) = ago {
        return Ok(ago);
    }
    match time::parse_time(text, now) {
        Ok(parsed) => Ok(parsed.at),
        Err(error) => refused(format!("{qualifier}: {error}, or how long ago, such as 30m, 2h or 7d")),
    }
}

fn split_words(text: &str) -> Result<Vec<SearchWord>, SearchTextError> {
    let mut words = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        while rest.next_if(|character| character.is_whitespace()).is_some() {}
        let Some(first) = rest.peek() else { return Ok(words) };
        if *first == '"' {
            words.push(SearchWord { qualifier: None, value: quoted_part(&mut rest)? });
            continue;
        }
        let mut word = String::new();
        let mut qualifier = None;
        while let Some(character) = rest.next_if(|character| !character.is_whitespace()) {
            if character == ':' && qualifier.is_none() && !word.is_empty() {
                qualifier = Some(std::mem::take(&mut word));
                if rest.peek() == Some(&'"') {
                    word = quoted_part(&mut rest)?;
                    break;
                }
                continue;
            }
            word.push(character);
        }
        words.push(SearchWord { qualifier, value: word });
    }
}

/// Text in quotes, which begins here.
fn quoted_part(rest: &mut Peekable<Chars<'_>>) -> Result<String, SearchTextError> {
    rest.next();
    let mut text = String::new();
    while let Some(character) = rest.next() {
        match character {
            '"' => return Ok(text),
            '\\' => text.extend(rest.next()),
            other => text.push(other),
        }
    }
    refused("a quote is not closed")
}

/// A value as it stands in a search.
fn quoted_value(value: &str) -> String {
    let is_simple = !value.is_empty()
        && !value.starts_with(':')
        && !value.chars().any(|character| character.is_whitespace() || matches!(character, '"' | '\\' | ':'));
    if is_simple {
        return value.to_owned();
    }
    let mut text = String::from("\"");
    for character in value.chars() {
        if matches!(character, '"' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*, sample::subsequence};

    use super::*;

    const NOW: Millis = 1_800_000_000_000;

    fn read(text: &str) -> Result<JobFilter, String> {
        JobFilter::from_search_text(text, NOW).map_err(|error| error.to_string())
    }

    prop_compose! {
        fn filters()(
            states in subsequence(JobState::ALL.to_vec(), 0..4),
            (is_dead_letter, has_ids) in any::<(bool, bool)>(),
            texts in vec(option::of("[^\u{0}]{1,12}"), 3),
            many in vec(vec("[^\u{0}]{1,12}", 0..3), 3),
            keys in vec(("[a-z.]{1,8}", option::of("[^\u{0}]{0,12}")), 0..3),
            times in vec(option::of(0..time::MAX_MILLIS), 4),
        ) -> JobFilter {
            let [job_type, error_type, worker] = texts.try_into().expect("three");
            let [tags, errors, words] = many.try_into().expect("three");
            let [created_since, created_until, ended_since, ended_until] = times.try_into().expect("four");
            let id = "019539a4-b68c-7def-8000-1a2b3c4d5e6f";
            JobFilter {
                access: None,
                states,
                is_dead_letter,
                id: has_ids.then(|| id.parse().expect("an id")),
                queue: has_ids.then(|| "mail.out".parse().expect("a name")),
                job_type,
                tags,
                meta: keys.into_iter().map(|(key, value)| MetaCondition { key, value }).collect(),
                errors,
                error_type,
                worker,
                workflow: has_ids.then(|| id.parse().expect("an id")),
                created_since,
                created_until,
                ended_since,
                ended_until,
                words,
            }
        }
    }

    proptest! {
        #[test]
        fn what_a_filter_is_written_as_is_read_back(filter in filters()) {
            prop_assert_eq!(read(&filter.to_search_text()), Ok(filter));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,80}", words in vec("(state|type|error|since|is|id|x)?:?\"?[a-z0-9\\\\\"]{0,5}", 0..6)) {
            let _ = read(&text);
            let _ = read(&words.join(" "));
        }
    }

    #[test]
    fn a_search_is_read_as_people_type_it() {
        let filter = read(
            r#" state:discarded,cancelled  queue:mail type:email.* tag:x tag:y error:"timed \"out\"" 0195 "a b" "#,
        );
        let filter = filter.expect("a filter");
        assert_eq!(filter.states, [JobState::Discarded, JobState::Cancelled]);
        assert_eq!(filter.queue, "mail".parse().ok());
        assert_eq!(
            (filter.job_type.as_deref(), &filter.tags[..]),
            (Some("email.*"), &["x".to_owned(), "y".to_owned()][..])
        );
        assert_eq!(
            (&filter.errors[0][..], &filter.words[..]),
            ("timed \"out\"", &["0195".to_owned(), "a b".to_owned()][..])
        );
        let filter = read("meta:tenant=a=b meta:k is:dead since:2h ended_until:2026-11-28T10:00:00Z ended_since:-PT1S");
        let filter = filter.expect("a filter");
        assert_eq!(filter.meta[0].value.as_deref(), Some("a=b"));
        assert_eq!((filter.meta[1].key.as_str(), filter.meta[1].value.as_deref()), ("k", None));
        assert!(filter.is_dead_letter);
        assert_eq!((filter.created_since, filter.ended_since), (Some(NOW - 7_200_000), Some(NOW - 1000)));
        assert_eq!(filter.ended_until.map(time::format).as_deref(), Some("2026-11-28T10:00:00.000Z"));
        assert_eq!(read("  "), Ok(JobFilter::default()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_reason() {
        for (text, message) in [
            ("stat:active", "did you mean \"state\""),
            ("state:activ", "did you mean \"active\""),
            ("http://x", "in quotes"),
            ("error:\"open", "not closed"),
            ("queue:a queue:b", "twice"),
            ("queue:A", "queue:"),
            ("type:", "needs a value"),
            ("since:soon", "30m, 2h or 7d"),
            ("is:alive", "takes dead"),
            ("workflow:x", "workflow:"),
        ] {
            let refused = read(text).expect_err(text);
            assert!(refused.contains(message), "{text}: {refused}");
        }
        assert!(read(&"x".repeat(MAX_SEARCH_BYTES + 1)).is_err() && read(&"x ".repeat(MAX_WORDS + 1)).is_err());
    }
}
