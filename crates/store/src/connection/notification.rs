//! Wake-up calls between processes, over one pub/sub channel. They save waiting and carry no truth: who misses one
//! finds out by itself, only later.

use crate::workers::WorkerKey;
use common::{id::JobId, name::QueueName};

/// A wake-up call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wake {
    /// A queue got a stream that was not there before.
    Stream(QueueName),
    /// Something in a queue is due sooner than anything before.
    Due(QueueName),
    /// A cron entry has to be looked at sooner than any before.
    Cron,
    /// A job was cancelled: whoever runs it should stop.
    Cancelled(JobId),
    /// Something is asked of a worker.
    Directive(WorkerKey),
    /// The list of subscriptions has changed, or messages of one wait for another worker.
    Subscriptions,
}

impl Wake {
    /// The call as it is published.
    #[must_use]
    pub fn encode(&self) -> String {
        match self {
            Self::Stream(queue) => format!("stream {queue}"),
            Self::Due(queue) => format!("due {queue}"),
            Self::Cron => "cron entries".to_owned(),
            Self::Cancelled(id) => format!("cancelled {id}"),
            Self::Directive(worker) => format!("directive {}", worker.as_str()),
            Self::Subscriptions => "subscriptions changed".to_owned(),
        }
    }

    /// The call that was heard, if it is one.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let (kind, rest) = std::str::from_utf8(payload).ok()?.split_once(' ')?;
        match kind {
            "stream" => rest.parse().ok().map(Self::Stream),
            "due" => rest.parse().ok().map(Self::Due),
            "cron" => (rest == "entries").then_some(Self::Cron),
            "cancelled" => rest.parse().ok().map(Self::Cancelled),
            "subscriptions" => (rest == "changed").then_some(Self::Subscriptions),
            "directive" => rest.parse().ok().map(Self::Directive),
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
            Wake::Stream(queue.clone()),
            Wake::Due(queue),
            Wake::Cron,
            Wake::Cancelled(id),
            Wake::Directive(worker),
            Wake::Subscriptions,
        ];
        for call in calls {
            assert_eq!(Wake::decode(call.encode().as_bytes()), Some(call));
        }
        for noise in [&b""[..], b"due", b"due {x}", b"cron", b"what q", b"\xff\xff"] {
            assert_eq!(Wake::decode(noise), None);
        }
    }
}
