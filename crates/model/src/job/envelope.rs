//! The envelope: what a client asked for, as one JSON object, stored byte for byte until the job is deleted.
//!
//! The envelope has `type`, `args`, `meta`, the flattened options and every member that Galley does not know. It never
//! has the members that Galley manages (state, attempt, times, result): see [`super::view`].

use std::time::Duration;

use serde_json::value::RawValue;

use super::{
    limit::KeyLimit,
    retry::{OnExhaustion, RetryPolicy},
    unique::{UniqueDimensions, UniquePolicy},
};
use common::{
    json::{Object, ObjectWriter},
    name::{JobType, QueueName},
    time::{self, Millis},
};

/// The names that Galley manages. A client that sends one at the top level is ignored.
pub const SYSTEM_MANAGED: [&str; 34] = [
    "id",
    "state",
    "queue",
    "priority",
    "attempt",
    "max_attempts",
    "created_at",
    "enqueued_at",
    "started_at",
    "completed_at",
    "cancelled_at",
    "discarded_at",
    "next_attempt_at",
    "retry_delay_ms",
    "error",
    "errors",
    "result",
    "result_dropped",
    "envelope_dropped",
    "worker_id",
    "token",
    "traceparent",
    "tracestate",
    "baggage",
    "lease_ms",
    "progress",
    "progress_data",
    "progress_at",
    "checkpoint",
    "waiting",
    "signals",
    "parent_results",
    "workflow_id",
    "workflow_index",
];

/// The stored JSON object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope(String);

/// The traits of an envelope that are needed often, read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvelopeSummary {
    /// The job's type.
    pub job_type: JobType,
    /// The job expires if it has not started by then.
    pub expires_at: Option<Millis>,
    /// Most attempts, from the retry policy.
    pub max_attempts: u32,
    /// The job must finish within this time after its creation.
    pub total_timeout: Option<Duration>,
    /// The limit of its key.
    pub limit: Option<KeyLimit>,
    /// Whether it has a uniqueness policy.
    pub is_unique: bool,
    /// Whether its envelope is kept when it succeeds.
    pub keeps_envelope: bool,
}

impl EnvelopeSummary {
    /// The traits of a job of this type without options.
    #[must_use]
    pub fn new(job_type: JobType) -> Self {
        let max_attempts = RetryPolicy::standard().max_attempts;
        Self {
            job_type,
            expires_at: None,
            max_attempts,
            total_timeout: None,
            limit: None,
            is_unique: false,
            keeps_envelope: false,
        }
    }
}

/// Stored text that is not an envelope: another program wrote to Galley's keys.
#[derive(Debug, thiserror::Error)]
#[error("stored envelope cannot be read: {0}")]
pub struct EnvelopeError(String);

/// The parts of an envelope that Galley acts on, borrowed from it.
#[derive(Debug)]
pub struct EnvelopeFields<'a> {
    /// The job's type.
    pub job_type: JobType,
    /// The arguments: a JSON array, as it was sent.
    pub args: &'a RawValue,
    /// Timeout of an attempt.
    pub timeout: Option<Duration>,
    /// The job expires if it has not started by then.
    pub expires_at: Option<Millis>,
    /// The job must finish within this time after its creation.
    pub total_timeout: Option<Duration>,
    retry: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
    meta: Option<&'a RawValue>,
    keeps_envelope: bool,
    unique: Option<&'a RawValue>,
    rate_limit: Option<&'a RawValue>,
}

impl Envelope {
    /// Wraps a JSON object from a [`super::request::NewJob`] or from Redis.
    #[must_use]
    pub fn from_json(json: String) -> Self {
        Self(json)
    }

    /// The object as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The envelope inside the JSON of a job, without the members that Galley manages.
    ///
    /// # Errors
    /// The text is not a JSON object.
    pub fn from_job_json(job_json: &str) -> Result<Self, EnvelopeError> {
        Ok(Self(retain_members(job_json, |name| !SYSTEM_MANAGED.contains(&name))?.finish()))
    }

    /// The envelope without some members.
    ///
    /// # Errors
    /// The stored text is damaged.
    pub fn without(&self, names: &[&str]) -> Result<Self, EnvelopeError> {
        Ok(Self(retain_members(&self.0, |name| !names.contains(&name))?.finish()))
    }

    /// The envelope with this start time.
    ///
    /// # Errors
    /// The stored text is damaged.
    pub fn with_start(&self, scheduled_at: &str) -> Result<Self, EnvelopeError> {
        let mut envelope = retain_members(&self.0, |name| name != "scheduled_at")?;
        envelope.text("scheduled_at", scheduled_at);
        Ok(Self(envelope.finish()))
    }

    /// The envelope with these arguments: a JSON array.
    ///
    /// # Errors
    /// The stored text is damaged.
    pub fn with_args(&self, args: &str) -> Result<Self, EnvelopeError> {
        replace_members(&self.0, &[("args", args)]).map(Self)
    }

    /// Reads what Galley acts on.
    ///
    /// # Errors
    /// The stored text is damaged.
    pub fn fields(&self) -> Result<EnvelopeFields<'_>, EnvelopeError> {
        let broken = |what: &str| EnvelopeError(what.to_owned());
        let members = parse_members(&self.0)?;
        let job_type: JobType = members
            .get("type")
            .and_then(|raw| serde_json::from_str(raw.get()).ok())
            .ok_or_else(|| broken("no valid type"))?;
        let millis = |name: &str| members.get(name).and_then(|raw| raw.get().parse().ok()).map(Duration::from_millis);
        Ok(EnvelopeFields {
            job_type,
            args: members.get("args").ok_or_else(|| broken("no args"))?,
            timeout: millis("timeout_ms"),
            total_timeout: millis("total_timeout_ms"),
            expires_at: members
                .get("expires_at")
                .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok())
                .and_then(|text| time::parse_time(&text, 0).ok())
                .map(|given| given.at),
            retry: members.get("retry"),
            metadata: members.get("metadata"),
            meta: members.get("meta"),
            keeps_envelope: members.get("keep_envelope").is_some_and(|raw| raw.get() == "true"),
            unique: members.get("unique"),
            rate_limit: members.get("rate_limit"),
        })
    }
}

fn parse_members(json: &str) -> Result<Object<'_>, EnvelopeError> {
    Object::of_stored(json).map_err(|error| EnvelopeError(error.to_string()))
}

/// The members with the names to keep, in their order.
fn retain_members(json: &str, is_kept: impl Fn(&str) -> bool) -> Result<ObjectWriter, EnvelopeError> {
    let members = parse_members(json)?;
    let mut envelope = ObjectWriter::with_capacity(json.len());
    for (name, value) in members.iter().filter(|(name, _)| is_kept(name)) {
        envelope.raw(name, value.get());
    }
    Ok(envelope)
}

/// A JSON object with other values of members that it has.
///
/// # Errors
/// The text is not a JSON object.
pub fn replace_members(json: &str, replaced: &[(&str, &str)]) -> Result<String, EnvelopeError> {
    let members = parse_members(json)?;
    let mut changed = ObjectWriter::with_capacity(json.len());
    for (name, value) in members.iter() {
        let other = replaced.iter().find(|(other, _)| *other == name);
        changed.raw(name, other.map_or(value.get(), |(_, value)| value));
    }
    Ok(changed.finish())
}

impl EnvelopeFields<'_> {
    /// The job's retry policy, which was checked at enqueue. `on_exhaustion` counts unless the policy has its own.
    #[must_use]
    pub fn retry_policy(&self, on_exhaustion: OnExhaustion) -> RetryPolicy {
        let standard = || RetryPolicy { on_exhaustion, ..RetryPolicy::default() };
        self.retry.and_then(|raw| standard().overridden_by(raw).ok()).unwrap_or_else(standard)
    }

    /// The traits that are needed often.
    #[must_use]
    pub fn summary(&self) -> EnvelopeSummary {
        let standard = RetryPolicy::standard().max_attempts;
        let max_attempts =
            self.retry.map_or(standard, |raw| RetryPolicy::parse(raw).map_or(standard, |policy| policy.max_attempts));
        EnvelopeSummary {
            job_type: self.job_type.clone(),
            expires_at: self.expires_at,
            max_attempts,
            total_timeout: self.total_timeout,
            limit: self.rate_limit.and_then(|raw| KeyLimit::parse(raw).ok()),
            is_unique: self.unique.is_some(),
            keeps_envelope: self.keeps_envelope,
        }
    }

    /// The job's uniqueness policy, if it has one. It was checked at enqueue.
    #[must_use]
    pub fn unique(&self, queue: &QueueName) -> Option<UniquePolicy> {
        let job =
            UniqueDimensions { job_type: &self.job_type, queue: queue.as_str(), args: self.args, meta: self.meta };
        UniquePolicy::parse(self.unique?, job).ok()
    }

    /// The directive that the conformance suites put into `metadata.test_directive`.
    #[must_use]
    pub fn test_directive(&self) -> Option<String> {
        let metadata = Object::of_stored(self.metadata?.get()).ok()?;
        serde_json::from_str(metadata.get("test_directive")?.get()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_of_a_job_is_the_job_without_what_galley_manages() {
        let job = r#"{"id":"x","state":"completed","attempt":2,"type":"a.b","args":[1e3],"x_n":9007199254740993,"result":{}}"#;
        let envelope = Envelope::from_job_json(job).expect("an envelope");
        assert_eq!(envelope.as_str(), r#"{"type":"a.b","args":[1e3],"x_n":9007199254740993}"#);
    }

    #[test]
    fn a_job_with_as_many_members_as_a_request_may_have_can_be_read() {
        let members: Vec<String> = (0..253).map(|number| format!("\"x{number}\":{number}")).collect();
        let options = r#"{"timeout_ms":1000,"retry":{"max_attempts":2},"tags":["a"],"metadata":{"a":1,"a":2}}"#;
        let request = format!("{{\"type\":\"a\",\"args\":[],\"options\":{options},{}}}", members.join(","));
        let body: Object = serde_json::from_str(&request).expect("as many as are allowed");
        let envelope = crate::job::NewJob::parse(&body, 0).expect("a job").envelope;
        assert_eq!(envelope.fields().expect("an envelope").timeout, Some(Duration::from_secs(1)));
        assert!(envelope.without(&["x1"]).expect("an envelope").as_str().contains("\"x252\":252"));
        let job = format!("{{\"state\":\"active\",\"attempt\":1,{}", &envelope.as_str()[1..]);
        assert_eq!(Envelope::from_job_json(&job).expect("an envelope"), envelope);
    }

    #[test]
    fn an_envelope_loses_members_and_gets_a_start_and_the_rest_stays_byte_for_byte() {
        let envelope = Envelope::from_json(r#"{"type":"a","scheduled_at":"x","args":[1.50],"a":1}"#.to_owned());
        let without = envelope.without(&["a", "b"]).expect("an envelope");
        assert_eq!(without.as_str(), r#"{"type":"a","scheduled_at":"x","args":[1.50]}"#);
        let moved = envelope.with_start("y").expect("an envelope");
        assert_eq!(moved.as_str(), r#"{"type":"a","args":[1.50],"a":1,"scheduled_at":"y"}"#);
    }

    #[test]
    fn arguments_change_where_they_stand_and_the_rest_stays_byte_for_byte() {
        let envelope = Envelope::from_json(r#"{"type":"a","args":[1.50],"x":1e3}"#.to_owned());
        assert_eq!(envelope.with_args("[2]").expect("an envelope").as_str(), r#"{"type":"a","args":[2],"x":1e3}"#);
    }

    #[test]
    fn damaged_text_is_an_error_and_not_a_panic() {
        for bad in ["", "{", "[]", "{}", r#"{"type":"A","args":[]}"#, r#"{"type":"a"}"#] {
            assert!(Envelope::from_json(bad.to_owned()).fields().is_err(), "{bad}");
        }
    }
}
