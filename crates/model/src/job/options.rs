//! The options of an enqueue request: in `options`, or at the top level, but not in both.

use serde_json::value::RawValue;

use super::{
    envelope::EnvelopeSummary,
    limit::KeyLimit,
    on_conflict::OnConflict,
    request_error::{RequestError, invalid},
    retry::RetryPolicy,
    unique::{UniqueDimensions, UniquePolicy},
};
use common::{
    json::{Object, ObjectWriter},
    known_names,
    name::{Priority, QueueName, quoted},
    settings::MIN_LEASE_MS,
    time::{self, Millis},
};

/// The queue of a job without one.
pub const DEFAULT_QUEUE: &str = "default";
/// Longest `timeout_ms` and `visibility_timeout_ms`: a week.
pub const MAX_TIMEOUT_MS: u64 = 7 * 86_400_000;

pub(super) const OPTION_NAMES: [&str; 18] = [
    "queue",
    "priority",
    "delay_until",
    "scheduled_at",
    "expires_at",
    "timeout_ms",
    "visibility_timeout_ms",
    "total_timeout_ms",
    // The same options in seconds, as the core specification names them
    "timeout",
    "visibility_timeout",
    "total_timeout",
    "pending",
    "keep_envelope",
    "retry",
    "unique",
    "rate_limit",
    "tags",
    "metadata",
];

/// Names that are looked for among the options and are members of one.
const MEMBERS_OF_OPTIONS: [&str; 13] = [
    "retry.max_attempts",
    "retry.initial_interval",
    "retry.max_interval",
    "retry.backoff_coefficient",
    "retry.backoff_strategy",
    "retry.jitter",
    "retry.non_retryable_errors",
    "retry.on_exhaustion",
    "unique.on_conflict",
    "unique.period",
    "unique.max_wait",
    "rate_limit.concurrency",
    "rate_limit.max_per_second",
];

/// The options of a request, from either place.
pub(super) struct EnqueueOptions<'a> {
    nested: Option<Object<'a>>,
    body: &'a Object<'a>,
}

impl<'a> EnqueueOptions<'a> {
    pub(super) fn parse(body: &'a Object<'_>) -> Result<Self, RequestError> {
        let nested = body.get("options").map(|raw| {
            require_shape(raw, "options", "a JSON object", '{')?;
            serde_json::from_str::<Object>(raw.get()).map_err(|error| invalid(format!("options: {error}")))
        });
        let options = Self { nested: nested.transpose()?, body };
        if let Some((name, _)) = options.nested.iter().flat_map(Object::iter).find(|(name, _)| !is_option(name)) {
            let known: Vec<&str> = OPTION_NAMES.iter().chain(&MEMBERS_OF_OPTIONS).copied().collect();
            return Err(invalid(format!("options: {}", known_names::unknown("member", name, &known))));
        }
        let nested = options.nested.iter().flat_map(Object::iter);
        let has_both =
            nested.into_iter().any(|(name, _)| options.in_nested(name).is_some() && body.get(name).is_some());
        let given_twice = |name: &&&str| options.in_nested(name).is_some() && body.get(name).is_some();
        match OPTION_NAMES.iter().find(|name| has_both && given_twice(name)) {
            Some(name) => Err(invalid(format!("{name} is given both in options and at the top level; give it once"))),
            None => Ok(options),
        }
    }

    fn in_nested(&self, name: &str) -> Option<&'a RawValue> {
        self.nested.as_ref().and_then(|nested| nested.get(name))
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.in_nested(name).or_else(|| self.body.get(name))
    }

    pub(super) fn queue(&self) -> Result<QueueName, RequestError> {
        self.get("queue")
            .map_or_else(|| Ok(DEFAULT_QUEUE.to_owned()), |raw| parse_text(raw, "queue"))?
            .parse()
            .map_err(RequestError::from)
    }

    pub(super) fn priority(&self) -> Result<Priority, RequestError> {
        let Some(raw) = self.get("priority") else { return Ok(Priority::default()) };
        let refused = || invalid(format!("priority must be an integer from -100 to 100, got {}", quoted(raw.get())));
        let number: i64 = raw.get().parse().map_err(|_| refused())?;
        Priority::try_from(number).map_err(|_| refused())
    }

    fn time(&self, name: &str, now: Millis) -> Result<Option<time::ParsedTime>, RequestError> {
        let Some(raw) = self.get(name) else { return Ok(None) };
        time::parse_time(&parse_text(raw, name)?, now).map(Some).map_err(|error| invalid(format!("{name} {error}")))
    }

    /// The start time; none if it has passed, as if it were not set.
    pub(super) fn write_start(&self, envelope: &mut ObjectWriter, now: Millis) -> Result<Option<Millis>, RequestError> {
        let (until, at) = (self.time("delay_until", now)?, self.time("scheduled_at", now)?);
        if until.is_some() && at.is_some() {
            return Err(invalid("delay_until and scheduled_at mean the same; give one of them"));
        }
        Ok(until.or(at).filter(|start| start.at > now).map(|start| {
            envelope.text("scheduled_at", &start.text);
            start.at
        }))
    }

    /// A duration: in milliseconds by this name, or in seconds by the name without `_ms`. The view shows the member as
    /// sent.
    pub(super) fn write_timeout(&self, envelope: &mut ObjectWriter, name: &str) -> Result<Option<u64>, RequestError> {
        let in_seconds = name.strip_suffix("_ms").unwrap_or(name);
        let (raw, given_as, unit, ms_per_unit) = match (self.get(name), self.get(in_seconds)) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(invalid(format!("{name} and {in_seconds} mean the same; give one of them")));
            }
            (Some(raw), None) => (raw, name, "milliseconds", 1),
            (None, Some(raw)) => (raw, in_seconds, "seconds", 1000),
        };
        let max = MAX_TIMEOUT_MS / ms_per_unit;
        let min = if name == "visibility_timeout_ms" { MIN_LEASE_MS / ms_per_unit } else { 1 };
        let limit = raw.get().parse().ok().filter(|length| (min..=max).contains(length));
        let limit: u64 = limit.ok_or_else(|| {
            invalid(format!("{given_as} must be an integer of {unit} from {min} to {max}, got {}", quoted(raw.get())))
        })?;
        let ms = limit * ms_per_unit;
        if given_as != name {
            envelope.raw(given_as, raw.get());
        }
        envelope.raw(name, &ms.to_string());
        Ok(Some(ms))
    }

    pub(super) fn pending(&self) -> Result<bool, RequestError> {
        self.switch("pending")
    }

    fn switch(&self, name: &str) -> Result<bool, RequestError> {
        match self.get(name).map(RawValue::get) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(invalid(format!("{name} must be true or false, got {}", quoted(other)))),
        }
    }

    pub(super) fn write_unique(
        &self,
        envelope: &mut ObjectWriter,
        job: UniqueDimensions<'_>,
    ) -> Result<Option<UniquePolicy>, RequestError> {
        let Some(raw) = self.get("unique") else { return Ok(None) };
        let unique = UniquePolicy::parse(raw, job).map_err(RequestError::Invalid)?;
        envelope.raw("unique", raw.get());
        Ok(Some(unique))
    }

    /// Whether a job can be put off as its policy says; `delay` is the time until it starts.
    pub(super) fn check_debounce(
        &self,
        unique: &UniquePolicy,
        delay: Option<Millis>,
        has_id: bool,
    ) -> Result<(), RequestError> {
        let OnConflict::Debounce { max_wait } = unique.on_conflict else { return Ok(()) };
        if has_id {
            return Err(invalid("unique: debounce needs a job without id: the job that waits keeps its own"));
        }
        if self.get("scheduled_at").or_else(|| self.get("delay_until")).is_none() {
            return Err(invalid(
                "unique: debounce needs scheduled_at, such as \"+PT5S\": how long each request puts the job off",
            ));
        }
        let delay = delay.and_then(|delay| u128::try_from(delay).ok()).unwrap_or(0);
        if max_wait.is_some_and(|longest| longest.as_millis() < delay) {
            return Err(invalid("unique.max_wait must not be shorter than the time until scheduled_at"));
        }
        Ok(())
    }

    /// The checked options to store, and the traits that are read often.
    pub(super) fn write_rest(
        &self,
        envelope: &mut ObjectWriter,
        summary: &mut EnvelopeSummary,
        now: Millis,
    ) -> Result<(), RequestError> {
        let expiry = self.time("expires_at", now)?;
        if let Some(expiry) = &expiry {
            envelope.text("expires_at", &expiry.text);
        }
        summary.expires_at = expiry.map(|expiry| expiry.at);
        summary.keeps_envelope = self.switch("keep_envelope")?;
        if summary.keeps_envelope {
            envelope.raw("keep_envelope", "true");
        }
        if let Some(raw) = self.get("retry") {
            summary.max_attempts = RetryPolicy::parse(raw)?.max_attempts;
            envelope.raw("retry", raw.get());
        }
        if let Some(raw) = self.get("rate_limit") {
            summary.limit = Some(KeyLimit::parse(raw).map_err(RequestError::Invalid)?);
            envelope.raw("rate_limit", raw.get());
        }
        if let Some(raw) = self.get("metadata") {
            require_shape(raw, "metadata", "a JSON object", '{')?;
            envelope.raw("metadata", raw.get());
        }
        if let Some(raw) = self.get("tags") {
            serde_json::from_str::<Vec<String>>(raw.get()).map_err(|_| invalid("tags must be an array of strings"))?;
            envelope.raw("tags", raw.get());
        }
        Ok(())
    }
}

fn is_option(name: &str) -> bool {
    OPTION_NAMES.contains(&name)
}

pub(super) fn parse_text(raw: &RawValue, name: &str) -> Result<String, RequestError> {
    serde_json::from_str(raw.get()).map_err(|_| invalid(format!("{name} must be a string, got {}", quoted(raw.get()))))
}

pub(super) fn require_shape(raw: &RawValue, name: &str, shape: &str, opening: char) -> Result<(), RequestError> {
    if raw.get().starts_with(opening) {
        Ok(())
    } else {
        Err(invalid(format!("{name} must be {shape}, got {}", quoted(raw.get()))))
    }
}
