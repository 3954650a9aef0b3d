//! The last warnings and errors of this process, for people who look into it. As in the log, there are no payloads and no
//! secrets. Repeats are counted; the number of texts and their length are bounded.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, filter::LevelFilter, layer::Context, registry::LookupSpan};

use crate::time;

/// How many different problems are kept.
const MAX_PROBLEMS: usize = 50;
/// The longest text of one, in bytes.
const MAX_TEXT_BYTES: usize = 500;

static PROBLEMS: Mutex<VecDeque<RecentProblem>> = Mutex::new(VecDeque::new());

/// A warning or an error.
#[derive(Debug, Clone, Serialize)]
pub struct RecentProblem {
    /// The last time.
    pub at: String,
    /// `WARN` or `ERROR`.
    pub level: &'static str,
    /// The name of the event, if it has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub event: String,
    /// What the log says.
    pub message: String,
    /// The other fields of the last time, as `name=value`.
    pub fields: String,
    /// How many times, since it is kept.
    pub count: u64,
}

/// The newest first.
#[must_use]
pub fn recent_problems() -> Vec<RecentProblem> {
    lock().iter().rev().cloned().collect()
}

/// Keeps them.
pub(super) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    RecentProblems.with_filter(LevelFilter::WARN)
}

fn lock() -> MutexGuard<'static, VecDeque<RecentProblem>> {
    PROBLEMS.lock().unwrap_or_else(PoisonError::into_inner)
}

struct RecentProblems;

impl<S: Subscriber> Layer<S> for RecentProblems {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // What these say is counted: any client can make the one speak, and an exporter without its receiver says much
        if ["actix_http::h1", "opentelemetry"].iter().any(|target| event.metadata().target().starts_with(target)) {
            return;
        }
        let level = if *event.metadata().level() == Level::ERROR { "ERROR" } else { "WARN" };
        let mut texts = Texts::default();
        event.record(&mut texts);
        let (message, fields) = (shortened(texts.message), shortened(texts.fields));
        let at = time::format(time::local_now());
        keep(RecentProblem { at, level, event: texts.event, message, fields, count: 1 });
    }
}

fn shortened(mut text: String) -> String {
    let end = (0..=MAX_TEXT_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or_default());
    text
}

fn keep(mut problem: RecentProblem) {
    let mut kept = lock();
    let is_same = |other: &RecentProblem| {
        (other.level, &other.event, &other.message) == (problem.level, &problem.event, &problem.message)
    };
    if let Some(index) = kept.iter().position(is_same)
        && let Some(known) = kept.remove(index)
    {
        problem.count = known.count.saturating_add(1);
    }
    if kept.len() >= MAX_PROBLEMS {
        kept.pop_front();
    }
    kept.push_back(problem);
}

/// The texts of an event.
#[derive(Default)]
struct Texts {
    event: String,
    message: String,
    fields: String,
}

impl Visit for Texts {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "event" => value.clone_into(&mut self.event),
            _ => self.record_debug(field, &format_args!("{value}")),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else if self.fields.len() < MAX_TEXT_BYTES {
            let space = if self.fields.is_empty() { "" } else { " " };
            let _ = write!(self.fields, "{space}{}={value:?}", field.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_problems_are_kept_and_repeats_counted() {
        let problem = |message: String| RecentProblem {
            at: String::new(),
            level: "WARN",
            event: "test.happened".to_owned(),
            message,
            fields: String::new(),
            count: 1,
        };
        for number in 0..MAX_PROBLEMS + 10 {
            keep(problem(format!("problem {number}")));
            keep(problem("again and again".to_owned()));
        }
        let kept = recent_problems();
        assert_eq!(kept.len(), MAX_PROBLEMS);
        assert_eq!((kept[0].message.as_str(), kept[0].count), ("again and again", 60));
        assert_eq!(kept[1].message, "problem 59");
        assert!(!kept.iter().any(|problem| problem.message == "problem 0"));
    }
}
