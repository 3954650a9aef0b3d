//! What spans say about themselves, by OpenTelemetry's conventions for messaging and HTTP.

use std::{borrow::Cow, fmt};

use opentelemetry::{KeyValue, Value, trace::SpanKind};
use opentelemetry_semantic_conventions::attribute as names;

use crate::trace_context::SpanReference;

/// Most links of a span.
pub const MAX_LINKS: usize = 128;
/// What `messaging.system` says.
const SYSTEM: &str = "galley";

/// What a job or a message goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A job is put into a queue.
    Enqueue,
    /// A message is published to a channel.
    Publish,
    /// Jobs or messages are claimed.
    Receive,
    /// An attempt at a job.
    Process,
    /// An attempt to deliver a message of a subscription.
    Deliver,
    /// The end of an attempt is recorded.
    Settle,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Enqueue => "enqueue",
            Self::Publish => "publish",
            Self::Receive => "receive",
            Self::Process => "process",
            Self::Deliver => "deliver",
            Self::Settle => "settle",
        }
    }

    /// The type that the conventions know.
    fn kind_name(self) -> &'static str {
        match self {
            Self::Enqueue | Self::Publish => "send",
            Self::Receive => "receive",
            Self::Process | Self::Deliver => "process",
            Self::Settle => "settle",
        }
    }

    fn kind(self) -> SpanKind {
        match self {
            Self::Enqueue | Self::Publish => SpanKind::Producer,
            Self::Process | Self::Deliver => SpanKind::Consumer,
            Self::Receive | Self::Settle => SpanKind::Client,
        }
    }
}

/// What a span says about itself. Made only for spans that are recorded.
#[derive(Debug)]
pub struct SpanDescription {
    pub(super) name: Cow<'static, str>,
    pub(super) kind: SpanKind,
    pub(super) attributes: Vec<KeyValue>,
    pub(super) links: Vec<SpanReference>,
}

impl SpanDescription {
    /// An operation on a queue, a channel or a subscription. Channels are many, so the name of a span has none.
    #[must_use]
    pub fn messaging(operation: Operation, destination: &str) -> Self {
        let name = match operation {
            Operation::Publish => Cow::Borrowed(operation.name()),
            _ => format!("{} {destination}", operation.name()).into(),
        };
        Self { name, kind: operation.kind(), attributes: Vec::with_capacity(12), links: Vec::new() }
            .with(names::MESSAGING_SYSTEM, SYSTEM)
            .with(names::MESSAGING_OPERATION_NAME, operation.name())
            .with(names::MESSAGING_OPERATION_TYPE, operation.kind_name())
            .with(names::MESSAGING_DESTINATION_NAME, destination.to_owned())
    }

    /// A request that this process answers.
    #[must_use]
    pub fn server(method: &'static str, route: &str, path: &str) -> Self {
        let name = if route.is_empty() { Cow::Borrowed(method) } else { format!("{method} {route}").into() };
        let new = Self { name, kind: SpanKind::Server, attributes: Vec::with_capacity(8), links: Vec::new() };
        let new = new.with(names::HTTP_REQUEST_METHOD, method).with(names::URL_PATH, path.to_owned());
        if route.is_empty() { new } else { new.with(names::HTTP_ROUTE, route.to_owned()) }
    }

    /// A request to an endpoint. Its URL may hold secrets, so only its origin is shown.
    #[must_use]
    pub fn client(method: &'static str, scheme: &str, host: &str, port: u16) -> Self {
        Self { name: method.into(), kind: SpanKind::Client, attributes: Vec::with_capacity(8), links: Vec::new() }
            .with(names::HTTP_REQUEST_METHOD, method)
            .with(names::URL_SCHEME, scheme.to_owned())
            .with(names::SERVER_ADDRESS, host.to_owned())
            .with(names::SERVER_PORT, i64::from(port))
    }

    /// Work of this process itself.
    #[must_use]
    pub fn internal(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into(), kind: SpanKind::Internal, attributes: Vec::new(), links: Vec::new() }
    }

    /// With an attribute.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push(KeyValue::new(name, value));
        self
    }

    /// With an attribute, if there is a value.
    #[must_use]
    pub fn with_some(self, name: &'static str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// With the id of the job or of the message.
    #[must_use]
    pub fn with_message_id(self, id: &dyn fmt::Display) -> Self {
        self.with(names::MESSAGING_MESSAGE_ID, id.to_string())
    }

    /// With the number of jobs or messages in a batch.
    #[must_use]
    pub fn with_batch(self, count: usize) -> Self {
        self.with(names::MESSAGING_BATCH_MESSAGE_COUNT, i64::try_from(count).unwrap_or(i64::MAX))
    }

    /// With links to other spans. Those that are not recorded lead nowhere.
    #[must_use]
    pub fn with_links(mut self, links: impl IntoIterator<Item = SpanReference>) -> Self {
        let room = MAX_LINKS.saturating_sub(self.links.len());
        self.links.extend(links.into_iter().filter(|link| link.is_sampled()).take(room));
        self
    }
}
