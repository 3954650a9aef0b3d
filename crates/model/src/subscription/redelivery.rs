//! A delivery that failed becomes a job: the job engine does retries, delays and dead letters.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{QueueTarget, Subscription};
use crate::{
    job::{AttemptError, NewJob, RequestError},
    message::{Position, StoredMessage},
};
use common::{
    id::JobId,
    json::{Object, ObjectWriter},
    name::{ChannelName, QueueName, SubscriptionName},
    time::{self, Millis},
    trace_context::TraceContext,
};

/// The type of the jobs of failed deliveries.
pub const REDELIVERY_JOB_TYPE: &str = "message.deliver";

/// A failed delivery that is retried as a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redelivery {
    /// The channel of the message.
    pub channel: ChannelName,
    /// The message, byte for byte.
    pub message: StoredMessage,
    /// Whether a retry is useless.
    pub is_permanent_failure: bool,
    /// When the subscription was created: another one of that name must not deliver the message.
    pub subscription_created_at: Millis,
    /// When the subscription had been resumed last: a later resume is worth another attempt.
    pub subscription_resumed_at: Option<Millis>,
}

#[derive(Deserialize)]
struct RedeliveryArgs<'a> {
    channel: ChannelName,
    id: String,
    published_ms: Millis,
    content_type: Option<String>,
    #[serde(borrow)]
    attributes: Option<&'a RawValue>,
    body: Option<String>,
    body_base64: Option<String>,
    #[serde(default)]
    give_up: bool,
    subscription_created_ms: Millis,
    subscription_resumed_ms: Option<Millis>,
}

impl Redelivery {
    /// A failed delivery of a subscription.
    #[must_use]
    pub fn new(
        subscription: &Subscription,
        channel: &ChannelName,
        message: &StoredMessage,
        is_permanent: bool,
    ) -> Self {
        Self {
            channel: channel.clone(),
            message: message.clone(),
            is_permanent_failure: is_permanent,
            subscription_created_at: subscription.created_at,
            subscription_resumed_at: subscription.resumed_at,
        }
    }

    /// The job of the delivery, to start at a time, with the failures of earlier attempts. Its id is always the same
    /// until the next seek of the subscription, so creating it twice creates one job.
    ///
    /// # Errors
    /// It is too large for a job.
    pub fn to_job(
        &self,
        subscription: &Subscription,
        start_at: Millis,
        failures: Vec<AttemptError>,
        now: Millis,
    ) -> Result<NewJob, RequestError> {
        let mut options = ObjectWriter::default();
        options.text("queue", subscription.queue().as_str()).raw("retry", subscription.retry.get());
        let mut job = ObjectWriter::with_capacity(self.message.body.len() + 512);
        job.text("type", REDELIVERY_JOB_TYPE).raw("args", &format!("[{}]", self.to_json(&subscription.name)));
        job.raw("options", &options.finish());
        let mut new = parse_job(&job.finish(), now)?;
        // A message that is delivered again after a seek, or for another subscription of this name, is another
        // delivery: the earlier, finished job must not block it
        let by = format!("{} {}", subscription.name, subscription.generation);
        new.id = Some(message_job_id(&by, &subscription.queue(), &self.channel, &self.message));
        new.start_at = Some(start_at);
        new.failures = failures;
        Ok(new)
    }

    fn to_json(&self, subscription: &SubscriptionName) -> String {
        let message = &self.message;
        let mut json = ObjectWriter::with_capacity(message.body.len() + 256);
        json.text("subscription", subscription.as_str()).text("channel", self.channel.as_str());
        json.text("id", &message.position.to_string()).text("time", &time::format(message.published_at));
        json.number("published_ms", message.published_at);
        json.number("subscription_created_ms", self.subscription_created_at);
        if let Some(resumed_at) = self.subscription_resumed_at {
            json.number("subscription_resumed_ms", resumed_at);
        }
        if let Some(content_type) = &message.content_type {
            json.text("content_type", content_type);
        }
        let attributes = message.attributes.as_deref().filter(|text| serde_json::from_str::<&RawValue>(text).is_ok());
        if let Some(attributes) = attributes {
            json.raw("attributes", attributes);
        }
        // Text stays readable, unless base64 is shorter
        match std::str::from_utf8(&message.body) {
            Ok(text) if !text.contains(|c: char| c.is_control() && !"\n\r\t".contains(c)) => json.text("body", text),
            _ => json.text("body_base64", &BASE64_STANDARD.encode(&message.body)),
        };
        if self.is_permanent_failure {
            json.raw("give_up", "true");
        }
        json.finish()
    }

    /// Reads the arguments of such a job; none if they are of another job.
    #[must_use]
    pub fn from_args(args: &RawValue) -> Option<Self> {
        let [written]: [RedeliveryArgs; 1] = serde_json::from_str(args.get()).ok()?;
        let position: Position = written.id.parse().ok()?;
        let body = match (written.body, written.body_base64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(base64)) => BASE64_STANDARD.decode(base64).ok()?,
            _ => return None,
        };
        let message = StoredMessage {
            position,
            published_at: written.published_ms,
            content_type: written.content_type,
            attributes: written.attributes.map(|raw| raw.get().to_owned()),
            body,
            // The job has it
            trace: TraceContext::default(),
        };
        Some(Self {
            channel: written.channel,
            message,
            is_permanent_failure: written.give_up,
            subscription_created_at: written.subscription_created_ms,
            subscription_resumed_at: written.subscription_resumed_ms,
        })
    }
}

impl QueueTarget {
    /// The job of a message for a queue target. Its id is always the same, so creating it twice creates one job. Another
    /// subscription of that name makes another job.
    ///
    /// # Errors
    /// It is too large for a job.
    pub fn to_job(
        &self,
        (subscription, created_at): (&SubscriptionName, Millis),
        channel: &ChannelName,
        message: &StoredMessage,
        now: Millis,
    ) -> Result<NewJob, RequestError> {
        let mut new = parse_job(&self.enqueue_request(&message.to_json(channel)), now)?;
        new.id = Some(message_job_id(&format!("{subscription} {created_at}"), &self.queue, channel, message));
        Ok(new)
    }

    /// The enqueue request for a message as JSON.
    pub(super) fn enqueue_request(&self, message: &str) -> String {
        let mut options = ObjectWriter::default();
        options.text("queue", self.queue.as_str());
        if let Some(given) = &self.options {
            options.splice(given.get());
        }
        let mut job = ObjectWriter::with_capacity(message.len() + 256);
        job.text("type", self.job_type.as_str()).raw("args", &format!("[{message}]")).raw("options", &options.finish());
        job.finish()
    }
}

fn parse_job(request: &str, now: Millis) -> Result<NewJob, RequestError> {
    let members: Object = serde_json::from_str(request).map_err(|error| RequestError::Invalid(error.to_string()))?;
    NewJob::parse(&members, now)
}

/// The id of the job of a message.
fn message_job_id(by: &str, queue: &QueueName, channel: &ChannelName, message: &StoredMessage) -> JobId {
    let purpose = format!("subscription {by} {channel} {}", message.position);
    JobId::for_purpose(u64::try_from(message.published_at).unwrap_or_default(), queue, &purpose)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::subscription::SubscriptionRequest;

    fn subscription() -> Subscription {
        let json = br#"{"channels":["c"],"deliver":{"log":{}}}"#;
        SubscriptionRequest::parse(json, 8, 0)
            .and_then(|request| request.apply("s".parse().expect("a name"), None, 0))
            .expect("one")
    }

    fn failure() -> AttemptError {
        AttemptError::new("push_timeout", "push_timeout", "no answer", 1, 0)
    }

    proptest! {
        #[test]
        fn a_message_comes_back_byte_for_byte(
            body: Vec<u8>, content_type in proptest::option::of("[ -~]{1,20}"), is_hopeless: bool, is_event: bool,
            resumed_at: Option<i64>,
        ) {
            let message = StoredMessage {
                position: Position { epoch: 5, sequence: 6 },
                published_at: 7,
                content_type,
                attributes: is_event.then(|| r#"{"type":"a","n":1}"#.to_owned()),
                body,
                trace: TraceContext::default(),
            };
            let subscription = Subscription { resumed_at, ..subscription() };
            let sent = Redelivery::new(&subscription, &"c".parse().expect("a name"), &message, is_hopeless);
            let job = sent.to_job(&subscription, 9_000, vec![failure()], 8).expect("a job");
            prop_assert_eq!((job.queue.as_str(), job.start_at), ("sub.s", Some(9_000)));
            let parts = job.envelope.fields().expect("an envelope");
            let args = parts.args;
            prop_assert_eq!(Redelivery::from_args(args), Some(sent));
        }
    }

    #[test]
    fn a_message_becomes_one_job_however_often() {
        let message = |sequence| StoredMessage {
            position: Position { epoch: 5, sequence },
            published_at: 7,
            content_type: None,
            attributes: None,
            body: b"x".to_vec(),
            trace: TraceContext::default(),
        };
        let job_of = |created_at, channel: &str, sequence| {
            let target = QueueTarget {
                queue: "q".parse().expect("a name"),
                job_type: "t".parse().expect("a type"),
                options: None,
            };
            let channel = channel.parse().expect("a name");
            target.to_job((&"s".parse().expect("a name"), created_at), &channel, &message(sequence), 9).expect("a job")
        };
        let job = |channel: &str, sequence| job_of(5, channel, sequence);
        assert_ne!(job("c", 1).id, job_of(6, "c", 1).id, "another subscription of that name");
        assert_eq!(job("c", 1).id, job("c", 1).id);
        assert_ne!(job("c", 1).id, job("c", 2).id);
        assert_ne!(job("c", 1).id, job("d", 1).id);
        assert_eq!(
            job("c", 1).envelope.as_str(),
            r#"{"type":"t","args":[{"id":"5-1","channel":"c","time":"1970-01-01T00:00:00.007Z","data":"x"}]}"#
        );
    }
}
