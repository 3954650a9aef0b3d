//! The history of a job: attempts, failures, crashes. It is stored beside the envelope, never inside it.
//!
//! A job in its first attempt has an empty history, and an empty history is not stored.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use common::time::{self, Millis};

/// Failures that are kept; the oldest are dropped first.
const MAX_FAILURES: usize = 20;
/// Bytes of a failure's message, of its stack and of its details.
const MAX_MESSAGE_BYTES: usize = 4096;
/// Failures that are kept when there is no room for more, and bytes of the message of each.
const MAX_SHORT_FAILURES: usize = 2;
const MAX_SHORT_MESSAGE_BYTES: usize = 200;
/// Bytes of the newest failure's output. An earlier failure keeps as much output as message.
pub const MAX_OUTPUT_BYTES: usize = 64 << 10;

/// The history of a job.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct JobHistory {
    /// Attempts that ended with an outcome or a crash.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts: u32,
    /// Attempts that failed: these count against the retry policy.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// Attempts whose worker was lost: these count against the crash budget.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub crashes: u32,
    /// When the job was created, if its id does not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Millis>,
    /// When the last attempt started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Millis>,
    /// The delay before the next attempt, from the retry policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_delay_ms: Option<u64>,
    /// The failures, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<AttemptError>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// How an attempt failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttemptError {
    /// Machine-readable code, such as `handler_error`.
    pub code: String,
    /// The error type, which the retry policy's patterns match.
    #[serde(rename = "type")]
    pub error_type: String,
    /// The message, for people.
    pub message: String,
    /// The attempt that failed.
    pub attempt: u32,
    /// The time, as RFC 3339.
    pub occurred_at: String,
    /// The stack trace, as the language of the handler formats it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
    /// The end of the handler's output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Other details from the handler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<RawValue>>,
}

impl AttemptError {
    /// A failure, its text cut to the size that is kept.
    #[must_use]
    pub fn new(code: &str, error_type: &str, message: &str, attempt: u32, now: Millis) -> Self {
        Self {
            code: truncate(code, 255),
            error_type: truncate(error_type, 255),
            message: truncate(message, MAX_MESSAGE_BYTES),
            attempt,
            occurred_at: time::format(now),
            stack: None,
            output: None,
            details: None,
        }
    }

    /// The failure with the end of the handler's output.
    #[must_use]
    pub fn with_output(mut self, output: &str) -> Self {
        self.output = Some(keep_tail(output, MAX_OUTPUT_BYTES)).filter(|output| !output.is_empty());
        self
    }

    /// The failure with a stack trace, cut to the size that is kept.
    #[must_use]
    pub fn with_stack(mut self, stack: Option<&str>) -> Self {
        self.stack = stack.filter(|stack| !stack.is_empty()).map(|stack| truncate(stack, MAX_MESSAGE_BYTES));
        self
    }

    /// The failure with details, unless they are too long to keep.
    #[must_use]
    pub fn with_details(mut self, details: Option<&RawValue>) -> Self {
        self.details = details.filter(|raw| raw.get().len() <= MAX_MESSAGE_BYTES).map(ToOwned::to_owned);
        self
    }
}

fn truncate(text: &str, bytes: usize) -> String {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn keep_tail(text: &str, bytes: usize) -> String {
    let mut start = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

impl JobHistory {
    /// Reads what [`JobHistory::to_json`] wrote.
    ///
    /// # Errors
    /// The text is not a history.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// The stored form.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| String::from("{}"))
    }

    /// Whether there is nothing to store: the job had no attempt, and its id says when it was created.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.attempts == 0
            && self.failures == 0
            && self.crashes == 0
            && self.created_at.is_none()
            && self.errors.is_empty()
    }

    /// The number of the current or next attempt.
    #[must_use]
    pub fn current_attempt(&self) -> u32 {
        self.attempts + 1
    }

    /// Records that the current attempt failed.
    pub fn record_failure(&mut self, failure: AttemptError, started_at: Option<Millis>) {
        self.attempts += 1;
        self.failures += 1;
        self.started_at = started_at;
        if let Some(output) = self.errors.last_mut().and_then(|last| last.output.as_mut()) {
            *output = keep_tail(output, MAX_MESSAGE_BYTES);
        }
        self.errors.push(failure);
        let excess = self.errors.len().saturating_sub(MAX_FAILURES);
        self.errors.drain(..excess);
    }

    /// Keeps of the last failures code, type and the beginning of the message: for a store that has no room for more.
    pub fn shorten(&mut self) {
        let excess = self.errors.len().saturating_sub(MAX_SHORT_FAILURES);
        self.errors.drain(..excess);
        for error in &mut self.errors {
            error.message = truncate(&error.message, MAX_SHORT_MESSAGE_BYTES);
            (error.stack, error.output, error.details) = (None, None, None);
        }
    }

    /// Records that the worker of the current attempt was lost.
    pub fn record_crash(&mut self, started_at: Option<Millis>) {
        self.attempts += 1;
        self.crashes += 1;
        self.started_at = started_at;
        self.retry_delay_ms = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_bounded_however_often_a_job_fails() {
        let mut history = JobHistory::default();
        for attempt in 1..=100 {
            history.record_failure(AttemptError::new("c", "t", &"é".repeat(10_000), attempt, 0), None);
        }
        assert_eq!((history.attempts, history.failures, history.errors.len()), (100, 100, MAX_FAILURES));
        assert_eq!(history.errors.last().map(|failure| failure.attempt), Some(100));
        assert!(history.to_json().len() < MAX_FAILURES * (MAX_MESSAGE_BYTES + 200));
    }

    #[test]
    fn a_shortened_history_keeps_its_numbers_and_little_text() {
        let mut history = JobHistory::default();
        for attempt in 1..=30 {
            let failure = AttemptError::new("c", "t", &"é".repeat(4000), attempt, 0).with_output(&"x".repeat(60_000));
            history.record_failure(failure.with_stack(Some("at main")), Some(7));
        }
        history.shorten();
        assert_eq!((history.attempts, history.failures, history.errors.len()), (30, 30, MAX_SHORT_FAILURES));
        assert!(history.to_json().len() < 1000 && history.errors.iter().all(|error| error.output.is_none()));
    }

    #[test]
    fn only_the_newest_failure_keeps_its_whole_output() {
        let mut history = JobHistory::default();
        for attempt in 1..=3 {
            let output = format!("{}the end {attempt}", "é".repeat(MAX_OUTPUT_BYTES));
            history.record_failure(AttemptError::new("c", "t", "m", attempt, 0).with_output(&output), None);
        }
        let outputs: Vec<&str> = history.errors.iter().filter_map(|failure| failure.output.as_deref()).collect();
        assert!(outputs.iter().zip(1..).all(|(output, attempt)| output.ends_with(&format!("the end {attempt}"))));
        let lengths: Vec<usize> = outputs.iter().map(|output| output.len()).collect();
        assert!(lengths[0] <= MAX_MESSAGE_BYTES && lengths[1] <= MAX_MESSAGE_BYTES, "{lengths:?}");
        assert!((MAX_OUTPUT_BYTES - 1..=MAX_OUTPUT_BYTES).contains(&lengths[2]), "{lengths:?}");
    }

    #[test]
    fn a_history_reads_back() {
        let mut history = JobHistory { created_at: Some(5), ..JobHistory::default() };
        let details = RawValue::from_string(r#"{"n":9007199254740993}"#.to_owned()).expect("JSON");
        let failure = AttemptError::new("c", "t", "m", 1, 0).with_details(Some(&details)).with_stack(Some("at main"));
        history.record_failure(failure, Some(7));
        history.record_crash(Some(9));
        let read = JobHistory::parse(&history.to_json()).expect("reads back");
        assert_eq!(read.to_json(), history.to_json());
        assert_eq!(read.current_attempt(), 3);
        assert!(read.to_json().contains("9007199254740993") && read.to_json().contains("at main"));
    }
}
