//! Which jobs a search is about, and whether a job is one of them.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::state::JobState;
use crate::access::Access;
use common::{
    id::{JobId, WorkflowId},
    name::QueueName,
    time::{self, Millis},
};

/// Which jobs; an absent condition matches all, and a job must meet every condition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobFilter {
    /// Only those of the queues that this has.
    pub access: Option<Access>,
    /// Its state is one of these; empty: any.
    pub states: Vec<JobState>,
    /// Only dead letters: discarded jobs that are listed as such.
    pub is_dead_letter: bool,
    /// Its id.
    pub id: Option<JobId>,
    /// Its queue.
    pub queue: Option<QueueName>,
    /// Its type, or a prefix of it that ends in `*`.
    pub job_type: Option<String>,
    /// It has all of these tags.
    pub tags: Vec<String>,
    /// Its `meta` or `metadata` has all of these.
    pub meta: Vec<MetaCondition>,
    /// The code, type or message of one of its errors has each of these, in whatever case.
    pub errors: Vec<String>,
    /// The type of its last error, or a prefix of it that ends in `*`.
    pub error_type: Option<String>,
    /// The worker that runs it.
    pub worker: Option<String>,
    /// The workflow that it belongs to.
    pub workflow: Option<WorkflowId>,
    /// It was created at this time or later.
    pub created_since: Option<Millis>,
    /// It was created before this time.
    pub created_until: Option<Millis>,
    /// It ended at this time or later.
    pub ended_since: Option<Millis>,
    /// It ended before this time.
    pub ended_until: Option<Millis>,
    /// Its id begins with each of these, or one of its errors has it.
    pub words: Vec<String>,
}

/// A member of `meta`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaCondition {
    /// Its name.
    pub key: String,
    /// Its value, as text or JSON; none: any.
    pub value: Option<String>,
}

/// What of a job's JSON a filter reads.
#[derive(Deserialize)]
struct JobFacts<'a> {
    id: &'a str,
    state: JobState,
    queue: &'a str,
    #[serde(rename = "type")]
    job_type: &'a str,
    #[serde(default, borrow)]
    tags: Option<&'a RawValue>,
    #[serde(default, borrow)]
    meta: Option<&'a RawValue>,
    #[serde(default, borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(default, borrow)]
    errors: Option<&'a RawValue>,
    #[serde(default, borrow)]
    worker_id: Option<Cow<'a, str>>,
    #[serde(default)]
    workflow_id: Option<&'a str>,
    created_at: &'a str,
    #[serde(default)]
    completed_at: Option<&'a str>,
    #[serde(default)]
    cancelled_at: Option<&'a str>,
    #[serde(default)]
    discarded_at: Option<&'a str>,
}

/// What of an error a filter reads.
#[derive(Deserialize)]
struct ErrorFacts<'a> {
    #[serde(default, borrow)]
    code: Cow<'a, str>,
    #[serde(rename = "type", default, borrow)]
    error_type: Cow<'a, str>,
    #[serde(default, borrow)]
    message: Cow<'a, str>,
}

impl JobFilter {
    /// Whether a job in that state can match.
    #[must_use]
    pub fn has_state(&self, state: JobState) -> bool {
        let is_wanted = self.states.is_empty() || self.states.contains(&state);
        let has_ended = state.is_terminal();
        is_wanted
            && (!self.is_dead_letter || state == JobState::Discarded)
            && (has_ended || (self.ended_since.is_none() && self.ended_until.is_none()))
            && (self.worker.is_none() || state == JobState::Active)
    }

    /// Whether only the state, queue and times of a job decide: no job must be read to know its number.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let by_place = Self {
            access: self.access.clone(),
            states: self.states.clone(),
            is_dead_letter: self.is_dead_letter,
            queue: self.queue.clone(),
            ..Self::default()
        };
        *self == by_place
    }

    /// Whether a job matches, from its JSON. Only the list that a job is on says whether it is a dead letter.
    #[must_use]
    pub fn matches(&self, json: &str) -> bool {
        let Ok(job) = serde_json::from_str::<JobFacts>(json) else { return false };
        self.has_state(job.state)
            && self.queue.as_ref().is_none_or(|queue| queue.as_str() == job.queue)
            && self.id.is_none_or(|id| id.to_string() == job.id)
            && matches_pattern(self.job_type.as_deref(), job.job_type)
            && self.worker.as_deref().is_none_or(|worker| job.worker_id.as_deref() == Some(worker))
            && self.workflow.is_none_or(|workflow| job.workflow_id == Some(workflow.to_string().as_str()))
            && self.matches_times(&job)
            && self.matches_tags(&job)
            && self.meta.iter().all(|wanted| wanted.is_in(job.meta) || wanted.is_in(job.metadata))
            && self.matches_errors(&job)
    }

    fn matches_times(&self, job: &JobFacts<'_>) -> bool {
        let ended_at = job.discarded_at.or(job.cancelled_at).or(job.completed_at);
        is_within(self.created_since, self.created_until, Some(job.created_at))
            && is_within(self.ended_since, self.ended_until, ended_at)
    }

    fn matches_tags(&self, job: &JobFacts<'_>) -> bool {
        if self.tags.is_empty() {
            return true;
        }
        let tags: Vec<Cow<'_, str>> = job.tags.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
        self.tags.iter().all(|wanted| tags.iter().any(|tag| tag == wanted))
    }

    fn matches_errors(&self, job: &JobFacts<'_>) -> bool {
        if self.errors.is_empty() && self.words.is_empty() && self.error_type.is_none() {
            return true;
        }
        let errors: Vec<ErrorFacts<'_>> =
            job.errors.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
        let last_type = errors.last().map_or("", |error| &error.error_type);
        let texts: Vec<String> = errors
            .iter()
            .map(|error| format!("{}\n{}\n{}", error.code, error.error_type, error.message).to_lowercase())
            .collect();
        let has_text = |wanted: &str| {
            let wanted = wanted.to_lowercase();
            texts.iter().any(|text| text.contains(&wanted))
        };
        matches_pattern(self.error_type.as_deref(), last_type)
            && self.errors.iter().all(|wanted| has_text(wanted))
            && self.words.iter().all(|word| job.id.starts_with(word.to_lowercase().as_str()) || has_text(word))
    }
}

impl MetaCondition {
    fn is_in(&self, meta: Option<&RawValue>) -> bool {
        let meta = meta.and_then(|raw| common::json::Object::of_stored(raw.get()).ok());
        let Some(found) = meta.as_ref().and_then(|meta| meta.get(&self.key)) else { return false };
        let Some(wanted) = &self.value else { return true };
        found.get() == wanted || serde_json::from_str::<Cow<'_, str>>(found.get()).is_ok_and(|text| text == *wanted)
    }
}

/// Whether a text is the pattern, or begins with it if the pattern ends in `*`.
fn matches_pattern(pattern: Option<&str>, text: &str) -> bool {
    pattern.is_none_or(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => text.starts_with(prefix),
        None => pattern == text,
    })
}

fn is_within(since: Option<Millis>, until: Option<Millis>, shown: Option<&str>) -> bool {
    if since.is_none() && until.is_none() {
        return true;
    }
    let Some(at) = shown.and_then(|text| time::parse_time(text, 0).ok()) else { return false };
    since.is_none_or(|since| at.at >= since) && until.is_none_or(|until| at.at < until)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = r#"{"id":"019539a4-b68c-7def-8000-1a2b3c4d5e6f","state":"discarded","queue":"mail","priority":0,
        "attempt":2,"max_attempts":2,"created_at":"2026-11-28T10:00:00.000Z","completed_at":"2026-11-28T10:00:05.000Z",
        "discarded_at":"2026-11-28T10:00:05.000Z","workflow_id":"019539a4-b68c-7def-8000-1a2b3c4d5e60","workflow_index":1,
        "error":{"code":"x"},"errors":[{"code":"handler_error","type":"smtp.refused","message":"No route"},
        {"code":"timeout","type":"net.timeout","message":"Timed OUT \"at\" last"}],
        "type":"email.send","args":[],"tags":["a","b\"c"],"meta":{"tenant":"acme","n":7,"on":true},"metadata":{"m":"1"}}"#;

    fn matched(change: impl FnOnce(&mut JobFilter)) -> bool {
        let mut filter = JobFilter::default();
        change(&mut filter);
        filter.matches(JOB)
    }

    fn meta(key: &str, value: Option<&str>) -> Vec<MetaCondition> {
        vec![MetaCondition { key: key.to_owned(), value: value.map(str::to_owned) }]
    }

    #[test]
    fn a_filter_without_conditions_matches_every_job_and_no_other_text() {
        assert!(matched(|_| {}));
        assert!(!JobFilter::default().matches("{}") && !JobFilter::default().matches("no"));
    }

    #[test]
    fn each_condition_can_match_and_can_exclude() {
        let text = |text: &str| Some(text.to_owned());
        assert!(matched(|filter| filter.states = vec![JobState::Active, JobState::Discarded]));
        assert!(!matched(|filter| filter.states = vec![JobState::Active]));
        assert!(matched(|filter| filter.queue = "mail".parse().ok()));
        assert!(!matched(|filter| filter.queue = "other".parse().ok()));
        for (pattern, is_match) in
            [("email.send", true), ("email.*", true), ("*", true), ("email", false), ("x*", false)]
        {
            assert_eq!(matched(|filter| filter.job_type = text(pattern)), is_match, "{pattern}");
        }
        for (pattern, is_match) in [("net.timeout", true), ("net.*", true), ("smtp.*", false)] {
            assert_eq!(matched(|filter| filter.error_type = text(pattern)), is_match, "{pattern}");
        }
        assert!(matched(|filter| filter.tags = vec!["a".into(), "b\"c".into()]));
        assert!(!matched(|filter| filter.tags = vec!["a".into(), "b".into()]));
        assert!(!matched(|filter| filter.worker = text("w")));
        assert!(matched(|filter| filter.workflow = "019539a4-b68c-7def-8000-1a2b3c4d5e60".parse().ok()));
        assert!(!matched(|filter| filter.workflow = "019539a4-b68c-7def-8000-1a2b3c4d5e61".parse().ok()));
        assert!(matched(|filter| filter.id = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().ok()));
        assert!(!matched(|filter| filter.id = "019539a4-b68c-7def-8000-1a2b3c4d5e6e".parse().ok()));
        assert!(!matched(|filter| (filter.states, filter.is_dead_letter) = (vec![JobState::Cancelled], true)));
    }

    #[test]
    fn meta_is_compared_as_text_or_json() {
        for (key, value, is_match) in [
            ("tenant", None, true),
            ("tenant", Some("acme"), true),
            ("tenant", Some("\"acme\""), true),
            ("tenant", Some("acm"), false),
            ("n", Some("7"), true),
            ("on", Some("true"), true),
            ("m", Some("1"), true),
            ("none", None, false),
        ] {
            assert_eq!(matched(|filter| filter.meta = meta(key, value)), is_match, "{key} {value:?}");
        }
    }

    #[test]
    fn errors_and_words_are_found_in_whatever_case() {
        let errors = |texts: &[&str]| matched(|filter| filter.errors = texts.iter().map(ToString::to_string).collect());
        assert!(errors(&["timed out \"at\""]) && errors(&["no ROUTE", "HANDLER_ERROR"]) && errors(&["net.timeout"]));
        assert!(!errors(&["timed out", "nowhere"]));
        let word = |text: &str| matched(|filter| filter.words = vec![text.to_owned()]);
        assert!(word("019539A4") && word("last") && !word("b68c") && !word("email"));
    }

    #[test]
    fn times_are_from_one_moment_until_before_another() {
        let at = |text: &str| time::parse_time(text, 0).expect("a time").at;
        let (created, ended) = (at("2026-11-28T10:00:00Z"), at("2026-11-28T10:00:05Z"));
        assert!(matched(|filter| (filter.created_since, filter.created_until) = (Some(created), Some(created + 1))));
        assert!(!matched(|filter| filter.created_until = Some(created)));
        assert!(!matched(|filter| filter.created_since = Some(created + 1)));
        assert!(matched(|filter| (filter.ended_since, filter.ended_until) = (Some(ended), Some(ended + 1))));
        assert!(!matched(|filter| filter.ended_until = Some(ended)));
        let running = JOB.replace("\"discarded\",\"queue\"", "\"active\",\"queue\"");
        assert!(!JobFilter { ended_until: Some(ended + 1), ..JobFilter::default() }.matches(&running));
    }

    #[test]
    fn a_filter_is_plain_when_places_alone_decide() {
        let plain = JobFilter { states: vec![JobState::Active], queue: "q".parse().ok(), ..JobFilter::default() };
        assert!(plain.is_plain());
        assert!(!JobFilter { words: vec!["x".into()], ..plain.clone() }.is_plain());
        assert!(!JobFilter { ended_since: Some(1), ..plain }.is_plain());
    }
}
