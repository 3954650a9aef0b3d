//! What a client asks for, checked member by member, and what becomes of the subscription that was there before.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::{
    Begin, Filter, HttpTarget, Mode, Ordering, QueueTarget, Selection, State, Subscription, Target,
    target::PLACEHOLDERS,
};
use crate::{
    job::{NewJob, Policy},
    json::{self, JsonError},
    message::Position,
    name::{CommandName, JobType, QueueName, SubscriptionName, quoted},
    push::{MOST_SECRETS, UrlTemplate},
    time::{self, Millis},
};

/// Bounds of `ack_deadline_ms`.
const ACK_DEADLINES_MS: std::ops::RangeInclusive<u64> = 1_000..=3_600_000;
const DEFAULT_ACK_DEADLINE_MS: u64 = 30_000;
/// An endpoint's timeout, where the deadline is not shorter.
const DEFAULT_TIMEOUT_MS: u64 = 15_000;
/// Bounds of `max_in_flight` and of an endpoint's `concurrency`.
const AT_ONCE: std::ops::RangeInclusive<u64> = 1..=1_000;
const DEFAULT_IN_FLIGHT: u64 = 64;
const DEFAULT_CONCURRENCY: u64 = 16;
const LONGEST_DESCRIPTION: usize = 1_000;
/// 5 s, 20 s, 80 s, ... up to ten hours: some 30 hours in all.
const DEFAULT_RETRY: &str = concat!(
    r#"{"max_attempts":10,"initial_interval":"PT5S","backoff_coefficient":4.0,"max_interval":"PT10H","#,
    r#""on_exhaustion":"dead_letter"}"#
);
/// Bytes of a secret that Galley makes.
const SECRET_BYTES: usize = 32;
/// The job type of a queue target that names none.
const DEFAULT_JOB_TYPE: &str = "message";

/// A request that is refused; nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A member is missing or wrong; the text names it and says what is allowed.
    #[error("{0}")]
    Invalid(String),
    /// It would change what cannot be changed.
    #[error("{0} cannot be changed: delete the subscription and make another")]
    Fixed(&'static str),
}

fn invalid(message: impl Into<String>) -> Refused {
    Refused::Invalid(message.into())
}

/// Where a subscription begins, or goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// With what is published from now on.
    #[default]
    New,
    /// With everything that is kept.
    Earliest,
    /// Behind a position, in the one channel that there is.
    After(Position),
    /// With what was published at that time and later.
    Since(Millis),
}

impl Start {
    /// Reads `new`, `earliest`, the id of a message or a time.
    ///
    /// # Errors
    /// It is none of them; the text says what is allowed.
    pub fn parse(text: &str, now: Millis) -> Result<Self, String> {
        match text {
            "new" => Ok(Self::New),
            "earliest" => Ok(Self::Earliest),
            _ => {
                text.parse().map(Self::After).or_else(|_| time::parse_past(text, now).map(Self::Since)).map_err(|_| {
                    format!(
                        "must be new, earliest, the id of a message, or a time as RFC 3339 or as a duration before now \
                     such as -PT1H, got {}",
                        quoted(text)
                    )
                })
            }
        }
    }

    /// Where channels begin that are not there yet, or were lost.
    #[must_use]
    pub fn begin(self, now: Millis) -> Begin {
        match self {
            Self::New => Begin::Now(now),
            Self::Earliest => Begin::Earliest,
            Self::After(position) => Begin::After(position),
            Self::Since(at) => Begin::Since(at),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    channels: Selection,
    deliver: Box<RawValue>,
    mode: Option<Mode>,
    filter: Option<Filter>,
    ordering: Option<Ordering>,
    ack_deadline_ms: Option<u64>,
    max_in_flight: Option<u64>,
    start: Option<String>,
    retry: Option<Box<RawValue>>,
    description: Option<String>,
    // What is shown may be sent back
    #[serde(rename = "name")]
    _name: Option<IgnoredAny>,
    #[serde(rename = "state")]
    _state: Option<IgnoredAny>,
    #[serde(rename = "reason")]
    _reason: Option<IgnoredAny>,
    #[serde(rename = "queue")]
    _queue: Option<IgnoredAny>,
    #[serde(rename = "created_at")]
    _created_at: Option<IgnoredAny>,
    #[serde(rename = "updated_at")]
    _updated_at: Option<IgnoredAny>,
    #[serde(rename = "progress")]
    _progress: Option<IgnoredAny>,
}

enum WrittenTarget {
    Http(WrittenHttp),
    Queue(WrittenQueue),
    Command(CommandName),
    Log(Nothing),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenHttp {
    url: String,
    secrets: Option<Vec<String>>,
    #[serde(default)]
    headers: BTreeMap<String, Option<String>>,
    timeout_ms: Option<u64>,
    concurrency: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenQueue {
    queue: QueueName,
    #[serde(rename = "type")]
    job_type: Option<JobType>,
    options: Option<Box<RawValue>>,
}

/// A request that may be carried out.
pub struct Request {
    written: Written,
    deliver: WrittenTarget,
    start: Option<Start>,
}

impl Request {
    /// Checks a request body. `now` is the time that relative times count from.
    ///
    /// # Errors
    /// The first member that is missing or wrong.
    pub fn parse(body: &[u8], depth_limit: usize, now: Millis) -> Result<Self, Refused> {
        let written: Written = json::parse(body, depth_limit).map_err(|error| invalid(error.to_string()))?;
        let deliver = WrittenTarget::parse(&written.deliver)?;
        if let Some(filter) = &written.filter {
            filter.check().map_err(|problem| invalid(format!("filter: {problem}")))?;
        }
        if let Some(retry) = &written.retry {
            Policy::parse(retry).map_err(|error| invalid(error.to_string()))?;
        }
        if written.description.as_ref().is_some_and(|text| text.chars().count() > LONGEST_DESCRIPTION) {
            return Err(invalid(format!("description must have at most {LONGEST_DESCRIPTION} characters")));
        }
        let start = written.start.as_deref().map(|text| Start::parse(text, now)).transpose();
        let start = start.map_err(|problem| invalid(format!("start {problem}")))?;
        check_start(start, &written.channels)?;
        if written.mode == Some(Mode::Broadcast) && written.ordering == Some(Ordering::Channel) {
            return Err(invalid(
                "ordering channel goes with mode shared: a broadcast is in order at each worker already",
            ));
        }
        Ok(Self { written, deliver, start })
    }

    /// Where it is to begin if it is new.
    #[must_use]
    pub fn start(&self) -> Start {
        self.start.unwrap_or_default()
    }

    /// The subscription that it makes of the one that was there. One that is there goes on where it is, as it is, and keeps
    /// its secrets and the values of headers that are not given anew.
    ///
    /// # Errors
    /// A member that goes beyond its bounds, or would change what cannot be changed.
    pub fn apply(
        self,
        name: SubscriptionName,
        before: Option<&Subscription>,
        now: Millis,
    ) -> Result<Subscription, Refused> {
        let start = self.start();
        let Self { written, deliver, .. } = self;
        let (mode, ordering) = (written.mode.unwrap_or_default(), written.ordering.unwrap_or_default());
        if before.is_some_and(|before| before.mode != mode) {
            return Err(Refused::Fixed("mode"));
        }
        if before.is_some_and(|before| before.ordering != ordering) {
            return Err(Refused::Fixed("ordering"));
        }
        let ack_deadline_ms = written.ack_deadline_ms.unwrap_or(DEFAULT_ACK_DEADLINE_MS);
        within("ack_deadline_ms", ack_deadline_ms, &ACK_DEADLINES_MS)?;
        let max_in_flight = within("max_in_flight", written.max_in_flight.unwrap_or(DEFAULT_IN_FLIGHT), &AT_ONCE)?;
        let default_retry = || RawValue::from_string(DEFAULT_RETRY.to_owned()).unwrap_or_default();
        Ok(Subscription {
            deliver: deliver.checked(before.map(|before| &before.deliver), ack_deadline_ms, now)?,
            description: written.description,
            channels: written.channels,
            mode,
            filter: written.filter.unwrap_or_default(),
            ordering,
            ack_deadline_ms,
            max_in_flight,
            retry: written.retry.unwrap_or_else(default_retry),
            state: before.map_or(State::Active, |before| before.state),
            reason: before.and_then(|before| before.reason.clone()),
            begin: before.map_or(start.begin(now), |before| before.begin),
            generation: before.map_or(u64::try_from(now).unwrap_or_default(), |before| before.generation),
            created_at: before.map_or(now, |before| before.created_at),
            updated_at: now,
            name,
        })
    }
}

/// A position belongs to one channel.
pub(super) fn check_start(start: Option<Start>, channels: &Selection) -> Result<(), Refused> {
    match start {
        Some(Start::After(_)) if channels.only().is_none() => {
            Err(invalid("start is the id of a message, which belongs to one channel: there must be one, by its name"))
        }
        _ => Ok(()),
    }
}

fn within(name: &str, given: u64, allowed: &std::ops::RangeInclusive<u64>) -> Result<usize, Refused> {
    let refused = || {
        let (least, most) = (allowed.start(), allowed.end());
        invalid(format!("{name} must be an integer from {least} to {most}, got {given}"))
    };
    if allowed.contains(&given) { usize::try_from(given).map_err(|_| refused()) } else { Err(refused()) }
}

impl WrittenTarget {
    fn parse(raw: &RawValue) -> Result<Self, Refused> {
        let allowed = || {
            let got = quoted(raw.get());
            invalid(format!("deliver must be an object with one of http, queue, command and log, got {got}"))
        };
        let members: json::Object = serde_json::from_str(raw.get()).map_err(|_| allowed())?;
        let mut members = members.iter();
        let (Some((kind, target)), None) = (members.next(), members.next()) else { return Err(allowed()) };
        match kind {
            "http" => of_kind(kind, target).map(Self::Http),
            "queue" => of_kind(kind, target).map(Self::Queue),
            "command" => of_kind(kind, target).map(Self::Command),
            "log" => of_kind(kind, target).map(Self::Log),
            _ => Err(allowed()),
        }
    }

    fn checked(self, before: Option<&Target>, ack_deadline_ms: u64, now: Millis) -> Result<Target, Refused> {
        Ok(match self {
            Self::Http(http) => {
                let before = before.and_then(|before| if let Target::Http(http) = before { Some(http) } else { None });
                Target::Http(http.checked(before, ack_deadline_ms)?)
            }
            Self::Queue(queue) => Target::Queue(queue.checked(now)?),
            Self::Command(name) => Target::Command(name),
            Self::Log(Nothing {}) => Target::Log {},
        })
    }
}

fn of_kind<'a, T: Deserialize<'a>>(kind: &str, raw: &'a RawValue) -> Result<T, Refused> {
    // How deep the whole body is was checked before
    json::parse(raw.get().as_bytes(), usize::MAX).map_err(|error| match error {
        JsonError::Unexpected(text) => invalid(format!("deliver.{kind}: {text}")),
        other => invalid(format!("deliver.{kind}: {other}")),
    })
}

impl WrittenHttp {
    fn checked(self, before: Option<&HttpTarget>, ack_deadline_ms: u64) -> Result<HttpTarget, Refused> {
        UrlTemplate::parse(&self.url, &PLACEHOLDERS).map_err(|error| invalid(format!("deliver.http.{error}")))?;
        let timeout_ms = self.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS.min(ack_deadline_ms));
        within("deliver.http.timeout_ms (not beyond ack_deadline_ms)", timeout_ms, &(1..=ack_deadline_ms))?;
        let concurrency = self.concurrency.unwrap_or(DEFAULT_CONCURRENCY);
        let concurrency = within("deliver.http.concurrency", concurrency, &AT_ONCE)?;
        let mut headers = BTreeMap::new();
        for (name, value) in self.headers {
            let kept = || before.and_then(|before| before.headers.get(&name).cloned());
            let value = value.or_else(kept).ok_or_else(|| {
                invalid(format!("deliver.http.headers: {} must have a value: there is none to keep", quoted(&name)))
            })?;
            headers.insert(name, value);
        }
        let secrets = match (self.secrets, before) {
            (Some(secrets), _) if !(1..=MOST_SECRETS).contains(&secrets.len()) => {
                return Err(invalid(format!("deliver.http.secrets must have 1 to {MOST_SECRETS} secrets")));
            }
            (Some(secrets), _) => secrets,
            (None, Some(before)) => before.secrets.clone(),
            (None, None) => vec![new_secret()],
        };
        Ok(HttpTarget { url: self.url, secrets, headers, timeout_ms, concurrency })
    }
}

fn new_secret() -> String {
    format!("whsec_{}", BASE64_STANDARD.encode(rand::random::<[u8; SECRET_BYTES]>()))
}

impl WrittenQueue {
    fn checked(self, now: Millis) -> Result<QueueTarget, Refused> {
        let job_type = match self.job_type {
            Some(job_type) => job_type,
            None => DEFAULT_JOB_TYPE.parse().map_err(|error| invalid(format!("{error}")))?,
        };
        if self.options.as_ref().is_some_and(|options| !options.get().starts_with('{')) {
            return Err(invalid("deliver.queue.options must be a JSON object"));
        }
        let target = QueueTarget { queue: self.queue, job_type, options: self.options };
        let request = target.request("{}");
        let members = serde_json::from_str(&request).map_err(|error| invalid(format!("deliver.queue: {error}")))?;
        NewJob::parse(&members, now).map_err(|error| invalid(format!("deliver.queue.options: {error}")))?;
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Subscription, Refused> {
        Request::parse(json.as_bytes(), 16, 5_000)?.apply("s".parse().expect("a name"), None, 5_000)
    }

    fn http(subscription: &Subscription) -> HttpTarget {
        match &subscription.deliver {
            Target::Http(http) => http.clone(),
            _ => panic!("no HTTP target"),
        }
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let made =
            parse(r#"{"channels":["orders.*"],"deliver":{"http":{"url":"https://a.test/x"}}}"#).expect("allowed");
        assert_eq!((made.mode, made.ordering, made.state), (Mode::Shared, Ordering::None, State::Active));
        assert_eq!((made.ack_deadline_ms, made.max_in_flight, made.begin), (30_000, 64, Begin::Now(5_000)));
        assert_eq!((made.policy().max_attempts, made.queue().as_str()), (10, "sub.s"));
        let target = http(&made);
        assert_eq!((target.timeout_ms, target.concurrency, target.secrets.len()), (15_000, 16, 1));
        assert!(target.secrets[0].parse::<crate::push::Secret>().is_ok(), "a secret is made");
        let short = r#"{"channels":["a"],"deliver":{"http":{"url":"https://a.test/x"}},"ack_deadline_ms":2000}"#;
        assert_eq!(http(&parse(short).expect("allowed")).timeout_ms, 2_000);
    }

    #[test]
    fn it_begins_where_it_is_told_to() {
        for (start, begin) in [
            ("new", Begin::Now(5_000)),
            ("earliest", Begin::Earliest),
            ("7-2", Begin::After(Position { epoch: 7, sequence: 2 })),
            ("-PT1S", Begin::Since(4_000)),
            ("1970-01-01T00:00:01Z", Begin::Since(1_000)),
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
        let shown = before.to_json().to_string();
        assert!(!shown.contains("geheim") && !shown.contains("whsec") && shown.contains("authorization"), "{shown}");
        let again = Request::parse(shown.as_bytes(), 16, 9_000).expect("what is shown may be sent back");
        let after = again.apply("s".parse().expect("a name"), Some(&before), 9_000).expect("allowed");
        let (before_target, after_target) = (http(&before), http(&after));
        assert_eq!(after_target.secrets, before_target.secrets);
        assert_eq!(after_target.headers["authorization"], "Bearer geheim");
        assert_eq!((after.created_at, after.updated_at, after.begin), (5_000, 9_000, Begin::Now(5_000)));
        let stored = serde_json::to_string(&before).expect("JSON");
        let read: Subscription = serde_json::from_str(&stored).expect("a subscription");
        assert_eq!(serde_json::to_string(&read).expect("JSON"), stored);
    }

    #[test]
    fn each_wrong_member_is_refused_by_name() {
        let log = r#""deliver":{"log":{}}"#;
        for (json, said) in [
            ("[]", "expected struct"),
            ("{}", "missing field `channels`"),
            (r#"{"channels":["a"]}"#, "missing field `deliver`"),
            (&format!(r#"{{"channels":[],{log}}}"#), "1 to 100 channels"),
            (&format!(r#"{{"channels":["a b"],{log}}}"#), "channel must match"),
            (&format!(r#"{{"channels":["a"],{log},"moed":"shared"}}"#), "unknown field `moed`"),
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
            (
                &format!(r#"{{"channels":["a"],{log},"mode":"broadcast","ordering":"channel"}}"#),
                "goes with mode shared",
            ),
            (r#"{"channels":["a"],"deliver":{"mail":{}}}"#, "one of http, queue, command and log"),
            (r#"{"channels":["a"],"deliver":{"log":{"level":1}}}"#, "unknown field `level`"),
            (r#"{"channels":["a"],"deliver":{"log":{},"command":"x"}}"#, "one of http, queue"),
            (r#"{"channels":["a"],"deliver":{"command":"/bin/sh"}}"#, "command must match"),
            (r#"{"channels":["a"],"deliver":{"http":{"url":"ftp://a"}}}"#, "deliver.http.url must begin with http"),
            (r#"{"channels":["a"],"deliver":{"http":{"url":"http://a/{type}"}}}"#, "deliver.http.url must"),
            (
                r#"{"channels":["a"],"deliver":{"http":{"url":"http://a/","timeout_ms":30001}}}"#,
                "not beyond ack_deadline_ms",
            ),
            (r#"{"channels":["a"],"deliver":{"http":{"url":"http://a/","secrets":[]}}}"#, "1 to 2 secrets"),
            (r#"{"channels":["a"],"deliver":{"http":{"url":"http://a/","headers":{"x":null}}}}"#, "must have a value"),
            (r#"{"channels":["a"],"deliver":{"queue":{"queue":"Q"}}}"#, "queue must match"),
            (r#"{"channels":["a"],"deliver":{"queue":{"queue":"q","options":{"queue":"r"}}}}"#, "duplicate member"),
            (r#"{"channels":["a"],"deliver":{"queue":{"queue":"q","options":{"priority":"x"}}}}"#, "priority"),
        ] {
            let error = parse(json).err().unwrap_or_else(|| panic!("{json} was let in")).to_string();
            assert!(error.contains(said), "{json}: {error}");
        }
    }

    #[test]
    fn mode_and_ordering_stay() {
        let before = parse(r#"{"channels":["a"],"deliver":{"log":{}}}"#).expect("allowed");
        for (member, fixed) in [(r#""mode":"broadcast""#, "mode"), (r#""ordering":"channel""#, "ordering")] {
            let json = format!(r#"{{"channels":["a"],"deliver":{{"log":{{}}}},{member}}}"#);
            let request = Request::parse(json.as_bytes(), 16, 0).expect("a request");
            let refused = request.apply("s".parse().expect("a name"), Some(&before), 0).err();
            assert_eq!(refused, Some(Refused::Fixed(fixed)));
        }
    }
}
