//! Notifications between processes on one pub/sub channel. They only save waiting: a process that misses one finds out
//! by itself, later.

use crate::{connection::client::Redis, keys::TopicNames, workers::key::WorkerKey};
use common::{id::JobId, name::QueueName, time::Millis};
use model::access::KeyId;

/// A notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    /// A queue has a new stream.
    StreamCreated(QueueName),
    /// A queue may have a new earliest due time.
    DueChanged(QueueName),
    /// Something in a queue is due at that time, earlier than everything else. `set_due` in `lua/clock.lua` adds the time
    /// to [`Notification::DueChanged`].
    DueAt(QueueName, Millis),
    /// The cron entries have a new earliest time.
    CronChanged,
    /// A job was cancelled: its attempt should stop.
    JobCancelled(JobId),
    /// A worker has a new directive.
    DirectiveChanged(WorkerKey),
    /// The list of subscriptions changed, or messages of one were released.
    SubscriptionsChanged,
    /// An API key was made, changed or revoked.
    ApiKeyChanged(KeyId),
}

impl Redis {
    /// The pub/sub channels of the database of `redis.url`.
    #[must_use]
    pub fn topics(&self) -> &TopicNames {
        &self.inner().topics
    }

    /// Publishes a notification, after what it announces. That is done already, so a refusal is no failure: a process that
    /// misses the notification finds out later.
    pub(crate) async fn notify(&self, notification: &Notification) {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(self.topics().notifications()).arg(notification.encode());
        if let Err(error) = publish.exec_async(&mut self.clone()).await {
            tracing::debug!(%error, ?notification, "a notification was not published");
        }
    }
}

impl Notification {
    /// The notification as it is published.
    #[must_use]
    pub fn encode(&self) -> String {
        match self {
            Self::StreamCreated(queue) => format!("stream {}", queue.stored()),
            Self::DueChanged(queue) => format!("due {}", queue.stored()),
            Self::DueAt(queue, at) => format!("due {} {at}", queue.stored()),
            Self::CronChanged => "cron entries".to_owned(),
            Self::JobCancelled(id) => format!("cancelled {id}"),
            Self::DirectiveChanged(worker) => format!("directive {}", worker.as_str()),
            Self::SubscriptionsChanged => "subscriptions changed".to_owned(),
            Self::ApiKeyChanged(id) => format!("key {id}"),
        }
    }

    /// Parses a published notification.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let (kind, rest) = std::str::from_utf8(payload).ok()?.split_once(' ')?;
        match kind {
            "stream" => QueueName::from_stored(rest).ok().map(Self::StreamCreated),
            "due" => match rest.split_once(' ') {
                Some((queue, at)) => Some(Self::DueAt(QueueName::from_stored(queue).ok()?, at.parse().ok()?)),
                None => QueueName::from_stored(rest).ok().map(Self::DueChanged),
            },
            // With the time of the next run or without
            "cron" => (rest.split(' ').next() == Some("entries")).then_some(Self::CronChanged),
            "cancelled" => rest.parse().ok().map(Self::JobCancelled),
            "subscriptions" => (rest == "changed").then_some(Self::SubscriptionsChanged),
            "directive" => rest.parse().ok().map(Self::DirectiveChanged),
            "key" => rest.parse().ok().map(Self::ApiKeyChanged),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_understood_and_anything_else_ignored() {
        let queue: QueueName = "a.b".parse().expect("a name");
        let id = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
        let worker = "pull:w".parse().expect("a worker");
        let calls = [
            Notification::StreamCreated(queue.clone()),
            Notification::StreamCreated(queue.partition(3)),
            Notification::DueAt(queue.partition(1), 7),
            Notification::DueChanged(queue.clone()),
            Notification::DueAt(queue, 1_700_000_000_000),
            Notification::CronChanged,
            Notification::JobCancelled(id),
            Notification::DirectiveChanged(worker),
            Notification::SubscriptionsChanged,
            Notification::ApiKeyChanged("k3y".parse().expect("an id")),
        ];
        for call in calls {
            assert_eq!(Notification::decode(call.encode().as_bytes()), Some(call));
        }
        assert_eq!(Notification::decode(b"cron entries 17"), Some(Notification::CronChanged));
        for noise in [&b""[..], b"due", b"due {x}", b"due a.b soon", b"cron", b"what q", b"\xff\xff"] {
            assert_eq!(Notification::decode(noise), None);
        }
    }
}
