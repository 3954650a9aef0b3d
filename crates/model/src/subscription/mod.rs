//! What a durable subscription is: channels, where their messages go, and how. Pure: no IO.
//!
//! | module | what it is |
//! |---|---|
//! | [`Selection`] | channels by name and by pattern |
//! | [`Filter`] | which of their messages are wanted |
//! | [`Target`] | where these go |
//! | [`Request`] | what a client asks for, checked |
//! | [`Redelivery`] | a message on its way through the job engine |

mod filter;
mod redelivery;
mod request;
mod request_error;
mod selection;
mod target;
mod target_spec;

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

pub use filter::MessageFilter;
pub use redelivery::{REDELIVERY_JOB_TYPE, Redelivery};
pub use request::{SubscriptionRequest, SubscriptionStart};
pub use request_error::SubscriptionRequestError;
pub use selection::{ChannelSelection, MAX_SELECTED_CHANNELS};
pub use target::{HttpTarget, MAX_SECRETS, PLACEHOLDERS, QueueTarget, SubscriptionTarget};

use crate::{job::RetryPolicy, message::Position};
use common::{
    name::{QueueName, SubscriptionName},
    time::{self, Millis},
};

/// Who gets a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryMode {
    /// One of the workers, whichever takes it.
    #[default]
    Shared,
    /// Every worker.
    Broadcast,
}

/// What holds of two messages of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryOrdering {
    /// Nothing: they are delivered side by side.
    #[default]
    None,
    /// The later one is delivered when the earlier one has been, and not before.
    Channel,
}

/// Whether messages are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionState {
    /// They are.
    #[default]
    Active,
    /// Somebody said not to.
    Paused,
    /// Galley gave up on the target.
    Disabled,
}

/// Where a channel begins that the subscription has not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewChannelStart {
    /// With everything that is kept.
    Earliest,
    /// With what is published from now on; this is now, on Redis's clock.
    Now(Millis),
    /// With what was published at that time and later.
    Since(Millis),
    /// Behind that position.
    After(Position),
}

/// A subscription as it is kept. Holds secrets: it has no debug form.
#[derive(Clone, Serialize, Deserialize)]
pub struct Subscription {
    /// What it is called, and replaced by.
    pub name: SubscriptionName,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Which channels.
    pub channels: ChannelSelection,
    /// Who gets a message.
    pub mode: DeliveryMode,
    /// Where messages go.
    pub deliver: SubscriptionTarget,
    /// Which messages.
    #[serde(default, skip_serializing_if = "MessageFilter::is_empty")]
    pub filter: MessageFilter,
    /// In which order.
    pub ordering: DeliveryOrdering,
    /// Longest delivery, and how long a worker that has a message may be silent.
    pub ack_deadline_ms: u64,
    /// Messages that one worker delivers at a time.
    pub max_in_flight: usize,
    /// The retry policy, as it was given.
    pub retry: Box<RawValue>,
    /// Whether messages are delivered.
    pub state: SubscriptionState,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where channels begin.
    pub begin: NewChannelStart,
    /// Grows whenever it is told where to go on.
    pub generation: u64,
    /// When it was made, in milliseconds.
    pub created_at: Millis,
    /// When it was changed last, in milliseconds.
    pub updated_at: Millis,
}

impl Subscription {
    /// The queue of the messages that could not be delivered at once.
    #[must_use]
    pub fn queue(&self) -> QueueName {
        queue_of(&self.name)
    }

    /// Its consumer group on the histories of its channels.
    #[must_use]
    pub fn group(&self) -> String {
        group_of(&self.name)
    }

    /// The policy by which failed deliveries are tried again.
    #[must_use]
    pub fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy::parse(&self.retry).unwrap_or_default()
    }

    /// The subscription as clients see it, as JSON; what is secret in it is not shown.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        let Some(members) = json.as_object_mut() else { return json };
        for internal in ["begin", "generation"] {
            members.remove(internal);
        }
        for (name, at) in [("created_at", self.created_at), ("updated_at", self.updated_at)] {
            members.insert(name.to_owned(), time::format(at).into());
        }
        members.insert("deliver".to_owned(), self.deliver.to_json());
        members.insert("queue".to_owned(), self.queue().to_string().into());
        json
    }
}

/// The queue of a subscription's failed deliveries.
#[must_use]
pub fn queue_of(name: &SubscriptionName) -> QueueName {
    let text = format!("{QUEUE_PREFIX}{name}");
    // Every name of a subscription makes one of a queue: see `name.rs`
    text.parse().unwrap_or_else(|_| unreachable!("{text} is the name of a queue"))
}

/// The consumer group of a subscription.
#[must_use]
pub fn group_of(name: &SubscriptionName) -> String {
    format!("{GROUP_PREFIX}{name}")
}

/// What the names of all such queues begin with.
const QUEUE_PREFIX: &str = "sub.";
/// What the names of all such consumer groups begin with.
pub const GROUP_PREFIX: &str = "sub:";
