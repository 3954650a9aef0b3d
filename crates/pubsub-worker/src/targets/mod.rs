//! Where a subscription's messages go: one attempt to deliver one of them.

mod command;
mod http;
mod queue;

use std::{sync::Arc, time::Duration};

use common::{
    name::{ChannelName, CommandName},
    reloadable::InForce,
    text::printable,
};
use delivery::{
    command::Commands,
    http::{Endpoint, Network, Room},
};
use model::{
    job::Advice,
    message::Stored,
    subscription::{Subscription, Target},
};
use store::jobs::Jobs;
use tokio_util::sync::CancellationToken;

use self::queue::Queue;

/// One attempt.
#[derive(Clone, Copy)]
pub(crate) struct Delivery<'a> {
    pub(crate) channel: &'a ChannelName,
    pub(crate) message: &'a Stored,
    /// Which attempt at this message it is, from 1.
    pub(crate) attempt: u32,
}

/// Why a message was not delivered.
#[derive(Debug)]
pub(crate) enum NotDelivered {
    /// It was not tried: the target has to be left alone for so long, and no attempt is spent.
    Later {
        delay: Duration,
        why: String,
    },
    Failed(Failure),
    /// This process stops: somebody else delivers it.
    Abandoned,
}

/// An attempt that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) advice: Advice,
    /// The end of what a program wrote for people.
    pub(crate) output: String,
    /// The target says that it is there no more.
    pub(crate) is_gone: bool,
}

impl Failure {
    /// One after which no other attempt makes sense.
    pub(crate) fn hopeless(code: &str, message: impl Into<String>) -> NotDelivered {
        Self::of(code, message, Advice::Never)
    }

    pub(crate) fn of(code: &str, message: impl Into<String>, advice: Advice) -> NotDelivered {
        let (code, message) = (code.to_owned(), message.into());
        NotDelivered::Failed(Self { code, message, advice, output: String::new(), is_gone: false })
    }
}

/// Delivers the messages of a subscription.
pub(crate) struct Deliverer {
    subscription: Arc<Subscription>,
    live: Live,
}

enum Live {
    Http(Box<Endpoint>),
    Queue(Box<Queue>),
    Command(CommandName, Arc<InForce<Commands>>),
    Log,
}

/// What deliverers are made with.
pub(crate) struct Means {
    pub(crate) jobs: Jobs,
    pub(crate) commands: Arc<InForce<Commands>>,
    /// How others are reached, or why they cannot be.
    pub(crate) network: Result<Network, String>,
    pub(crate) allow_private: bool,
}

impl Deliverer {
    /// Makes one; the error is for people.
    pub(crate) fn new(subscription: &Arc<Subscription>, means: &Means) -> Result<Self, String> {
        let live = match &subscription.deliver {
            Target::Http(target) => {
                let network = means.network.as_ref().map_err(Clone::clone)?;
                Live::Http(Box::new(Endpoint::for_target(target, means.allow_private, network)?))
            }
            Target::Queue(target) => Live::Queue(Box::new(Queue::new(target.clone(), means.jobs.clone()))),
            Target::Command(name) => Live::Command(name.clone(), means.commands.clone()),
            Target::Log {} => Live::Log,
        };
        Ok(Self { subscription: subscription.clone(), live })
    }

    /// Messages that it takes at a time.
    pub(crate) fn places(&self) -> usize {
        let most = self.subscription.max_in_flight;
        match &self.subscription.deliver {
            Target::Http(target) => most.min(target.concurrency),
            _ => most,
        }
    }

    /// How many messages there is room for.
    pub(crate) fn room(&self) -> Room {
        match &self.live {
            Live::Http(endpoint) => endpoint.room(),
            Live::Queue(queue) => queue.room(),
            Live::Command(..) | Live::Log => Room::Free,
        }
    }

    /// Tries once, no longer than the subscription allows. When `abandon` is cancelled it ends soon.
    pub(crate) async fn deliver(
        &self,
        delivery: Delivery<'_>,
        abandon: &CancellationToken,
    ) -> Result<(), NotDelivered> {
        let deadline = Duration::from_millis(self.subscription.ack_deadline_ms);
        match &self.live {
            Live::Http(endpoint) => {
                within(deadline, abandon, http::deliver(&self.subscription, endpoint, delivery)).await
            }
            Live::Queue(queue) => within(deadline, abandon, queue.deliver(&self.subscription, delivery)).await,
            // A program is told to end, and waited for
            Live::Command(name, commands) => {
                command::deliver(&self.subscription, name, commands, delivery, (deadline, abandon)).await
            }
            Live::Log => {
                log(&self.subscription, delivery);
                Ok(())
            }
        }
    }
}

async fn within(
    deadline: Duration,
    abandon: &CancellationToken,
    attempt: impl Future<Output = Result<(), NotDelivered>>,
) -> Result<(), NotDelivered> {
    tokio::select! {
        biased;
        delivered = tokio::time::timeout(deadline, attempt) => delivered.unwrap_or_else(|_| {
            let message = format!("not delivered within {} ms", deadline.as_millis());
            Err(Failure::of("timeout", message, Advice::ByPolicy))
        }),
        () = abandon.cancelled() => Err(NotDelivered::Abandoned),
    }
}

fn log(subscription: &Subscription, Delivery { channel, message, .. }: Delivery<'_>) {
    let (name, id) = (&subscription.name, message.position);
    tracing::info!(subscription = %name, %channel, %id, "message {}", printable(&message.body));
}
