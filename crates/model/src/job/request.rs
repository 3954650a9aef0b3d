//! An enqueue request, checked member by member and turned into an envelope.
//!
//! Options are in `options` (the HTTP binding) or at the top level (the core specification), not in both.

use std::time::Duration;

use serde_json::value::RawValue;

use super::{
    envelope::{Envelope, EnvelopeSummary, SYSTEM_MANAGED},
    history::AttemptError,
    member_warnings::MemberWarnings,
    options::{EnqueueOptions, OPTION_NAMES, parse_text, require_shape},
    request_error::{RequestError, invalid},
    unique::{UniqueDimensions, UniquePolicy},
};
use crate::workflow::Membership;
use common::{
    id::JobId,
    json::{Object, ObjectWriter},
    name::{JobType, Priority, QueueName},
    time::Millis,
};

/// Options that are times, or add up to one.
const TIME_OPTIONS: [&str; 5] = ["delay_until", "scheduled_at", "expires_at", "total_timeout_ms", "total_timeout"];

/// A checked job, ready to store.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// The id that the client chose, if any.
    pub id: Option<JobId>,
    /// Its queue.
    pub queue: QueueName,
    /// Its priority in the queue.
    pub priority: Priority,
    /// When it starts, if that is in the future.
    pub start_at: Option<Millis>,
    /// Whether it waits to be activated.
    pub is_pending: bool,
    /// Its uniqueness policy.
    pub unique: Option<UniquePolicy>,
    /// Timeout of an attempt, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Lease of an attempt, in milliseconds, if not the default.
    pub visibility_timeout_ms: Option<u64>,
    /// The workflow that it belongs to. Requests cannot set it.
    pub workflow: Option<Membership>,
    /// About how many bytes the results of the jobs before it in its workflow have, if it gets them. Requests cannot set
    /// it.
    pub parent_results_bytes: Option<usize>,
    /// Failures of attempts from before the job existed. Requests cannot set it.
    pub failures: Vec<AttemptError>,
    /// The envelope to store.
    pub envelope: Envelope,
    /// The traits of the envelope that are read often.
    pub summary: EnvelopeSummary,
    /// What the request has and nothing acts on, for the answer.
    pub warnings: Vec<String>,
}

impl NewJob {
    /// Whether a request contains a time, so that `now` must come from Redis's clock.
    #[must_use]
    pub fn mentions_time(body: &Object<'_>) -> bool {
        // Most requests mention none, and the text shows that sooner than the options do. An escape may hide a name
        let options = body.get("options").map(RawValue::get).unwrap_or_default();
        let may_mention = |name: &&str| body.get(name).is_some() || options.contains(*name);
        if !options.contains('\\') && !TIME_OPTIONS.iter().any(may_mention) {
            return false;
        }
        // Whatever else the options have: a step of a workflow has a member that other jobs do not
        let nested: Object = serde_json::from_str(options).unwrap_or_default();
        TIME_OPTIONS.iter().any(|name| body.get(name).is_some() || nested.get(name).is_some())
    }

    /// Whether it puts off an equal job that waits, instead of being stored.
    #[must_use]
    pub fn is_debounced(&self) -> bool {
        self.unique.as_ref().is_some_and(|unique| unique.on_conflict.is_debounce())
    }

    /// Checks a request body.
    ///
    /// # Errors
    /// The first member that is missing or wrong.
    pub fn parse(body: &Object<'_>, now: Millis) -> Result<Self, RequestError> {
        let options = EnqueueOptions::parse(body)?;
        let id = body.get("id").map(|raw| parse_text(raw, "id")?.parse().map_err(RequestError::from)).transpose()?;
        let job_type = body.get("type").ok_or_else(|| invalid("type is required: a string such as \"email.send\""))?;
        let name: JobType = parse_text(job_type, "type")?.parse()?;
        let args = body.get("args").ok_or_else(|| invalid("args is required: a JSON array, [] when there are none"))?;
        require_shape(args, "args", "a JSON array", '[')?;
        if let Some(meta) = body.get("meta") {
            require_shape(meta, "meta", "a JSON object", '{')?;
        }
        let mut envelope = ObjectWriter::with_capacity(256);
        // As it is meant, not as it was written: what looks for the type compares text
        envelope.text("type", name.as_str()).raw("args", args.get());
        let mut warnings = MemberWarnings::default();
        for (member, value) in body.iter() {
            let is_read = matches!(member, "type" | "args" | "options") || OPTION_NAMES.contains(&member);
            if is_read {
                continue;
            }
            warnings.add(member, value);
            if !SYSTEM_MANAGED.contains(&member) {
                envelope.raw(member, value.get());
            }
        }
        let (queue, priority) = (options.queue()?, options.priority()?);
        let start_at = options.write_start(&mut envelope, now)?;
        let timeout_ms = options.write_timeout(&mut envelope, "timeout_ms")?;
        let visibility_timeout_ms = options.write_timeout(&mut envelope, "visibility_timeout_ms")?;
        let mut summary = EnvelopeSummary::new(name);
        summary.total_timeout = options.write_timeout(&mut envelope, "total_timeout_ms")?.map(Duration::from_millis);
        options.write_rest(&mut envelope, &mut summary, now)?;
        let job = UniqueDimensions { job_type: &summary.job_type, queue: queue.as_str(), args, meta: body.get("meta") };
        let unique = options.write_unique(&mut envelope, job)?;
        summary.is_unique = unique.is_some();
        if let Some(unique) = &unique {
            options.check_debounce(unique, start_at.map(|at| at - now), id.is_some())?;
        }
        let is_pending = options.pending()?;
        if is_pending && (start_at.is_some() || unique.as_ref().is_some_and(|unique| unique.on_conflict.is_debounce()))
        {
            return Err(invalid("a pending job has no start time: it starts when it is activated"));
        }
        Ok(Self {
            id,
            queue,
            priority,
            start_at,
            is_pending,
            unique,
            timeout_ms,
            visibility_timeout_ms,
            workflow: None,
            parent_results_bytes: None,
            failures: Vec::new(),
            envelope: Envelope::from_json(envelope.finish()),
            summary,
            warnings: warnings.finish(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str) -> Result<NewJob, RequestError> {
        NewJob::parse(&serde_json::from_str(json).expect("an object"), 1_000)
    }

    #[test]
    fn everything_a_client_sends_is_kept_byte_for_byte() {
        let job = parse(
            r#"{"type":"a.b","args":[1.0, {"z":1}],"meta":{"k":"v"},"x_n":9007199254740993,"id":"019539a4-b68c-7def-8000-1a2b3c4d5e6f",
               "options":{"queue":"q","priority":7,"timeout_ms":5,"expires_at":"2099-12-31T23:59:59Z","tags":["t"]}}"#,
        )
        .expect("a job");
        assert_eq!(
            job.envelope.as_str(),
            r#"{"type":"a.b","args":[1.0, {"z":1}],"meta":{"k":"v"},"x_n":9007199254740993,"timeout_ms":5,"expires_at":"2099-12-31T23:59:59Z","tags":["t"]}"#
        );
        assert_eq!((job.queue.as_str(), job.priority.get(), job.timeout_ms), ("q", 7, Some(5)));
        assert_eq!(job.id.map(|id| id.to_string()).as_deref(), Some("019539a4-b68c-7def-8000-1a2b3c4d5e6f"));
    }

    #[test]
    fn what_galley_manages_cannot_be_set() {
        let job = parse(
            r#"{"type":"a","args":[],"state":"completed","attempt":9,"result":1,"created_at":"x",
            "workflow_id":"x","workflow_index":1,"parent_results":[]}"#,
        )
        .expect("a job");
        assert_eq!(job.envelope.as_str(), r#"{"type":"a","args":[]}"#);
    }

    #[test]
    fn a_start_in_the_past_is_as_if_absent() {
        let job = parse(r#"{"type":"a","args":[],"scheduled_at":"1970-01-01T00:00:00Z"}"#).expect("a job");
        assert_eq!((job.start_at, job.envelope.as_str()), (None, r#"{"type":"a","args":[]}"#));
        assert_eq!(
            parse(r#"{"type":"a","args":[],"options":{"delay_until":"+PT2S"}}"#).expect("a job").start_at,
            Some(3_000)
        );
    }

    #[test]
    fn each_wrong_member_is_refused_by_name() {
        for (json, expected) in [
            (r"{}", "type is required"),
            (r#"{"type":null,"args":[]}"#, "type is required"),
            (r#"{"type":1,"args":[]}"#, "type must be a string"),
            (r#"{"type":"A","args":[]}"#, "type must match"),
            (r#"{"type":"a"}"#, "args is required"),
            (r#"{"type":"a","args":{}}"#, "args must be a JSON array"),
            (r#"{"type":"a","args":[],"id":""}"#, "id must be a lower-case UUIDv7"),
            (r#"{"type":"a","args":[],"meta":[]}"#, "meta must be a JSON object"),
            (r#"{"type":"a","args":[],"options":[]}"#, "options must be a JSON object"),
            (r#"{"type":"a","args":[],"options":{"queue":"{x}"}}"#, "queue must match"),
            (r#"{"type":"a","args":[],"options":{"priority":101}}"#, "priority must be an integer from -100 to 100"),
            (r#"{"type":"a","args":[],"options":{"priority":1.5}}"#, "priority must be an integer"),
            (r#"{"type":"a","args":[],"options":{"timeout_ms":0}}"#, "timeout_ms must be an integer"),
            (r#"{"type":"a","args":[],"options":{"timeout_ms":"5"}}"#, "timeout_ms must be an integer"),
            (r#"{"type":"a","args":[],"timeout":0}"#, "timeout must be an integer of seconds"),
            (r#"{"type":"a","args":[],"timeout":1,"timeout_ms":1000}"#, "timeout_ms and timeout mean the same"),
            (r#"{"type":"a","args":[],"pending":1}"#, "pending must be true or false"),
            (r#"{"type":"a","args":[],"pending":true,"scheduled_at":"+PT1H"}"#, "a pending job has no start time"),
            (r#"{"type":"a","args":[],"unique":{"keys":["argz"]}}"#, "unique.keys must name"),
            (r#"{"type":"a","args":[],"unique":{"on_conflict":"debounce"}}"#, "unique: debounce needs scheduled_at"),
            (
                r#"{"type":"a","args":[],"scheduled_at":"+PT2M","unique":{"on_conflict":"debounce","max_wait":"PT1M"}}"#,
                "unique.max_wait must not be shorter than the time until scheduled_at",
            ),
            (
                r#"{"type":"a","args":[],"id":"019539a4-b68c-7def-8000-1a2b3c4d5e6f","scheduled_at":"+PT2M",
                "unique":{"on_conflict":"debounce"}}"#,
                "unique: debounce needs a job without id",
            ),
            (r#"{"type":"a","args":[],"rate_limit":{"concurrency":1}}"#, "rate_limit.key is required"),
            (r#"{"type":"a","args":[],"options":{"delay_until":"soon"}}"#, "delay_until must be"),
            (r#"{"type":"a","args":[],"options":{"tags":"x"}}"#, "tags must be an array"),
            (r#"{"type":"a","args":[],"queue":"a","options":{"queue":"b"}}"#, "queue is given both"),
            (r#"{"type":"a","args":[],"retry":{"max_attempts":-1}}"#, "retry.max_attempts"),
        ] {
            let error = parse(json).expect_err(json).to_string();
            assert!(error.starts_with(expected), "{json}: {error}");
        }
    }

    #[test]
    fn what_nothing_acts_on_is_refused_in_options_and_warned_about_beside_them() {
        for (json, expected) in [
            (r#"{"priorty":1}"#, r#"options: unknown member "priorty", did you mean "priority"? known are queue"#),
            (r#"{"max_atempts":1}"#, r#"options: unknown member "max_atempts", did you mean "retry.max_attempts"?"#),
            (r#"{"delay":1}"#, r#"options: unknown member "delay", did you mean "delay_until"?"#),
            (r#"{"que":"q"}"#, r#"options: unknown member "que", did you mean "queue"?"#),
            (r#"{"retry":{"max_atempts":1}}"#, r#"retry: unknown member "max_atempts", did you mean "max_attempts"?"#),
            (r#"{"unique":{"kyes":[]}}"#, r#"unique: unknown member "kyes", did you mean "keys"?"#),
            (
                r#"{"rate_limit":{"key":"a","concurency":1}}"#,
                r#"rate_limit: unknown member "concurency", did you mean"#,
            ),
        ] {
            let error = parse(&format!(r#"{{"type":"a","args":[],"options":{json}}}"#)).expect_err(json).to_string();
            assert!(error.starts_with(expected), "{json}: {error}");
        }
        let job =
            parse(r#"{"type":"a","args":[],"priorty":1,"x":null,"state":"active","specversion":"1.0","meta":{}}"#);
        assert_eq!(
            job.expect("a job").warnings,
            [
                r#"unknown member "priorty", did you mean "priority"? it is kept with the job and changes nothing"#,
                r#"unknown member "x": it is kept with the job and changes nothing"#,
                r#"member "state" is managed by galley and was ignored"#,
            ]
        );
    }

    #[test]
    fn a_type_is_stored_as_it_is_meant_however_it_was_written() {
        let job = parse(r#"{"type":"\u0061pp.y","args":[]}"#).expect("a job");
        assert_eq!(job.envelope.as_str(), r#"{"type":"app.y","args":[]}"#);
    }

    #[test]
    fn limits_may_be_given_in_seconds() {
        let job =
            parse(r#"{"type":"a","args":[],"timeout":30,"options":{"visibility_timeout":60,"total_timeout":90}}"#)
                .expect("a job");
        assert_eq!((job.timeout_ms, job.visibility_timeout_ms), (Some(30_000), Some(60_000)));
        assert_eq!(job.summary.total_timeout, Some(Duration::from_secs(90)));
        assert!(job.envelope.as_str().contains(r#""timeout":30,"timeout_ms":30000"#), "{}", job.envelope.as_str());
    }

    proptest! {
        #[test]
        fn an_envelope_is_always_readable(args in "[a-zA-Z0-9 \\\\\"{}\\[\\]é]{0,40}", extra in "[a-z_]{1,12}") {
            let body = serde_json::json!({ "type": "a.b", "args": [args], "x": extra, (format!("x_{extra}")): [1, 2] }).to_string();
            let job = parse(&body).expect("a job");
            prop_assert!(job.warnings.len() <= 2);
            let parts = job.envelope.fields().expect("readable");
            prop_assert_eq!(parts.summary(), job.summary.clone());
            prop_assert_eq!(parts.job_type.as_str(), "a.b");
            let read: Vec<String> = serde_json::from_str(parts.args.get()).expect("args");
            prop_assert_eq!(read, vec![args]);
        }
    }
}
