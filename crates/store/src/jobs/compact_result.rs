//! How a plain success is stored: without the envelope, as a line of a few words and the result. That is a quarter of what
//! the whole job takes, and most jobs end this way. Any end is noted so when Redis is too full for more.

use std::fmt::Write;

use crate::{StoreError, StoreResult};
use common::{
    id::JobId,
    json::ObjectWriter,
    name::{JobType, Priority, QueueName},
    time::Millis,
    trace_context::TraceContext,
};
use model::job::{Envelope, JobHistory, JobState, view::JobView};

/// The first word of the line: how the job ended. A whole job begins with a brace instead.
const MARKS: [(&str, JobState); 3] =
    [("c", JobState::Completed), ("d", JobState::Discarded), ("x", JobState::Cancelled)];
/// Why a job has no result whose end is only noted.
pub(super) const NO_MEMORY: &str = "redis was nearly full";
/// Words of the line, without the trace.
const WORDS: usize = 10;

/// What is kept of a job that succeeded, or of any that ended when Redis was nearly full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CompactResult<'a> {
    pub(super) state: JobState,
    pub(super) job_type: JobType,
    pub(super) priority: Priority,
    pub(super) attempt: u32,
    pub(super) max_attempts: u32,
    /// None: the time in its id.
    pub(super) created_at: Option<Millis>,
    pub(super) enqueued_at: Option<Millis>,
    pub(super) started_at: Option<Millis>,
    pub(super) ended_at: Millis,
    pub(super) result: JobResult<'a>,
    /// The trace that it belongs to, as it is stored with a job.
    pub(super) traceparent: Option<&'a str>,
}

/// The result of a job that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobResult<'a> {
    /// It has none.
    None,
    /// Its JSON.
    Json(&'a str),
    /// Why it is not kept, for people.
    Dropped(&'a str),
}

impl<'a> CompactResult<'a> {
    /// `<state> <type> <priority> <attempt> <most attempts> <created> <enqueued> <started> <ended> <kind>[ <traceparent>]`,
    /// times in ms or `-`, then a line feed and what the kind says: a result (`r`), why there is none (`d`), or nothing
    /// (`n`, and `m` when there was no memory).
    pub(super) fn to_text(&self) -> String {
        let (kind, rest) = match self.result {
            JobResult::None => ('n', ""),
            JobResult::Json(json) => ('r', json),
            JobResult::Dropped(NO_MEMORY) => ('m', ""),
            JobResult::Dropped(why) => ('d', why),
        };
        let mark = MARKS.iter().find(|(_, state)| *state == self.state).map_or(MARKS[0].0, |(mark, _)| mark);
        let mut text = String::with_capacity(96 + rest.len());
        let (priority, attempt, max_attempts) = (self.priority, self.attempt, self.max_attempts);
        let _ = write!(text, "{mark} {} {priority} {attempt} {max_attempts}", self.job_type);
        for time in [self.created_at, self.enqueued_at, self.started_at] {
            let _ = match time {
                Some(millis) => write!(text, " {millis}"),
                None => write!(text, " -"),
            };
        }
        let _ = write!(text, " {} {kind}", self.ended_at);
        if let Some(traceparent) = self.traceparent {
            text.push(' ');
            text.push_str(traceparent);
        }
        text.push('\n');
        text + rest
    }

    /// None if the text is a whole job.
    ///
    /// # Errors
    /// It is neither.
    pub(super) fn parse(text: &'a str) -> StoreResult<Option<CompactResult<'a>>> {
        let Some((_, state)) = MARKS.into_iter().find(|(mark, _)| text.starts_with(mark)) else { return Ok(None) };
        Self::parse_words(state, text)
            .map(Some)
            .ok_or_else(|| StoreError::damaged(format!("a compact result: {text:.80}")))
    }

    fn parse_words(state: JobState, text: &'a str) -> Option<CompactResult<'a>> {
        let (line, rest) = text.split_once('\n')?;
        let mut words: Vec<&str> = line.split(' ').collect();
        let traceparent = if words.len() > WORDS { words.pop() } else { None };
        let words: [&str; WORDS] = words.try_into().ok()?;
        let [_, job_type, priority, attempt, max_attempts, created, enqueued, started, ended, kind] = words;
        let time = |word: &str| if word == "-" { Some(None) } else { word.parse().ok().map(Some) };
        let result = match kind {
            "n" => JobResult::None,
            "r" => JobResult::Json(rest),
            "d" => JobResult::Dropped(rest),
            "m" => JobResult::Dropped(NO_MEMORY),
            _ => return None,
        };
        Some(Self {
            state,
            job_type: job_type.parse().ok()?,
            priority: Priority::from_text(priority)?,
            attempt: attempt.parse().ok()?,
            max_attempts: max_attempts.parse().ok()?,
            created_at: time(created)?,
            enqueued_at: time(enqueued)?,
            started_at: time(started)?,
            ended_at: ended.parse().ok()?,
            result,
            traceparent,
        })
    }

    /// The job as clients see it.
    pub(super) fn to_json(&self, id: JobId, queue: &QueueName) -> String {
        let mut envelope = ObjectWriter::with_capacity(64);
        envelope.text("type", self.job_type.as_str()).raw("envelope_dropped", "true");
        let envelope = Envelope::from_json(envelope.finish());
        let history = JobHistory { created_at: self.created_at, ..JobHistory::default() };
        let mut view = JobView::new(id, self.state, queue, self.priority, &envelope, &history, self.max_attempts);
        view.attempt = self.attempt;
        view.enqueued_at = self.enqueued_at;
        view.started_at = self.started_at;
        view.ended_at = Some(self.ended_at);
        view.trace = TraceContext::from_job(id, self.traceparent, None);
        match self.result {
            JobResult::None => {}
            JobResult::Json(json) => view.result = Some(json),
            JobResult::Dropped(why) => view.result_dropped = Some(why),
        }
        view.to_json()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn results() -> impl Strategy<Value = (u8, String)> {
        // As results are: JSON in one line or several
        (0..3_u8, "[ -~\n]{0,60}")
    }

    proptest! {
        #[test]
        fn what_is_stored_is_read_back(
            (kind, rest) in results(),
            priority in -100..=100_i64,
            numbers in any::<(u32, u32)>(),
            times in any::<(Option<Millis>, Option<Millis>, Option<Millis>, Millis)>(),
            trace in proptest::option::of("00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]"),
        ) {
            let result = match kind {
                0 => JobResult::None,
                1 => JobResult::Json(&rest),
                _ => JobResult::Dropped(&rest),
            };
            let stored = CompactResult {
                state: MARKS[usize::from(kind)].1,
                job_type: "email.send-now".parse().expect("a type"),
                priority: Priority::try_from(priority).expect("a priority"),
                attempt: numbers.0,
                max_attempts: numbers.1,
                created_at: times.0,
                enqueued_at: times.1,
                started_at: times.2,
                ended_at: times.3,
                result,
                traceparent: trace.as_deref(),
            };
            let text = stored.to_text();
            prop_assert_eq!(CompactResult::parse(&text).expect("readable"), Some(stored));
        }

        #[test]
        fn no_text_makes_it_panic(text in "c?[ -~\n]{0,80}") {
            let _ = CompactResult::parse(&text);
        }
    }

    #[test]
    fn a_whole_job_is_told_apart_and_a_damaged_line_is_an_error() {
        assert_eq!(CompactResult::parse(r#"{"id":"x"}"#).expect("another form"), None);
        for text in ["c", "c a 0 1 3 - - -", "c a 0 1 3 - - - 5 x\n", "d a 0 1 3 - - - 5 r", "x a 200 1 3 - - - 5 n\n"]
        {
            assert!(CompactResult::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_noted_end_takes_a_line_and_tells_how_the_job_ended() {
        let text = "x a.b 5 2 3 1000 - - 3000 m\n";
        let note = CompactResult::parse(text).expect("readable").expect("compact");
        assert_eq!(note.to_text(), text);
        let id = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
        let json = note.to_json(id, &"q".parse().expect("a name"));
        let job: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!((job["state"].as_str(), job["result_dropped"].as_str()), (Some("cancelled"), Some(NO_MEMORY)));
        assert_eq!(job["cancelled_at"], "1970-01-01T00:00:03.000Z");
    }

    #[test]
    fn a_client_sees_a_job_without_what_it_sent() {
        let text = "c a.b 5 2 3 - 1000 2000 3000 r\n{\"n\":1}";
        let result = CompactResult::parse(text).expect("readable").expect("compact");
        let id = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
        let json = result.to_json(id, &"q".parse().expect("a name"));
        let job: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!((job["type"].as_str(), job["state"].as_str()), (Some("a.b"), Some("completed")));
        assert_eq!((job["priority"].as_i64(), job["attempt"].as_u64()), (Some(5), Some(2)));
        assert_eq!(job["result"], serde_json::json!({ "n": 1 }));
        assert_eq!(job["completed_at"], "1970-01-01T00:00:03.000Z");
        assert!(job.get("args").is_none() && job["envelope_dropped"] == true);
    }
}
