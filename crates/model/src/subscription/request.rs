//! A client's request for a subscription, checked member by member, and its effect on an existing subscription.

use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::{
    ChannelSelection, DeliveryMode, DeliveryOrdering, MessageFilter, NewChannelStart, Subscription, SubscriptionState,
    request_error::{CONCURRENCY_RANGE, SubscriptionRequestError, check_range, invalid},
    target_spec::TargetSpec,
};
use crate::{job::RetryPolicy, message::Position};
use common::{
    json::{self, Object, ObjectWriter},
    name::SubscriptionName,
    time::{self, Millis, TimeError},
};

/// Bounds of `ack_deadline_ms`.
const ACK_DEADLINE_RANGE_MS: std::ops::RangeInclusive<u64> = 1_000..=3_600_000;
const DEFAULT_ACK_DEADLINE_MS: u64 = 30_000;
const DEFAULT_IN_FLIGHT: u64 = 64;
const MAX_DESCRIPTION_CHARS: usize = 1_000;
/// 5 s, 20 s, 80 s, ... up to ten hours: some 30 hours in all.
const DEFAULT_RETRY: &str = concat!(
    r#"{"max_attempts":10,"initial_interval":"PT5S","backoff_coefficient":4.0,"max_interval":"PT10H","#,
    r#""on_exhaustion":"dead_letter"}"#
);

/// Where a subscription starts, or continues after a seek.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SubscriptionStart {
    /// At the next message.
    #[default]
    New,
    /// At the oldest message that is kept.
    Earliest,
    /// After a position, in the only channel.
    After(Position),
    /// At the first message published at this time or later.
    Since(Millis),
}

impl SubscriptionStart {
    /// Reads `new`, `earliest`, the id of a message or a time.
    ///
    /// # Errors
    /// The text is none of them. The message says what is allowed.
    pub fn parse(text: &str, now: Millis) -> Result<Self, String> {
        match text {
            "new" => Ok(Self::New),
            "earliest" => Ok(Self::Earliest),
            _ => match (text.parse(), time::parse_time(text, now)) {
                (Ok(position), _) => Ok(Self::After(position)),
                (Err(_), Ok(time)) => Ok(Self::Since(time.at)),
                (Err(_), Err(TimeError::Time(got))) => Err(format!(
                    "must be new, earliest, the id of a message, an RFC 3339 time, or a time from now such as -PT1H, \
                     got {got}"
                )),
                (Err(_), Err(error)) => Err(error.to_string()),
            },
        }
    }

    /// Where the subscription starts in channels that are new or were lost.
    #[must_use]
    pub fn resolve(self, now: Millis) -> NewChannelStart {
        match self {
            Self::New => NewChannelStart::Now(now),
            Self::Earliest => NewChannelStart::Earliest,
            Self::After(position) => NewChannelStart::After(position),
            Self::Since(at) => NewChannelStart::Since(at),
        }
    }
}

#[derive(Deserialize)]
struct SubscriptionSpec {
    channels: ChannelSelection,
    deliver: Box<RawValue>,
    mode: Option<DeliveryMode>,
    filter: Option<Box<RawValue>>,
    ordering: Option<DeliveryOrdering>,
    ack_deadline_ms: Option<u64>,
    max_in_flight: Option<u64>,
    start: Option<String>,
    retry: Option<Box<RawValue>>,
    description: Option<String>,
    // Members of the view, so that a client can send a view back
    #[serde(rename = "name")]
    _name: Option<IgnoredAny>,
    #[serde(rename = "state")]
    _state: Option<IgnoredAny>,
    #[serde(rename = "reason")]
    _reason: Option<IgnoredAny>,
    #[serde(rename = "queue")]
    _queue: Option<IgnoredAny>,
    #[serde(rename = "public_keys")]
    _public_keys: Option<IgnoredAny>,
    #[serde(rename = "created_at")]
    _created_at: Option<IgnoredAny>,
    #[serde(rename = "updated_at")]
    _updated_at: Option<IgnoredAny>,
    #[serde(rename = "progress")]
    _progress: Option<IgnoredAny>,
}

/// A checked request.
pub struct SubscriptionRequest {
    spec: SubscriptionSpec,
    filter: MessageFilter,
    target_spec: TargetSpec,
    start: Option<SubscriptionStart>,
}

impl SubscriptionRequest {
    /// Checks a request body. Relative times count from `now`.
    ///
    /// # Errors
    /// The first member that is missing or wrong.
    pub fn parse(body: &[u8], depth_limit: usize, now: Millis) -> Result<Self, SubscriptionRequestError> {
        let json::NoDuplicateMembers = json::parse(body, depth_limit).map_err(|error| invalid(error.to_string()))?;
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(invalid("a subscription must be a JSON object"));
        }
        let written: SubscriptionSpec =
            common::json_members::parse_request(body, depth_limit).map_err(|error| invalid(error.to_string()))?;
        let deliver = TargetSpec::parse(&written.deliver)?;
        let filter = written
            .filter
            .as_deref()
            .map(|raw| MessageFilter::parse(raw.get(), usize::MAX))
            .transpose()
            .map_err(invalid)?
            .unwrap_or_default();
        if let Some(retry) = &written.retry {
            RetryPolicy::parse(retry).map_err(|error| invalid(error.to_string()))?;
        }
        if written.description.as_ref().is_some_and(|text| text.chars().count() > MAX_DESCRIPTION_CHARS) {
            return Err(invalid(format!("description must have at most {MAX_DESCRIPTION_CHARS} characters")));
        }
        let start = written.start.as_deref().map(|text| SubscriptionStart::parse(text, now)).transpose();
        let start = start.map_err(|problem| invalid(format!("start {problem}")))?;
        check_start(start, &written.channels)?;
        if written.mode == Some(DeliveryMode::Broadcast) && written.ordering == Some(DeliveryOrdering::Channel) {
            return Err(invalid("ordering channel needs mode shared: a broadcast is in order at each worker already"));
        }
        Ok(Self { spec: written, filter, target_spec: deliver, start })
    }

    /// Where it starts if it is new.
    #[must_use]
    pub fn start(&self) -> SubscriptionStart {
        self.start.unwrap_or_default()
    }

    /// Whether Galley generates a secret for it, which the response must show.
    #[must_use]
    pub fn needs_secret(&self, before: Option<&Subscription>) -> bool {
        self.target_spec.needs_secret(before.map(|before| &before.deliver))
    }

    /// The subscription after the request. An existing one keeps its position and state, its secrets, and the values of
    /// headers that the request names without a value.
    ///
    /// # Errors
    /// A member is out of bounds, or would change a member that cannot change.
    pub fn apply(
        self,
        name: SubscriptionName,
        before: Option<&Subscription>,
        now: Millis,
    ) -> Result<Subscription, SubscriptionRequestError> {
        let start = self.start();
        let Self { spec: written, filter, target_spec: deliver, .. } = self;
        let (mode, ordering) = (written.mode.unwrap_or_default(), written.ordering.unwrap_or_default());
        if before.is_some_and(|before| before.mode != mode) {
            return Err(SubscriptionRequestError::Immutable("mode"));
        }
        if before.is_some_and(|before| before.ordering != ordering) {
            return Err(SubscriptionRequestError::Immutable("ordering"));
        }
        let ack_deadline_ms = written.ack_deadline_ms.unwrap_or(DEFAULT_ACK_DEADLINE_MS);
        check_range("ack_deadline_ms", ack_deadline_ms, &ACK_DEADLINE_RANGE_MS)?;
        let max_in_flight =
            check_range("max_in_flight", written.max_in_flight.unwrap_or(DEFAULT_IN_FLIGHT), &CONCURRENCY_RANGE)?;
        Ok(Subscription {
            deliver: deliver.checked(before.map(|before| &before.deliver), ack_deadline_ms, now)?,
            description: written.description,
            channels: written.channels,
            mode,
            filter,
            ordering,
            ack_deadline_ms,
            max_in_flight,
            retry: with_default_retry(written.retry.as_deref()),
            state: before.map_or(SubscriptionState::Active, |before| before.state),
            reason: before.and_then(|before| before.reason.clone()),
            begin: before.map_or(start.resolve(now), |before| before.begin),
            resumed_at: before.and_then(|before| before.resumed_at),
            generation: before.map_or(u64::try_from(now).unwrap_or_default(), |before| before.generation),
            created_at: before.map_or(now, |before| before.created_at),
            // Always grows, so that it identifies a change
            updated_at: before.map_or(now, |before| now.max(before.updated_at + 1)),
            name,
        })
    }
}

/// A retry policy. Absent members have the defaults of subscriptions, not of jobs: nobody waits for a message, so a
/// failed one must become a dead letter.
fn with_default_retry(given: Option<&RawValue>) -> Box<RawValue> {
    let given: Object = given.and_then(|given| serde_json::from_str(given.get()).ok()).unwrap_or_default();
    let usual: Object = serde_json::from_str(DEFAULT_RETRY).unwrap_or_default();
    let mut retry = ObjectWriter::default();
    for (name, value) in given.iter().filter(|(_, value)| value.get() != "null") {
        retry.raw(name, value.get());
    }
    let is_given = |name: &str| given.get(name).is_some_and(|value| value.get() != "null");
    for (name, value) in usual.iter().filter(|(name, _)| !is_given(name)) {
        retry.raw(name, value.get());
    }
    RawValue::from_string(retry.finish()).unwrap_or_default()
}

/// A position belongs to one channel.
pub(super) fn check_start(
    start: Option<SubscriptionStart>,
    channels: &ChannelSelection,
) -> Result<(), SubscriptionRequestError> {
    match start {
        Some(SubscriptionStart::After(_)) if channels.single_channel().is_none() => {
            Err(invalid("start is the id of a message, which belongs to one channel: there must be one, by its name"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::{HttpTarget, SubscriptionTarget};

    fn parse(json: &str) -> Result<Subscription, SubscriptionRequestError> {
        SubscriptionRequest::parse(json.as_bytes(), 16, 5_000)?.apply("s".parse().expect("a name"), None, 5_000)
    }

    fn http(subscription: &Subscription) -> HttpTarget {
        match &subscription.deliver {
            SubscriptionTarget::Http(http) => http.clone(),
            _ => panic!("no HTTP target"),
        }
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let made =
            parse(r#"{"channels":["orders.*"],"deliver":{"http":{"url":"https://a.test/x"}}}"#).expect("allowed");
        assert_eq!(
            (made.mode, made.ordering, made.state),
            (DeliveryMode::Shared, DeliveryOrdering::None, SubscriptionState::Active)
        );
        assert_eq!((made.ack_deadline_ms, made.max_in_flight, made.begin), (30_000, 64, NewChannelStart::Now(5_000)));
        assert_eq!((made.retry_policy().max_attempts, made.queue().as_str()), (10, "sub.s"));
        let target = http(&made);
        assert_eq!((target.timeout_ms, target.concurrency, target.secrets.len()), (15_000, 16, 1));
        assert!(
            target.secrets[0].starts_with("whsec_") && target.secrets[0].len() == 50,
            "32 bytes in base64 are made"
        );
        let retry = r#"{"channels":["a"],"deliver":{"log":{}},"retry":{"max_attempts":3,"max_interval":null}}"#;
        let policy = parse(retry).expect("allowed").retry_policy();
        let usual = RetryPolicy { max_attempts: 3, ..made.retry_policy() };
        assert_eq!(policy, usual, "what is not said of retries is as usual, too");
        let short = r#"{"channels":["a"],"deliver":{"http":{"url":"https://a.test/x"}},"ack_deadline_ms":2000}"#;
        assert_eq!(http(&parse(short).expect("allowed")).timeout_ms, 2_000);
    }

    #[test]
    fn it_begins_where_it_is_told_to() {
        for (start, begin) in [
            ("new", NewChannelStart::Now(5_000)),
            ("earliest", NewChannelStart::Earliest),
            ("7-2", NewChannelStart::After(Position { epoch: 7, sequence: 2 })),
            ("-PT1S", NewChannelStart::Since(4_000)),
            ("1970-01-01T00:00:01Z", NewChannelStart::Since(1_000)),
        ] {
            let json = format!(r#"{{"channels":["a"],"deliver":{{"log":{{}}}},"start":"{start}"}}"#);
            assert_eq!(parse(&json).expect(start).begin, begin);
        }
    }

    #[test]
    fn what_is_secret_is_kept_and_not_shown() {
        let before = parse(
            r#"{"channels":["a"],"deliver":{"http":{"url":"http://a.test/","secrets":["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
                "headers":{"authorization":"Bearer geheim"}}}}"#,
        )
        .expect("allowed");
        let shown = before.to_json();
        assert!(!shown.contains("geheim") && !shown.contains("whsec") && shown.contains("authorization"), "{shown}");
        let again = SubscriptionRequest::parse(shown.as_bytes(), 16, 9_000).expect("what is shown may be sent back");
        let after = again.apply("s".parse().expect("a name"), Some(&before), 9_000).expect("allowed");
        let (before_target, after_target) = (http(&before), http(&after));
        assert_eq!(after_target.secrets, before_target.secrets);
        assert_eq!(after_target.headers["authorization"], "Bearer geheim");
        assert_eq!((after.created_at, after.updated_at, after.begin), (5_000, 9_000, NewChannelStart::Now(5_000)));
        let stored = serde_json::to_string(&before).expect("JSON");
        let read: Subscription = serde_json::from_str(&stored).expect("a subscription");
        assert_eq!(serde_json::to_string(&read).expect("JSON"), stored);
    }

    #[test]
    fn a_filter_is_shown_as_it_was_written() {
        let filter = r#"{"data":{"/id":12345678901234567890.10}}"#;
        let made = parse(&format!(r#"{{"channels":["a"],"deliver":{{"log":{{}}}},"filter":{filter}}}"#));
        let shown = made.expect("allowed").to_json();
        assert!(shown.contains(filter), "{shown}");
    }

    #[test]
    fn each_wrong_member_is_refused_by_name() {
        let log = r#""deliver":{"log":{}}"#;
        for (json, said) in [
            ("[]", "must be a JSON object"),
            (r#"[["a"],{"log":{}}]"#, "must be a JSON object"),
            (r#"{"channels":["a"],"deliver":{"http":["http://a/"]}}"#, "deliver.http must be a JSON object"),
            (r#"{"channels":["a"],"channels":["b"],"deliver":{"log":{}}}"#, "duplicate member"),
            (&format!(r#"{{"channels":["a"],{log},"filter":[{{"type":"a"}}]}}"#), "filter must be an object"),
            (&format!(r#"{{"channels":["a"],{log},"filter":{{"data":{{"/a":1,"/a":2}}}}}}"#), "duplicate member"),
            ("{}", "missing field `channels`"),
            (r#"{"channels":["a"]}"#, "missing field `deliver`"),
            (&format!(r#"{{"channels":[],{log}}}"#), "1 to 100 channels"),
            (&format!(r#"{{"channels":["a b"],{log}}}"#), "channel must match"),
            (
                &format!(r#"{{"channels":["a"],{log},"moed":"shared"}}"#),
                "unknown member \"moed\", did you mean \"mode\"?",
            ),
            (&format!(r#"{{"channels":["a"],{log},"mode":"each"}}"#), "expected `shared` or `broadcast`"),
            (
                &format!(r#"{{"channels":["a"],{log},"max_in_flight":0}}"#),
                "max_in_flight must be an integer from 1 to 1000",
            ),
            (
                &format!(r#"{{"channels":["a"],{log},"ack_deadline_ms":999}}"#),
                "ack_deadline_ms must be an integer from 1000",
            ),
            (&format!(r#"{{"channels":["a"],{log},"start":"later"}}"#), "start must be new, earliest"),
            (&format!(r#"{{"channels":["a","b"],{log},"start":"7-1"}}"#), "belongs to one channel"),
            (&format!(r#"{{"channels":["a*"],{log},"start":"7-1"}}"#), "belongs to one channel"),
            (&format!(r#"{{"channels":["a"],{log},"retry":{{"max_attempts":-1}}}}"#), "retry.max_attempts must"),
            (&format!(r#"{{"channels":["a"],{log},"filter":{{"data":{{"a":1}}}}}}"#), "filter: data is addressed by"),
            (&format!(r#"{{"channels":["a"],{log},"mode":"broadcast","ordering":"channel"}}"#), "needs mode shared"),
            (r#"{"channels":["a"],"deliver":{"mail":{}}}"#, "one of http, queue, command and log"),
            (r#"{"channels":["a"],"deliver":{"log":{"level":1}}}"#, "deliver.log: unknown member \"level\""),
            (r#"{"channels":["a"],"deliver":{"log":{},"command":"x"}}"#, "one of http, queue"),
            (r#"{"channels":["a"],"deliver":{"command":"/bin/sh"}}"#, "command must match"),
            (r#"{"channels":["a"],"deliver":{"http":{"url":"ftp://a"}}}"#, "deliver.http.url must begin with http"),
            (r#"{"channels":["a"],"deliver":{"http":{"url":"http://a/{type}"}}}"#, "deliver.http.url must"),
            (
                r#"{"channels":["a"],"deliver":{"http":{"url":"http://a/","timeout_ms":30001}}}"#,
                "not beyond ack_deadline_ms",
            ),
            (r#"{"channels":["a"],"deliver":{"http":{"url":"http://a/","secrets":[]}}}"#, "1 to 4 secrets"),
            (r#"{"channels":["a"],"deliver":{"http":{"url":"http://a/","headers":{"x":null}}}}"#, "must have a value"),
            (r#"{"channels":["a"],"deliver":{"queue":{"queue":"Q"}}}"#, "queue must match"),
            (r#"{"channels":["a"],"deliver":{"queue":{"queue":"sub.s"}}}"#, "must not begin with sub."),
            (
                r#"{"channels":["a"],"deliver":{"queue":{"queue":"q","options":{"expires_at":"2099-01-01T00:00:00Z"}}}}"#,
                "expires_at must be a duration",
            ),
            (r#"{"channels":["a"],"deliver":{"queue":{"queue":"q","options":{"queue":"r"}}}}"#, "duplicate member"),
            (r#"{"channels":["a"],"deliver":{"queue":{"queue":"q","options":{"priority":"x"}}}}"#, "priority"),
        ] {
            let error = parse(json).err().unwrap_or_else(|| panic!("{json} was accepted")).to_string();
            assert!(error.contains(said), "{json}: {error}");
        }
    }

    #[test]
    fn mode_and_ordering_stay() {
        let before = parse(r#"{"channels":["a"],"deliver":{"log":{}}}"#).expect("allowed");
        for (member, fixed) in [(r#""mode":"broadcast""#, "mode"), (r#""ordering":"channel""#, "ordering")] {
            let json = format!(r#"{{"channels":["a"],"deliver":{{"log":{{}}}},{member}}}"#);
            let request = SubscriptionRequest::parse(json.as_bytes(), 16, 0).expect("a request");
            let refused = request.apply("s".parse().expect("a name"), Some(&before), 0).err();
            assert_eq!(refused, Some(SubscriptionRequestError::Immutable(fixed)));
        }
    }
}
