//! Durable subscriptions: channels, where their messages go, and how. Pure: no IO.
//!
//! | module | what it is |
//! |---|---|
//! | [`ChannelSelection`] | channels by name and by pattern |
//! | [`MessageFilter`] | which of their messages are delivered |
//! | [`SubscriptionTarget`] | where they are delivered |
//! | [`SubscriptionRequest`] | a client's request, checked |
//! | [`Redelivery`] | a failed delivery that is retried as a job |

mod exact_json;
mod filter;
mod filter_condition;
mod redelivery;
mod request;
mod request_error;
mod selection;
mod target;
mod target_spec;

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

pub use filter::{FilterVerdict, MessageFilter};
pub use redelivery::{REDELIVERY_JOB_TYPE, Redelivery};
pub use request::{SubscriptionRequest, SubscriptionStart};
pub use request_error::SubscriptionRequestError;
pub use selection::{ChannelSelection, MAX_SELECTED_CHANNELS};
pub use target::{HttpTarget, MAX_SECRETS, PLACEHOLDERS, QueueTarget, SubscriptionTarget};

use crate::{job::RetryPolicy, message::Position};
use common::{
    json::ObjectWriter,
    name::{QueueName, SubscriptionName},
    time::{self, Millis},
};

/// Which workers deliver a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryMode {
    /// One of the workers.
    #[default]
    Shared,
    /// Every worker.
    Broadcast,
}

/// The order of the messages of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryOrdering {
    /// No order: messages are delivered in parallel.
    #[default]
    None,
    /// A message is delivered only after the previous one of its channel.
    Channel,
}

/// Whether messages are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionState {
    /// Messages are delivered.
    #[default]
    Active,
    /// A client paused the subscription.
    Paused,
    /// Galley disabled the subscription because all deliveries failed.
    Disabled,
}

/// Where the subscription starts in a channel that it has not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewChannelStart {
    /// At the oldest message that is kept.
    Earliest,
    /// At the first message published after this time, on Redis's clock: the time of the request.
    Now(Millis),
    /// At the first message published at this time or later.
    Since(Millis),
    /// After this position.
    After(Position),
}

/// A subscription as it is stored. It holds secrets, so it has no debug form.
#[derive(Clone, Serialize, Deserialize)]
pub struct Subscription {
    /// The name. A request with the same name replaces the subscription.
    pub name: SubscriptionName,
    /// A description, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its channels.
    pub channels: ChannelSelection,
    /// Which workers deliver a message.
    pub mode: DeliveryMode,
    /// Where messages go.
    pub deliver: SubscriptionTarget,
    /// Which messages are delivered.
    #[serde(default, skip_serializing_if = "MessageFilter::is_empty")]
    pub filter: MessageFilter,
    /// The order of the messages of a channel.
    pub ordering: DeliveryOrdering,
    /// Longest delivery. A worker that has a message for longer without a sign of life loses it.
    pub ack_deadline_ms: u64,
    /// Messages that one worker delivers at a time.
    pub max_in_flight: usize,
    /// The retry policy, as it was sent.
    pub retry: Box<RawValue>,
    /// Whether messages are delivered.
    pub state: SubscriptionState,
    /// Why messages are not delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where it starts in new channels.
    pub begin: NewChannelStart,
    /// Grows with every seek.
    pub generation: u64,
    /// When it was last resumed, in milliseconds: failures from before count no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_at: Option<Millis>,
    /// When it was created, in milliseconds.
    pub created_at: Millis,
    /// When it was changed last, in milliseconds.
    pub updated_at: Millis,
}

impl Subscription {
    /// The queue of its failed deliveries.
    #[must_use]
    pub fn queue(&self) -> QueueName {
        queue_of(&self.name)
    }

    /// Its consumer group on the histories of its channels.
    #[must_use]
    pub fn group(&self) -> String {
        group_of(&self.name)
    }

    /// The retry policy of failed deliveries.
    #[must_use]
    pub fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy::parse(&self.retry).unwrap_or_default()
    }

    /// The subscription as clients see it, as JSON without its secrets.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut shown = ObjectWriter::default();
        if let Ok(Value::Object(members)) = serde_json::to_value(self) {
            let hidden =
                ["begin", "generation", "created_at", "updated_at", "deliver", "filter", "resumed_at", "retry"];
            for (name, value) in members.iter().filter(|(name, _)| !hidden.contains(&name.as_str())) {
                shown.raw(name, &value.to_string());
            }
        }
        shown.raw("retry", self.retry.get());
        // As it was written: its numbers may be more precise than a `Value`
        if let Some(filter) = Some(&self.filter).filter(|filter| !filter.is_empty()) {
            shown.raw("filter", &serde_json::to_string(filter).unwrap_or_default());
        }
        for (name, at) in [("created_at", self.created_at), ("updated_at", self.updated_at)] {
            shown.text(name, &time::format(at));
        }
        shown.raw("deliver", &self.deliver.to_json()).text("queue", self.queue().as_str());
        shown.finish()
    }
}

/// The queue of a subscription's failed deliveries.
#[must_use]
pub fn queue_of(name: &SubscriptionName) -> QueueName {
    let text = format!("{QUEUE_PREFIX}{name}");
    // The prefix and any name of a subscription make a valid name of a queue: see `name.rs`
    text.parse().unwrap_or_else(|_| unreachable!("{text} is the name of a queue"))
}

/// The subscription whose failed deliveries a queue is for, if it is for any.
#[must_use]
pub fn subscription_of_queue(queue: &QueueName) -> Option<SubscriptionName> {
    queue.as_str().strip_prefix(QUEUE_PREFIX)?.parse().ok()
}

/// The consumer group of a subscription.
#[must_use]
pub fn group_of(name: &SubscriptionName) -> String {
    format!("{GROUP_PREFIX}{name}")
}

/// The prefix of the names of these queues.
const QUEUE_PREFIX: &str = "sub.";
/// The prefix of the names of these consumer groups.
pub const GROUP_PREFIX: &str = "sub:";
