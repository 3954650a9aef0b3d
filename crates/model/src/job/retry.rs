//! Retry policies of the Open Job Spec: whether another attempt follows a failure, and when.

use std::{sync::LazyLock, time::Duration};

use serde::Deserialize;
use serde_json::value::RawValue;

pub use common::settings::OnExhaustion;
use common::{json::Object, name::quoted, time};

/// Shortest delay of a retry: a policy with an interval of zero must not make a hot loop.
pub const MIN_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Longest delay that a handler can ask for: the response of an endpoint must not delay a job forever.
pub const MAX_ADVISED_DELAY: Duration = Duration::from_hours(7 * 24);

/// How a job is retried.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Most attempts, including the first; 0 means the same as 1.
    pub max_attempts: u32,
    /// Delay before the first retry.
    pub initial_interval: Duration,
    /// The factor or power by which the delay grows.
    pub backoff_coefficient: f64,
    /// How the delay grows.
    pub backoff_strategy: BackoffStrategy,
    /// Longest delay.
    pub max_interval: Duration,
    /// Whether delays are multiplied by a random number from 0.5 to 1.5.
    pub jitter: bool,
    /// Error types, or prefixes ending in `.*`, that are not retried.
    pub non_retryable_errors: Vec<String>,
    /// What happens to a job that has no attempts left.
    pub on_exhaustion: OnExhaustion,
}

/// How the delay grows with the number of the retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackoffStrategy {
    /// `initial * coefficient^(n - 1)`
    Exponential,
    /// `initial * n`
    Linear,
    /// `initial`
    Constant,
    /// `initial * n^coefficient`
    Polynomial,
}

/// What the handler of a failed attempt says about a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RetryAdvice {
    /// Nothing: the job's policy decides.
    #[default]
    ByPolicy,
    /// If the policy allows a retry, it comes after this delay instead of the policy's.
    After(Duration),
    /// A retry would fail too: discard the job.
    Never,
    /// Discard the job without a dead letter: nobody needs to look at it.
    Discard,
}

/// What follows a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDecision {
    /// Another attempt after this delay.
    Retry(Duration),
    /// No retry; `dead_letter` says whether the job becomes a dead letter.
    Discard {
        /// Whether the job becomes a dead letter.
        dead_letter: bool,
    },
}

/// A policy that cannot be used; the message names the field and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RetryPolicyError(String);

impl RetryPolicyError {
    fn new(field: &str, allowed: &str, got: &str) -> Self {
        Self(format!("retry.{field} must {allowed}, got {}", quoted(got)))
    }
}

/// The members of a policy.
const MEMBERS: [&str; 9] = [
    "max_attempts",
    "initial_interval",
    "backoff_coefficient",
    "backoff_strategy",
    "backoff",
    "max_interval",
    "jitter",
    "non_retryable_errors",
    "on_exhaustion",
];

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            initial_interval: Duration::from_secs(1),
            backoff_coefficient: 2.0,
            backoff_strategy: BackoffStrategy::Exponential,
            max_interval: Duration::from_mins(5),
            jitter: true,
            non_retryable_errors: Vec::new(),
            on_exhaustion: OnExhaustion::Discard,
        }
    }
}

static DEFAULT_POLICY: LazyLock<RetryPolicy> = LazyLock::new(RetryPolicy::default);

impl RetryPolicy {
    /// The policy of jobs without one.
    #[must_use]
    pub fn standard() -> &'static Self {
        &DEFAULT_POLICY
    }

    /// Reads a policy; absent fields have the default.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn parse(raw: &RawValue) -> Result<Self, RetryPolicyError> {
        Self::default().overridden_by(raw)
    }

    /// This policy with the fields that are given in JSON.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn overridden_by(mut self, raw: &RawValue) -> Result<Self, RetryPolicyError> {
        let wrong = || RetryPolicyError::new("policy", "be an object", raw.get());
        let object: Object = serde_json::from_str(raw.get()).map_err(|_| wrong())?;
        object.check_names(&MEMBERS).map_err(|unknown| RetryPolicyError(format!("retry: {unknown}")))?;
        if object.get("backoff").is_some() && object.get("backoff_strategy").is_some() {
            let problem = "retry.backoff and retry.backoff_strategy mean the same; give one of them";
            return Err(RetryPolicyError(problem.to_owned()));
        }
        for (name, value) in object.iter().filter(|(_, value)| value.get() != "null") {
            self.set(name, value)?;
        }
        Ok(self)
    }

    fn set(&mut self, name: &str, value: &RawValue) -> Result<(), RetryPolicyError> {
        match name {
            "max_attempts" => {
                self.max_attempts =
                    parse_field(value, "max_attempts", "be an integer from 0 to 1000", |n: &u32| *n <= 1000)?;
            }
            "initial_interval" => self.initial_interval = parse_duration(value, "initial_interval")?,
            "max_interval" => self.max_interval = parse_duration(value, "max_interval")?,
            "backoff_coefficient" => {
                let allowed = "be a number from 1.0 to 100.0";
                self.backoff_coefficient =
                    parse_field(value, "backoff_coefficient", allowed, |c: &f64| (1.0..=100.0).contains(c))?;
            }
            "jitter" => self.jitter = parse_field(value, "jitter", "be true or false", |_: &bool| true)?,
            "non_retryable_errors" => {
                let allowed = "be an array of at most 100 strings of at most 255 characters";
                self.non_retryable_errors =
                    parse_field(value, "non_retryable_errors", allowed, |list: &Vec<String>| {
                        list.len() <= 100 && list.iter().all(|entry| entry.len() <= 255)
                    })?;
            }
            "on_exhaustion" => {
                self.on_exhaustion =
                    parse_field(value, "on_exhaustion", "be \"discard\" or \"dead_letter\"", |_: &OnExhaustion| true)?;
            }
            "backoff_strategy" | "backoff" => self.backoff_strategy = parse_backoff_strategy(value)?,
            // There is no other: the names are checked before
            _ => {}
        }
        Ok(())
    }

    /// What follows a failure, given the number of earlier failures and a number from 0 to 1 for the jitter.
    #[must_use]
    pub fn after_failure(
        &self,
        earlier_failures: u32,
        error_type: &str,
        advice: RetryAdvice,
        random: f64,
    ) -> RetryDecision {
        if advice == RetryAdvice::Discard {
            return RetryDecision::Discard { dead_letter: false };
        }
        let exhausted = earlier_failures.saturating_add(1) >= self.max_attempts.max(1);
        if exhausted || advice == RetryAdvice::Never || self.is_non_retryable(error_type) {
            return RetryDecision::Discard { dead_letter: self.on_exhaustion == OnExhaustion::DeadLetter };
        }
        match advice {
            RetryAdvice::After(delay) => RetryDecision::Retry(delay.clamp(MIN_RETRY_DELAY, MAX_ADVISED_DELAY)),
            _ => RetryDecision::Retry(self.delay(earlier_failures + 1, random)),
        }
    }

    /// The delay before the n-th retry (1 is the first).
    #[must_use]
    pub fn delay(&self, retry: u32, random: f64) -> Duration {
        let initial = self.initial_interval.as_secs_f64();
        let n = f64::from(retry.max(1));
        let raw = match self.backoff_strategy {
            BackoffStrategy::Exponential => initial * self.backoff_coefficient.powf(n - 1.0),
            BackoffStrategy::Linear => initial * n,
            BackoffStrategy::Constant => initial,
            BackoffStrategy::Polynomial => initial * n.powf(self.backoff_coefficient),
        };
        let cap = self.max_interval.as_secs_f64();
        let mut seconds = raw.min(cap);
        if self.jitter {
            seconds = (seconds * (0.5 + random.clamp(0.0, 1.0))).min(cap);
        }
        let millis = Duration::try_from_secs_f64(seconds).unwrap_or(self.max_interval).as_millis();
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)).max(MIN_RETRY_DELAY)
    }

    /// Whether the policy wants no other attempt after an error of this type.
    #[must_use]
    pub fn is_non_retryable(&self, error_type: &str) -> bool {
        self.non_retryable_errors.iter().any(|entry| match entry.strip_suffix(".*") {
            Some(prefix) => error_type.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')),
            None => entry == error_type,
        })
    }
}

fn parse_field<'a, T: Deserialize<'a>>(
    value: &'a RawValue,
    field: &'static str,
    allowed: &'static str,
    is_valid: impl Fn(&T) -> bool,
) -> Result<T, RetryPolicyError> {
    serde_json::from_str(value.get())
        .ok()
        .filter(is_valid)
        .ok_or_else(|| RetryPolicyError::new(field, allowed, value.get()))
}

fn parse_duration(value: &RawValue, name: &'static str) -> Result<Duration, RetryPolicyError> {
    let text: String = parse_field(value, name, "be an ISO 8601 duration string such as \"PT1S\"", |_| true)?;
    time::parse_duration(&text)
        .map_err(|_| RetryPolicyError::new(name, "be an ISO 8601 duration from PT0S to P3650D", &text))
}

fn parse_backoff_strategy(value: &RawValue) -> Result<BackoffStrategy, RetryPolicyError> {
    let allowed = "be \"exponential\", \"linear\", \"constant\" (or \"none\") or \"polynomial\"";
    let given: Option<String> = serde_json::from_str(value.get()).ok();
    match given.as_deref() {
        Some("exponential") => Ok(BackoffStrategy::Exponential),
        Some("linear") => Ok(BackoffStrategy::Linear),
        Some("constant" | "none") => Ok(BackoffStrategy::Constant),
        Some("polynomial") => Ok(BackoffStrategy::Polynomial),
        _ => Err(RetryPolicyError::new("backoff_strategy", allowed, value.get())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(json: &str) -> Result<RetryPolicy, RetryPolicyError> {
        RetryPolicy::parse(&RawValue::from_string(json.to_owned()).expect("JSON"))
    }

    fn delays(json: &str, retries: u32) -> Vec<u128> {
        let policy = policy(json).expect("a policy");
        (1..=retries).map(|n| policy.delay(n, 0.5).as_millis()).collect()
    }

    #[test]
    fn delays_grow_as_the_specification_says() {
        assert_eq!(delays(r#"{"jitter":false}"#, 10)[..4], [1000, 2000, 4000, 8000]);
        assert_eq!(delays(r#"{"jitter":false}"#, 10)[9], 300_000);
        assert_eq!(
            delays(r#"{"jitter":false,"backoff_strategy":"linear","initial_interval":"PT5S"}"#, 3),
            [5000, 10_000, 15_000]
        );
        assert_eq!(delays(r#"{"jitter":false,"backoff_coefficient":1.0}"#, 3), [1000, 1000, 1000]);
        assert_eq!(
            delays(r#"{"jitter":false,"backoff_strategy":"polynomial","backoff_coefficient":4.0}"#, 5),
            [1000, 16_000, 81_000, 256_000, 300_000]
        );
    }

    #[test]
    fn an_interval_of_zero_cannot_make_a_hot_loop() {
        assert_eq!(delays(r#"{"initial_interval":"PT0S"}"#, 2), [100, 100]);
    }

    #[test]
    fn wrong_fields_are_refused_by_name() {
        for (json, name) in [
            (r#"{"max_attempts":-1}"#, "retry.max_attempts"),
            (r#"{"max_attempts":1.5}"#, "retry.max_attempts"),
            (r#"{"backoff_coefficient":0.5}"#, "retry.backoff_coefficient"),
            (r#"{"initial_interval":"1s"}"#, "retry.initial_interval"),
            (r#"{"initial_interval":1000}"#, "retry.initial_interval"),
            (r#"{"non_retryable_errors":[1]}"#, "retry.non_retryable_errors"),
            (r#"{"on_exhaustion":"explode"}"#, "retry.on_exhaustion"),
            (r#"{"backoff_strategy":"fast"}"#, "retry.backoff_strategy"),
            (r#"{"max_atempts":1}"#, r#"retry: unknown member "max_atempts", did you mean "max_attempts"?"#),
            (r#"{"backoff":"linear","backoff_strategy":"constant"}"#, "retry.backoff and retry.backoff_strategy"),
            ("[]", "retry.policy"),
        ] {
            let error = policy(json).expect_err(json).to_string();
            assert!(error.starts_with(name), "{json}: {error}");
        }
    }

    #[test]
    fn an_error_that_is_listed_is_not_retried() {
        let policy = policy(r#"{"non_retryable_errors":["FatalError","Auth.*"],"on_exhaustion":"dead_letter"}"#)
            .expect("a policy");
        let discarded = RetryDecision::Discard { dead_letter: true };
        assert_eq!(policy.after_failure(0, "FatalError", RetryAdvice::ByPolicy, 0.0), discarded);
        assert_eq!(policy.after_failure(0, "Auth.TokenExpired", RetryAdvice::ByPolicy, 0.0), discarded);
        assert!(matches!(policy.after_failure(0, "Authentic", RetryAdvice::ByPolicy, 0.0), RetryDecision::Retry(_)));
        assert!(matches!(policy.after_failure(0, "Auth", RetryAdvice::ByPolicy, 0.0), RetryDecision::Retry(_)));
    }

    #[test]
    fn a_handler_can_say_when_or_that_no_other_attempt_follows() {
        let policy = policy(r#"{"max_attempts":2,"on_exhaustion":"dead_letter"}"#).expect("a policy");
        let after = |advice| policy.after_failure(0, "x", advice, 0.0);
        let in_an_hour = RetryAdvice::After(Duration::from_hours(1));
        assert_eq!(after(in_an_hour), RetryDecision::Retry(Duration::from_hours(1)));
        assert_eq!(after(RetryAdvice::After(Duration::ZERO)), RetryDecision::Retry(MIN_RETRY_DELAY));
        assert_eq!(after(RetryAdvice::After(Duration::MAX)), RetryDecision::Retry(MAX_ADVISED_DELAY));
        assert_eq!(policy.after_failure(1, "x", in_an_hour, 0.0), RetryDecision::Discard { dead_letter: true });
        assert_eq!(after(RetryAdvice::Never), RetryDecision::Discard { dead_letter: true });
        assert_eq!(after(RetryAdvice::Discard), RetryDecision::Discard { dead_letter: false });
    }

    proptest! {
        #[test]
        fn attempts_are_never_more_than_allowed(max in 0_u32..50, failures in 0_u32..60, random in 0.0..1.0_f64) {
            let policy = RetryPolicy { max_attempts: max, ..RetryPolicy::default() };
            let retries = matches!(policy.after_failure(failures, "x", RetryAdvice::ByPolicy, random), RetryDecision::Retry(_));
            prop_assert_eq!(retries, failures + 1 < max.max(1));
        }

        #[test]
        fn delays_stay_within_the_floor_and_the_cap(
            retry in 1_u32..2000, initial in 0_u64..100_000, cap in 100_u64..1_000_000,
            coefficient in 1.0..100.0_f64, random in 0.0..1.0_f64, jitter in any::<bool>(),
        ) {
            for growth in [BackoffStrategy::Exponential, BackoffStrategy::Linear, BackoffStrategy::Constant, BackoffStrategy::Polynomial] {
                let policy = RetryPolicy {
                    initial_interval: Duration::from_millis(initial),
                    max_interval: Duration::from_millis(cap),
                    backoff_coefficient: coefficient,
                    backoff_strategy: growth,
                    jitter,
                    ..RetryPolicy::default()
                };
                let delay = policy.delay(retry, random);
                prop_assert!(delay >= MIN_RETRY_DELAY && delay <= Duration::from_millis(cap));
            }
        }

        #[test]
        fn no_json_makes_the_parser_panic(text in ".{0,80}") {
            if let Ok(raw) = RawValue::from_string(text) {
                let _ = RetryPolicy::parse(&raw);
            }
        }
    }
}
