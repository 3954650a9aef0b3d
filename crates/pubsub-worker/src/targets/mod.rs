//! Where a subscription's messages go: one attempt to deliver one of them.

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

/// One attempt.
#[derive(Clone, Copy)]
pub(crate) struct DeliveryAttempt<'a> {
    pub(crate) channel: &'a ChannelName,
    pub(crate) message: &'a StoredMessage,
    /// Which attempt at this message it is, from 1.
    pub(crate) attempt: u32,
}

/// Why a message was not delivered.
#[derive(Debug)]
pub(crate) enum DeliveryError {
    /// It was not tried: the target has to be left alone for so long, and no attempt is spent.
    Deferred {
        delay: Duration,
        reason: String,
    },
    Failed(DeliveryFailure),
    /// This process stops: somebody else delivers it.
    Abandoned,
}

/// An attempt that failed.
#[derive(Debug)]
pub(crate) struct DeliveryFailure {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) advice: RetryAdvice,
    /// The end of what a program wrote for people.
    pub(crate) output: String,
    /// The target says that it is there no more.
    pub(crate) is_gone: bool,
}

impl DeliveryFailure {
    /// One after which no other attempt makes sense.
    pub(crate) fn permanent(code: &str, message: impl Into<String>) -> DeliveryError {
        Self::error(code, message, RetryAdvice::Never)
    }

    pub(crate) fn error(code: &str, message: impl Into<String>, advice: RetryAdvice) -> DeliveryError {
        let (code, message) = (code.to_owned(), message.into());
        DeliveryError::Failed(Self { code, message, advice, output: String::new(), is_gone: false })
    }
}

/// Delivers the messages of a subscription.
pub(crate) struct Deliverer {
    subscription: Arc<Subscription>,
    client: TargetClient,
}

enum TargetClient {
    Http(Box<Endpoint>),
    Queue(Box<QueueTargetClient>),
    Command(CommandName, Arc<Reloadable<Commands>>),
    Log,
}

/// What deliverers are made with.
pub(crate) struct DeliveryContext {
    pub(crate) jobs: Jobs,
    pub(crate) commands: Arc<Reloadable<Commands>>,
    /// How others are reached, or why they cannot be.
    pub(crate) network: Result<Network, String>,
    pub(crate) allow_private: bool,
}

impl Deliverer {
    /// Makes one; the error is for people.
    pub(crate) fn new(subscription: &Arc<Subscription>, means: &DeliveryContext) -> Result<Self, String> {
        let live = match &subscription.deliver {
            SubscriptionTarget::Http(target) => {
                let network = means.network.as_ref().map_err(Clone::clone)?;
                TargetClient::Http(Box::new(Endpoint::for_target(target, means.allow_private, network)?))
            }
            SubscriptionTarget::Queue(target) => {
                TargetClient::Queue(Box::new(QueueTargetClient::new(target.clone(), means.jobs.clone())))
            }
            SubscriptionTarget::Command(name) => TargetClient::Command(name.clone(), means.commands.clone()),
            SubscriptionTarget::Log {} => TargetClient::Log,
        };
        Ok(Self { subscription: subscription.clone(), client: live })
    }

    /// Messages that it takes at a time.
    pub(crate) fn max_concurrency(&self) -> usize {
        let most = self.subscription.max_in_flight;
        match &self.subscription.deliver {
            SubscriptionTarget::Http(target) => most.min(target.concurrency),
            _ => most,
        }
    }

    /// How many messages there is room for.
    pub(crate) fn availability(&self) -> TargetAvailability {
        match &self.client {
            TargetClient::Http(endpoint) => endpoint.availability(),
            TargetClient::Queue(queue) => queue.availability(),
            TargetClient::Command(..) | TargetClient::Log => TargetAvailability::Available,
        }
    }

    /// Tries once, no longer than the subscription allows. When `abandon` is cancelled it ends soon.
    pub(crate) async fn deliver(
        &self,
        delivery: DeliveryAttempt<'_>,
        abandon: &CancellationToken,
    ) -> Result<(), DeliveryError> {
        let deadline = Duration::from_millis(self.subscription.ack_deadline_ms);
        match &self.client {
            TargetClient::Http(endpoint) => {
                with_deadline(deadline, abandon, http::deliver(&self.subscription, endpoint, delivery)).await
            }
            TargetClient::Queue(queue) => {
                with_deadline(deadline, abandon, queue.deliver(&self.subscription, delivery)).await
            }
            // A program is told to end, and waited for
            TargetClient::Command(name, commands) => {
                command::deliver(&self.subscription, name, commands, delivery, (deadline, abandon)).await
            }
            TargetClient::Log => {
                log_delivery(&self.subscription, delivery);
                Ok(())
            }
        }
    }
}

async fn with_deadline(
    deadline: Duration,
    abandon: &CancellationToken,
    attempt: impl Future<Output = Result<(), DeliveryError>>,
) -> Result<(), DeliveryError> {
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
    tracing::info!(subscription = %name, %channel, %id, "message {}", printable(&message.body));
}
