//! The target in a client's request, checked member by member. Error messages do not repeat refused values, which may
//! be secrets.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    HttpTarget, QUEUE_PREFIX, QueueTarget, SubscriptionTarget,
    request_error::{CONCURRENCY_RANGE, SubscriptionRequestError, check_range, invalid},
    target::PLACEHOLDERS,
};
use crate::{job::NewJob, subscription::MAX_SECRETS, url_template::UrlTemplate};
use common::{
    json::{self, JsonError},
    name::{CommandName, JobType, QueueName, quoted},
    time::{self, Millis},
};

/// Timeout of an endpoint, unless the deadline is shorter.
const DEFAULT_TIMEOUT_MS: u64 = 15_000;
const DEFAULT_CONCURRENCY: u64 = 16;
/// Bytes of a secret that Galley generates.
const SECRET_BYTES: usize = 32;
/// The job type of a queue target without one.
const DEFAULT_JOB_TYPE: &str = "message";

/// A parsed target. Its bounds are checked later, together with the target that it replaces.
pub(super) enum TargetSpec {
    Http(HttpTargetSpec),
    Queue(QueueTargetSpec),
    Command(CommandName),
    Log(LogTargetSpec),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogTargetSpec {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpTargetSpec {
    url: String,
    // Error messages do not repeat these values
    secrets: Option<Box<RawValue>>,
    headers: Option<Box<RawValue>>,
    timeout_ms: Option<u64>,
    concurrency: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QueueTargetSpec {
    queue: QueueName,
    #[serde(rename = "type")]
    job_type: Option<JobType>,
    options: Option<Box<RawValue>>,
}

impl TargetSpec {
    pub(super) fn parse(raw: &RawValue) -> Result<Self, SubscriptionRequestError> {
        let allowed = || invalid("deliver must be an object with one of http, queue, command and log");
        let members: json::Object = serde_json::from_str(raw.get()).map_err(|_| allowed())?;
        let mut members = members.iter();
        let (Some((kind, target)), None) = (members.next(), members.next()) else { return Err(allowed()) };
        match kind {
            "command" => parse_kind(kind, target).map(Self::Command),
            "http" | "queue" | "log" if !target.get().starts_with('{') => {
                // An array of its members would parse too
                Err(invalid(format!("deliver.{kind} must be a JSON object")))
            }
            "http" => parse_kind(kind, target).map(Self::Http),
            "queue" => parse_kind(kind, target).map(Self::Queue),
            "log" => parse_kind(kind, target).map(Self::Log),
            _ => Err(allowed()),
        }
    }

    /// Whether Galley has to generate a secret for it.
    pub(super) fn needs_secret(&self, before: Option<&SubscriptionTarget>) -> bool {
        matches!(self, Self::Http(http) if http.secrets.is_none() && http.same_origin(before).is_none())
    }

    pub(super) fn checked(
        self,
        before: Option<&SubscriptionTarget>,
        ack_deadline_ms: u64,
        now: Millis,
    ) -> Result<SubscriptionTarget, SubscriptionRequestError> {
        Ok(match self {
            Self::Http(http) => {
                let before = http.same_origin(before);
                SubscriptionTarget::Http(http.checked(before, ack_deadline_ms)?)
            }
            Self::Queue(queue) => SubscriptionTarget::Queue(queue.checked(now)?),
            Self::Command(name) => SubscriptionTarget::Command(name),
            Self::Log(LogTargetSpec {}) => SubscriptionTarget::Log {},
        })
    }
}

fn parse_kind<'a, T: Deserialize<'a>>(kind: &str, raw: &'a RawValue) -> Result<T, SubscriptionRequestError> {
    // The depth of the whole body is checked before
    common::json_members::parse_request(raw.get().as_bytes(), usize::MAX).map_err(|error| match error {
        JsonError::Unexpected(text) | JsonError::UnknownMember(text) => invalid(format!("deliver.{kind}: {text}")),
        other => invalid(format!("deliver.{kind}: {other}")),
    })
}

impl HttpTargetSpec {
    /// The target that it replaces, if what is secret there may go to this one: only to the same scheme, host and port.
    fn same_origin<'a>(&self, before: Option<&'a SubscriptionTarget>) -> Option<&'a HttpTarget> {
        let Some(SubscriptionTarget::Http(before)) = before else { return None };
        let origin = |url: &str| UrlTemplate::parse(url, &PLACEHOLDERS).ok().map(|url| url.origin().to_owned());
        let known = origin(&before.url)?;
        (origin(&self.url)? == known).then_some(before)
    }

    fn checked(
        self,
        before: Option<&HttpTarget>,
        ack_deadline_ms: u64,
    ) -> Result<HttpTarget, SubscriptionRequestError> {
        UrlTemplate::parse(&self.url, &PLACEHOLDERS).map_err(|error| invalid(format!("deliver.http.{error}")))?;
        let timeout_ms = self.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS.min(ack_deadline_ms));
        check_range("deliver.http.timeout_ms (not beyond ack_deadline_ms)", timeout_ms, &(1..=ack_deadline_ms))?;
        let concurrency = self.concurrency.unwrap_or(DEFAULT_CONCURRENCY);
        let concurrency = check_range("deliver.http.concurrency", concurrency, &CONCURRENCY_RANGE)?;
        let headers = self.headers.map(|raw| parse_headers(&raw, before)).transpose()?.unwrap_or_default();
        let secrets = match (self.secrets, before) {
            (Some(raw), _) => parse_secrets(&raw)?,
            (None, Some(before)) => before.secrets.clone(),
            (None, None) => vec![generate_secret()],
        };
        Ok(HttpTarget { url: self.url, secrets, headers, timeout_ms, concurrency })
    }
}

fn parse_headers(
    raw: &RawValue,
    before: Option<&HttpTarget>,
) -> Result<BTreeMap<String, String>, SubscriptionRequestError> {
    let allowed =
        || invalid("deliver.http.headers must be an object of strings, or null for a value that is there already");
    let members: json::Object = serde_json::from_str(raw.get()).map_err(|_| allowed())?;
    let mut headers = BTreeMap::new();
    for (name, value) in members.iter() {
        let value: Option<String> = serde_json::from_str(value.get()).map_err(|_| allowed())?;
        let kept = || before.and_then(|before| before.headers.get(name).cloned());
        let value = value.or_else(kept).ok_or_else(|| {
            invalid(format!("deliver.http.headers: {} must have a value: there is none to keep", quoted(name)))
        })?;
        headers.insert(name.to_owned(), value);
    }
    Ok(headers)
}

fn parse_secrets(raw: &RawValue) -> Result<Vec<String>, SubscriptionRequestError> {
    let secrets: Option<Vec<String>> = serde_json::from_str(raw.get()).ok();
    let secrets = secrets.filter(|secrets| (1..=MAX_SECRETS).contains(&secrets.len()));
    secrets.ok_or_else(|| {
        invalid(format!(
            "deliver.http.secrets must be an array of 1 to {MAX_SECRETS} secrets, whsec_ or whsk_ and base64 each"
        ))
    })
}

fn generate_secret() -> String {
    format!("whsec_{}", BASE64_STANDARD.encode(rand::random::<[u8; SECRET_BYTES]>()))
}

/// Refuses a fixed `expires_at`: once it has passed, every message would become a job that has expired.
fn check_expiry(options: Option<&RawValue>, now: Millis) -> Result<(), SubscriptionRequestError> {
    let options: Option<json::Object> = options.and_then(|options| serde_json::from_str(options.get()).ok());
    let given = options.as_ref().and_then(|options| options.get("expires_at"));
    let Some(text) = given.and_then(|given| serde_json::from_str::<String>(given.get()).ok()) else { return Ok(()) };
    let at = |now| time::parse_time(&text, now).ok().map(|parsed| parsed.at);
    if at(now).is_some() && at(now) == at(now + 1) {
        let text = "must be a duration after each message such as +PT1H, not a fixed time";
        return Err(invalid(format!("deliver.queue.options: expires_at {text}")));
    }
    Ok(())
}

impl QueueTargetSpec {
    fn checked(self, now: Millis) -> Result<QueueTarget, SubscriptionRequestError> {
        let job_type = match self.job_type {
            Some(job_type) => job_type,
            None => DEFAULT_JOB_TYPE.parse().map_err(|error| invalid(format!("{error}")))?,
        };
        if self.options.as_ref().is_some_and(|options| !options.get().starts_with('{')) {
            return Err(invalid("deliver.queue.options must be a JSON object"));
        }
        if self.queue.as_str().starts_with(QUEUE_PREFIX) {
            let text = "such queues hold the failed messages of subscriptions, and run nothing else";
            return Err(invalid(format!("deliver.queue.queue must not begin with {QUEUE_PREFIX}: {text}")));
        }
        check_expiry(self.options.as_deref(), now)?;
        let target = QueueTarget { queue: self.queue, job_type, options: self.options };
        let request = target.enqueue_request("{}");
        let members = serde_json::from_str(&request).map_err(|error| invalid(format!("deliver.queue: {error}")))?;
        NewJob::parse(&members, now).map_err(|error| invalid(format!("deliver.queue.options: {error}")))?;
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::{Subscription, SubscriptionRequest};

    fn http(subscription: &Subscription) -> HttpTarget {
        match &subscription.deliver {
            SubscriptionTarget::Http(http) => http.clone(),
            _ => panic!("no HTTP target"),
        }
    }

    #[test]
    fn what_is_secret_does_not_go_to_another_origin() {
        let name = || "s".parse().expect("a name");
        let put = |before: &Subscription, target: &str| {
            let json = format!(r#"{{"channels":["a"],"deliver":{{"http":{target}}}}}"#);
            let request = SubscriptionRequest::parse(json.as_bytes(), 16, 9_000).expect("a request");
            let needs_secret = request.needs_secret(Some(before));
            request.apply(name(), Some(before), 9_000).map(|after| (http(&after), needs_secret))
        };
        let before = SubscriptionRequest::parse(
            br#"{"channels":["a"],"deliver":{"http":{"url":"https://a.test/x","secrets":["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
                "headers":{"authorization":"Bearer geheim"}}}}"#,
            16,
            5_000,
        );
        let before = before.and_then(|request| request.apply(name(), None, 5_000)).expect("allowed");
        let stored = http(&before);
        for url in ["https://a.test/y?z", "https://A.test:443/{channel}"] {
            let (kept, is_new) = put(&before, &format!(r#"{{"url":"{url}","headers":{{"authorization":null}}}}"#))
                .expect("the same origin");
            assert_eq!((kept.secrets, kept.headers, is_new), (stored.secrets.clone(), stored.headers.clone(), false));
        }
        for url in ["http://a.test/x", "https://a.test:8443/x", "https://b.test/x", "https://a.test.evil.test/x"] {
            let (other, is_new) = put(&before, &format!(r#"{{"url":"{url}"}}"#)).expect("another origin");
            assert!(is_new && other.secrets != stored.secrets && other.headers.is_empty(), "{url}");
            let kept = put(&before, &format!(r#"{{"url":"{url}","headers":{{"authorization":null}}}}"#));
            assert!(kept.err().expect(url).to_string().contains("must have a value"), "{url}");
        }
    }
}
