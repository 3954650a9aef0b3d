//! Errors of handlers, and their advice about another attempt.

use std::{any::Any, error::Error, fmt, time::Duration};

use common::{name::JobType, time::Millis};
use model::job::{AttemptError, RetryAdvice};
use serde_json::value::RawValue;

/// A handler's failure. `?` converts any [`Error`]: the job's policy decides about a retry, and the error type is the
/// Rust type's name. For values that do not implement [`Error`], such as `anyhow::Error`, use
/// `map_err(HandlerError::retryable)` or another constructor below.
#[derive(Debug, Clone)]
pub struct HandlerError(Box<HandlerErrorInner>);

#[derive(Debug, Clone)]
struct HandlerErrorInner {
    code: String,
    error_type: String,
    message: String,
    advice: RetryAdvice,
    stack: Option<String>,
    output: Option<String>,
    details: Option<Box<RawValue>>,
}

impl HandlerError {
    pub(crate) fn new(code: &str, message: impl Into<String>, advice: RetryAdvice) -> Self {
        let (code, error_type) = (code.to_owned(), code.to_owned());
        let message = message.into();
        Self(Box::new(HandlerErrorInner {
            code,
            error_type,
            message,
            advice,
            stack: None,
            output: None,
            details: None,
        }))
    }

    /// A failure that may be temporary: the job's retry policy decides.
    pub fn retryable(message: impl fmt::Display) -> Self {
        Self::new("handler_error", format_with_causes(message), RetryAdvice::ByPolicy)
    }

    /// A permanent failure: the job is discarded, and becomes a dead letter if its policy says so.
    pub fn not_retryable(message: impl fmt::Display) -> Self {
        Self::new("handler_error", format_with_causes(message), RetryAdvice::Never)
    }

    /// A temporary failure: try again after this delay, from 100 ms to a week. The delay replaces the one of the job's
    /// policy, which still limits the number of attempts.
    pub fn retry_after(delay: Duration, message: impl fmt::Display) -> Self {
        Self::new("handler_error", format_with_causes(message), RetryAdvice::After(delay))
    }

    /// The job has no purpose any more: it is discarded without a dead letter.
    pub fn discard(message: impl fmt::Display) -> Self {
        Self::new("handler_error", format_with_causes(message), RetryAdvice::Discard)
    }

    /// Adds a code for programs, such as `card_declined`; cut to 255 bytes.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.0.code = code.into();
        self
    }

    /// Adds an error type, which is matched with `non_retryable_errors` of the job's policy.
    #[must_use]
    pub fn with_type(mut self, error_type: impl Into<String>) -> Self {
        self.0.error_type = error_type.into();
        self
    }

    /// Adds JSON details, at most 4,096 bytes.
    #[must_use]
    pub fn with_details(mut self, details: &impl serde::Serialize) -> Self {
        self.0.details = serde_json::value::to_raw_value(details).ok();
        self
    }

    pub(crate) fn with_output(mut self, output: String) -> Self {
        self.0.output = Some(output).filter(|output| !output.is_empty());
        self
    }

    pub(crate) fn into_output(self) -> Option<String> {
        self.0.output
    }

    /// No failure: the job waits, and the attempt must end.
    pub(crate) fn waiting(step: &str) -> Self {
        Self::new("waiting", format!("the job waits at {step:?}: pass this on"), RetryAdvice::ByPolicy)
    }

    pub(crate) fn invalid_arguments(message: &str) -> Self {
        Self::new("invalid_payload", message, RetryAdvice::Never)
    }

    /// Retryable: another worker may have the handler, or this one after an update.
    pub(crate) fn handler_not_found(job_type: &JobType) -> Self {
        Self::new("handler_not_found", format!("no handler for jobs of type {job_type}"), RetryAdvice::ByPolicy)
    }

    pub(crate) fn timed_out(limit: Duration) -> Self {
        let message = format!("the attempt took longer than its timeout of {} ms", limit.as_millis());
        Self::new("timeout", message, RetryAdvice::ByPolicy)
    }

    pub(crate) fn result_too_large(limit: usize) -> Self {
        Self::new("result_too_large", format!("the result has more than {limit} bytes"), RetryAdvice::Never)
    }

    pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned());
        Self::new("handler_panic", format!("the handler panicked: {text}"), RetryAdvice::ByPolicy)
    }

    /// The code for programs.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// The handler's advice about another attempt.
    #[must_use]
    pub fn advice(&self) -> RetryAdvice {
        self.0.advice
    }

    pub(crate) fn failure(&self, attempt: u32, now: Millis) -> AttemptError {
        let HandlerErrorInner { code, error_type, message, stack, output, details, .. } = &*self.0;
        AttemptError::new(code, error_type, message, attempt, now)
            .with_stack(stack.as_deref())
            .with_output(output.as_deref().unwrap_or_default())
            .with_details(details.as_deref())
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let mut causes = Vec::new();
        let mut next = error.source();
        while let Some(cause) = next.filter(|_| causes.len() < MAX_CAUSES) {
            causes.push(format!("caused by: {cause}"));
            next = cause.source();
        }
        let error_type = std::any::type_name::<E>().replace("::", ".");
        let mut failed = Self::retryable(error.to_string()).with_type(error_type);
        failed.0.stack = Some(causes.join("\n")).filter(|text| !text.is_empty());
        failed
    }
}

/// Formats with `{:#}`, which also shows the causes of errors such as `anyhow::Error`; other values are unaffected.
fn format_with_causes(message: impl fmt::Display) -> String {
    format!("{message:#}")
}

/// Maximum number of recorded causes of an error.
const MAX_CAUSES: usize = 16;

/// Parses a job's arguments. A handler without arguments takes `()`, which is null in JSON.
pub(crate) fn parse_arguments<A: serde::de::DeserializeOwned>(args: &RawValue) -> Result<A, HandlerError> {
    let mut reader = serde_json::Deserializer::from_str(args.get());
    serde_path_to_error::deserialize(&mut reader).or_else(|error| {
        let nothing = if is_empty_array(args) { serde_json::from_str("null").ok() } else { None };
        let message = || format!("the arguments are not what the handler takes: {error}");
        nothing.ok_or_else(|| HandlerError::invalid_arguments(&message()))
    })
}

fn is_empty_array(args: &RawValue) -> bool {
    let inside = args.get().strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inside.is_some_and(|inside| inside.trim_ascii().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_becomes_one_with_its_type_and_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot send")]
        struct Sending(#[source] std::io::Error);
        fn send() -> Result<(), HandlerError> {
            Err(Sending(std::io::Error::other("the line is dead")))?
        }
        let failure = send().expect_err("it fails").failure(1, 0);
        assert_eq!((failure.code.as_str(), failure.message.as_str()), ("handler_error", "cannot send"));
        assert!(
            failure.error_type.ends_with("Sending") && !failure.error_type.contains("::"),
            "{}",
            failure.error_type
        );
        assert_eq!(failure.stack.as_deref(), Some("caused by: the line is dead"));
    }

    #[test]
    fn each_kind_says_what_follows() {
        let minute = Duration::from_mins(1);
        for (error, advice) in [
            (HandlerError::retryable("x"), RetryAdvice::ByPolicy),
            (HandlerError::not_retryable("x"), RetryAdvice::Never),
            (HandlerError::retry_after(minute, "x"), RetryAdvice::After(minute)),
            (HandlerError::discard("x"), RetryAdvice::Discard),
        ] {
            assert_eq!(error.advice(), advice);
        }
        let error = HandlerError::discard("x").with_code("gone").with_details(&[1, 2]);
        let failure = error.failure(3, 0);
        assert_eq!((failure.code.as_str(), failure.attempt), ("gone", 3));
        assert_eq!(failure.details.map(|details| details.get().to_owned()).as_deref(), Some("[1,2]"));
    }

    #[test]
    fn arguments_of_another_shape_are_an_error_that_says_where() {
        let args = RawValue::from_string(r#"["a",{"to":5}]"#.to_owned()).expect("JSON");
        let read: (String, std::collections::BTreeMap<String, u8>) = parse_arguments(&args).expect("they fit");
        assert_eq!(read.1["to"], 5);
        let error =
            parse_arguments::<(String, std::collections::BTreeMap<String, bool>)>(&args).expect_err("they do not");
        assert_eq!((error.code(), error.advice()), ("invalid_payload", RetryAdvice::Never));
        assert!(error.to_string().contains("to"), "{error}");
    }

    #[test]
    fn a_handler_may_take_no_arguments_and_is_not_given_any() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).expect("JSON");
        for none in ["[]", "[ ]", "[\n]"] {
            parse_arguments::<()>(&raw(none)).expect("there are none");
            parse_arguments::<(String,)>(&raw(none)).expect_err("there is one missing");
        }
        let error = parse_arguments::<()>(&raw("[1]")).expect_err("there is one");
        assert_eq!(error.code(), "invalid_payload");
    }

    #[test]
    fn whatever_can_be_shown_can_be_a_message_with_all_of_its_causes() {
        let error = anyhow::anyhow!("the line is dead").context("cannot send");
        assert_eq!(HandlerError::not_retryable(error).to_string(), "cannot send: the line is dead");
        assert_eq!(HandlerError::retryable("a text").to_string(), "a text");
    }
}
