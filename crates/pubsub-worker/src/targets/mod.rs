//! The targets of subscriptions: one attempt to deliver one message.

mod command;
mod http;
mod queue;

use std::{sync::Arc, time::Duration};

use common::{
    name::{ChannelName, CommandName},
    reloadable::Reloadable,
    text::printable,
};
use delivery::{
    command::Commands,
    http::{Endpoint, Network, TargetAvailability},
};
use model::{
    job::RetryAdvice,
    message::StoredMessage,
    subscription::{Subscription, SubscriptionTarget},
};
use store::jobs::Jobs;
use tokio_util::sync::CancellationToken;

use self::queue::QueueTargetClient;

/// One attempt to deliver a message.
#[derive(Clone, Copy)]
pub(crate) struct DeliveryAttempt<'a> {
    pub(crate) channel: &'a ChannelName,
    pub(crate) message: &'a StoredMessage,
    /// The number of this attempt at the message, from 1.
    pub(crate) attempt: u32,
}

/// Why a message was not delivered.
#[derive(Debug)]
pub(crate) enum DeliveryError {
    /// Not tried: the target must be left alone for this long. The attempt does not count.
    Deferred {
        delay: Duration,
        reason: String,
    },
    Failed(DeliveryFailure),
    /// This process stops: another worker delivers the message.
    Abandoned,
}

/// A failed attempt.
#[derive(Debug)]
pub(crate) struct DeliveryFailure {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) advice: RetryAdvice,
    /// The end of a program's stderr.
    pub(crate) output: String,
    /// The message is at fault and not the target: other messages may be delivered.
    pub(crate) is_message_at_fault: bool,
    /// The target answered that it no longer exists.
    pub(crate) is_gone: bool,
    /// What an endpoint answered.
    pub(crate) answer: Box<TargetAnswer>,
}

/// What an endpoint answered, for the log of attempts.
#[derive(Debug, Clone, Default)]
pub(crate) struct TargetAnswer {
    pub(crate) status: Option<u16>,
    /// Its beginning, without secrets.
    pub(crate) excerpt: String,
}

impl DeliveryFailure {
    /// A failure after which no retry makes sense.
    pub(crate) fn permanent(code: &str, message: impl Into<String>) -> DeliveryError {
        Self::error(code, message, RetryAdvice::Never)
    }

    pub(crate) fn error(code: &str, message: impl Into<String>, advice: RetryAdvice) -> DeliveryError {
        let (code, message) = (code.to_owned(), message.into());
        DeliveryError::Failed(Self {
            code,
            message,
            advice,
            output: String::new(),
            is_message_at_fault: advice == RetryAdvice::Never,
            is_gone: false,
            answer: Box::default(),
        })
    }
}

impl DeliveryError {
    /// Adds the end of a program's stderr to a failure.
    fn with_output(mut self, output: String) -> Self {
        if let Self::Failed(failure) = &mut self {
            failure.output = output;
        }
        self
    }
}

/// Delivers the messages of a subscription.
pub(crate) struct Deliverer {
    subscription: Arc<Subscription>,
    client: TargetClient,
    jobs: Jobs,
}

enum TargetClient {
    Http(Box<Endpoint>),
    Queue(Box<QueueTargetClient>),
    Command(CommandName, Arc<Reloadable<Commands>>),
    Log,
}

/// What a deliverer needs from its process.
pub(crate) struct DeliveryContext {
    pub(crate) jobs: Jobs,
    pub(crate) commands: Arc<Reloadable<Commands>>,
    /// The network for HTTP targets, or why it is not available.
    pub(crate) network: Result<Network, String>,
    pub(crate) allow_private: bool,
}

impl Deliverer {
    /// Creates a deliverer; the error is a message for people.
    pub(crate) fn new(subscription: &Arc<Subscription>, context: &DeliveryContext) -> Result<Self, String> {
        let live = match &subscription.deliver {
            SubscriptionTarget::Http(target) => {
                let network = context.network.as_ref().map_err(Clone::clone)?;
                TargetClient::Http(Box::new(Endpoint::for_target(target, context.allow_private, network)?))
            }
            SubscriptionTarget::Queue(target) => {
                TargetClient::Queue(Box::new(QueueTargetClient::new(target.clone(), context.jobs.clone())))
            }
            SubscriptionTarget::Command(name) => TargetClient::Command(name.clone(), context.commands.clone()),
            SubscriptionTarget::Log {} => TargetClient::Log,
        };
        Ok(Self { subscription: subscription.clone(), client: live, jobs: context.jobs.clone() })
    }

    /// Maximum number of messages in delivery at a time.
    pub(crate) fn max_concurrency(&self) -> usize {
        let most = self.subscription.max_in_flight;
        match &self.subscription.deliver {
            SubscriptionTarget::Http(target) => most.min(target.concurrency),
            _ => most,
        }
    }

    /// How many messages the target accepts now.
    pub(crate) fn availability(&self) -> TargetAvailability {
        match &self.client {
            TargetClient::Http(endpoint) => endpoint.availability(),
            TargetClient::Queue(queue) => queue.availability(),
            TargetClient::Command(..) | TargetClient::Log => TargetAvailability::Available,
        }
    }

    /// What receivers recognize a message by; none if the target is no endpoint.
    pub(crate) fn webhook_id(&self, delivery: DeliveryAttempt<'_>) -> Option<String> {
        matches!(self.client, TargetClient::Http(_)).then(|| http::webhook_id(&self.subscription, delivery))
    }

    /// Whether attempts can fail, so that their log says something.
    pub(crate) fn is_logged(&self) -> bool {
        self.jobs.deliveries().is_on() && !matches!(self.client, TargetClient::Log)
    }

    /// Tries once, within the subscription's timeout. Ends soon after `abandon` is cancelled.
    pub(crate) async fn deliver(
        &self,
        delivery: DeliveryAttempt<'_>,
        abandon: &CancellationToken,
    ) -> Result<TargetAnswer, DeliveryError> {
        let deadline = Duration::from_millis(self.subscription.ack_deadline_ms);
        match &self.client {
            TargetClient::Http(endpoint) => {
                let now = self.jobs.estimated_now();
                with_deadline(deadline, abandon, http::deliver(&self.subscription, endpoint, delivery, now)).await
            }
            TargetClient::Queue(queue) => {
                let delivered = with_deadline(deadline, abandon, queue.deliver(&self.subscription, delivery)).await;
                delivered.map(|()| TargetAnswer::default())
            }
            // Stops the program and waits for its exit
            TargetClient::Command(name, commands) => {
                let delivered =
                    command::deliver(&self.subscription, name, commands, delivery, (deadline, abandon)).await;
                delivered.map(|()| TargetAnswer::default())
            }
            TargetClient::Log => {
                log_delivery(&self.subscription, delivery);
                Ok(TargetAnswer::default())
            }
        }
    }
}

async fn with_deadline<T>(
    deadline: Duration,
    abandon: &CancellationToken,
    attempt: impl Future<Output = Result<T, DeliveryError>>,
) -> Result<T, DeliveryError> {
    tokio::select! {
        biased;
        delivered = tokio::time::timeout(deadline, attempt) => delivered.unwrap_or_else(|_| {
            let message = format!("not delivered within {} ms", deadline.as_millis());
            Err(DeliveryFailure::error("timeout", message, RetryAdvice::ByPolicy))
        }),
        () = abandon.cancelled() => Err(DeliveryError::Abandoned),
    }
}

fn log_delivery(subscription: &Subscription, DeliveryAttempt { channel, message, .. }: DeliveryAttempt<'_>) {
    let (name, id) = (&subscription.name, message.position);
    let body = printable(&message.body);
    tracing::info!(event = "message.logged", subscription = %name, %channel, %id, "message {body}");
}
